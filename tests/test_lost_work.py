"""Trainings that are killed, stopped, refused, damaged or diverge: nothing is lost that was saved."""
import json
import os
import resource
import signal
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn
from torch.utils.data import Dataset

from models.quantizers import make_quantizer
from scripts import soak_kills
from scripts.soaking import Results
from utils import locks
from utils.data.datasets import make_loader
from utils.errors import UserError, checking, run, state
from utils.evaluation.codebook import usage_statistics
from utils.files import RunFolder, UnwritableFile, file_hash, read_checkpoint, write_checkpoint
from utils.training.codes import CodeUse
from utils.training.events import PATTERN, Events
from utils.training.finetuning import Parent
from utils.training.record import RunRecord, fingerprint
from utils.training.settings import start_training
from utils.training.trainer import EMA, Trainer, TrainerSettings
from utils.training.watching import Watch

STEPS, EPOCHS = 5, 4  # of an epoch, and epochs: 20 steps


class Numbers(Dataset):
    def __len__(self):
        return 8 * STEPS

    def clip_id(self, index):
        return f"clip{index:02d}"

    def __getitem__(self, key):
        noise = torch.randn(4, generator=torch.Generator().manual_seed(key[1]))
        return torch.full((4,), key[0] / len(self)) + 0.1 * noise


class Network(nn.Module):
    """With dropout, and a buffer that every forward pass changes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.mean(0), 0.1)
        return self.layers(x - self.mean)


class Crash(Exception):
    """Stands for SIGKILL: nobody saves anything after it."""


def squares(model, batch):
    return {"loss": (model(batch) - 2 * batch.sum(1, keepdim=True)).square().mean()}


def train(root, name="run", at_step=None, at_validation=None, **settings):
    """Train the run, or go on with it. ``at_step``: function (step from 0, loss ()) -> loss;
    ``at_validation``: function (epoch). Returns the Trainer."""
    folder, model = RunFolder(root, "numbers", name), Network()
    resumes = bool(folder.states())
    folder.prepare(resumes)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    trainer = Trainer(folder, "ae", model, optimizer, TrainerSettings(
        lambda step: 1e-2, seed=7, **{"log_every": 3, "save_minutes": 0.0} | settings), {}, EMA(model, 0.9))
    args = SimpleNamespace(name=name, dataset_name="numbers", seed=7)
    trainer.record = RunRecord(folder, args, root, {})
    if resumes:
        trainer.resume(folder.read_latest())

    def loss_fn(model, batch):
        values = squares(model, batch)
        return values | {"loss": at_step(trainer.total_it, values["loss"])} if at_step else values

    def validate(epoch, last):
        if at_validation:
            at_validation(epoch)
        return {"Val/loss": 1 / (epoch + 1)}

    trainer.fit(make_loader(Numbers(), 8, 7), loss_fn, EPOCHS, validate)
    return trainer


def curves_of(trainer):
    return soak_kills.curves(trainer.folder)


def assert_same(one, other):
    """Two finished runs: checkpoints and curves."""
    states = [read_checkpoint(trainer.folder.latest) for trainer in (one, other)]
    assert soak_kills.unequal(*states) == [] and curves_of(one) == curves_of(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing has disturbed."""
    return train(tmp_path_factory.mktemp("whole"))


@pytest.fixture(autouse=True)
def no_handler_stays():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(signal.SIGINT)] == before[:1]
    signal.signal(signal.SIGTERM, before[1])
    assert not locks.held  # no run of this file keeps its lock


def crash_at(wanted):
    def at_step(step, loss):
        if step == wanted:
            raise Crash
        return loss

    return at_step


def raise_signal(number, _step, loss):
    signal.raise_signal(number)
    return loss


# Curves, killed at any step


@pytest.mark.parametrize("step, every", [(1, 0.0), (4, 0.0), (7, 0.0), (10, 0.0), (13, 1e9)])
def test_a_killed_run_ends_as_if_nothing_had_been(whole, tmp_path, step, every):
    with pytest.raises(Crash):
        train(tmp_path, at_step=crash_at(step), save_minutes=every)
    assert_same(train(tmp_path), whole)


def test_curves_hold_every_step_once(whole):
    steps = [step for step, tag, _ in curves_of(whole) if tag == "Train/loss"]
    assert steps == [3, 5, 6, 9, 10, 12, 15, 18, 20]  # every third, and the last of an epoch
    tags = {tag for _, tag, _ in curves_of(whole)}
    assert tags == {"Train/loss", "Train/grad_norm", "Train/lr", "Val/loss"}


def test_curves_are_cut_to_what_the_checkpoint_knows(tmp_path):
    first = Events(tmp_path)
    first.write({"a": 1.0}, 1)
    known = first.lengths()
    first.write({"a": 9.0}, 2)
    first.records.write(b"x" * 100)
    first.close()
    with open(first.file.name, "ab") as file:
        file.write(b"\x20\0\0")  # half a record, as a kill leaves it
    later = Events(tmp_path)
    later.write({"a": 9.0}, 3)
    later.close()
    Events(tmp_path, known, 1).write({"a": 2.0}, 2)
    found = soak_kills.curves(SimpleNamespace(model_dir=tmp_path))
    assert found == [(1, "a", 1.0), (2, "a", 2.0)] and len(list(tmp_path.glob(PATTERN))) == 2


def test_a_start_that_saved_nothing_leaves_no_curves(whole, tmp_path):
    with pytest.raises(Crash):
        train(tmp_path, at_step=crash_at(4), save_minutes=1e9)
    folder = RunFolder(tmp_path, "numbers", "run")
    assert not folder.states() and list(folder.model_dir.glob(PATTERN))
    assert_same(train(tmp_path), whole)


def test_it_saves_inside_the_first_epoch_when_it_is_time(tmp_path):
    for minutes, saved in ((0.0, True), (10.0, False)):
        with pytest.raises(Crash):
            train(tmp_path, f"{saved}", crash_at(2), save_minutes=minutes)
        assert bool(RunFolder(tmp_path, "numbers", f"{saved}").states()) == saved


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 8])
def test_signals_save_and_say_how_to_resume(whole, tmp_path, number, step, capsys):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, at_step=lambda at, loss: raise_signal(number, at, loss) if at == step else loss,
              save_minutes=1e9)
    assert f"stopped at step {step + 1}; resume with --is_continue" in capsys.readouterr().out
    assert read_record(tmp_path)["starts"][-1]["ended"] == f"stopped by {number.name}"
    assert_same(train(tmp_path), whole)


def test_a_signal_leaves_a_validation(whole, tmp_path):
    """At once; the state before it is saved."""
    after = []

    def at_validation(epoch):
        if epoch == 1:
            signal.raise_signal(signal.SIGTERM)
            after.append(epoch)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, at_validation=at_validation, save_minutes=1e9)
    saved = read_checkpoint(tmp_path / "numbers/run/model/latest.tar")
    assert (saved["total_it"], saved["ep"], saved["batch"]) == (10, 1, 5) and not after
    assert_same(train(tmp_path), whole)


def test_validations_within_epochs_are_made_once_each_however_often_a_run_is_killed(tmp_path):
    """Every 3 steps and after each of 5; crashes before, in and after such validations."""
    straight = train(tmp_path, "straight", validate_every=3)
    steps = [step for step, tag, _ in curves_of(straight) if tag == "Val/loss"]
    assert steps == [3, 5, 6, 9, 10, 12, 15, 18, 20]
    assert straight.best == {"metric": "Val/loss", "value": 0.25, "epoch": 3, "step": 18}

    def crash(place, at, loss=None):
        if at == place:
            raise Crash
        return loss

    for step in (2, 3, 6, 9):
        with pytest.raises(Crash):
            train(tmp_path, "killed", at_step=partial(crash, step), validate_every=3)
    with pytest.raises(Crash):  # in the first validation of the third epoch
        train(tmp_path, "killed", at_validation=partial(crash, 2), validate_every=3)
    assert_same(train(tmp_path, "killed", validate_every=3), straight)


def test_a_run_that_dies_in_its_last_validation_makes_it_when_it_is_resumed(whole, tmp_path):
    def crash(epoch):
        if epoch == EPOCHS - 1:
            raise Crash

    with pytest.raises(Crash):
        train(tmp_path, at_validation=crash)
    assert read_checkpoint(tmp_path / "numbers/run/model/latest.tar")["total_it"] == STEPS * EPOCHS
    assert_same(train(tmp_path), whole)


def test_steps_that_a_device_has_not_told_of_are_settled_before_a_validation(tmp_path, monkeypatch):
    """On a GPU numbers are read a step late; what a stopped validation saves has them all."""
    monkeypatch.setattr("utils.training.resuming.Watch", lambda delay: Watch(1))
    settings = {"validate_every": 3, "log_every": 4, "save_minutes": 1e9}

    def stop(epoch):
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "stopped", at_validation=stop, **settings)
    assert read_checkpoint(tmp_path / "numbers/stopped/model/latest.tar")["log"]["count"] == 3
    assert_same(train(tmp_path, "stopped", **settings), train(tmp_path, "straight", **settings))


def test_a_signal_before_training(capsys):
    def main():
        start_training("cpu")
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == 130 and "interrupted before the first step" in capsys.readouterr().err
    run(lambda: None)
    assert state.interrupted == "interrupted"


# Locks


HOLDER = ("import sys; from utils import locks; locks.hold(sys.argv[1], 'x', 'y'); "
          "print('held', flush=True); sys.stdin.read()")


def test_a_second_process_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path):
    folder = RunFolder(tmp_path, "numbers", "run")
    folder.model_dir.mkdir(parents=True)
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder.root / ".lock")], cwd=ROOT,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        for _ in range(2):
            with pytest.raises(UserError, match=f"is in use by process {other.pid} on .* since .*; wait"):
                folder.prepare(False)
        with checking():
            folder.prepare(False)
        other.send_signal(signal.SIGKILL)
    finally:
        other.kill()
        other.communicate()
    assert (folder.root / ".lock").is_file()
    folder.prepare(False)
    assert f"process {os.getpid()} on" in (folder.root / ".lock").read_text()
    folder.release()
    assert not (folder.root / ".lock").exists()


def test_a_lock_that_is_no_file(tmp_path):
    folder = RunFolder(tmp_path, "numbers", "run")
    folder.root.mkdir(parents=True)
    lock = folder.root / ".lock"
    lock.write_bytes(b"\xff\xfe")  # whatever a process has left in it
    folder.prepare(False)
    folder.release()
    os.mkfifo(lock)
    with pytest.raises(UserError, match=".lock is not a file, so it cannot be locked"):
        folder.prepare(False)


def test_check_takes_no_lock(tmp_path):
    with checking():
        RunFolder(tmp_path, "numbers", "run").prepare(False)
    assert not list(tmp_path.iterdir())


# Checkpoints


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":  # one bit of a weight, which torch.load does not notice
        place = bytes(content).index(read_checkpoint(path)["ae"]["layers.0.weight"].numpy().tobytes())
        content[place + 5] ^= 4
        path.write_bytes(content)
        torch.load(path, weights_only=True)
    else:
        path.unlink()


@pytest.mark.parametrize("how, message", [("flipped", "the checksum of its part"),
                                          ("cut", "is not a checkpoint, or is damaged"),
                                          ("missing", "no checkpoint")])
def test_the_previous_state_takes_the_place_of_a_damaged_one(whole, tmp_path, how, message, capsys):
    with pytest.raises(Crash):
        train(tmp_path, at_step=crash_at(8))
    folder = RunFolder(tmp_path, "numbers", "run")
    damage(folder.latest, how)
    assert read_checkpoint(folder.checkpoint("latest"))["total_it"] == 7
    words = capsys.readouterr().err
    assert message in words and "previous_1.tar beside it is read in its place, the state of step 7" in words
    trainer = train(tmp_path, save_minutes=1e9, at_step=None)
    assert "resumed at epoch 1, step 7, from previous_1.tar" in (folder.root / "train.log").read_text()
    assert_same(trainer, whole)
    # the damaged file was not kept
    assert [read_checkpoint(path)["total_it"] for path in folder.states()] == [20, 7]


def test_a_run_begins_with_the_state_before_a_damaged_one(tmp_path):
    with pytest.raises(Crash):
        train(tmp_path, at_step=crash_at(8))
    folder = RunFolder(tmp_path, "numbers", "run")
    folder.best.unlink()
    folder.published.unlink()
    damage(folder.latest, "cut")
    parent = Parent("run", "ae", SimpleNamespace(checkpoints_dir=tmp_path), "numbers")
    assert parent.path.name == "previous_1.tar"
    assert parent.record["finetuned_from"]["hash"] == file_hash(parent.path)


def test_without_any_state_that_can_be_read(tmp_path):
    with pytest.raises(Crash):
        train(tmp_path, at_step=crash_at(4))
    folder = RunFolder(tmp_path, "numbers", "run")
    for path in folder.states():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="latest.tar is not a checkpoint"):
        train(tmp_path)
    folder.release()
    with pytest.raises(UserError, match="best.tar"):  # only the latest has others before it
        read_checkpoint(folder.best.with_name("best.tar"))


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_as_many_states_are_kept_as_asked_for(tmp_path, keep):
    with pytest.raises(Crash):
        train(tmp_path, at_step=crash_at(8), keep_last=4)
    folder = RunFolder(tmp_path, "numbers", "run")
    assert [read_checkpoint(path)["total_it"] for path in folder.states()] == [8, 7, 6, 5]
    with pytest.raises(Crash):
        train(tmp_path, at_step=crash_at(10), keep_last=keep)
    # after the validation, the tenth step, the ninth, the eighth
    assert [read_checkpoint(path)["total_it"] for path in folder.states()] == [10, 10, 9, 8][:keep]
    assert len(list(folder.model_dir.glob("*previous*"))) == keep - 1


@contextmanager
def full_disk():
    """Within the block, a function: from now on no file may be longer than so many bytes, as the kernel has
    it. That holds for what pytest writes, too, so the block ends before the test does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_run_and_the_last_state_stays(whole, tmp_path):
    def at_step(step, loss):
        if step == 8:
            fill(3000)
        return loss

    with full_disk() as fill, pytest.raises(UnwritableFile, match=(
            r"cannot write .*latest.tar: .*; the last good state is .*latest.tar, and --is_continue goes on "
            "from it")):
        train(tmp_path, at_step=at_step)
    folder = RunFolder(tmp_path, "numbers", "run")
    assert read_checkpoint(folder.latest)["total_it"] == 8
    assert not list(folder.model_dir.glob(".*"))
    assert read_record(tmp_path)["starts"][-1]["ended"].startswith("UnwritableFile: cannot write")
    assert_same(train(tmp_path), whole)


def test_curves_that_cannot_be_written_are_one_line(tmp_path):
    events = Events(tmp_path)
    with full_disk() as fill, pytest.raises(UnwritableFile, match="cannot write .*tfevents"):
        fill(100)
        events.write({f"tag{i}": 1.0 for i in range(9)}, 1)
    with full_disk() as fill:
        fill(100)
        events.close()  # which tries again, and must not hide that line


def test_checkpoints_of_others_load(tmp_path):
    content = {"ae": {"weight": torch.arange(4.0)}}
    for name, options in (("old", {"_use_new_zipfile_serialization": False}), ("new", {})):
        torch.save(content, tmp_path / f"{name}.tar", **options)
    torch.serialization.set_crc32_options(False)  # they need not have checksums
    try:
        torch.save(content, tmp_path / "bare.tar")
    finally:
        torch.serialization.set_crc32_options(True)
    assert not any(part.CRC for part in zipfile.ZipFile(tmp_path / "bare.tar").infolist())
    for name in ("old", "new", "bare"):
        assert torch.equal(read_checkpoint(tmp_path / f"{name}.tar")["ae"]["weight"], content["ae"]["weight"])


def test_an_archive_that_torch_does_not_make_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.tar", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"0" * 10**8)
    with pytest.raises(UserError, match="torch.save makes no such archive"):
        read_checkpoint(tmp_path / "bomb.tar")


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args)))
    write_checkpoint(tmp_path / "latest.tar", {"a": 1}, when_written=lambda: calls.append("shift"))
    assert calls.index("fsync") < calls.index("shift") < calls.index("replace") < len(calls) - 1
    assert calls[-1] == "fsync"  # of the folder


# The record of a run


def read_record(root, name="run"):
    return json.loads((root / "numbers" / name / "run.json").read_text())


def test_a_run_is_a_record(tmp_path):
    (tmp_path / "train.txt").write_text("000001\n")
    with pytest.raises(Crash):
        train(tmp_path, at_step=crash_at(8))
    content = read_record(tmp_path)
    content["starts"][0]["ended"] = "running"  # as SIGKILL leaves it
    (tmp_path / "numbers/run/run.json").write_text(json.dumps(content))
    (tmp_path / "train.txt").write_text("000002\n")
    train(tmp_path)
    record = read_record(tmp_path)
    first, second = record["starts"]
    assert (first["from_step"], first["to_step"], second["from_step"], second["to_step"]) == (0, 8, 8, 20)
    assert first["ended"] == "killed after step 8, which was the last one saved"
    assert second["ended"] == "finished" and second["arguments"]["seed"] == record["seed"] == 7
    assert set(second["versions"]) == {"python", "torch", "numpy"} and "version" in second["code"]
    assert record["data"] == content["data"] and second["data"] == fingerprint(tmp_path) != record["data"]
    assert "is not as it was when the run began" in (tmp_path / "numbers/run/train.log").read_text()


@pytest.mark.parametrize("content", ["{", "[]", '{"starts": {}}', '{"starts": [3]}',
                                     '{"starts": [], "starts": []}'])
def test_a_damaged_record_is_kept_aside(tmp_path, content):
    with pytest.raises(Crash):
        train(tmp_path, at_step=crash_at(8))
    (tmp_path / "numbers/run/run.json").write_text(content)
    train(tmp_path)
    assert len(read_record(tmp_path)["starts"]) == 1
    assert len(list((tmp_path / "numbers/run").glob("run.damaged-*.json"))) == 1


def test_the_fingerprint_of_a_data_set(tmp_path):
    (tmp_path / "new_joint_vecs").mkdir()
    (tmp_path / "new_joint_vecs" / "a.npy").write_bytes(b"123")
    (tmp_path / "train.txt").write_text("a")
    before = fingerprint(tmp_path)
    assert (before["files"], before["bytes"], list(before["lists"])) == (1, 3, ["train.txt"])
    (tmp_path / "new_joint_vecs" / "a.npy").write_bytes(b"1234")
    longer = fingerprint(tmp_path)
    (tmp_path / "new_joint_vecs" / "a.npy").rename(tmp_path / "new_joint_vecs" / "b.npy")
    assert len({found["names_and_sizes"] for found in (before, longer, fingerprint(tmp_path))}) == 3


# Faults of loss and gradient


def bad(steps, kind="loss", times=1):
    """``at_step``: a loss, or a gradient, that is not finite at these steps, so many times each."""
    left = dict.fromkeys(steps, times)

    def at_step(step, loss):
        if left.get(step, 0) == 0:
            return loss
        left[step] -= 1
        return loss * float("inf") if kind == "loss" else loss + 0 * (loss - loss.detach()).sqrt()

    return at_step


@pytest.mark.parametrize("kind, words", [("loss", "the loss is inf"), ("gradient", "gradient is nan")])
def test_a_step_that_is_not_finite_stops_the_run(tmp_path, kind, words):
    with pytest.raises(UserError, match=rf"{words} at step 8; the batch has (clip\d\d(, )?){{8}} .*"
                                        r"the last good state is .*latest.tar"):
        train(tmp_path, at_step=bad([7], kind))
    assert read_checkpoint(tmp_path / "numbers/run/model/latest.tar")["total_it"] == 7
    loader = make_loader(Numbers(), 8, 7)
    loader.batch_sampler.epoch, loader.batch_sampler.start = 1, 2
    ids = [f"clip{index:02d}" for index, _ in next(iter(loader.batch_sampler))]
    assert ", ".join(ids) in (tmp_path / "numbers/run/train.log").read_text()


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_skipping_leaves_the_step_out(tmp_path, kind):
    states, ended = {}, []

    def at_step(step, loss):
        trainer_state = [value.clone() for value in (*ended[0].model.state_dict().values(),
                                                     *ended[0].ema.model.parameters())] if ended else None
        states[step] = trainer_state
        return bad([7], kind)(step, loss)

    before = Trainer.fit
    try:
        Trainer.fit = lambda self, *args: (ended.append(self), before(self, *args))[1]
        trainer = train(tmp_path, at_step=at_step, on_nan="skip")
    finally:
        Trainer.fit = before
    # the buffer in the state of a step has seen its batch already, so all but that are compared
    same = [torch.equal(a, b) for a, b in zip(states[7], states[8])]
    assert sum(same) == len(same) - 1 and not all(torch.equal(a, b) for a, b in zip(states[8], states[9]))
    assert trainer.skipped == 1 and trainer.ema.steps == 19
    assert all(int(value["step"]) == 19 for value in trainer.optimizer.state.values())
    values = [value for _, tag, value in curves_of(trainer) if tag.startswith("Train/")]
    assert np.isfinite(values).all() and [
        value for _, tag, value in curves_of(trainer) if tag == "Train/skipped"][-1] == 1


def test_a_buffer_does_not_keep_what_was_skipped(tmp_path):
    class Poisoned(Numbers):
        def __getitem__(self, key):
            return super().__getitem__(key) * (float("nan") if key[0] == 3 else 1)

    model, folder = Network(), RunFolder(tmp_path, "numbers", "run")
    folder.prepare(False)
    trainer = Trainer(folder, "ae", model, torch.optim.AdamW(model.parameters(), 1e-2),
                      TrainerSettings(lambda step: 1e-2, seed=7, on_nan="skip"), {})
    trainer.fit(make_loader(Poisoned(), 8, 7), squares, 2)
    assert trainer.skipped == 2 and model.mean.isfinite().all() and model.mean.abs().min() > 0


def test_skipping_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.training.trainer.MOST_SKIPS", 3)
    with pytest.raises(UserError, match="at step 11; .*|as in the 3 steps before"):
        train(tmp_path, at_step=bad(range(7, 20)), on_nan="skip")


def test_rolling_back_goes_on_with_other_random_numbers(whole, tmp_path):
    trainer = train(tmp_path, at_step=bad([8]), on_nan="rollback")
    assert trainer.total_it == 20 and trainer.attempt == 1
    log = (tmp_path / "numbers/run/train.log").read_text()
    assert "the loss is inf at step 9. Returned to step 8, with other random numbers (attempt 1)" in log
    pairs = dict(zip(["mine", "whole"], map(curves_of, (trainer, whole))))
    assert pairs["mine"][:6] == pairs["whole"][:6] and pairs["mine"] != pairs["whole"]
    assert [row[:2] for row in pairs["mine"]] == [row[:2] for row in pairs["whole"]]  # no step twice


def test_rolling_back_to_the_beginning_and_not_for_ever(tmp_path):
    assert train(tmp_path, "first", bad([0]), on_nan="rollback").attempt == 1
    with pytest.raises(UserError, match="came again after 3 returns to .*latest.tar"):
        train(tmp_path, "ever", bad([8], times=9), on_nan="rollback", save_minutes=1e9)


@pytest.mark.parametrize("on_nan, times", [("skip", 9), ("rollback", 1)])
def test_faults_are_the_same_after_a_resume(tmp_path, on_nan, times):
    """A kill before the fault, and one after it."""
    def faulty(left=None):
        return bad([8], times=times if left is None else left)

    undisturbed = train(tmp_path, "undisturbed", faulty(), on_nan=on_nan)
    fault, crash = faulty(), crash_at(13)
    with pytest.raises(Crash):
        train(tmp_path, "killed", lambda step, loss: crash(step, fault(step, loss)), on_nan=on_nan)
    assert_same(train(tmp_path, "killed", faulty(0), on_nan=on_nan), undisturbed)


def test_a_spike_of_the_gradient_is_a_line(tmp_path):
    train(tmp_path, at_step=lambda step, loss: loss * (1e4 if step == 19 else 1))
    assert "gradient is" not in (tmp_path / "numbers/run/train.log").read_text()  # too few steps before it
    watch = Watch(0)
    norms = [2.0] * 30 + [30.0, 40.0] + [2.0] * 200 + [21.0]
    lines = [watch.spike(step, norm) for step, norm in enumerate(norms)]
    assert [line for line in lines if line] == [
        f"the norm of the gradient is {norm} at step {step}, {times} times the median of the steps before"
        for norm, step, times in ((30, 30, 15), (21, 232, 10))]
    assert not any(Watch(0).spike(step, norm) for step, norm in enumerate([0.0] * 30 + [1.0]))


def test_on_a_device_the_numbers_are_read_a_step_later(tmp_path):
    """The step after the bad one runs, and its end finds the fault: nothing of either is saved."""
    model, folder = Network(), RunFolder(tmp_path, "numbers", "run")
    folder.prepare(False)
    trainer = Trainer(folder, "ae", model, torch.optim.AdamW(model.parameters(), 1e-2),
                      TrainerSettings(lambda step: 1e-2, seed=7, save_minutes=1e9), {})
    trainer.at_once, trainer.watch = False, Watch(1)  # as on a GPU
    fault = bad([6])
    with pytest.raises(UserError, match="the loss is inf at step 7; the batch has"):
        trainer.fit(make_loader(Numbers(), 8, 7), lambda model, batch: {
            "loss": fault(trainer.total_it, squares(model, batch)["loss"])}, EPOCHS)
    assert trainer.total_it == 8 and not folder.states()


# Codes


def quantizer(name="vq", **sizes):
    torch.manual_seed(0)
    return make_quantizer("VQ" if "codebook_size" in sizes else "FSQ", name, {}, **sizes)


def test_use_of_a_codebook():
    use = CodeUse(quantizer(codebook_size=16, dim=4), "cpu")
    parts = [torch.randint(0, 12, (3, 50), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    for part in parts[:2]:
        use.add(part)
    expected = usage_statistics(torch.cat(parts[:2]).flatten(), 16)
    assert use.tags() == pytest.approx({"Codes/used": expected["codes_used"],
                                        "Codes/perplexity": expected["perplexity"]})
    assert use.tags() == {}
    use.add(parts[2])
    again = CodeUse(use.quantizer, "cpu")
    again.load(use.state())
    for counts in (use, again):
        tags, line = counts.end_epoch()
        assert tags == {"Codes/dead": 4.0} and line == "4 of 16 codes were chosen by no batch of this epoch"
        counts.add(torch.arange(12))
        assert counts.end_epoch() == ({"Codes/dead": 4.0}, None)  # as before: no second line


@pytest.mark.parametrize("name, sizes", [
    ("rvq", {"codebook_size": 8, "dim": 4}), ("sf_diveq", {"codebook_size": 8, "dim": 4}),
    ("fsq", {"levels": (5, 5)}), ("fsq", {"levels": (9,) * 8}), ("ifsq", {"levels": (17,) * 20}),
    ("hybrid", {"levels": (5,) * 3}), ("hybrid", {"levels": (9,) * 8})])
def test_use_of_every_kind_of_quantizer(name, sizes):
    q = quantizer(name, **sizes).train()
    use, found = CodeUse(q, "cpu"), []
    for seed in range(3):
        indices = q(torch.randn(6, 10, q.dim, generator=torch.Generator().manual_seed(seed))).indices
        use.add(indices)
        found.append(indices.reshape(60, -1) if use.whole else q.unpack(indices).reshape(60, -1))
    digits = torch.cat(found)
    axes = [digits[:, axis][digits[:, axis] >= 0] for axis in range(digits.shape[1])]
    expected = [usage_statistics(axis, size) for axis, size in zip(axes, use.sizes)]
    tags = use.tags()
    assert tags["Codes/used"] == sum(axis["codes_used"] for axis in expected)
    assert tags["Codes/perplexity"] == pytest.approx(np.mean([axis["perplexity"] for axis in expected]))
    assert use.end_epoch()[0]["Codes/dead"] == sum(use.sizes) - tags["Codes/used"]
    if not use.whole and q.axis_sizes == use.sizes and (digits >= 0).all():
        assert torch.equal(q.to_digits(indices), q.unpack(indices))


def test_the_temperature_is_a_curve():
    q = quantizer("gumbel", codebook_size=8, dim=4).train()
    use = CodeUse(q, "cpu")
    use.add(q(torch.randn(2, 5, 4)).indices)
    assert use.tags()["Codes/temperature"] == q.tau == pytest.approx(0.9999)


def test_a_codebook_is_not_started_from_a_batch_that_is_not_finite():
    q = quantizer(codebook_size=8, dim=4).train()
    q(torch.full((2, 5, 4), float("nan")))
    assert not q.seeded and q.codebook.isfinite().all()
    q(torch.randn(2, 5, 4))
    assert q.seeded


# The real thing


@pytest.mark.parametrize("trainer", ["train_AE", "train_length_estimator"])
def test_real_kills(tmp_path, trainer):
    (row,) = soak_kills.soak(2, tmp_path, Results(None, "kills", 5), [trainer], [1])
    assert row["kills"] == 2 and row["identical"] == row["runs"] >= 1


def test_the_soak_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    path, done = tmp_path / "kills.json", []

    def torment_one(_soak, trainer, processes, name, kills):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append((name, kills))
        return {"kills": kills - (name == "train_AE_1_0"), "writing": 1, "runs": 1, "identical": 1}

    monkeypatch.setattr(soak_kills.Soak, "torment_one", torment_one)
    monkeypatch.setattr(soak_kills, "build_demo", lambda *_args, **_settings: None)
    with pytest.raises(KeyboardInterrupt):
        soak_kills.soak(14, tmp_path, Results(path, "kills", 5), ["train_AE"])
    done.clear()
    rows = soak_kills.soak(14, tmp_path, Results(path, "kills", 5), ["train_AE"])
    assert done == [("train_AE_2_1", 2)]
    assert [[*row.values()][1:] for row in rows] == [[1, 7, 2, 2, 2], [2, 7, 2, 2, 2]]
    with pytest.raises(UserError, match="kills.json has results of .*, not .*3407"):
        Results(path, "kills", 3407)


def test_the_comparison_of_the_soak_finds_differences(whole, tmp_path):
    other = train(tmp_path, at_step=lambda step, loss: loss * (1.0 + 1e-6 * (step == 19)))
    states = [read_checkpoint(trainer.folder.latest) for trainer in (whole, other)]
    assert "/optimizer/state/0/exp_avg" in soak_kills.unequal(*states)
    assert curves_of(whole) != curves_of(other)
    assert soak_kills.unequal({"a": [1, torch.ones(2)]}, {"a": [1, torch.ones(2).double()]}) == ["/a/1"]
    assert partial(soak_kills.unequal, {"a": 1})({}) == ["/a"]
