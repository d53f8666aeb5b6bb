"""Tiny trainings come to the golden values (benchmarks/drift.py)."""
import math

import pytest
import torch
import torch.nn.functional as F

from benchmarks.drift import (
    GOLDEN,
    HEADER,
    BagOfWords,
    alike_everywhere,
    compare,
    dropout,
    measure,
    rounded,
)
from utils.files import read_json
from utils.report import format_table


def test_numbers_do_not_drift():
    with alike_everywhere() as folder:
        rows = compare(read_json(GOLDEN), measure(folder))
    table = format_table(rows, HEADER) if rows else ""
    assert not rows, f"numbers moved; if they should have, make drift writes them anew\n{table}"


def test_what_counts_as_moved():
    golden = {"flags/train_AE/lr": 0.1, "flags/train_AE/milestones": [1, 2], "ae/loss": [2.0, 1.0],
              "ae/Codes/used": [7, 3],
              "clip/codes": [*range(40)], "clip/frames": 44, "evaluation_AE/FID": 3.0}

    def moved(**changes):
        found = golden | {name.replace("__", "/"): value for name, value in changes.items()}
        return [row[0] for row in compare(golden, found)]

    assert moved() == [] and moved(flags__train_AE__new=3) == []
    assert moved(ae__loss=[2.0, 1.0015]) == [] and moved(ae__loss=[2.0, 1.003]) == ["ae/loss"]
    assert moved(ae__loss=[2.0]) == moved(ae__loss=[2.0, math.nan]) == ["ae/loss"]
    assert moved(flags__train_AE__lr=0.1001) == ["flags/train_AE/lr"]
    assert moved(flags__train_AE__milestones=[1, 3]) == ["flags/train_AE/milestones"]
    assert moved(clip__codes=[1, *range(1, 40)]) == []
    assert moved(clip__codes=[1, 2, 3, *range(3, 40)]) == ["clip/codes"]
    assert moved(ae__Codes__used=[6, 3]) == [] and moved(ae__Codes__used=[5, 3]) == ["ae/Codes/used"]
    assert moved(clip__frames=48) == ["clip/frames"] and moved(ae__extra=1.0) == ["ae/extra"]
    assert [row[0] for row in compare(golden, {})] == [*golden]
    row, = compare(golden, golden | {"ae/loss": [2.5, 1.0]})
    assert row == ("ae/loss", "[2, 1]", "[2.5, 1]", "0.25", "0.001") and len(row) == len(HEADER)


def test_stand_ins():
    torch.manual_seed(0)
    x = torch.ones(20_000)
    kept = dropout(x, 0.2)
    assert set(kept.tolist()) == {0.0, 1.25} and abs(float((kept == 0).float().mean()) - 0.2) < 0.02
    assert dropout(x, 0.2, training=False) is x and torch.equal(F.dropout(x, 0.0), dropout(x, 0.0))
    one, two = BagOfWords().encode(["a person walks", "a person Walks slowly"])
    assert float(one.norm()) == pytest.approx(1) and 0.5 < float(one @ two) < 0.99
    assert rounded([1 / 3, 2, [0.1 + 0.2]]) == [0.3333333, 2, [0.3]]
