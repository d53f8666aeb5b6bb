"""scripts/ablation.py on autoencoders of scripts/quantizer_bench.py, two runs at a time, on a small demo set."""
import json
import shutil

import numpy as np
import pytest
from test_scripts import call

from utils.demo_dataset import build_demo
from utils.errors import UserError
from utils.runs import RunTable

ON = ["--dataset_name", "demo", "--device", "cpu", "--num_workers", "0"]
AES = ["--width", "16", "--batch_size", "256", "--window_size", "40", "--steps", "2", "--jobs", "2", "--rows", "AE_Model",
       "FSQ_AE_iFSQ_8x9"]
GENERATORS = ["--steps", "3", "--batch_size", "64", "--diffmlps_batch_mul", "1", "--repeats", "1", "--eval_every", "1", "--seeds",
              "1", "--jobs", "2", "--cfg", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("ablation")
    build_demo(root / "datasets" / "demo", num_clips=240)
    shutil.copy(root / "datasets/demo/test.txt", root / "datasets/demo/val.txt")  # validation FID needs 32 clips
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert call("scripts.quantizer_bench", *ON, *AES, "--seeds", "1") == 0
        assert call("train_evaluator", *ON, "--max_iter", "2") == 0
    return root


def test_two_rows_resume_and_are_judged(data, monkeypatch, capfd):
    monkeypatch.chdir(data)
    assert call("scripts.ablation", *ON, *GENERATORS, "--rows", "FSQ_AE_iFSQ_8x9", "--predictions", "x",
                "--FID_threshold", "1e-9") == 0
    first = json.loads((data / "generation/ablation_demo/ablation.json").read_text())
    assert call("scripts.ablation", *ON, *GENERATORS, "--rows", "AE_Model", "FSQ_AE_iFSQ_8x9", "--predictions", "x",
                "--FID_threshold", "1e9") == 0
    table = json.loads((data / "generation/ablation_demo/ablation.json").read_text())
    row, kept = (content["runs"]["FSQ_AE_iFSQ_8x9 x"]["3407"] for content in (table, first))
    assert kept["steps_to_FID"] is None and row["steps_to_FID"] == row["validation"]["steps"][0]  # the threshold was raised
    assert all(row[key] == value for key, value in kept.items() if key != "steps_to_FID")  # and nothing was trained again
    assert row["steps"] == 3 and row["target_dim"] == 8 and row["FID"] > 0 and row["loss_mean"] > 0 and row["probes"] is None
    assert table["runs"]["AE_Model x"]["3407"]["target_dim"] == 16
    text = (data / "generation/ablation_demo/ablation.md").read_text()
    assert "| AE_Model x | 16 |" in text and "| FSQ_AE_iFSQ_8x9 x | 8 |" in text
    assert (data / "generation/ablation_demo/ablation.png").stat().st_size > 10_000
    log = (data / "generation/ablation_demo/logs/ablation_AE_Model_x_3407.log").read_text()
    assert "--count_from_end" in log and "python evaluation_MARDM.py" in log


def test_what_is_missing_is_said_before_anything_is_trained(data, monkeypatch, capfd):
    monkeypatch.chdir(data)
    assert call("scripts.ablation", *ON, *GENERATORS, "--rows", "VQ_AE_EMA") == 2
    assert "quantizer_bench.py --name bench --rows VQ_AE_EMA" in capfd.readouterr().err
    assert call("scripts.ablation", *ON, *GENERATORS, "--rows", "AE_Model", "--evaluator", "other") == 2
    assert "other" in capfd.readouterr().err
    assert call("scripts.ablation", *ON, *GENERATORS, "--rows", "AE_Model", "--lr", "1") == 2
    assert "was made with lr" in capfd.readouterr().err


def table_of(tmp_path):
    return RunTable(tmp_path / "table.json", "test", {"steps": 1}, ["b", "a"], {"loss": ("m", 1), "other": ("", 2)})


def test_table_by_hand(tmp_path):
    table = table_of(tmp_path)
    table.fill([("a", 1), ("a", 2), ("b", 1)], lambda row, seed: {"loss": 2.0 * seed, "other": None if row == "a" else 1.0}, 1)
    assert table.rows() == [{"row": "b", "seeds": 1, "loss": 2.0, "other": 1.0},
                            {"row": "a", "seeds": 2, "loss": 3.0, "loss_std": pytest.approx(np.sqrt(2))}]
    assert "| b | 2.0 | 1.00 | 1 |" in table.markdown() and "| a | 3.0 ± 1.4 | - | 2 |" in table.markdown()
    again = table_of(tmp_path)
    again.fill([("a", 1)], None, 1)  # is there
    assert again.runs == table.runs


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_was_done_before_a_failure_is_kept(tmp_path, jobs):
    def measure(row, seed):
        if seed == 3:
            raise UserError("no")
        return {"loss": 1.0}

    with pytest.raises(UserError, match="no"):
        table_of(tmp_path).fill([("a", 1), ("a", 2), ("a", 3)], measure, jobs)
    assert sorted(table_of(tmp_path).runs["a"]) == ["1", "2"]
