"""Training: exact resuming, optimizer, best and latest checkpoint, runs that diverge."""
import os
import pickle
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from utils import options
from utils.data.datasets import make_loader
from utils.errors import UserError
from utils.files import RunFolder, read_checkpoint, write_checkpoint
from utils.training.settings import learning_rate
from utils.training.trainer import EMA, Trainer, TrainerSettings, make_trainer, split_batch


class Numbers(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, key):
        index, seed = key
        noise = torch.randn(4, generator=torch.Generator().manual_seed(seed))
        return torch.full((4,), index / 40) + 0.1 * noise


def loss_fn(model, batch):
    return {"loss": (model(batch) - 2 * batch.sum(1, keepdim=True)).square().mean()}


def train(tmp_path, name, resume=False, loss=loss_fn, epochs=4, stop_at=None, lr=1e-2, scores=(4, 3, 2, 1)):
    """A Trainer after ``epochs`` epochs whose validations gave ``scores``."""
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

    trainer.fit(make_loader(Numbers(), 8, 7), counted, epochs,
                lambda epoch, last: {"Val/loss": scores[epoch]})
    return trainer


@pytest.mark.parametrize("stop_at", [4, 7, 12])
def test_resume_equals_the_uninterrupted_run(tmp_path, stop_at):
    whole = train(tmp_path, "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "parts", stop_at=stop_at)
    saved = read_checkpoint(tmp_path / "numbers" / "parts" / "model" / "latest.tar")
    assert saved["total_it"] == stop_at + 1
    parts = train(tmp_path, "parts", resume=True)
    assert parts.total_it == whole.total_it == 20 and parts.best == whole.best
    for a, b in [(whole.model, parts.model), (whole.ema.model, parts.ema.model)]:
        for key, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[key]), key


def test_the_optimizer_and_its_schedule_are_as_published(tmp_path):
    parser = options.make_parser("")
    options.add_common(parser, "run")
    options.add_training(parser, batch_size=8, epoch=1, lr=2e-4, weight_decay=1e-5, warm_up_iter=10,
                         milestones=[20], log_every=5)
    trainer = make_trainer(parser.parse_args([]), RunFolder(tmp_path, "numbers", "run"), "ae",
                           nn.Linear(4, 1), {})
    (group,) = trainer.optimizer.param_groups
    assert type(trainer.optimizer) is torch.optim.AdamW and len(group["params"]) == 2
    assert {name: group[name] for name in ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")} == {
        "lr": 2e-4, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 1e-5, "amsgrad": False,
        "maximize": False}
    assert [trainer.settings.lr_at(step) for step in (0, 10, 20)] == pytest.approx([2e-5, 2e-4, 2e-5])
    assert trainer.describe["args"]["whole_batch"] == 8 and trainer.settings.precision == "fp32"


def test_the_best_checkpoint_is_of_the_lowest_score_and_has_two_names(tmp_path):
    folder = train(tmp_path, "run", epochs=3, scores=(3, 1, 2)).folder
    content = read_checkpoint(folder.best)
    assert content["best"] == {"metric": "Val/loss", "value": 1.0, "epoch": 1, "step": 10}
    assert content["ep"] == 2
    assert "optimizer" not in content and {"ae", "ema_ae"} <= set(content)
    assert read_checkpoint(folder.latest)["ep"] == 3
    assert (folder.best.name, folder.published.name) == ("best.tar", "net_best_fid.tar")
    assert folder.best.samefile(folder.published)


def test_without_links_the_published_name_is_a_copy(tmp_path, monkeypatch):
    def link(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", link)
    folder = train(tmp_path, "run", epochs=1).folder
    assert not folder.best.samefile(folder.published)
    assert folder.best.read_bytes() == folder.published.read_bytes()
    assert sorted(path.name for path in folder.model_dir.glob("*.tar")) == [
        "best.tar", "latest.tar", "net_best_fid.tar", "previous_1.tar"]


def test_which_checkpoint_is_used(tmp_path):
    folder = RunFolder(tmp_path, "numbers", "run")
    folder.prepare(False)
    assert folder.checkpoint() == folder.latest  # the one that is missed
    order = [folder.finest, folder.latest, folder.published, folder.best]
    for path in order:  # from the least to the most preferred
        path.write_bytes(b"")
        assert folder.checkpoint() == path
    assert folder.checkpoint("latest") == folder.latest
    folder.latest.unlink()
    assert folder.checkpoint("latest") == folder.finest and folder.checkpoint() == folder.best


@pytest.mark.parametrize("what, metric", [("autoencoder", "FID, or MPJPE if"),
                                          ("generator", "FID, or loss if")])
def test_help_says_what_the_best_checkpoint_was_chosen_by(what, metric):
    parser = options.make_parser("")
    options.add_trained(parser, {}, what)
    text = " ".join(parser.format_help().split())
    assert f"best.tar (lowest validation {metric}" in text and "net_best_fid" not in text


def test_a_run_is_never_overwritten(tmp_path):
    train(tmp_path, "run", epochs=1)
    with pytest.raises(UserError, match="--is_continue"):
        train(tmp_path, "run")
    with pytest.raises(UserError, match="to resume"):
        train(tmp_path, "other", resume=True)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    first = train(tmp_path, "run", epochs=2)
    again = train(tmp_path, "run", resume=True, epochs=2)
    assert again.total_it == first.total_it
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters()))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(UserError, match="loss is nan"):
        train(tmp_path, "run", loss=lambda model, batch: {"loss": model(batch).mean() * float("nan")})


def test_resume_with_other_settings_is_refused(tmp_path):
    train(tmp_path, "run", epochs=1)
    path = tmp_path / "numbers" / "run" / "model" / "latest.tar"
    content = read_checkpoint(path)
    write_checkpoint(path, content | {"seed": 8})
    with pytest.raises(UserError, match="--seed 8"):
        train(tmp_path, "run", resume=True)
    content["ae"].pop("0.bias")
    write_checkpoint(path, content)
    with pytest.raises(UserError, match="other model settings"):
        train(tmp_path, "run", resume=True)


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


def test_parts_of_a_batch_cover_it_once():
    batch = {"motion": torch.arange(10).reshape(5, 2), "keys": list("abcde")}
    parts = split_batch(batch, 2)
    assert [part["keys"] for part, _ in parts] == [["a", "b", "c"], ["d", "e"]]
    assert torch.equal(torch.cat([part["motion"] for part, _ in parts]), batch["motion"])
    assert [fraction for _, fraction in parts] == [0.6, 0.4]
    assert len(split_batch(batch, 9)) == 5  # more parts than samples


def test_learning_rate_is_a_function_of_the_step():
    def rate(step):
        return learning_rate(step, 1.0, 10, [100, 200], 0.1)

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
