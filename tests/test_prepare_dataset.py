"""scripts.prepare_dataset on a small made-up capture with bad clips of every kind."""
import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from test_motion import circle

from scripts import prepare_dataset
from utils.data.datasets import MotionStore, text_clips
from utils.data.specs import get_spec
from utils.data.writing import average_std
from utils.errors import UserError, run
from utils.motion.features import joints_to_features
from utils.motion.skeletons import SKELETONS

T2M = SKELETONS["t2m"]
TAGGED = "a person walks#a/DET person/NOUN walk/VERB#0.0#0.0\n"
GOOD = {"train": ["walk_a", "walk_b", "long"], "val": ["short"], "test": ["turn"]}
BAD = {
    "garbage": "cannot be read", "empty": "cannot be read", "archive": "it is an archive",
    "zipped": "cannot be read", "other_body": "(50, 21, 3)", "flat": "(50, 66)", "nan": "NaN",
    "huge": "values above", "one_frame": "1 frames", "pickled": "cannot be read",
    "no_joints": "no joints file", "no_text": "no text file", "blank_text": "no caption",
    "bad_tags": "text file that cannot be read", "unlisted": "in no split list",
}


def save_bad_clips(source):
    joints, good = source / "joints", circle(1, frames=50)
    (joints / "garbage.npy").write_bytes(b"not an array")
    (joints / "empty.npy").write_bytes(b"")
    np.savez(joints / "archive", a=good)
    (joints / "archive.npz").rename(joints / "archive.npy")
    (joints / "zipped.npy").write_bytes(b"PK\x03\x04 cut short")
    for name, array in {
        "other_body": good[:, :21], "flat": good.reshape(50, 66), "nan": np.where(good > 1.2, np.nan, good),
        "huge": good * [1, 1e200, 1], "one_frame": good[:1], "no_text": good, "blank_text": good,
        "bad_tags": good, "unlisted": good,
    }.items():
        np.save(joints / f"{name}.npy", array)
    np.save(joints / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.fixture
def source(tmp_path):
    """A capture of five good clips, and one bad clip of each kind."""
    folder = tmp_path / "capture"
    for name in ("joints", "texts"):
        (folder / name).mkdir(parents=True)
    for name, frames, side in (("walk_a", 81, 1), ("walk_b", 61, -1), ("long", 260, 1), ("short", 21, 1),
                               ("turn", 91, -1)):
        np.save(folder / "joints" / f"{name}.npy",
                (1.3 * circle(side, turns=0.5, frames=frames)).astype(np.float32))
    save_bad_clips(folder)
    for name in [*sum(GOOD.values(), []), *BAD]:
        (folder / "texts" / f"{name}.txt").write_text(TAGGED)
    (folder / "texts" / "walk_b.txt").write_text("someone walks in a curve\n\n  Someone turns  \n")  # no tags
    (folder / "texts" / "turn.txt").write_text("a turn#a/DET turn/NOUN#0.5#3.5\na turn#a/DET "
                                               "turn/NOUN#nan#nan\n")
    (folder / "texts" / "no_text.txt").unlink()
    (folder / "texts" / "blank_text.txt").write_text("\n\n")
    (folder / "texts" / "bad_tags.txt").write_text("a person#a/DET#first#last\n")
    listed = GOOD | {"train": [*GOOD["train"], *(name for name in BAD if name != "unlisted")]}
    for split, names in listed.items():
        (folder / f"{split}.txt").write_text("\n".join(names) + "\n\n")
    (folder / "labels.json").write_text(json.dumps({"walk_a": {"actions": ["walk_forward"]}}))
    (folder / "manifest.csv").write_text("id,take\nwalk_a,1\n")
    return folder


def prepare(monkeypatch, source, out, *flags, workers=0):
    """Run the script in this process; the exit code."""
    monkeypatch.setattr(sys, "argv", ["prepare_dataset", "--source", str(source), "--out", str(out),
                                      "--workers", str(workers), *flags])
    try:
        run(prepare_dataset.main)
    except SystemExit as stop:
        return stop.code
    return 0


def error_line(monkeypatch, capsys, source, out, *flags):
    """The one line on stderr of a run that must end with 2 and leave nothing behind."""
    before = sorted(out.parent.iterdir())
    assert prepare(monkeypatch, source, out, *flags) == 2
    assert sorted(out.parent.iterdir()) == before
    text = [line for line in capsys.readouterr().err.splitlines() if "converting" not in line
            and line.strip()]
    assert len(text) == 1 and text[0].startswith("error: "), text
    return text[0]


def test_whole_data_set(source, tmp_path, monkeypatch, capsys):
    out = tmp_path / "sets" / "mine"
    assert prepare(monkeypatch, source, out) == 0
    assert [path.name for path in out.parent.iterdir()] == ["mine"]
    assert {split: (out / f"{split}.txt").read_text().split() for split in GOOD} == GOOD
    for folder, suffix in (("new_joint_vecs", ".npy"), ("texts", ".txt")):
        assert {path.name for path in (out / folder).iterdir()} == {name + suffix
                                                                    for name in sum(GOOD.values(), [])}
    features = np.load(out / "new_joint_vecs" / "long.npy")
    joints = np.load(source / "joints" / "long.npy")
    assert features.shape == (259, 263) and features.dtype == np.float32
    assert np.array_equal(features, joints_to_features(joints, T2M, T2M.target_offsets))  # t2m is retargeted
    assert (out / "texts" / "walk_a.txt").read_text() == TAGGED
    assert (out / "texts" / "walk_b.txt").read_text() == (
        "someone walks in a curve##0.0#0.0\nSomeone turns##0.0#0.0\n")
    assert json.loads((out / "labels.json").read_text()) == {"walk_a": {"actions": ["walk_forward"]}}
    assert (out / "manifest.csv").read_text() == (source / "manifest.csv").read_text()
    about = json.loads((out / "dataset.json").read_text())
    assert about == {"name": "mine", "skeleton": "t2m", "fps": 20.0, "min_frames": 40, "max_frames": 199,
                     "text_encoder": "minilm", "cfg": 4.5, "unit_length": 4, "distinct_retrieval": True,
                     "retarget": "target", "num_clips": {"train": 3, "val": 1, "test": 1}, "feature_dim": 263}


def test_every_clip_that_is_left_out_is_named(source, tmp_path, monkeypatch, capsys):
    out = tmp_path / "mine"
    assert prepare(monkeypatch, source, out) == 0
    report = json.loads((out / "report.json").read_text())
    assert set(report["unusable"]) == set(BAD)
    for name, words in BAD.items():
        assert words in report["unusable"][name], name
    assert report["not_used_for_text_to_motion"] == {"long": "259 frames, outside 40..199",
                                                     "short": "20 frames, outside 40..199"}
    assert report["text_to_motion"] == {"train": 2, "val": 0, "test": 1}
    printed = capsys.readouterr().out
    assert "5 clips (train 3, val 1, test 1)" in printed
    assert f"{len(BAD)} clips left out altogether" in printed
    assert "garbage: joints cannot be read" in printed and "long: 259 frames" in printed


def test_training_reads_it_and_agrees_about_the_clips(source, tmp_path, monkeypatch):
    assert prepare(monkeypatch, source, tmp_path / "mine") == 0
    store = MotionStore(get_spec("mine", tmp_path), "train")
    entries, dropped = text_clips(store)
    assert store.ids == GOOD["train"] and not store.skipped and list(dropped) == ["long"]
    assert [len(entry.captions) for entry in entries] == [1, 2]
    entries, _ = text_clips(MotionStore(get_spec("mine", tmp_path), "test"))
    assert [(entry.start, entry.end) for entry in entries] == [(10, 70), (0, 90)]


def test_statistics_are_of_the_training_split(source, tmp_path, monkeypatch):
    out = tmp_path / "mine"
    assert prepare(monkeypatch, source, out) == 0
    train = np.concatenate([np.load(out / "new_joint_vecs" / f"{name}.npy")
                            for name in GOOD["train"]]).astype(float)
    mean, std = np.load(out / "Mean.npy"), np.load(out / "Std.npy")
    assert mean.dtype == std.dtype == np.float32 and mean.shape == std.shape == (263,)
    assert np.allclose(mean, train.mean(0), atol=1e-6)
    assert np.allclose(std[:259], average_std(train.std(0), T2M)[:259], atol=1e-6)
    assert len(set(std[4:67].tolist())) == 1 and std[0] != std[1] == std[2] != std[3]


def test_columns_that_never_change_can_be_divided_by(source, tmp_path, monkeypatch, capsys):
    still = np.repeat(circle(1)[:1], 50, axis=0)
    for name in GOOD["train"]:
        np.save(source / "joints" / f"{name}.npy", still)
    assert prepare(monkeypatch, source, tmp_path / "mine") == 0
    assert (np.load(tmp_path / "mine" / "Std.npy") == 1).all()
    assert "263 feature columns never change" in capsys.readouterr().out


def test_workers_change_nothing(source, tmp_path, monkeypatch):
    for workers in (0, 2):
        assert prepare(monkeypatch, source, tmp_path / str(workers) / "mine", workers=workers) == 0
    for file in ("Mean.npy", "Std.npy", "report.json", "dataset.json", "train.txt",
                 "new_joint_vecs/turn.npy"):
        assert (tmp_path / "0" / "mine" / file).read_bytes() == (
            tmp_path / "2" / "mine" / file).read_bytes(), file


def test_a_worker_that_dies_is_not_waited_for():
    with pytest.raises(UserError, match="a process that converts clips was killed.*fewer --workers than 2"):
        prepare_dataset.convert_all([3, 3, 3], os._exit, workers=2)


def test_folders_of_others_beside_the_data_set_stay(source, tmp_path, monkeypatch):
    (tmp_path / "mine.old").mkdir()
    for flags in ((), ("--overwrite",)):
        assert prepare(monkeypatch, source, tmp_path / "mine", *flags) == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path != source) == ["mine", "mine.old"]


def test_flags_reach_the_data_set(source, tmp_path, monkeypatch):
    flags = "--fps 30 --min_frames 10 --max_frames 300 --retarget none --text_encoder clip --cfg 2".split()
    assert prepare(monkeypatch, source, tmp_path / "mine", *flags) == 0
    spec = get_spec("mine", tmp_path)
    assert (spec.fps, spec.min_frames, spec.max_frames, spec.cfg) == (30.0, 10, 300, 2.0)
    assert spec.text_encoder == "clip"
    features = np.load(tmp_path / "mine" / "new_joint_vecs" / "turn.npy")
    assert np.array_equal(features, joints_to_features(np.load(source / "joints" / "turn.npy"), T2M))
    assert not json.loads((tmp_path / "mine" / "report.json").read_text())["not_used_for_text_to_motion"]


def test_kit_has_its_own_defaults(source, tmp_path, monkeypatch):
    for name in sum(GOOD.values(), []):
        np.save(source / "joints" / f"{name}.npy", circle(1, frames=50, skeleton=SKELETONS["kit"]))
    assert prepare(monkeypatch, source, tmp_path / "mine", "--skeleton", "kit") == 0
    about = json.loads((tmp_path / "mine" / "dataset.json").read_text())
    assert (about["fps"], about["min_frames"], about["retarget"]) == (12.5, 24, "none")
    assert about["feature_dim"] == 251


def test_a_new_skeleton_needs_its_row_only(source, tmp_path, monkeypatch):
    row = dataclasses.replace(SKELETONS["kit"], name="new", fps=30.0, min_frames=45, height_range=(2, 3))
    monkeypatch.setitem(SKELETONS, "new", row)
    for name in sum(GOOD.values(), []):
        np.save(source / "joints" / f"{name}.npy", circle(1, frames=50, skeleton=row))
    assert prepare(monkeypatch, source, tmp_path / "mine", "--skeleton", "new") == 0
    spec, report = get_spec("mine", tmp_path), json.loads((tmp_path / "mine" / "report.json").read_text())
    assert (spec.skeleton, spec.fps, spec.min_frames) == ("new", 30.0, 45)
    assert "a body 2 to 3" in report["odd"]["turn"]


def test_an_existing_folder_is_kept(source, tmp_path, monkeypatch, capsys):
    out = tmp_path / "mine"
    assert prepare(monkeypatch, source, out) == 0
    (out / "mark").touch()
    capsys.readouterr()
    assert "exists already; pass --overwrite" in error_line(monkeypatch, capsys, source, out)
    assert (out / "mark").exists()
    assert prepare(monkeypatch, source, out, "--overwrite") == 0
    assert not (out / "mark").exists() and not list(tmp_path.glob("mine.*"))
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").touch()
    capsys.readouterr()
    assert "was not made by this script" in error_line(monkeypatch, capsys, source, photos, "--overwrite")
    assert (photos / "a.jpg").exists()


def test_an_interrupted_run_leaves_nothing_and_keeps_what_was_there(source, tmp_path, monkeypatch):
    out = tmp_path / "mine"
    assert prepare(monkeypatch, source, out) == 0
    before = (out / "Mean.npy").stat().st_mtime_ns

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_dataset, "write_statistics", interrupted)
        assert prepare(patch, source, out, "--overwrite") == 130
        assert prepare(patch, source, tmp_path / "second") == 130
    assert (out / "Mean.npy").stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["capture", "mine"]
    precious = tmp_path / "second.partial" / "notes.txt"  # not ours
    precious.parent.mkdir()
    precious.write_text("keep")
    assert prepare(monkeypatch, source, tmp_path / "second") == 2 and precious.read_text() == "keep"
    shutil.rmtree(precious.parent)
    leftover = tmp_path / "second.partial" / "texts"  # of a run that was killed
    leftover.mkdir(parents=True)
    (leftover / "old.txt").touch()
    assert prepare(monkeypatch, source, tmp_path / "second") == 0
    assert not leftover.exists() and not (tmp_path / "second" / "texts" / "old.txt").exists()


def test_joints_in_the_wrong_unit_or_lying_down_are_pointed_out(source, tmp_path, monkeypatch, capsys):
    for name, change in (("walk_a", lambda x: x * 1000),  # millimetres
                         ("turn", lambda x: x[..., [0, 2, 1]])):  # Z up
        file = source / "joints" / f"{name}.npy"
        np.save(file, change(np.load(file)))
    assert prepare(monkeypatch, source, tmp_path / "mine", "--retarget", "none") == 0
    odd = json.loads((tmp_path / "mine" / "report.json").read_text())["odd"]
    assert set(odd) == {"walk_a", "turn"} and "is the unit right" in odd["walk_a"]
    assert "look wrong" in capsys.readouterr().out


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize("spoil, words", [
    (lambda s: shutil.rmtree(s), "no folder"),
    (lambda s: shutil.rmtree(s / "joints"), "has no folder joints/"),
    (lambda s: shutil.rmtree(s / "texts"), "has no folder texts/"),
    (lambda s: (s / "val.txt").unlink(), "val.txt is missing"),
    (lambda s: write(s / "train.txt", "\n"), "train.txt is empty"),
    (lambda s: write(s / "train.txt", b"\xff\xfe\x00"), "train.txt cannot be read (it is not text in UTF-8)"),
    (lambda s: write(s / "test.txt", "turn\nwalk_a\n"), "'walk_a' is already in train.txt"),
    (lambda s: write(s / "test.txt", "../walk_a\n"), "is not a plain file name"),
    (lambda s: write(s / "train.txt", "nan\nflat\n"), "no clip of"),
    (lambda s: write(s / "train.txt", "other_body\n"),
     "(50, 21, 3), expected (frames, 22, 3) for the t2m skeleton"),
])
def test_sources_that_cannot_be_used(source, tmp_path, monkeypatch, capsys, spoil, words):
    spoil(source)
    assert words in error_line(monkeypatch, capsys, source, tmp_path / "mine")


@pytest.mark.parametrize("out, flags, words", [
    ("mine", ["--skeleton", "kit", "--retarget", "target"], "pass --retarget none"),
    ("mine", ["--min_frames", "200"], "--min_frames 200 is more than --max_frames 199"),
    ("capture", ["--overwrite"], "is the source or contains it"),
    ("kit", [], "names the data set"),
])
def test_flags_that_make_no_sense(source, tmp_path, monkeypatch, capsys, out, flags, words):
    assert words in error_line(monkeypatch, capsys, source, tmp_path / out, *flags)


def test_out_below_a_file(source, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    assert prepare(monkeypatch, source, tmp_path / "file" / "mine") == 2
    assert "error: cannot write to" in capsys.readouterr().err


def test_command_line():
    command = [sys.executable, "-m", "scripts.prepare_dataset", "--source", "nowhere", "--out", "nothing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: no folder nowhere")


def test_labels_of_a_manifest(source, tmp_path, monkeypatch, capsys):
    """They are made where labels.json is missing; clips without a label have none."""
    (source / "labels.json").unlink()
    lines = "\ufeffid,label", 'walk_a,"walk, tired"', "walk_b,", "nan,walk", "other,run", "turn, turn "
    (source / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    assert prepare(monkeypatch, source, tmp_path / "sets" / "mine") == 0
    labels = json.loads((tmp_path / "sets/mine/labels.json").read_text())
    assert labels == {"walk_a": {"actions": ["walk, tired"]}, "turn": {"actions": ["turn"]}}
    (source / "manifest.csv").write_bytes(b"id,label\nwalk_a,\xff\n")
    assert prepare(monkeypatch, source, tmp_path / "sets" / "bad") == 2
    assert "is not a CSV file in UTF-8" in capsys.readouterr().err
    (source / "manifest.csv").write_text("id,take\nwalk_a,1\n")
    assert prepare(monkeypatch, source, tmp_path / "sets" / "none") == 0
    assert not (tmp_path / "sets/none/labels.json").exists()
