"""Metrics: the reference's numbers, and what each must do on data whose answer is known."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import golden, relative_error

from utils.errors import UserError
from utils.evaluation import metrics
from utils.evaluation.scoring import evaluate, retrieval_scores
from utils.motion.feet import foot_contacts
from utils.report import write_json

FEET = SimpleNamespace(left_feet=(7, 10), right_feet=(8, 11))


def test_fid_of_the_reference():
    data = golden("metrics.npz")
    real, pred = (metrics.calculate_activation_statistics(data[key]) for key in ("real", "pred"))
    assert relative_error(metrics.calculate_frechet_distance(*real, *pred), data["fid"]) < 1e-7


def test_retrieval_of_the_reference():
    data = golden("metrics.npz")
    scores = retrieval_scores(data["text"], data["real"], np.arange(384).reshape(12, 32))
    assert relative_error([scores[key] for key in ("R1", "R2", "R3")], data["r_precision"]) < 1e-7
    assert relative_error(scores["matching"], data["matching"]) < 1e-7  # the golden number is a float32


def test_spread_of_the_reference():
    data = golden("metrics.npz")
    np.random.seed(1)
    assert relative_error(metrics.calculate_diversity(data["real"], 300), data["diversity_seed1"]) < 1e-7
    np.random.seed(2)
    assert relative_error(metrics.calculate_multimodality(data["mm_act"], 10),
                          data["multimodality_seed2"]) < 1e-7


def test_mpjpe_of_the_reference():
    data = golden("metrics.npz")
    assert relative_error(metrics.calculate_mpjpe(data["gt_joints"], data["pred_joints"]),
                          data["mpjpe"]) < 1e-7


def test_fid_where_the_answer_is_known():
    rng = np.random.default_rng(0)
    sigma = np.diag([1.0, 4.0, 9.0])
    assert metrics.calculate_frechet_distance(np.zeros(3), sigma, np.ones(3), sigma) == pytest.approx(3)
    assert metrics.calculate_frechet_distance(np.zeros(3), sigma, np.zeros(3), 4 * sigma) == pytest.approx(14)
    few = metrics.calculate_activation_statistics(rng.standard_normal((20, 64)))  # singular covariance
    assert metrics.calculate_frechet_distance(*few, *few) == pytest.approx(0, abs=1e-5)


def test_fid_agrees_with_a_general_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(1)
    mu1, s1 = metrics.calculate_activation_statistics(rng.standard_normal((300, 16)))
    mixed = rng.standard_normal((300, 16)) @ rng.standard_normal((16, 16))
    mu2, s2 = metrics.calculate_activation_statistics(mixed)
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(s1 + s2 - 2 * linalg.sqrtm(s1 @ s2).real)
    assert metrics.calculate_frechet_distance(mu1, s1, mu2, s2) == pytest.approx(expected, rel=1e-9)


def test_distances_and_ranking():
    a, b = np.array([[0.0, 0], [3, 4]]), np.array([[0.0, 0], [3, 0], [0, 5]])
    assert np.allclose(metrics.euclidean_distance_matrix(a, b), [[0, 3, 5], [5, 4, np.sqrt(10)]])
    same = np.full((4, 8), 1e4) + np.random.default_rng(0).standard_normal((4, 8)) * 1e-6
    assert np.isfinite(metrics.euclidean_distance_matrix(same, same)).all()
    distances = np.array([[1.0, 2, 3], [3, 2, 1], [1, 2, 3]])
    expected = [[True] * 3, [False, True, True], [False, False, True]]
    assert metrics.top_k_hits(distances, 3).tolist() == expected
    assert metrics.top_k_hits(np.stack([distances, distances]), 3).tolist() == [expected, expected]


def test_hits_are_those_of_a_stable_sort():
    distances = np.random.default_rng(2).integers(0, 6, (40, 32, 32)).astype(float)  # many are equal
    for table in distances:
        ranking = np.argsort(table, axis=1, kind="stable")
        right = np.maximum.accumulate(ranking[:, :3] == np.arange(32)[:, None], axis=1)
        assert np.array_equal(metrics.top_k_hits(table, 3), right)


def test_retrieval_scores_by_hand():
    motion = np.array([[0.0], [10], [20], [30]])
    text = np.array([[1.0], [16], [18], [-1]])  # right, second, right, last of its batch
    scores = retrieval_scores(text, motion, [np.array([2, 0, 3, 1])])
    assert scores == {"R1": 0.5, "R2": 0.75, "R3": 0.75, "matching": (1 + 6 + 2 + 31) / 4}
    assert retrieval_scores(text, motion, [np.array([0, 1]), np.array([3, 2])])["R1"] == 0.75


def test_fid_offsets_the_diagonals_where_the_root_is_not_finite(monkeypatch):
    sigma, shifted, seen = np.diag([1.0, 0.0]), np.diag([4.0, 0.0]), []
    exact = metrics._trace_of_root

    def root_of_regular_ones(sigma1, sigma2):
        seen.append((sigma1, sigma2))
        return exact(sigma1, sigma2) if np.linalg.matrix_rank(sigma1 @ sigma2) == len(sigma1) else np.nan

    # no need of it
    assert metrics.calculate_frechet_distance([0, 0], sigma, [1, 0], shifted, eps=0.1) == pytest.approx(2)
    monkeypatch.setattr(metrics, "_trace_of_root", root_of_regular_ones)
    expected = 1 + 5 - 2 * (np.sqrt(1.1 * 4.1) + 0.1)
    assert metrics.calculate_frechet_distance([0, 0], sigma, [1, 0], shifted,
                                              eps=0.1) == pytest.approx(expected)
    assert len(seen) == 2 and metrics.calculate_frechet_distance([0, 0], sigma, [1, 0],
                                                                 shifted) == pytest.approx(2, abs=1e-5)
    monkeypatch.undo()
    assert np.isnan(metrics.calculate_frechet_distance([0, 0], sigma * np.nan, [1, 0], shifted))


def test_json_holds_null_where_a_number_is_not_finite(tmp_path):
    def refuse(word):
        raise ValueError(word)

    value = {"a": float("nan"), "b": [1.5, {"c": (np.float64("inf"), "nan", None, True)}], "d": -np.inf}
    write_json(tmp_path / "results.json", value)
    read = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert read == {"a": None, "b": [1.5, {"c": [None, "nan", None, True]}], "d": None}


def test_joint_metrics_of_clips_together_are_those_of_each():
    real, made = np.random.default_rng(5).standard_normal((2, 4, 12, 22, 3))
    real[:, :, FEET.left_feet + FEET.right_feet, 1] *= 0.01
    for metric in (metrics.calculate_mpjpe, metrics.acceleration_error):
        assert np.allclose(metric(real, made), [metric(*pair) for pair in zip(real, made)], rtol=1e-12)
    assert np.allclose(metrics.foot_skating(real, 20.0, FEET),
                       [metrics.foot_skating(clip, 20.0, FEET) for clip in real])
    assert metrics.foot_skating(real, 20.0, FEET).min() > 0


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="embeddings"):
        metrics.euclidean_distance_matrix(np.zeros((4, 3)), np.zeros((4, 5)))
    with pytest.raises(ValueError, match="pairs"):
        metrics.calculate_diversity(np.zeros((4, 3)), 5)
    with pytest.raises(ValueError, match="joints"):
        metrics.calculate_mpjpe(np.zeros((4, 22, 3)), np.zeros((5, 22, 3)))


def test_retrieval_batches_hold_a_group_once():
    rng = np.random.default_rng(3)
    groups = np.array(["a"] * 30 + [f"g{i % 50}" for i in range(300)])
    batches = metrics.retrieval_batches(groups, 32, rng)
    rows = np.concatenate(batches)
    assert len(batches) >= 8 and all(len(batch) == 32 for batch in batches)
    assert len(set(rows.tolist())) == len(rows)
    assert all(len(set(groups[batch])) == 32 for batch in batches)
    again = metrics.retrieval_batches(groups, 32, np.random.default_rng(3))
    assert all(np.array_equal(x, y) for x, y in zip(batches, again))
    assert metrics.retrieval_batches(groups[:40], 32, rng) == []


def test_too_few_clips_are_named_before_any_is_generated():
    drawn = SimpleNamespace(captions=["walk"] * 31)
    with pytest.raises(UserError, match="needs 32 clips; the split of 31 clips has too few"):
        evaluate(None, lambda _repeat: drawn, None, 1, 0)


def test_retrieval_batches_drop_only_the_last_of_distinct_captions():
    batches = metrics.retrieval_batches(np.arange(100), 32, np.random.default_rng(0))
    assert len(batches) == 3 and len(set(np.concatenate(batches).tolist())) == 96


def test_confidence_interval():
    assert metrics.confidence_interval([1.0, 3.0]) == pytest.approx(1.96 / np.sqrt(2))
    assert metrics.confidence_interval([[1.0, 2.0], [3.0, 2.0]]).shape == (2,)


def test_joint_errors():
    rng = np.random.default_rng(0)
    joints = rng.standard_normal((10, 22, 3))
    # a shift is aligned away
    assert metrics.calculate_mpjpe(joints, joints + [1.0, 2, 3]) == pytest.approx(np.zeros(10))
    drift = np.linspace(0, 1, 10)[:, None, None]
    assert metrics.acceleration_error(joints, joints + drift) == pytest.approx(np.zeros(8))
    jitter = np.zeros((10, 22, 3))
    jitter[1::2, :, 0] = 0.5
    assert metrics.acceleration_error(joints, joints + jitter) == pytest.approx(np.ones(8))


def test_acceleration_and_peak_jerk_of_polynomials():
    time, fps = np.arange(40)[:, None, None] / 20, 20.0
    joints = np.random.default_rng(0).standard_normal((1, 22, 3)) + time * [1, 2, 3]  # constant velocity
    assert metrics.acceleration(joints, fps) == pytest.approx(0, abs=1e-9)
    assert metrics.peak_jerk(joints, fps) == pytest.approx(0, abs=1e-8)
    falling = joints - [0, 9.81 / 2, 0] * time**2
    assert metrics.acceleration(falling, fps) == pytest.approx(9.81)
    assert metrics.peak_jerk(falling, fps) == pytest.approx(0, abs=1e-8)
    falling[:, 3, 0] += 2 * time[:, 0, 0] ** 3  # one joint alone
    assert metrics.peak_jerk(falling, fps) == pytest.approx(12)
    jump = np.zeros((40, 22, 3))
    jump[20:, 5, 1] = 0.01  # within one frame: third differences 1, -2, 1
    assert metrics.peak_jerk(jump, fps) == pytest.approx(2 * 0.01 * fps**3)
    both = np.stack([falling, jump])
    for metric in (metrics.acceleration, metrics.peak_jerk):
        assert np.allclose(metric(both, fps), [metric(falling, fps), metric(jump, fps)])
    with pytest.raises(ValueError, match="more than 3 frames"):
        metrics.peak_jerk(jump[:3], fps)


def test_votes_of_the_nearest():
    known, labels = np.array([[0.0], [1], [2], [10], [11], [30]]), list("aabbbc")
    assert metrics.vote([[0.4], [10.4], [29.0]], known, labels, 3) == ["a", "b", "b"]
    assert metrics.vote([[1.6]], known, labels, 2) == ["b"]  # a draw: the nearest wins
    assert metrics.vote([[29.0], [1.4]], known, labels, 1) == ["c", "a"]
    assert metrics.vote([[0.0]], known, labels, 9) == ["b"]  # there are only 6


def test_foot_skating_sees_sliding_only_on_the_ground():
    frames = np.arange(40) / 20.0
    joints = np.zeros((40, 22, 3))
    assert metrics.foot_skating(joints, 20.0, FEET) == 0
    joints[..., 0] = 0.5 * frames[:, None]
    assert metrics.foot_skating(joints, 20.0, FEET) == pytest.approx(0.5)
    joints[:, :, 0] = 0
    joints[10:20, :, 1] = 0.3  # a jump ahead: the feet move, but in the air
    joints[:, :, 2] = np.interp(np.arange(40), [10, 19], [0, 1])[:, None]
    assert metrics.foot_skating(joints, 20.0, FEET) < 0.02
    rising = np.zeros((40, 22, 3))
    rising[..., 1] = 10 * frames[:, None]
    assert np.isnan(metrics.foot_skating(rising, 20.0, FEET))


def test_foot_contacts_say_which_joint_stands_when():
    joints = np.zeros((10, 22, 3))
    joints[:, [8, 11], 1] = 0.2  # a lifted right foot, whose ankle and toe come down in frame 5
    joints[5:, [8, 11], 1] = 0.0
    joints[:, 7, 1] = 0.1  # an ankle is measured from its own lowest height
    joints[1::2, 10, 1] = 0.15 / 20  # a toe that trembles by 0.15 m/s stands
    contacts = foot_contacts(joints, 20.0, FEET)[0]
    assert contacts.shape == (9, 4) and contacts[:, :2].all()
    assert contacts[:, 2].tolist() == contacts[:, 3].tolist() == [False] * 5 + [True] * 4


@pytest.mark.parametrize("quantity, below, above", [("speed", 0.19, 0.21), ("height", 0.039, 0.041)])
def test_foot_contact_ends_at_its_limits(quantity, below, above):
    """A sliding foot counts just below 0.2 m/s of vertical speed and 0.04 m of height, and not just above."""
    def sliding(limit):
        joints = np.zeros((40, 22, 3))
        joints[..., 0] = np.maximum(np.arange(40) - 2, 0)[:, None] * 0.5 / 20  # from the third frame on
        if quantity == "speed":
            joints[1::2, :, 1] = limit / 20  # up and down in turns
        else:
            joints[2:, :, 1] = limit
        return metrics.foot_skating(joints, 20.0, FEET)

    assert sliding(below) > 0.4
    assert np.isnan(sliding(above)) if quantity == "speed" else sliding(above) == 0
