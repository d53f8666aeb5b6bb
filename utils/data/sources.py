"""Where prepare_dataset reads motion from: joints/ID.npy, bvh/ID.bvh, c3d/ID.c3d or amass/.../ID.npz of a
source folder.

Shapes: T frames, J joints of the skeleton.
"""
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.arrays import load_array
from utils.data.humanml3d_index import read_index
from utils.data.specs import KNOWN
from utils.errors import UnreadableFile, UserError
from utils.motion import amass
from utils.motion.body_models import WHERE, check_models, find_model
from utils.motion.bvh import positions, read_bvh
from utils.motion.c3d_files import check_package, read_c3d
from utils.motion.features import MotionError
from utils.motion.guessing import guess_unit, up_of, upright
from utils.motion.resampling import at_times, sample_times
from utils.motion.skeletons import Skeleton, way_from_root

KINDS = {"joints": ".npy", "bvh": ".bvh", "c3d": ".c3d", "amass": ".npz"}
LAYOUT = amass.LAYOUT
PAIRS = [LAYOUT.joint_names.index(name.replace("Left", "?").replace("Right", "Left").replace("?", "Right"))
         for name in LAYOUT.joint_names]  # the joint on the other side


class Source(NamedTuple):
    """A folder of clips. kind: of KINDS; scale: the skeleton's units of length per unit of the files, None =
    as C3D files say; up: their axis, "y" or "z"; fps: what all but joints/ are resampled to; labels: {joint:
    its name in the files}; body_models: folder of those that AMASS files need; index: HumanML3D's index.csv,
    or None."""

    folder: Path
    kind: str
    skeleton: Skeleton
    scale: float
    up: str
    fps: float
    labels: dict = None
    body_models: Path = None
    index: Path = None

    def names(self):
        """The ids of all clips in the folder."""
        if self.index:
            return sorted(read_index(self.index))
        return sorted(_files(self.folder / self.kind, KINDS[self.kind]))

    def read(self, name):
        """Joints (T, J, 3) with Y up of a clip, and None; or None and why it cannot be used."""
        try:
            return self.joints(name), None
        except UnreadableFile as error:
            return None, f"has no {self.kind} file" if error.missing else f"{self.kind} {error.reason}"
        except MotionError as error:
            return None, str(error)

    def joints(self, name):
        """As ``read``, or UserError."""
        joints, scale = getattr(self, f"_of_{self.kind}")(name)
        if joints.ndim == 3 and joints.shape[2] == 3 and joints.dtype.kind in "fiu":  # others: see features
            joints = upright(joints, self.up)
            joints = joints if scale == 1 else joints * scale
        return joints

    def path(self, name):
        """The file of a clip, which may be missing."""
        return self.folder / self.kind / f"{name}{KINDS[self.kind]}"

    def named(self):
        """The skeleton's joints as the files call them."""
        return [(self.labels or {}).get(name, name) for name in self.skeleton.joint_names]

    def _of_joints(self, name):
        return load_array(self.path(name)), self.scale

    def _of_bvh(self, name):
        bvh, wanted = read_bvh(self.path(name)), self.named()
        numbers = {joint: number for number, joint in reversed(list(enumerate(bvh.names)))}
        absent = [joint for joint in wanted if joint not in numbers]
        if absent:
            raise MotionError(f"bvh lacks the joint '{absent[0]}' of the {self.skeleton.name} skeleton; it "
                              f"has {', '.join(bvh.names[:6])} ...")
        found = [numbers[joint] for joint in wanted]
        for joint, parent in list(enumerate(self.skeleton.parents))[1:]:
            if found[parent] not in way_from_root(bvh.parents, found[joint])[:-1]:
                raise MotionError(f"bvh has the joint '{wanted[joint]}' elsewhere than below "
                                  f"'{wanted[parent]}': it is another hierarchy")
        return positions(bvh, self.fps)[:, found], self.scale

    def _of_c3d(self, name):
        points = read_c3d(self.path(name), self.named())
        joints = at_times(points.positions, *sample_times(len(points.positions), points.fps, self.fps))
        if self.scale is not None:
            return joints, self.scale
        if points.unit is None:
            raise MotionError("c3d does not say its unit (POINT:UNITS: m, cm, mm ...); pass --scale")
        return joints, points.unit / KNOWN.get(self.skeleton.name, {}).get("metres_per_unit", 1)

    def _of_amass(self, name):
        path, cut = self.path(name), None
        if self.index:
            cut = read_index(self.index).get(name)
            if cut is None:
                raise MotionError(f"is not in {self.index}")
            path = self.folder / self.kind / cut.file
        elif not path.is_file():
            path = _only(_files_once(self.folder / self.kind, KINDS[self.kind]).get(name, [path]))
        recording = amass.read_amass(path)
        if cut:
            recording = recording.cut(*cut.frames(recording.fps))
            if not len(recording.trans):
                raise MotionError(f"amass {cut.file} ends before the cut of {self.index} begins")
        model = find_model(self.body_models, recording.family, recording.gender)
        joints = amass.positions(recording, model, self.fps)
        return joints[:, PAIRS] * [-1, 1, 1] if cut and cut.mirrored else joints, self.scale


def _files(folder, suffix):
    """{id: [path]} of a folder; for .npz also of those in it, which may have files of one name."""
    found = {}
    for path in folder.glob(f"**/*{suffix}" if suffix == KINDS["amass"] else f"*{suffix}"):
        found.setdefault(path.stem, []).append(path)
    return found


_files_once = cache(_files)  # a search for every clip would be slow in the many folders of AMASS


def _only(paths):
    if len(paths) > 1:
        one, other = sorted(paths)[:2]
        raise MotionError(f"is the name of {len(paths)} files ({one}, {other} ...); give them different "
                          "names, or pass --index")
    return paths[0]


def kind_of(folder):
    """Of KINDS, by what the source folder has. UserError where it has none of them, or several."""
    found = [kind for kind in KINDS if (folder / kind).is_dir()]
    if len(found) > 1:
        raise UserError(f"{folder} has both {found[0]}/ and {found[1]}/; keep one")
    if found:
        return found[0]
    others = {path.suffix.lower() for path in folder.glob("*")} | {
        path.suffix.lower() for path in folder.glob("*/*")}
    said = next((f"; its {suffix} files belong into {kind}/" for kind, suffix in KINDS.items()
                 if suffix in others), "")
    raise UserError(f"{folder} has no folder joints/ (or bvh/, c3d/, amass/){said}")


def check_source(kind, skeleton, body_models, index, labels):
    """UserError for what does not go together, and where something that the kind needs is missing."""
    for flag, given, kinds in (("--body_models", body_models, ("amass",)), ("--index", index, ("amass",)),
                               ("--map", labels, ("bvh", "c3d"))):
        if given is not None and kind not in kinds:
            raise UserError(f"{flag} goes with {'/ or '.join(kinds)}/, and the source has {kind}/")
    if kind == "c3d":
        check_package()
    if kind != "amass":
        return
    if skeleton != LAYOUT:
        raise UserError(f"amass/ gives the joints of --skeleton {LAYOUT.name}, not those of {skeleton.name}")
    if body_models is None:
        raise UserError("amass/ holds rotations, and joints need a body model: pass --body_models FOLDER; "
                        f"{WHERE}; joints/ID.npy need none")
    check_models(body_models)
    if index is not None:
        read_index(index)


def some_clip(source, names):
    """Joints (T, J, 3) of the first of the clips that can be read, or None."""
    return next((joints for joints, _ in map(source.read, names) if joints is not None), None)


def unit_of(source, names):
    """(scale, in words) of BVH files, guessed by the size of the first of the clips that can be read."""
    joints = some_clip(source._replace(scale=1.0), names)
    if joints is None:
        return 1.0, "not known, as no clip can be read"
    skeleton = source.skeleton
    lengths = np.zeros(skeleton.num_joints)
    for parent, child in skeleton.bones:
        lengths[child] = np.linalg.norm(joints[:, child] - joints[:, parent], axis=-1).mean()
    ways = [skeleton.way_to(joint)[1:] for joint in range(skeleton.num_joints)]
    above = max(lengths[way].sum() for joint, way in enumerate(ways) if skeleton.side(joint) == "centre")
    return guess_unit(float(above + lengths[ways[skeleton.left_feet[-1]]].sum()))


def up_axis_of(source, names):
    """"y" or "z": the up axis of C3D files, guessed from the first of the clips that can be read."""
    joints = some_clip(source._replace(up="y"), names)
    trunk = [joint for joint in range(source.skeleton.num_joints) if source.skeleton.side(joint) == "centre"]
    return "y" if joints is None else up_of(joints[:, trunk])
