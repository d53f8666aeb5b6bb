"""Skeletons and recordings of one's own: skeleton files, guesses, BVH files good and bad, a data set of 31
joints through training, sampling and drawing; fine-tuning and retargeting."""
import dataclasses
import json
import pickle
import re
import shlex
import shutil
from pathlib import Path

import foreign
import numpy as np
import pybvh
import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_motion import circle
from tiny import call

from models.AE import AE_models
from utils.data.datasets import MotionStore, statistics_of
from utils.data.sources import Source
from utils.data.specs import get_spec, spec_from_description
from utils.drawing import Body
from utils.errors import UserError
from utils.facts import write_facts
from utils.motion.bvh import BvhError, positions, read_bvh, rest_positions
from utils.motion.features import features_to_joints, joints_to_features
from utils.motion.guessing import guess_skeleton, guess_unit
from utils.motion.retargeting import transfer
from utils.motion.skeleton_files import (
    _chains,
    describe,
    get_skeleton,
    mean_directions,
    read_skeleton,
    with_axes,
)
from utils.motion.skeletons import SKELETONS
from utils.visualize import contact_sheet

T2M = SKELETONS["t2m"]
TINY = ["--device", "cpu", "--num_workers", "0", "--batch_size", "4", "--epoch", "1", "--max_iter", "2"]
SMALL = {"scripts.prepare_dataset": ["--workers", "0"], "train_length_estimator": TINY,
         "train_AE": ["--width", "32", "--window_size", "40", *TINY],
         "train_MARDM": ["--layers", "1", "--head_depth", "1", "--head_width", "64", *TINY],
         "train_evaluator": ["--width", "16", *TINY],
         "sample": ["--time_steps", "1", "--ode_steps", "1", "--cfg", "1"]}


def documented(script):
    """The arguments of a script's only command in the section of docs/data.md."""
    section = (ROOT / "docs/data.md").read_text(encoding="utf-8").split("## Your own skeleton")[1]
    found = re.findall(rf"^    python (?:-m {re.escape(script)}|{script}\.py) (.+)$", section, re.MULTILINE)
    assert len(found) == 1, script
    return shlex.split(found[0])


def as_documented(script, *more):
    """Run the command of docs/data.md, word for word, but for settings that make it small."""
    return call(script, *documented(script), *SMALL.get(script, ()), *more)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Path and lines of a BVH file of a walk."""
    path = tmp_path_factory.mktemp("bvh") / "walk.bvh"
    return path, foreign.write_bvh(path)


# Skeleton files


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)
def test_chains_of_parents_are_those_of_the_published_layouts(skeleton):
    sides = [skeleton.side(joint) for joint in range(skeleton.num_joints)]
    chains = _chains(skeleton.parents, sides, [skeleton.left_feet[-1], skeleton.right_feet[-1]])
    assert set(chains) == set(skeleton.chains)


@pytest.mark.parametrize("name, direction", [("t2m", 1), ("kit", -1)])
def test_a_published_layout_from_a_file_has_the_same_features(name, direction):
    built_in = SKELETONS[name]
    own = get_skeleton(json.loads(json.dumps(describe(dataclasses.replace(built_in, name="same")))))
    joints = circle(direction, skeleton=built_in)
    assert np.array_equal(joints_to_features(joints, own), joints_to_features(joints, built_in))
    assert (own.leg_joints, own.feet_threshold) == (built_in.leg_joints, built_in.feet_threshold)
    assert [own.side(joint) for joint in range(own.num_joints)] == [
        built_in.side(joint) for joint in range(own.num_joints)]


def test_what_a_file_leaves_out_is_derived():
    skeleton = get_skeleton(foreign.description() | {"fps": 40})
    assert (skeleton.num_joints, skeleton.feature_dim, skeleton.essential_dim) == (31, 371, 94)
    assert skeleton.feet_threshold == pytest.approx(0.002 / 4) and skeleton.min_frames == 80
    names = skeleton.joint_names
    assert [names[joint] for joint in skeleton.leg_joints] == ["l_shin", "l_foot"]
    axes = {name: axis for name, axis in zip(names, skeleton.raw_offsets)}
    assert axes["l_shin"] == (0, -1, 0) and axes["r_forearm"] == (-1, 0, 0) and axes["l_toe"] == (0, 0, 1)
    assert [skeleton.side(names.index(name)) for name in ("jaw", "l_ring", "r_collar", "pelvis")] == [
        "centre", "left", "right", "centre"]
    assert get_skeleton(describe(skeleton)) == skeleton and describe(T2M) == "t2m"
    fast = get_skeleton(foreign.description() | {"fps": 120})
    assert fast.min_frames == 100


def test_axes_come_from_the_clips_where_nothing_gives_them():
    described = foreign.description()
    for joint in described["joints"]:
        joint.pop("offset", None)
    joints, _ = foreign.performance("walk_forward", fps=20)
    skeleton = get_skeleton(with_axes(described, [joints, joints[::-1]]))
    axes = dict(zip(skeleton.joint_names, skeleton.raw_offsets))
    assert axes["l_upper_arm"] == (1, 0, 0) and axes["r_upper_arm"] == (-1, 0, 0)
    assert axes["l_forearm"] == (0, -1, 0) and axes["l_toe"] == (0, 0, 1)  # arms hang, unlike in the T-pose
    turned = joints[..., [2, 1, 0]] * [1, 1, -1]
    means = [mean_directions(clip, skeleton.parents, skeleton.face_joints) for clip in (joints, turned)]
    assert np.allclose(*means, atol=1e-9)  # where the body looks does not matter


def change(path, value):
    """A function that sets ``value`` at a path of keys of a description, or removes what is there."""
    def apply(described):
        for key in path[:-1]:
            described = described[key]
        if value is None and isinstance(described, dict):
            del described[path[-1]]
        else:
            described[path[-1]] = value

    return apply


@pytest.mark.parametrize("spoil, message", [
    (change(["joints"], "all"), '"joints" must be a list'),
    (change(["joints"], []), "0 joints; a skeleton has 5 to 200"),
    (change(["joints", 3, "name"], "pelvis"), "joint 4 has no name of its own ('pelvis')"),
    (change(["joints", 3, "name"], 7), "joint 4 has no name of its own"),
    (change(["joints", 3, "parent"], "skull"), "the parent 'skull' of the joint 'spine_c' does not come"),
    (change(["joints", 3, "parent"], []), "does not come before it"),
    (change(["joints", 0, "parent"], "skull"), "the first joint, the pelvis, has null"),
    (lambda described: described["joints"][2].update(parent=None), "and no other one"),
    (change(["joints", 3, "axis"], "up"), "the axis 'up' is none of +x -x"),
    (change(["joints", 3, "offset"], [0, 1]), "offset must be 3 finite numbers"),
    (change(["joints", 3, "offset"], [0, float("nan"), 1]), "NaN is no number"),
    (change(["facing"], None), '"facing" lacks "right_hip"'),
    (change(["facing", "left_hip"], "hip"), "left_hip names the joint 'hip', which is not among"),
    (change(["facing", "left_hip"], "r_thigh"), "facing names a joint twice"),
    (change(["feet", "left"], ["r_foot", "r_toe"]), "'r_foot' is not below the left hip 'l_thigh'"),
    (change(["feet", "left"], []), '"left" must be [ankle, toe]'),
    (change(["legs"], "l_shin"), '"legs" must be a list'),
    (change(["legs"], [3]), "legs names the joint '3'"),
    (change(["name"], "t2m"), "must be a name of its own, not 't2m'"),
    (change(["fps"], 0), '"fps" must be a number above 0'),
    (change(["fps"], float("inf")), "Infinity is no number"),
    (change(["height_range"], [2, 1]), "height_range must be the least and the most"),
])
def test_wrong_skeleton_files_get_one_line(spoil, message, tmp_path):
    described = json.loads(json.dumps(foreign.description()))
    spoil(described)
    path = tmp_path / "own.json"
    path.write_text(json.dumps(described))
    with pytest.raises(UserError) as error:
        read_skeleton(str(path))
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_other_files_are_no_skeletons(tmp_path):
    for text, message in (("{", "is not JSON"), ("[]", "holds no JSON object"),
                          ('{"skeleton": "smpl"}', "unknown")):
        (tmp_path / "own.json").write_text(text)
        with pytest.raises(UserError, match=message):
            read_skeleton(str(tmp_path / "own.json"))
    with pytest.raises(UserError, match="no skeleton 'smpl': neither t2m nor kit, nor a file"):
        read_skeleton("smpl")
    rest = {"name": "x", "fps": 20.0, "min_frames": 40, "max_frames": 199, "text_encoder": "minilm"}
    for skeleton in ("smpl", 7, {"name": "x"}):
        with pytest.raises(UserError, match="dataset.json"):
            spec_from_description(rest | {"skeleton": skeleton}, path="dataset.json")


# BVH files


@pytest.mark.parametrize("order", ["ZXY", "XYZ", "YZX"])
def test_positions_agree_with_another_reader(tmp_path, order):
    lines = foreign.write_bvh(tmp_path / "x.bvh", "kick_left", order=order)
    lines[lines.index("ROOT pelvis") + 2] = "\tOFFSET 3 90 -2"  # position channels replace it
    (tmp_path / "x.bvh").write_text("\n".join(lines))
    ours, theirs = read_bvh(tmp_path / "x.bvh"), pybvh.read_bvh_file(tmp_path / "x.bvh", world_up="+y")
    assert ours.fps == theirs.fps == 60
    assert np.allclose(positions(ours), theirs.node_positions(), atol=1e-9)
    rest = rest_positions(ours) - rest_positions(ours)[0]
    assert np.allclose(rest, theirs.rest_pose_positions() - theirs.rest_pose_positions()[0])


def test_resampling_keeps_bones_and_times(recording):
    bvh = read_bvh(recording[0])
    full, third, other = positions(bvh), positions(bvh, 20.0), positions(bvh, 50.0)
    assert len(third) == -(-len(full) // 3) and np.allclose(third, full[::3], atol=1e-6)
    lengths = [np.linalg.norm(clip[:, 12] - clip[:, 11], axis=-1) for clip in (full, other)]
    assert np.allclose(lengths[1], lengths[0][0], atol=1e-9)  # not so if positions were interpolated
    assert np.abs(other[10] - full[12]).max() < 1e-6 and len(other) == int((len(full) - 1) / 60 * 50) + 1


def variant(lines, kind):
    """The text of the recording's lines, written another way."""
    text = "\n".join(lines) + "\n"
    if kind == "windows":
        return text.replace("\n", "\r\n").encode()
    if kind == "tabs":
        return text.replace(" ", "\t").encode()
    if kind == "latin-1":
        return text.replace("l_ring", "l_rïng").encode("latin-1")
    if kind == "bom":
        return text.encode("utf-8-sig")
    return text.replace("\n\t", " ").replace("{", " {").replace("JOINT", "\nJOINT").replace(
        "OFFSET", "\nOFFSET").replace("CHANNELS", "\nCHANNELS").replace("End", "\nEnd").encode()


@pytest.mark.parametrize("kind", ["windows", "tabs", "latin-1", "bom", "braces"])
def test_the_same_file_in_other_hands(recording, tmp_path, kind):
    (tmp_path / "x.bvh").write_bytes(variant(recording[1], kind))
    ours, same = read_bvh(tmp_path / "x.bvh"), read_bvh(recording[0])
    assert np.array_equal(positions(ours), positions(same))
    assert [name.replace("ï", "i") for name in ours.names] == same.names


def test_positions_on_every_joint(recording, tmp_path):
    """Bones that are given anew in every frame, and joints of one axis."""
    lines = ["HIERARCHY", "ROOT a", "{", "OFFSET 0 0 0", "CHANNELS 6 Xposition Yposition Zposition "
             "Zrotation Xrotation Yrotation", "JOINT b", "{", "OFFSET 0 5 0",
             "CHANNELS 4 xPosition yposition zposition Zrotation", "End Site", "{",
             "OFFSET 1 0 0", "}", "}", "}", "MOTION", "Frames: 2", "Frame Time: 0.1",
             "0 1 0 90 0 0  2 0 0 90", "0 1 0 0 0 0  3 0 0 0"]
    (tmp_path / "x.bvh").write_text("\n".join(lines))
    found = positions(read_bvh(tmp_path / "x.bvh"))
    assert np.allclose(found[0], [[0, 1, 0], [0, 3, 0], [-1, 3, 0]])
    assert np.allclose(found[1], [[0, 1, 0], [3, 1, 0], [4, 1, 0]])
    halfway = positions(read_bvh(tmp_path / "x.bvh"), 20.0)[1]
    assert np.allclose(halfway[1] - halfway[0], 2.5 * np.array([np.cos(np.pi / 4), np.sin(np.pi / 4), 0]))


def exchanged(text, one, other):
    return text.replace(one, "?").replace(other, one).replace("?", other)


def replaced(old, new, count=1):
    return lambda text: text.replace(old, new, count)


BAD = {
    "empty": (lambda text: "", "does not begin with HIERARCHY"),
    "picture": (lambda text: "\x89PNG\x00\x01", "does not begin with HIERARCHY"),
    "no_motion": (lambda text: text[: text.index("MOTION")], "has no MOTION"),
    "half": (lambda text: text[: len(text) // 2], "is cut off"),
    "no_brace": (replaced("}\nMOTION", "\nMOTION"), "hierarchy that is cut off"),
    "half_a_joint": (lambda text: text[: text.index("\t{")] + text[text.index("MOTION") :], "cut off"),
    "no_channels": (lambda text: text.replace("CHANNELS 3 Zrotation Xrotation Yrotation", "", 1),
                    "has no CHANNELS of 'spine_a'"),
    "fewer_channels": (replaced("CHANNELS 3 Zrotation", "CHANNELS 3"), "which is not a number and as many"),
    "odd_channels": (replaced("CHANNELS 3 Zrotation", "CHANNELS 3 Zscale"), "'CHANNELS 3 Zscale"),
    "no_offset": (replaced("OFFSET 0 9 -1", ""), "has no OFFSET of 'spine_a'"),
    "bad_offset": (replaced("OFFSET 0 9 -1", "OFFSET 0 nan 1"), "not three numbers"),
    "no_root_positions": (replaced("6 Xposition Yposition Zposition", "3"), "no position channels of"),
    "two_roots": (replaced("MOTION", "ROOT other\n{\nOFFSET 0 0 0\nCHANNELS 0\n}\nMOTION"), "has two roots"),
    "same_names": (replaced("JOINT spine_b", "JOINT spine_a"), "two joints 'spine_a'"),
    "no_name": (replaced("JOINT spine_b", "JOINT"), "a joint without a name"),
    "word": (replaced("OFFSET", "PLACE"), "'PLACE 0 0 0' in its hierarchy"),
    "no_frames": (lambda text: text[: text.index("Frames")] + "Frames: 0\nFrame Time: 0.1\n", "has 0 frames"),
    "no_count": (replaced("Frames:", "Pictures:"), "has no 'Frames:'"),
    "count": (replaced("Frames: ", "Frames: many"), "which are not numbers"),
    "time": (replaced("Frame Time: 0.016667", "Frame Time: 0"), "frame time of 0 seconds"),
    "nan": (lambda text: text.rsplit(" ", 1)[0] + " nan\n",
            "holds NaN, infinite values or values above 1e+07, first in frame 249"),
    "words": (lambda text: text.rsplit(" ", 1)[0] + " end\n", "other than numbers"),
    "commas": (lambda text: text[: text.index("Frames")] + text[text.index("Frames") :].replace(".", ","),
               "are not numbers"),
    "more": (lambda text: text + " 1 2 3\n", "longer than it says"),
    "other_names": (replaced("JOINT l_shin", "JOINT knee"), "lacks the joint 'l_shin'"),
    "other_tree": (lambda text: exchanged(text, "l_shin", "r_shin"), "'l_shin' elsewhere than below"),
    "one_frame": (lambda text: text[: text.index("Frames")] + "Frames: 1\nFrame Time: 0.1\n"
                  + text.splitlines()[-1], "1 frames, expected 2"),
    "huge": (None, "has more than 256 MB"),
}


@pytest.fixture(scope="module")
def source(recording, tmp_path_factory):
    """A recording of 20 clips, and a bad one of every kind."""
    folder = tmp_path_factory.mktemp("own") / "capture"
    names, text = foreign.write_source(folder), recording[0].read_text()
    for name, (spoil, _) in BAD.items():
        path = folder / "bvh" / f"{name}.bvh"
        if spoil:
            path.write_bytes(spoil(text).encode("latin-1"))
        else:
            with open(path, "wb") as file:
                file.truncate(2 ** 28 + 1)  # takes no place on the disk
        (folder / "texts" / f"{name}.txt").write_text("bad\n")
    with open(folder / "train.txt", "a") as file:
        file.write("\n".join([*BAD, "absent"]) + "\n")
    return folder, names


@pytest.fixture(scope="module")
def data(source):
    """A folder with the data set that the recording makes, by the documented commands."""
    root = source[0].parent
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert as_documented("scripts.make_skeleton") == as_documented("scripts.prepare_dataset") == 0
    return root


def test_bad_files_are_named_in_the_report(data, source):
    report = json.loads((data / "datasets/studio/report.json").read_text())
    assert set(report["unusable"]) == {*BAD, "absent"} and report["unusable"]["absent"] == "has no bvh file"
    for name, (_, words) in BAD.items():
        assert words in report["unusable"][name] and "\n" not in report["unusable"][name], name
    assert report["clips"] == {"train": 12, "val": 4, "test": 4} and not report["odd"]


def test_the_data_set_describes_its_skeleton(data, source):
    (data / "studio.json").rename(data / "elsewhere.json")  # nothing needs the file any more
    spec = get_spec("studio", data / "datasets")
    (data / "elsewhere.json").rename(data / "studio.json")
    assert (spec.layout.name, spec.joints, spec.feature_dim, spec.fps) == ("studio", 31, 94, 20.0)
    features = np.load(data / "datasets/studio/new_joint_vecs/jump_02.npy")
    joints, _ = foreign.performance("jump", seed=2)
    assert features.shape == (-(-len(joints) // 3) - 1, 371)
    made = features_to_joints(features, 31)
    heights = made[..., 1] - made[..., 1].min()
    bvh = read_bvh(source[0] / "bvh/jump_02.bvh")
    kept = [number for number, node in enumerate(bvh.nodes) if not node.end]
    wanted = positions(bvh, 20.0)[:, kept, 1] / 100
    assert np.allclose(heights, (wanted - wanted.min())[:-1], atol=1e-4)  # metres


def test_the_guess_is_right(recording, data):
    described, notes = guess_skeleton(read_bvh(recording[0]), "studio")
    wanted = foreign.description()
    assert [joint["name"] for joint in described["joints"]] == [joint["name"] for joint in wanted["joints"]]
    assert all(found["parent"] == joint["parent"]
               and np.allclose(found.get("offset", 0), joint.get("offset", 0), atol=1e-4)
               for found, joint in zip(described["joints"], wanted["joints"]))
    assert (described["facing"], described["feet"]) == (wanted["facing"], wanted["feet"])
    assert described["source"] == {"metres_per_unit": 0.01, "up": "y"}
    assert described["legs"] == ["l_shin", "l_foot"]
    assert not [note for note in notes if "doubt" in note]
    few, _ = guess_skeleton(read_bvh(recording[0]), "studio", fingers=False)
    assert len(few["joints"]) == 25 and "l_thumb" not in str(few)
    assert json.loads((data / "studio.json").read_text()) == described


NAMES = {"mixamo": {"l_": "mixamorig:Left", "r_": "mixamorig:Right"}, "letters": {"l_": "L", "r_": "R"},
         "suffix": {"l_": "left ", "r_": "right "}}


@pytest.mark.parametrize("style", NAMES)
def test_names_of_other_programs(recording, tmp_path, style):
    text = recording[0].read_text()
    for old, new in NAMES[style].items():
        text = text.replace(f"JOINT {old}", f"JOINT {new}")
    (tmp_path / "x.bvh").write_text(text)
    described, _ = guess_skeleton(read_bvh(tmp_path / "x.bvh"), "x")
    assert described["feet"] == {"left": [f"{NAMES[style]['l_']}foot", f"{NAMES[style]['l_']}toe"],
                                 "right": [f"{NAMES[style]['r_']}foot", f"{NAMES[style]['r_']}toe"]}


def test_z_up_inches_and_a_root_on_the_floor(recording, tmp_path):
    """A reference node above the pelvis, feet without toes, another unit and another axis."""
    bvh = read_bvh(recording[0])
    turned = [node._replace(offset=[x / 2.54 for x in (node.offset[0], -node.offset[2], node.offset[1])])
              for node in bvh.nodes]
    swap = {"x": "x", "y": "z", "z": "y"}
    nodes = [turned[0]._replace(name="reference", channels=[(axis, "position") for axis in "xyz"])]
    for node in turned:
        channels = [(swap[axis], kind) for axis, kind in node.channels]
        nodes.append(node._replace(parent=node.parent + 1, channels=channels))
    values = bvh.values.copy()
    values[:, :3] /= 2.54
    place = 0
    for node in bvh.nodes:  # z of y up is -y of z up
        for axis, _ in node.channels:
            values[:, place] *= -1 if axis == "z" else 1
            place += 1
    values = np.concatenate([np.zeros((len(values), 3)), values], 1)
    described, notes = guess_skeleton(bvh._replace(nodes=nodes, values=values), "x")
    assert described["source"] == {"metres_per_unit": 0.0254, "up": "z"}
    assert described["joints"][0]["name"] == "pelvis"
    same, _ = guess_skeleton(bvh, "x")
    assert all(one.get("axis") == two.get("axis")
               and np.allclose(one.get("offset", 0), two.get("offset", 0), atol=1e-4)
               for one, two in zip(described["joints"], same["joints"]))
    assert "up: z (guessed)" in notes


def test_doubts_and_what_cannot_be_guessed(recording, tmp_path):
    text = recording[0].read_text()
    (tmp_path / "x.bvh").write_text(exchanged(text, "JOINT l_", "JOINT r_"))
    assert "left and right exchanged" in guess_skeleton(read_bvh(tmp_path / "x.bvh"), "x")[1][-1]
    (tmp_path / "x.bvh").write_text(text.replace("JOINT l_", "JOINT one_").replace("JOINT r_", "JOINT two_"))
    with pytest.raises(UserError, match="do not say which are left and right"):
        guess_skeleton(read_bvh(tmp_path / "x.bvh"), "x")
    assert guess_unit(1.9)[0] == 1 and guess_unit(1800)[0] == 0.001 and guess_unit(70)[0] == 0.0254
    scale, words = guess_unit(30.0)
    assert scale * 30 == pytest.approx(1.75, 1e-3) and "no usual unit" in words


def test_make_skeleton_never_overwrites(recording, tmp_path, capsys):
    out = tmp_path / "own.json"
    for args, words in (((recording[0], "--out", out.with_suffix(".txt")), "ends in .json"),
                        ((tmp_path / "no.bvh", "--out", out), "no.bvh cannot be read"),
                        ((tmp_path, "--out", out), "cannot be read")):
        assert call("scripts.make_skeleton", *args) == 2
        assert words in capsys.readouterr().err and not out.exists()
    assert call("scripts.make_skeleton", recording[0], "--out", out, "--name", "t2m") == 2
    assert "must be a name of its own" in capsys.readouterr().err and not out.exists()
    assert call("scripts.make_skeleton", recording[0], "--out", out) == 0
    before = out.read_bytes()
    assert call("scripts.make_skeleton", recording[0], "--out", out, "--up", "z") == 2
    assert "exists already" in capsys.readouterr().err and out.read_bytes() == before


def test_units_and_axes_of_sources(recording, tmp_path):
    skeleton = get_skeleton(foreign.description())
    joints, _ = foreign.performance("bow", fps=20)
    (tmp_path / "joints").mkdir()
    np.save(tmp_path / "joints/a.npy", (joints[..., [0, 2, 1]] * [1000, -1000, 1000]))
    made, reason = Source(tmp_path, "joints", skeleton, 0.001, "z", 20.0).read("a")
    assert reason is None and np.allclose(made, joints)


@pytest.mark.parametrize("file, words", [
    ("takes/a.c3d", "its .c3d files belong into c3d/"), ("a_poses.npz", "its .npz files belong into amass/"),
    ("readme.txt", "has no folder joints/ (or bvh/, c3d/, amass/)\n")])
def test_files_in_no_known_folder(tmp_path, capsys, file, words):
    path = tmp_path / "capture" / file
    path.parent.mkdir(parents=True)
    path.touch()
    assert call("scripts.prepare_dataset", "--source", tmp_path / "capture", "--out", tmp_path / "out") == 2
    assert words in capsys.readouterr().err


def test_the_unit_of_bvh_is_guessed_without_a_file_that_says_it(tmp_path, capsys):
    folder = tmp_path / "capture"
    foreign.write_source(folder, clips=5)
    described = foreign.description()
    (tmp_path / "bare.json").write_text(json.dumps(described))
    for flags, words in (([], "centimetres, as the bones"), (["--scale", "1"], "")):
        out = tmp_path / f"set{len(flags)}"
        assert call("scripts.prepare_dataset", "--source", folder, "--out", out, "--skeleton",
                    tmp_path / "bare.json", "--workers", "0", "--fps", "10", *flags) == 0
        said = capsys.readouterr().out
        assert words in said and ("guessed" in said) == (not flags)
        report = json.loads((out / "report.json").read_text())
        assert len(report["odd"]) == (5 if flags else 0)
        about = json.loads((out / "dataset.json").read_text())
        assert about["fps"] == 10 and about["skeleton"]["feet_threshold"] == pytest.approx(0.008)
        assert about["min_frames"] == 20


# Training


@pytest.fixture(scope="module")
def trained(data):
    """The folder, with a tiny run of every training script, by the documented commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(data)
        for name in ("train_AE", "train_length_estimator", "train_MARDM"):
            assert as_documented(name) == 0
        assert call("train_evaluator", *SMALL["train_evaluator"], "--dataset_name", "studio") == 0
        (data / "datasets").rename(data / "hidden")
    return data


@pytest.fixture
def work(trained, monkeypatch):
    """The trained runs, without the data set."""
    monkeypatch.chdir(trained)
    return trained


def test_sampling_editing_and_drawing_need_the_checkpoint_only(work, capsys):
    flags = [*documented("sample"), *SMALL["sample"]]
    assert as_documented("sample") == 0, capsys.readouterr().err
    clip = next((work / "generation/small_studio").glob("*.npy"))
    joints = np.load(clip)
    assert joints.shape[1:] == (31, 3) and clip.with_suffix(".mp4").stat().st_size > 1000
    assert call("edit", *flags, "--source_motion", clip, "-msec", "0.25,0.5", "--no_video") == 0
    assert len(list((work / "generation/small_studio").glob("*edit*.npy"))) == 1
    np.save(work / "features.npy", np.zeros((40, 263), np.float32))  # of t2m
    assert call("edit", *flags, "--source_motion", "features.npy", "-msec", "0.25,0.5") == 2
    assert "(frames, 94 or 371)" in capsys.readouterr().err
    best = "checkpoints/studio/AE/model/latest.tar"
    for skeleton in (best, "studio.json", "hidden/studio/dataset.json"):
        assert call("scripts.gallery", "--clips", clip, "--skeleton", skeleton, "--output",
                    f"{Path(skeleton).stem}.gif", "--seconds", "0.5") == 0


def test_exports_feet_and_the_viewer_know_the_skeleton_from_the_clip(work, capsys, tmp_path):
    features = np.load(work / "hidden/studio/new_joint_vecs/walk_forward_00.npy")
    np.save(tmp_path / "walk.npy", features_to_joints(features, 31).astype(np.float32))
    assert call("scripts.export", tmp_path / "walk.npy") == 2
    assert "Clips of another skeleton need --skeleton" in capsys.readouterr().err
    described = json.loads((work / "hidden/studio/dataset.json").read_text())["skeleton"]
    write_facts(tmp_path / "walk.npy", {"prompt": "walks", "fps": 20.0, "skeleton": described})
    assert call("scripts.export", tmp_path / "walk.npy", "--formats", "bvh", "glb", "csv") == 0
    said = capsys.readouterr().out
    assert float(re.search(r"([\d.]+) mm at most", said)[1]) < 1  # the bones have constant lengths
    again = read_bvh(tmp_path / "walk.bvh")
    places = [again.names.index(name) for name in get_skeleton(described).joint_names]
    joints = np.load(tmp_path / "walk.npy")
    assert np.abs(positions(again)[:, places] / 100 - joints).max() < 1e-3
    assert call("scripts.clean_feet", tmp_path / "walk.npy") == 0
    clean = np.load(tmp_path / "walk_clean.npy")
    legs = [joint for leg in get_skeleton(described).legs for joint in leg[1:]]
    rest = [joint for joint in range(31) if joint not in legs]
    assert np.array_equal(clean[:, rest], joints[:, rest])
    assert call("scripts.view", tmp_path, "--output", tmp_path / "page.html") == 0
    assert '"title":"walks"' in (tmp_path / "page.html").read_text()


def test_evaluation_and_the_doctor_know_the_skeleton(work, capsys):
    (work / "hidden").rename(work / "datasets")
    try:
        assert call("evaluation_AE", "--name", "AE", "--dataset_name", "studio", "--num_workers", "0") == 0
        assert "MPJPE_facing" in capsys.readouterr().out
        assert call("evaluation_MARDM", "--name", "small", "--dataset_name", "studio", "--probe_repeats",
                    "1") == 2
        assert "the probes know the 22-joint skeleton, studio has 'studio'" in capsys.readouterr().err
        assert call("scripts.doctor", "--quick") in (0, 1)
        said = capsys.readouterr().out
        assert "20 of 20 clips read can be used; studio, 20 fps" in said
        assert [line for line in said.splitlines() if "edit.py" in line and "will not work" not in line]
    finally:
        (work / "datasets").rename(work / "hidden")


def test_the_walk_is_a_walk(work):
    """The figure stands upright, has blue on its left, and steps with one foot after the other."""
    spec = get_spec("studio", work / "hidden")
    features = np.load(work / "hidden/studio/new_joint_vecs/walk_forward_00.npy")
    joints = features_to_joints(features, 31)
    names = spec.layout.joint_names
    left, right = (joints[:, names.index(name), 2] for name in ("l_foot", "r_foot"))
    assert joints[-1, 0, 2] > 1 and (np.abs(np.diff(np.sign(left - right))) > 0).sum() >= 2
    assert joints[:, names.index("skull"), 1].min() > 1.4
    contact_sheet([(joints, "walks")], work / "sheet.png", spec.layout, fps=20)
    with Image.open(work / "sheet.png") as picture:
        assert picture.size[0] == 1400


def test_the_head_is_neither_jaw_nor_eyes_and_fingers_are_no_arms():
    described = foreign.description()
    for side in (-1, 1):
        eye = {"name": f"eye{side}", "parent": "skull", "offset": [0.03 * side, 0.04, 0.08]}
        lid = {"name": f"lid{side}", "parent": f"eye{side}", "offset": [0, 0.01, 0.01]}
        described["joints"] += [eye, lid]
    for extra in (described, foreign.description()):
        skeleton = get_skeleton(extra)
        body, names = Body(skeleton), skeleton.joint_names
        assert names[body.trunk[-1]] == "skull" and names[body.trunk[body.branch]] == "spine_d"
        assert [names[wrist] for wrist in body.wrists] == ["r_hand", "l_hand"] and len(body.legs) == 2
        assert [names[joint] for joint in body.legs[0][1:]] == ["l_thigh", "l_shin", "l_foot", "l_toe"]
        thick, thin = (body.radius[names.index(name)] for name in ("l_hand", "l_ring"))
        assert thin < thick / 2


# Fine-tuning


MINE = ["--dataset_name", "mine", "--dataset_dir", "other"]
BEGIN = {"AE": ("train_AE", ["--window_size", "40", *TINY]),
         "small": ("train_MARDM", [*documented("train_MARDM"), *SMALL["train_MARDM"]]),
         "evaluator": ("train_evaluator", SMALL["train_evaluator"]),
         "length_estimator": ("train_length_estimator", TINY)}


@pytest.fixture
def other(trained, monkeypatch):
    """The folder, with a data set "mine" of the same skeleton whose features have other statistics."""
    monkeypatch.chdir(trained)
    if not (trained / "other").exists():
        shutil.copytree(trained / "hidden/studio", trained / "other/mine", ignore=lambda *_: {"packed"})
        for name in ("Mean.npy", "Std.npy"):
            np.save(trained / "other/mine" / name, 2 * np.load(trained / "other/mine" / name))
        shutil.copytree(trained / "checkpoints/studio/AE", trained / "checkpoints/mine/AE")
        of_t2m = AE_models["AE_Model"](width=16, latent_dim=16).state_dict()
        torch.save({"ae": of_t2m}, trained / "of_t2m.tar")
    return trained


def read(*names):
    return torch.load(Path("checkpoints", *names, "model", "latest.tar"), weights_only=True)


@pytest.mark.parametrize("what, key", [("AE", "ae"), ("small", "mardm"), ("evaluator", "evaluator"),
                                       ("length_estimator", "estimator")])
def test_a_run_begins_with_the_weights_and_statistics_of_another(other, what, key, capsys):
    """With a learning rate of nearly 0 the weights stay what they were."""
    name, own = BEGIN[what]
    parent = read("studio", what)
    flags = [*own, *MINE, "--lr", "1e-12", "--weight_decay", "0", "--finetune", f"checkpoints/studio/{what}"]
    assert call(name, *flags, "--name", f"{what}_tuned") == 0, capsys.readouterr().err
    tuned = read("mine", f"{what}_tuned")
    before = parent.get(f"ema_{key}", parent[key])
    assert all(torch.allclose(value, before[tensor], atol=1e-6) for tensor, value in tuned[key].items()
               if value.is_floating_point() and "running" not in tensor)  # statistics of batch norm move
    assert tuned["total_it"] == 2 and tuned["finetuned_from"]["name"] == f"checkpoints/studio/{what}"
    if what == "AE":
        store = MotionStore(get_spec("mine", "other"), "train", statistics=statistics_of(tuned))
        assert np.array_equal(pickle.loads(pickle.dumps(store)).mean, parent["mean"])  # in workers
    if "mean" in parent:
        assert torch.equal(tuned["mean"], parent["mean"]) and torch.equal(tuned["std"], parent["std"])
        assert not np.allclose(tuned["mean"].numpy(), np.load("other/mine/Mean.npy")[:94])
    assert tuned["dataset"]["name"] == "mine"
    assert call(name, *flags[:-2], "--name", f"{what}_tuned", "--is_continue") == 2
    assert f"began with --finetune checkpoints/studio/{what}" in capsys.readouterr().err
    more = ["--max_iter", "3", "--epoch", "9", "--is_continue"]
    assert call(name, *flags, "--name", f"{what}_tuned", *more) == 0
    assert read("mine", f"{what}_tuned")["total_it"] == 3


@pytest.mark.parametrize("what, change, message", [
    ("small", ["--layers", "2"], "the first that differs is layers: there 1, here 2"),
    ("small", ["--model", "FSQ-MARDM-SiT-B"], "is a FSQ-MARDM-SiT-S, not a FSQ-MARDM-SiT-B; pass --model"),
    ("evaluator", ["--width", "24"], "the first that differs is width: there 16, here 24"),
    ("length_estimator", ["--text_cond", "tokens"], "the first tensor that differs is attend.weight"),
    ("AE", ["--finetune", "checkpoints/studio/small"], "holds no autoencoder"),
    ("AE", ["--finetune", "of_t2m.tar"], "of_t2m.tar reads 67 features, mine has 94"),
    ("evaluator", ["--finetune", "checkpoints/studio/AE/model/latest.tar"], "holds no evaluator"),
])
def test_other_architectures_are_refused(other, what, change, message, capsys):
    name, own = BEGIN[what]
    code = call(name, *own, "--name", "refused", *MINE, "--finetune", f"checkpoints/studio/{what}", *change)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "Trace"))]
    assert code == 2 and len(lines) == 1 and message in lines[0]


def test_evaluation_uses_the_statistics_of_the_autoencoder(other, capsys):
    """The same weights give the same errors on data whose own statistics differ."""
    errors = []
    for name, folder in (("studio", "hidden"), ("mine", "other")):
        assert call("evaluation_AE", "--name", "AE", "--dataset_name", name, "--dataset_dir", folder,
                    "--num_workers", "0") == 0
        results = json.loads((other / f"checkpoints/{name}/AE/eval/evaluation_AE.json").read_text())
        errors.append(results["metrics"]["MPJPE"])
    assert errors[0] == errors[1]


# Retargeting


def test_there_and_back(tmp_path, monkeypatch):
    """From the demo's figure to 31 joints and back: directions of bones return, lengths are the targets'."""
    monkeypatch.chdir(tmp_path)
    joints = circle(1, turns=0.5)
    target = get_skeleton(foreign.description())
    mapping = foreign.mapping()
    there, turned = transfer(joints, T2M, target, mapping)
    lengths = np.linalg.norm(target.rest_offsets, axis=-1)
    for parent, child in target.bones:
        bone = there[:, child] - there[:, parent]
        assert np.allclose(np.linalg.norm(bone, axis=-1), lengths[child])
        if child in mapping and parent in mapping:
            source = joints[:, mapping[child]] - joints[:, mapping[parent]]
            lengths_of = np.linalg.norm(bone, axis=-1) * np.linalg.norm(source, axis=-1)
            assert ((bone * source).sum(-1) / lengths_of).min() > 1 - 1e-9
    assert np.allclose(np.linalg.det(turned), 1)
    for child in map(target.joint_names.index, ("l_forearm", "r_foot", "l_toe")):  # rotations go with bones
        parent = target.parents[child]
        bone = there[:, child] - there[:, parent]
        wanted = turned[:, parent] @ np.array(target.rest_offsets[child])
        assert (bone * wanted).sum(-1).min() > 0.99 * lengths[child] ** 2
    ring, hand = target.joint_names.index("l_ring"), target.joint_names.index("l_hand")
    local = np.swapaxes(turned[:, hand], -1, -2) @ (there[:, ring] - there[:, hand])[..., None]
    assert np.allclose(local[..., 0], target.rest_offsets[ring])  # absent in the source: as at rest
    back, _ = transfer(there, target, T2M, {own: other for other, own in mapping.items()})
    assert np.abs((back - back[:, :1]) - (joints - joints[:, :1])).max() < 0.03
    leg = 0.86 / np.abs(T2M.target_offsets)[[4, 7]].sum()
    assert np.ptp(there[:, 0, 0]) == pytest.approx(leg * np.ptp(joints[:, 0, 0]), rel=1e-6)


def test_retarget_as_a_script(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("studio.json").write_text(json.dumps(foreign.description()))
    names = get_skeleton(foreign.description()).joint_names
    words = {names[to]: T2M.joint_names[of] for to, of in foreign.mapping().items()}
    Path("map.json").write_text(json.dumps(words))
    clips, *flags = documented("scripts.retarget")
    Path(clips).mkdir(parents=True)
    np.save(Path(clips, "a.npy"), circle(1, frames=50))
    assert as_documented("scripts.retarget") == 0
    assert np.load("retargeted/a.npy").shape == (50, 31, 3)
    back = ["--from", "studio.json", "--to", "kit", "--out", "back"]
    assert call("scripts.retarget", "retargeted/a.npy", *back) == 2
    assert "kit skeleton has no rest pose" in capsys.readouterr().err
    for change, message in (
            ([], "retargeted/a.npy exists already"),
            (["--out", "b", "--from", "kit", "--map", "few.json"], "(frames, 21, 3) for the kit skeleton"),
            (["--out", "b", "--map", "no.json"], "no file no.json"),
            (["--out", "b", "--to", "t2m", "--map", "wrong.json"], "names 'tail', which is no joint of t2m"),
            (["--out", "b", "--to", "t2m", "--map", "rootless.json"], "which joint of t2m is the target's")):
        Path("few.json").write_text('{"pelvis": "Hips"}')
        Path("wrong.json").write_text('{"Hips": "tail"}')
        Path("rootless.json").write_text('{"Head": "Head"}')
        assert call("scripts.retarget", clips, *flags, *change) == 2, change
        assert message in capsys.readouterr().err, change
    assert not Path("b").exists()


def test_a_missing_bvh_is_missing(tmp_path):
    with pytest.raises(BvhError) as error:
        read_bvh(tmp_path / "no.bvh")
    assert error.value.missing
