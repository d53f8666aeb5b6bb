"""Several processes (torchrun, gloo on the CPU) train and evaluate like one with the global batch."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import parallel_worker
import pytest
import torch
from conftest import ROOT
from tiny import call

from utils.data.datasets import SeededBatches
from utils.demo.dataset import build_demo
from utils.errors import UserError
from utils.files import read_checkpoint

ON_DEMO = ["--dataset_name", "demo", "--device", "cpu", "--num_workers", "0"]
TRAIN = [*ON_DEMO, "--max_iter", "2", "--log_every", "1"]
GENERATOR = ["--ae_name", "ae", "--ae_model", "FSQ_AE_High", "--model", "FSQ-MARDM-SiT-S",
             "--diffmlps_batch_mul", "1"]
FAST = ["--time_steps", "2", "--ode_steps", "1", "--cfg", "2", "--repeats", "1"]


def torchrun(folder, *what):
    """Run tests/parallel_worker.py in two processes; returns exit code and output."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(ROOT / "tests" / "parallel_worker.py"), str(folder), *what]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folder of runs that two processes trained, with an interruption of one of them."""
    folder = tmp_path_factory.mktemp("two")
    code, output = torchrun(folder, "fit")
    assert code == 0, output
    return folder


@pytest.mark.parametrize("key, tolerance", [("mardm", 1e-7), ("evaluator", 1e-7), ("ae", 1e-4), ("rvq", 1e-4),
                                            ("diveq", 1e-4), ("norm", 1e-5)])
def test_two_processes_train_like_one_with_the_global_batch(two, tmp_path, key, tolerance):
    one = parallel_worker.train(tmp_path, key)
    saved = read_checkpoint(two / "numbers" / key / "model" / "latest.tar")
    assert saved["total_it"] == one.total_it == parallel_worker.STEPS and saved["best"] == one.best
    for state, expected in [(saved[key], one.model.state_dict()),
                            (saved[f"ema_{key}"], one.ema.model.state_dict())]:
        for name, value in expected.items():
            assert torch.allclose(state[name].double(), value.double(), rtol=0, atol=tolerance), name


def test_the_first_process_alone_writes(two):
    folder = two / "numbers" / "mardm"
    # before and after the interruption
    assert len(list((folder / "model").glob("events.out.tfevents.*"))) == 2
    lines = [line.split(" ", 2)[2] for line in (folder / "train.log").read_text().splitlines()]
    assert [line.split()[0] for line in lines] == ["stopped", "resumed", "epoch", "epoch", "done:"]


@pytest.mark.parametrize("how, said", [("crash", "OSError: this process crashes"), ("die", "Signal 9")])
def test_a_process_that_ends_ends_all(tmp_path, how, said):
    begin = time.monotonic()
    code, output = torchrun(tmp_path, how)
    assert code != 0 and said in output and "[rank0]: Traceback" not in output
    assert output.count("error: another process of this training has ended, so this one does; nothing has "
                        "been saved yet") == 1
    # a busy machine starts slowly; waiting for the other process would take two hours
    assert time.monotonic() - begin < 300


def test_a_mistake_is_reported_once(tmp_path):
    code, output = torchrun(tmp_path, "mistake")
    assert code != 0 and output.count("error: a mistake that the first process meets") == 1
    assert "[rank0]: Traceback" not in output and "[rank1]: Traceback" not in output


def test_parts_make_the_batch():
    lengths = np.random.default_rng(0).integers(40, 196, 50)
    whole = list(SeededBatches(50, 8, 3, lengths))
    parts = [list(SeededBatches(50, 8, 3, lengths, part=(rank, 2))) for rank in range(2)]
    assert [a + b for a, b in zip(*parts)] == whole and all(len(batch) == 4 for batch in parts[0])
    # fewer samples than a batch, an odd number
    small = [list(SeededBatches(7, 8, 3, part=(rank, 2))) for rank in range(2)]
    assert [len(batches[0]) for batches in small] == [3, 3] and len(set(small[0][0] + small[1][0])) == 6
    with pytest.raises(UserError, match="2 process"):
        SeededBatches(1, 8, 3, part=(0, 2))


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Two folders with a run of every training and evaluation script: one process, and two with half the
    batch."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "pair")]
    for folder in folders:
        build_demo(folder / "datasets" / "demo", num_clips=240)
    jobs = {
        "train_AE": ["--name", "ae", "--model", "FSQ_AE_High", "--width", "32", "--dropout", "0",
                     "--window_size", "40", *TRAIN],
        "train_evaluator": ["--name", "evaluator", *TRAIN], "train_length_estimator": TRAIN,
        "train_MARDM": ["--name", "mardm", *GENERATOR, "--dropout", "0", *TRAIN],
        "evaluation_AE": ["--name", "ae", *ON_DEMO],
        "evaluation_MARDM": ["--name", "mardm", "--ae_name", "ae", "--probe_repeats", "1", *FAST, *ON_DEMO],
    }

    def batch(script, size):
        return ["--batch_size", str(size)] if script.startswith("train") else []

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folders[0])
        for script, flags in jobs.items():
            assert call(script, *flags, *batch(script, 32)) == 0
    code, output = torchrun(folders[1], "scripts",
                            *(" ".join([s, *flags, *batch(s, 16)]) for s, flags in jobs.items()))
    assert code == 0, output
    return folders


def content(folder, name):
    return read_checkpoint(Path(folder) / "checkpoints" / "demo" / name / "model" / "latest.tar")


@pytest.mark.parametrize("name, key", [("ae", "ae"), ("mardm", "mardm")])
def test_scripts_train_equally(scripts, name, key):
    """AdamW's first steps have the size of the learning rate however small the gradient, so rounding alone
    moves single weights apart; the update as a whole must agree."""
    one, pair = (content(folder, name)[key] for folder in scripts)
    assert content(scripts[1], name)["total_it"] == 2
    torch.manual_seed(0)
    apart = sum(float((one[k] - pair[k]).double().square().sum()) for k in one) ** 0.5
    size = content(scripts[0], name)["args"]["lr"] * 2 * sum(value.numel() for value in one.values()) ** 0.5
    assert apart < 0.05 * size


@pytest.mark.parametrize("name", ["evaluator", "length_estimator"])
def test_scripts_with_dropout_run(scripts, name):
    assert content(scripts[1], name)["total_it"] == 2


def flat(value):
    """{path: leaf} of nested results."""
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {(key, *path): leaf for key, part in items for path, leaf in flat(part).items()}
    return {(): value}


def test_evaluation_is_the_same(scripts, tmp_path, monkeypatch):
    """The runs of two processes, evaluated by two processes and by one."""
    folder = scripts[1] / "checkpoints" / "demo"
    files = [folder / "ae" / "eval" / "evaluation_AE.json",
             folder / "mardm" / "eval" / "evaluation_MARDM.json"]
    pair = [json.loads(file.read_text()) for file in files]
    monkeypatch.chdir(scripts[1])
    assert call("evaluation_AE", "--name", "ae", *ON_DEMO) == 0
    assert call("evaluation_MARDM", "--name", "mardm", "--ae_name", "ae", "--probe_repeats", "1", *FAST,
                *ON_DEMO) == 0
    one = [json.loads(file.read_text()) for file in files]
    for name in ("metrics", "codes", "clips"):
        assert flat(one[0][name]) == pytest.approx(flat(pair[0][name]), rel=1e-6)
    for name in ("scores", "foot_skating", "probes"):
        assert flat(one[1][name]) == pytest.approx(flat(pair[1][name]), rel=1e-6, nan_ok=True)
