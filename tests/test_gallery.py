"""scripts/gallery.py as a user runs it: captions, order, size of the picture, one line for each mistake."""
import sys

import numpy as np
import pytest
from PIL import Image

from scripts import gallery
from utils.demo.dataset import make_clip
from utils.errors import run

SAMPLES = ["000_a_person_walks_forward_80f_r0.npy", "001_someone_waves_with_the_right_hand_64f_r0.npy"]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the script in ``tmp_path`` -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["gallery.py", *map(str, args)])
        try:
            run(gallery.main)
        except SystemExit as stop:
            return stop.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return call


@pytest.fixture
def drawn(monkeypatch):
    """What the script hands to the painter, which itself draws nothing: a dict of arguments."""
    arguments = {}

    def remember(clips, path, skeleton, fps, columns, seconds):
        arguments.update(clips=clips, path=path, skeleton=skeleton, fps=fps, columns=columns, seconds=seconds)
        path = gallery.Path(path)
        path.write_bytes(b"")
        return path

    monkeypatch.setattr(gallery, "gallery", remember)
    return arguments


@pytest.fixture
def folder(tmp_path):
    """Two clips named as sample.py names them, 60 and 61 frames long, and a file that is no clip."""
    (tmp_path / "clips").mkdir()
    joints = make_clip(["walk_forward", "bow"], np.random.default_rng(0))
    for frames, name in enumerate(SAMPLES, 60):
        np.save(tmp_path / "clips" / name, joints[:frames])
    (tmp_path / "clips" / "notes.txt").write_text("")
    return tmp_path / "clips"


def test_six_clips_fit_in_a_readme(call, tmp_path):
    actions = ["walk_circle_left", "jump", "wave_right", "kick_left", "bow", "jumping_jacks"]
    for number, action in enumerate(actions):
        joints = make_clip([action], np.random.default_rng(number))[:120]
        np.save(tmp_path / f"{number:03d}_{action}_{len(joints)}f_r0.npy", joints)
    code, out, _ = call("--folder", tmp_path)
    picture = tmp_path / "docs/pictures/gallery.gif"
    assert code == 0 and "docs/pictures/gallery.gif: 6 clips" in out
    assert picture.stat().st_size < 3e6
    with Image.open(picture) as gif:
        assert gif.size == (720, 588) and 63 <= gif.n_frames <= 84      # 6 s and a rest, to a third more


def test_captions_come_from_the_file_names(call, drawn, folder):
    assert call("--folder", folder, "--output", "x.gif")[0] == 0
    captions = ["a person walks forward", "someone waves with the right hand"]
    assert [(len(joints), caption) for joints, caption in drawn["clips"]] == [*zip((60, 61), captions)]
    assert (drawn["fps"], drawn["columns"], drawn["seconds"], drawn["skeleton"].name) == (20, 3, 8, "t2m")


@pytest.mark.parametrize("name, caption", [
    ("012_jumps_196f_r3-2", "jumps"), ("my_clip", "my clip"), ("2_people", "2 people"),
    ("000_turns_by_180_degrees_r0", "turns by 180 degrees"),
])
def test_caption_of(name, caption):
    assert gallery.caption_of(gallery.Path(f"folder/{name}.npy")) == caption


def test_clips_and_captions_in_the_given_order(call, drawn, folder):
    flags = ["--clips", folder / SAMPLES[1], folder / SAMPLES[0], "--captions", "It waves.", "It walks.",
             "--columns", 2, "--fps", 30, "--seconds", 2.5, "--output", "x.webp"]
    assert call(*flags)[0] == 0
    shown = [(len(joints), caption) for joints, caption in drawn["clips"]]
    assert shown == [(61, "It waves."), (60, "It walks.")]
    assert (drawn["fps"], drawn["columns"], drawn["seconds"], str(drawn["path"])) == (30, 2, 2.5, "x.webp")


@pytest.mark.parametrize("flags, message", [
    (["--clips", "none.npy"], "none.npy"),
    (["--clips", "features.npy"], "features.npy: joints must have shape (frames, 22, 3)"),
    (["--clips", "clips/" + SAMPLES[0], "nan.npy"], "nan.npy: joints are not finite"),
    (["--clips", "clips/notes.txt"], "clips/notes.txt cannot be read"),
    (["--folder", "nowhere"], "--folder: no folder nowhere"),
    (["--folder", "."], "holds no .npy file"),
    (["--folder", "clips", "--captions", "only one"], "--captions: 1 for 2 clips"),
    (["--folder", "clips", "--output", "gallery.png"], "must end in .gif, .webp, .mp4"),
    (["--folder", "clips", "--skeleton", "kit"], "(frames, 21, 3) for the kit skeleton, got (60, 22, 3)"),
    (["--folder", "clips", "--columns", "0"], "--columns"),
    (["--folder", "clips", "--fps", "0"], "--fps"),
    (["--folder", "clips", "--clips", "nan.npy"], "not allowed with"),
    ([], "--clips --folder is required"),
])
def test_mistakes_are_one_line(call, folder, tmp_path, flags, message):
    if "." not in flags:
        np.save(tmp_path / "features.npy", np.zeros((60, 263)))
        np.save(tmp_path / "nan.npy", np.full((60, 22, 3), np.nan))
    code, out, err = call(*flags)
    assert code == 2 and not out and message in err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "docs").exists()
