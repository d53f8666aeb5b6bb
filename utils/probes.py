"""Does a motion do what its prompt says? Rules on joints, one for each action of the demo data set, that need no network.

``check(actions, joints)`` tells whether a motion performs one action, or two in a row: then the first one's rule must
hold on a beginning of the clip and the second one's on the rest. Thresholds are generous (centimetres, tens of degrees,
tenths of a second) so that a slightly noisy motion passes, and sit between the actions, not close around any of them.
Shapes: T frames, J = 22 joints of HumanML3D; metres, Y up, +Z ahead and +X left when the character faces +Z.
"""
import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

LEFT, RIGHT = "left", "right"
SIDES = (LEFT, RIGHT)
OTHER = {LEFT: RIGHT, RIGHT: LEFT}
HIP, KNEE, ANKLE, TOE = {LEFT: 1, RIGHT: 2}, {LEFT: 4, RIGHT: 5}, {LEFT: 7, RIGHT: 8}, {LEFT: 10, RIGHT: 11}
SHOULDER, ELBOW, WRIST = {LEFT: 16, RIGHT: 17}, {LEFT: 18, RIGHT: 19}, {LEFT: 20, RIGHT: 21}
PELVIS, NECK, HEAD = 0, 12, 15
LEG = 0.82  # metres, hip to ankle: every body is scaled to it
SHORTEST_PART, SPLIT_STEP = 0.8, 0.2  # seconds: of a part of a sequence, and between the splits that are tried


# ---- quantities --------------------------------------------------------------------------------------------------


def prepare(joints, fps):
    """Joints (T, 22, 3) at 20 frames a second, of a body of standard size, smoothed lightly, the floor at 0."""
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


def measure(joints, fps=20.0):
    """The quantities that the rules judge, from joints (T, 22, 3). A dict of numbers; seconds, metres, degrees."""
    return measure_prepared(prepare(joints, fps))


def measure_prepared(joints):
    m = {"seconds": len(joints) / 20}
    heading = facing(joints)
    measure_path(m, joints, heading)
    measure_trunk(m, joints, heading)
    measure_feet(m, joints, heading)
    for side in SIDES:
        measure_arm(m, joints, heading, side)
    measure_hands(m, joints, heading)
    return m


def facing(joints):
    """Heading (T,) in radians, unwrapped; grows in left turns. From hips and shoulders together."""
    across = joints[:, 1] - joints[:, 2] + joints[:, 16] - joints[:, 17]
    return gaussian_filter1d(np.unwrap(np.arctan2(-across[:, 2], across[:, 0])), 3)


def local(vectors, heading):
    """Horizontal parts of (T, 3) in the body's own directions: ahead (T,), to the left (T,)."""
    sine, cosine = np.sin(heading), np.cos(heading)
    return vectors[:, 0] * sine + vectors[:, 2] * cosine, vectors[:, 0] * cosine - vectors[:, 2] * sine


def measure_path(m, joints, heading):
    path = gaussian_filter1d(joints[:, PELVIS], 4, axis=0)
    step = np.diff(path, axis=0)
    length = np.hypot(step[:, 0], step[:, 2])
    m["path"] = length.sum()
    speed = length * 20
    walking = speed > 0.5 * np.percentile(speed, 90)
    m["speed"] = np.median(speed[walking]) if walking.any() else 0.0
    m["walking"] = walking.mean() * m["seconds"]  # seconds on the way
    m["turn"] = np.degrees(heading[-1] - heading[0])
    m["turn_range"] = np.degrees(np.ptp(heading))
    ahead, left = local(step, heading[:-1])
    m["along"], m["aside"] = ahead.sum(), left.sum()  # metres along the facing direction, and to its left
    start = local(joints[-1:, PELVIS] - joints[:1, PELVIS], heading[:1])
    m["ahead"], m["left"] = start[0][0], start[1][0]  # net displacement in the starting frame
    m["reach"] = np.hypot(*(joints[:, PELVIS] - joints[0, PELVIS])[:, [0, 2]].T).max()
    m["distance"] = np.hypot(m["ahead"], m["left"])


def measure_trunk(m, joints, heading):
    height = joints[:, PELVIS, 1]
    m["pelvis_min"], m["pelvis_max"] = height.min(), height.max()
    m["pelvis_start"], m["pelvis_end"] = height[:4].mean(), height[-4:].mean()
    m["pelvis_low"] = np.mean(height < 0.72) * m["seconds"]
    back = joints[:, NECK] - joints[:, PELVIS]
    ahead, left = local(back, heading)
    lean, tilt = np.degrees(np.arctan2(ahead, back[:, 1])), np.degrees(np.arctan2(left, back[:, 1]))
    m["lean"], m["lean_start"], m["lean_end"] = lean.max(), lean[:4].mean(), lean[-4:].mean()
    m["pelvis_at_lean"] = height[lean.argmax()]
    feet = joints[:, [7, 8]].mean(1)
    m["sways"] = swings(gaussian_filter1d(local(joints[:, PELVIS] - feet, heading)[1], 2), 0.07)
    m["tilts"] = swings(gaussian_filter1d(tilt, 2), 6.0)
    m["knee_min"] = joints[:, [4, 5], 1].min()
    m["knee_low"] = np.mean(joints[:, [4, 5], 1].min(1) < 0.22) * m["seconds"]


def measure_feet(m, joints, heading):
    lowest = {side: joints[:, [ANKLE[side], TOE[side]], 1] - [0.07, 0.0] for side in SIDES}
    lowest = {side: value.min(1) for side, value in lowest.items()}  # height of the foot's lowest point
    both = np.minimum(lowest[LEFT], lowest[RIGHT])
    apart = joints[:, ANKLE[LEFT], 1] - joints[:, ANKLE[RIGHT], 1]
    flights = runs(both > 0.03)
    m["jumps"] = sum(both[a:b].max() > 0.045 and np.abs(apart[a:b]).mean() < 0.12 for a, b in flights)
    m["jump_height"] = both.max()
    m["one_foot"] = np.mean(np.abs(apart) > 0.13) * m["seconds"]
    m["hops"] = sum(np.abs(apart[a:b]).min() > 0.11 for a, b in runs(both > 0.02))
    ahead, left = {}, {}
    for side in SIDES:
        ahead[side], left[side] = local(joints[:, ANKLE[side]] - joints[:, PELVIS], heading)
        other = lowest[OTHER[side]]
        kicking = (ahead[side] > 0.25) & (lowest[side] > 0.2) & (lowest[side] - other > 0.2)
        m[f"kicks_{side}"] = len(runs(kicking))
        m[f"kick_height_{side}"] = np.max(lowest[side] * (ahead[side] > 0.25))
        foot = joints[:, ANKLE[side]][:, [0, 2]]
        m[f"foot_travel_{side}"] = np.linalg.norm(foot - foot[0], axis=-1).max()
        m[f"foot_lift_{side}"] = lowest[side].max()
    spread = left[LEFT] - left[RIGHT]
    m["spread"] = spread.max() - min(spread[0], spread[-1])
    m["straddles"] = swings(spread, 0.2)
    m["feet_travel"] = max(m["foot_travel_left"], m["foot_travel_right"])


def measure_arm(m, joints, heading, side):
    shoulder, elbow, wrist = (joints[:, part[side]] for part in (SHOULDER, ELBOW, WRIST))
    above = wrist[:, 1] - joints[:, HEAD, 1]
    m[f"overhead_{side}"] = np.mean(above > 0.05) * m["seconds"]
    m[f"raised_{side}"] = np.mean(wrist[:, 1] > shoulder[:, 1] - 0.1) * m["seconds"]
    m[f"above_{side}"] = above.max()
    forearm = wrist - elbow
    length = np.linalg.norm(forearm, axis=-1)
    forearm = forearm / np.maximum(length, 1e-6)[:, None]
    up = (forearm[:, 1] > 0.25) & (wrist[:, 1] > shoulder[:, 1] - 0.15)
    m[f"waves_{side}"] = max((oscillations(forearm[a:b], heading[a:b]) for a, b in runs(up) if b - a >= 8), default=0)
    ahead, left = local(wrist - shoulder, heading)
    level = np.abs(wrist[:, 1] - shoulder[:, 1]) < 0.25
    m[f"thrusts_{side}"] = thrusts(np.where(level, ahead, np.minimum(ahead, 0.25)))
    m[f"thrust_{side}"] = np.max(np.where(level, ahead, 0))
    m[f"bent_{side}"] = np.mean((np.linalg.norm(wrist - shoulder, axis=-1) < 0.36) & (wrist[:, 1] > shoulder[:, 1] - 0.3)) * m["seconds"]


def oscillations(forearm, heading):
    """Half-swings of a raised forearm (unit vectors (T, 3)), along the direction in which it moves most."""
    ahead, left = local(forearm, heading)
    moves = np.stack([ahead, left, forearm[:, 1]], 1)
    moves = moves - gaussian_filter1d(moves, 7, axis=0)
    direction = np.linalg.svd(moves - moves.mean(0), full_matrices=False)[2][0]
    return swings(moves @ direction, 0.18)


def thrusts(ahead):
    """Quick extensions of the wrist ahead of the shoulder: peaks that rise and fall within half a second or so."""
    peaks, found = find_peaks(ahead, height=0.36, prominence=0.12, width=(1, 12), rel_height=0.5)
    return len(peaks)


def measure_hands(m, joints, heading):
    gap = np.linalg.norm(joints[:, 20] - joints[:, 21], axis=-1)
    chest = joints[:, [16, 17], 1].mean(1)
    level = np.abs(joints[:, [20, 21], 1].mean(1) - chest + 0.15) < 0.4
    claps, _ = find_peaks(-np.where(level, gap, 1.0), height=-0.27, prominence=0.08)
    m["claps"] = len(claps)
    high = joints[:, [20, 21], 1].min(1) - joints[:, HEAD, 1]
    m["jacks"] = swings(gaussian_filter1d(high, 1), 0.5)


def swings(signal, size):
    """How often a signal (T,) goes up or down by at least ``size`` between turning points."""
    count, direction, extreme = 0, 0, signal[0]
    low = high = signal[0]
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


def runs(condition):
    """[(start, stop)] of the stretches in which a condition (T,) holds."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], condition, [False]]).astype(int)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))
