"""Does a motion do what its prompt says? Rules on joints, one for each action of the demo data set, that need
no network.

``check(actions, joints)`` tells whether a motion performs one action, or two in a row: then the first one's
rule must hold on a beginning of the clip and the second one's on the rest. Thresholds are generous
(centimetres, tens of degrees, tenths of a second) so that a slightly noisy motion passes, and sit between the
actions, not close around any of them.
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
# seconds: of a part of a sequence, and between the splits that are tried
SHORTEST_PART, SPLIT_STEP = 0.8, 0.2


# ---- quantities --------------------------------------------------------------------------------------------


def prepare(joints, fps):
    """Joints (T, 22, 3) at 20 frames a second, of a body of standard size, smoothed lightly, the floor at
    0."""
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
    """The quantities that the rules judge, from joints (T, 22, 3). A dict of numbers; seconds, metres,
    degrees."""
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
    m["jumps"] = sum(both[a:b].max() > 0.07 and np.abs(apart[a:b]).mean() < 0.12 for a, b in flights)
    m["jump_height"] = both.max()
    m["one_foot"] = np.mean(np.abs(apart) > 0.13) * m["seconds"]
    m["hops"] = sum(both[a:b].max() > 0.04 and np.abs(apart[a:b]).min() > 0.1 for a, b in runs(both > 0.02))
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
    m[f"waves_{side}"] = max((oscillations(forearm[a:b], heading[a:b]) for a, b in runs(up) if b - a >= 8),
                             default=0)
    ahead, left = local(wrist - shoulder, heading)
    level = np.abs(wrist[:, 1] - shoulder[:, 1]) < 0.25
    m[f"thrusts_{side}"] = thrusts(np.where(level, ahead, np.minimum(ahead, 0.25)))
    m[f"thrust_{side}"] = np.max(np.where(level, ahead, 0))
    bent = (np.linalg.norm(wrist - shoulder, axis=-1) < 0.36) & (wrist[:, 1] > shoulder[:, 1] - 0.3)
    m[f"bent_{side}"] = np.mean(bent) * m["seconds"]


def oscillations(forearm, heading):
    """Half-swings of a raised forearm (unit vectors (T, 3)), along the direction in which it moves most."""
    ahead, left = local(forearm, heading)
    moves = np.stack([ahead, left, forearm[:, 1]], 1)
    moves = gaussian_filter1d(moves, 1, axis=0) - gaussian_filter1d(moves, 7, axis=0)
    direction = np.linalg.svd(moves - moves.mean(0), full_matrices=False)[2][0]
    return swings(moves @ direction, 0.2)


def thrusts(ahead):
    """How often the wrist shoots ahead of the shoulder and comes back, each within about 0.6 seconds."""
    return len(find_peaks(ahead, height=0.36, prominence=0.1, wlen=25)[0])


def measure_hands(m, joints, heading):
    gap = np.linalg.norm(joints[:, 20] - joints[:, 21], axis=-1)
    chest = joints[:, [16, 17], 1].mean(1)
    level = np.abs(joints[:, [20, 21], 1].mean(1) - chest + 0.15) < 0.4
    claps, _ = find_peaks(-np.where(level, gap, 1.0), height=-0.3, prominence=0.08)
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


# ---- rules -------------------------------------------------------------------------------------------------


def stays(m, far=0.55):
    return m["reach"] < far


def grounded(m):
    return m["jumps"] == 0 and m["hops"] < 2


def upright(m):
    return m["pelvis_min"] > 0.72


def hands_down(m):
    """No hand goes overhead, waves or strikes; swinging arms are fine."""
    return all(m[f"overhead_{side}"] < 0.25 and m[f"waves_{side}"] < 4 for side in SIDES)


def legs_at_rest(m):
    """No step, jump, kick, squat or turn worth the name."""
    return (stays(m) and grounded(m) and upright(m) and m["feet_travel"] < 0.45 and m["straddles"] < 2
            and abs(m["turn"]) < 50 and no_kick(m))


def no_kick(m):
    return m["kicks_left"] + m["kicks_right"] == 0


def walks(m, slowest, fastest, shortest):
    """Steps in the facing direction at a speed within bounds (m/s), for at least ``shortest`` metres."""
    return (slowest < m["speed"] < fastest and m["path"] > shortest and m["along"] > 0.8 * m["path"]
            and m["jump_height"] < 0.14 and m["pelvis_min"] > 0.6 and hands_down(m))


def straight(m):
    return abs(m["turn"]) < 40


def walk_forward(m):
    return walks(m, 0.62, 1.45, 0.8) and straight(m) and m["hops"] < 2 and no_kick(m)


def walk_slow(m):
    return walks(m, 0.15, 0.72, 0.5) and straight(m) and m["hops"] < 2 and no_kick(m)


def walk_fast(m):
    return walks(m, 1.35, 2.15, 1.5) and straight(m)


def run_forward(m):
    return walks(m, 1.95, 6.0, 2.0) and straight(m)


def walk_backward(m):
    return m["path"] > 0.6 and m["along"] < -0.8 * m["path"] and straight(m) and grounded(
        m) and upright(m) and hands_down(m)


def walk_aside(m, sign):
    return (m["path"] > 0.5 and sign * m["aside"] > 0.8 * m["path"] and straight(m) and grounded(m)
            and upright(m)
            and hands_down(m))


def walk_curve(m, sign):
    return walks(m, 0.4, 1.9, 0.9) and 50 < sign * m["turn"] < 170


def walk_circle(m, sign):
    return walks(m, 0.4, 1.9, 2.5) and 280 < sign * m["turn"] < 450


def turns(m, sign, degrees, tolerance):
    return (abs(sign * m["turn"] - degrees) < tolerance and m["turn_range"] < degrees + tolerance
            and stays(m, 0.65)
            and m["path"] < 1.2 and grounded(m) and upright(m) and hands_down(m))


def jump(m):
    return (m["jumps"] >= 1 and m["jump_height"] > 0.09 and stays(m, 0.4) and m["hops"] < 2
            and m["straddles"] < 3
            and abs(m["turn"]) < 60)


def jump_forward(m):
    return (m["jumps"] >= 1 and m["jump_height"] > 0.09 and m["ahead"] > 0.4 and m["along"] > 0.8 * m["path"]
            and m["path"] < 1.8 * m["jumps"] and straight(m))


def hop(m):
    return m["hops"] >= 2 and m["one_foot"] > 0.6 and no_kick(m) and m["speed"] < 1.5


def waves(m, sides):
    still = [side for side in SIDES if side not in sides]
    return (legs_at_rest(m) and all(m[f"waves_{side}"] >= 4 and m[f"raised_{side}"] > 0.6 for side in sides)
            and all(m[f"waves_{side}"] < 3 and m[f"raised_{side}"] < 0.4 for side in still)
            and m["claps"] < 3)


def raises(m, sides):
    still = [side for side in SIDES if side not in sides]
    return (legs_at_rest(m) and all(m[f"overhead_{side}"] > 0.35 and m[f"above_{side}"] > 0.15
                                    for side in sides)
            and all(m[f"waves_{side}"] < 5 for side in sides)
            and all(m[f"overhead_{side}"] < 0.1 and m[f"raised_{side}"] < 0.4 for side in still))


def clap(m):
    reach = m["thrust_left"], m["thrust_right"]
    # in a punch one hand goes far ahead of the other
    together = max(reach) < 0.44 or abs(reach[0] - reach[1]) < 0.1
    return legs_at_rest(m) and hands_overhead(m) < 0.3 and m["claps"] >= 2 and together


def hands_overhead(m):
    return max(m["overhead_left"], m["overhead_right"])


def punches(m, side):
    return (legs_at_rest(m) and hands_overhead(m) < 0.2 and m[f"thrusts_{side}"] >= 1
            and m[f"thrust_{side}"] > 0.41
            and m[f"thrusts_{OTHER[side]}"] == 0 and m[f"bent_{side}"] > 0.2)


def kicks(m, side):
    return (m[f"kicks_{side}"] >= 1 and m[f"kicks_{OTHER[side]}"] == 0 and stays(m, 0.6) and m["jumps"] == 0
            and m["hops"] < 2 and upright(m) and abs(m["turn"]) < 60)


def low(m):
    """The pelvis is low for a while, with both knees off the floor and the feet in place."""
    return (m["pelvis_min"] < 0.75 and m["pelvis_low"] > 0.3 and m["knee_min"] > 0.25 and grounded(m)
            and stays(m, 0.6)
            and m["feet_travel"] < 0.5 and abs(m["turn"]) < 50)


def squat(m):
    return low(m) and m["pelvis_start"] > 0.84 and m["pelvis_end"] > 0.84 and hands_overhead(m) < 0.3


def sit_down(m):
    return low(m) and m["pelvis_start"] > 0.84 and m["pelvis_end"] < 0.68


def stand_up(m):
    return low(m) and m["pelvis_start"] < 0.68 and m["pelvis_end"] > 0.84


def bow(m):
    return legs_at_rest(m) and m["pelvis_min"] > 0.8 and m["lean"] > 18 and m[
        "lean_end"] < 13 and hands_down(m)


def kneel(m):
    return m["knee_min"] < 0.2 and m["knee_low"] > 0.4 and m["pelvis_start"] > 0.84 and stays(m, 0.9)


def jumping_jacks(m):
    return m["straddles"] >= 2 and m["jacks"] >= 2 and stays(m) and min(m["overhead_left"],
                                                                        m["overhead_right"]) > 0.15


def sway(m):
    return legs_at_rest(m) and m["sways"] >= 3 and m["feet_travel"] < 0.3 and m[
        "one_foot"] < 0.3 and hands_down(m)


RULES = {
    "walk_forward": walk_forward, "walk_slow": walk_slow, "walk_fast": walk_fast,
    "walk_backward": walk_backward, "walk_left": lambda m: walk_aside(m, 1),
    "walk_right": lambda m: walk_aside(m, -1), "walk_curve_left": lambda m: walk_curve(m, 1),
    "walk_curve_right": lambda m: walk_curve(m, -1), "walk_circle_left": lambda m: walk_circle(m, 1),
    "walk_circle_right": lambda m: walk_circle(m, -1), "run_forward": run_forward,
    "turn_left_90": lambda m: turns(m, 1, 90, 38), "turn_left_180": lambda m: turns(m, 1, 180, 45),
    "turn_left_360": lambda m: turns(m, 1, 360, 70), "turn_right_90": lambda m: turns(m, -1, 90, 38),
    "turn_right_180": lambda m: turns(m, -1, 180, 45), "turn_right_360": lambda m: turns(m, -1, 360, 70),
    "jump": jump, "jump_forward": jump_forward, "hop": hop,
    "wave_left": lambda m: waves(m, (LEFT,)), "wave_right": lambda m: waves(m, (RIGHT,)),
    "wave_both": lambda m: waves(m, SIDES), "raise_left": lambda m: raises(m, (LEFT,)),
    "raise_right": lambda m: raises(m, (RIGHT,)), "raise_both": lambda m: raises(m, SIDES), "clap": clap,
    "punch_left": lambda m: punches(m, LEFT), "punch_right": lambda m: punches(m, RIGHT),
    "kick_left": lambda m: kicks(m, LEFT), "kick_right": lambda m: kicks(m, RIGHT),
    "squat": squat, "sit_down": sit_down, "stand_up": stand_up, "bow": bow, "kneel": kneel,
    "jumping_jacks": jumping_jacks, "sway": sway,
}


def knows(actions):
    """Whether there is a rule for each of the actions, a list of ids, and there are any."""
    return bool(actions) and set(actions) <= set(RULES)


def check(actions, joints, fps=20.0):
    """Whether a motion (T, 22, 3) performs the actions (an id of RULES, or a list of them in order)."""
    actions = [actions] if isinstance(actions, str) else list(actions)
    unknown = [action for action in actions if action not in RULES]
    if unknown or not actions:
        raise ValueError(f"unknown action {unknown[0]!r}; known are {', '.join(RULES)}" if unknown
                         else "no action to check")
    return performs(actions, prepare(joints, fps))


def performs(actions, joints):
    """The first action on some beginning of the prepared joints, the others on the rest."""
    if len(actions) == 1:
        return bool(RULES[actions[0]](measure_prepared(joints)))
    shortest, step = round(SHORTEST_PART * 20), round(SPLIT_STEP * 20)
    return any(RULES[actions[0]](measure_prepared(joints[:split])) and performs(actions[1:], joints[split:])
               for split in range(shortest, len(joints) - shortest * (len(actions) - 1) + 1, step))


def probe_report(results):
    """Summary of [(actions, passed)]: {"all", "single", "sequence": {"passed", "total", "share"}, "actions":
    {id: ...}}. ``actions`` counts clips of one action."""
    rows = [(tuple([actions] if isinstance(actions, str) else actions), bool(passed))
            for actions, passed in results]

    def share(chosen):
        passed = sum(ok for _, ok in chosen)
        return {"passed": passed, "total": len(chosen), "share": passed / len(chosen) if chosen else 0.0}

    single = [row for row in rows if len(row[0]) == 1]
    return {"all": share(rows), "single": share(single),
            "sequence": share([row for row in rows if len(row[0]) > 1]),
            "actions": {action: share([row for row in single if row[0][0] == action])
                        for action in RULES if any(row[0][0] == action for row in single)}}


# ---- prompts -----------------------------------------------------------------------------------------------

PROMPTS = tuple((prompt, tuple(actions.split())) for prompt, actions in (
    ("a person walks forward", "walk_forward"),
    ("someone strolls straight ahead at a normal pace", "walk_forward"),
    ("a person walks forward slowly", "walk_slow"),
    ("a man takes slow, unhurried steps ahead", "walk_slow"),
    ("a person walks forward quickly", "walk_fast"),
    ("a woman hurries ahead at a brisk walking pace", "walk_fast"),
    ("a person walks backward", "walk_backward"),
    ("someone steps back several paces", "walk_backward"),
    ("a person steps sideways to the left", "walk_left"),
    ("a man sidesteps to his left", "walk_left"),
    ("a person steps sideways to the right", "walk_right"),
    ("a woman shuffles sideways towards her right", "walk_right"),
    ("a person walks in a curve to the left", "walk_curve_left"),
    ("someone walks forward while veering left", "walk_curve_left"),
    ("a person walks in a curve to the right", "walk_curve_right"),
    ("someone walks forward while veering right", "walk_curve_right"),
    ("a person walks in a circle counterclockwise", "walk_circle_left"),
    ("a man walks a full circle to his left", "walk_circle_left"),
    ("a person walks in a circle clockwise", "walk_circle_right"),
    ("a man walks a full circle to his right", "walk_circle_right"),
    ("a person runs forward", "run_forward"),
    ("someone jogs straight ahead", "run_forward"),
    ("a person turns left by 90 degrees", "turn_left_90"),
    ("someone makes a quarter turn to the left on the spot", "turn_left_90"),
    ("a person turns around to the left", "turn_left_180"),
    ("someone makes a half turn to the left", "turn_left_180"),
    ("a person turns a full circle to the left on the spot", "turn_left_360"),
    ("someone spins counterclockwise once all the way around", "turn_left_360"),
    ("a person turns right by 90 degrees", "turn_right_90"),
    ("someone makes a quarter turn to the right on the spot", "turn_right_90"),
    ("a person turns around to the right", "turn_right_180"),
    ("someone makes a half turn to the right", "turn_right_180"),
    ("a person turns a full circle to the right on the spot", "turn_right_360"),
    ("someone spins clockwise once all the way around", "turn_right_360"),
    ("a person jumps up", "jump"),
    ("someone leaps into the air on the spot", "jump"),
    ("a person jumps forward", "jump_forward"),
    ("someone leaps ahead with both feet", "jump_forward"),
    ("a person hops on one leg", "hop"),
    ("a man bounces on one foot several times", "hop"),
    ("a person waves with the left hand", "wave_left"),
    ("a woman says hello with her left hand", "wave_left"),
    ("a person waves with the right hand", "wave_right"),
    ("a man greets someone by waving his right hand", "wave_right"),
    ("a person waves with both hands", "wave_both"),
    ("someone waves both arms in greeting", "wave_both"),
    ("a person raises the left arm", "raise_left"),
    ("a woman lifts her left hand above her head", "raise_left"),
    ("a person raises the right arm", "raise_right"),
    ("a man holds his right hand up high", "raise_right"),
    ("a person raises both arms", "raise_both"),
    ("someone lifts both hands above their head", "raise_both"),
    ("a person claps", "clap"),
    ("someone applauds by clapping their hands", "clap"),
    ("a person punches with the left hand", "punch_left"),
    ("a boxer throws a jab with his left fist", "punch_left"),
    ("a person punches with the right hand", "punch_right"),
    ("a man strikes forward with his right fist", "punch_right"),
    ("a person kicks with the left leg", "kick_left"),
    ("someone kicks forward with their left foot", "kick_left"),
    ("a person kicks with the right leg", "kick_right"),
    ("someone kicks a ball with their right foot", "kick_right"),
    ("a person squats", "squat"),
    ("someone bends the knees deeply and comes back up", "squat"),
    ("a person sits down", "sit_down"),
    ("a man takes a seat on a chair", "sit_down"),
    ("a person stands up from a chair", "stand_up"),
    ("a seated woman rises to her feet", "stand_up"),
    ("a person bows", "bow"),
    ("someone bends forward at the waist in a polite bow", "bow"),
    ("a person kneels down", "kneel"),
    ("someone goes down on one knee", "kneel"),
    ("a person does jumping jacks", "jumping_jacks"),
    ("someone performs a few star jumps", "jumping_jacks"),
    ("a person sways from side to side", "sway"),
    ("someone rocks left and right while standing", "sway"),
    ("a person walks forward and then waves with the right hand", "walk_forward wave_right"),
    ("someone jumps up and then claps", "jump clap"),
    ("a person sits down and then stands up", "sit_down stand_up"),
    ("a man turns around to the left and then walks forward", "turn_left_180 walk_forward"),
    ("a person bows and then walks backward", "bow walk_backward"),
    ("a woman raises her left arm and then squats", "raise_left squat"),
    ("a person kicks with the right leg and then punches with the left hand", "kick_right punch_left"),
    ("someone runs forward and then jumps up", "run_forward jump"),
    ("a person waves with both hands, then turns right by 90 degrees", "wave_both turn_right_90"),
    ("a person walks in a curve to the left and then sits down", "walk_curve_left sit_down"),
))
