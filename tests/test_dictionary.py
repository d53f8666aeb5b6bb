"""What codes stand for (utils/evaluation/dictionary.py), on arrays that can be counted by hand."""
import numpy as np
import pytest

from utils.errors import UserError
from utils.evaluation import dictionary as d

# four clips of two tokens each: codes (0, 1), (2, 2) and (5, 0), the last one in one token only
INDICES = np.array([[0, 1], [0, 1], [0, 1], [2, 2], [0, 1], [2, 2], [5, 0], [2, 2]])
LABELS = np.array(["walk", "walk", "walk", "jump", "jump", "jump", "walk", "jump"])
GROUPS = np.array([0, 0, 1, 1, 2, 2, 3, 3])


@pytest.fixture
def counted():
    codes, numbers = d.number_codes(INDICES)
    return codes, numbers, *d.count_labels(numbers, LABELS)


def test_numbers_begin_with_the_most_frequent_code(counted):
    codes, numbers, names, table = counted
    assert codes.tolist() == [[0, 1], [2, 2], [5, 0]] and numbers.tolist() == [0, 0, 0, 1, 0, 1, 2, 1]
    assert names.tolist() == ["jump", "walk"] and table.tolist() == [[1, 3], [3, 0], [0, 1]]
    flat, numbers = d.number_codes(np.array([7, 3, 3]))
    assert flat.tolist() == [[3], [7]] and numbers.tolist() == [1, 0, 0]


def test_entries_by_hand(counted):
    codes, _, names, table = counted
    first, second, third = d.dictionary(codes, names, table)
    assert first == {"code": [0, 1], "count": 4, "share": 0.5, "label": "walk", "purity": 0.75,
                     "labels": {"walk": 3, "jump": 1}}
    assert second["label"] == "jump" and second["labels"] == {"jump": 3} and third["purity"] == 1
    table[1] = 0  # a code that only tokens without a label have
    assert [entry["code"] for entry in d.dictionary(codes, names, table)] == [[0, 1], [5, 0]]
    assert [row["own"] for row in d.signatures(codes, names, table)] == [0, 2]


def test_summary_by_hand(counted):
    found = d.summary(counted[3])
    assert found["purity"] == 7 / 8 and found["chance"] == 0.5 and found["label_bits"] == 1
    assert found["purity_repeated"] == 6 / 7 and found["tokens_repeated"] == 7 / 8
    missing = 0.5 * d.entropy_bits([3, 1])  # of the label, given the code
    assert found["information_bits"] == pytest.approx(1 - missing)
    alone = d.summary(np.array([[1, 0], [0, 1]]))
    assert alone["purity"] == alone["information_share"] == 1 and np.isnan(alone["purity_repeated"])


def test_signatures_by_hand(counted):
    codes, _, names, table = counted
    jump, walk = d.signatures(codes, names, table, most=1)
    assert jump["top"] == [{"code": [2, 2], "share": 0.75, "lift": 2.0}] and jump["own"] == 1
    assert walk["codes_used"] == 2 and walk["own"] == 2 and walk["tokens"] == 4
    assert walk["perplexity"] == pytest.approx(2 ** d.entropy_bits([3, 1]))


def test_divergences_by_hand():
    found = d.divergences(np.array([[4, 0, 2], [4, 0, 2], [0, 9, 0]]))
    assert found[0, 1] == found[1, 2] == 1 and found[0, 2] == found[0, 0] == 0
    half = d.divergences(np.array([[1, 0], [1, 1]]))
    assert half[0, 1] == half[1, 0] == pytest.approx(d.entropy_bits([1, 3]) - 0.5)


def test_divergences_by_axis_and_positions():
    digits, labels = np.array([[0, 1], [0, 3], [2, 1], [2, 3]]), np.array(["a", "a", "b", "b"])
    found = d.axis_divergences(digits, labels)  # apart on the first axis, alike on the second
    assert found == pytest.approx(np.array([[0, 0.5], [0.5, 0]]))
    assert d.positions(digits, labels) == pytest.approx(np.array([[-1, 0], [1, 0]]))
    assert d.positions(digits[:, :1] * 0, labels).tolist() == [[0], [0]]


def test_labels_are_read_from_codes_of_other_groups(counted):
    _, numbers, names, table = counted
    assert d.read_labels(names, table, [0, 2, 9]).tolist() == ["walk", "walk", ""]
    table[2] = 0
    assert d.read_labels(names, table, [2]).tolist() == [""]
    # two codes that say it all, in every group; each group has one token with a code that no other has
    codes = np.array([0, 1, 2, 0, 1, 3, 0, 1, 4, 0, 1, 5])
    labels = np.array(["a", "b", "b"] * 4)
    found = d.cross_reading(codes, labels, np.repeat([7, 3, 5, 9], 3))
    assert found["covered"] == pytest.approx(2 / 3) and found["accuracy_covered"] == 1
    assert found["accuracy"] == 1 and found["chance"] == pytest.approx(2 / 3)  # unknown ones are read as "b"
    with pytest.raises(UserError, match="needs 2 labelled clips, there are 1"):
        d.cross_reading(codes, labels, np.zeros(12))


def test_a_dictionary_is_not_read_on_its_own_groups():
    """Codes of which each belongs to one group cover nothing of the others."""
    groups = np.repeat(np.arange(10), 4)
    found = d.cross_reading(np.arange(40), np.repeat(["a", "b"], 20), groups)
    assert found["covered"] == 0 and np.isnan(found["accuracy_covered"])


def test_transitions_stay_within_groups(counted):
    codes, numbers, *_ = counted
    found = d.transitions(numbers, GROUPS, codes)
    assert found["steps"] == 4 and found["stay"] == 0.25 and found["run_length"] == pytest.approx(8 / 7)
    assert found["top"] == [{"from": [0, 1], "to": [2, 2], "count": 2, "probability": pytest.approx(2 / 3)},
                            {"from": [5, 0], "to": [2, 2], "count": 1, "probability": 1.0}]
    assert found["next_bits"] == pytest.approx(d.entropy_bits([1, 3]))
    assert found["entropy_bits"] == pytest.approx(0.75 * d.entropy_bits([1, 2]))
    assert d.transition_matrix(numbers, GROUPS, 2) == pytest.approx(np.array([[1 / 3, 2 / 3], [0, 0]]))
    assert d.transition_matrix(numbers, GROUPS, 3)[2].tolist() == [0, 1, 0]
    with pytest.raises(UserError, match="no transitions"):
        d.transitions(numbers, np.arange(8))


def test_no_labels_is_one_line():
    with pytest.raises(UserError, match="no token has a label"):
        d.count_labels(np.array([], int), np.array([], str))
