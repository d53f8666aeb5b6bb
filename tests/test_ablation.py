"""scripts.ablation on autoencoders of scripts.quantizer_bench, two runs at a time, on a small demo set."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from tiny import call

from models.loading import load_autoencoder
from models.MARDM import MARDM_models
from scripts.runs import Runner, RunTable
from utils.data.datasets import MotionStore
from utils.data.specs import get_spec
from utils.demo.dataset import build_demo
from utils.errors import UserError

ON = ["--dataset_name", "demo", "--device", "cpu", "--num_workers", "0"]
AES = ["--width", "16", "--batch_size", "256", "--window_size", "40", "--steps", "2", "--jobs", "2", "--rows",
       "AE_Model", "FSQ_AE_iFSQ_8x9"]
GENERATORS = ["--steps", "3", "--batch_size", "64", "--diffmlps_batch_mul", "1", "--repeats", "1",
              "--eval_every", "1", "--seeds", "1", "--jobs", "2", "--cfg", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("ablation")
    build_demo(root / "datasets" / "demo", num_clips=240)
    shutil.copy(root / "datasets/demo/test.txt", root / "datasets/demo/val.txt")  # FID needs 32 clips
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert call("scripts.quantizer_bench", *ON, *AES, "--seeds", "1") == 0
        assert call("train_evaluator", *ON, "--max_iter", "2") == 0
    return root


def test_two_rows_resume_and_are_evaluated(data, monkeypatch, capfd):
    monkeypatch.chdir(data)
    assert call("scripts.ablation", *ON, *GENERATORS, "--rows", "FSQ_AE_iFSQ_8x9", "--predictions", "x",
                "--FID_threshold", "1e-9") == 0
    first = json.loads((data / "generation/ablation_demo/ablation.json").read_text())
    assert call("scripts.ablation", *ON, *GENERATORS, "--rows", "AE_Model", "FSQ_AE_iFSQ_8x9",
                "--predictions", "x", "--FID_threshold", "1e9") == 0
    table = json.loads((data / "generation/ablation_demo/ablation.json").read_text())
    row, kept = (content["runs"]["FSQ_AE_iFSQ_8x9 x"]["3407"] for content in (table, first))
    assert kept["steps_to_FID"] is None  # before the threshold was raised
    assert row["steps_to_FID"] == row["validation"]["steps"][0]
    assert row | {"steps_to_FID": None} == kept  # nothing was trained again
    assert row["steps"] == 3 and row["target_dim"] == 8 and row["FID"] > 0 and row["loss_mean"] > 0
    assert row["probes"] is None
    assert table["runs"]["AE_Model x"]["3407"]["target_dim"] == 16
    kwargs = torch.load(data / "checkpoints/demo/ablation_AE_Model_x_3407/model/latest.tar",
                        weights_only=True)["model_kwargs"]
    assert kwargs["count_from_end"] and MARDM_models["MARDM-SiT-S"](**kwargs).count_from_end
    text = (data / "generation/ablation_demo/ablation.md").read_text()
    assert "| AE_Model x | 16 |" in text and "| FSQ_AE_iFSQ_8x9 x | 8 |" in text
    assert (data / "generation/ablation_demo/ablation.png").stat().st_size > 10_000
    log = (data / "generation/ablation_demo/logs/ablation_AE_Model_x_3407.log").read_text()
    assert "--count_from_end" in log and "python evaluation_MARDM.py" in log


def test_scaled_targets(data, monkeypatch):
    """The scale is the targets' standard deviation over the training clips, and the checkpoint keeps it."""
    monkeypatch.chdir(data)
    assert call("scripts.ablation", *ON, *GENERATORS, "--name", "scaled", "--rows", "AE_Model",
                "--predictions", "x", "--scale_targets") == 0
    folder = data / "checkpoints/demo"
    ae, _ = load_autoencoder(folder / "bench_AE_Model_3407/model/latest.tar")
    checkpoint = torch.load(folder / "scaled_AE_Model_x_3407/model/latest.tar", weights_only=True)
    scale = checkpoint["model_kwargs"]["target_scale"]
    store = MotionStore(get_spec("demo", data / "datasets"), "train")
    with torch.no_grad():
        targets = [ae.encode_targets(torch.from_numpy(store.normalised(clip, 0, length // 4 * 4))[None])[1][0]
                   for clip, length in enumerate(store.lengths[:100])]
    assert scale == pytest.approx(float(torch.cat(targets).std()), rel=0.1)


def test_missing_files_are_reported_before_training(data, monkeypatch, capfd):
    monkeypatch.chdir(data)
    assert call("scripts.ablation", *ON, *GENERATORS, "--rows", "VQ_AE_EMA") == 2
    assert "python -m scripts.quantizer_bench --name bench --rows VQ_AE_EMA" in capfd.readouterr().err
    assert call("scripts.ablation", *ON, *GENERATORS, "--rows", "AE_Model", "--evaluator", "other") == 2
    assert "other" in capfd.readouterr().err
    assert call("scripts.ablation", *ON, *GENERATORS, "--rows", "AE_Model", "--lr", "1") == 2
    assert "was made with lr" in capfd.readouterr().err


def test_new_tables_take_runs_of_the_same_settings_only(data, monkeypatch, capfd):
    """Tables in other folders, with the same and with other settings, over runs that are there already."""
    monkeypatch.chdir(data)
    flags = [*ON, *GENERATORS, "--name", "other", "--rows", "AE_Model", "--predictions", "x", "--output_dir"]
    assert call("scripts.ablation", *flags, "one", "--eval_every", "2") == 0
    assert call("scripts.ablation", *flags, "two", "--eval_every", "2", "--lr", "1e-3") == 2
    assert "was begun with lr 0.0002, not 0.001" in capfd.readouterr().err
    assert call("scripts.ablation", *flags, "three", "--eval_every", "2") == 0
    run = json.loads((data / "three/ablation.json").read_text())["runs"]["AE_Model x"]["3407"]
    assert run["resumed"] and run["steps"] == 3


def test_narrow_heads_are_refused(data, monkeypatch, capfd):
    monkeypatch.chdir(data)
    monkeypatch.setitem(sys.modules["models.MARDM"].SIZES["S"], "head_width", 15)
    assert call("scripts.ablation", *ON, *GENERATORS, "--rows", "AE_Model") == 2
    assert "targets of 16 dimensions" in capfd.readouterr().err


def table_of(tmp_path, **settings):
    return RunTable(tmp_path / "table.json", "test", {"steps": 1, **settings}, ["b", "a"],
                    {"loss": ("m", 1), "other": ("", 2)})


def fill(tmp_path, wanted, measure, jobs=1):
    table = table_of(tmp_path)
    table.fill(wanted, measure, Runner(), jobs)
    return table


def test_table_by_hand(tmp_path):
    calls = []

    def measure(row, seed):
        calls.append((row, seed))
        return {"loss": 2.0 * seed, "other": None if row == "a" else 1.0}

    table = fill(tmp_path, [("a", 1), ("a", 2), ("a", 1), ("b", 1)], measure)
    assert calls == [("a", 1), ("a", 2), ("b", 1)]  # each once
    assert table.rows() == [{"row": "b", "seeds": 1, "loss": 2.0, "other": 1.0},
                            {"row": "a", "seeds": 2, "loss": 3.0, "loss_std": pytest.approx(np.sqrt(2))}]
    assert "| b | 2.0 | 1.00 | 1 |" in table.markdown() and "| a | 3.0 ± 1.4 | - | 2 |" in table.markdown()
    assert fill(tmp_path, [("a", 1)], None).runs == table.runs  # nothing is missing


def test_two_tables_of_one_file_lose_nothing(tmp_path):
    one, two = table_of(tmp_path), table_of(tmp_path)
    for table, row in ((one, "a"), (two, "b")):
        table.fill([(row, 1)], lambda row, seed: {"loss": 1.0}, Runner(), 1)
    assert set(table_of(tmp_path).runs) == {"a", "b"}


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"kind": "test", "settings": [], "runs": {}}',
                                     '{"kind": "test", "settings": {}, "runs": []}',
                                     '{"kind": "test", "settings": {}, "runs": {"a": 1}}'])
def test_damaged_tables(tmp_path, content):
    (tmp_path / "table.json").write_text(content)
    with pytest.raises(UserError, match="damaged or not a table"):
        table_of(tmp_path)
    assert (tmp_path / "table.json").read_text() == content


def test_tables_of_another_kind_or_settings(tmp_path):
    table_of(tmp_path).save()
    with pytest.raises(UserError, match="of kind 'test', not 'bench'"):
        RunTable(tmp_path / "table.json", "bench", {}, [], {})
    with pytest.raises(UserError, match="made with lr None, not 2"):
        table_of(tmp_path, lr=2)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_keeps_finished_runs_and_starts_no_more(tmp_path, jobs):
    begun = []

    def measure(row, seed):
        begun.append(seed)
        if seed == 1:
            raise UserError("no")
        time.sleep(0.2)
        return {"loss": 1.0}

    with pytest.raises(UserError, match="no"):
        fill(tmp_path, [("a", seed) for seed in range(1, 7)], measure, jobs)
    kept = table_of(tmp_path).runs.get("a", {})
    assert len(begun) <= jobs and sorted(kept) == [str(seed) for seed in sorted(begun) if seed != 1]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_sigterm_saves_the_runs_and_leaves_no_child(data):
    flags = [*ON, *AES, "--steps", "100000", "--seeds", "1", "--name", "long"]
    process = subprocess.Popen([sys.executable, "-m", "scripts.quantizer_bench", *flags], cwd=data,
                               env=os.environ | {"PYTHONPATH": str(ROOT)})
    logs = [data / f"generation/long_demo/logs/long_{row}_3407.log" for row in AES[-2:]]
    deadline = time.monotonic() + 120
    while not all(log.is_file() and "step/s" in log.read_text() for log in logs):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    for log, row in zip(logs, AES[-2:]):
        assert "resume with --is_continue" in log.read_text()
        assert (data / f"checkpoints/demo/long_{row}_3407/model/latest.tar").is_file()
