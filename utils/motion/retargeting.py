"""Motion of one skeleton on the bones of another, by a map of joints.

A bone of the target points where the mapped joints of the source do, and has its own length. Joints that the
source lacks follow the joint above them as in the target's rest pose; where the source has fewer joints
between two mapped ones, those between lie on the straight line.
Shapes: T frames, J joints of the source, K of the target.
"""
import numpy as np

from utils.errors import UserError
from utils.motion.features import TINY

PRIOR = 0.05  # weight of the rotation of the joint above against that of a bone's direction


def transfer(joints, source, target, mapping):
    """Joints (T, J, 3) of the Skeleton ``source`` -> joints (T, K, 3) and their rotations (T, K, 3, 3) from
    the rest pose, on the bones of the Skeleton ``target``. mapping: {joint of target: joint of source}.

    The root's path is scaled by the legs, and the lowest foot is as high as in the source, to that scale.
    UserError where the target has no rest pose, or the map lacks a root.
    """
    if target.rest_offsets is None:
        raise UserError(f"the {target.name} skeleton has no rest pose (offsets), so the lengths of its bones "
                        "are not known")
    if 0 not in mapping:
        raise UserError(f"the map does not say which joint of {source.name} is the target's root")
    joints, rest = np.asarray(joints, np.float64), np.array(target.rest_offsets)
    ways = {joint: target.way_to(joint) for joint in range(target.num_joints)}
    directions = {child: _direction(joints, ways, child, mapping) for _, child in target.bones}
    scale = _leg(target, np.linalg.norm(rest, axis=-1)) / _leg(source, _lengths(joints, source))
    out, turned = np.zeros((len(joints), *rest.shape)), np.zeros((len(joints), len(rest), 3, 3))
    out[:, 0] = joints[:, mapping[0]] * scale
    trunk = _trunk(joints, source.face_joints) @ _trunk(_rest_pose(target)[None], target.face_joints)[0].T
    for joint in sorted(ways, key=lambda joint: len(ways[joint])):
        above = turned[:, ways[joint][-2]] if joint else trunk
        children = [child for parent, child in target.bones if parent == joint]
        pulls = [directions[child][..., :, None] * _unit(rest[child]) for child in children
                 if directions[child] is not None]
        turned[:, joint] = _nearest_rotation(sum(pulls, PRIOR * above))
        for child in children:
            bone = (turned[:, joint] @ rest[child] if directions[child] is None
                    else directions[child] * np.linalg.norm(rest[child]))
            out[:, child] = out[:, joint] + bone
    out[..., 1] += scale * _lowest(joints, source) - _lowest(out, target)
    return out, turned


def _direction(joints, ways, joint, mapping):
    """Unit vectors (T, 3) along the bone of the target that ends in ``joint``, or None where the source does
    not say: from the nearest mapped joint above to the joint, or to the mean of the next mapped ones below.
    """
    above = next(other for other in reversed(ways[joint][:-1]) if other in mapping)
    ends = [joint] if joint in mapping else [
        other for other in mapping if joint in ways[other] and not any(
            between in mapping for between in ways[other][ways[other].index(joint) : -1])]
    if not ends:
        return None
    return _unit(joints[:, [mapping[end] for end in ends]].mean(1) - joints[:, mapping[above]])


def _rest_pose(skeleton):
    """Joints (K, 3) of the rest pose."""
    out = np.zeros((skeleton.num_joints, 3))
    for parent, child in skeleton.bones:
        out[child] = out[parent] + skeleton.rest_offsets[child]
    return out


def _trunk(joints, face_joints):
    """Rotations (T, 3, 3) of the trunk: columns to the left, up and ahead."""
    right_hip, left_hip, right_shoulder, left_shoulder = (joints[:, joint] for joint in face_joints)
    left = _unit(left_hip - right_hip + left_shoulder - right_shoulder)
    ahead = _unit(np.cross(left, left_shoulder + right_shoulder - left_hip - right_hip))
    return np.stack([left, np.cross(ahead, left), ahead], -1)


def _nearest_rotation(matrices):
    """The rotations (T, 3, 3) nearest to matrices (T, 3, 3)."""
    left, _, right = np.linalg.svd(matrices)
    left[..., -1] *= np.linalg.det(left @ right)[..., None]
    return left @ right


def _lengths(joints, skeleton):
    """Mean length (J,) of the bones that end in the joints."""
    parents = [max(parent, 0) for parent in skeleton.parents]
    return np.linalg.norm(joints - joints[:, parents], axis=-1).mean(0)


def _leg(skeleton, lengths):
    """Length of the bones from the left hip to the ankle. UserError where they have none."""
    way = skeleton.way_to(skeleton.left_feet[0])
    leg = lengths[way[way.index(skeleton.face_joints[1]) + 1 :]].sum()
    if leg < TINY:
        raise UserError(f"the leg of {skeleton.name} has no length, so the motion cannot be scaled")
    return leg


def _lowest(joints, skeleton):
    return joints[:, [*skeleton.left_feet, *skeleton.right_feet], 1].min()


def _unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), TINY)
