"""Semantic probes: does a motion do what its prompt says? Rules on joints, one for each action of the demo
data set; no network is involved.

``check(actions, joints)`` says whether a motion performs one action, or several in a row: then the first
one's rule must hold on a beginning of the clip and the others' on the rest. Thresholds lie between the
actions, not close to any of them, by centimetres, tens of degrees, tenths of a second, so that slightly noisy
motions pass. Shapes: T frames, 22 joints of HumanML3D; metres, Y up, a body that faces +Z has its left at +X.
"""
import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from utils.motion.inbetweening import sections_of

LEFT, RIGHT = "left", "right"
SIDES = (LEFT, RIGHT)
OTHER = {LEFT: RIGHT, RIGHT: LEFT}
HIP, KNEE, ANKLE, TOE = {LEFT: 1, RIGHT: 2}, {LEFT: 4, RIGHT: 5}, {LEFT: 7, RIGHT: 8}, {LEFT: 10, RIGHT: 11}
SHOULDER, ELBOW, WRIST = {LEFT: 16, RIGHT: 17}, {LEFT: 18, RIGHT: 19}, {LEFT: 20, RIGHT: 21}
PELVIS, NECK, HEAD = 0, 12, 15
LEG = 0.82  # metres from hip to ankle: every body is scaled to it
SHORTEST_PART, SPLIT_STEP = 16, 4  # frames: of an action in a sequence, and between the splits that are tried


def prepare(joints, fps):
    """Joints (T, 22, 3) at 20 fps, lightly smoothed, of a body of standard size, on the floor at height 0."""
    joints = np.asarray(joints, np.float64)
    if joints.ndim != 3 or joints.shape[1:] != (22, 3) or len(joints) < 4:
        raise ValueError(f"probes need joints (T, 22, 3) of at least 4 frames, got {joints.shape}")
    if fps != 20:
        times = np.arange(0, len(joints) - 1 + 1e-9, fps / 20)
        low = np.minimum(times.astype(int), len(joints) - 2)
        joints = joints[low] + (times - low)[:, None, None] * (joints[low + 1] - joints[low])
    bones = [(HIP[s], KNEE[s]) for s in SIDES] + [(KNEE[s], ANKLE[s]) for s in SIDES]
    length = sum(np.linalg.norm(joints[:, a] - joints[:, b], axis=-1).mean() for a, b in bones) / 2
    joints = gaussian_filter1d(joints * (LEG / max(length, 1e-6)), 0.7, axis=0)
    lowest = joints[:, [7, 8, 10, 11], 1].min(1)
    return joints - [0, np.percentile(lowest, 10), 0]


def measure(joints):
    """What the rules test, from prepared joints (T, 22, 3): {name: number} in seconds, metres and degrees."""
    m, heading = {"seconds": len(joints) / 20}, facing(joints)
    measure_path(m, joints, heading)
    measure_trunk(m, joints, heading)
    measure_feet(m, joints, heading)
    for side in SIDES:
        measure_arm(m, joints, heading, side)
    measure_hands(m, joints)
    return m


def facing(joints):
    """Heading (T,) of hips and shoulders in radians, unwrapped; it grows in left turns."""
    across = joints[:, 1] - joints[:, 2] + joints[:, 16] - joints[:, 17]
    return gaussian_filter1d(np.unwrap(np.arctan2(-across[:, 2], across[:, 0])), 3)


def local(vectors, heading):
    """Components of vectors (T, 3) ahead of the body (T,) and to its left (T,)."""
    sine, cosine = np.sin(heading), np.cos(heading)
    return vectors[:, 0] * sine + vectors[:, 2] * cosine, vectors[:, 0] * cosine - vectors[:, 2] * sine


def measure_path(m, joints, heading):
    step = np.diff(gaussian_filter1d(joints[:, PELVIS], 4, axis=0), axis=0)
    length = np.hypot(step[:, 0], step[:, 2])
    m["path"] = length.sum()
    speed = length * 20
    walking = speed > 0.5 * np.percentile(speed, 90)
    m["speed"] = np.median(speed[walking]) if walking.any() else 0.0
    m["turn"] = np.degrees(heading[-1] - heading[0])
    m["turn_range"] = np.degrees(np.ptp(heading))
    ahead, left = local(step, heading[:-1])
    m["along"], m["aside"] = ahead.sum(), left.sum()  # path in the facing direction, and to its left
    moved = joints[:, PELVIS] - joints[0, PELVIS]
    m["ahead"] = local(moved[-1:], heading[:1])[0][0]  # from start to end, in the first facing direction
    m["reach"] = np.hypot(*moved[:, [0, 2]].T).max()


def measure_trunk(m, joints, heading):
    height = joints[:, PELVIS, 1]
    m["pelvis_min"], m["pelvis_start"], m["pelvis_end"] = height.min(), height[:4].mean(), height[-4:].mean()
    m["pelvis_low"] = np.mean(height < 0.72) * m["seconds"]
    back = joints[:, NECK] - joints[:, PELVIS]
    lean = np.degrees(np.arctan2(local(back, heading)[0], back[:, 1]))
    m["lean"], m["lean_end"] = lean.max(), lean[-4:].mean()
    feet = joints[:, [7, 8]].mean(1)
    m["sways"] = swings(gaussian_filter1d(local(joints[:, PELVIS] - feet, heading)[1], 2), 0.07)
    m["knee_min"] = joints[:, [4, 5], 1].min()
    m["knee_low"] = np.mean(joints[:, [4, 5], 1].min(1) < 0.22) * m["seconds"]


def measure_feet(m, joints, heading):
    lowest = {side: (joints[:, [ANKLE[side], TOE[side]], 1] - [0.07, 0.0]).min(1) for side in SIDES}
    both = np.minimum(lowest[LEFT], lowest[RIGHT])  # height of the lower foot's lowest point
    apart = joints[:, ANKLE[LEFT], 1] - joints[:, ANKLE[RIGHT], 1]
    m["jumps"] = sum(both[a:b].max() > 0.07 and np.abs(apart[a:b]).mean() < 0.12
                     for a, b in sections_of(both > 0.03))
    m["jump_height"] = both.max()
    m["one_foot"] = np.mean(np.abs(apart) > 0.13) * m["seconds"]
    m["hops"] = sum(both[a:b].max() > 0.04 and np.abs(apart[a:b]).min() > 0.1
                    for a, b in sections_of(both > 0.02))
    left = {}
    for side in SIDES:
        ahead, left[side] = local(joints[:, ANKLE[side]] - joints[:, PELVIS], heading)
        kicking = (ahead > 0.25) & (lowest[side] > 0.2) & (lowest[side] - lowest[OTHER[side]] > 0.2)
        m[f"kicks_{side}"] = len(sections_of(kicking))
    m["straddles"] = swings(left[LEFT] - left[RIGHT], 0.2)
    feet = joints[:, [ANKLE[LEFT], ANKLE[RIGHT]]][..., [0, 2]]
    m["feet_travel"] = np.linalg.norm(feet - feet[0], axis=-1).max()


def measure_arm(m, joints, heading, side):
    shoulder, elbow, wrist = (joints[:, part[side]] for part in (SHOULDER, ELBOW, WRIST))
    above = wrist[:, 1] - joints[:, HEAD, 1]
    m[f"overhead_{side}"] = np.mean(above > 0.05) * m["seconds"]
    m[f"raised_{side}"] = np.mean(wrist[:, 1] > shoulder[:, 1] - 0.1) * m["seconds"]
    m[f"above_{side}"] = above.max()
    forearm = wrist - elbow
    forearm = forearm / np.maximum(np.linalg.norm(forearm, axis=-1), 1e-6)[:, None]
    up = (forearm[:, 1] > 0.25) & (wrist[:, 1] > shoulder[:, 1] - 0.15)
    m[f"waves_{side}"] = max((oscillations(forearm[a:b], heading[a:b])
                              for a, b in sections_of(up) if b - a >= 8), default=0)
    ahead, _ = local(wrist - shoulder, heading)
    level = np.abs(wrist[:, 1] - shoulder[:, 1]) < 0.25
    reach = np.where(level, ahead, np.minimum(ahead, 0.25))  # thrusts: out and back within 0.6 s each
    m[f"thrusts_{side}"] = len(find_peaks(reach, height=0.36, prominence=0.1, wlen=25)[0])
    m[f"thrust_{side}"] = np.max(np.where(level, ahead, 0))
    bent = (np.linalg.norm(wrist - shoulder, axis=-1) < 0.36) & (wrist[:, 1] > shoulder[:, 1] - 0.3)
    m[f"bent_{side}"] = np.mean(bent) * m["seconds"]


def oscillations(forearm, heading):
    """Half-swings of a raised forearm, unit vectors (T, 3), along the direction in which it moves most."""
    ahead, left = local(forearm, heading)
    moves = np.stack([ahead, left, forearm[:, 1]], 1)
    moves = gaussian_filter1d(moves, 1, axis=0) - gaussian_filter1d(moves, 7, axis=0)
    direction = np.linalg.svd(moves - moves.mean(0), full_matrices=False)[2][0]
    return swings(moves @ direction, 0.2)


def measure_hands(m, joints):
    gap = np.linalg.norm(joints[:, 20] - joints[:, 21], axis=-1)
    chest = joints[:, [16, 17], 1].mean(1)
    level = np.abs(joints[:, [20, 21], 1].mean(1) - chest + 0.15) < 0.4
    claps, _ = find_peaks(-np.where(level, gap, 1.0), height=-0.3, prominence=0.08)
    m["claps"] = len(claps)
    high = joints[:, [20, 21], 1].min(1) - joints[:, HEAD, 1]
    m["jacks"] = swings(gaussian_filter1d(high, 1), 0.5)


def swings(signal, size):
    """How often a signal (T,) goes up or down by at least ``size`` between turning points."""
    count = direction = 0
    extreme = low = high = signal[0]
    for value in signal:
        low, high = min(low, value), max(high, value)
        if direction == 0:
            if high - low >= size:
                direction, extreme, count = (1 if value == high else -1), value, 1
        elif (value - extreme) * direction > 0:
            extreme = value
        elif (extreme - value) * direction >= size:
            direction, extreme, count = -direction, value, count + 1
    return count


def stays(m, far=0.55):
    return m["reach"] < far


def grounded(m):
    return m["jumps"] == 0 and m["hops"] < 2


def upright(m):
    return m["pelvis_min"] > 0.72


def hands_down(m):
    """No hand is overhead for 0.25 s or waves (4 half-swings); arms may swing, and strike."""
    return all(m[f"overhead_{side}"] < 0.25 and m[f"waves_{side}"] < 4 for side in SIDES)


def legs_at_rest(m):
    """No steps, jump, kick, squat or large turn."""
    return (stays(m) and grounded(m) and upright(m) and m["feet_travel"] < 0.45 and m["straddles"] < 2
            and abs(m["turn"]) < 50 and no_kick(m))


def no_kick(m):
    return m["kicks_left"] + m["kicks_right"] == 0


def walks(m, slowest, fastest, shortest):
    """Steps ahead, at ``slowest`` to ``fastest`` m/s and over more than ``shortest`` metres; hands down."""
    return (slowest < m["speed"] < fastest and m["path"] > shortest and m["along"] > 0.8 * m["path"]
            and m["jump_height"] < 0.14 and m["pelvis_min"] > 0.6 and hands_down(m))


def straight(m):
    return abs(m["turn"]) < 40


def strolls(m, slowest, fastest, shortest):
    return walks(m, slowest, fastest, shortest) and straight(m) and m["hops"] < 2 and no_kick(m)


def walks_off(m, moved, shortest):
    """Steps with ``moved`` metres of the path along one direction of the body, other than ahead."""
    return (m["path"] > shortest and moved > 0.8 * m["path"] and straight(m) and grounded(m) and upright(m)
            and hands_down(m))


def turns(m, sign, degrees, tolerance):
    return (abs(sign * m["turn"] - degrees) < tolerance and m["turn_range"] < degrees + tolerance
            and stays(m, 0.65) and m["path"] < 1.2 and grounded(m) and upright(m) and hands_down(m))


def jump(m):
    return (m["jumps"] >= 1 and m["jump_height"] > 0.09 and stays(m, 0.4) and m["hops"] < 2
            and m["straddles"] < 3 and abs(m["turn"]) < 60)


def jump_forward(m):
    return (m["jumps"] >= 1 and m["jump_height"] > 0.09 and m["ahead"] > 0.4 and m["along"] > 0.8 * m["path"]
            and m["path"] < 1.8 * m["jumps"] and straight(m))


def waves(m, sides):
    still = [side for side in SIDES if side not in sides]
    return (legs_at_rest(m) and m["claps"] < 3
            and all(m[f"waves_{side}"] >= 4 and m[f"raised_{side}"] > 0.6 for side in sides)
            and all(m[f"waves_{side}"] < 3 and m[f"raised_{side}"] < 0.4 for side in still))


def raises(m, sides):
    still = [side for side in SIDES if side not in sides]
    return (legs_at_rest(m)
            and all(m[f"overhead_{side}"] > 0.35 and m[f"above_{side}"] > 0.15 and m[f"waves_{side}"] < 5
                    for side in sides)
            and all(m[f"overhead_{side}"] < 0.1 and m[f"raised_{side}"] < 0.4 for side in still))


def clap(m):
    reach = m["thrust_left"], m["thrust_right"]
    together = max(reach) < 0.44 or abs(reach[0] - reach[1]) < 0.1  # in a punch one hand goes far ahead
    return legs_at_rest(m) and hands_overhead(m) < 0.3 and m["claps"] >= 2 and together


def hands_overhead(m):
    return max(m["overhead_left"], m["overhead_right"])


def punches(m, side):
    return (legs_at_rest(m) and hands_overhead(m) < 0.2 and m[f"thrusts_{side}"] >= 1
            and m[f"thrust_{side}"] > 0.41 and m[f"thrusts_{OTHER[side]}"] == 0 and m[f"bent_{side}"] > 0.2)


def kicks(m, side):
    return (m[f"kicks_{side}"] >= 1 and m[f"kicks_{OTHER[side]}"] == 0 and stays(m, 0.6) and m["jumps"] == 0
            and m["hops"] < 2 and upright(m) and abs(m["turn"]) < 60)


def low(m):
    """The pelvis is low for a while, with both knees off the floor and the feet in place."""
    return (m["pelvis_min"] < 0.75 and m["pelvis_low"] > 0.3 and m["knee_min"] > 0.25 and grounded(m)
            and stays(m, 0.6) and m["feet_travel"] < 0.5 and abs(m["turn"]) < 50)


def squat(m):
    return low(m) and m["pelvis_start"] > 0.84 and m["pelvis_end"] > 0.84 and hands_overhead(m) < 0.3


def bow(m):
    return (legs_at_rest(m) and m["pelvis_min"] > 0.8 and m["lean"] > 18 and m["lean_end"] < 13
            and hands_down(m))


def kneel(m):
    return m["knee_min"] < 0.2 and m["knee_low"] > 0.4 and m["pelvis_start"] > 0.84 and stays(m, 0.9)


def jumping_jacks(m):
    return (m["straddles"] >= 2 and m["jacks"] >= 2 and stays(m)
            and min(m["overhead_left"], m["overhead_right"]) > 0.15)


def sway(m):
    return (legs_at_rest(m) and m["sways"] >= 3 and m["feet_travel"] < 0.3 and m["one_foot"] < 0.3
            and hands_down(m))


RULES = {
    "walk_forward": lambda m: strolls(m, 0.62, 1.45, 0.8),
    "walk_slow": lambda m: strolls(m, 0.15, 0.72, 0.5),
    "walk_fast": lambda m: walks(m, 1.35, 2.15, 1.5) and straight(m),
    "walk_backward": lambda m: walks_off(m, -m["along"], 0.6),
    "walk_left": lambda m: walks_off(m, m["aside"], 0.5),
    "walk_right": lambda m: walks_off(m, -m["aside"], 0.5),
    "walk_curve_left": lambda m: walks(m, 0.4, 1.9, 0.9) and 50 < m["turn"] < 170,
    "walk_curve_right": lambda m: walks(m, 0.4, 1.9, 0.9) and -170 < m["turn"] < -50,
    "walk_circle_left": lambda m: walks(m, 0.4, 1.9, 2.5) and 280 < m["turn"] < 450,
    "walk_circle_right": lambda m: walks(m, 0.4, 1.9, 2.5) and -450 < m["turn"] < -280,
    "run_forward": lambda m: walks(m, 1.95, 6.0, 2.0) and straight(m),
    "turn_left_90": lambda m: turns(m, 1, 90, 38), "turn_left_180": lambda m: turns(m, 1, 180, 45),
    "turn_left_360": lambda m: turns(m, 1, 360, 70), "turn_right_90": lambda m: turns(m, -1, 90, 38),
    "turn_right_180": lambda m: turns(m, -1, 180, 45), "turn_right_360": lambda m: turns(m, -1, 360, 70),
    "jump": jump, "jump_forward": jump_forward,
    "hop": lambda m: m["hops"] >= 2 and m["one_foot"] > 0.6 and no_kick(m) and m["speed"] < 1.5,
    "wave_left": lambda m: waves(m, (LEFT,)), "wave_right": lambda m: waves(m, (RIGHT,)),
    "wave_both": lambda m: waves(m, SIDES), "raise_left": lambda m: raises(m, (LEFT,)),
    "raise_right": lambda m: raises(m, (RIGHT,)), "raise_both": lambda m: raises(m, SIDES), "clap": clap,
    "punch_left": lambda m: punches(m, LEFT), "punch_right": lambda m: punches(m, RIGHT),
    "kick_left": lambda m: kicks(m, LEFT), "kick_right": lambda m: kicks(m, RIGHT), "squat": squat,
    "sit_down": lambda m: low(m) and m["pelvis_start"] > 0.84 and m["pelvis_end"] < 0.68,
    "stand_up": lambda m: low(m) and m["pelvis_start"] < 0.68 and m["pelvis_end"] > 0.84,
    "bow": bow, "kneel": kneel, "jumping_jacks": jumping_jacks, "sway": sway,
}


def knows(actions):
    """Whether there are actions (ids) and each has a rule."""
    return bool(actions) and set(actions) <= set(RULES)


def check(actions, joints, fps=20.0):
    """Whether a motion (T, 22, 3) performs the actions (an id of RULES, or several in order)."""
    actions = [actions] if isinstance(actions, str) else list(actions)
    unknown = [action for action in actions if action not in RULES]
    if unknown or not actions:
        raise ValueError(f"unknown action {unknown[0]!r}; known are {', '.join(RULES)}" if unknown
                         else "no action to check")
    return performs(actions, prepare(joints, fps))


def performs(actions, joints):
    """Whether prepared joints perform the first action in some beginning and the others in the rest."""
    if len(actions) == 1:
        return bool(RULES[actions[0]](measure(joints)))
    return any(RULES[actions[0]](measure(joints[:split])) and performs(actions[1:], joints[split:])
               for split in splits(len(actions), len(joints)))


def splits(actions, frames):
    """The frames at which the first of so many actions may end."""
    return range(SHORTEST_PART, frames - SHORTEST_PART * (actions - 1) + 1, SPLIT_STEP)


def action_change(actions, joints, fps=20.0):
    """The frame at which a motion (T, 22, 3) goes from the first action to the second: the middle of all
    splits with which it performs the two; None where there is none. ValueError as for ``check``."""
    if len(actions) != 2 or not knows(actions):
        raise ValueError(f"a change is between two known actions, not {actions}")
    prepared = prepare(joints, fps)
    found = [split for split in splits(2, len(prepared)) if performs(actions[:1], prepared[:split])
             and performs(actions[1:], prepared[split:])]
    return round(float(np.median(found)) * fps / 20) if found else None


def probe_report(results):
    """Summary of [(actions, passed)]: {"all", "single", "sequence": {"passed", "total", "share"}, "actions":
    {id: ...}}; "single" and "actions" count the clips of one action, "share" is the fraction that passed."""
    rows = [((actions,) if isinstance(actions, str) else tuple(actions), bool(passed))
            for actions, passed in results]

    def count(chosen):
        passed = sum(ok for _, ok in chosen)
        return {"passed": passed, "total": len(chosen), "share": passed / len(chosen) if chosen else 0.0}

    of = {action: [row for row in rows if row[0] == (action,)] for action in RULES}
    return {"all": count(rows), "single": count([row for row in rows if len(row[0]) == 1]),
            "sequence": count([row for row in rows if len(row[0]) > 1]),
            "actions": {action: count(chosen) for action, chosen in of.items() if chosen}}
