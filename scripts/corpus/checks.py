"""Whether the result of a command is right for a file that was damaged: functions (target) -> what is wrong,
or None; target: the file. They read files with numpy and json alone, not with the code that they judge.
"""
import base64
import itertools
import json
import re
from pathlib import Path

import numpy as np


def plain_array(path):
    """The array in a .npy file as numpy reads it, or None."""
    try:
        array = np.load(path, allow_pickle=False)
        return array if array.dtype.kind in "fiub" else None
    except Exception:  # numpy raises anything
        return None


def joints_in(target):
    """Joints (T, 22, 3) that a command may work with, or None."""
    array = plain_array(target)
    usable = array is not None and array.ndim == 3 and array.shape[1:] == (22, 3) and len(array)
    return array if usable and np.isfinite(array).all() else None


def needs_joints(check):
    """A check (joints, target) of commands that need whole joints."""
    def checked(target):
        target = target.with_suffix(".npy")
        joints = joints_in(target)
        return "a result of a file that holds no joints" if joints is None else check(joints, target)

    return checked


@needs_joints
def check_csv(joints, target):
    rows = np.loadtxt(target.with_suffix(".csv"), delimiter=",", skiprows=1, ndmin=2)[:, 2:]
    return None if np.allclose(rows, joints.reshape(len(joints), -1), rtol=1e-5,
                               atol=1e-6) else "other joints"


@needs_joints
def check_feet(joints, target):
    clean = np.load(target.with_name("walk_clean.npy"))
    upper = [0, 3, 6, 9, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]
    return None if np.array_equal(clean[:, upper], joints[:, upper]) else "the upper body has changed"


@needs_joints
def check_page(joints, target):
    data = re.search(r'(\{"title":.*\})', target.with_name("view.html").read_text()).group(1)
    clip, = json.loads(data)["clips"]
    points = np.frombuffer(base64.b64decode(clip["points"]), "<u2").reshape(len(joints), -1, 3)
    shown = (points * clip["step"] + clip["low"] - [0, clip["shift"], 0]) / clip["scale"]
    off = np.abs(shown[:, :22] - joints).max()
    return None if off <= 1e-4 * max(np.ptp(joints), 1) else "other joints"


@needs_joints
def check_edit(joints, _target):
    made, = Path("generation").glob("*/*.npy")
    kept = np.r_[0:20, 40 : len(joints)]
    return None if np.array_equal(np.load(made)[kept], joints[kept]) else "kept frames have changed"


@needs_joints
def check_start(joints, _target):
    made, = Path("generation").glob("*/*.npy")
    return None if np.array_equal(np.load(made)[0], joints[-1]) else "it begins in another pose"


def check_finite(_target):
    """What was written is finite."""
    for path in itertools.chain(Path("generation").rglob("*.npy"), Path("out").rglob("*.npy")):
        if not np.isfinite(np.load(path)).all():
            return f"{path} is not finite"
    return None


@needs_joints
def check_retargeted(joints, _target):
    return check_finite(_target) if len(np.load("out/walk.npy")) == len(joints) else "other frames"


def said(name):
    """Whether the command has named something on stdout or stderr."""
    return any(name in Path(file).read_text("utf-8", "replace") for file in ("stdout", "stderr"))


def check_features(target):
    """A clip of a data set that numpy cannot read, or that is not finite, is named."""
    array = plain_array(target)
    usable = (array is not None and array.ndim == 2 and len(array) and array.shape[1] >= 67
              and np.isfinite(array[:, :67]).all())
    return None if usable or said(target.stem) else "a clip was left out without a word"


def check_split(target):
    """Ids without a clip are named, and none leads out of the folder."""
    try:
        ids = target.read_bytes().decode("utf-8-sig").split()
    except ValueError:
        return "a list that is no text was read"
    if any(".." in name.split("/") or name.startswith("/") for name in ids):
        return "an id led out of the folder"
    lost = [name for name in ids if not (target.parent / "new_joint_vecs" / f"{name}.npy").is_file()]
    return None if all(map(said, lost[:5])) else "clips were left out without a word"


def check_prepared(target):
    """A clip of a source that cannot be used is named in report.json; the others are there."""
    report = json.loads(Path("datasets/new/report.json").read_text())
    known = target.stem in report["unusable"]
    array = plain_array(target)
    usable = joints_in(target) is not None and len(array) > 1
    if not usable and not known:
        return "an unusable clip is not in the report"
    return None if report["clips"]["train"] == 4 - known else "other clips were left out"


def caption_lines(target):
    """The captions of a text file by its rule, or None where it holds none."""
    try:
        lines = [line.split("#") for line in target.read_bytes().decode("utf-8-sig").splitlines()]
        tags = [float(tag or 0) for line in lines for tag in line[2:4]]
    except (OSError, ValueError):
        return None
    found = [line[0].strip() for line in lines if line[0].strip()]
    return found if found and not any(map(np.isinf, tags)) and "\0" not in "".join(found) else None


def check_captions(target):
    return None if caption_lines(target) or said(target.stem) else "captions were lost without a word"


def check_prompts(target):
    """Each line has a clip, whose facts hold its prompt."""
    lines = [line for line in target.read_bytes().decode("utf-8-sig").splitlines() if line.strip()]
    wanted = [line.strip().rpartition("#")[0].strip() or line.strip() for line in lines]
    facts = [json.loads(path.read_text()) for path in sorted(Path("generation").glob("*/*.json"))]
    return None if [fact["prompt"] for fact in facts] == wanted else "other prompts"


def check_bvh(_target):
    """The description has a joint for every one of the file."""
    text = Path("walk.bvh").read_bytes().decode("latin-1")
    names = set(re.findall(r"(?:ROOT|JOINT)\s+(.+?)\s*[\n{]", text))
    found = {joint["name"] for joint in json.loads(Path("made.json").read_text())["joints"]}
    return None if {name for name in found if not name.endswith("_End")} <= names else "joints of its own"
