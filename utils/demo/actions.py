"""What the people of the demo data set can do: gestures, kicks, postures, and the table of all actions.

An action takes the performer (place, body, random generator), appends curves to the performance and returns
the facts that captions may mention: "tempo" (slow, fast), "size" (big, small), "count".
"""
from functools import partial

import numpy as np
from scipy.ndimage import gaussian_filter1d

from utils.demo import steps
from utils.demo.body import SIDES, solve
from utils.demo.performer import OTHER, SIGN, add, curve, planar, pulse, ramp, size_of, tempo_of


def times(start, count, period):
    return [start + k * period for k in range(count)]


# ---- arms

def lean_with(p, c, side, weight, amount=1.0):
    sign = SIGN[side]
    add(c, side=amount * sign * 3 * weight, twist=-amount * sign * 2 * weight)
    p.shift(c, sideways=-amount * sign * 0.015 * weight)


def wave(p, sides):
    count, period = p.count(*range(2, 6)), p.uniform(7.5, 12.5)
    start, rise = p.uniform(3, 8), p.uniform(10, 16)
    begin, end = start + rise - 3, start + rise + count * period
    n = int(end + rise + p.uniform(3, 8))
    c, frames = p.neutral(n), np.arange(n)
    up = pulse(n, start, start + rise, end, end + rise)
    swing = np.sin(2 * np.pi * (frames - begin) / period) * pulse(n, begin, begin + 6, end - 4, end + 4)
    style, width = p.pick("low", "high", "front"), p.uniform(16, 30)
    angles = {"low": {"spread": p.uniform(74, 92), "swing": p.uniform(0, 20), "roll": -90,
                      "elbow": p.uniform(75, 95)},
              "high": {"spread": p.uniform(125, 150), "swing": p.uniform(0, 15), "roll": -80,
                       "elbow": p.uniform(25, 40)},
              "front": {"spread": p.uniform(30, 45), "swing": p.uniform(54, 70), "roll": -25,
                        "elbow": p.uniform(75, 95)}}[style]
    for side in sides:
        p.arm(c, side, up, **angles)
        add(c, side, **{"roll" if style == "front" else "elbow": width * swing},
            spread=(6 if style != "high" else 14) * swing)
    if len(sides) == 1:
        lean_with(p, c, sides[0], -up)
        add(c, head_roll=SIGN[sides[0]] * -3 * up)
    p.append(c)
    return {"tempo": tempo_of(period, 12, 8.5), "size": size_of(width, 19, 26)}


def raise_arms(p, sides):
    start, rise, hold, fall = p.uniform(4, 10), p.uniform(12, 26), p.uniform(8, 24), p.uniform(12, 22)
    stays = not p.followed and p.pick(True, False, False)
    n = int(start + rise + hold + (0 if stays else fall) + p.uniform(3, 9))
    c = p.neutral(n)
    lower = start + rise + hold
    up = ramp(n, start, start + rise) - (0 if stays else ramp(n, lower, lower + fall))
    high = p.uniform(155, 176)
    angles = p.pick({"swing": high, "spread": p.uniform(4, 14), "roll": 0},
                    {"spread": high, "swing": 4, "roll": 0})
    for side in sides:
        p.arm(c, side, up, elbow=p.uniform(3, 16), **angles)
    if len(sides) == 1:
        lean_with(p, c, sides[0], -up, 1.3)
    else:
        add(c, bend=-5 * up, head_pitch=-p.uniform(0, 14) * up)
    p.append(c)
    return {"tempo": tempo_of(rise, 22, 15)}


def clap(p):
    count, period = p.count(*range(3, 7)), p.uniform(7, 12.5)
    start, rise = p.uniform(3, 8), p.uniform(9, 14)
    n = int(start + rise + count * period + rise + p.uniform(3, 7))
    c, frames = p.neutral(n), np.arange(n)
    end = start + rise + (count - 0.5) * period
    up = pulse(n, start, start + rise, end + 2, end + 2 + rise)
    open_hands = 0.5 - 0.5 * np.cos(2 * np.pi * (frames - start - rise - 0.5 * period) / period + np.pi)
    open_hands = np.where(frames < start + rise, 1.0, np.where(frames > end, 0.25, open_hands))
    open_hands = gaussian_filter1d(open_hands, 0.7)
    swing, elbow, wide = p.uniform(22, 48), p.uniform(68, 88), p.uniform(18, 32)
    closed = closing_roll(p, swing, elbow)
    for side, _ in SIDES:
        p.arm(c, side, up, swing=swing, spread=4, elbow=elbow, roll=closed)
        add(c, side, roll=-up * wide * open_hands, spread=up * 6 * open_hands)
    add(c, head_pitch=5 * up)
    p.append(c)
    return {"count": count if count <= 4 else None, "tempo": tempo_of(period, 12, 8)}


def closing_roll(p, swing, elbow):
    """The inward roll of the upper arms that brings the wrists together (about 7 cm apart)."""
    roll = np.arange(0.0, 80.0, 1.0)
    c = p.neutral(len(roll))
    for side, _ in SIDES:
        c.update({f"{side}_swing": 0 * roll + swing, f"{side}_spread": 0 * roll + 4,
                  f"{side}_elbow": 0 * roll + elbow, f"{side}_roll": roll})
    wrists = solve(p.body, c)[:, [20, 21]]
    apart = ((wrists[:, 0] - wrists[:, 1])[:, [0, 2]] * planar(c["yaw"], 1.0, 0.0)).sum(-1)
    return float(roll[np.argmin(np.abs(apart - 0.07))])


def punch(p, side):
    count, period = p.count(1, 1, 2, 3, 4), p.uniform(14, 22)
    start, rise = p.uniform(3, 7), p.uniform(8, 12)
    begin = start + rise
    n = int(begin + count * period + rise + p.uniform(4, 8))
    c, sign = p.neutral(n), SIGN[side]
    guard = pulse(n, start, start + rise, begin + count * period, begin + count * period + rise)
    for own, _ in SIDES:
        p.arm(c, own, guard, swing=30, spread=8, roll=22, elbow=p.uniform(115, 130))
    add(c, height=-0.04 * guard, bend=6 * guard)
    hit = sum(curve(n, (t, 0), (t + 3, -0.18), (t + 6.5, 1), (t + 8.5, 1), (t + min(13.5, period), 0))
              for t in times(begin, count, period))
    high = p.uniform(80, 98)
    p.arm(c, side, hit, swing=high, spread=-4, roll=10, elbow=6)
    add(c, twist=-sign * 24 * hit, pelvis_yaw=-sign * 8 * hit, head_yaw=sign * 10 * hit)
    p.shift(c, ahead=0.05 * hit, sideways=-sign * 0.01 * hit)
    p.append(c)
    return {"count": count, "tempo": tempo_of(period, 20.5, 15.5)}


# ---- legs and whole body

def kick(p, side):
    count, sign = p.count(1, 1, 1, 2, 3), SIGN[side]
    high, period = p.uniform(0.42, 0.95), p.uniform(24, 32)
    start = p.uniform(6, 10)
    n = int(start + count * period + p.uniform(8, 13))
    c, end = p.neutral(n), start + count * period
    weight = pulse(n, start - 6, start + 3, end - 4, end + 6)
    stand = OTHER[side]
    p.shift(c, sideways=-sign * 0.085 * weight)
    add(c, height=-0.02 * weight)
    begins = times(start, count, period)
    back = sum(curve(n, (t, 0), (t + 7, 1), (t + 11, 0)) for t in begins)
    hit = sum(curve(n, (t + 6, 0), (t + 12, 1), (t + 13.5, 1), (t + period - 1, 0)) for t in begins)
    leg = p.body.length[4] + p.body.length[7]  # nearly straight at the top
    far = 1.05 * np.sqrt(leg ** 2 - (p.body.standing - 0.14 - high) ** 2)
    p.shift_foot(c, side, ahead=far * hit - 0.28 * back, sideways=-sign * 0.05 * hit)
    add(c, side, lift=high * np.maximum(hit, 0) ** 0.8 + 0.14 * np.maximum(back, 0) ** 0.5,
        foot_pitch=48 * back - 30 * hit)
    add(c, bend=8 * back - 7 * hit, pelvis_pitch=4 * back - 14 * hit * high, pelvis_yaw=sign * 8 * hit,
        head_pitch=10 * hit)
    p.arm(c, stand, weight, swing=10, spread=32, elbow=30)
    p.arm(c, side, weight, swing=-5, spread=38, elbow=25)
    add(c, stand, swing=38 * hit - 20 * back)
    add(c, side, swing=16 * back - 28 * hit)
    p.append(c)
    return {"count": count, "size": size_of(high, 0.54, 0.78)}


def squat(p):
    count, period, depth = p.count(1, 1, 1, 2, 2, 3), p.uniform(28, 46), p.uniform(0.3, 0.47)
    start, n_hold = p.uniform(3, 7), p.uniform(0, 8)
    n = int(start + count * (period + n_hold) + p.uniform(4, 8))
    c = p.neutral(n)
    down = sum(pulse(n, t, t + 0.48 * period, t + 0.48 * period + n_hold, t + period + n_hold - 1)
               for t in times(start, count, period + n_hold))
    add(c, height=-depth * down, pelvis_pitch=p.uniform(26, 38) * down, bend=p.uniform(8, 16) * down,
        head_pitch=-8 * down, l_splay=14 * down, r_splay=14 * down)
    p.shift(c, ahead=-0.42 * depth * down)  # the hips go back, the trunk ahead to stay over the feet
    style = p.pick("ahead", "ahead", "folded", "hanging")
    angles = {"ahead": {"swing": p.uniform(85, 105), "spread": 6, "elbow": 8},
              "folded": {"swing": 45, "spread": 5, "elbow": 110, "roll": 25},
              "hanging": {"swing": 42, "spread": 10, "elbow": 15}}[style]
    for side, _ in SIDES:
        p.arm(c, side, down, **angles)
    p.append(c)
    return {"count": count, "tempo": tempo_of(period, 41, 33), "size": size_of(depth, 0.34, 0.42)}


def seat_curves(p, c, down, lean):
    """Sit by ``down`` (n,), 0 standing to 1 on the chair, hands on the thighs; ``lean`` (n,): the trunk goes
    ahead in between."""
    seat = p.seat
    add(c, height=(seat["height"] - p.body.standing - p.ease["height"]) * down,
        pelvis_pitch=lean * 26 - 6 * down, bend=lean * 16 + 4 * down, head_pitch=-12 * lean)
    p.shift(c, ahead=-seat["back"] * down ** 0.9)
    for side, _ in SIDES:
        p.arm(c, side, down, swing=seat["swing"], spread=seat["spread"], elbow=seat["elbow"], roll=20)
        add(c, side, swing=22 * lean, splay=seat["splay"] * down)


def choose_seat(p):
    thigh = p.body.length[4]
    p.seat = {"height": p.uniform(0.47, 0.56), "back": thigh * p.uniform(0.80, 0.92),
              "swing": p.uniform(22, 34), "spread": p.uniform(6, 14),
              "elbow": p.uniform(45, 65), "splay": p.uniform(0, 9)}


def sit_down(p):
    choose_seat(p)
    start, sink, stay = p.uniform(5, 11), p.uniform(20, 34), p.uniform(10, 26)
    n = int(start + sink + stay)
    c = p.neutral(n)
    seat_curves(p, c, ramp(n, start, start + sink),
                pulse(n, start - 3, start + 0.55 * sink, start + 0.55 * sink, start + sink + 5))
    p.parts.append(c)  # not append(): the place to stand up at stays where the feet are
    return {"tempo": tempo_of(sink, 30, 24)}


def stand_up(p):
    if p.seat is None:
        choose_seat(p)
    start, rise, stay = p.uniform(5, 12), p.uniform(20, 32), p.uniform(8, 18)
    n = int(start + rise + stay)
    c = p.neutral(n)
    seat_curves(p, c, 1 - ramp(n, start, start + rise),
                pulse(n, start - 4, start + 0.4 * rise, start + 0.4 * rise, start + rise + 3))
    p.append(c)
    return {"tempo": tempo_of(rise, 29, 23)}


def bow(p):
    start, down_time, hold, rise = p.uniform(4, 8), p.uniform(13, 24), p.uniform(5, 16), p.uniform(14, 24)
    deep, count = p.uniform(45, 88), p.count(1, 1, 1, 2)
    cycle = down_time + hold + rise + 2
    n = int(start + count * cycle + p.uniform(4, 9))
    c = p.neutral(n)
    down = sum(pulse(n, t, t + down_time, t + down_time + hold, t + down_time + hold + rise)
               for t in times(start, count, cycle))
    add(c, pelvis_pitch=0.58 * deep * down, bend=0.42 * deep * down, head_pitch=0.58 * deep * down,
        height=-0.0004 * deep * down)
    p.shift(c, ahead=-0.0016 * deep * down)
    style = p.pick("sides", "hanging", "thighs")
    lift = {"sides": 0.1, "hanging": 0.75, "thighs": 0.45}[style] * deep
    for side, _ in SIDES:
        add(c, side, swing=lift * down)
        if style == "thighs":
            p.arm(c, side, down, roll=35, elbow=35)
    p.append(c)
    return {"count": count, "size": size_of(deep, 53, 73), "tempo": tempo_of(down_time, 21, 15.5)}


def kneel(p):
    """Step back with one foot and go down on that knee or on both; sometimes stand up again."""
    side, both, rises = p.lead, p.pick(True, False), p.followed or p.pick(True, False, False)
    other = OTHER[side]
    start, down_time, hold = p.uniform(4, 8), p.uniform(22, 32), p.uniform(10, 22)
    low, up_time = start + down_time, p.uniform(22, 30)
    second = 16 if both else 0
    bottom = low + second
    n = int(bottom + hold + (up_time + second + 6 if rises else 0))
    c, body = p.neutral(n), p.body
    leave = bottom + hold if rises else 2 * n  # never, when it stays down
    stop = (leave, leave + second, leave + second + up_time)
    behind = body.length[7] * 1.02
    half = behind * 0.62  # where the pelvis ends between the feet on one knee
    sink = body.standing - (body.length[4] * 0.985 + 0.055 - body.offsets[1, 1])
    step_back = pulse(n, start, start + 0.45 * down_time, stop[2] - 0.42 * up_time, stop[2])
    down = pulse(n, start + 0.2 * down_time, low, stop[1], stop[1] + 0.75 * up_time)
    arc = 4 * step_back * (1 - step_back)
    p.shift_foot(c, side, ahead=-(behind + half) * step_back)
    add(c, side, lift=0.06 * arc, foot_pitch=62 * down + 22 * step_back * (1 - down))
    add(c, height=-sink * down, pelvis_pitch=14 * 4 * down * (1 - down),
        bend=10 * 4 * down * (1 - down) + 4 * down)
    p.shift(c, ahead=-half * pulse(n, start, low, stop[1], stop[2]))
    if both:
        drag = pulse(n, low, bottom, stop[0], stop[1])
        p.shift_foot(c, other, ahead=-(behind + half) * drag)
        add(c, other, lift=0.03 * 4 * drag * (1 - drag), foot_pitch=84 * drag)
    p.arm(c, other, down * 0.7, swing=35 if not both else 18, elbow=55)
    p.arm(c, side, down * 0.6, swing=15, elbow=35)
    for own, _ in SIDES:
        add(c, own, spread=12 * 4 * down * (1 - down))
    p.append(c)
    return {"tempo": tempo_of(down_time, 29, 24)}


def sway(p):
    count, period = p.count(*range(2, 4)), p.uniform(25, 40)
    start, width = p.uniform(2, 6), p.uniform(0.06, 0.1)
    n = int(start + count * period + p.uniform(3, 7))
    c, frames = p.neutral(n), np.arange(n)
    inside = pulse(n, start, start + 0.4 * period, start + (count - 0.4) * period, start + count * period)
    swing = p.pick(1, -1) * np.sin(2 * np.pi * (frames - start) / period) * inside
    p.shift(c, sideways=width * swing)
    add(c, height=-0.02 * inside, pelvis_roll=5 * swing, side=p.uniform(6, 12) * -swing, head_roll=4 * swing)
    for side, sign in SIDES:
        add(c, side, spread=7 * inside + sign * 7 * swing, swing=sign * 5 * swing, elbow=8 * inside)
    p.append(c)
    return {"tempo": tempo_of(period, 36, 29)}


ACTIONS = {
    "walk_forward": lambda p: steps.walk_ahead(p, (0.85, 1.22), (1.8, 3.9)),
    "walk_slow": lambda p: steps.walk_ahead(p, (0.40, 0.58), (2.2, 3.5), lift=(0.04, 0.06)),
    "walk_fast": lambda p: steps.walk_ahead(p, (1.58, 1.95), (1.9, 3.3), elbow=(25, 55), lean=(4, 9)),
    "walk_backward": steps.walk_backward,
    "walk_left": lambda p: steps.sidestep(p, 1), "walk_right": lambda p: steps.sidestep(p, -1),
    "walk_curve_left": lambda p: steps.walk_curve(p, 1),
    "walk_curve_right": lambda p: steps.walk_curve(p, -1),
    "walk_circle_left": lambda p: steps.walk_circle(p, 1),
    "walk_circle_right": lambda p: steps.walk_circle(p, -1),
    "run_forward": steps.run_forward,
    **{f"turn_{side}_{degrees}": partial(steps.turn_on_spot, sign=sign, degrees=degrees)
       for side, sign in (("left", 1), ("right", -1)) for degrees in (90, 180, 360)},
    "jump": steps.jump, "jump_forward": steps.jump_forward, "hop": steps.hop,
    "wave_left": lambda p: wave(p, "l"), "wave_right": lambda p: wave(p, "r"),
    "wave_both": lambda p: wave(p, "lr"),
    "raise_left": lambda p: raise_arms(p, "l"), "raise_right": lambda p: raise_arms(p, "r"),
    "raise_both": lambda p: raise_arms(p, "lr"), "clap": clap,
    "punch_left": lambda p: punch(p, "l"), "punch_right": lambda p: punch(p, "r"),
    "kick_left": lambda p: kick(p, "l"), "kick_right": lambda p: kick(p, "r"),
    "squat": squat, "sit_down": sit_down, "stand_up": stand_up, "bow": bow, "kneel": kneel,
    "jumping_jacks": steps.jumping_jacks, "sway": sway,
}
