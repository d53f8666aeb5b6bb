"""BVH files: a hierarchy of joints, and Euler angles (and positions) per frame.

Read here rather than by a package, since those at hand refuse what real files hold: positions on every joint
(Xsens, MotionBuilder), joints of one or two axes, names in latin-1. Shapes: T frames, J joints with the ends
of the chains ("End Site", named PARENT_End) among them, C channels. Lengths are in the file's unit.
"""
import re
import warnings
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from utils.arrays import LARGEST, first_absurd
from utils.errors import UnreadableFile
from utils.files import check_no_pipe
from utils.motion.resampling import at_times, sample_times, slerp

MOST_BYTES = 2 ** 28
MOST_NODES = 2000
LONGEST_NAME = 200
CHANNEL = re.compile(r"([XYZ])(position|rotation)", re.IGNORECASE)


class BvhError(UnreadableFile):
    """A file that cannot be read."""


class Node(NamedTuple):
    """A joint. parent: number, -1 of the root; offset (3,); channels: [("x", "position" or "rotation")];
    end: whether it only ends a chain."""

    name: str
    parent: int
    offset: list
    channels: list
    end: bool


class Bvh(NamedTuple):
    """A file. values (T, C): angles in degrees."""

    nodes: list
    values: np.ndarray
    fps: float

    @property
    def names(self):
        return [node.name for node in self.nodes]

    @property
    def parents(self):
        return [node.parent for node in self.nodes]


def read_bvh(path):
    """The Bvh in a file. BvhError where it is missing, damaged, too large, without frames or root positions,
    or of several people."""
    try:
        check_no_pipe(path)
        if path.stat().st_size > MOST_BYTES:
            raise BvhError(path, f"has more than {MOST_BYTES >> 20} MB; cut the recording into clips")
        data = path.read_bytes()
    except OSError as error:
        absent = isinstance(error, FileNotFoundError)
        raise BvhError(path, f"cannot be read ({error.strerror})", absent) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    try:
        hierarchy, motion = _parts(text)
        nodes = _hierarchy(hierarchy)
        return Bvh(nodes, *_motion(motion, nodes))
    except _Fault as fault:
        raise BvhError(path, str(fault)) from None


def positions(bvh, fps=None):
    """Joint positions (T, J, 3). ``fps``: frames per second to resample to, by the shortest rotation between
    two frames, so that bones keep their lengths; None = the file's own."""
    times, wanted = sample_times(len(bvh.values), bvh.fps, fps)
    out, turned, place = np.zeros((len(wanted), len(bvh.nodes), 3)), [], 0
    for joint, node in enumerate(bvh.nodes):
        values = bvh.values[:, place : place + len(node.channels)]
        place += len(node.channels)
        offset, rotation = _local(node, values, times, wanted)
        if node.parent < 0:
            out[:, joint] = offset
        else:
            out[:, joint] = out[:, node.parent] + turned[node.parent].apply(offset)
            rotation = turned[node.parent] if rotation is None else turned[node.parent] * rotation
        turned.append(Rotation.identity(len(wanted)) if rotation is None else rotation)
    return out


def rest_positions(bvh):
    """Joint positions (J, 3) with all angles 0, the root at 0."""
    out = np.zeros((len(bvh.nodes), 3))
    for joint, node in enumerate(bvh.nodes[1:], 1):
        out[joint] = out[node.parent] + node.offset
    return out


def _local(node, values, times, wanted):
    """Offset from the parent (T, 3) and rotation (a Rotation of T, or None) of a joint at the ``wanted``
    times. Positions replace the offset."""
    offset = np.tile(np.array(node.offset, np.float64), (len(wanted), 1))
    axes = "".join(axis for axis, kind in node.channels if kind == "rotation")
    for column, (axis, kind) in zip(values.T, node.channels):
        if kind == "position":
            offset[:, "xyz".index(axis)] = at_times(column, times, wanted)
    if not axes:
        return offset, None
    angles = values[:, [kind == "rotation" for _, kind in node.channels]]
    rotation = Rotation.from_euler(axes.upper(), angles if len(axes) > 1 else angles[:, 0], degrees=True)
    return offset, slerp(rotation, times, wanted)


class _Fault(Exception):
    """What is wrong with a file."""


def _parts(text):
    """The lines of the hierarchy, braces on lines of their own, and the text of the motion."""
    if not text.lstrip().upper().startswith("HIERARCHY"):
        raise _Fault("is not a BVH file: it does not begin with HIERARCHY")
    if "\0" in text:
        raise _Fault("holds NUL bytes, so it is damaged")
    mark = re.search(r"^[ \t]*MOTION[ \t]*\r?$", text, re.MULTILINE | re.IGNORECASE)
    if not mark:
        raise _Fault("has no MOTION, so it is cut off or holds a skeleton alone")
    lines = re.sub(r"([{}])", r"\n\1\n", text[: mark.start()]).splitlines()
    return [line.strip() for line in lines if line.strip()][1:], text[mark.end() :]


def _hierarchy(lines):
    """[Node]."""
    nodes, above, opened = [], [], False  # opened: a joint was named and its { is awaited
    for line in lines:
        word, *rest = line.split(maxsplit=1)
        key, rest = word.upper(), "".join(rest)
        if key in ("ROOT", "JOINT", "END"):
            nodes.append(_new_node(key, rest, nodes, above))
            opened = True
        elif key == "{" and opened:
            above.append(len(nodes) - 1)
            opened = False
        elif key == "}" and above:
            above.pop()
        elif key in ("OFFSET", "CHANNELS") and above:
            node = nodes[above[-1]]
            nodes[above[-1]] = (node._replace(offset=_offset(rest, node)) if key == "OFFSET" else
                                node._replace(channels=_channels(rest, node)))
        else:
            raise _Fault(f"has '{line[:40]}' in its hierarchy, where that cannot be")
    if above or opened or not nodes:
        raise _Fault("has a hierarchy that is cut off")
    _check(nodes)
    return nodes


def _new_node(key, name, nodes, above):
    if (key == "ROOT") != (not above):
        raise _Fault(f"has '{key} {name[:40]}' {'within another joint' if above else 'outside of any ROOT'}")
    if key == "ROOT" and nodes:
        raise _Fault(f"has two roots, '{nodes[0].name}' and '{name}'; keep one person per file")
    if len(nodes) == MOST_NODES:
        raise _Fault(f"has more than {MOST_NODES} joints")
    if len(name) > LONGEST_NAME:
        raise _Fault(f"has a joint with a name of {len(name)} characters")
    parent = above[-1] if above else -1
    if key == "END":
        name = f"{nodes[parent].name}_End"
    return Node(name, parent, None, None, key == "END")


def _check(nodes):
    names = [node.name for node in nodes if not node.end]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise _Fault(f"has two joints '{repeated}'; give them different names")
    for number, node in enumerate(nodes):
        if not node.name:
            raise _Fault("has a joint without a name")
        if node.offset is None:
            raise _Fault(f"has no OFFSET of '{node.name}'")
        if node.channels is None and not node.end:
            raise _Fault(f"has no CHANNELS of '{node.name}'")
        nodes[number] = node._replace(channels=node.channels or [])
    if [kind for _, kind in nodes[0].channels].count("position") < 3:
        raise _Fault(f"has no position channels of its root '{nodes[0].name}', so where the body is, is not "
                     "recorded")


def _offset(text, node):
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        values = []
    if len(values) != 3 or not (np.abs(values) < LARGEST).all():
        raise _Fault(f"has 'OFFSET {text[:40]}' of '{node.name}', not three numbers")
    return values


def _channels(text, node):
    count, *words = text.split() or [""]
    found = [CHANNEL.fullmatch(word) for word in words]
    channels = [(match[1].lower(), match[2].lower()) for match in found if match]
    if not count.isdigit() or int(count) != len(channels) or len(channels) != len(words) or (
            len(set(channels)) < len(channels)):
        raise _Fault(f"has 'CHANNELS {text[:60]}' of '{node.name}', which is not a number and as many "
                     "different channels, of a position or rotation each")
    return channels


def _motion(text, nodes):
    """Values (T, C), and frames per second."""
    head = re.match(r"\s*Frames:?\s+(\S+)\s+Frame\s+Time:?\s+(\S+)", text, re.IGNORECASE)
    if not head:
        raise _Fault("has no 'Frames:' and 'Frame Time:' after MOTION")
    try:
        count, seconds = int(head[1]), float(head[2])
    except ValueError:
        raise _Fault(f"has 'Frames: {head[1][:40]}', 'Frame Time: {head[2][:40]}', which are not numbers of "
                     "use") from None
    if count < 1:
        raise _Fault("has 0 frames")
    if not 1e-4 <= seconds <= 10:
        raise _Fault(f"has a frame time of {seconds:g} seconds")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # what numpy says where the text is no number
        try:
            values = np.fromstring(text[head.end() :], sep=" ")
        except (DeprecationWarning, ValueError):
            raise _Fault("has something other than numbers in its frames") from None
    channels = sum(len(node.channels) for node in nodes)
    if len(values) != count * channels:
        less = len(values) < count * channels
        raise _Fault(f"is {'cut off' if less else 'longer than it says'}: {count} frames of {channels} "
                     f"channels are {count * channels} numbers, it holds {len(values)}")
    values = values.reshape(count, channels)
    bad = first_absurd(values)
    if bad is not None:
        raise _Fault(f"holds NaN, infinite values or values above {LARGEST:.0e}, first in frame {bad}")
    rate = 1 / seconds
    return values, float(round(rate)) if rate > 1 and abs(rate / round(rate) - 1) < 1e-4 else rate  # 0.033333
