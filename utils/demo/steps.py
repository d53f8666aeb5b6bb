"""Actions of the demo data set that leave the spot or the floor: walking, running, turning, jumping.

An action takes the performer, appends curves and returns the facts that captions may mention (actions.py).
"""
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter1d

from utils.demo.body import SIDES
from utils.demo.performer import FPS, OTHER, SIGN, add, curve, planar, pulse, ramp, size_of, tempo_of

GRAVITY = 9.81 / FPS ** 2  # metres per frame squared


# ---- locomotion: one planner for every path

@dataclass(frozen=True)
class Gait:
    """How somebody steps. Lengths in metres, angles in degrees."""

    swing: float = 0.8  # time of a foot in the air, in steps; above 1: a run, with a flight phase
    lift: float = 0.07  # of the foot
    strike: float = 15  # toes up when the foot lands
    push: float = 22  # heel up when it takes off
    width: float = None  # from the path to either foot; None: as when standing
    bounce: float = 0.012  # of the pelvis
    arms: float = 45  # swing per metre between the feet
    elbow: float = 18
    lean: float = 0.0
    crouch: float = 0.015


def travel(p, position, yaw, start, steps, step, lead, gait):
    """Follow a path of the pelvis, position (n, 2) and yaw (n,), in ``steps`` steps of ``step`` frames from
    frame ``start`` on; a foot lands where the pelvis will be in the middle of its stance."""
    n = len(yaw)
    c, frames = p.neutral(n), np.arange(n)
    c["x"], c["z"], c["yaw"] = position[:, 0], position[:, 1], yaw
    active = pulse(n, start - 0.3 * step, start + step, start + (steps - 1) * step,
                   start + (steps + 0.4) * step)
    side, place = lead, dict(p.feet)
    for k in range(steps):
        middle, swing = start + (k + 0.5) * step, gait.swing
        if swing >= 1:  # the first and last steps of a run have less flight
            swing = (0.85, 0.5 * (0.9 + swing), swing)[min(k, steps - 1 - k, 2)]
        off, on = middle - 0.5 * swing * step, middle + 0.5 * swing * step
        if k >= steps - 2:
            target = p.footprint(side, position[-1], yaw[-1])
        else:
            x, z, heading, weight = (np.interp(np.clip(middle + step, 0, n - 1), frames, values)
                                     for values in (position[:, 0], position[:, 1], yaw, active))
            width = None if gait.width is None else p.stance + (gait.width - p.stance) * weight
            target = p.footprint(side, np.array([x, z]), heading, width)
        u = np.clip((frames - off) / (on - off), 0, 1)
        move = np.clip((u - 0.05) / 0.9, 0, 1)  # up first, then ahead: the toes do not scrape
        move = move * move * (3 - 2 * move)
        stride = np.hypot(*(target - place[side])[:2])
        x, z, heading = move * (target - place[side])[:, None]
        pitch = curve(n, (off - 0.45 * step, 0), (off, gait.push), (off + 0.25 * (on - off), 1.1 * gait.push),
                      (on - 0.15 * (on - off), -gait.strike), (on, -gait.strike), (on + 0.22 * step, 0))
        add(c, side, foot_x=x, foot_z=z, foot_yaw=heading, foot_pitch=min(1, stride / 0.9) * pitch,
            lift=gait.lift * min(1, 0.6 + 0.4 * stride) * np.sin(np.pi * u ** 0.85) ** 1.5)
        place[side], side = target, OTHER[side]
    carry_body(p, c, active, start, step, gait)
    p.append(c)


def carry_body(p, c, active, start, step, gait):
    """Pelvis, trunk and arms while stepping: the arms swing against the legs, the pelvis turns with them."""
    between = np.stack([c["l_foot_x"] - c["r_foot_x"], c["l_foot_z"] - c["r_foot_z"]], -1)
    ahead = gaussian_filter1d((between * planar(c["yaw"], 0.0, 1.0)).sum(-1) * active, 1.0)
    airborne = np.clip(np.stack([c["l_lift"], c["r_lift"]]) / 0.04, 0, 1)
    weight = gaussian_filter1d(airborne[1] - airborne[0], 2.0) * active  # 1: all on the left leg
    p.shift(c, sideways=0.022 * weight)
    phase = 2 * np.pi * (np.arange(len(active)) - start - 0.5 * step) / step
    add(c, height=active * (gait.bounce * np.cos(phase) - gait.crouch), pelvis_roll=2.5 * weight,
        pelvis_yaw=-9 * ahead, twist=16 * ahead, pelvis_pitch=0.3 * gait.lean * active,
        bend=0.7 * gait.lean * active)
    for side, sign in SIDES:
        reach = -sign * gait.arms * ahead
        add(c, side, swing=reach + 2 * active,
            elbow=active * (gait.elbow - c[f"{side}_elbow"]) + 0.35 * np.maximum(reach, 0))


def progress(n, start, stop, soft):
    """(n,) 0 -> 1 at a steady speed but for ``soft`` frames at either end, and the sum of the speed profile,
    which is 1 where it is steady: in how many frames the steady speed alone would go as far."""
    speed = pulse(n, start, start + soft, stop - soft, stop)
    total = np.cumsum(speed)
    return (total - total[0]) / (total[-1] - total[0]), total[-1] - total[0]


def walk(p, speed, *, gait, distance=None, seconds=None, heading=0.0, step=None, arc=0.0, lead=None):
    """Walk ``distance`` metres, or for ``seconds``, at ``speed`` (m/s) in steps of ``step`` metres, in the
    direction ``heading`` relative to the face, while turning to the left by ``arc`` degrees."""
    reach = speed * seconds if distance is None else distance
    step_length = step or (0.25 + 0.33 * speed) * p.uniform(0.94, 1.06)
    step_frames = step_length / speed * FPS
    reach *= 0.75 if p.brief and not arc else 1
    rise, start = 1.3 * step_frames, p.uniform(2, 6)
    duration = reach / speed * FPS + rise
    steps = max(3, int(round(duration / step_frames)))
    duration = steps * step_frames
    n = int(np.ceil(start + duration + 0.25 * step_frames)) + 1
    done, frames = progress(n, start + 0.1 * step_frames, start + duration, rise)
    length = frames * speed / FPS
    yaw = p.yaw + arc * done
    direction = planar(yaw + heading, 0.0, 1.0)
    pieces = 0.5 * (direction[1:] + direction[:-1]) * np.diff(done)[:, None]
    moved = np.vstack([np.zeros((1, 2)), np.cumsum(pieces, 0)])
    lead = lead or ("l" if arc > 0 else "r" if arc < 0 else p.pick("l", "r"))
    travel(p, p.position + length * moved, yaw, start, steps, step_frames, lead, gait)


def walking_gait(p, **changes):
    gait = Gait(arms=p.uniform(26, 50), elbow=p.uniform(14, 30), lean=p.uniform(0, 5),
                lift=p.uniform(0.05, 0.08), width=p.uniform(0.06, 0.085), bounce=p.uniform(0.006, 0.014))
    return replace(gait, **changes)


def walk_ahead(p, speed, seconds, **gait):
    """Walk with speed, duration and given parts of the gait drawn from ranges (low, high)."""
    walk(p, p.uniform(*speed), seconds=p.uniform(*seconds),
         gait=walking_gait(p, **{name: p.uniform(*bounds) for name, bounds in gait.items()}))
    return {}


def walk_backward(p):
    speed = p.uniform(0.55, 0.95)
    walk(p, speed, seconds=p.uniform(2.2, 3.6), heading=180,
         step=(0.2 + 0.28 * speed) * p.uniform(0.95, 1.05),
         gait=walking_gait(p, strike=-14, push=-8, arms=p.uniform(20, 40)))
    return {"tempo": tempo_of(speed, 0.6, 0.85)}


def sidestep(p, sign):
    speed, step = p.uniform(0.38, 0.7), p.uniform(0.19, 0.27)
    walk(p, speed, distance=p.uniform(1.0, 1.8), heading=90 * sign, step=step, lead="l" if sign > 0 else "r",
         gait=walking_gait(p, width=0.09 + 0.5 * step, strike=0, push=6, arms=0, lift=p.uniform(0.05, 0.08),
                           crouch=0.03))
    return {"tempo": tempo_of(speed, 0.45, 0.62)}


def walk_curve(p, sign):
    speed, arc = p.uniform(0.8, 1.2), p.uniform(70, 140)
    walk(p, speed, distance=np.radians(arc) * p.uniform(1.0, 1.9), arc=sign * arc, gait=walking_gait(p))
    return {}


def walk_circle(p, sign):
    speed, radius, arc = p.uniform(0.9, 1.25), p.uniform(0.7, 1.05), p.uniform(345, 378)
    distance = min(np.radians(arc) * radius, 8.2 * speed)
    walk(p, speed, distance=distance, arc=sign * arc, gait=walking_gait(p))
    return {"size": size_of(radius, 0.78, 0.97)}


def run_forward(p):
    speed = p.uniform(2.3, 3.3)
    walk(p, speed, seconds=p.uniform(1.7, 3.0), step=speed / p.uniform(2.6, 3.0),
         gait=Gait(swing=p.uniform(1.2, 1.4), lift=p.uniform(0.14, 0.22), strike=4, push=50, width=0.05,
                   bounce=p.uniform(-0.045, -0.03), arms=p.uniform(28, 40), elbow=p.uniform(75, 100),
                   lean=p.uniform(8, 16), crouch=0.05))
    return {"tempo": tempo_of(speed, 0, 3.0)}


def turn_on_spot(p, sign, degrees):
    """Turn by small steps, no faster than the smoothed heading of the features can follow."""
    low, high, soft = {90: (50, 85, 0.35), 180: (65, 95, 0.3), 360: (66, 80, 0.14)}[degrees]
    rate, total = p.uniform(low, high), degrees + p.uniform(-7, 7)
    steps = max(3, int(round(total / p.uniform(34, 46))))
    start, duration = p.uniform(5, 11), total / rate * FPS
    step = duration / steps
    n = int(np.ceil(start + duration + 0.3 * step)) + 1
    done, _ = progress(n, start, start + duration, soft * duration)
    yaw = p.yaw + sign * total * done
    moved = p.uniform(-0.06, 0.06) * ramp(n, start, start + duration)
    spot = p.position + planar(p.yaw, 0 * moved, moved)
    travel(p, spot, yaw, start, steps, step, "l" if sign > 0 else "r",
           Gait(lift=p.uniform(0.035, 0.06), strike=0, push=12, arms=25, elbow=20, bounce=0.004))
    look = np.interp(np.arange(n) + 5, np.arange(n), yaw) - yaw
    apart = 6 * pulse(n, start, start + 6, start + duration - 6, start + duration)
    add(p.parts[-1], head_yaw=0.7 * np.clip(look, -45, 45), l_spread=apart, r_spread=apart)
    return {"tempo": tempo_of((rate - low) / (high - low), 0.25, 0.75) if degrees < 360 else None}


# ---- jumps

def flight_plan(p, flights, depth, first, last):
    """The pelvis in the jumps of ``leap``: keys of its height, [(take-off, landing)], and the last frame."""
    at, windows = p.uniform(2, 6), []
    keys = [(at, 0)]
    at += first
    for k, high in enumerate(flights):
        speed = np.sqrt(2 * GRAVITY * high)
        keys.append((at, -depth))
        at += max(2 * (depth + 0.04) / speed, 2.5)
        keys.append((at, 0.04, speed))
        off = at
        at += 2 * speed / GRAVITY
        keys.append((at, 0.02, -speed))
        windows.append((off, at))
        at += max(2 * (depth + 0.02) / speed, 2.5)
        if k + 1 < len(flights):
            keys.append((at, -depth))
            at += p.uniform(0, 4)
    keys += [(at, -depth * 0.9), (at + last, 0)]
    return keys, windows, at + last


def leap(p, flights, depth, reach=0.0, foot=None, swing_arms=95, first=9, last=10):
    """Jumps in a row on both feet or on one ``foot``: to the heights ``flights``, ``reach`` ahead each,
    crouching by ``depth`` before (metres). Crouching takes ``first`` frames, rising at the end ``last``.
    Returns the curves and [(take-off, landing)]."""
    keys, windows, end = flight_plan(p, flights, depth, first, last)
    n = int(np.ceil(end)) + int(p.uniform(2, 5))
    c, frames = p.neutral(n), np.arange(n)
    add(c, height=curve(n, *keys))
    trunk = np.clip(-c["height"], 0, 1) / max(depth, 1e-6)
    add(c, bend=20 * trunk * min(1, depth / 0.2), pelvis_pitch=16 * trunk * min(1, depth / 0.2),
        head_pitch=-8 * trunk)
    moved = np.zeros(n)
    for (off, on), high in zip(windows, flights):
        u = np.clip((frames - off) / (on - off), 0, 1)
        toes = curve(n, (off - 3, 0), (off, 32), (off + 0.5 * (on - off), 30), (on - 0.8, 12), (on + 2, 0))
        for side in foot or "lr":
            add(c, side, lift=4 * u * (1 - u) * high * 1.05, foot_pitch=toes)
            p.shift_foot(c, side, ahead=reach * u)
        moved += reach * ramp(n, off - 4, on + 4)
    p.shift(c, ahead=moved - 0.12 * np.clip(-c["height"], 0, 1))
    swing_arms_with(c, windows, swing_arms, first)
    return c, windows


def swing_arms_with(c, windows, degrees, first):
    """Arms go back while crouching, up with the take-off, and down with the landing."""
    n = len(c["x"])
    for (off, on), following in zip(windows, [*windows[1:], None]):
        swing = curve(n, (off - first - 3, 0), (off - 6, -35), (off + 0.45 * (on - off), degrees),
                      (on + 1, 25), (on + 12, 0))
        if following:  # give way to its swing
            swing = np.where(np.arange(n) > following[0] - first - 3,
                             swing * (1 - ramp(n, on, following[0] - 4)), swing)
        for side, _ in SIDES:
            add(c, side, swing=swing * min(1, abs(degrees) / 40), elbow=0.3 * np.abs(swing))


def jump(p):
    count, high = p.count(1, 1, 1, 2, 2, 3, 4), p.uniform(0.14, 0.36)
    c, _ = leap(p, [high * p.uniform(0.92, 1.08) for _ in range(count)], depth=0.12 + 0.4 * high,
                swing_arms=p.pick(p.uniform(35, 60), p.uniform(80, 140)))
    p.append(c)
    return {"count": count, "size": size_of(high, 0.19, 0.29)}


def jump_forward(p):
    count, far = p.count(1, 1, 1, 2, 3), p.uniform(0.55, 1.25)
    c, _ = leap(p, [0.13 + 0.14 * far * p.uniform(0.9, 1.1)] * count, depth=0.16 + 0.08 * far, reach=far,
                swing_arms=p.uniform(60, 110))
    p.append(c)
    return {"count": count, "size": size_of(far, 0.7, 1.05)}


def hop(p):
    stand, count = p.lead, p.count(*range(3, 6))
    free, sign = OTHER[stand], SIGN[stand]
    p.append(p.neutral(2))
    c, windows = leap(p, [p.uniform(0.05, 0.12) for _ in range(count)], depth=0.07,
                      reach=p.pick(0.0, p.uniform(0.1, 0.25)), foot=stand, swing_arms=p.uniform(10, 28),
                      first=14, last=12)
    n = len(c["x"])
    on_one = pulse(n, 1, 9, windows[-1][1] + 3, n - 2)
    add(c, height=-0.02 * on_one, side=-sign * 3 * on_one)
    p.shift(c, sideways=sign * 0.085 * on_one)
    x, z, held = c[f"{stand}_foot_x"], c[f"{stand}_foot_z"], on_one ** 0.7
    raised = (0.26 + 0.1 * p.uniform(0, 1)) * held + np.maximum(c["height"], 0) * 0.8 * held
    add(c, free, foot_x=x - x[0], foot_z=z - z[0], lift=raised, foot_pitch=55 * held)
    p.shift_foot(c, free, ahead=-0.22 * held, sideways=sign * 0.02 * held)
    for side, _ in SIDES:
        p.arm(c, side, on_one * 0.8, spread=p.uniform(28, 50), elbow=p.uniform(30, 60))
    p.append(c)
    return {"count": count}


def jumping_jacks(p):
    count, period = p.count(*range(2, 5)), p.uniform(19, 27)
    start, wide, high = p.uniform(3, 7), p.uniform(0.17, 0.27), p.uniform(150, 172)
    n = int(start + count * period + p.uniform(5, 9))
    c, frames = p.neutral(n), np.arange(n)
    add(c, height=-0.04 * pulse(n, start - 4, start + 3, start + count * period - 2, n - 2))
    opened = np.zeros(n)
    for k in range(2 * count):
        middle, sign = start + (k + 0.5) * period / 2, 1 if k % 2 == 0 else -1
        off, on = middle - 0.3 * period / 2, middle + 0.3 * period / 2
        u = np.clip((frames - off) / (on - off), 0, 1)
        opened += sign * ramp(n, off - 1.5, on + 1.5)
        for side, own in SIDES:
            p.shift_foot(c, side, sideways=own * sign * wide * u * u * (3 - 2 * u))
            add(c, side, lift=0.06 * np.sin(np.pi * u) ** 2,
                foot_pitch=curve(n, (off - 2.5, 0), (off, 22), (on, 12), (on + 2.5, 0)))
        add(c, height=0.10 * 4 * u * (1 - u) - 0.05 * curve(n, (on - 1, 0), (on + 1.5, 1), (on + 4, 0)))
    add(c, height=-0.05 * opened)
    for side, _ in SIDES:
        p.arm(c, side, opened, spread=high, roll=-20, elbow=p.uniform(10, 25), swing=5)
    p.append(c)
    return {"count": count, "tempo": tempo_of(period, 24.5, 20.5)}
