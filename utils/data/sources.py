"""Where prepare_dataset reads motion from: joints/ID.npy or bvh/ID.bvh of a source folder.

Shapes: T frames, J joints of the skeleton.
"""
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.arrays import UnreadableArray, load_array
from utils.errors import UserError
from utils.motion.bvh import BvhError, positions, read_bvh
from utils.motion.features import MotionError
from utils.motion.guessing import guess_unit, upright
from utils.motion.skeletons import Skeleton, way_from_root

KINDS = {"joints": ".npy", "bvh": ".bvh"}
SAID = ("A C3D file holds markers on the skin, not joints: solve a skeleton with the software that recorded "
        "it, and export BVH",
        "An AMASS file holds rotations of SMPL, whose joints need that licensed body model: make "
        "joints/ID.npy (frames, 22, 3) with the package smplx (joints[:, :22]), and pass --up z")


class Source(NamedTuple):
    """A folder of clips. kind: of KINDS; scale: the skeleton's units of length per unit of the files; up:
    their axis, "y" or "z"; fps: what BVH files are resampled to."""

    folder: Path
    kind: str
    skeleton: Skeleton
    scale: float
    up: str
    fps: float

    def names(self):
        """The ids of all clips in the folder."""
        return sorted(path.stem for path in (self.folder / self.kind).glob(f"*{KINDS[self.kind]}"))

    def read(self, name):
        """Joints (T, J, 3) with Y up of a clip, and None; or None and why it cannot be used."""
        try:
            return self.joints(name), None
        except (UnreadableArray, BvhError) as error:
            return None, f"has no {self.kind} file" if error.missing else f"{self.kind} {error.reason}"
        except MotionError as error:
            return None, str(error)

    def joints(self, name):
        """As ``read``, or UserError."""
        path = self.folder / self.kind / f"{name}{KINDS[self.kind]}"
        joints = load_array(path) if self.kind == "joints" else self._of_bvh(read_bvh(path))
        if joints.ndim == 3 and joints.shape[2] == 3 and joints.dtype.kind in "fiu":  # others: see features
            joints = upright(joints, self.up)
            joints = joints if self.scale == 1 else joints * self.scale
        return joints

    def _of_bvh(self, bvh):
        numbers = {name: joint for joint, name in reversed(list(enumerate(bvh.names)))}
        wanted = self.skeleton.joint_names
        absent = [name for name in wanted if name not in numbers]
        if absent:
            raise MotionError(f"bvh lacks the joint '{absent[0]}' of the {self.skeleton.name} skeleton; it "
                              f"has {', '.join(bvh.names[:6])} ...")
        found = [numbers[name] for name in wanted]
        for joint, parent in list(enumerate(self.skeleton.parents))[1:]:
            if found[parent] not in way_from_root(bvh.parents, found[joint])[:-1]:
                raise MotionError(f"bvh has the joint '{wanted[joint]}' elsewhere than below "
                                  f"'{wanted[parent]}': it is another hierarchy")
        return positions(bvh, self.fps)[:, found]


def kind_of(folder):
    """"joints" or "bvh", by what the source folder has. UserError where it has neither, or both."""
    found = [kind for kind in KINDS if (folder / kind).is_dir()]
    if len(found) == 2:
        raise UserError(f"{folder} has both joints/ and bvh/; keep one")
    if found:
        return found[0]
    others = {path.suffix.lower() for path in folder.glob("*")} | {
        path.suffix.lower() for path in folder.glob("*/*")}
    said = [line for suffix, line in zip((".c3d", ".npz"), SAID) if suffix in others]
    raise UserError(f"{folder} has no folder joints/ or bvh/. {said[0]}" if said else
                    f"{folder} has no folder joints/ (or bvh/)")


def unit_of(source, names):
    """(scale, in words) of BVH files, guessed by the size of the first of the clips that can be read."""
    for name in names:
        joints, _ = source._replace(scale=1.0).read(name)
        if joints is not None:
            break
    else:
        return 1.0, "not known, as no clip can be read"
    skeleton = source.skeleton
    lengths = np.zeros(skeleton.num_joints)
    for parent, child in skeleton.bones:
        lengths[child] = np.linalg.norm(joints[:, child] - joints[:, parent], axis=-1).mean()
    ways = [skeleton.way_to(joint)[1:] for joint in range(skeleton.num_joints)]
    above = max(lengths[way].sum() for joint, way in enumerate(ways) if skeleton.side(joint) == "centre")
    return guess_unit(float(above + lengths[ways[skeleton.left_feet[-1]]].sum()))
