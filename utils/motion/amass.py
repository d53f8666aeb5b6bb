"""AMASS files: rotations of the joints of a body of the SMPL family, and its path; their joints by forward
kinematics.

Read are the .npz of AMASS with SMPL-H and SMPL-X, and those that scripts.export writes. Shapes: T frames.
"""
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from utils.arrays import LARGEST, first_absurd, load_arrays
from utils.errors import UnreadableFile
from utils.motion.body_models import FAMILIES, LAYOUT
from utils.motion.resampling import at_times, sample_times, slerp
from utils.motion.rotations import Rig, RigMotion, forward

JOINTS = LAYOUT.num_joints
NAMES = ("poses", "root_orient", "pose_body", "trans", "betas", "gender", "surface_model_type",
         "mocap_framerate", "mocap_frame_rate")
RATES = (1, 1000)  # frames per second


class Recording(NamedTuple):
    """A file. family: of FAMILIES; gender; betas (B,): shape; rotations (T, 22, 3): axes times angles, of
    each joint in its parent's frame; trans (T, 3): path in metres; fps."""

    family: str
    gender: str
    betas: np.ndarray
    rotations: np.ndarray
    trans: np.ndarray
    fps: float

    def cut(self, start, stop):
        """The same of frames start..stop."""
        return self._replace(rotations=self.rotations[start:stop], trans=self.trans[start:stop])


def read_amass(path):
    """The Recording in a file. UnreadableFile where it is missing, damaged, or of another content."""
    content = load_arrays(path, NAMES)

    def need(*names):
        found = next((content[name] for name in names if name in content), None)
        if found is None:
            raise UnreadableFile(path, f"lacks '{names[0]}', so it is no motion as in AMASS")
        return found

    need("poses", "root_orient")
    poses = content["poses"] if "poses" in content else _joined(path, need("root_orient"), need("pose_body"))
    poses = _numbers(path, "poses", poses, (3 * JOINTS, *(3 * joints for joints in FAMILIES.values())))
    trans = _numbers(path, "trans", need("trans"), (3,))
    if len(trans) != len(poses) or len(poses) == 0:
        raise UnreadableFile(path, f"has {len(poses)} frames of poses and {len(trans)} of trans")
    betas, rate = need("betas"), need("mocap_framerate", "mocap_frame_rate")
    if betas.dtype.kind not in "fiu" or betas.size != max(betas.shape, default=0) or (
            not (np.abs(betas) < LARGEST).all()):
        raise UnreadableFile(path, f"has betas of shape {betas.shape} and type {betas.dtype}, not the finite "
                                   "numbers of one body")
    if rate.dtype.kind not in "fiu" or rate.size != 1 or not RATES[0] <= rate.item() <= RATES[1]:
        raise UnreadableFile(path, f"has the frame rate '{_word(rate)}', not {RATES[0]} to {RATES[1]} per "
                                   "second")
    return Recording(_family(path, content, poses.shape[1] // 3), _word(need("gender")),
                     betas.reshape(-1).astype(np.float64), poses[:, : 3 * JOINTS].reshape(-1, JOINTS, 3),
                     trans, float(rate.item()))


def positions(recording, model, fps=None):
    """Joint positions (N, 22, 3) in metres of a Recording's body, a BodyModel, in the file's axes. ``fps``:
    frames per second to resample to, by the shortest rotation between two frames; None = the file's own."""
    times, wanted = sample_times(len(recording.trans), recording.fps, fps)
    rest = model.rest(recording.betas)
    turns = [slerp(Rotation.from_rotvec(joint), times, wanted)
             for joint in recording.rotations.swapaxes(0, 1)]
    offsets = rest - rest[[max(parent, 0) for parent in LAYOUT.parents]]
    rig = Rig(LAYOUT.joint_names, LAYOUT.parents, offsets, tuple(range(JOINTS)), (False,) * JOINTS, {})
    # The whole body turns about the pelvis at rest, and then moves by trans.
    root = at_times(recording.trans, times, wanted) + rest[0]
    quaternions = np.stack([turn.as_quat(scalar_first=True) for turn in turns], 1)
    return forward(RigMotion(rig, root, quaternions))


def _joined(path, root, body):
    """Poses (T, 66) of the newer layout's two arrays."""
    root = _numbers(path, "root_orient", root, (3,))
    body = _numbers(path, "pose_body", body, (3 * JOINTS - 3,))
    if len(root) != len(body):
        raise UnreadableFile(path, f"has {len(root)} frames of root_orient and {len(body)} of pose_body")
    return np.concatenate([root, body], 1)


def _numbers(path, name, array, columns):
    """The array (T, one of ``columns``) as float64."""
    if array.ndim != 2 or array.shape[1] not in columns or array.dtype.kind not in "fiu":
        wanted = " or ".join(map(str, sorted(columns)))
        raise UnreadableFile(path, f"has {name} of shape {array.shape} and type {array.dtype}, expected "
                                   f"numbers (frames, {wanted})")
    bad = first_absurd(array)
    if bad is not None:
        raise UnreadableFile(path, f"holds NaN, infinite values or values above {LARGEST:.0e} in {name}, "
                                   f"first in frame {bad}")
    return array.astype(np.float64)


def _word(array):
    """The only value of an array, a number, text or bytes, as text; of others their shape."""
    if array.size != 1:
        return f"of shape {array.shape}"
    value = array.item()
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _family(path, content, joints):
    """The family of models that a file belongs to: as it says, else by the number of its joints."""
    if "surface_model_type" in content:
        said = _word(content["surface_model_type"])
        family = said.split("_")[0]  # smplx_locked_head
        if family not in FAMILIES:
            raise UnreadableFile(path, f"says that its body model is '{said}'; known are "
                                       f"{', '.join(FAMILIES)}")
        return family
    known = {count: family for family, count in FAMILIES.items()}
    return known.get(joints, "smplx" if "poses" not in content else "smplh")
