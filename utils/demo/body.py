"""The body of the demo data set: from control curves to joint positions.

A performance is a dict of curves, one value per frame (20 fps). Forward kinematics pose trunk and arms;
two-bone inverse kinematics pose the legs towards planned footprints, so planted feet do not slide.

Shapes: T frames. World: metres, Y up. Body frame: +X is the body's left, +Z is ahead. Angles are in degrees;
the heading grows when the body turns left.
"""
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d, maximum_filter1d

SIDES = (("l", 1.0), ("r", -1.0))
BALL_HEIGHT, ANKLE_HEIGHT, HEEL_BACK = 0.012, 0.075, 0.04  # of a flat foot, metres
STANDING_REACH, MAX_REACH = 0.996, 0.9985  # of the straight leg

# x, z, height: pelvis (height relative to standing); pitch: forward, roll: left side up, twist: to the left.
# Arm: swing (forward), spread (sideways), roll (forearm inwards), elbow (flexion). Foot: x, z, lift,
# yaw of the ball of the flat foot; pitch > 0 raises the heel, < 0 the toes; splay opens the knees.
TRUNK = ("x", "z", "height", "yaw", "pelvis_yaw", "pelvis_pitch", "pelvis_roll", "bend", "side", "twist",
         "head_pitch", "head_yaw", "head_roll")
ARM = ("swing", "spread", "roll", "elbow")
FOOT = ("foot_x", "foot_z", "lift", "foot_yaw", "foot_pitch", "splay")
CHANNELS = TRUNK + tuple(f"{side}_{name}" for side, _ in SIDES for name in ARM + FOOT)

# joint: (parent, direction of the bone in a relaxed upright pose, typical length), left side and middle
BONES = {
    1: (0, (0.60, -0.79, -0.05), 0.106), 4: (1, (0, -1, 0), 0.392), 7: (4, (0, -1, 0), 0.429),
    3: (0, (0.0, 0.97, -0.24), 0.132), 6: (3, (0.0, 1.0, 0.02), 0.143), 9: (6, (0.0, 0.92, 0.40), 0.057),
    12: (9, (0.0, 0.98, -0.18), 0.219), 15: (12, (0.0, 0.80, 0.60), 0.103),
    13: (9, (0.52, 0.83, -0.22), 0.140), 16: (13, (0.95, 0.30, -0.10), 0.127),
    18: (16, (0, -1, 0), 0.260), 20: (18, (0, -1, 0), 0.268),
}
FOOT_LENGTH = 0.146


@dataclass(frozen=True)
class Body:
    """Proportions of one person in metres: ``offsets`` (22, 3), the bones but for the feet in a relaxed pose,
    and ``length`` (22,) of all bones."""

    offsets: np.ndarray
    length: np.ndarray

    @property
    def standing(self):
        """Height of the pelvis when standing at ease."""
        return ANKLE_HEIGHT - self.offsets[1, 1] + STANDING_REACH * (self.length[4] + self.length[7])


def random_body(rng):
    """A body 7% smaller to 7% taller than average, with legs, arms, trunk and width up to 4% off that."""
    size = rng.uniform(0.93, 1.07)
    legs, arms, trunk, width = np.clip(rng.normal(1, 0.02, 4), 0.96, 1.04)
    scale = {1: width, 4: legs, 7: legs, 13: width, 16: width, 18: arms, 20: arms}
    offsets, length = np.zeros((22, 3)), np.zeros(22)
    for joint, (_, direction, typical) in BONES.items():
        length[joint] = typical * size * scale.get(joint, trunk)
        offsets[joint] = np.array(direction) / np.linalg.norm(direction) * length[joint]
    length[10] = FOOT_LENGTH * size * legs
    for left, right in ((1, 2), (4, 5), (7, 8), (10, 11), (13, 14), (16, 17), (18, 19), (20, 21)):
        length[right], offsets[right] = length[left], offsets[left] * (-1, 1, 1)
    return Body(offsets, length)


# ---- rotations: angle arrays (T,) in degrees -> matrices (T, 3, 3)

def rotation(axis, degrees):
    """Rotation about one of the axes "x", "y", "z"."""
    angle = np.radians(np.asarray(degrees, dtype=np.float64))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.zeros(angle.shape + (3, 3))
    matrix[..., range(3), range(3)] = 1.0
    matrix[..., i, i] = matrix[..., j, j] = np.cos(angle)
    matrix[..., j, i] = np.sin(angle)
    matrix[..., i, j] = -matrix[..., j, i]
    return matrix


def turn(matrix, vector):
    """Apply (T, 3, 3) to (3,) or (T, 3)."""
    return np.einsum("...ij,...j->...i", matrix, np.broadcast_to(vector, matrix.shape[:-1]))


# ---- trunk and arms

def pose_trunk(body, c, joints):
    """Fill pelvis, hips, spine, neck and head; return the rotation of the chest."""
    pelvis = rotation("y", c["yaw"] + c["pelvis_yaw"]) @ rotation("x", c["pelvis_pitch"])
    pelvis = pelvis @ rotation("z", c["pelvis_roll"])
    for hip in (1, 2):
        joints[:, hip] = joints[:, 0] + turn(pelvis, body.offsets[hip])
    bend = rotation("y", c["twist"] / 3) @ rotation("x", c["bend"] / 3) @ rotation("z", c["side"] / 3)
    frame = pelvis
    for joint in (3, 6, 9):
        frame = frame @ bend if joint > 3 else frame
        joints[:, joint] = joints[:, BONES[joint][0]] + turn(frame, body.offsets[joint])
    chest = frame @ bend
    # The head stays level: the neck takes back most of what the trunk leans and twists.
    lean = -0.65 * np.clip(c["pelvis_pitch"] + c["bend"], -60, 60)
    neck = rotation("x", 0.3 * lean) @ rotation("z", -0.3 * c["side"])
    joints[:, 12] = joints[:, 9] + turn(chest @ neck, body.offsets[12])
    head = rotation("y", c["head_yaw"] - 0.7 * c["twist"]) @ rotation("x", 0.7 * lean + c["head_pitch"])
    head = chest @ neck @ head @ rotation("z", c["head_roll"] - 0.4 * c["side"])
    joints[:, 15] = joints[:, 12] + turn(head, body.offsets[15])
    return chest


def pose_arm(body, c, joints, chest, side, sign):
    """Fill collar, shoulder, elbow and wrist of one arm."""
    collar, shoulder, elbow, wrist = (13, 16, 18, 20) if side == "l" else (14, 17, 19, 21)
    swing, spread = c[f"{side}_swing"], c[f"{side}_spread"]
    joints[:, collar] = joints[:, 9] + turn(chest, body.offsets[collar])
    arm = rotation("x", -swing) @ rotation("z", sign * spread)
    raised = np.clip(np.degrees(np.arccos(np.clip(arm[:, 1, 1], -1, 1))) - 50, 0, 130)
    shrug = chest @ rotation("z", sign * 0.22 * raised)  # the shoulder girdle follows an arm that goes up
    joints[:, shoulder] = joints[:, collar] + turn(shrug, body.offsets[shoulder])
    roll, flexion = np.radians(c[f"{side}_roll"]), np.radians(c[f"{side}_elbow"])
    inwards = np.stack([-sign * np.sin(roll), 0 * roll, np.cos(roll)], -1)
    upper, fold = turn(chest @ arm, np.array([0.0, -1.0, 0.0])), turn(chest @ arm, inwards)
    joints[:, elbow] = joints[:, shoulder] + upper * body.length[elbow]
    forearm = upper * np.cos(flexion)[:, None] + fold * np.sin(flexion)[:, None]
    joints[:, wrist] = joints[:, elbow] + forearm * body.length[wrist]


# ---- legs

def foot_points(body, c, side, sign, pitch):
    """Ankle and ball (..., T, 3) of a foot with ``pitch`` (..., T): it rolls about the ball when the heel is
    up, about the heel when the toes are."""
    down, out = ANKLE_HEIGHT - BALL_HEIGHT, 0.02 * sign
    ahead = np.sqrt(body.length[10] ** 2 - down ** 2 - out ** 2)
    to_ball, to_heel = np.array([out, -down, ahead]), np.array([0.0, -ANKLE_HEIGHT, -HEEL_BACK])
    yaw = rotation("y", c[f"{side}_foot_yaw"])
    ball = np.stack([c[f"{side}_foot_x"], BALL_HEIGHT + c[f"{side}_lift"], c[f"{side}_foot_z"]], -1)
    heel = ball + turn(yaw, to_heel - to_ball)
    tilt = yaw @ rotation("x", pitch)
    ankle = np.where(pitch[..., None] >= 0, ball - turn(tilt, to_ball), heel - turn(tilt, to_heel))
    return ankle, ankle + turn(tilt, to_ball)


def pelvis_drop(body, c, hips):
    """How far the pelvis must sink to keep both standing feet within reach, (T,)."""
    reach = MAX_REACH * (body.length[4] + body.length[7])
    need = np.zeros(len(c["x"]))
    for (side, sign), hip in zip(SIDES, hips):
        pitch = c[f"{side}_foot_pitch"]
        ankle, _ = foot_points(body, c, side, sign, np.where(pitch < -1, pitch, np.maximum(pitch, 30)))
        flat = np.minimum(np.hypot(*(ankle - hip)[:, [0, 2]].T), 0.9 * reach)
        highest = ankle[:, 1] + np.sqrt(reach ** 2 - flat ** 2)
        need = np.maximum(need, np.where(c[f"{side}_lift"] < 0.01, hip[:, 1] - highest, 0))
    return gaussian_filter1d(maximum_filter1d(need, 3), 1.0)


def heel_rise(body, c, side, sign, hip):
    """Pitch of the foot (T,) with the heel raised as far as the straight leg needs."""
    reach = MAX_REACH * (body.length[4] + body.length[7])
    pitch = c[f"{side}_foot_pitch"]
    extra = np.linspace(0, 50, 26)[:, None] * (pitch >= 0)
    ankle, _ = foot_points(body, c, side, sign, pitch + extra)
    excess = np.linalg.norm(ankle - hip, axis=-1) - reach  # (26, T), falls with the pitch
    first = np.where((excess > 0).all(0), len(extra) - 1, np.argmax(excess <= 0, axis=0))
    frames = np.arange(len(pitch))
    after, before = excess[first, frames], excess[np.maximum(first - 1, 0), frames]
    part = np.where((first > 0) & (before > after), before / np.maximum(before - after, 1e-9), 1.0)
    return pitch + (np.maximum(first - 1, 0) + np.clip(part, 0, 1) * (first > 0)) * 2.0 * (pitch >= 0)


def pose_leg(body, c, joints, side, sign):
    """Fill knee, ankle and ball of one leg."""
    hip_joint, knee, ankle_joint, ball_joint = (1, 4, 7, 10) if side == "l" else (2, 5, 8, 11)
    hip, thigh, shin = joints[:, hip_joint], body.length[knee], body.length[ankle_joint]
    ankle, ball = foot_points(body, c, side, sign, heel_rise(body, c, side, sign, hip))
    span = ankle - hip
    distance = np.linalg.norm(span, axis=-1, keepdims=True)
    direction = span / distance
    reachable = np.clip(distance, 0.25 * (thigh + shin), MAX_REACH * (thigh + shin))
    shift = (reachable - distance) * direction
    joints[:, ankle_joint], joints[:, ball_joint] = ankle + shift, ball + shift
    # The knee points between pelvis and foot, tilted along with the leg: up when the leg is kicked ahead.
    aim = np.radians(c["yaw"] + 0.5 * (c[f"{side}_foot_yaw"] - c["yaw"]) + sign * c[f"{side}_splay"])
    ahead = np.stack([np.sin(aim), 0 * aim, np.cos(aim)], -1)
    axis = np.cross([0.0, -1.0, 0.0], direction)
    swivel = np.cross(axis, ahead)
    pole = ahead + swivel + np.cross(axis, swivel) / np.maximum(1 - direction[:, 1:2], 1e-3)
    pole -= (pole * direction).sum(-1, keepdims=True) * direction
    pole /= np.linalg.norm(pole, axis=-1, keepdims=True)
    along = (thigh ** 2 - shin ** 2 + reachable ** 2) / (2 * reachable)
    joints[:, knee] = hip + along * direction + np.sqrt(np.maximum(thigh ** 2 - along ** 2, 0)) * pole


def solve(body, c):
    """Control curves (dict of (T,)) -> joints (T, 22, 3), float32."""
    joints = np.zeros((len(c["x"]), 22, 3))
    joints[:, 0] = np.stack([c["x"], body.standing + c["height"], c["z"]], -1)
    pose_trunk(body, c, joints)
    joints[:, 0, 1] -= pelvis_drop(body, c, (joints[:, 1], joints[:, 2]))
    chest = pose_trunk(body, c, joints)
    for side, sign in SIDES:
        pose_arm(body, c, joints, chest, side, sign)
        pose_leg(body, c, joints, side, sign)
    return joints.astype(np.float32)
