"""The training engine: resuming is exact, nothing is overwritten, bad losses stop it."""
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from utils.data.datasets import make_loader
from utils.errors import UserError
from utils.files import RunFolder, read_checkpoint, write_checkpoint
from utils.training.settings import learning_rate
from utils.training.trainer import EMA, Trainer, TrainerSettings, split_batch


class Numbers(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, key):
        index, seed = key
        noise = torch.randn(4, generator=torch.Generator().manual_seed(seed))
        return torch.full((4,), index / 40) + 0.1 * noise


def loss_fn(model, batch):
    return {"loss": (model(batch) - 2 * batch.sum(1, keepdim=True)).square().mean()}


def make_trainer(tmp_path, name, resume=False, loss=loss_fn, epochs=4, stop_at=None, lr=1e-2):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    folder = RunFolder(tmp_path, "numbers", name)
    folder.prepare(resume)
    trainer = Trainer(folder, "ae", model, optimizer,
                      TrainerSettings(lambda step: learning_rate(step, lr, 5, [12], 0.1), seed=7,
                                      log_every=3), {}, EMA(model, 0.9))
    if resume:
        trainer.resume(read_checkpoint(folder.latest))

    def counted(model, batch):
        if stop_at is not None and trainer.total_it == stop_at:
            signal.raise_signal(signal.SIGINT)
        return loss(model, batch)

    trainer.fit(make_loader(Numbers(), 8, 7), counted,
                epochs, lambda epoch, last: {"Val/loss": 1 / (epoch + 1)})
    return trainer


@pytest.mark.parametrize("stop_at", [4, 7, 12])
def test_resume_equals_the_uninterrupted_run(tmp_path, stop_at):
    whole = make_trainer(tmp_path, "whole")
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, "parts", stop_at=stop_at)
    saved = read_checkpoint(tmp_path / "numbers" / "parts" / "model" / "latest.tar")
    assert saved["total_it"] == stop_at + 1
    parts = make_trainer(tmp_path, "parts", resume=True)
    assert parts.total_it == whole.total_it == 20 and parts.best == whole.best
    for a, b in [(whole.model, parts.model), (whole.ema.model, parts.ema.model)]:
        for key, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[key]), key


def test_a_run_is_never_overwritten(tmp_path):
    make_trainer(tmp_path, "run", epochs=1)
    with pytest.raises(UserError, match="--is_continue"):
        make_trainer(tmp_path, "run")
    with pytest.raises(UserError, match="to resume"):
        make_trainer(tmp_path, "other", resume=True)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    first = make_trainer(tmp_path, "run", epochs=2)
    again = make_trainer(tmp_path, "run", resume=True, epochs=2)
    assert again.total_it == first.total_it
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters()))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(UserError, match="loss is nan"):
        make_trainer(tmp_path, "run", loss=lambda model, batch: {"loss": model(batch).mean() * float("nan")})


def test_resume_with_other_settings_is_refused(tmp_path):
    make_trainer(tmp_path, "run", epochs=1)
    path = tmp_path / "numbers" / "run" / "model" / "latest.tar"
    content = read_checkpoint(path)
    write_checkpoint(path, content | {"seed": 8})
    with pytest.raises(UserError, match="--seed 8"):
        make_trainer(tmp_path, "run", resume=True)
    content["ae"].pop("0.bias")
    write_checkpoint(path, content)
    with pytest.raises(UserError, match="other model settings"):
        make_trainer(tmp_path, "run", resume=True)


def test_a_batch_in_parts_has_the_gradient_of_the_whole(tmp_path):
    batch = torch.randn(8, 4)
    weights = {}
    for parts in (1, 3):
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        folder = RunFolder(tmp_path, "numbers", f"parts{parts}")
        folder.prepare(False)
        trainer = Trainer(folder, "ae", model, torch.optim.SGD(model.parameters(), 0.1),
                          TrainerSettings(lambda step: 0.1, seed=7, accumulate=parts), {})

        def step_fn(part, model=model):
            return loss_fn(model, part) | {"samples": torch.tensor(float(len(part)))}

        values = trainer._step(batch, step_fn)
        mean_of_parts = {1: 8.0, 3: (3 * 3 + 3 * 3 + 2 * 2) / 8}[parts]
        assert float(values["samples"]) == pytest.approx(mean_of_parts) and not values["loss"].requires_grad
        weights[parts] = model.weight.detach().clone(), values["loss"]
    for whole, split in zip(weights[1], weights[3]):
        assert torch.allclose(whole, split, atol=1e-6)


def test_parts_of_a_batch_hold_everything_once():
    batch = {"motion": torch.arange(10).reshape(5, 2), "keys": list("abcde")}
    parts = split_batch(batch, 2)
    assert [part["keys"] for part, _ in parts] == [["a", "b", "c"], ["d", "e"]]
    assert torch.equal(torch.cat([part["motion"] for part, _ in parts]), batch["motion"])
    assert [share for _, share in parts] == [0.6, 0.4]
    assert len(split_batch(batch, 9)) == 5  # more parts than samples


def test_learning_rate_is_a_function_of_the_step():
    rate = lambda step: learning_rate(step, 1.0, 10, [100, 200], 0.1)  # noqa: E731
    assert [rate(0), rate(4), rate(9), rate(10), rate(99)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    assert rate(100) == pytest.approx(0.1) and rate(250) == pytest.approx(0.01)


def test_ema_follows_the_model():
    model = nn.Linear(3, 3)
    ema = EMA(model, 0.9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    before = (ema.model.weight - model.weight).abs().max()
    for _ in range(50):
        ema.update(model)
    assert (ema.model.weight - model.weight).abs().max() < 0.05 * before


@pytest.mark.parametrize("name", ["", "a/b", ".."])
def test_run_names_are_plain(tmp_path, name):
    with pytest.raises(UserError, match="plain name"):
        RunFolder(tmp_path, "demo", name)


def test_damaged_and_hostile_checkpoints_are_refused(tmp_path):
    import pickle

    from utils.errors import UserError

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    for content in (b"", b"PK\x03\x04 rubbish", pickle.dumps({"ae": Evil()})):
        (tmp_path / "latest.tar").write_bytes(content)
        with pytest.raises(UserError, match="latest.tar"):
            read_checkpoint(tmp_path / "latest.tar")
    assert not (tmp_path / "pwned").exists()
    torch.save({"ae": Evil()}, tmp_path / "latest.tar")
    with pytest.raises(UserError, match="not loaded"):
        read_checkpoint(tmp_path / "latest.tar")
