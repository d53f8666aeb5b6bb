"""Clips that a new one is made from: read from files, and followed on.

Shapes: T frames, n of the new clip, J joints, D features.
"""
from pathlib import Path

import numpy as np

from utils.arrays import load_array
from utils.errors import MissingFile, UserError
from utils.lengths import MAX_LENGTH, SHORTEST
from utils.motion.features import LARGEST, essential, features_to_joints, joints_to_features
from utils.motion.inbetweening import stitch
from utils.motion.skeletons import SKELETONS

ANY_LENGTH = 10_000_000  # frames: days


def read_source(path, spec, flag="--source_motion", longest=MAX_LENGTH):
    """Joints (T, J, 3) in metres of a .npy file, unchanged, and their essential features (T, D) in the data
    set's unit of length. UserError, which begins with ``flag``, if it cannot be used; ``longest``: most
    frames."""
    skeleton, unit = spec.layout, spec.metres_per_unit
    if not Path(path).is_file():
        raise MissingFile(f"{flag}: no file {path}")
    if Path(path).suffix.lower() != ".npy":
        raise UserError(f"{flag}: {path} is no .npy file; sample.py writes one beside every clip")
    try:
        source = load_array(path)
    except UserError as error:
        raise UserError(f"{flag} is not a .npy file of numbers, or is damaged: {error}") from error
    check_source(source, f"{flag}: {path}", skeleton, longest)
    # at least float32: integers and half precision keep their values
    source = source.astype(np.result_type(source, np.float32), copy=False)
    if source.ndim == 2:
        joints = features_to_joints(source, skeleton.num_joints) * unit
        return joints, essential(source, skeleton).astype(np.float32)
    # Features contain velocities, so they are one frame shorter: extrapolate the last pose along the floor.
    ahead = source[-1:] + (source[-1:, :1] - source[-2:-1, :1]) * [1, 0, 1]
    return source, essential(joints_to_features(np.concatenate([source, ahead]) / unit, skeleton), skeleton)


def check_source(source, place, skeleton, longest):
    """UserError, which begins with ``place``, unless the array is a clip of the skeleton's joints or features
    of at most ``longest`` frames."""
    shape = source.shape
    joints = len(shape) == 3 and shape[1:] == (skeleton.num_joints, 3)
    own = (skeleton.essential_dim, skeleton.feature_dim)
    of_others = {dim for other in SKELETONS.values() for dim in (other.essential_dim, other.feature_dim)}
    features = len(shape) == 2 and shape[1] >= own[0] and shape[1] not in of_others - {*own}
    if not joints and not features:
        raise UserError(f"{place} has shape {shape}; the generator's skeleton "
                        f"({skeleton.name}) needs joints (frames, {skeleton.num_joints}, 3) or features "
                        f"(frames, {skeleton.essential_dim} or {skeleton.feature_dim})")
    if not SHORTEST <= len(source) <= longest:
        raise UserError(f"{place} has {len(source)} frames, outside {SHORTEST}..{longest}"
                        + "; studio.py edits longer ones" * (len(source) > longest))
    if source.dtype.kind not in "fiu" or not (np.abs(source) < LARGEST).all():
        raise UserError(f"{place} holds NaN, infinite values, values above {LARGEST:.0e}, or "
                        "no numbers")


def read_pose(text, spec):
    """What leads to the pose PATH, the last of a clip, or PATH@FRAME: joints (T, J, 3) in metres, of which
    the last frame is the pose, and their features (T, D), as ``read_source`` has them. UserError if it cannot
    be used."""
    path, mark, number = text.rpartition("@")
    if not mark or Path(text).is_file():
        path, number = text, "-1"
    joints, features = read_source(path, spec, "--start_pose", ANY_LENGTH)
    try:
        frame = int(number)
    except ValueError as error:
        raise UserError(f"--start_pose {text}: write CLIP.npy or CLIP.npy@FRAME, a whole number") from error
    if not -len(joints) <= frame < len(joints):
        raise UserError(f"--start_pose {text}: the clip has frames 0 to {len(joints) - 1}")
    stop = frame % len(joints) + 1
    return joints[:stop][-MAX_LENGTH:], features[:stop][-MAX_LENGTH:]


def whole_tokens(features, unit):
    """The last of features (T, D) that fill tokens of ``unit`` frames; where there are too few, the body
    stood still before."""
    if len(features) < unit:
        still = np.repeat(features[:1], unit - len(features), axis=0)
        still[:, :3] = 0
        return np.concatenate([still, features])
    return features[len(features) % unit :]


def start_in(joints, features, generated, spec):
    """Joints (n, J, 3) in metres of the motion ``generated`` (n, D), whose first frame is the pose joints[-1]
    (J, 3), where it is, bit for bit; features[-1] (D,): that pose's. The rest moves on from there with the
    pose's bones."""
    still = [np.repeat(rows[-1:], len(generated), axis=0) for rows in (joints, features)]
    edited = np.arange(len(generated)) > 0
    unit, out = spec.metres_per_unit, still[0].copy()
    out[edited] = (stitch(still[0] / unit, still[1], generated, edited, spec.layout) * unit)[edited]
    return out
