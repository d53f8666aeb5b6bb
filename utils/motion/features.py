"""Motion features <-> joint positions, after HumanML3D (Guo et al., CVPR 2022, "Generating Diverse and
Natural 3D Human Motions from Text").

Shapes: T frames, J joints, D features. Joints are (..., T, J, 3) with Y up; the body faces +Z in frame 0 and
its left is +X. The columns of features are, in this order (J = 22: 263 columns, J = 21: 251 columns),

    yaw velocity 1, root x and z velocity 2, root height 1, joint positions 3 (J - 1)   "essential": 67 or 64
    joint rotations 6 (J - 1), joint velocities 3 J, foot contacts 4                    with these "standard"

in the facing frame, which has its origin below the pelvis and +Z where the body looks. The yaw velocity is
*half* the angle turned per frame, in radians, positive to the right; all velocities are per frame.
"""
import numpy as np
import torch

from utils.arrays import LARGEST
from utils.errors import UserError

SMOOTHING = 20  # frames: sigma of the Gaussian over the facing direction
TINY = 1e-12  # vectors shorter than this have no direction
OPPOSITE = 3e-4  # radians: closer to opposite, half a turn is more accurate than a rotation found in float32


class MotionError(UserError):
    """Joints or features that cannot be converted; the message says why."""


def joints_to_features(joints, skeleton, target_offsets=None):
    """Joints (T, J, 3) -> standard features (T - 1, D) float32: the last frame has no velocity.

    ``target_offsets`` (J, 3): retarget the motion to a body with these bones; None keeps the body's own.
    MotionError where the joints have another shape, fewer than two frames, or NaN.
    """
    joints = _checked(joints, skeleton)
    if target_offsets is not None:
        joints = retarget(joints, skeleton, target_offsets)
    joints = _place(joints, skeleton, single=target_offsets is not None)
    heading = _smooth_heading(joints, skeleton)  # (T,)
    turn = np.diff(heading)
    turn = np.arctan2(np.sin(turn), np.cos(turn))  # the short way round, also across +-180 degrees
    step = np.diff(joints, axis=0)
    facing = joints - joints[:, :1] * [1, 0, 1]
    parts = (
        -turn[:, None] / 2,
        rotate_y(step[:, 0], -heading[1:])[:, [0, 2]],
        joints[:-1, 0, 1:2],
        rotate_y(facing[:-1, 1:], -heading[:-1, None]),
        _local_rotations(joints[:-1], heading[:-1], skeleton),
        rotate_y(step, -heading[:-1, None]),
        (step ** 2).sum(-1)[:, [*skeleton.left_feet, *skeleton.right_feet]] < skeleton.feet_threshold,
    )
    return np.concatenate([part.reshape(len(step), -1) for part in parts], axis=1).astype(np.float32)


def retarget(joints, skeleton, target_offsets):
    """Joints (T, J, 3) -> the same joint rotations on a body with ``target_offsets`` (J, 3), the root's path
    scaled by the ratio of the leg lengths; computed in single precision (see below), returned as float64.
    MotionError where the source's leg has no length in frame 0."""
    joints, offsets = np.asarray(joints, np.float32), np.asarray(target_offsets, np.float32)
    legs = list(skeleton.leg_joints)
    source_leg = np.linalg.norm(joints[0, legs] - joints[0, [skeleton.parents[leg] for leg in legs]],
                                axis=-1).sum()
    if source_leg < TINY:
        raise MotionError("the leg has no length in frame 0, so the motion cannot be scaled to another body")
    bones = _rotate(_bone_rotations(joints, skeleton), offsets)
    out = np.empty(joints.shape)
    out[:, 0] = joints[:, 0] * (np.abs(offsets[legs]).max(-1).sum() / source_leg)
    for parent, child in skeleton.bones:
        out[:, child] = out[:, parent] + bones[:, child]
    return out


def _bone_rotations(joints, skeleton):
    """Quaternions (T, J, 4) float32, w first, that turn each bone's raw axis to where the bone points:
    inverse kinematics from each frame's facing outwards, and forward again, as for the published features."""
    shortest = _shortest_rotation(np.asarray(skeleton.raw_offsets), _bone_directions(joints, skeleton))
    out = shortest.copy()
    out[:, 0] = _to_forward(_across(joints, skeleton))
    out[0, 0] = [1, 0, 0, 0]
    for before, child in zip(skeleton.turned_by, range(1, skeleton.num_joints)):
        local = _multiply(_inverse(out[:, before]), shortest[:, child])
        out[:, child] = _multiply(out[:, before], local)
    return out


# Single precision, with torch: where a bone points almost against its raw axis, its rotation magnifies an
# error of a joint about a hundred times, so features agree with the published ones only if the joints are
# rounded as torch's float32 root and cross product round them; numpy's differ.


def _single(*arrays):
    """Float32 tensors of the arrays, broadcast to one shape except in the last axis."""
    shape = np.broadcast_shapes(*(array.shape[:-1] for array in arrays))
    return [torch.tensor(np.broadcast_to(array, (*shape, array.shape[-1])), dtype=torch.float32)
            for array in arrays]


def _shortest_rotation(start, end):
    """Quaternions (..., 4) that turn coordinate axes ``start`` (..., 3) to ``end`` (..., 3); where these are
    opposite, half a turn about another coordinate axis (Y for Z)."""
    start, end = _single(start, end)
    lengths = ((start ** 2).sum(-1, keepdim=True) * (end ** 2).sum(-1, keepdim=True)).sqrt()
    out = torch.cat([lengths + (start * end).sum(-1, keepdim=True), torch.linalg.cross(start, end)], -1)
    norm = out.norm(dim=-1, keepdim=True)
    half_turn = torch.cat([torch.zeros_like(norm), start.roll(-1, -1)], -1)
    return torch.where(norm > OPPOSITE, out / norm, half_turn).numpy()


def _rotate(rotations, vectors):
    """Vectors (..., 3) turned by quaternions (..., 4)."""
    rotations, vectors = _single(rotations, vectors)
    w, axis = rotations[..., :1], rotations[..., 1:]
    across = torch.linalg.cross(axis, vectors)
    return (vectors + 2 * (w * across + torch.linalg.cross(axis, across))).numpy()


def _multiply(left, right):
    """The quaternion (T, 4) that turns first by ``right`` (T, 4), then by ``left`` (T, 4)."""
    a, x, y, z = left.T
    b, u, v, w = right.T
    return np.stack([b * a - u * x - v * y - w * z, b * x + u * a - v * z + w * y,
                     b * y + u * z + v * a - w * x, b * z - u * y + v * x + w * a], -1)


def _inverse(rotations):
    """The inverses of unit quaternions (..., 4)."""
    return rotations * np.array([1, -1, -1, -1], rotations.dtype)


def _checked(joints, skeleton):
    joints = np.asarray(joints)
    if joints.ndim != 3 or joints.shape[1:] != (skeleton.num_joints, 3):
        raise MotionError(f"joints have shape {joints.shape}, expected (frames, {skeleton.num_joints}, 3) "
                          f"for the {skeleton.name} skeleton")
    if joints.dtype.kind not in "fiu":
        raise MotionError(f"joints are of type {joints.dtype}, expected numbers")
    if len(joints) < 2:
        raise MotionError(f"joints have {len(joints)} frames, expected 2 or more: features hold velocities")
    joints = joints.astype(np.float64)
    if not (np.abs(joints) < LARGEST).all():
        raise MotionError(f"joints hold NaN, infinite values or values above {LARGEST:.0e}")
    return joints


def _place(joints, skeleton, single=False):
    """Put the clip's lowest joint on the floor and frame 0's root at x = z = 0, facing +Z; ``single``: turn
    in float32, as the published features of retargeted joints were."""
    origin = joints[0, 0].copy()
    origin[1] = joints[..., 1].min()
    right_hip, left_hip, right_shoulder, left_shoulder = joints[0, list(skeleton.face_joints)]
    across = right_hip - left_hip + right_shoulder - left_shoulder
    if single:
        return _rotate(_to_forward(across), joints - origin).astype(np.float64)
    return rotate_y(joints - origin, -np.arctan2(across[2], -across[0]))


def _across(joints, skeleton):
    """Unit vectors (T, 3) to the right of each frame's body. The hips enter with the opposite sign to
    ``_place``, as in all published features."""
    right_hip, left_hip, right_shoulder, left_shoulder = (joints[:, joint] for joint in skeleton.face_joints)
    across = (left_hip - right_hip) + (right_shoulder - left_shoulder)
    return _directions(across, [-1.0, 0.0, 0.0])


def _directions(vectors, default):
    """Unit vectors (..., 3) along ``vectors`` (..., 3); ``default`` where these have no length."""
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(norm > TINY, vectors / np.maximum(norm, TINY), default)


def _to_forward(across):
    """Quaternions (..., 4) that turn bodies whose right side is along ``across`` (..., 3) to face +Z."""
    forward = np.stack([across[..., 2], np.zeros_like(across[..., 1]), -across[..., 0]], -1)
    return _inverse(_shortest_rotation(np.array([0, 0, 1]), _directions(forward, [0.0, 0.0, 1.0])))


def _smooth_heading(joints, skeleton):
    """Heading (T,) in radians of the facing frame; frame 0 is 0."""
    across = _across(joints, skeleton)[:, [0, 2]]
    offsets = np.arange(-4 * SMOOTHING, 4 * SMOOTHING + 1)
    kernel = np.exp(-0.5 * (offsets / SMOOTHING) ** 2)
    padded = np.pad(across, ((4 * SMOOTHING, 4 * SMOOTHING), (0, 0)), mode="edge")
    x, z = (np.convolve(column, kernel / kernel.sum(), mode="valid") for column in padded.T)
    heading = np.arctan2(z, -x)
    heading[0] = 0.0
    return heading


def _bone_directions(joints, skeleton):
    """Unit vectors (T, J, 3) from each joint's parent to it; the raw axis where a bone has no length."""
    parents = [max(parent, 0) for parent in skeleton.parents]
    return _directions(joints - joints[:, parents], np.asarray(skeleton.raw_offsets))


def _local_rotations(joints, heading, skeleton):
    """First two columns of each bone's rotation matrix in its parent's frame, (T, J - 1, 6).

    A bone's own rotation is the shortest one from its raw axis u to its direction v: the reflection along u,
    then the one along the normalised h = u + v, so (I - 2 h h^T)(I - 2 u u^T). Every chain starts from the
    root's rotation, even where it branches off another joint.
    """
    raw = np.asarray(skeleton.raw_offsets)
    middle = raw + _bone_directions(joints, skeleton)
    norm = np.linalg.norm(middle, axis=-1, keepdims=True)
    sideways = np.roll(raw, 1, axis=-1)  # a bone opposite to its axis: half a turn about a perpendicular axis
    middle = np.where(norm > 1e-9, middle / np.maximum(norm, TINY), sideways)
    mirror = np.eye(3) - 2 * middle[..., :, None] * middle[..., None, :]  # (T, J, 3, 3)
    own = mirror * (1 - 2 * raw ** 2)[:, None, :]
    own[:, 0] = rotate_y(np.eye(3), -heading[:, None]).swapaxes(-1, -2)
    columns = own[:, skeleton.turned_by].swapaxes(-1, -2) @ own[:, 1:, :, :2]
    return columns.swapaxes(-1, -2).reshape(len(joints), -1, 6)


def rotate_y(vectors, angle):
    """Vectors (..., 3) turned by ``angle`` (...) radians about Y, from +Z towards +X. Numpy or torch."""
    xp = torch if torch.is_tensor(vectors) else np
    cos, sin = xp.cos(angle), xp.sin(angle)
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    x, z = cos * x + sin * z, cos * z - sin * x
    return xp.stack([x, y + xp.zeros_like(x), z], -1)  # zeros: the shape to which vectors and angle broadcast


def recover_root(features):
    """Features (..., T, D) -> heading (..., T) in radians from +Z towards +X, and root positions (..., T, 3).
    Numpy or torch, differentiable."""
    xp = torch if torch.is_tensor(features) else np
    zero = xp.zeros_like(features[..., :1, 0])
    heading = -2 * xp.concatenate([zero, xp.cumsum(features[..., :-1, 0], -1)], -1)
    x, z = features[..., :-1, 1], features[..., :-1, 2]
    step = rotate_y(xp.stack([x, xp.zeros_like(x), z], -1), heading[..., 1:])
    x, z = (xp.concatenate([zero, xp.cumsum(step[..., axis], -1)], -1) for axis in (0, 2))
    return heading, xp.stack([x, features[..., 3], z], -1)


def facing_joints(features, num_joints):
    """Features (..., T, D) -> joints (..., T, J, 3) in the facing frame, the root above its origin. Nothing
    is accumulated over time, so an error in one frame stays there. Numpy or torch."""
    xp = torch if torch.is_tensor(features) else np
    height = features[..., 3]
    root = xp.stack([xp.zeros_like(height), height, xp.zeros_like(height)], -1)[..., None, :]
    rest = essential(features, 4 + 3 * (num_joints - 1))[..., 4:]
    return xp.concatenate([root, rest.reshape(*rest.shape[:-1], num_joints - 1, 3)], -2)


def features_to_joints(features, num_joints):
    """Features (..., T, D), essential or standard and not normalised -> joints (..., T, J, 3). Numpy or
    torch, differentiable. MotionError where there are too few columns."""
    xp = torch if torch.is_tensor(features) else np
    joints = facing_joints(features, num_joints)
    heading, root = recover_root(features)
    path = xp.stack([root[..., 0], xp.zeros_like(heading), root[..., 2]], -1)  # the height is in the joints
    return rotate_y(joints, heading[..., None]) + path[..., None, :]


def joints_of_pieces(pieces, num_joints):
    """Yields joints (n, J, 3) float64 of one motion whose un-normalised features come in ``pieces`` (n, D),
    numpy or torch on the CPU. Each continues where, and facing where, the one before ended."""
    last, heading, origin = None, 0.0, np.zeros(3)
    for piece in pieces:
        piece = np.asarray(piece, np.float64)
        rows = piece if last is None else np.concatenate([last, piece])
        turned, path = recover_root(rows)
        joints = rotate_y(features_to_joints(rows, num_joints), np.float64(heading)) + origin
        yield joints[len(rows) - len(piece) :]
        origin = origin + rotate_y(path[-1] * [1, 0, 1], np.float64(heading))
        heading, last = heading + turned[-1], rows[-1:]


def essential(features, skeleton_or_dim):
    """The essential columns (..., 67 or 64) of features (..., D). MotionError where there are fewer."""
    dim = getattr(skeleton_or_dim, "essential_dim", skeleton_or_dim)
    if features.shape[-1] < dim:
        raise MotionError(f"features have {features.shape[-1]} columns, expected {dim} or more")
    return features[..., :dim]


def features_to_standard(features, skeleton, target_offsets=None):
    """Essential features (T, D) -> standard features (T - 1, 263 or 251) of the same motion."""
    features = np.asarray(features, np.float64)
    return joints_to_features(features_to_joints(features, skeleton.num_joints), skeleton, target_offsets)
