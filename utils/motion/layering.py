"""Two clips in one body: some joints move as in one clip, the rest as in another.

Where a limb of one clip leaves the body of the other, it is carried from its own parent's frame to that of
the new one, so bones keep their lengths and joints their angles (``_frames``). The pelvis' frame stays
upright and turns with the line of the hips: a leg does not swing up where the trunk bends forward.

Shapes: T frames, J joints.
"""
import numpy as np

from utils.errors import UserError
from utils.motion.features import rotate_y
from utils.motion.rotations import orientations


def joints_named(names, skeleton, flag):
    """Mask (J,) of the joints that ``names`` (parts of the body or joints of the skeleton) stand for.
    UserError, which begins with ``flag``, for an unknown name, or where no joint would be left."""
    kept = np.zeros(skeleton.num_joints, bool)
    for name in names:
        if name not in skeleton.body_parts and name not in skeleton.joint_names:
            raise UserError(f"{flag} {name}: unknown; the {skeleton.name} skeleton has the parts "
                            f"{', '.join(skeleton.body_parts)} and the joints "
                            f"{', '.join(skeleton.joint_names)}")
        kept[list(skeleton.body_parts.get(name) or [skeleton.joint_names.index(name)])] = True
    if kept.all():
        raise UserError(f"{flag}: these are all joints, so nothing is left to change")
    return kept


def layer(source, new, kept, skeleton):
    """Joints (T, J, 3) like ``new`` (T, J, 3), whose ``kept`` (J,) joints move as in ``source`` (T, J, 3).

    Kept joints that hang together with a kept root are where they are in the source, bit for bit; others are
    where the source has them relative to their parent. Both clips are in metres."""
    clips = [clip.astype(np.float64) for clip in (new, source)]
    frames = [_frames(clip, skeleton) for clip in clips]
    clip_of = kept.astype(int)
    out, turn = clips[clip_of[0]].copy(), np.broadcast_to(np.eye(3), (*new.shape, 3)).copy()
    exact = kept.copy()
    for joint, parent in sorted(((child, parent) for parent, child in set(skeleton.bones)),
                                key=lambda bone: skeleton.depth(bone[0])):
        own = clip_of[joint]
        turn[:, joint] = turn[:, parent]
        if own != clip_of[parent]:
            at = turn[:, parent] @ frames[clip_of[parent]][:, parent]
            turn[:, joint] = at @ frames[own][:, parent].swapaxes(-1, -2)
        bone = clips[own][:, joint] - clips[own][:, parent]
        out[:, joint] = out[:, parent] + np.einsum("tij,tj->ti", turn[:, joint], bone)
        exact[joint] &= exact[parent]
    out = out.astype(new.dtype)
    out[:, exact] = source[:, exact]
    return out


def _frames(joints, skeleton):
    """Orientations (T, J, 3, 3) of what leads to each joint, the bone that ends there; of the chest and other
    forks, the body; of the root, the hips, upright."""
    bodies, bones = orientations(joints, skeleton, skeleton.t_pose)
    forks = np.array([len(children) > 1 for children in skeleton.children])
    frames = np.where(forks[:, None, None], bodies, bones)
    right_hip, left_hip, *_ = skeleton.face_joints
    across = joints[:, left_hip] - joints[:, right_hip]
    heading = np.unwrap(np.arctan2(-across[:, 2], across[:, 0]))
    frames[:, 0] = rotate_y(np.eye(3), heading[:, None]).swapaxes(-1, -2)
    return frames
