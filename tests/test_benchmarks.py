"""The benchmarks run and measure what they should; the plain variants give the results of the fast code."""
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_generation import make_pair

from benchmarks.cases import demo_clip, row
from benchmarks.data import measure
from benchmarks.meter import HeadMeter
from benchmarks.plain import PlainEMA, plain_video
from benchmarks.run import HEADER, cells, read_results, save
from benchmarks.solver_steps import Study
from models.generation import mask_schedule
from utils.errors import UserError
from utils.motion.skeletons import SKELETONS
from utils.training.trainer import EMA


def test_quick_run(tmp_path):
    out = tmp_path / "performance.json"
    command = [sys.executable, "-m", "benchmarks.run", "--quick", "--only", "train", "work", "single",
               "--output", str(out), "--threads", "1", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert list(results) == ["work", "single", "train"] and "GFLOP/s fp32" in done.stdout
    rows = [made for case in results.values() for made in case["rows"]]
    assert all(made["plain"] > 0 and made["fast"] > 0 for made in rows)
    counted = results["work"]["rows"][0]  # 6 tokens in 4 iterations
    assert counted["plain"] == sum(mask_schedule(6, 4)) and counted["fast"] == 6
    about = results["single"]["about"]
    assert about["torch"] == torch.__version__ and about["threads"] == 1
    assert all(made["what"] in out.with_suffix(".md").read_text() for made in rows)


def test_results_of_other_cases_stay(tmp_path):
    about = {"machine": "m", "processor": "p", "threads": 1, "product_gflops": {"fp32": 1.0},
             "code_version": "c"}
    path = tmp_path / "performance.json"
    save(path, "single", [row("one", 4.0, 2.0, aim=4)], about)
    save(path, "work", [row("evaluations", 22, 2, "n", 11)], about)
    save(path, "single", [row("one again", 8.0, 1.0, aim=4)], about)
    results = json.loads(path.read_text())
    assert list(results) == ["work", "single"] and results["single"]["rows"][0]["ratio"] == 8
    table = path.with_suffix(".md").read_text()
    assert "one again" in table and "evaluations" in table and "missed" not in table
    missed = cells(row("x", 1.0, 1.0, aim=2))
    assert len(missed) == len(HEADER) and missed[5] == "2: missed"


@pytest.mark.parametrize("name, content", [("x.json", "{"), ("x.json", '{"work": 1}'), ("x.md", "")])
def test_other_files_are_not_overwritten(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="damaged|must end in .json"):
        read_results(tmp_path / name)


@pytest.mark.parametrize("sampler", ["fast", "reference"])
def test_the_meter_counts_the_work(sampler):
    """By hand: 5 tokens are unmasked one by one; 3 steps of Heun call the network 6 times, at 4 times t."""
    model, ae = make_pair()
    meter = HeadMeter(model, torch.device("cpu"))
    with meter():
        model.generate(ae, torch.randn(1, 16), torch.tensor([5]), [0], time_steps=9, cfg=2.0, sampler=sampler,
                       solver="heun", ode_steps=3)
    tokens = 5 if sampler == "fast" else sum(mask_schedule(5, 9))
    steps = [before != after for before, after in zip(mask_schedule(5, 9), [*mask_schedule(5, 9)[1:], 0])]
    assert meter.tokens == 6 * tokens and meter.calls == 6 * (sum(steps) if sampler == "fast" else 9)
    width, depth, d, z = 32, 2, 6, 32
    modulations = (4 if sampler == "fast" else 6) * (3 * depth + 2) * width**2
    every = 6 * (2 * depth * width**2 + width * d) + z * width
    assert meter.operations == 2 * tokens * (2 * (modulations + every) + 6 * d * width)
    assert 0 < meter.seconds and "sampler" not in vars(model.DiffMLPs)


def test_plain_and_fast_averages_agree_in_the_long_run():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    plain, fast = PlainEMA(model, 0.5), EMA(model, 0.5)
    for _ in range(30):
        with torch.no_grad():
            model.weight.add_(torch.randn(3, 3))
        plain.update(model)
        fast.update(model)
    assert torch.allclose(plain.average[0], fast.model.weight, atol=1e-5)


def test_plain_video(tmp_path):
    clip = demo_clip(3)
    assert clip.shape == (3, 22, 3) and len(demo_clip(400)) == 400 and np.isfinite(demo_clip(400)).all()
    assert plain_video(clip, tmp_path / "plain.mp4", SKELETONS["t2m"], 20, "walk").stat().st_size > 1000


def test_study_of_solver_steps():
    model, ae = make_pair()
    head = model.DiffMLPs
    study = Study(head, ae.snap, 40, [("midpoint", 40), ("euler", 1), ("euler", 4), ("heun", 20)])
    del model.DiffMLPs
    model.DiffMLPs = study
    model.generate(ae, torch.randn(4, 16), torch.full((4,), 8), range(4), time_steps=4, cfg=2.0)
    same, coarse, finer, near = study.rows()
    assert study.tokens == 32 and same["codes_differ"] == same["distance"] == 0 and same["calls"] == 80
    assert coarse["distance"] > finer["distance"] > near["distance"]
    assert coarse["codes_differ"] > near["codes_differ"]


def test_opening_a_data_set():
    found = measure(clips=40)
    assert found["packed_mb"] > 0 and len(found["second"]["worker_memory_mb"]) == 2
    assert all(opened["clips"] == 40 and opened["clips_s"] > 0 and opened["memory_mb"]["private"] > 0
               for opened in (found["first"], found["second"]))
