"""Distances to training clips, and labels by the nearest ones, where the answer is known."""
import numpy as np
import pytest
import torch

from utils.data.specs import DatasetSpec
from utils.evaluation import neighbours
from utils.evaluation.neighbours import label_accuracy, nearest_distances, nearest_train

SPEC = DatasetSpec("own", "", "t2m", 20.0, 40, 199, "minilm")
EXACT = 1e-3  # metres; float32


def clips(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.normal(0, 0.3, (length, 67)).astype(np.float32)) for length in lengths]


def raised(motion, metres):
    """The motion with every joint higher by ``metres``."""
    out = motion.clone()
    out[:, 3] += metres
    out[:, 5:67:3] += metres
    return out


def test_copies_and_sections_have_distance_0():
    training = clips([40, 60, 60, 100, 196])
    found = nearest_distances([training[1], training[4][41:81], training[0]], training, SPEC)
    assert found == pytest.approx(np.zeros(3), abs=EXACT)
    turned = training[3].clone()
    turned[:, :3] = 0.1  # heading and path do not count
    assert nearest_distances([turned], training, SPEC) == pytest.approx([0], abs=EXACT)


def test_distance_is_in_metres_per_joint():
    training = clips([60, 80])
    found = nearest_distances([raised(training[1], 0.1), raised(training[0], -0.02)], training, SPEC)
    assert found == pytest.approx([0.1, 0.02], abs=EXACT)
    millimetres = DatasetSpec("own", "", "t2m", 20.0, 40, 199, "minilm", metres_per_unit=0.001)
    large = [1000 * motion for motion in training]
    assert nearest_distances([raised(large[1], 100)], large, millimetres) == pytest.approx([0.1], abs=EXACT)


def test_a_short_training_clip_is_no_match_for_a_long_one():
    long, = clips([100])
    assert nearest_distances([long], [long[20:72], clips([100], 1)[0]], SPEC) == pytest.approx([0], abs=EXACT)
    assert nearest_distances([long], [long[20:68], clips([100], 1)[0]], SPEC)[0] > 0.1
    assert nearest_distances([long], [long[20:68]], SPEC) == pytest.approx([0], abs=EXACT)  # none is longer


def test_groups_do_not_change_distances(monkeypatch):
    training, made = clips([40, 40, 40, 60, 60, 48]), clips([40, 40, 60, 44, 44], 1)
    whole = nearest_distances(made, training, SPEC)
    monkeypatch.setattr(neighbours, "MOST", 1)
    alone = [nearest_distances([clip], training, SPEC)[0] for clip in made]
    assert whole == pytest.approx(alone, abs=1e-5) and len(set(np.round(whole, 4))) == 5


def test_share_of_clips_nearer_than_real_ones():
    training = clips([60] * 4)
    real = [raised(motion, 0.05) for motion in training]
    made = [training[0], training[1], raised(training[2], 0.2), raised(training[3], 0.2)]
    found = nearest_train(made, real, training, SPEC)
    assert found["generated"] == pytest.approx(0.1, abs=EXACT) and found["generated_below"] == 0.5
    assert found["real"] == pytest.approx(0.05, abs=EXACT) == found["real_quantile"]


def embed(motions):
    return np.array([motion.double().numpy()[:, :3].mean(0) for motion in motions])


def test_labels_of_copies_are_right():
    still, moving = [[raised(motion, shift) for motion in clips([40] * 6, seed)]
                     for seed, shift in ((0, 0), (1, 0))]
    for motion in moving:
        motion[:, :3] += 5
    training = [f"t{i}" for i in range(13)], [*still, *moving, clips([40])[0]]
    labels = {f"t{i}": ["stand"] if i < 6 else ["walk", "jump"] for i in range(12)}  # t12 has none
    labels |= {"a": ["stand"], "b": ["walk", "jump"], "c": ["walk"], "d": []}  # c: no training clip has it
    test = ["a", "b", "c", "d", "e"], [moving[0], moving[1], *still[:3]], [still[0], moving[1], *still[:3]]
    assert label_accuracy(labels, test, training, embed) == {"generated": 0.5, "real": 1.0, "clips": 2}
    assert label_accuracy({"c": ["walk"]}, test, training, embed) is None
