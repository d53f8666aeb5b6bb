"""The length estimator against the reference's outputs, and the lengths drawn from its logits."""
import json

import pytest
import torch
from conftest import golden, name_fill, relative_error

from models.LengthEstimator import LengthEstimator, sample_length


def test_names_and_shapes_are_the_released_ones():
    expected = json.loads(golden("state_dict_keys.json").read_text())["LengthEstimator"]
    ours = {name: list(tensor.shape) for name, tensor in LengthEstimator().state_dict().items()}
    assert ours == expected


def test_logits_match_the_reference():
    reference = golden("length_estimator.npz")
    with torch.no_grad():
        logits = name_fill(LengthEstimator())(torch.from_numpy(reference["x"]))
    assert relative_error(logits, reference["logits"]) < 3e-6


def test_other_sizes():
    assert LengthEstimator(384, 30)(torch.randn(2, 384)).shape == (2, 30)


@pytest.mark.parametrize("min_frames,shortest", [(40, 40), (42, 44), (24, 24), (0, 0)])
def test_no_length_below_the_minimum(min_frames, shortest):
    logits = torch.zeros(500, 50)
    logits[:, :6] = 20.0  # nearly all the mass lies on motions of at most 20 frames
    lengths = sample_length(logits, torch.Generator().manual_seed(1), min_frames)
    assert lengths.dtype == torch.int64 and lengths.min() >= shortest and lengths.max() <= 196
    assert (lengths % 4 == 0).all()
    assert torch.equal(lengths, sample_length(logits, torch.Generator().manual_seed(1), min_frames))


def test_estimators_of_short_clips_only_are_refused():
    with pytest.raises(ValueError, match="longest class"):
        sample_length(torch.zeros(1, 50), min_frames=200)


def test_soft_lengths_reward_near_misses():
    from train_length_estimator import length_loss

    peak = lambda c: 6.0 * torch.nn.functional.one_hot(torch.tensor([c]), 50).float()  # noqa: E731
    truth = torch.tensor([20])
    assert torch.allclose(length_loss(peak(21), truth, 0.0), length_loss(peak(35), truth, 0.0))
    assert length_loss(peak(20), truth, 1.5) < length_loss(peak(21), truth, 1.5) < length_loss(peak(23),
                                                                                               truth, 1.5)
    # hardly spread: as published
    assert torch.allclose(length_loss(peak(24), truth, 0.05), length_loss(peak(24), truth, 0.0))


def test_draws_come_from_the_middle_fifth():
    weights = torch.zeros(1, 50)
    weights[0, 10:30] = 1.0  # 40 to 116 frames, all alike
    logits = (weights + 1e-9).log()
    drawn = torch.tensor([int(sample_length(logits, torch.Generator().manual_seed(i))) for i in range(300)])
    assert 72 <= drawn.min() < 80 and 80 < drawn.max() <= 88 and len(drawn.unique()) > 2
