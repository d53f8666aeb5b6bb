"""C3D files: named points per frame, of which those that are joints are read. Analog channels are ignored.

Read with the package c3d, which is Python alone: a damaged file ends in an exception, where ezc3d, in C++,
may end the process. Shapes: T frames, N points.
"""
import itertools
import warnings
from typing import NamedTuple

import numpy as np

from utils.errors import UnreadableFile, UserError
from utils.files import check_no_pipe, first_line

METRES = {"m": 1.0, "dm": 0.1, "cm": 0.01, "mm": 0.001, "in": 0.0254}  # of POINT:UNITS
RATES = (1, 2000)  # frames per second
LONGEST_GAP = 0.1  # seconds; a body part that speeds up by 10 m/s^2 is at most 13 mm off a straight line
ADVICE = ("markers on the skin are not joints: export the joint centres that your software solves as points "
          "of the C3D, or a solved skeleton as BVH")


class Points(NamedTuple):
    """Points of a file. positions (T, N, 3) in the file's unit; fps; unit: metres per unit, None if the file
    does not say."""

    positions: np.ndarray
    fps: float
    unit: float


def check_package():
    """UserError where the package that reads C3D is not installed."""
    try:
        import c3d  # noqa: F401
    except ImportError as error:
        raise UserError("C3D files are read with the package c3d, which is not installed here; install it as "
                        "pinned: pip install -r requirements.txt") from error


def read_c3d(path, wanted):
    """The Points with the labels ``wanted``; a label in the file may have its subject before a colon, as in
    "anna:Hips". Gaps of at most LONGEST_GAP are filled along straight lines. UnreadableFile where the file is
    missing or damaged, lacks a point or has it twice, or has a longer gap."""
    check_package()
    import c3d

    try:
        check_no_pipe(path)
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ends of files, checked below, and files without analog channels
            reader = c3d.Reader(file)
            labels, rate, unit = _labels(reader), float(reader.point_rate), _text(reader, "POINT:UNITS")
            columns = _find(path, labels, wanted)
            count = _frame_count(reader)
            frames = [points[columns] for _, points, _ in itertools.islice(reader.read_frames(), count)]
    except UnreadableFile:
        raise
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise UnreadableFile(path, f"cannot be read ({error.strerror})", missing) from error
    except Exception as error:  # damage can raise anything
        raise UnreadableFile(path, f"cannot be read ({first_line(error)})") from error
    if len(frames) < count or count < 1:
        raise UnreadableFile(path, f"is cut off: it says {count} frames and holds {len(frames)}")
    if not RATES[0] <= rate <= RATES[1]:
        raise UnreadableFile(path, f"has {rate:g} frames per second")
    points = np.stack(frames).astype(np.float64)
    # What was not seen has the residual -1; some programs leave it at the origin.
    seen = (points[..., 3] >= 0) & points[..., :3].any(-1)
    return Points(_filled(path, points[..., :3], seen, wanted, rate), rate, METRES.get(unit.lower()))


def _labels(reader):
    """Names of the file's points, without the subjects that they all may have."""
    names = []
    for key in itertools.chain(["POINT:LABELS"], (f"POINT:LABELS{number}" for number in itertools.count(2))):
        parameter = reader.get(key)
        if parameter is None or len(parameter.dimensions) != 2 or not parameter.dimensions[0]:
            return names[: reader.point_used]
        width, text = int(parameter.dimensions[0]), bytes(parameter.bytes)
        names += [_decoded(text[start : start + width]) for start in range(0, len(text), width)]


def _text(reader, key):
    parameter = reader.get(key)
    return "" if parameter is None else _decoded(bytes(parameter.bytes))


def _decoded(text):
    return text.decode("latin-1").strip(" \0")


def _frame_count(reader):
    """Frames that the file should have. The package counts wrong where the first is beyond 65,535."""
    start, first = reader.get("TRIAL:ACTUAL_START_FIELD"), reader.first_frame
    if start is not None:
        low, high = (int(word) for word in start.uint16_array[:2])
        first = low + 65536 * high
    return reader.last_frame - first + 1


def _find(path, labels, wanted):
    """Numbers of the ``wanted`` among a file's ``labels``."""
    plain = [label.split(":")[-1] for label in labels]
    absent = [name for name in wanted if name not in labels and name not in plain]
    if absent:
        what = (f"the point '{absent[0]}'" if len(absent) == 1 else
                f"{len(absent)} of {len(wanted)} points, '{absent[0]}' the first")
        raise UnreadableFile(path, f"lacks {what} (it has {', '.join(labels[:6]) or 'none'} ...); name them "
                                   f"in the skeleton file or with --map; {ADVICE}")
    found = []
    for name in wanted:
        names = labels if name in labels else plain
        if names.count(name) > 1:
            raise UnreadableFile(path, f"has {names.count(name)} points '{name}'; keep one person per file")
        found.append(names.index(name))
    return found


def _filled(path, points, seen, wanted, rate):
    """Points (T, N, 3) of which those not ``seen`` (T, N) are interpolated."""
    frames = np.arange(len(points))
    for number, name in enumerate(wanted):
        there = frames[seen[:, number]]
        gaps = np.diff(there, prepend=-1, append=len(points)) - 1  # missing before each, and after the last
        if gaps[0] or gaps[-1]:
            where, count = ("first", gaps[0]) if gaps[0] else ("last", gaps[-1])
            raise UnreadableFile(path, f"lacks the point '{name}' in the {where} {count} frames; cut the "
                                       "recording to where all joints are seen")
        longest = int(gaps.argmax())
        if gaps[longest] > LONGEST_GAP * rate:
            raise UnreadableFile(path, f"has a gap of {gaps[longest] / rate:.2f} s in the point '{name}', "
                                       f"from frame {there[longest - 1] + 1}; gaps of up to {LONGEST_GAP:g} "
                                       "s are filled")
        if gaps.any():
            for axis in range(3):
                points[:, number, axis] = np.interp(frames, there, points[there, number, axis])
    return points
