"""Code statistics, scripts.analyze_codes and scripts.quantizer_bench, on a small demo set."""
import json
import math

import numpy as np
import pytest
import torch
from tiny import call

from models.AE import AE_models
from utils.data.datasets import MotionStore
from utils.data.specs import get_spec
from utils.demo.dataset import build_demo
from utils.evaluation.codebook import (
    axes_summary,
    axis_statistics,
    entropy_bits,
    other_codes,
    topology,
    usage_rows,
    usage_statistics,
)
from utils.report import write_json

ON = ["--dataset_name", "demo", "--device", "cpu", "--num_workers", "0"]
SMALL = ["--width", "16", "--batch_size", "256", "--window_size", "40", "--steps", "3", "--seeds", "1"]


def test_entropy_by_hand():
    assert entropy_bits([4, 4, 4, 4]) == 2 and entropy_bits([7, 0, 0]) == 0
    assert entropy_bits([3, 1]) == pytest.approx(0.75 * math.log2(4 / 3) + 0.25 * 2)


def test_usage_of_flat_and_of_axis_indices():
    flat = usage_statistics(torch.tensor([0, 0, 5, 5, 7, 7, 9, 9]), 16)
    assert flat["codes_used"] == flat["perplexity"] == flat["bits_per_token"] == 4
    assert flat["codebook_usage"] == 0.25 and flat["entropy_bits"] == 2
    assert flat["entropy_ceiling_bits"] == 3 and flat["entropy_share"] == pytest.approx(2 / 3)
    rows = usage_statistics(torch.tensor([[0, 1], [0, 1], [1, 0], [1, 1]]), 17**64)
    assert rows["codes_used"] == 3 and rows["entropy_bits"] == 1.5 and rows["entropy_ceiling_bits"] == 2
    assert rows["bits_per_token"] == pytest.approx(64 * math.log2(17))


def test_axes_by_hand():
    axes = axis_statistics(torch.tensor([[0, 2], [1, 2], [0, 2], [1, 2]]), (2, 4))
    assert axes[0] == {"size": 2, "used": 2, "entropy_bits": 1.0, "ceiling_bits": 1.0, "counts": [2, 2]}
    assert axes[1]["used"] == 1 and axes[1]["counts"] == [0, 0, 4, 0]
    assert axes_summary(axes) == {"axes_entropy_bits": 1.0, "axes_ceiling_bits": 3.0,
                                  "axes_entropy_share": pytest.approx(1 / 3)}


def test_a_swap_takes_another_code():
    codes = torch.tensor([[0.0], [0.0], [0.0], [1.0]]).repeat(50, 1)
    swapped = other_codes(codes, np.random.default_rng(0), tries=200)
    assert (swapped != codes).all() and len(swapped) == 200
    same = torch.zeros(5, 2)
    assert torch.equal(other_codes(same, np.random.default_rng(0)), same)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    build_demo(root / "datasets" / "demo", num_clips=120)
    return root


class Coordinates(torch.nn.Module):
    """An autoencoder whose code moves joint 1 sideways, 0.1 m per step; targets are that coordinate."""

    class Line:
        axis_sizes = (8,)

        def neighbour(self, z_q, axis):
            return z_q + 1

    quantizer = Line()

    def encode_targets(self, motion):
        return None, torch.arange(len(motion))[:, None, None].expand(-1, motion.shape[1] // 4, -1).float() % 8

    def decode_targets(self, targets):
        motion = torch.zeros(len(targets), 4 * targets.shape[1], 67)
        motion[..., 4] = 0.1 * targets[..., 0].repeat_interleave(4, 1)
        return motion


def test_topology_by_hand(data):
    store = MotionStore(get_spec("demo", data / "datasets"), "test", 0)
    store.mean, store.std = np.zeros(67, np.float32), np.ones(67, np.float32)
    found = topology(Coordinates(), store, samples=64)
    assert found["axes"] == [pytest.approx(100 / 22, rel=1e-4)] and found["step_mm"] == found["axes"][0]
    assert found["rank_correlation"] > 0.97  # 1 but for rounding, which splits ties
    # two different values of 8 equally frequent ones are on average 3 apart: 2 sum_k k (8 - k) / (8 x 7)
    assert found["swap_mm"] == pytest.approx(3 * 100 / 22, rel=0.2)
    assert found["ratio"] == pytest.approx(1 / 3, rel=0.2)


@pytest.mark.parametrize("name", ["FSQ_AE_High", "VQ_AE_RVQ"])
def test_analyze_codes(data, monkeypatch, capsys, name):
    monkeypatch.chdir(data)
    kwargs = {"input_width": 67, "width": 16, "latent_dim": 16}
    torch.manual_seed(0)
    ae = AE_models[name](**kwargs)
    folder = data / "checkpoints/demo" / name
    (folder / "model").mkdir(parents=True)
    torch.save({"ae": ae.state_dict(), "model_name": name, "model_kwargs": kwargs},
               folder / "model/latest.tar")
    assert call("scripts.analyze_codes", "--name", name, *ON, "--samples", "8") == 0
    assert "step / swap" in capsys.readouterr().out
    results = json.loads((folder / "eval/analyze_codes.json").read_text())
    assert len(results["axes"]) == len(results["topology"]["axes"]) == 6
    assert all(sum(axis["counts"]) == results["codes"]["tokens"] for axis in results["axes"])
    assert results["bits_per_second"] == pytest.approx(5 * results["codes"]["bits_per_token"])
    assert (folder / "eval/analyze_codes.png").stat().st_size > 10_000


def test_analyze_codes_of_a_continuous_autoencoder_says_why_not(data, monkeypatch, capsys):
    monkeypatch.chdir(data)
    kwargs = {"input_width": 67, "width": 8, "latent_dim": 8}
    (data / "checkpoints/demo/plain/model").mkdir(parents=True)
    torch.save({"ae": AE_models["AE_Model"](**kwargs).state_dict(), "model_name": "AE_Model",
                "model_kwargs": kwargs}, data / "checkpoints/demo/plain/model/latest.tar")
    assert call("scripts.analyze_codes", "--name", "plain", *ON) == 2
    assert "has no codes" in capsys.readouterr().err


def test_bench_of_two_rows_resumes_and_refuses_other_settings(data, monkeypatch, capfd):
    monkeypatch.chdir(data)
    assert call("scripts.quantizer_bench", *ON, *SMALL, "--rows", "AE_Model") == 0
    first = json.loads((data / "generation/bench_demo/bench.json").read_text())
    assert call("scripts.quantizer_bench", *ON, *SMALL, "--rows", "AE_Model", "FSQ_AE_iFSQ_8x9") == 0
    table = json.loads((data / "generation/bench_demo/bench.json").read_text())
    assert table["runs"]["AE_Model"] == first["runs"]["AE_Model"]  # not trained again
    assert capfd.readouterr().out.count("python train_AE.py") == 2
    row = table["runs"]["FSQ_AE_iFSQ_8x9"]["3407"]
    assert row["bits"] == pytest.approx(8 * math.log2(9)) and row["steps"] == 3 and row["ms_per_step"] > 0
    assert row["MPJPE"] > row["MPJPE_facing"] > 0 and 0 < row["axes_entropy_share"] <= 1
    text = (data / "generation/bench_demo/bench.md").read_text()
    assert "| AE_Model | - |" in text and "| FSQ_AE_iFSQ_8x9 | 25.4 |" in text
    assert (data / "generation/bench_demo/bench.png").stat().st_size > 10_000
    assert call("scripts.quantizer_bench", *ON, *SMALL, "--rows", "AE_Model", "--lr", "1e-3") == 2
    assert "made with lr" in capfd.readouterr().err
    write_json(data / "generation/bench_demo/bench.json",
               {**table, "runs": {}, "settings": {**table["settings"], "lr": 1e-3}})
    assert call("scripts.quantizer_bench", *ON, *SMALL, "--rows", "AE_Model", "--lr", "1e-3") == 2
    assert "was begun with lr" in capfd.readouterr().err


def test_the_reach_of_grids_is_checked_where_it_matters(data, monkeypatch, capfd):
    monkeypatch.chdir(data)
    flags = [*ON, *SMALL, "--name", "reach", "--rows"]
    assert call("scripts.quantizer_bench", *flags, "AE_Model", "FSQ_AE_iFSQ_8x9", "--output_dir", "four") == 0
    kwargs = torch.load(data / "checkpoints/demo/reach_FSQ_AE_iFSQ_8x9_3407/model/latest.tar",
                        weights_only=True)["model_kwargs"]
    assert kwargs["reach"] == 4
    one = ["--output_dir", "one", "--fsq_reach", "1"]
    assert call("scripts.quantizer_bench", *flags, "AE_Model", *one) == 0  # it has no grid
    assert call("scripts.quantizer_bench", *flags, "FSQ_AE_iFSQ_8x9", *one) == 2
    assert "was begun with fsq_reach 4.0, not 1.0" in capfd.readouterr().err
    path = data / "one/bench.json"  # as before the reach could be chosen
    table = json.loads(path.read_text())
    del table["settings"]["fsq_reach"]
    write_json(path, table)
    assert call("scripts.quantizer_bench", *flags, "AE_Model", "--output_dir", "one") == 2
    assert "was made with fsq_reach 1.0, not 4.0" in capfd.readouterr().err
    assert call("scripts.quantizer_bench", *flags, "AE_Model", *one) == 0


def test_numbers_of_codes_beyond_any_float_are_shown():
    rows = usage_rows({"codes_used": 12.0, "codebook_size": 17**300}, "on test")
    assert rows == [("codes_used", "12", "on test"),
                    ("codebook_size", f"2^{300 * math.log2(17):.1f}", "on test")]
