"""Smoothness of motions: the spectral arc length, turns, changes of action, and scripts.compare_models."""
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import FAST, call, enter, walk, write_checkpoints

from utils.demo.dataset import make_clip
from utils.evaluation import metrics
from utils.evaluation.probes import action_change, check
from utils.evaluation.smoothness import flat, smoothness, stretches, turning
from utils.motion.features import rotate_y
from utils.motion.skeletons import SKELETONS

T2M = SKELETONS["t2m"]


def test_spectral_arc_length_of_the_papers_example():
    """A bell of speed at 100 Hz, for which the authors' code prints -1.41403."""
    bell = np.exp(-5 * np.arange(-1, 1, 0.01) ** 2)
    assert metrics.spectral_arc_length(bell, 100.0) == pytest.approx(-1.41403, abs=5e-6)


def test_spectral_arc_length_sees_sub_movements_and_no_scale():
    times = np.linspace(0, 2, 81)
    one = np.exp(-20 * (times - 1) ** 2)
    two = np.exp(-80 * (times - 0.5) ** 2) + np.exp(-80 * (times - 1.5) ** 2)
    found = metrics.spectral_arc_length(np.stack([one, 7 * one, two, 0 * one]), 40.0)
    assert found[0] == pytest.approx(found[1]) and found[2] < found[0] - 0.5 and np.isnan(found[3])
    slower = metrics.spectral_arc_length(one, 20.0)  # the same movement in twice the time
    assert slower == pytest.approx(found[0], abs=0.02)
    with pytest.raises(ValueError, match="2 frames"):
        metrics.spectral_arc_length([1.0], 20)


def test_mean_jerk_of_polynomials():
    times = np.arange(12) / 20
    joints = np.zeros((12, 2, 3))
    joints[:, 0, 1] = 2 * times**3  # a third derivative of 12, of one joint of two
    assert metrics.mean_jerk(joints, 20.0) == pytest.approx(6)
    assert metrics.mean_jerk(joints[:, 1:], 20.0) == 0


def test_stretches_last_a_second_and_none_is_cut_off():
    joints = np.arange(65 * 3).reshape(65, 1, 3)
    whole, around = stretches(joints, 20, [9, 10, 40, 55, 56])
    assert whole.shape == (5, 20, 1, 3) and around.shape == (3, 20, 1, 3)
    assert [piece[0, 0, 0] // 3 for piece in whole] == [0, 10, 20, 30, 40]
    assert [piece[0, 0, 0] // 3 for piece in around] == [0, 30, 45]
    assert [len(pieces) for pieces in stretches(joints[:19], 20, [9])] == [0, 0]


@pytest.mark.parametrize("degrees, turns", [(44, False), (46, True), (-46, True), (270, True)])
def test_a_turn_is_45_degrees_within_a_second(degrees, turns):
    body, way = np.repeat(walk(T2M, 1), 20, 0), np.radians(degrees) * np.linspace(0, 1, 20)
    starts = np.arange(0, 6.3, 0.3)  # some of them let the heading pass 180 degrees
    turned = np.stack([rotate_y(body, (start + way)[:, None]) for start in starts])
    assert turning(turned, T2M).tolist() == [turns] * len(starts)


def test_segments_by_hand():
    """A walk straight ahead with a jolt at one frame: only the stretch around it is rough."""
    joints = walk(T2M, 120, curve=0).astype(np.float64)
    joints[60] += [0, 0.05, 0]
    found = smoothness([joints], 20, T2M, [[60]])
    assert found["all"]["stretches"] == 11 and found["transition"]["stretches"] == 1
    assert found["turning"] == {"stretches": 0, "acceleration": None, "jerk": None, "sparc": None}
    assert found["transition"]["jerk"] > 3 * found["all"]["jerk"]
    smooth = smoothness([walk(T2M, 120, curve=0)], 20, T2M)
    assert smooth["transition"]["stretches"] == 0 and smooth["all"]["jerk"] < found["all"]["jerk"]
    bent = smoothness([walk(T2M, 120, curve=0.06)], 20, T2M)
    assert bent["turning"]["stretches"] == bent["all"]["stretches"]
    assert flat(found)["jerk_transition"] == found["transition"]["jerk"] and flat(None) == {}


def test_joints_that_stand_do_not_count_in_the_arc_length():
    """One joint in an even movement, all others trembling by less than a millimetre."""
    tremble = 2e-4 * np.random.default_rng(0).standard_normal((20, 22, 3))
    rest = np.repeat(walk(T2M, 1), 20, 0)
    assert smoothness([rest + tremble], 20, T2M)["all"]["sparc"] is None
    moved = rest + tremble
    moved[:, 20, 1] += 0.3 * (1 - np.cos(np.pi * np.arange(20) / 19))
    speed = np.linalg.norm(np.diff(moved[:, 20], axis=0), axis=-1) * 20
    expected = metrics.spectral_arc_length(speed, 20)
    assert smoothness([moved], 20, T2M)["all"]["sparc"] == pytest.approx(float(expected))


def test_the_change_of_action_is_found_where_it_is():
    rng = np.random.default_rng(0)
    first = make_clip(["walk_forward"], rng)
    clip = make_clip(["walk_forward", "bow"], np.random.default_rng(0))
    found = action_change(["walk_forward", "bow"], clip)
    assert check(["walk_forward"], clip[:found]) and check(["bow"], clip[found:])
    assert abs(found - len(first)) < 40
    assert action_change(["bow", "walk_forward"], clip) is None
    with pytest.raises(ValueError, match="two known actions"):
        action_change(["walk_forward"], clip)


@pytest.fixture
def two_models(tmp_path, monkeypatch):
    """Two tiny generators, on an FSQ and on a continuous autoencoder, which end in files of one folder."""
    write_checkpoints(tmp_path / "a", "demo", T2M)
    write_checkpoints(tmp_path / "b", "demo", T2M, ae_model="AE_Model")
    runs = tmp_path / "checkpoints/demo"
    runs.mkdir(parents=True)
    for letter in "ab":
        for kind in ("ae", "mardm"):
            (tmp_path / letter / "checkpoints/demo" / kind).rename(runs / f"{kind}_{letter}")
        path = runs / f"mardm_{letter}/model/latest.tar"
        content = torch.load(path, weights_only=True)
        content["trained_on"]["name"] = f"ae_{letter}"
        torch.save(content, path)
    (tmp_path / "work").mkdir()
    return enter(tmp_path, tmp_path / "work", monkeypatch)


ASKED = ["--dataset_name", "demo", "--models", "mardm_a", "mardm_b", *FAST, "--text_prompt", "a man waves",
         "--motion_length", "40", "--format", "gif"]


def test_models_side_by_side(two_models, capsys):
    assert call("scripts.compare_models", *ASKED) == 0
    assert "jerk m/s^3" in capsys.readouterr().out
    folder = two_models / "generation"
    picture = next((folder / "compare_demo").glob("000_a_man_waves_40f_r0_*.gif"))
    with Image.open(picture) as gif:
        assert gif.width == 2 * 300
    clips = [np.load(folder / f"mardm_{letter}_demo/000_a_man_waves_40f_r0.npy") for letter in "ab"]
    assert clips[0].shape == clips[1].shape == (40, 22, 3) and not np.allclose(*clips)
    results = json.loads((folder / "compare_demo/compare_models.json").read_text())
    assert results["clips"] == [{"prompt": "a man waves", "frames": 40}]
    assert results["settings"]["models"] == ["mardm_a", "mardm_b"] and "cfg" in results["settings"]
    for letter, clip in zip("ab", clips):
        one = results["models"][f"mardm_{letter}"]
        assert one["smoothness"]["all"]["jerk"] == pytest.approx(metrics.mean_jerk(
            np.stack([clip[start : start + 20] for start in (0, 10, 20)]), 20).mean(), rel=1e-4)
    # the clips are those of sample.py, and a second call makes and draws nothing anew
    before = picture.stat().st_mtime_ns
    assert call("scripts.compare_models", *ASKED) == 0
    assert picture.stat().st_mtime_ns == before and len(list(folder.rglob("*.gif"))) == 1
    assert "clips were there" in capsys.readouterr().err


@pytest.mark.parametrize("flags, message", [
    (["--models", "mardm_a"], "1 given; from 2 to 8"),
    (["--models", "mardm_a", "mardm_a"], "'mardm_a' is named twice"),
    (["--models", "mardm_a", "absent"], "absent"),
    (["--ae_name", "ae_a"], "--ae_name: each generator comes as it was trained"),
    (["--no_video"], "--no_video: pictures are what this script makes"),
])
def test_mistakes_are_one_line(two_models, capsys, flags, message):
    assert call("scripts.compare_models", *ASKED, *flags) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("error:") == 1 and not (two_models / "generation").exists()


def test_generators_of_different_conditions_are_refused(two_models, tmp_path, capsys):
    write_checkpoints(tmp_path / "c", "demo", T2M, cond_mode="uncond")
    (tmp_path / "c/checkpoints/demo/mardm").rename(tmp_path / "checkpoints/demo/mardm_c")
    (tmp_path / "checkpoints/demo/ae").symlink_to(tmp_path / "checkpoints/demo/ae_a")
    assert call("scripts.compare_models", *ASKED, "--models", "mardm_a", "mardm_c") == 2
    assert "mardm_c reads uncond, mardm_a text" in capsys.readouterr().err
