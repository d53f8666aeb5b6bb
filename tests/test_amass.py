"""AMASS files and body models: joints against forward kinematics written another way, HumanML3D's
conventions, its index, our own export and back, files good and bad, and a data set through training."""
import json
import pickle

import numpy as np
import pytest
from scipy.linalg import expm
from test_own_skeletons import SMALL
from test_rotations import figure
from tiny import call

from scripts import prepare_dataset
from utils.data.sources import Source
from utils.demo.dataset import make_clip
from utils.errors import MissingFile, UserError
from utils.export.formats import Clip, export_clip
from utils.export.smpl import PELVIS, REST
from utils.motion.body_models import check_models, find_model, read_model
from utils.motion.features import MotionError, joints_to_features
from utils.motion.rotations import bone_lengths
from utils.motion.skeletons import SKELETONS

T2M = SKELETONS["t2m"]
JOINTS = {"smpl": 24, "smplh": 52, "smplx": 55}
LENGTHS = np.linalg.norm(T2M.target_offsets, axis=-1)


def body(joints, seed, rest=None):
    """The arrays of a made-up model: its first 22 joints at rest are ``rest``, or those of a T-pose."""
    rng = np.random.default_rng(seed)
    if rest is None:
        rest = rest_of(LENGTHS)
    at = np.concatenate([rest, rng.normal(size=(joints - 22, 3))])
    spread = rng.normal(0, 0.05, (joints, 3))
    vertices = np.stack([at + spread, at - spread], 1).reshape(-1, 3)
    shapes = rng.normal(0, 0.01, (len(vertices), 3, 16))
    tree = np.stack([[2 ** 32 - 1, *T2M.parents[1:], *range(21, joints - 1)], range(joints)])
    return {"J_regressor": np.kron(np.eye(joints), [0.5, 0.5]), "v_template": vertices, "shapedirs": shapes,
            "kintree_table": tree.astype(np.uint32), "f": np.zeros((4, 3), np.uint32)}


def rest_of(lengths):
    """Joints (22, 3) at rest of a body with bones like SMPL's, of these ``lengths`` (22,)."""
    at = np.tile(PELVIS, (22, 1))
    for parent, child in T2M.bones:
        at[child] = at[parent] + np.array(REST[child]) * lengths[child]
    return at


MODELS = {("smplh", "male"): body(52, 0), ("smplh", "female"): body(52, 1), ("smplx", "neutral"): body(55, 2)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("body_models")
    for name, key in (("smplh/male/model", ("smplh", "male")), ("smplh/female/model", ("smplh", "female")),
                      ("smplx/SMPLX_NEUTRAL", ("smplx", "neutral"))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"{name}.npz", **MODELS[key])
    (folder / "smplh/SMPLH_NEUTRAL.pkl").write_bytes(pickle.dumps(print))
    return folder


def turning(seed, times):
    """Axes times angles (T, 52, 3) of joints that turn steadily about axes of their own, a path (T, 3), 16
    shape parameters."""
    rng = np.random.default_rng(seed)
    axes = rng.normal(size=(52, 3))
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    angles = rng.uniform(-0.5, 0.5, 52) + np.multiply.outer(times, rng.uniform(-0.4, 0.4, 52))
    poses = axes * angles[..., None]
    poses[:, 0] = [np.pi / 2, 0, 0]  # the body at rest has Y up, the files Z
    return poses, np.multiply.outer(times, [0.3, -0.2, 0.05]) + [0.1, 0.2, 0.9], rng.normal(size=16)


def amass(seed=0, fps=120.0, seconds=3.0, family="smplh", gender="male"):
    """The arrays of a file, in the layout of AMASS for the family."""
    poses, trans, betas = turning(seed, np.arange(int(seconds * fps)) / fps)
    shared = {"trans": trans, "betas": betas, "gender": np.array(gender)}
    if family == "smplx":
        return shared | {"root_orient": poses[:, 0], "pose_body": poses[:, 1:22].reshape(-1, 63),
                         "mocap_frame_rate": np.array(fps),
                         "surface_model_type": np.array("smplx_locked_head")}
    return shared | {"poses": poses.reshape(-1, 156), "mocap_framerate": np.array(fps)}


def kinematics(model, poses, trans, betas):
    """Joints (T, 22, 3) by products of 4 x 4 matrices from the root to each joint."""
    regressor, tree = model["J_regressor"], model["kintree_table"][0].astype(np.int64)
    body = model["v_template"] + sum(beta * model["shapedirs"][..., k] for k, beta in enumerate(betas[:10]))
    rest = np.stack([(row[:, None] * body).sum(0) for row in regressor])
    moves = np.zeros((len(poses), 22, 4, 4))
    x, y, z = np.moveaxis(poses[:, :22], -1, 0)
    moves[..., :3, :3] = expm(np.stack([0 * x, -z, y, z, 0 * x, -x, -y, x, 0 * x], -1).reshape(-1, 22, 3, 3))
    moves[..., 3, 3] = 1
    for joint in range(22):
        moves[:, joint, :3, 3] = rest[joint] - (rest[tree[joint]] if joint else 0)
    out = np.empty((len(poses), 22, 3))
    for joint in range(22):
        at, link = np.array([0.0, 0, 0, 1])[:, None], joint
        while link >= 0:
            at, link = moves[:, link] @ at, tree[link] if link else -1
        out[:, joint] = at[:, :3, 0] + trans
    return out


def source_of(folder, models, **fields):
    return Source(folder, "amass", T2M, 1.0, "z", 20.0, body_models=models)._replace(**fields)


def saved(folder, name="a", **content):
    (folder / "amass").mkdir(exist_ok=True)
    np.savez(folder / f"amass/{name}.npz", **content)
    return content


def y_up(joints):
    """As HumanML3D has it: Y and Z exchanged, then X mirrored, which together are a rotation."""
    return joints @ np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]]) * [-1, 1, 1]


# Joints


@pytest.mark.parametrize("family, gender", [("smplh", "male"), ("smplh", "female"), ("smplx", "neutral")])
def test_joints_agree_with_other_kinematics(tmp_path, models, family, gender):
    saved(tmp_path, **amass(3, 120, 0.5, family, gender))
    poses, trans, betas = turning(3, np.arange(60) / 120)
    model = MODELS[family, gender]
    wanted = kinematics(model, poses[::6], trans[::6], betas)
    joints, reason = source_of(tmp_path, models).read("a")
    assert reason is None and joints.shape == (10, 22, 3)
    assert np.abs(joints - wanted[..., [0, 2, 1]] * [1, 1, -1]).max() < 1e-9
    half, _ = source_of(tmp_path, models, up="y", scale=0.5).read("a")
    assert np.abs(half - wanted / 2).max() < 1e-9
    assert np.abs(kinematics(model, poses[:1], trans[:1], 0 * betas) - wanted[:1]).max() > 0.01


@pytest.mark.parametrize("fps, rate", [(100.0, 30.0), (60.0, 50.0), (59.94, 20.0), (20.0, 60.0)])
def test_other_rates_are_interpolated_between_rotations(tmp_path, models, fps, rate):
    """Steady turning is known at any time; straight lines between positions would shorten bones."""
    saved(tmp_path, **amass(4, fps, 1.0))
    joints, _ = source_of(tmp_path, models, fps=rate, up="y").read("a")
    last = (int(fps) - 1) / fps
    assert len(joints) == int(last * rate + 1e-3) + 1
    poses, trans, betas = turning(4, np.arange(len(joints)) / rate)
    assert np.abs(joints - kinematics(MODELS["smplh", "male"], poses, trans, betas)).max() < 1e-9


def test_the_layouts_say_the_same(tmp_path, models):
    """Bytes for text, one row of shape parameters, 22, 24, 52 and 55 joints, single precision."""
    plain = saved(tmp_path, **amass(5, 60, 1.0))
    poses = plain["poses"]
    others = {"few": {"poses": poses[:, :66]}, "bytes": {"gender": np.array(b"male")},
              "row": {"betas": plain["betas"][None], "gender": np.array(["male"])},
              "many": {"poses": np.concatenate([poses, np.zeros((60, 9))], 1), "surface_model_type": "smplh"},
              "single": {"poses": poses.astype(np.float32)},
              "model": {"poses": poses[:, :72], "surface_model_type": "smplh"},
              "both": {"root_orient": poses[:, :3], "pose_body": poses[:, 3:66]}}
    source = source_of(tmp_path, models)
    wanted = source.joints("a")
    for name, change in others.items():
        saved(tmp_path, name, **plain | change)
        assert np.abs(source.joints(name) - wanted).max() < (1e-6 if name == "single" else 1e-12), name
    saved(tmp_path, "smpl", **plain | {"poses": poses[:, :72]})
    assert source.read("smpl")[1].startswith("needs the model smpl/male/model.npz or smpl/SMPL_MALE.npz in")
    saved(tmp_path, "smplx", **plain | {"poses": np.concatenate([poses, np.zeros((60, 9))], 1)})
    assert "needs the model smplx/male/model.npz or smplx/SMPLX_MALE.npz" in source.read("smplx")[1]


# Our own export, and back


def there_and_back(joints, folder):
    """A clip (T, 22, 3), exported and read again with a body of its own bones."""
    export_clip(Clip("a", joints, T2M, 20.0), folder / "amass", ["npz"])
    rest = rest_of(bone_lengths(joints, T2M))
    np.savez(folder / "SMPLH_NEUTRAL.npz", **body(52, 7, rest))
    return source_of(folder, folder).joints("a")


def test_our_own_export_returns(tmp_path):
    for name in ("rigid", "demo"):
        (tmp_path / name / "amass").mkdir(parents=True)
    turns = {"Hips": [("y", np.linspace(0, 300, 60))], "LeftArm": ("z", np.linspace(0, -80, 60)),
             "RightLeg": ("x", np.linspace(0, 70, 60)), "Spine1": ("y", 20)}
    joints, _ = figure("t2m", 60, **turns)
    assert np.abs(there_and_back(joints, tmp_path / "rigid") - joints).max() < 2e-6
    moving = make_clip(["kick_left"], np.random.default_rng(0)).astype(np.float64)
    off = np.linalg.norm(there_and_back(moving, tmp_path / "demo") - moving, axis=-1)
    assert off.mean() < 0.005 and off.max() < 0.03  # bones that do not leave pelvis and chest as SMPL's do


# HumanML3D's conventions


def write_source(folder, train, val=(), test=()):
    (folder / "texts").mkdir()
    for split, names in (("train", train), ("val", val), ("test", test)):
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            (folder / f"texts/{name}.txt").write_text("a person turns\n")


def test_features_are_those_of_humanml3ds_own_pipeline(tmp_path, models):
    """Every sixth frame, axes exchanged and mirrored, then features on the standard body."""
    (tmp_path / "in").mkdir()
    saved(tmp_path / "in", **amass(6, 120, 4.0))
    write_source(tmp_path / "in", ["a"])
    assert call("scripts.prepare_dataset", "--source", tmp_path / "in", "--out", tmp_path / "mine",
                "--workers", "2", "--body_models", models) == 0
    poses, trans, betas = turning(6, np.arange(480) / 120)
    joints = y_up(kinematics(MODELS["smplh", "male"], poses[::6], trans[::6], betas))
    made = np.load(tmp_path / "mine/new_joint_vecs/a.npy")
    wanted = joints_to_features(joints.astype(np.float32), T2M, T2M.target_offsets)
    assert made.shape == (79, 263) and np.abs(made - wanted).max() < 2e-3  # single precision, magnified
    assert np.abs(made - wanted).mean() < 1e-5
    report = json.loads((tmp_path / "mine/report.json").read_text())
    assert report["clips"] == {"train": 1, "val": 0, "test": 0} and not report["odd"]


def swapped(joints):
    """Joints (T, 22, 3) with left and right exchanged."""
    right, left = [2, 5, 8, 11, 14, 17, 19, 21], [1, 4, 7, 10, 13, 16, 18, 20]
    joints = joints * [-1, 1, 1]
    joints[:, right + left] = joints[:, left + right]
    return joints


def test_clips_of_the_index(tmp_path, models):
    for place, fps in (("KIT/3", 100.0), ("MPI_HDM05/bk", 120.0), ("BMLhandball/S1", 250.0)):
        (tmp_path / "amass" / place).mkdir(parents=True)
        saved(tmp_path, f"{place}/walk_poses", **amass(8, fps, 6.0))
    index = tmp_path / "index.csv"
    index.write_text("source_path,start_frame,end_frame,new_name\n"
                     "./pose_data/KIT/3/walk_poses.npy,10,60,000000.npy\n"
                     "./pose_data/MPI_HDM05/bk/walk_poses.npy,0,50,000001.npy\n"
                     "./pose_data/BMLhandball/S1/walk_poses.npy,20,70,000002.npy\n"
                     "./pose_data/KIT/3/walk_poses.npy,100,-1,000003.npy\n"
                     "./pose_data/KIT/3/walk_poses.npy,500,600,000004.npy\n"
                     "pose_data/humanact12/humanact12/P01.npy,0,60,000005.npy\n")
    source = source_of(tmp_path, models, index=index)
    assert source.names() == sorted(f"{m}00000{n}" for m in ("", "M") for n in range(6))
    for name, fps, first, frames, step in (("000000", 100.0, 50, 50, 5), ("000001", 120.0, 360, 50, 6),
                                           ("000003", 100.0, 500, 20, 5)):
        poses, trans, betas = turning(8, (first + step * np.arange(frames)) / fps)
        wanted = kinematics(MODELS["smplh", "male"], poses, trans, betas)[..., [0, 2, 1]] * [1, 1, -1]
        assert np.abs(source.joints(name) - wanted).max() < 1e-9, name
        assert np.abs(source.joints(f"M{name}") - swapped(wanted)).max() < 1e-9, name
    handball = source.joints("000002")  # HumanML3D takes every 12th of 250 frames for a 20th of a second
    assert len(handball) == int(49 * 12 / 250 * 20) + 1
    poses, trans, betas = turning(8, np.array([20 * 12 / 250]))
    wanted = kinematics(MODELS["smplh", "male"], poses, trans, betas)[0][:, [0, 2, 1]] * [1, 1, -1]
    assert np.abs(handball[0] - wanted).max() < 1e-9
    assert "ends before the cut" in source.read("000004")[1]
    assert source.read("000005")[1] == "has no amass file" and "is not in" in source.read("7")[1]


@pytest.mark.parametrize("text, words", [
    ("a,b\n", "has no column source_path; HumanML3D's index.csv has source_path, start_frame"),
    ("source_path,start_frame,end_frame,new_name\nx.npy,1,two,y.npy\n", "line 2 is not a path, two whole"),
    ("source_path,start_frame,end_frame,new_name\nx.npy,1\n", "line 2 is not a path, two whole"),
    ("source_path,start_frame,end_frame,new_name\nx.npy,5,5,y.npy\n", "line 2 has frames 5 to 5"),
    (b"source_path,start_frame,end_frame,new_name\n\xff", "is not a CSV file in UTF-8"), (None, "no file"),
])
def test_an_index_that_is_none(tmp_path, models, capsys, text, words):
    saved(tmp_path, **amass(0, 60, 1.0))
    write_source(tmp_path, ["a"])
    if text:
        (tmp_path / "index.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert words in refusal(capsys, tmp_path, "--body_models", models, "--index", tmp_path / "index.csv")


def refusal(capsys, source, *flags):
    """What prepare_dataset says in one line, and then leaves nothing behind."""
    capsys.readouterr()
    assert call("scripts.prepare_dataset", "--source", source, "--out", source / "sets/out", "--workers",
                "0", *flags) == 2
    said = capsys.readouterr().err.splitlines()
    lines = [line for line in said if line.strip() and "converting" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and not list(source.glob("sets/*"))
    return lines[0]


# Files that cannot be used


GOOD = amass(1, 40, 3.0)
NAN = np.where(np.arange(120)[:, None] == 7, np.nan, GOOD["poses"])
BAD = {
    "shape": ({"poses": None}, "lacks 'poses', so it is no motion"),
    "no_trans": ({"trans": None}, "lacks 'trans'"), "no_betas": ({"betas": None}, "lacks 'betas'"),
    "no_gender": ({"gender": None}, "lacks 'gender'"),
    "no_rate": ({"mocap_framerate": None}, "lacks 'mocap_framerate'"),
    "half": ({"poses": None, "root_orient": GOOD["poses"][:, :3]}, "lacks 'pose_body'"),
    "uneven": ({"poses": None, "root_orient": GOOD["poses"][:9, :3], "pose_body": GOOD["poses"][:, :63]},
               "9 frames of root_orient and 120 of pose_body"),
    "columns": ({"poses": GOOD["poses"][:, :63]}, "poses of shape (120, 63)"),
    "three_axes": ({"poses": GOOD["poses"].reshape(-1, 52, 3)}, "poses of shape (120, 52, 3)"),
    "words": ({"poses": np.full((120, 156), "x")}, "poses of shape (120, 156) and type <U1"),
    "short_trans": ({"trans": GOOD["trans"][:5]}, "120 frames of poses and 5 of trans"),
    "empty": ({"poses": np.zeros((0, 156)), "trans": np.zeros((0, 3))}, "0 frames of poses"),
    "nan": ({"poses": NAN}, "values above 1e+07 in poses, first in frame 7"),
    "far": ({"trans": GOOD["trans"] * 1e9}, "values above 1e+07 in trans, first in frame 0"),
    "one_frame": ({"poses": GOOD["poses"][:1], "trans": GOOD["trans"][:1]}, "1 frames, expected 2"),
    "bodies": ({"betas": np.zeros((120, 16))}, "betas of shape (120, 16)"),
    "bad_betas": ({"betas": np.full(16, np.inf)}, "not the finite numbers of one body"),
    "rate": ({"mocap_framerate": np.array(0.0)}, "the frame rate '0.0', not 1 to 1000"),
    "rates": ({"mocap_framerate": np.ones(2)}, "the frame rate 'of shape (2,)'"),
    "gender": ({"gender": np.array("robot")}, "gender is 'robot'; there are male, female, neutral"),
    "pickled_model": ({"gender": np.array("neutral")}, "has it as .pkl only, as reading a pickle runs"),
    "no_model": ({"surface_model_type": np.array("smplx")}, "which has neither"),
    "animal": ({"surface_model_type": np.array("smal")}, "its body model is 'smal'; known are smplh"),
    "pickle_inside": ({"poses": np.array([{}], dtype=object)}, "cannot be read (Object arrays cannot be"),
}


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle has run')",)


def write_bad_files(folder):
    for name, (change, _) in BAD.items():
        content = {key: value for key, value in (GOOD | change).items() if value is not None}
        np.savez(folder / f"{name}.npz", **content)
    whole = (folder / "nan.npz").read_bytes()
    (folder / "cut_off.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "damaged.npz").write_bytes(whole[:400] + b"\7" * 400 + whole[800:])
    (folder / "picture.npz").write_bytes(b"\x89PNG")
    (folder / "hostile.npz").write_bytes(pickle.dumps(Trap()))
    np.savez(folder / "hostile_array.npz", **GOOD | {"gender": np.array([Trap()], dtype=object)})
    for place in ("one", "two"):
        (folder / place).mkdir()
        np.savez(folder / place / "twice.npz", **GOOD)
    return [*BAD, "cut_off", "damaged", "picture", "hostile", "hostile_array", "twice", "absent"]


@pytest.fixture(scope="module")
def data(tmp_path_factory, models):
    """A folder with a data set of six good files, some in folders of their own, and one of every bad kind."""
    root = tmp_path_factory.mktemp("set")
    (root / "in/amass/CMU/01").mkdir(parents=True)
    names = []
    for number, (family, gender) in enumerate([*MODELS, *MODELS]):
        names.append(f"{'CMU/01/' if number % 2 else ''}good_{number}")
        saved(root / "in", names[-1], **amass(number, 60 + number, 4.0, family, gender))
    bad = write_bad_files(root / "in/amass")
    good = [name.split("/")[-1] for name in names]
    write_source(root / "in", [*good[:4], *bad], good[4:5], good[5:])
    out = root / "datasets/mine"
    assert call("scripts.prepare_dataset", "--source", root / "in", "--out", out, "--workers", "0",
                "--body_models", models) == 0
    return root, bad


def test_bad_files_are_named_in_the_report(data):
    root, bad = data
    report = json.loads((root / "datasets/mine/report.json").read_text())
    assert set(report["unusable"]) == {*bad} and report["clips"] == {"train": 4, "val": 1, "test": 1}
    wanted = {name: words for name, (_, words) in BAD.items()} | {
        "cut_off": "cannot be read (", "damaged": "cannot be read (", "picture": "cannot be read (",
        "hostile": "cannot be read (File is not a zip file", "hostile_array": "cannot be read (Object arrays",
        "twice": "is the name of 2 files", "absent": "has no amass file"}
    for name, words in wanted.items():
        assert words in report["unusable"][name] and "\n" not in report["unusable"][name], name


def test_training_runs_on_it(data, monkeypatch):
    monkeypatch.chdir(data[0])
    flags = ["--name", "AE", "--model", "AE_Model", "--dataset_name", "mine", *SMALL["train_AE"]]
    assert call("train_AE", *flags, "--check") == 0 and not (data[0] / "checkpoints").exists()
    assert call("train_AE", *flags) == 0
    assert (data[0] / "checkpoints/mine/AE/model/latest.tar").is_file()


# What is missing, and damaged models


def test_without_body_models(tmp_path, capsys, models):
    saved(tmp_path, **amass(0, 60, 1.0))
    write_source(tmp_path, ["a"])
    said = refusal(capsys, tmp_path)
    assert "pass --body_models FOLDER" in said and "mano.is.tue.mpg.de" in said
    assert "joints/ID.npy need none" in said
    assert "no folder" in refusal(capsys, tmp_path, "--body_models", tmp_path / "none")
    assert "no model as .npz; the models are" in refusal(capsys, tmp_path, "--body_models", tmp_path)
    (tmp_path / "SMPL_MALE.pkl").write_bytes(pickle.dumps(Trap()))
    assert "SMPL_MALE.pkl is not read, as reading a pickle runs" in refusal(
        capsys, tmp_path, "--body_models", tmp_path)
    assert "gives the joints of --skeleton t2m, not those of kit" in refusal(
        capsys, tmp_path, "--skeleton", "kit", "--body_models", models)
    assert "--map goes with bvh/ or c3d/, and the source has amass/" in refusal(
        capsys, tmp_path, "--map", tmp_path / "map.json")
    (tmp_path / "amass").rename(tmp_path / "joints")
    for flag in ("--body_models", "--index"):
        said = refusal(capsys, tmp_path, flag, models)
        assert f"{flag} goes with amass/, and the source has joints/" in said


@pytest.mark.parametrize("change, words", [
    ({"J_regressor": None}, "has no numbers 'J_regressor', so it is no body model"),
    ({"shapedirs": np.full((104, 3, 16), "x")}, "has no numbers 'shapedirs'"),
    ({"kintree_table": body(55, 0)["kintree_table"]}, "shape (2, 55); a model of smplh has (2, 52)"),
    ({"kintree_table": np.zeros((2, 52), np.uint32)}, "has another tree of joints than SMPL"),
    ({"v_template": np.zeros((90, 3))}, "arrays that do not belong together"),
    ({"shapedirs": np.zeros((104, 48))}, "arrays that do not belong together"),
    ({"v_template": np.full((104, 3), np.nan)}, "holds NaN"),
    (b"PK", "cannot be read ("),
])
def test_damaged_models_end_the_command(tmp_path, capsys, change, words):
    saved(tmp_path, **amass(0, 60, 1.0))
    write_source(tmp_path, ["a"])
    (tmp_path / "bodies").mkdir()
    path = tmp_path / "bodies/SMPLH_MALE.npz"
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        content = MODELS["smplh", "male"] | change
        np.savez(path, **{key: value for key, value in content.items() if value is not None})
    said = refusal(capsys, tmp_path, "--body_models", tmp_path / "bodies")
    assert words in said and str(path) in said


def test_models_are_found_by_both_names(models, tmp_path):
    found = find_model(models, "smplh", "male")
    assert np.array_equal(find_model(models / "smplh", "smplh", "male").joints, found.joints)
    assert np.array_equal(found.joints, read_model(models / "smplh/male/model.npz", "smplh").joints)
    assert found.shapes.shape == (22, 3, 10)
    assert np.abs(found.joints - rest_of(LENGTHS)).max() < 1e-12
    assert found.rest(np.zeros(0)).shape == (22, 3)
    with pytest.raises(MotionError, match="needs the model smplx/male/model.npz or smplx/SMPLX_MALE.npz"):
        find_model(models, "smplx", "male")
    with pytest.raises(MissingFile):
        check_models(tmp_path / "none")
    with pytest.raises(UserError, match="a model of smplx has"):
        read_model(models / "smplh/male/model.npz", "smplx")


def test_what_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.arrays.MOST_BYTES", 10_000)
    saved(tmp_path, **amass(0, 60, 1.0))
    reason = prepare_dataset.read_features_of(source_of(tmp_path, tmp_path), "a", "none")[1]
    assert "cannot be read ('poses' has more than" in reason
