"""scripts.choose_levels: the paper's sets first, exact counts, and the nearest sets by search."""
import itertools
import math
import re

import pytest
from tiny import call

from models.AE import AE_models
from models.FSQ import FSQ
from scripts.choose_levels import DIMS, RECOMMENDED, nearest_set
from train_AE import model_kwargs, parse_args


def listed(capsys, *flags):
    """[(levels, codes, bits, source)] and the advice below the table."""
    assert call("scripts.choose_levels", *flags) == 0
    table, _, advice = capsys.readouterr().out.partition("\n\n")
    rows = [re.split(r"  +", line) for line in table.splitlines()[2:] if not line.startswith("and ")]
    return [(tuple(map(int, row[0].split())), int(row[2].replace(",", "")), float(row[3]), row[-1])
            for row in rows], advice


def test_the_papers_table():
    """Table 1 of the paper: within 8% of the powers of two."""
    assert RECOMMENDED == {8: (8, 6, 5), 10: (8, 5, 5, 5), 12: (7, 5, 5, 5, 5), 14: (8, 8, 8, 6, 5),
                           16: (8, 8, 8, 5, 5, 5)}
    assert all(abs(math.prod(levels) / 2**bits - 1) < 0.08 for bits, levels in RECOMMENDED.items())


@pytest.mark.parametrize("flags, levels, source", [
    (["--codes", "4096"], (7, 5, 5, 5, 5), "FSQ paper, 2^12"),
    (["--bits", "16"], (8, 8, 8, 5, 5, 5), "FSQ paper, 2^16; FSQ_AE_High"),
    (["--dims", "6"], (8, 8, 8, 5, 5, 5), "FSQ paper, 2^16; FSQ_AE_High"),
    (["--bits", "18.6", "--dims", "8"], (5,) * 8, "FSQ_AE_HighDim8"),
    (["--codes", "16807", "--odd"], (7,) * 5, "search"),
])
def test_recommended_sets_come_first(capsys, flags, levels, source):
    rows, _ = listed(capsys, *flags)
    assert rows[0][0] == levels and rows[0][3] == source
    for found, codes, bits, _ in rows:
        assert codes == math.prod(found) == FSQ(found).codebook_size
        assert bits == pytest.approx(math.log2(codes), abs=0.005)
    assert len({row[0] for row in rows}) == len(rows)
    if "--dims" in flags:
        assert {len(row[0]) for row in rows} == {int(flags[flags.index("--dims") + 1])}


def test_without_a_wish_all_recommended_sets_are_listed(capsys):
    rows, _ = listed(capsys)
    assert [row[0] for row in rows][:5] == list(RECOMMENDED.values())
    assert [row[3] for row in rows][5:] == ["FSQ_AE_Small", "FSQ_AE_Medium", "FSQ_AE_Large",
                                            "FSQ_AE_XLarge", "FSQ_AE_Ultra", "FSQ_AE_HighDim7",
                                            "FSQ_AE_Mega", "FSQ_AE_HighDim8"]


@pytest.mark.parametrize("codes", [15, 37, 101, 240, 701, 1000, 4096, 9000, 65536])
def test_the_search_finds_the_nearest_set(codes):
    """Against all sets of 2 to 4 dimensions with 3 to 8 levels, of which those of 4 different values, which
    it leaves out, may only be nearer."""
    allowed = tuple(range(3, 9))
    for dims in (2, 3, 4):
        every = [levels for levels in itertools.combinations_with_replacement(allowed, dims)
                 if len(set(levels)) < 4]
        best = min(abs(math.log2(math.prod(levels) / codes)) for levels in every)
        choice = nearest_set(dims, math.log2(codes), allowed)
        if choice is None:
            assert best > 1
        else:
            assert abs(choice.bits - math.log2(codes)) == pytest.approx(best, abs=1e-9)
            assert len(choice.levels) == dims and list(choice.levels) == sorted(choice.levels, reverse=True)


def test_what_is_not_shown_is_counted(capsys):
    rows, rest = [], []
    for show in ("1", "99"):
        assert call("scripts.choose_levels", "--bits", "40", "--show", show) == 0
        out = capsys.readouterr().out
        rows.append(out.count("  search"))
        rest.append(re.findall(r"and (\d+) more", out))
    assert rows[0] == 1 and rest == [[str(rows[1] - 1)], []]


@pytest.mark.parametrize("flags", [["--codes", "4096"], ["--bits", "16"], ["--codes", "3000", "--odd"],
                                   ["--bits", "31.7", "--dims", "10", "--odd", "--most", "9"],
                                   ["--bits", "61", "--dims", "20", "--most", "9"]])
def test_the_command_that_it_names_makes_that_grid(capsys, monkeypatch, flags):
    assert call("scripts.choose_levels", *flags) == 0
    out = capsys.readouterr().out
    command = next(line for line in out.splitlines() if "train_AE.py" in line).split()[1:]
    monkeypatch.setattr("sys.argv", command)
    args = parse_args()
    sizes = model_kwargs(args, 67) | {"width": 8, "latent_dim": 8}
    quantizer = AE_models[args.model](**sizes).quantizer
    bits = float(re.split(r"  +", out.splitlines()[2])[3])
    assert math.log2(quantizer.codebook_size) == pytest.approx(bits, abs=0.005)
    assert type(quantizer).__name__ == ("IFSQ" if "--odd" in flags else "FSQ")


def test_few_levels_get_the_papers_advice(capsys):
    assert "5 levels or more" in listed(capsys, "--codes", "64", "--least", "2", "--most", "4")[1]
    assert "5 levels or more" not in listed(capsys, "--codes", "4096")[1]


@pytest.mark.parametrize("flags, message", [
    (["--bits", "16", "--dims", "40"], "40 dimensions of 5 to 8 levels have 92.9 to 120.0 bits, and 16.0"),
    (["--codes", "1"], "and 0.0 are wanted"),
    (["--dims", "1", "--least", "5", "--most", "7"], "without a whole number between"),
    (["--least", "9", "--most", "12"], "no set of the paper or the zoo has all its levels in 9 to 12"),
    (["--least", "8", "--most", "5"], "no number of levels lies in --least 8 .. --most 5"),
    (["--odd", "--least", "6", "--most", "6"], "no odd number of levels"),
    (["--codes", "4096", "--bits", "12"], "not allowed with"),
    (["--codes", "-3"], "1 or more"),
    (["--bits", "nan"], "above 0"),
    (["--dims", str(DIMS + 1)], f"in 1..{DIMS}"),
])
def test_what_cannot_be_had_gets_one_line(capsys, flags, message):
    assert call("scripts.choose_levels", *flags) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
