"""The length estimator against the reference's outputs, and the lengths drawn from its logits."""
import json

import pytest
import torch
from conftest import golden, name_fill, relative_error

from models.LengthEstimator import LengthEstimator, sample_length
from models.pipeline import estimate_lengths
from train_length_estimator import length_loss
from utils.text_condition import TextCondition, WordTable


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


def test_lengths_come_from_the_middle_fifth_of_the_distribution():
    weights = torch.zeros(300, 50)
    weights[:, 10:30] = 1.0  # 40 to 116 frames, equally likely
    logits = (weights + 1e-9).log()
    lengths = sample_length(logits, torch.Generator().manual_seed(0))
    assert lengths.dtype == torch.int64 and lengths.shape == (300,)
    assert 72 <= lengths.min() < 80 and 80 < lengths.max() <= 88 and len(lengths.unique()) > 2
    assert torch.equal(lengths, sample_length(logits, torch.Generator().manual_seed(0)))


def test_lengths_follow_the_odds_within_the_middle_fifth():
    logits = torch.full((4000, 50), -1e9)
    logits[:, 20], logits[:, 30] = 0.45, 0.55
    logits[:, [20, 30]] = logits[:, [20, 30]].log()  # of 0.4 to 0.6 a quarter is below 0.45
    lengths = sample_length(logits, torch.Generator().manual_seed(0))
    assert set(lengths.tolist()) == {80, 120} and abs((lengths == 80).float().mean() - 0.25) < 0.03


def test_lengths_of_sentences_that_are_read_word_by_word():
    """Each from its own words, alone or beside others; and a table of sentences is not taken for them."""
    torch.manual_seed(0)
    table = WordTable(torch.randn(3, 8), torch.randn(12, 6).half(), [3, 5, 12])
    estimator, by_pooled = (LengthEstimator(8, 50, 32, words).eval() for words in (6, 0))
    together = estimator(table[[0, 1, 2]])
    for row in range(3):
        assert torch.allclose(estimator(table[[row]])[0], together[row], atol=1e-4)
    other = TextCondition(table.pooled, table[[0, 1, 2]].words + 1, table[[0, 1, 2]].mask)
    assert not torch.allclose(estimator(other), together, atol=1e-2)
    assert (estimate_lengths(by_pooled, table[[2, 0]], [1, 2], 40, 196)
            == estimate_lengths(by_pooled, table.pooled[[2, 0]], [1, 2], 40, 196))
    with pytest.raises((TypeError, AttributeError)):
        estimate_lengths(by_pooled, table, [1, 2], 40, 196)


@pytest.mark.parametrize("min_frames,shortest", [(40, 40), (42, 44), (24, 24), (0, 0)])
def test_no_length_below_the_minimum(min_frames, shortest):
    logits = torch.zeros(500, 50)
    logits[:, :6] = 20.0  # nearly all the mass is on motions of at most 20 frames
    lengths = sample_length(logits, torch.Generator().manual_seed(1), min_frames)
    assert shortest <= lengths.min() and lengths.max() <= 196 and (lengths % 4 == 0).all()


def test_a_minimum_beyond_every_class_is_refused():
    with pytest.raises(ValueError, match="longest class"):
        sample_length(torch.zeros(1, 50), min_frames=200)


def test_soft_lengths_reward_near_misses():
    def peak(c):
        return 6.0 * torch.nn.functional.one_hot(torch.tensor([c]), 50).float()

    truth = torch.tensor([20])
    assert torch.allclose(length_loss(peak(21), truth, 0.0), length_loss(peak(35), truth, 0.0))
    near, one_off, three_off = (length_loss(peak(c), truth, 1.5) for c in (20, 21, 23))
    assert near < one_off < three_off
    # hardly spread: as published
    assert torch.allclose(length_loss(peak(24), truth, 0.05), length_loss(peak(24), truth, 0.0))
