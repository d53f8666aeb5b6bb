"""Clean feet: planted ones stay, bones keep their lengths, nothing jumps, and all above the hips is the
clip's own, bit for bit."""
from functools import partial

import numpy as np
import pytest
import tiny

from utils.demo.dataset import perform
from utils.evaluation.metrics import foot_skating, peak_jerk
from utils.motion.feet import bend, clean_feet, hold, lift
from utils.motion.skeletons import SKELETONS

T2M, KIT = SKELETONS["t2m"], SKELETONS["kit"]
call = partial(tiny.call, "scripts.clean_feet")


def standing(skeleton, frames=60):
    """Joints (frames, J, 3) float64 of a figure on bent knees that sways a little and does not step."""
    offsets = np.array(T2M.target_offsets if skeleton is T2M else np.asarray(KIT.raw_offsets) * 0.25)
    joints = np.zeros((frames, skeleton.num_joints, 3))
    for parent, child in skeleton.bones:
        joints[:, child] = joints[:, parent] + offsets[child]
    for _, knee, ankle, *foot in skeleton.legs:
        joints[:, knee] += [0, 0.04, 0.12]
        joints[:, [ankle, *foot]] += [0, 0.08, 0]
    joints[..., 1] -= joints[..., 1].min()
    joints[:, skeleton.chains[2][-1], 0] += 0.02 * np.sin(np.arange(frames) / 3)
    return joints


def sliding(joints, fps=20, speed=0.2):
    """The clip with its feet, and what is above, drifting ahead now and then."""
    drift = np.cumsum(np.maximum(np.sin(np.arange(len(joints)) / 5), 0) * speed / fps)
    return (joints + drift[:, None, None] * [0, 0, 1]).astype(np.float32)


def lengths(joints, leg):
    joints = joints.astype(np.float64)[:, leg]
    return np.linalg.norm(np.diff(joints, axis=1), axis=-1)


def check_body(before, after, skeleton):
    """Everything from the hips up is bit for bit the same, and every bone of the legs as long as it was."""
    below = [joint for leg in skeleton.legs for joint in leg[1:]]
    above = [joint for joint in range(skeleton.num_joints) if joint not in below]
    assert np.array_equal(before[:, above], after[:, above]) and before.dtype == after.dtype
    for leg in skeleton.legs:
        assert np.abs(lengths(before, list(leg)) - lengths(after, list(leg))).max() < 1e-5
        most = peak_jerk(before[:, leg], 1.0)
        assert peak_jerk(after[:, leg], 1.0) < 1.02 * most + 1e-6


@pytest.mark.parametrize("skeleton", [T2M, KIT], ids=["t2m", "kit"])
def test_feet_that_slide_are_held(skeleton):
    clip = sliding(standing(skeleton))
    clean = clean_feet(clip, 20, skeleton)
    before, after = (foot_skating(joints, 20, skeleton) for joints in (clip, clean))
    assert before > 0.05 and after < 0.35 * before
    check_body(clip, clean, skeleton)
    ahead = [(clean[:, knee, 2] - (clean[:, hip, 2] + clean[:, ankle, 2]) / 2).min()
             for hip, knee, ankle, *_ in skeleton.legs]
    assert min(ahead) > 0.03  # the knees stay in front


def test_the_demo_walk_is_cleaner_and_a_still_clip_stays():
    walking = sliding(perform(["walk_forward"], np.random.default_rng(0))[0])
    clean = clean_feet(walking, 20, T2M, floor=0)
    assert foot_skating(clean, 20, T2M) < 0.8 * foot_skating(walking, 20, T2M)
    check_body(walking, clean, T2M)
    still = standing(T2M).astype(np.float32)
    assert np.array_equal(clean_feet(still, 20, T2M, floor=0), still)


def test_feet_in_the_air_or_fast_on_the_ground_stay_as_they_are():
    ahead = np.arange(60, dtype=np.float32)[:, None, None] * [0, 0, 0.04]  # 0.8 m/s: no foot stands
    gliding = (standing(T2M) + ahead).astype(np.float32)
    assert np.array_equal(clean_feet(gliding, 20, T2M), gliding)
    falling = sliding(standing(T2M)) - np.arange(60, dtype=np.float32)[:, None, None] * [0, 0.05, 0]
    assert np.array_equal(clean_feet(falling, 20, T2M), falling)


def test_kept_frames_stay_bit_for_bit():
    clip = sliding(standing(T2M))
    free = (np.arange(60) >= 20) & (np.arange(60) < 45)
    clean = clean_feet(clip, 20, T2M, free=free)
    assert np.array_equal(clip[~free], clean[~free]) and not np.array_equal(clip[free], clean[free])
    check_body(clip, clean, T2M)


def test_feet_are_lifted_to_the_floor():
    clip = standing(T2M)
    dip = 0.03 * np.exp(-((np.arange(60) - 30) / 6.0) ** 2)
    clip = (clip - dip[:, None, None] * [0, 1, 0]).astype(np.float32)
    clean = clean_feet(clip, 20, T2M, floor=0)
    feet = [*T2M.left_feet, *T2M.right_feet]
    assert clip[:, feet, 1].min() < -0.02 and clean[:, feet, 1].min() > -0.004
    assert np.array_equal(clean_feet(clip, 20, T2M)[..., 1].min(), clip[..., 1].min())
    raised = lift(-dip, 0.0, np.ones(60, bool))
    assert (raised >= dip - 1e-9).all() and raised[0] < 1e-3


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_the_shortest_clips(frames):
    clip = sliding(standing(T2M))[:frames]
    assert clean_feet(clip, 20, T2M, floor=0).shape == clip.shape


def test_the_solution_is_the_minimum():
    """The banded system against dense least squares."""
    from utils.motion import feet
    rng = np.random.default_rng(0)
    x, firm = rng.normal(size=(9, 2, 1)), rng.uniform(size=(8, 2))
    free = np.arange(9) != 4
    rows, wanted = [], []

    def row(terms, weight, value=0.0):
        rows.append(np.zeros(18))
        for (t, j), factor in terms.items():
            rows[-1][2 * t + j] = factor * weight ** 0.5
        wanted.append(value * weight ** 0.5)

    for j in range(2):
        for t in range(8):
            row({(t + 1, j): 1, (t, j): -1}, firm[t, j], x[t, j, 0] - x[t + 1, j, 0])
        for t in range(6):
            row({(t + 3, j): 1, (t + 2, j): -3, (t + 1, j): 3, (t, j): -1}, feet.SMOOTH)
        for t in range(9):
            row({(t, j): 1}, feet.SMALL if free[t] else feet.PINNED)
    for t in range(9):
        row({(t, 0): 1, (t, 1): -1}, feet.RIGID)
    dense = np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)[0].reshape(9, 2)
    found = hold(np.repeat(x, 2, -1), firm, free)
    assert np.abs(found[..., 0] - dense).max() < 1e-6 and np.abs(found[4]).max() < 1e-6


def test_a_leg_reaches_what_it_can_and_never_straightens():
    hip, knee, ankle = [[0, 0.8, 0]], [[0, 0.41, 0.02]], [[0, 0.02, 0]]
    leg = np.stack([np.array(joint, float) for joint in (hip, knee, ankle)], 1)
    across = np.array([[0.2, 0, 0]])
    thigh, shin = np.linalg.norm(np.diff(leg, axis=1), axis=-1)[0]
    for wanted in ([0, 0.02, 0.05], [0, 0.1, 0.0], [0.3, 0.3, 0.1], [0, 0.5, -0.2], [0, -0.5, 0.0]):
        new_knee, new_ankle = bend(leg, np.array([wanted], float), across)
        assert np.linalg.norm(new_knee - hip) == pytest.approx(thigh)
        assert np.linalg.norm(new_ankle - new_knee) == pytest.approx(shin)
        assert new_knee[0, 2] - new_ankle[0, 2] / 2 > 0.01  # ahead of the line from hip to ankle
        far, most = np.linalg.norm([0, 0.8, 0] - np.array(wanted)), thigh + shin
        reached = np.linalg.norm(new_ankle - wanted)
        assert reached < 1e-9 if far < 0.78 else np.linalg.norm(new_ankle - hip) < most - 0.0004
    back = leg + [[[0, 0, 0], [0, 0, -0.022], [0, 0, 0]]]  # a knee just behind: it goes forward, not back
    assert bend(back, np.array([[0, 0.1, 0.0]]), across)[0][0, 2] > 0.1
    same = bend(leg, leg[:, 2], across)
    assert np.abs(same[0] - leg[:, 1]).max() < 1e-9 and np.abs(same[1] - leg[:, 2]).max() < 1e-9



def test_the_script(tmp_path, capsys):
    clips = {"a": sliding(standing(T2M)), "b": sliding(standing(KIT), 12.5)}
    for name, joints in clips.items():
        np.save(tmp_path / f"{name}.npy", joints)
    files = [tmp_path / "a.npy", tmp_path / "b.npy"]
    assert call(*files) == 0 and call(*files, "--output_dir", tmp_path / "other", "--fps", 30) == 0
    for name, joints, fps, skeleton in (("a", clips["a"], 20, T2M), ("b", clips["b"], 12.5, KIT)):
        clean = np.load(tmp_path / f"{name}_clean.npy")
        assert np.array_equal(clean, clean_feet(joints, fps, skeleton, 0.0))
        assert f"{foot_skating(clean, fps, skeleton):.4f}" in capsys.readouterr().out or name == "b"
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), joints)
        assert (tmp_path / "other" / f"{name}_clean.npy").is_file()


@pytest.mark.parametrize("content, message", [
    (None, "cannot be read"), (b"no array", "cannot be read"), (np.zeros((40, 263)), "got (40, 263)"),
    (np.zeros((40, 20, 3)), "has shape"), (np.zeros((0, 22, 3)), "no frames"),
    (np.full((9, 22, 3), np.nan), "not finite"), (standing(T2M) - 0.9, "--floor -0.90")])
def test_mistakes_get_one_line(tmp_path, capsys, content, message):
    path = tmp_path / "clip.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    assert call(path) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("error: ") and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "clip_clean.npy").exists()
