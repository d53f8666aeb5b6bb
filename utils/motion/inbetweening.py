"""Stitch regenerated frames into a clip: the kept frames stay bit for bit, and nothing jumps.

The generated features say how the body moves; the kept frames on both sides say where it stands and looks.
The gap between the generated path and the frame after it (in heading, then in position) is spread over the
section, slowly at its ends.

Shapes: T frames of the clip, n frames of a section and its two neighbours, J joints, D features. Poses are
joints in the facing frame (features.py: facing_joints).
"""
import numpy as np

from utils.motion.features import TINY, facing_joints, recover_root, rotate_y

BLEND = 8  # frames over which a pose of the source fades into the generated motion


def sections_of(edited):
    """[(start, stop)] of the runs of true in ``edited`` (T,)."""
    padded = np.concatenate([[False], edited, [False]])
    return [tuple(map(int, pair)) for pair in np.flatnonzero(np.diff(padded)).reshape(-1, 2)]


def stitch(joints, features, generated, edited, skeleton):
    """Joints (T, J, 3) like ``joints``, but with the frames where ``edited`` (T,) is true from the features
    ``generated`` (T, D). ``features`` (T, D): those of ``joints``. Neither is normalised.

    A section at the start of the clip is joined to what follows, one at the end to what comes before; one
    that is the whole clip starts where the clip started.
    """
    poses, new = (facing_joints(np.asarray(rows, np.float64), skeleton.num_joints)
                  for rows in (features, generated))
    heading, origin = facing_frames(joints.astype(np.float64), poses)
    out = joints.copy()
    for start, stop in sections_of(edited):
        first, last = max(start - 1, 0), min(stop, len(joints) - 1)
        ends, kept = [first, last], (start > 0, stop < len(joints))
        turn, path = lead(generated[first : last + 1], heading[ends], origin[ends], kept)
        pose = with_bones(fade(new[first : last + 1], poses[ends], kept), poses[ends], skeleton)
        placed = rotate_y(pose, turn[:, None]) + path[:, None]
        out[start:stop] = placed[start - first : stop - first]
    return out


def facing_frames(joints, poses):
    """Heading (T,) and origin (T, 3) of the facing frames in which joints (T, J, 3) are ``poses``."""
    away, facing = joints - joints[:, :1], poses - poses[:, :1]
    across = (away[..., 0] * facing[..., 2] - away[..., 2] * facing[..., 0]).sum(-1)
    along = (away[..., 0] * facing[..., 0] + away[..., 2] * facing[..., 2]).sum(-1)
    return np.arctan2(across, along), joints[:, 0] - poses[:, 0]


def lead(generated, heading, origin, kept):
    """Heading (n,) and origin (n, 3) of generated features (n, D), led from the facing frame of the first
    neighbour to that of the last: heading (2,), origin (2, 3). ``kept``: which of the two must be met."""
    turned, path = recover_root(np.asarray(generated, np.float64))
    weight = ease(np.linspace(0, 1, len(path))) if all(kept) else np.full(len(path), float(kept[1]))
    drift = heading[1] - heading[0] - turned[-1]
    extra = heading[0] + weight * np.arctan2(np.sin(drift), np.cos(drift))  # the short way round
    steps = rotate_y(np.diff(path * [1, 0, 1], axis=0), extra[1:])
    path = origin[0] + np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)])
    return turned + extra, path + weight[:, None] * (origin[1] - path[-1])


def fade(new, ends, kept):
    """Poses (n, J, 3), changed near kept neighbours to start and end with their poses ``ends`` (2, J, 3)."""
    left = 1 - ease(np.arange(len(new)) / min(BLEND, len(new) - 1))[:, None, None]
    return new + kept[0] * left * (ends[0] - new[0]) + kept[1] * left[::-1] * (ends[1] - new[-1])


def with_bones(poses, ends, skeleton):
    """Poses (n, J, 3) with the bone lengths of ``ends`` (2, J, 3), which decoding and averaging change."""
    weight = np.linspace(0, 1, len(poses))[:, None]
    out = poses.copy()
    for parent, child in skeleton.bones:
        bone = poses[:, child] - poses[:, parent]
        first, last = np.linalg.norm(ends[:, child] - ends[:, parent], axis=-1)
        length = (1 - weight) * first + weight * last
        norm = np.linalg.norm(bone, axis=-1, keepdims=True)
        out[:, child] = out[:, parent] + bone / np.maximum(norm, TINY) * length
    return out


def ease(x):
    """Smoothstep: 0 below 0, 1 above 1, level at both."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)
