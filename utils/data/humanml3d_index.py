"""HumanML3D's index.csv: which part of which AMASS file each of its clips is.

A row is source_path,start_frame,end_frame,new_name, as in ./pose_data/KIT/3/kick_high_left02_poses.npy,0,117,
000000.npy. Frames are those that are left when every Nth is kept, N = the whole part of the file's rate / 20,
and the beginnings of some subsets are dropped, where the body stands in a calibration pose. A clip M000000 is
the mirror image of 000000.
"""
import csv
import io
from functools import cache
from pathlib import PurePosixPath
from typing import NamedTuple

from utils.errors import MissingFile, UserError
from utils.files import UnreadableText, read_text

COLUMNS = ("source_path", "start_frame", "end_frame", "new_name")
FPS = 20
DROPPED = {"Eyes_Japan_Dataset": 3.0, "MPI_HDM05": 3.0, "TotalCapture": 1.0, "MPI_Limits": 1.0,
           "Transitions_mocap": 0.5}  # seconds at the beginning, in parts of source_path


class Cut(NamedTuple):
    """A part of a file. file: its path below amass/; start, end: frames at about FPS (end: -1 = the last);
    mirrored."""

    file: str
    start: int
    end: int
    mirrored: bool

    def frames(self, fps):
        """(first, stop) of the file's own frames, of which there are ``fps`` per second."""
        step = max(int(fps / FPS), 1)
        dropped = next((seconds for part, seconds in DROPPED.items() if part in self.file), 0.0)
        before = int(dropped * FPS)
        # The last frame that is kept of the part is its last, so that a clip has as many frames as there.
        stop = (before + self.end - 1) * step + 1 if self.end >= 0 else None
        return (before + self.start) * step, stop


@cache
def read_index(path):
    """{id: Cut}, of mirrored clips too. UserError where the file is missing or of another content."""
    if not path.is_file():
        raise MissingFile(f"--index: no file {path}; HumanML3D's repository has it as index.csv")
    cuts = {}
    try:
        rows = csv.DictReader(io.StringIO(read_text(path)))
        lacking = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
        if lacking:
            raise UserError(f"--index: {path} has no column {lacking[0]}; HumanML3D's index.csv has "
                            f"{', '.join(COLUMNS)}")
        for row in rows:
            cuts |= _cuts_of(row, f"--index: {path}, line {rows.line_num}")
    except (UnreadableText, csv.Error) as error:
        why = getattr(error, "why", error)
        raise UserError(f"--index: {path} is not a CSV file in UTF-8 ({why})") from error
    return cuts


def _cuts_of(row, place):
    """{id: Cut} of a row: a clip and its mirror image."""
    try:
        start, end = int(row["start_frame"]), int(row["end_frame"])
        path, name = PurePosixPath(row["source_path"]), PurePosixPath(row["new_name"]).stem
    except (TypeError, ValueError):
        raise UserError(f"{place} is not a path, two whole numbers and a name") from None
    if start < 0 or -1 > end or 0 <= end <= start:
        raise UserError(f"{place} has frames {start} to {end}")
    parts = path.parts
    if "pose_data" in parts:
        parts = parts[parts.index("pose_data") + 1 :]
    file = str(PurePosixPath(*parts).with_suffix(".npz"))
    return {name: Cut(file, start, end, False), f"M{name}": Cut(file, start, end, True)}
