"""Actions of the demo data set that leave the spot or the floor: walking, running, turning, jumping.

An action takes the performer and returns the facts that captions may mention: "tempo" (slow,
                                                                                        fast), "size" (big,
small), "count".
"""
import numpy as np
from scipy.ndimage import gaussian_filter1d

from utils.demo.body import SIDES
from utils.demo.performer import FPS, OTHER, SIGN, curve, planar, pulse, ramp, tempo_of

GRAVITY = 9.81 / FPS ** 2                  # metres per frame squared


# ---- locomotion: one planner for every path

def travel(p, position, yaw, start, steps, step, lead, swing=0.8, lift=0.07, strike=15, push=22, width=None,
           bounce=0.012, arms=45, elbow=18, lean=0.0, crouch=0.015):
    """Follow a path of the pelvis, position (n, 2) and yaw (n,), with ``steps`` steps of ``step`` frames from
    frame ``start`` on. A foot swings during ``swing`` of a step (above 1: a run,
                                                            with a flight phase) and lands where the
    pelvis will be in the middle of its stance. ``arms``: degrees of arm swing per metre between the feet."""
    n = len(yaw)
    c, frames = p.neutral(n), np.arange(n)
    c["x"], c["z"], c["yaw"] = position[:, 0], position[:, 1], yaw
    active = pulse(n, start - 0.3 * step, start + step, start + (steps - 1) * step,
                   start + (steps + 0.4) * step)
    side, place = lead, dict(p.feet)
    for k in range(steps):
        middle = start + (k + 0.5) * step
        edge = min(k, steps - 1 - k)
        share = swing if swing < 1 else (0.85, 0.5 * (0.9 + swing), swing)[min(edge, 2)]
        off, on = middle - 0.5 * share * step, middle + 0.5 * share * step
        stance = np.clip(middle + step, 0, n - 1)
        last = k >= steps - 2
        at = int(round(stance)) if not last else n - 1
        sway = np.interp(stance, frames, active)
        wide = None if last or width is None else p.stance + (width - p.stance) * sway
        path = np.array([np.interp(stance, frames, position[:, 0]),
                         np.interp(stance, frames, position[:, 1])])
        target = p.footprint(side, position[at] if last else path,
                             np.interp(stance, frames, yaw) if not last else yaw[-1], wide)
        u = np.clip((frames - off) / (on - off), 0, 1)
        move = np.clip((u - 0.05) / 0.9, 0, 1)               # up first, then ahead: the toes do not scrape
        move = move * move * (3 - 2 * move)
        stride = np.hypot(*(target - place[side])[:2])
        for name, i in (("foot_x", 0), ("foot_z", 1), ("foot_yaw", 2)):
            c[f"{side}_{name}"] = c[f"{side}_{name}"] + move * (target[i] - place[side][i])
        c[f"{side}_lift"] += lift * min(1, 0.6 + 0.4 * stride) * np.sin(np.pi * u ** 0.85) ** 1.5
        roll = min(1, stride / 0.9)
        keys = ((off - 0.45 * step, 0), (off, push), (off + 0.25 * (on - off), 1.1 * push),
                (on - 0.15 * (on - off), -strike),
                (on, -strike), (on + 0.22 * step, 0))
        c[f"{side}_foot_pitch"] += roll * curve(n, *keys)
        place[side], side = target, OTHER[side]
    body_style(p, c, active, frames, start, step, arms, elbow, lean, crouch, bounce)
    p.append(c)


def body_style(p, c, active, frames, start, step, arms, elbow, lean, crouch, bounce):
    """Pelvis, trunk and arms of somebody who steps: arms swing against the legs, the pelvis turns with
    them."""
    between = np.stack([c["l_foot_x"] - c["r_foot_x"], c["l_foot_z"] - c["r_foot_z"]], -1)
    ahead = (between * planar(c["yaw"], 0.0, 1.0)).sum(-1) * active
    ahead = gaussian_filter1d(ahead, 1.0)
    airborne = np.clip(np.stack([c["l_lift"], c["r_lift"]]) / 0.04, 0, 1)
    weight = gaussian_filter1d(airborne[1] - airborne[0], 2.0) * active          # +1: on the left leg
    p.shift(c, sideways=0.022 * weight)
    c["height"] += active * (bounce * np.cos(2 * np.pi * (frames - start - 0.5 * step) / step) - crouch)
    c["pelvis_roll"] += 2.5 * weight
    c["pelvis_yaw"] -= 9 * ahead
    c["twist"] += 16 * ahead
    c["pelvis_pitch"] += 0.3 * lean * active
    c["bend"] += 0.7 * lean * active
    for side, sign in SIDES:
        reach = -sign * arms * ahead
        c[f"{side}_swing"] += reach + 2 * active
        c[f"{side}_elbow"] += active * (elbow - c[f"{side}_elbow"]) + 0.35 * np.maximum(reach, 0)


def progress(n, start, stop, rise, fall):
    """(n,) 0 -> 1 at a steady speed with soft ends; also the mean of its speed profile (plateau = 1)."""
    speed = ramp(n, start, start + rise) - ramp(n, stop - fall, stop)
    total = np.cumsum(speed)
    return (total - total[0]) / (total[-1] - total[0]), total[-1] - total[0]


def walk(p, speed, distance=None, seconds=None, heading=0.0, step=None, arc=0.0, **style):
    """Walk at ``speed`` (m/s) in the direction ``heading`` relative to the face, while turning by ``arc``
    degrees."""
    reach = speed * seconds if distance is None else distance
    step_length = step or (0.25 + 0.33 * speed) * p.uniform(0.94, 1.06)
    frames_per_step = step_length / speed * FPS
    reach *= 0.75 if p.brief and not arc else 1
    rise, start = 1.3 * frames_per_step, p.uniform(2, 6)
    duration = reach / speed * FPS + rise
    steps = max(3, int(round(duration / frames_per_step)))
    duration = steps * frames_per_step
    n = int(np.ceil(start + duration + 0.25 * frames_per_step)) + 1
    done, plateau = progress(n, start + 0.1 * frames_per_step, start + duration, rise, rise)
    length = plateau * speed / FPS
    yaw = p.yaw + arc * done
    direction = planar(yaw + heading, 0.0, 1.0)
    pieces = 0.5 * (direction[1:] + direction[:-1]) * np.diff(done)[:, None]
    moved = np.vstack([np.zeros((1, 2)), np.cumsum(pieces, 0)])
    lead = style.pop("lead", None) or ("l" if arc > 0 else "r" if arc < 0 else p.pick("l", "r"))
    travel(p, p.position + length * moved, yaw, start, steps, frames_per_step, lead, **style)


def walk_style(p, **changes):
    style = {"arms": p.uniform(26, 50), "elbow": p.uniform(14, 30), "lean": p.uniform(0, 5),
             "lift": p.uniform(0.05, 0.08),
             "width": p.uniform(0.06, 0.085), "bounce": p.uniform(0.006, 0.014)}
    return {**style, **changes}


def walk_forward(p):
    walk(p, p.uniform(0.85, 1.22), seconds=p.uniform(1.8, 3.9), **walk_style(p))
    return {}


def walk_slow(p):
    walk(p, p.uniform(0.40, 0.58), seconds=p.uniform(2.2, 3.5), **walk_style(p, lift=p.uniform(0.04, 0.06)))
    return {}


def walk_fast(p):
    walk(p, p.uniform(1.58, 1.95), seconds=p.uniform(1.9, 3.3),
         **walk_style(p, elbow=p.uniform(25, 55), lean=p.uniform(4, 9)))
    return {}


def walk_backward(p):
    speed = p.uniform(0.55, 0.95)
    walk(p, speed, seconds=p.uniform(2.2, 3.6), heading=180,
         step=(0.2 + 0.28 * speed) * p.uniform(0.95, 1.05),
         **walk_style(p, strike=-14, push=-8, arms=p.uniform(20, 40)))
    return {"tempo": tempo_of(speed, 0.6, 0.85)}


def sidestep(p, sign):
    speed = p.uniform(0.38, 0.7)
    step = p.uniform(0.19, 0.27)
    walk(p, speed, distance=p.uniform(1.0, 1.8), heading=90 * sign, step=step, lead="l" if sign > 0 else "r",
         **walk_style(p, width=0.09 + 0.5 * step, strike=0, push=6, arms=0, lift=p.uniform(0.05, 0.08),
                      crouch=0.03))
    return {"tempo": tempo_of(speed, 0.45, 0.62)}


def walk_curve(p, sign):
    speed, arc = p.uniform(0.8, 1.2), p.uniform(70, 140)
    walk(p, speed, distance=np.radians(arc) * p.uniform(1.0, 1.9), arc=sign * arc, **walk_style(p))
    return {}


def walk_circle(p, sign):
    speed, radius, arc = p.uniform(0.9, 1.25), p.uniform(0.7, 1.05), p.uniform(345, 378)
    distance = min(np.radians(arc) * radius, 8.2 * speed)
    walk(p, speed, distance=distance, arc=sign * arc, **walk_style(p))
    return {"tempo": None, "size": "small" if radius < 0.78 else "big" if radius > 0.97 else None}


def run_forward(p):
    speed = p.uniform(2.3, 3.3)
    walk(p, speed, seconds=p.uniform(1.7, 3.0), step=speed / p.uniform(2.6, 3.0), swing=p.uniform(1.2, 1.4),
         lift=p.uniform(0.14, 0.22), strike=4, push=50, width=0.05, bounce=p.uniform(-0.045, -0.03),
         arms=p.uniform(28, 40), elbow=p.uniform(75, 100), lean=p.uniform(8, 16), crouch=0.05)
    return {"tempo": tempo_of(speed, 0, 3.0)}


def turn_on_spot(p, sign, degrees):
    """Turn by small steps; not faster than the smoothed heading of the features can follow."""
    low, high, soft = {90: (50, 85, 0.35), 180: (65, 95, 0.3), 360: (66, 80, 0.14)}[degrees]
    rate = p.uniform(low, high)
    total = degrees + p.uniform(-7, 7)
    steps = max(3, int(round(total / p.uniform(34, 46))))
    start, duration = p.uniform(5, 11), total / rate * FPS
    step = duration / steps
    n = int(np.ceil(start + duration + 0.3 * step)) + 1
    done, _ = progress(n, start, start + duration, soft * duration, soft * duration)
    yaw = p.yaw + sign * total * done
    moved = p.uniform(-0.06, 0.06) * ramp(n, start, start + duration)
    spot = p.position + planar(p.yaw, 0 * moved, moved)
    travel(p, spot, yaw, start, steps, step, "l" if sign > 0 else "r", lift=p.uniform(0.035, 0.06), strike=0,
           push=12,
           arms=25, elbow=20, bounce=0.004)
    look = np.interp(np.arange(n) + 5, np.arange(n), yaw) - yaw
    p.parts[-1]["head_yaw"] += 0.7 * np.clip(look, -45, 45)
    for side, _ in SIDES:
        p.parts[-1][f"{side}_spread"] += 6 * pulse(n, start, start + 6, start + duration - 6,
                                                   start + duration)
    return {"tempo": tempo_of((rate - low) / (high - low), 0.25, 0.75) if degrees < 360 else None}


# ---- jumps

def leap(p, flights, depth, feet=None, reach=0.0, swing_arms=95, first=9, last=10, between=4):
    """Jumps in a row: heights ``flights`` (m), crouching by ``depth`` before; ``reach`` metres ahead each.
    Returns the curves and, per flight, (take-off, landing)."""
    at, keys, windows = p.uniform(2, 6), [], []
    keys.append((at, 0))
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
            at += p.uniform(0, between)
    keys += [(at, -depth * 0.9), (at + last, 0)]
    n = int(np.ceil(at + last)) + int(p.uniform(2, 5))
    c, frames = p.neutral(n), np.arange(n)
    c["height"] += curve(n, *dict((key[0], key) for key in keys).values())
    trunk = np.clip(-c["height"], 0, 1) / max(depth, 1e-6)
    c["bend"] += 20 * trunk * min(1, depth / 0.2)
    c["pelvis_pitch"] += 16 * trunk * min(1, depth / 0.2)
    c["head_pitch"] -= 8 * trunk
    moved = np.zeros(n)
    for (off, on), high in zip(windows, flights):
        u = np.clip((frames - off) / (on - off), 0, 1)
        toes = curve(n, (off - 3, 0), (off, 32), (off + 0.5 * (on - off), 30), (on - 0.8, 12), (on + 2, 0))
        for side, _ in SIDES:
            if feet in (None, side):
                c[f"{side}_lift"] += 4 * u * (1 - u) * high * 1.05
                c[f"{side}_foot_pitch"] += toes
                p.shift_foot(c, side, ahead=reach * u)
        moved += reach * ramp(n, off - 4, on + 4)
    p.shift(c, ahead=moved - 0.12 * np.clip(-c["height"], 0, 1))
    arm_swing(c, p, windows, swing_arms, first)
    return c, windows


def arm_swing(c, p, windows, swing_arms, first):
    """Arms go back while crouching, up with the take-off, and down with the landing."""
    n = len(c["x"])
    for off, on in windows:
        back = curve(n, (off - first - 3, 0), (off - 6, -35), (off + 0.45 * (on - off), swing_arms),
                     (on + 1, 25), (on + 12, 0))
        later = [w for w in windows if w[0] > off]
        if later:
            back = np.where(np.arange(n) > later[0][0] - first - 3, back * (1 - ramp(n, on, later[0][0] - 4)),
                            back)
        for side, _ in SIDES:
            c[f"{side}_swing"] += back * min(1, abs(swing_arms) / 40)
            c[f"{side}_elbow"] += 0.3 * np.abs(back)


def jump(p):
    count = p.count(1, 1, 1, 2, 2, 3, 4)
    high = p.uniform(0.14, 0.36)
    c, _ = leap(p, [high * p.uniform(0.92, 1.08) for _ in range(count)], depth=0.12 + 0.4 * high,
                swing_arms=p.pick(p.uniform(35, 60), p.uniform(80, 140)))
    p.append(c)
    return {"count": count, "size": "big" if high > 0.29 else "small" if high < 0.19 else None}


def jump_forward(p):
    count, far = p.count(1, 1, 1, 2, 3), p.uniform(0.55, 1.25)
    c, _ = leap(p, [0.13 + 0.14 * far * p.uniform(0.9, 1.1)] * count, depth=0.16 + 0.08 * far, reach=far,
                swing_arms=p.uniform(60, 110))
    p.append(c)
    return {"count": count, "size": "big" if far > 1.05 else "small" if far < 0.7 else None}


def hop(p):
    stand, count = p.lead, p.count(*range(3, 6))
    free, sign = OTHER[stand], SIGN[stand]
    p.append(p.neutral(2))
    c, windows = leap(p, [p.uniform(0.05, 0.12) for _ in range(count)], depth=0.07, feet=stand,
                      reach=p.pick(0.0, p.uniform(0.1, 0.25)),
                      swing_arms=p.uniform(10, 28), first=14, last=12)
    n = len(c["x"])
    on_one = pulse(n, 1, 9, windows[-1][1] + 3, n - 2)
    c["height"] += -0.02 * on_one
    p.shift(c, sideways=sign * 0.085 * on_one)
    moved = (c[f"{stand}_foot_x"] - c[f"{stand}_foot_x"][0], c[f"{stand}_foot_z"] - c[f"{stand}_foot_z"][0])
    c[f"{free}_foot_x"], c[f"{free}_foot_z"] = c[f"{free}_foot_x"] + moved[0], c[f"{free}_foot_z"] + moved[1]
    held = on_one ** 0.7
    c[f"{free}_lift"] += (0.26 + 0.1 * p.uniform(0, 1)) * held + np.maximum(c["height"], 0) * 0.8 * held
    p.shift_foot(c, free, ahead=-0.22 * held, sideways=sign * 0.02 * held)
    c[f"{free}_foot_pitch"] += 55 * held
    c["side"] -= sign * 3 * on_one
    for side, _ in SIDES:
        p.arm(c, side, on_one * 0.8, spread=p.uniform(28, 50), elbow=p.uniform(30, 60))
    p.append(c)
    return {"count": count, "foot": stand}


def jumping_jacks(p):
    count, period = p.count(*range(2, 5)), p.uniform(19, 27)
    start, wide, high = p.uniform(3, 7), p.uniform(0.17, 0.27), p.uniform(150, 172)
    n = int(start + count * period + p.uniform(5, 9))
    c, frames = p.neutral(n), np.arange(n)
    c["height"] += -0.04 * pulse(n, start - 4, start + 3, start + count * period - 2, n - 2)
    opened = np.zeros(n)
    for k in range(2 * count):
        middle, sign = start + (k + 0.5) * period / 2, 1 if k % 2 == 0 else -1
        off, on = middle - 0.3 * period / 2, middle + 0.3 * period / 2
        u = np.clip((frames - off) / (on - off), 0, 1)
        opened += sign * ramp(n, off - 1.5, on + 1.5)
        for side, own in SIDES:
            p.shift_foot(c, side, sideways=own * sign * wide * u * u * (3 - 2 * u))
            c[f"{side}_lift"] += 0.06 * np.sin(np.pi * u) ** 2
            c[f"{side}_foot_pitch"] += curve(n, (off - 2.5, 0), (off, 22), (on, 12), (on + 2.5, 0))
        c["height"] += 0.10 * 4 * u * (1 - u) - 0.05 * curve(n, (on - 1, 0), (on + 1.5, 1), (on + 4, 0))
    c["height"] -= 0.05 * opened
    for side, _ in SIDES:
        p.arm(c, side, opened, spread=high, roll=-20, elbow=p.uniform(10, 25), swing=5)
    p.append(c)
    return {"count": count, "tempo": tempo_of(period, 24.5, 20.5)}
