"""C3D files that ezc3d writes: points, units, axes, gaps, names; damage of every kind; a data set of them."""
import builtins
import json
import random

import ezc3d
import numpy as np
import pytest
from test_motion import circle
from tiny import call

from utils.data.sources import Source
from utils.errors import UnreadableFile
from utils.motion.c3d_files import METRES, read_c3d
from utils.motion.features import joints_to_features
from utils.motion.skeletons import SKELETONS

T2M = SKELETONS["t2m"]
NAMES = list(T2M.joint_names)
FPS = 120.0


def walk(frames=240, side=1):
    """Joints (T, 22, 3) in metres, Y up."""
    return 1.2 * circle(side, turns=0.5, frames=frames)


def z_up(joints):
    return joints[..., [0, 2, 1]] * [1, -1, 1]


def write_c3d(path, points, labels=NAMES, units="mm", fps=FPS, analogs=False, first=0):
    """A file of points (T, N, 3), NaN where they were not seen, in the unit that it says; its path."""
    file = ezc3d.c3d()
    file["parameters"]["POINT"]["RATE"]["value"] = [fps]
    file["parameters"]["POINT"]["LABELS"]["value"] = list(labels)
    file["parameters"]["POINT"]["UNITS"]["value"] = [units] if units else []
    rows = np.ones((4, points.shape[1], len(points)))
    rows[:3] = np.moveaxis(points, (0, 1, 2), (2, 1, 0))
    file["data"]["points"] = rows
    if analogs:
        file["parameters"]["ANALOG"]["RATE"]["value"] = [fps * 8]
        file["parameters"]["ANALOG"]["LABELS"]["value"] = ["force", "current"]
        file["data"]["analogs"] = np.random.default_rng(0).normal(size=(1, 2, len(points) * 8))
    if first:  # the header has 16 bits for a frame's number
        for key, frame in (("ACTUAL_START_FIELD", first), ("ACTUAL_END_FIELD", first + len(points) - 1)):
            file.add_parameter("TRIAL", key, [frame % 65536, frame // 65536])
            file["parameters"]["TRIAL"][key]["type"] = 2  # two words of 16 bits, as Vicon writes them
    path.parent.mkdir(parents=True, exist_ok=True)
    file.write(str(path))
    return path


def source_of(folder, **fields):
    return Source(folder, "c3d", T2M, None, "y", 20.0)._replace(**fields)


# Reading


@pytest.mark.parametrize("unit", [*METRES, "MM", "cm "])
def test_joints_are_in_metres_and_upright(tmp_path, unit):
    joints = walk()
    write_c3d(tmp_path / "c3d/a.c3d", z_up(joints) / METRES[unit.strip().lower()], units=unit)
    read, reason = source_of(tmp_path, up="z").read("a")
    assert reason is None and read.shape == (40, 22, 3) and np.abs(read - joints[::6]).max() < 1e-6
    half, _ = source_of(tmp_path, up="z", scale=METRES[unit.strip().lower()] / 2).read("a")
    assert np.abs(half - joints[::6] / 2).max() < 1e-6  # --scale outranks the file


def test_kit_is_in_millimetres(tmp_path):
    kit = SKELETONS["kit"]
    joints = circle(1, frames=100, skeleton=kit)
    write_c3d(tmp_path / "c3d/a.c3d", joints / 10, kit.joint_names, "cm", kit.fps)
    read = source_of(tmp_path, skeleton=kit, fps=kit.fps).joints("a")
    assert np.abs(read - joints).max() < 1e-3 * np.abs(joints).max()


def test_other_points_other_order_analogs_and_subjects(tmp_path):
    """Markers among the joints, names with the subject before them, a recording that begins late."""
    joints, rng = walk(), np.random.default_rng(0)
    order = rng.permutation(22)
    points = np.concatenate([rng.normal(size=(240, 5, 3)), joints[:, order]], 1) * 1000
    labels = [*(f"anna:LASI{n}" for n in range(5)), *(f"anna:{NAMES[joint]}" for joint in order)]
    for name, settings in (("plain", {}), ("analogs", {"analogs": True}), ("late", {"first": 70_000})):
        write_c3d(tmp_path / f"c3d/{name}.c3d", points, labels, **settings)
        read, reason = source_of(tmp_path).read(name)
        assert reason is None and np.abs(read - joints[::6]).max() < 1e-6, name


def test_names_of_a_map(tmp_path):
    joints = walk()
    labels = {"Hips": "PELO", "LeftUpLeg": "LHJC"}
    write_c3d(tmp_path / "c3d/a.c3d", joints * 1000, [labels.get(name, name) for name in NAMES])
    assert "lacks 2 of 22 points, 'Hips' the first" in source_of(tmp_path).read("a")[1]
    assert np.abs(source_of(tmp_path, labels=labels).joints("a") - joints[::6]).max() < 1e-6


def test_more_points_than_one_parameter_can_name(tmp_path):
    """Beyond 255 labels go on in LABELS2."""
    joints = walk(60)
    points = np.concatenate([np.ones((60, 300, 3)), joints], 1)
    write_c3d(tmp_path / "c3d/a.c3d", points, [*(f"m{n}" for n in range(300)), *NAMES], "m")
    assert np.abs(source_of(tmp_path).joints("a") - joints[::6]).max() < 1e-6


@pytest.mark.parametrize("origin", [False, True])
def test_short_gaps_are_interpolated(tmp_path, origin):
    """Not seen, by its residual or because it lies at the origin."""
    joints = walk()
    points = joints.copy()
    points[30:42, 7] = 0 if origin else np.nan  # 12 frames: a tenth of a second
    points[50, 20] = 0 if origin else np.nan
    path = write_c3d(tmp_path / "a.c3d", points, units="m")
    read = read_c3d(path, NAMES)
    steps = np.linspace(0, 1, 14)[1:-1, None]
    wanted = joints[29, 7] * (1 - steps) + joints[42, 7] * steps
    assert (read.fps, read.unit) == (FPS, 1.0) and np.abs(read.positions[30:42, 7] - wanted).max() < 1e-6
    assert np.abs(read.positions - joints).max() < 0.02
    points[42, 7] = points[30, 7]
    with pytest.raises(UnreadableFile, match="gap of 0.11 s in the point 'LeftFoot', from frame 30; gaps of "
                                             "up to 0.1 s are filled"):
        read_c3d(write_c3d(tmp_path / "b.c3d", points, units="m"), NAMES)


def edge(first, last):
    points = walk()
    points[first:last, 3] = np.nan
    return points


SEVERAL = np.concatenate([walk(), walk()], 1)
BAD = {
    "markers": (lambda path: write_c3d(path, walk()[:, :6], ["LASI", "RASI", "LPSI", "RPSI", "C7", "T10"]),
                "lacks 22 of 22 points, 'Hips' the first (it has LASI, RASI"),
    "one_less": (lambda path: write_c3d(path, walk()[:, 1:], NAMES[1:]), "lacks the point 'Hips' (it has"),
    "two_people": (lambda path: write_c3d(path, SEVERAL, [f"{who}:{n}" for who in "ab" for n in NAMES]),
                   "has 2 points 'Hips'; keep one person per file"),
    "begins_late": (lambda path: write_c3d(path, edge(0, 4)), "the point 'Spine' in the first 4 frames"),
    "ends_early": (lambda path: write_c3d(path, edge(235, 240)), "'Spine' in the last 5 frames"),
    "never": (lambda path: write_c3d(path, edge(0, 240)), "'Spine' in the first 240 frames"),
    "no_unit": (lambda path: write_c3d(path, walk(), units=None), "does not say its unit"),
    "odd_unit": (lambda path: write_c3d(path, walk(), units="furlong"), "does not say its unit"),
    "slow": (lambda path: write_c3d(path, walk(), fps=0.1), "has 0.1 frames per second"),
    "cut_off": (lambda path: path.write_bytes(write_c3d(path, walk()).read_bytes()[:30_000]),
                "is cut off: it says 240 frames and holds"),
    "headless": (lambda path: path.write_bytes(write_c3d(path, walk()).read_bytes()[:700]),
                 "cannot be read ("),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read ("),
    "picture": (lambda path: path.write_bytes(b"\x89PNG" * 200), "cannot be read ("),
    "folder": (lambda path: path.mkdir(), "cannot be read ("),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_say_why_in_one_line(tmp_path, kind):
    make, words = BAD[kind]
    (tmp_path / "c3d").mkdir()
    make(tmp_path / "c3d/a.c3d")
    joints, reason = source_of(tmp_path).read("a")
    assert joints is None and words in reason and "\n" not in reason and str(tmp_path) not in reason
    assert source_of(tmp_path).read("absent") == (None, "has no c3d file")
    if kind == "markers":
        assert "markers on the skin are not joints: export the joint centres" in reason


def test_random_damage(tmp_path):
    """Any exception but UnreadableFile would be a traceback; the header and parameters are what breaks."""
    whole, dice, failed = write_c3d(tmp_path / "a.c3d", walk(30)).read_bytes(), random.Random(0), 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(dice.randrange(1, 6)):
            damaged[dice.randrange(2500)] = dice.randrange(256)
        (tmp_path / "b.c3d").write_bytes(damaged)
        try:
            read_c3d(tmp_path / "b.c3d", NAMES)
        except UnreadableFile as error:
            assert "\n" not in str(error)
            failed += 1
    assert failed > 10


# The data set


def prepare(folder, *flags):
    return call("scripts.prepare_dataset", "--source", folder / "in", "--out", folder / "mine", "--workers",
                "0", "--overwrite", *flags)


@pytest.fixture
def capture(tmp_path):
    """A source of two good files, Z up, and one without joints."""
    for name, side in (("left", 1), ("right", -1)):
        write_c3d(tmp_path / f"in/c3d/{name}.c3d", z_up(walk(360, side)) * 1000)
    BAD["markers"][0](tmp_path / "in/c3d/markers.c3d")
    (tmp_path / "in/texts").mkdir()
    for name in ("left", "right", "markers"):
        (tmp_path / f"in/texts/{name}.txt").write_text("a person walks\n")
    for split, names in (("train", "markers\nleft\nright\n"), ("val", ""), ("test", "")):
        (tmp_path / f"in/{split}.txt").write_text(names)
    return tmp_path


def test_a_data_set_of_points(capture, capsys):
    assert prepare(capture) == 0
    assert "up axis of c3d/, guessed: z; --up says otherwise" in capsys.readouterr().out
    report = json.loads((capture / "mine/report.json").read_text())
    assert report["clips"]["train"] == 2 and not report["odd"] and list(report["unusable"]) == ["markers"]
    made = np.load(capture / "mine/new_joint_vecs/left.npy")
    wanted = joints_to_features(walk(360)[::6].astype(np.float32), T2M, T2M.target_offsets)
    assert made.shape == (59, 263) and np.abs(made - wanted)[:, :67].max() < 1e-4
    assert prepare(capture, "--up", "y") == 0
    assert "guessed" not in capsys.readouterr().out
    odd = json.loads((capture / "mine/report.json").read_text())["odd"]
    assert set(odd) == {"left", "right"} and "is Y up?" in odd["left"]


@pytest.mark.parametrize("content, words", [
    (None, "--map: no file"), ("[]", "holds no JSON object"), ('{"Tail": "T"}', "'Tail', which is no joint"),
    ('{"Hips": 3}', "has 3 for 'Hips', not a name"), ('{"Hips": "PELO"}', "lacks the point 'PELO'"),
])
def test_maps_that_do_not_fit(capture, capsys, content, words):
    if content:
        (capture / "map.json").write_text(content)
    assert prepare(capture, "--map", capture / "map.json") in (0, 2)
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("error")]
    if "PELO" in words:
        (capture / "in/train.txt").write_text("left\n")
        assert prepare(capture, "--map", capture / "map.json") == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and words in lines[0]


def test_without_the_package(capture, capsys, monkeypatch):
    plain = builtins.__import__

    def without(name, *rest):
        if name == "c3d":
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert prepare(capture) == 2
    assert capsys.readouterr().err == (
        "error: C3D files are read with the package c3d, which is not installed here; install it as pinned: "
        "pip install -r requirements.txt\n")
