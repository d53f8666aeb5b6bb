"""Code statistics, scripts.analyze_codes and scripts.quantizer_bench, on a small demo set."""
import json
import math
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tiny import call

from models.AE import AE_models
from scripts.capacity import trends
from scripts.runs import Finished, Runner
from utils.data.datasets import MotionStore
from utils.data.specs import get_spec
from utils.demo.dataset import build_demo
from utils.evaluation.code_figures import draw_grid
from utils.evaluation.codebook import (
    axes_summary,
    axis_statistics,
    entropy_bits,
    nearest_codes,
    nearest_reading,
    nearest_used,
    other_codes,
    steps_in_code,
    topology,
    usage_rows,
    usage_statistics,
)
from utils.report import write_json
from utils.training.gradients import Spread, gradient_variance

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


@pytest.fixture(autouse=True)
def few_gradients(monkeypatch):
    monkeypatch.setattr("scripts.quantizer_bench.GRADIENTS", 4)


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
    for picture in ("", "_grid", "_labels"):
        assert (folder / f"eval/analyze_codes{picture}.png").stat().st_size > 10_000
    check_dictionary(results, {name: label["actions"] for name, label in json.loads(
        (data / "datasets/demo/labels.json").read_text()).items()},
        (data / "datasets/demo/test.txt").read_text().split())
    near = results["topology"]["nearest"]
    assert near["ranks"][0] == 1 and len(near["mm"]) == len(near["ranks"])
    assert near["distance"] == sorted(near["distance"])


def check_dictionary(results, labels, ids):
    """The dictionary counts the tokens of the test clips of one label."""
    found = results["dictionary"]
    told = [name for name in ids if len(labels[name]) == 1]
    assert found["clips"] == len(told) and found["clips"] + found["clips_left_out"] == len(ids)
    assert found["names"] == sorted({labels[name][0] for name in told})
    assert found["summary"]["tokens"] == sum(row["tokens"] for row in found["signatures"])
    assert 0 < found["summary"]["tokens"] < results["codes"]["tokens"]
    assert all(entry["purity"] == max(entry["labels"].values()) / entry["count"]
               for entry in found["entries"])
    assert len(found["entries"]) == min(200, found["entries_in_all"])
    assert 0 <= found["nearest_reading"]["accuracy"] <= 1 and found["nearest_reading"]["tokens"] > 0
    assert len(found["positions"]) == len(found["divergences"]) == len(found["names"])


def test_labels_are_cut_and_may_be_missing(data, monkeypatch, capsys):
    monkeypatch.chdir(data)
    kwargs = {"input_width": 67, "width": 8, "latent_dim": 8}
    (data / "checkpoints/demo/cut/model").mkdir(parents=True)
    torch.save({"ae": AE_models["FSQ_AE_Small"](**kwargs).state_dict(), "model_name": "FSQ_AE_Small",
                "model_kwargs": kwargs}, data / "checkpoints/demo/cut/model/latest.tar")
    flags = ["--name", "cut", *ON, "--samples", "4", "--entries", "1"]
    path = data / "checkpoints/demo/cut/eval/analyze_codes.json"
    assert call("scripts.analyze_codes", *flags, "--label_separator", "_") == 0
    found = json.loads(path.read_text())["dictionary"]
    labels = json.loads((data / "datasets/demo/labels.json").read_text())
    firsts = {label["actions"][0].split("_")[0] for label in labels.values()}
    assert "walk" in found["names"] and {*found["names"]} <= firsts and len(found["entries"]) == 1
    hidden = (data / "datasets/demo/labels.json").rename(data / "labels.json")
    capsys.readouterr()
    try:
        assert call("scripts.analyze_codes", *flags) == 0
    finally:
        hidden.rename(data / "datasets/demo/labels.json")
    assert "no dictionary: " in capsys.readouterr().err
    assert json.loads(path.read_text())["dictionary"] is None


class Line1D:
    """What ``nearest_codes`` needs of Windows: three tokens with codes 0, 1 and 5 on a line, whose joints
    move as far as their codes."""

    codes = torch.tensor([[0.0], [1.0], [5.0]])

    def displacements(self, new):
        return (new - self.codes).abs()[:, 0].numpy()


def test_nearest_codes_by_hand():
    used = torch.tensor([[5.0], [0.0], [1.0], [3.0]])
    places, distances = nearest_used(Line1D.codes, used, [1, 3])
    assert used[places][..., 0].tolist() == [[1, 5], [0, 5], [3, 0]]  # never the code itself
    assert distances.tolist() == [[1, 5], [1, 4], [2, 5]]
    assert nearest_codes(Line1D(), used) == {"ranks": [1, 2], "mm": pytest.approx([4 / 3, 3]),
                                             "distance": pytest.approx([4 / 3, 3])}
    assert nearest_codes(Line1D(), used[:1])["ranks"] == []


def test_labels_from_the_nearest_code_of_other_clips():
    """Codes of which no two clips share one, but those of a label lie together."""
    rng = np.random.default_rng(0)
    labels, groups = np.repeat(["a", "b"], 20), np.repeat(np.arange(10), 4)
    vectors = torch.from_numpy((labels == "b")[:, None] * 5.0 + rng.uniform(0, 1, (40, 2)))
    found = nearest_reading(vectors, np.arange(40), labels, groups)
    assert found == {"accuracy": 1.0, "tokens": 40}
    assert nearest_reading(vectors, np.arange(40), rng.permutation(labels), groups)["accuracy"] < 0.8


def test_pictures_of_one_code_and_of_a_codebook(tmp_path):
    """A collapsed grid has a single code, without neighbours or transitions; a codebook has one axis."""
    for name, codes, sizes in (("grid", [[2, 1]], (5, 3)), ("codebook", [[7], [9]], (512,))):
        digits, path = np.array(codes), tmp_path / f"{name}.png"
        near = {"ranks": [1], "mm": [2.0]} if len(codes) > 1 else {"ranks": [], "mm": []}
        draw_grid(digits.astype(float), [("walk", 3)] * len(codes), [(0, 1, 2)][: len(codes) - 1],
                  (digits, sizes), (near, 5.0), path)
        assert path.stat().st_size > 10_000


def test_steps_in_code_by_hand():
    codes = torch.tensor([[0.0], [1.0], [100.0], [102.0]])
    found = steps_in_code(codes, np.array([0, 0, 1, 1]))
    assert found["step"] == 1.5 and found["ratio"] == 1.5 / found["random"] and found["random"] > 10


def test_analyze_codes_of_a_continuous_autoencoder_says_why_not(data, monkeypatch, capsys):
    monkeypatch.chdir(data)
    kwargs = {"input_width": 67, "width": 8, "latent_dim": 8}
    (data / "checkpoints/demo/plain/model").mkdir(parents=True)
    torch.save({"ae": AE_models["AE_Model"](**kwargs).state_dict(), "model_name": "AE_Model",
                "model_kwargs": kwargs}, data / "checkpoints/demo/plain/model/latest.tar")
    assert call("scripts.analyze_codes", "--name", "plain", *ON) == 2
    assert "has no codes" in capsys.readouterr().err


def test_spread_by_hand():
    spread = Spread()
    for vector in ([1.0, 0.0], [3.0, 0.0], [2.0, 3.0]):  # mean (2, 1); squared distances 2, 2, 4
        spread.add(torch.tensor(vector))
    assert spread.relative_variance() == pytest.approx(4 / (5 - 4 / 3))  # of 3, the mean is longer by 4 / 3
    alone, still = Spread(), Spread()
    alone.add(torch.ones(2))
    still.add(torch.ones(2))
    still.add(-torch.ones(2))
    assert alone.relative_variance() is None and still.relative_variance() is None


def test_a_large_relative_variance_is_not_bounded_by_the_number_of_gradients():
    spread, draws = Spread(), torch.Generator().manual_seed(0)
    for _ in range(64):
        spread.add(0.1 + torch.randn(5000, generator=draws) * 0.4)
    assert spread.relative_variance() == pytest.approx(16, rel=0.1)


class Noisy(torch.nn.Module):
    """Its gradient is that of weight x batch, with noise of ``amount``, and each call counts."""

    def __init__(self, amount):
        super().__init__()
        self.weight, self.amount = torch.nn.Parameter(torch.ones(1)), amount
        self.dropout = torch.nn.Dropout(0.9)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, batch):
        self.calls += 1
        return (self.weight * self.dropout(batch) * (1 + self.amount * torch.randn(()))).mean()


def test_gradient_variance_tells_batches_from_draws():
    batches = [torch.full((4,), value) for value in (1.0, 3.0)] * 4
    found = {}
    for amount in (0.0, 0.5):
        torch.manual_seed(0)
        model = Noisy(amount).eval()
        found[amount] = gradient_variance(model, lambda model, batch: model(batch), batches, [model.weight])
        assert model.calls == 0 and not model.training and not model.dropout.training
    assert found[0.0] == {"batches": pytest.approx(8 / 7 / (4 - 1 / 7)), "draws": pytest.approx(0)}
    assert found[0.5]["draws"] > 0.01


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
    assert row["gradient_variance"] > 0
    assert row["draw_variance"] == pytest.approx(0, abs=1e-9)  # a grid draws nothing
    assert row["MPJPE"] > row["MPJPE_facing"] > 0 and 0 < row["axes_entropy_share"] <= 1
    text = (data / "generation/bench_demo/bench.md").read_text()
    assert "| AE_Model | - |" in text and "| FSQ_AE_iFSQ_8x9 | 25.4 |" in text
    assert (data / "generation/bench_demo/bench.png").stat().st_size > 10_000
    assert call("scripts.quantizer_bench", *ON, *SMALL, "--rows", "AE_Model", "--lr", "1e-3") == 2
    assert "made with lr" in capfd.readouterr().err
    moved = table | {"runs": {"AE_Model": {"99": {**row, "ms_per_step": 7.0}}}}  # its checkpoint is elsewhere
    del moved["runs"]["AE_Model"]["99"]["gradient_variance"]
    write_json(data / "moved/bench.json", moved)
    assert call("scripts.quantizer_bench", *ON, *SMALL, "--rows", "AE_Model", "--seed", "99", "--output_dir",
                "moved") == 0
    assert (data / "moved/bench.md").is_file()
    write_json(data / "generation/bench_demo/bench.json",
               {**table, "runs": {}, "settings": {**table["settings"], "lr": 1e-3}})
    assert call("scripts.quantizer_bench", *ON, *SMALL, "--rows", "AE_Model", "--lr", "1e-3") == 2
    assert "was begun with lr" in capfd.readouterr().err


def test_annealed_temperatures_follow_the_steps_of_the_bench(data, monkeypatch):
    monkeypatch.chdir(data)
    row = "VQ_AE_Gumbel_Annealed"
    assert call("scripts.quantizer_bench", *ON, *SMALL, "--name", "soft", "--rows", row) == 0
    state = torch.load(data / f"checkpoints/demo/soft_{row}_3407/model/latest.tar", weights_only=True)["ae"]
    assert int(state["quantizer.horizon"]) == int(state["quantizer.steps"]) == 3
    metrics = json.loads((data / "generation/soft_demo/bench.json").read_text())["runs"][row]["3407"]
    assert metrics["draw_variance"] > 0 and metrics["gradient_variance"] > 0 and metrics["bits"] == 9


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


class AtOnce(ThreadPoolExecutor):
    """Runs what it is given in the thread that gives it, since only the main one may set signals."""

    def submit(self, function, *args):
        done = Future()
        try:
            done.set_result(function(*args))
        except Exception as error:
            done.set_exception(error)
        return done


@pytest.fixture
def in_process(data, monkeypatch):
    """Work in ``data``, where the scripts that a bench runs run in this process: it takes seconds to start
    one."""
    monkeypatch.setattr("scripts.runs.ThreadPoolExecutor", AtOnce)

    def run(runner, command, **streams):
        module, *args = command[1:] if command[0] == "-m" else command
        return Finished(call(module.removesuffix(".py"), *args), 0.0, 0.0)

    monkeypatch.setattr(Runner, "run", run)
    monkeypatch.chdir(data)


def test_level_sets_are_rows_beside_the_zoo(data, in_process, capfd):
    flags = [*ON, *SMALL, "--name", "free", "--steps", "2"]
    assert call("scripts.quantizer_bench", *flags, "--fsq_levels", "5", "1") == 2
    assert "FSQ levels are integers from 2" in capfd.readouterr().err
    free = ["--fsq_levels", "8", "6", "5", "--fsq_levels", "5", "3"]
    assert call("scripts.quantizer_bench", *flags, *free) == 0
    assert call("scripts.quantizer_bench", *flags, "--rows", "FSQ_AE_Small") == 0
    table = (data / "generation/free_demo/bench.md").read_text()
    rows = [line.split(" | ")[:2] for line in table.splitlines() if line.startswith("| FSQ")]
    assert rows == [["| FSQ_AE_Small", "11.6"], ["| FSQ_AE_Model_5-3", "3.9"],
                    ["| FSQ_AE_Model_8-6-5", "7.9"]]
    kwargs = torch.load(data / "checkpoints/demo/free_FSQ_AE_Model_8-6-5_3407/model/latest.tar",
                        weights_only=True)["model_kwargs"]
    assert list(kwargs["levels"]) == [8, 6, 5] and kwargs["reach"] == 4


def test_capacity_prints_a_table_of_reaches_and_resumes(data, in_process, capfd):
    small = [*ON, *SMALL[:-4], "--steps", "2", "--name", "sizes"]
    assert call("scripts.capacity", *small, "--seeds", "2", "--reaches", "1", "--fsq_levels", "5", "3") == 0
    assert call("scripts.capacity", *small, "--seeds", "1", "--rows", "FSQ_AE_Small", "FSQ_AE_Medium",
                "--fsq_levels", "5", "3", "--reaches", "1") == 0
    assert call("scripts.capacity", *small, "--seeds", "1", "--rows", "FSQ_AE_Medium", "--reaches", "2") == 0
    out = capfd.readouterr().out
    assert out.count("python train_AE.py") == 5 and "correlation with codes" in out
    table = json.loads((data / "generation/sizes_demo/capacity.json").read_text())
    assert [(row["row"], row["codes"], row["seeds"]) for row in table["rows"]] == [
        ("FSQ_AE_Model_5-3 1", 15, 2), ("FSQ_AE_Small 1", 3125, 1), ("FSQ_AE_Medium 1", 5000, 1),
        ("FSQ_AE_Medium 2", 5000, 1)]
    assert table["rows"][0]["MPJPE_std"] > 0 and table["rows"][0]["target_dim"] == 2
    runs = [run for seeds in table["runs"].values() for run in seeds.values()]
    highest = max(run["final_loss"] for run in runs)
    assert all(run["steps_to_loss"] in (1, 2) for run in runs)
    kwargs = torch.load(data / "checkpoints/demo/sizes_FSQ_AE_Medium_2_3407/model/latest.tar",
                        weights_only=True)["model_kwargs"]
    assert kwargs["reach"] == 2
    text = (data / "generation/sizes_demo/capacity.md").read_text()
    assert f"steps to a training loss of {highest:.4g}" in text
    assert (data / "generation/sizes_demo/capacity.png").stat().st_size > 10_000
    assert call("scripts.capacity", *small, "--seeds", "1", "--rows", "FSQ_AE_Small", "--lr", "1e-3") == 2
    assert "made with lr" in capfd.readouterr().err


def test_trends_by_hand():
    rows = [{"row": f"FSQ_AE_Model_{name} 4", "codes": codes, "target_dim": 2, "MPJPE": error}
            for name, codes, error in (("5-3", 15, 9.0), ("8-8", 64, 7.0), ("9-9", 81, 8.0))]
    line = trends(rows).splitlines()[-1].split()
    assert line == ["4", "error", "by", "protocol", "FSQ_AE_Model_8-8", "(7)", "-0.50", "-"]
    assert trends(rows[:2]) == ""


def test_numbers_of_codes_beyond_any_float_are_shown():
    rows = usage_rows({"codes_used": 12.0, "codebook_size": 17**300}, "on test")
    assert rows == [("codes_used", "12", "on test"),
                    ("codebook_size", f"2^{300 * math.log2(17):.1f}", "on test")]


@pytest.mark.parametrize("script", ["quantizer_bench", "capacity"])
def test_windows_are_whole_tokens(script, capsys):
    assert call(f"scripts.{script}", "--window_size", "42") == 2
    assert "--window_size 42 must be a multiple of 4" in capsys.readouterr().err
