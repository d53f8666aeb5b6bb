"""Joint positions -> rotations of a rig, and back: inverse and forward kinematics of whole clips.

A bone's direction fixes two of the three angles of its rotation. The third, the turn about the bone, comes
from what else the body shows:

- pelvis and chest: the best rotation (Kabsch) of the bones that leave them, hips and shoulders among them;
- spine: evenly from the pelvis to the chest;
- upper arm and thigh: elbows and knees are hinges, so their plane of bending says how the limb is turned;
  a straight leg is turned as its foot points; where a limb is straight, its turn is carried over from the
  frames before and after, by the least rotation (``_limb_turn``);
- neck: a head is turned rather than tilted; head, hands and toes go with the bone that leads to them.

One rotation cannot fit three bones whose angles change, so in the rig each bone that leaves a fork (pelvis,
chest) begins with a joint of its own at the fork's place ("LeftHipJoint", "LowerBack" ...), as in the BVH
files of CMU. Every bone then points exactly where it does in the clip, and what differs is its length.

Shapes: T frames, J joints of the clip, R joints of the rig. World: Y up, the T-pose faces +Z. Rotation
matrices are (..., 3, 3) and turn columns; quaternions are (..., 4), w first.
"""
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import solve_banded
from scipy.spatial.transform import Rotation

from utils.motion.features import TINY, MotionError

SHORTEST_BONE = 1e-4            # metres: a median length below this gives no direction
BODY_SIZES = (0.2, 10.0)        # metres: a clip of a body with a Rig.height outside is in another unit
STRAIGHT = np.sin(np.radians(10))       # sine of the bend below which a limb says nothing about its turn
FOOT_TRUST, AT_EASE, INERTIA = 0.05, 0.002, 0.1 # of a foot, of the turn 0 and of smoothness; a right angle: 1
SURE = 0.0005                   # trust below which a frame does not count when a limb goes round
LOCK = 1e-6                     # cosine of a middle Euler angle below which it locks the outer two
LEAST_AHEAD = 0.25              # the head's direction is at least this much ahead when its turn is measured
STATURE = 1.5                   # metres: height (Rig.height) of the body to which the tips belong
TIPS = {"Head": (0, 0.19, 0.02), "LeftHand": (0.09, 0, 0), "LeftToeBase": (0, 0, 0.06),
        "LeftToeEnd": (0, 0, 0.03)}     # where the bodies of the last joints end, in metres
LAST = 0.05                     # of other last joints, along their bone
FORKS = {"LeftUpLeg": "LeftHipJoint", "Spine": "LowerBack", "Neck": "NeckBase", "Head": "NeckBase",
         "LeftShoulder": "LeftCollar", "LeftArm": "LeftCollar"}     # the joint at which a bone leaves a fork


@dataclass(frozen=True)
class Rig:
    """A tree of joints in its T-pose, parents before children, depth first.

    names (R); parents (R), -1 for the root; offsets (R, 3): from the parent, metres; joints (R): the clip's
    joint that is in this place; forks (R) bool: whether it is the extra joint where a bone leaves a fork, and
    then ``joints`` is where that bone ends; tips {joint without children: (3,)}: where its body ends.
    """

    names: tuple
    parents: tuple
    offsets: np.ndarray
    joints: tuple
    forks: tuple
    tips: dict

    def rest_positions(self):
        """Joints (R, 3) of the T-pose, the root at the origin."""
        out = np.zeros_like(self.offsets)
        for joint, parent in enumerate(self.parents[1:], 1):
            out[joint] = out[parent] + self.offsets[joint]
        return out

    @property
    def height(self):
        """Of the T-pose, in metres, from the lowest joint to the highest."""
        return np.ptp(self.rest_positions()[:, 1])

    @property
    def own(self):
        """For each joint of the clip, its number in the rig."""
        return [place for _, place in sorted((joint, place) for place, (joint, fork)
                                             in enumerate(zip(self.joints, self.forks)) if not fork)]


@dataclass(frozen=True)
class RigMotion:
    """A rig in motion. root: (T, 3) positions in metres; rotations: (T, R, 4), of each joint in its parent's
    frame, where the T-pose is the identity; neighbouring frames have the same sign."""

    rig: Rig
    root: np.ndarray
    rotations: np.ndarray


def bone_lengths(joints, skeleton):
    """Median over the frames of the length of the bone that ends in each joint, (J,); the root's is 0.
    MotionError where a bone has no length, or the body is not of a size in metres."""
    parents = [max(parent, 0) for parent in skeleton.parents]
    lengths = np.median(np.linalg.norm(joints - joints[:, parents], axis=-1), axis=0)
    short = [joint for joint in range(1, skeleton.num_joints) if lengths[joint] < SHORTEST_BONE]
    if short:
        names = [skeleton.joint_names[joint] for joint in (skeleton.parents[short[0]], short[0])]
        raise MotionError(f"the bone from {names[0]} to {names[1]} has no length, so it has no direction")
    return lengths


def rig_of(joints, skeleton):
    """The Rig with the bone lengths of a clip, joints (T, J, 3) in metres. MotionError as ``bone_lengths``,
    or where the body is not of a size in metres."""
    offsets = np.asarray(skeleton.t_pose) * bone_lengths(joints, skeleton)[:, None]
    rows = [*_grow(skeleton, 0, -1, 0)]
    names, parents, places, forks = zip(*rows)
    at = [np.zeros(3) if fork else offsets[place] for place, fork in zip(places, forks)]
    leaves = {place: names[place] for place in range(len(rows)) if place not in parents}
    tips = {place: _tip(name, skeleton.t_pose[places[place]]) for place, name in leaves.items()}
    rig = Rig(names, parents, np.array(at), places, forks, tips)
    if not BODY_SIZES[0] <= rig.height <= BODY_SIZES[1]:
        raise MotionError(f"the body is {rig.height:.3g} m tall in a T-pose, so the joints are not in metres")
    scale = rig.height / STATURE
    return replace(rig, tips={leaf: tip * scale for leaf, tip in tips.items()})


def _grow(skeleton, joint, parent, place):
    """Rows (name, parent's place, joint of the clip, whether an extra one) of a joint and all below it."""
    yield skeleton.joint_names[joint], parent, joint, False
    parent, place = place, place + 1
    fork = len(skeleton.children[joint]) > 1
    for child in skeleton.children[joint]:
        above = parent
        if fork:
            yield _fork_name(skeleton.joint_names[child]), parent, child, True
            above, place = place, place + 1
        rows = [*_grow(skeleton, child, above, place)]
        place += len(rows)
        yield from rows


def _fork_name(name):
    """The name of the extra joint where the bone to a joint leaves a fork; FORKS has those on the left."""
    if name.replace("Right", "Left") not in FORKS:
        return f"{name}_base"
    return FORKS[name] if name in FORKS else FORKS[name.replace("Right", "Left")].replace("Left", "Right")


def _tip(name, direction):
    """Where the body of a last joint ends (3,), in metres; TIPS has those on the left. Others go on along
    their bone, whose direction (3,) is given."""
    tip = TIPS.get(name.replace("Right", "Left"))
    if tip is None:
        return np.array(direction) * LAST
    return np.array(tip) * (-1 if name.startswith("Right") else 1, 1, 1)


def rig_motion(joints, skeleton):
    """Joints (T, J, 3) of a clip in metres -> RigMotion. MotionError as ``rig_of``."""
    joints = np.asarray(joints, np.float64)
    rig = rig_of(joints, skeleton)
    bodies, bones = orientations(joints, skeleton, skeleton.t_pose)
    world = np.stack([(bones if fork else bodies)[:, joint] for joint, fork in zip(rig.joints, rig.forks)], 1)
    return RigMotion(rig, joints[:, 0], local_quaternions(world, rig.parents))


def local_quaternions(world, parents):
    """Orientations (T, R, 3, 3) in the world -> quaternions (T, R, 4) in the parents' frames, without changes
    of sign from frame to frame."""
    local = world.copy()
    local[:, 1:] = world[:, list(parents[1:])].swapaxes(-1, -2) @ world[:, 1:]
    return continuous(from_matrices(local))


def forward(motion):
    """Positions (T, R, 3) in metres of a RigMotion's joints: forward kinematics."""
    turns, rig = to_matrices(motion.rotations), motion.rig
    at, world = np.empty((*turns.shape[:2], 3)), turns.copy()
    at[:, 0] = motion.root
    for joint, parent in enumerate(rig.parents[1:], 1):
        world[:, joint] = world[:, parent] @ turns[:, joint]
        at[:, joint] = at[:, parent] + world[:, parent] @ rig.offsets[joint]
    return at


def with_bone_lengths(joints, skeleton, lengths):
    """The clip (T, J, 3) with its bones' directions and ``lengths`` (J,): what rotations alone can keep."""
    out = np.array(joints, np.float64)
    for parent, child in skeleton.bones:
        bone = joints[:, child] - joints[:, parent]
        norm = np.maximum(np.linalg.norm(bone, axis=-1, keepdims=True), TINY)
        out[:, child] = out[:, parent] + bone / norm * lengths[child]
    return out


# Inverse kinematics.

def orientations(joints, skeleton, rest):
    """Orientations in the world of a clip's bodies, against the pose in which its bones have the directions
    ``rest`` (J, 3): of the body at each joint (T, J, 3, 3), and of the bone that ends in each joint
    (T, J, 3, 3), which turns ``rest`` exactly to the bone's direction. joints: (T, J, 3)."""
    joints, rest = np.asarray(joints, np.float64), np.asarray(rest)
    bones = _bone_directions(joints, skeleton)
    bodies = np.broadcast_to(np.eye(3), (*joints.shape, 3)).copy()
    carried = bodies.copy()
    forks = [joint for joint in range(skeleton.num_joints) if len(skeleton.children[joint]) > 1]
    for fork in forks:
        leaving = list(skeleton.children[fork])
        bodies[:, fork] = _best_rotation(rest[leaving], bones[:, leaving])
    spine = skeleton.spine
    start, chest = spine[0], spine[-1]
    limbs = {limb[0]: limb for limb in limbs_of(skeleton)}
    for joint in _outwards(skeleton):
        children, parent = skeleton.children[joint], skeleton.parents[joint]
        if joint in spine[1:-1]:
            share = spine.index(joint) / (len(spine) - 1)
            guess = _between(bodies[:, start], bodies[:, chest], share)
        elif joint in limbs:
            guess = _turned_limb(bodies[:, parent], bones, rest, limbs[joint])
        elif parent == chest and skeleton.side(joint) == "centre" and children:
            guess = _turned_head(bodies[:, parent], bones[:, children[0]], rest[children[0]])
        else:
            guess = bodies[:, max(parent, 0)]
        for child in children:
            before = bodies[:, joint] if len(children) > 1 else guess
            carried[:, child] = _aim(before, rest[child], bones[:, child])
        if len(children) < 2:
            bodies[:, joint] = carried[:, children[0]] if children else guess
    return bodies, carried


def _bone_directions(joints, skeleton):
    """Unit vectors (T, J, 3) from each joint's parent to it; zeros where a bone has no length."""
    vectors = joints - joints[:, [max(parent, 0) for parent in skeleton.parents]]
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(norm > TINY, vectors / np.maximum(norm, TINY), 0)


def _outwards(skeleton):
    """All joints, parents before children."""
    return [0, *dict.fromkeys(child for _, child in skeleton.bones)]


def limbs_of(skeleton):
    """[(upper joint, hinge, end, joint beyond or None)]: hip, knee, ankle, foot; shoulder, elbow, wrist."""
    for number, joint in enumerate(skeleton.face_joints):
        limb = max((chain[chain.index(joint):] for chain in skeleton.chains if joint in chain), key=len)
        if len(limb) > 2:
            yield *limb[:3], limb[3] if number < 2 and len(limb) > 3 else None


def _best_rotation(rest, directions):
    """The rotations (T, 3, 3) that turn vectors ``rest`` (N, 3) to ``directions`` (T, N, 3) with the least
    sum of squared errors (Kabsch); frames without directions get the identity."""
    left, sizes, right = np.linalg.svd(np.einsum("tni,nj->tij", directions, rest))
    left[..., 2] *= np.sign(np.linalg.det(left @ right))[:, None]
    return np.where((sizes[:, 1] > TINY)[:, None, None], left @ right, np.eye(3))


def _aim(before, rest, directions):
    """Orientations ``before`` (T, 3, 3), turned by the least angle that brings ``rest`` (3,) to
    ``directions`` (T, 3); where these are zero, as they are."""
    start = before @ rest
    across = np.cross(start, directions)
    cos = (start * directions).sum(-1)
    opposite = cos < -1 + 1e-9
    cross = _cross_matrices(across)
    turn = np.eye(3) + cross + cross @ cross / np.where(opposite, 1, 1 + cos)[:, None, None]
    side = before @ np.roll(np.eye(3)[np.abs(rest).argmax()], 1)  # half a turn about any axis across the bone
    side -= start * (side * start).sum(-1, keepdims=True)
    side /= np.linalg.norm(side, axis=-1, keepdims=True)
    half = 2 * side[..., :, None] * side[..., None, :] - np.eye(3)
    missing = ~directions.any(-1)
    turn = np.where(opposite[:, None, None], half, np.where(missing[:, None, None], np.eye(3), turn))
    return turn @ before


def _cross_matrices(vectors):
    """Matrices (..., 3, 3) that take a vector to its cross product with ``vectors`` (..., 3) on the left."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*x.shape, 3, 3)


def _about(axes, angles):
    """Rotations (T, 3, 3) about unit vectors ``axes`` (T, 3) by ``angles`` (T,)."""
    return Rotation.from_rotvec(axes * np.asarray(angles)[:, None]).as_matrix()


def _between(start, end, share):
    """Orientations (T, 3, 3) at ``share`` of the shortest way from ``start`` to ``end``."""
    way = Rotation.from_matrix(start.swapaxes(-1, -2) @ end).as_rotvec()
    return start @ Rotation.from_rotvec(way * share).as_matrix()


def _turned_head(chest, directions, rest):
    """Orientations (T, 3, 3) of a chest turned about its own Y as far as the head looks aside. Only a head
    that is ahead of the neck in the rest pose shows that."""
    if rest[2] < LEAST_AHEAD:
        return chest
    aside, _, ahead = np.moveaxis(np.einsum("tji,tj->ti", chest, directions), -1, 0)
    turn = np.arctan2(aside, np.maximum(ahead, LEAST_AHEAD))
    return chest @ _about(np.broadcast_to([0.0, 1.0, 0.0], (len(turn), 3)), turn)


def _turned_limb(parent, bones, rest, limb):
    """Orientations (T, 3, 3) of a limb's upper bone, from those of the body that it leaves. bones (T, J, 3):
    directions; rest (J, 3); limb: its joints, of ``limbs_of``."""
    _, hinge, end, beyond = limb
    upper, lower = bones[:, hinge], bones[:, end]
    # Bending turns the lower bone about this axis: forearms go ahead in the T-pose, shins go back.
    axis = np.cross(rest[hinge], [0.0, 0.0, 1.0] if beyond is None else [0.0, 0.0, -1.0])
    reference = _aim(parent, rest[hinge], upper)
    zero = _across(reference @ axis, upper)
    bend = np.cross(upper, lower)
    evidence = _evidence(zero, upper, bend, np.maximum((bend ** 2).sum(-1) - STRAIGHT ** 2, 0))
    if beyond is not None:
        foot = np.cross(bones[:, beyond], lower)
        splay = _angle(axis, _across(np.cross(rest[beyond], rest[end]), rest[hinge]), rest[hinge])  # at rest
        seen = _evidence(zero, upper, foot, FOOT_TRUST * (foot ** 2).sum(-1))
        evidence = evidence + seen * np.exp(-1j * splay)
    # Where a limb is opposite to its rest direction, the reference is arbitrary.
    evidence = evidence + AT_EASE * (1 + np.einsum("ti,tij,j->t", upper, parent, rest[hinge])) / 2
    return _about(upper, _limb_turn(evidence, _drift(parent, zero, upper))) @ reference


def _across(vectors, directions):
    """Unit vectors: the part of ``vectors`` (T, 3) across unit ``directions`` (T, 3), or zeros."""
    part = vectors - directions * (vectors * directions).sum(-1, keepdims=True)
    norm = np.linalg.norm(part, axis=-1, keepdims=True)
    return np.where(norm > TINY, part / np.maximum(norm, TINY), 0)


def _angle(start, end, about):
    """Angles (T,) from ``start`` to ``end`` about unit vectors ``about``, all (T, 3)."""
    return np.arctan2((np.cross(start, end) * about).sum(-1), (start * end).sum(-1))


def _evidence(zero, upper, seen, trust):
    """Complex numbers (T,): the angle is that about ``upper`` from ``zero`` to ``seen``, all (T, 3); the size
    is the ``trust`` (T,), less where a body is hardly ever turned so far, as when a limb is bent too far
    back."""
    turn = _angle(zero, _across(seen, upper), upper)
    return trust * (1 + np.cos(turn)) / 2 * np.exp(1j * turn)


def _drift(parent, zero, upper):
    """By how much the reference turns about the limb from each frame to the next, seen from the parent and
    beyond what the limb's own way needs, (T - 1,)."""
    zero, upper = (np.einsum("tji,tj->ti", parent, vectors) for vectors in (zero, upper))
    axis = np.cross(upper[:-1], upper[1:])
    sin, cos = np.linalg.norm(axis, axis=-1), (upper[:-1] * upper[1:]).sum(-1)
    axis = np.where((sin > TINY)[:, None], axis / np.maximum(sin, TINY)[:, None], 0)
    carried = np.einsum("tij,tj->ti", _about(axis, np.arctan2(sin, cos)), zero[:-1])
    return _angle(carried, zero[1:], upper[1:])


def _limb_turn(evidence, drift):
    """The turn (T,) of a limb from its reference, in radians: near the angles of ``evidence`` (T,), as far as
    it can be trusted, and otherwise changing as little as it can. drift (T - 1,): the reference's own turn.

    Least squares over the whole clip, of the turn without the drift: a tridiagonal system."""
    drift = np.concatenate([[0.0], np.cumsum(drift)])
    trust = np.abs(evidence)
    seen = np.angle(evidence) + drift
    frames, sure = np.arange(len(seen)), trust > SURE
    sure = sure if sure.any() else trust >= 0
    near = np.interp(frames, frames[sure], np.unwrap(seen[sure]))
    seen += 2 * np.pi * np.round((near - seen) / (2 * np.pi))
    neighbours = np.full(len(seen), 2.0)
    neighbours[[0, -1]] = 1.0 if len(seen) > 1 else 0.0
    trust = np.maximum(trust, 1e-6)     # without any evidence the system would have no solution
    beside = np.full(len(seen), -INERTIA)
    bands = np.stack([beside, trust + INERTIA * neighbours, beside])
    return solve_banded((1, 1), bands, trust * seen) - drift


# Representations.

def from_matrices(matrices):
    """Rotation matrices (..., 3, 3) -> quaternions (..., 4), w first."""
    flat = Rotation.from_matrix(matrices.reshape(-1, 3, 3)).as_quat(scalar_first=True)
    return flat.reshape(*matrices.shape[:-2], 4)


def to_matrices(quaternions):
    """Quaternions (..., 4), w first -> rotation matrices (..., 3, 3)."""
    flat = Rotation.from_quat(quaternions.reshape(-1, 4), scalar_first=True).as_matrix()
    return flat.reshape(*quaternions.shape[:-1], 3, 3)


def to_axis_angles(quaternions):
    """Quaternions (..., 4), w first -> axes times angles (..., 3), in radians, at most pi."""
    flat = Rotation.from_quat(quaternions.reshape(-1, 4), scalar_first=True).as_rotvec()
    return flat.reshape(*quaternions.shape[:-1], 3)


def continuous(quaternions):
    """The same rotations (T, ..., 4) with signs such that neighbouring frames are near each other; the first
    frame's w is not negative."""
    first = np.where(quaternions[:1, ..., :1] < 0, -1.0, 1.0)
    same = (quaternions[1:] * quaternions[:-1]).sum(-1, keepdims=True) >= 0
    return quaternions * np.cumprod(np.concatenate([first, np.where(same, 1.0, -1.0)]), axis=0)


def to_euler(quaternions, order):
    """Quaternions (T, R, 4), w first -> Euler angles (T, R, 3) in degrees that change continuously from frame
    to frame, beyond 180 degrees where a joint goes round.

    order: "ZXY" means R = Rz Rx Ry, with angles in that order. Each rotation has two triples of angles, and
    each angle may be whole turns off: every frame takes those nearest to the frame before. In gimbal lock,
    where only the sum or the difference of the outer angles is known, the last one stays."""
    i, j, k = ("XYZ".index(axis) for axis in order)
    sign = 1.0 if (j - i) % 3 == 1 else -1.0
    turns = to_matrices(quaternions)
    middle = np.arcsin(np.clip(sign * turns[..., i, k], -1, 1))
    first = np.arctan2(-sign * turns[..., j, k], turns[..., k, k])
    last = np.arctan2(-sign * turns[..., i, j], turns[..., i, i])
    locked = np.hypot(turns[..., i, i], turns[..., i, j]) < LOCK
    triples = np.stack([first, middle, last], -1), np.stack([first + np.pi, np.pi - middle, last + np.pi], -1)
    out = np.empty((*quaternions.shape[:-1], 3))
    before = np.zeros(out.shape[1:])
    for t in range(len(out)):
        one, other = (_nearest(triple[t], before) for triple in triples)
        nearer = np.abs(one - before).sum(-1) <= np.abs(other - before).sum(-1)
        out[t] = np.where(nearer[:, None], one, other)
        stuck = locked[t]
        if stuck.any():
            out[t, stuck] = _locked(turns[t, stuck], out[t, stuck], before[stuck], (i, j, k, sign))
        before = out[t]
    return np.degrees(out)


def _nearest(angles, before):
    """Angles plus whole turns, as near as can be to ``before``."""
    return angles - 2 * np.pi * np.round((angles - before) / (2 * np.pi))


def _locked(turns, angles, before, axes):
    """Angles (N, 3) of rotations (N, 3, 3) in gimbal lock, whose last one is that of ``before`` (N, 3)."""
    i, j, k, sign = axes
    last = before[:, 2]
    # R Rk(-last) = Ri Rj leaves axis j where Ri takes it.
    undone = turns @ _about(np.broadcast_to(np.eye(3)[k], (len(last), 3)), -last)
    first = np.arctan2(sign * undone[:, k, j], undone[:, j, j])
    return np.stack([_nearest(first, before[:, 0]), angles[:, 1], last], -1)
