"""sample.py with many prompts: clips are written as they are made, a killed run goes on, and neither batches
nor threads change what comes out."""
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, FakeEncoder
from tiny import FAST, fake_features, write_checkpoints

import sample
from models import loading
from models.MARDM import MARDM
from utils import clips
from utils.errors import run
from utils.motion.skeletons import SKELETONS

PROMPTS = [f"somebody {verb} {how}#{frames}" for verb, frames in (("walks", 40), ("waves", 48), ("sits", 44))
           for how in ("fast", "very slowly", "again and again", "once")]  # 12
FLAGS = ["--name", "mardm", "--dataset_name", "body22", "--text_path", "prompts.txt", "--no_video", *FAST]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("load")
    write_checkpoints(root, "body22", SKELETONS["t2m"])
    return root


@pytest.fixture
def work(runs, tmp_path, monkeypatch):
    """A folder to work in; five clips are held at a time, two make a batch."""
    (tmp_path / "checkpoints").symlink_to(runs / "checkpoints")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample, "load_text_encoder", lambda name: FakeEncoder(fake_features))
    monkeypatch.setattr(sample, "CHUNK", 5)
    monkeypatch.setattr(sample, "BATCH", 2)
    sample.kept.cache_clear()
    return tmp_path


def call(*more, flags=FLAGS):
    before, sys.argv = sys.argv, ["sample.py", *flags, *more]
    try:
        run(sample.main)
    except SystemExit as stop:
        return stop.code or 0
    finally:
        sys.argv = before
    return 0


def files(out="generation"):
    """{name: content} of all that was written."""
    return {path.name: path.read_bytes() for path in sorted((clips.Path(out) / "mardm_body22").iterdir())}


def watch(monkeypatch, fail_at=None):
    """Lists of how many clips are made at a time and how many were written before; ``fail_at``: the number of
    the call that ends as Ctrl-C does."""
    made, written, original = [], [], sample.freely

    def freely(pipeline, cond, lengths, seeds, *rest):
        folder = clips.Path("generation/mardm_body22")
        written.append(len(list(folder.glob("*.npy"))) if folder.exists() else 0)
        if len(made) == fail_at:
            raise KeyboardInterrupt
        made.append(len(seeds))
        return original(pipeline, cond, lengths, seeds, *rest)

    monkeypatch.setattr(sample, "freely", freely)
    return made, written


def test_clips_are_written_as_they_are_made(work, monkeypatch, capsys):
    made, written = watch(monkeypatch)
    encoded, encode = [], FakeEncoder(fake_features)
    monkeypatch.setattr(encode, "encode", lambda texts: encoded.append(len(texts)) or fake_features(texts))
    monkeypatch.setattr(sample, "load_text_encoder", lambda name: encode)
    assert call("--repeat_times", "2") == 0
    assert made == [5, 5, 5, 5, 4] and written == [0, 5, 10, 15, 20]
    assert max(encoded) == 3  # prompts, of which five clips need three
    said = [line for line in capsys.readouterr().out.splitlines() if line.endswith(".npy")]
    assert [clips.Path(line).name[:4] for line in said] == [f"{row:03d}_" for row in range(12) for _ in "01"]
    assert len(files()) == 2 * 24


def test_a_killed_run_goes_on(work, monkeypatch, capsys):
    assert call("--output_dir", "whole") == 0
    with monkeypatch.context() as patch:
        watch(patch, fail_at=2)
        assert call() == 130
    folder = work / "generation/mardm_body22"
    assert len(list(folder.glob("*.npy"))) == 10
    name = next(folder.glob("003_*.npy")).stem
    (folder / f"{name}.json").unlink()  # killed between the two files
    (folder / f".0123456789ab.{name}.npy").write_bytes(b"half")
    os.utime(folder / f".0123456789ab.{name}.npy", (0, 0))
    capsys.readouterr()
    made, _ = watch(monkeypatch)
    assert call() == 0
    assert made == [5, 2] and "5 of 12 clips were there" in capsys.readouterr().err
    assert files() == files("whole")
    assert call() == 0 and made == [5, 2] and files() == files("whole")  # nothing left to do


def test_sigkill(work):
    """A process that is really killed, wherever it is, and one that goes on."""
    code = ("import sys, torch; sys.path[:0] = sys.argv[1:3]; torch.set_num_threads(1);"
            "import sample, tiny; from conftest import FakeEncoder; sample.CHUNK = 5; sample.BATCH = 2;"
            "sample.load_text_encoder = lambda name: FakeEncoder(tiny.fake_features);"
            "sys.argv = ['sample.py', *sys.argv[3:]]; sample.main()")
    words = [sys.executable, "-c", code, str(ROOT), str(ROOT / "tests"), *FLAGS]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(work.glob("generation/*/003_*.json")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and len(list(work.glob("generation/*/*.npy"))) < 12
    assert call() == 0 and call("--output_dir", "whole") == 0
    assert files() == files("whole")


@pytest.mark.parametrize("change", ["cfg", "code", "prompts", "weights"])
def test_clips_of_another_request_are_not_taken(work, monkeypatch, change):
    assert call() == 0
    made, _ = watch(monkeypatch)
    first, flags = files(), FLAGS
    if change == "cfg":
        flags = [*FLAGS, "--cfg", "3"]
    elif change == "code":
        monkeypatch.setattr(sample, "code_hash", lambda: "another")
    elif change == "prompts":
        (work / "prompts.txt").write_text("\n".join([*PROMPTS[:6], "somebody jumps#40", *PROMPTS[7:]]))
    else:
        monkeypatch.setattr(loading, "weights_hash", lambda network, of=loading.weights_hash:
                            "another" if isinstance(network, MARDM) else of(network))
    assert call(flags=flags) == 0
    assert made == ([5] if change == "prompts" else [5, 5, 2])
    now = files()
    assert all(now[name] == content for name, content in first.items() if name.endswith(".npy"))
    assert (len(now) > len(first)) == (change in ("cfg", "prompts"))  # otherwise the same clips came out


def test_damaged_clips_are_made_again(work, monkeypatch):
    assert call() == 0
    good, folder = files(), work / "generation/mardm_body22"
    (folder / "view.html").write_text("of somebody else")
    path = next(folder.glob("000_*.json"))
    path.write_text("{")
    made, _ = watch(monkeypatch)
    assert call() == 0 and made == [5]
    assert files() == good | {"view.html": b"of somebody else"}


def test_videos_are_drawn_once_unless_they_lack(work, monkeypatch):
    drawn = []

    def render_many(drawings, workers):
        drawn.append(sorted(drawing["path"].name[:3] for drawing in drawings))
        for drawing in drawings:
            drawing["path"].write_bytes(b"video")

    monkeypatch.setattr(clips, "render_many", render_many)
    flags = [flag for flag in FLAGS if flag != "--no_video"]
    assert call(flags=flags) == 0 and [*map(len, drawn)] == [5, 5, 2]
    next(work.glob("generation/*/007_*.mp4")).unlink()
    assert call(flags=flags) == 0 and drawn[3:] == [["007"]]


def codes_and_joints(folder):
    paths = sorted((clips.Path(folder) / "mardm_body22").glob("*.npy"))
    return ([json.loads(path.with_suffix(".json").read_text())["codes"]["digits"] for path in paths],
            [np.load(path) for path in paths])


def test_a_clip_does_not_depend_on_its_batch(work, monkeypatch):
    found = {}
    for batch, chunk in ((1, 1), (2, 5), (32, 128)):
        monkeypatch.setattr(sample, "BATCH", batch)
        monkeypatch.setattr(sample, "CHUNK", chunk)
        assert call("--output_dir", str(batch)) == 0
        found[batch] = codes_and_joints(str(batch))
    for codes, joints in (found[2], found[32]):
        assert codes == found[1][0]
        assert all(np.abs(one - other).max() < 1e-5 for one, other in zip(joints, found[1][1]))  # metres


def test_threads_do_not_change_codes(work):
    found, before = {}, torch.get_num_threads()
    (work / "prompts.txt").write_text("\n".join(PROMPTS[:3]))
    try:
        for threads in (1, 2, 16):
            torch.set_num_threads(threads)
            assert call("--output_dir", str(threads)) == 0
            found[threads] = codes_and_joints(str(threads))
    finally:
        torch.set_num_threads(before)
    for threads in (2, 16):
        codes, joints = found[threads]
        assert codes == found[1][0]
        assert all(np.abs(one - other).max() < 1e-5 for one, other in zip(joints, found[1][1]))
