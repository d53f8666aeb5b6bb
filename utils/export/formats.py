"""Motions to the files of other software: the table of formats, and the writing of a clip in several."""
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.export.bvh import write_bvh
from utils.export.glb import write_glb
from utils.export.smpl import check_layout, write_npz
from utils.export.tables import write_csv
from utils.files import atomic_write
from utils.motion.features import MotionError
from utils.motion.rotations import forward, rig_motion
from utils.motion.skeletons import Skeleton

FORMATS = {"bvh": write_bvh, "glb": write_glb, "npz": write_npz, "csv": write_csv}


@dataclass(frozen=True)
class Clip:
    """A clip to be written. joints: (T, J, 3) in metres, Y up, of ``skeleton``; fps: frames per second."""

    name: str
    joints: np.ndarray
    skeleton: Skeleton
    fps: float

    @cached_property
    def motion(self):
        """The RigMotion. UserError where a bone has no length or the joints are not in metres."""
        try:
            return rig_motion(self.joints, self.skeleton)
        except MotionError as error:
            raise UserError(f"{self.name} cannot be exported: {error}") from error

    def deviation(self):
        """(mean, largest) distance in metres between the clip's joints and the rig's."""
        far = np.linalg.norm(forward(self.motion)[:, self.motion.rig.own] - self.joints, axis=-1)
        return far.mean(), far.max()


def add_formats(parser, flag, **settings):
    """The flag that chooses formats; settings: its default and help."""
    parser.add_argument(flag, nargs="+", choices=list(FORMATS), **settings)


def check_formats(formats, skeleton):
    """UserError if one of the formats cannot hold the skeleton's clips."""
    if "npz" in formats:
        check_layout(skeleton)


def export_clip(clip, folder, formats):
    """Write a Clip as ``folder``/``clip.name``.FORMAT in each of the formats; returns the paths. UserError
    where a file of that name exists and holds something else, and as ``check_formats``, ``Clip.motion``."""
    check_formats(formats, clip.skeleton)
    paths = []
    for name in dict.fromkeys(formats):
        path = Path(folder) / f"{clip.name}.{name}"
        with atomic_write(path) as temporary:
            FORMATS[name](clip, temporary)
            if path.exists() and path.read_bytes() != temporary.read_bytes():
                raise UserError(f"{path} exists and is of another clip or of other settings; remove it, or "
                                "pass another --output_dir")
        paths.append(path)
    return paths
