"""The training loop.

A run is a pure function of its arguments: batches depend on (seed, epoch), random numbers on (seed, step). So
an interrupted run resumes bit for bit as if it had not been interrupted (on the same machine, with the same
settings).
"""
import copy
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils.errors import UserError, is_first
from utils.training import distributed
from utils.training.resuming import ResumableRun
from utils.training.settings import autocast, learning_rate, peak_memory_mb, resolve_precision, step_seed

# oneDNN caches buffers for the last 1,024 shapes by default, which takes gigabytes as batches differ in
# shape.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

SAVE_SECONDS = 60  # between two saves: most of what a crash loses


def split_batch(batch, parts):
    """[(part, fraction of the samples)] of a batch: a tensor, or a dict of tensors and lists."""
    if parts == 1:
        return [(batch, 1.0)]
    size = len(next(iter(batch.values())) if isinstance(batch, dict) else batch)
    step = -(-size // parts)
    pieces = []
    for first in range(0, size, step):
        rows = slice(first, first + step)
        part = {key: value[rows] for key, value in batch.items()} if isinstance(batch, dict) else batch[rows]
        pieces.append((part, min(step, size - first) / size))
    return pieces


class EMA:
    """Exponential moving average of a model's parameters; buffers are copied. The decay after n steps is at
    most (1 + n) / (10 + n), so that short runs do not average in the initialisation."""

    def __init__(self, model, decay=0.9999):
        self.decay, self.steps = decay, 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model):
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), weight)
        for average, current in zip(self.model.buffers(), model.buffers()):
            average.copy_(current)


@dataclass(frozen=True)
class TrainerSettings:
    """Settings of a Trainer.

    lr_at: function step -> learning rate. seed: of the steps' random numbers. metric: validation tag; its
    lowest value is the best. precision: "fp32", "tf32" or "bf16" (autocast). max_iter: most steps; 0 = no
    limit but the epochs. clip_grad: norm to which gradients are clipped; 0 = no clipping. log_every: steps
    between log entries. accumulate: parts into which each batch is split; their gradients are added, weighted
    by number of samples.
    """

    lr_at: Callable
    seed: int
    metric: str = "Val/loss"
    precision: str = "fp32"
    max_iter: int = 0
    clip_grad: float = 0.0
    log_every: int = 10
    accumulate: int = 1


class Trainer(ResumableRun):
    """Trains one model and maintains its run folder. Arguments: see ResumableRun."""

    stop_signal = None  # number of the signal that asked to stop

    def fit(self, loader, loss_fn, epochs, validate=None):
        """Train for ``epochs`` epochs, or up to ``settings.max_iter`` steps.

        ``loss_fn(model, batch)`` returns a dict of scalar tensors to log; "loss" is minimised. Under torchrun
        each process gets its rows of the batch, and gradients are averaged over the processes.
        ``validate(epoch, last)`` is called in all processes after every epoch (from 0; ``last``: training
        ends with it) and returns {tag: value}, or {} if it is not due. UserError if a logged loss or a weight
        to save is not finite. SIGINT and SIGTERM finish the step, save, and raise KeyboardInterrupt.
        """
        steps = len(loader)
        if steps == 0:
            raise UserError("the training split is smaller than one batch; pass a smaller --batch_size")
        first = is_first()
        writer = SummaryWriter(self.folder.model_dir) if first else None
        step_fn = distributed.with_loss(self.model, loss_fn)
        self.max_iter = min(self.settings.max_iter or epochs * steps, epochs * steps)
        progress = tqdm(total=self.max_iter, initial=self.total_it, unit="step", desc=self.folder.root.name,
                        mininterval=1, smoothing=0.05, disable=not first)
        previous = {name: signal.signal(name, self._request_stop) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self.total_it < self.max_iter:
                self._run_epoch(loader, step_fn, writer, progress)
                self._finish_epoch(validate, writer, last=self.total_it == self.max_iter)
        finally:
            for name, handler in previous.items():
                signal.signal(name, handler)
            progress.close()
            if first:
                writer.close()
        distributed.barrier()  # until the first process has written everything
        self.folder.log(f"done: {self.total_it} steps, best {self.best['metric']} {self.best['value']:.5g} "
                        f"after epoch {self.best['epoch'] + 1}, peak memory {peak_memory_mb():.0f} MB")

    def _request_stop(self, signum, _frame):
        self.stop_signal = signum  # the current step is finished first, so that the saved state is consistent

    def _run_epoch(self, loader, step_fn, writer, progress):
        loader.batch_sampler.epoch, loader.batch_sampler.start = self.epoch, self.batch
        self.model.train()
        sums, count = {}, 0
        for batch in loader:
            values = self._step(batch, step_fn)
            self.batch += 1
            self.total_it += 1
            progress.update()
            sums = {name: sums.get(name, 0) + value for name, value in values.items()}
            count += 1
            if self.total_it % self.settings.log_every == 0:
                self._log_step(sums, count, writer, progress)
                sums, count = {}, 0
            self._save_when_due()
            if self.total_it == self.max_iter:
                break
        if count:
            self._log_step(sums, count, writer, progress)

    def _step(self, batch, step_fn):
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr_at(self.total_it)
        self.optimizer.zero_grad(set_to_none=True)
        totals = {}
        seed = step_seed(self.settings.seed, self.total_it)
        for i, (part, fraction) in enumerate(split_batch(batch, self.settings.accumulate)):
            # for dropout; other random numbers are drawn for all processes (distributed.local_batch)
            torch.manual_seed(seed + i * distributed.size() + distributed.rank())
            with autocast(self.settings.precision, next(self.model.parameters()).device):
                values = step_fn(part)
            (values["loss"] * fraction).backward()
            totals = {name: totals.get(name, 0) + fraction * value.detach() for name, value in values.items()}
        if self.settings.clip_grad:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model)
        return totals

    def _log_step(self, sums, count, writer, progress):
        means = distributed.mean_of({name: float(total) / count for name, total in sums.items()})
        if not math.isfinite(means["loss"]):
            raise self.diverged(f"the loss is {means['loss']}")
        means = {f"Train/{name}": value for name, value in means.items()}
        self._write(writer, means | {"Train/lr": self.settings.lr_at(self.total_it - 1)})
        progress.set_postfix(loss=f"{means['Train/loss']:.4f}", refresh=False)

    def _write(self, writer, values):
        if writer is not None:  # in the first process
            for tag, value in values.items():
                writer.add_scalar(tag, value, self.total_it)

    def _save_when_due(self, now=False):
        # signals reach the processes at different steps
        stop = distributed.any_of(self.stop_signal is not None)
        if now or stop or time.monotonic() - self.saved_at > SAVE_SECONDS:
            self.save()
        if stop:
            self.folder.log(f"stopped at step {self.total_it}; resume with --is_continue")
            distributed.barrier()  # torchrun ends all processes once one has ended
            raise KeyboardInterrupt

    def _finish_epoch(self, validate, writer, last):
        values = {}
        if validate is not None:
            self.model.eval()
            # plain floats: numpy numbers in a checkpoint could not be loaded without running code
            values = {tag: float(value) for tag, value in validate(self.epoch, last).items()}
        self.epoch, self.batch = self.epoch + 1, 0
        self._write(writer, values)
        if values:
            shown = " ".join(f"{tag} {value:.4g}" for tag, value in values.items())
            self.folder.log(f"epoch {self.epoch} step {self.total_it}: {shown}")
        if values.get(self.settings.metric, math.inf) < self.best["value"]:
            self.best = {"metric": self.settings.metric, "value": values[self.settings.metric],
                         "epoch": self.epoch - 1}
            if is_first():
                self.folder.save_best(self.state(weights_only=True))
        self._save_when_due(now=last)


def make_trainer(args, folder, key, model, describe, metric="Val/loss", ema=None):
    """A Trainer from the flags of utils/options.py's add_training, with AdamW and the published betas."""
    device = next(model.parameters()).device
    # fused: one pass over the weights, not one per operation of the update
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.99),
                                  weight_decay=args.weight_decay, fused=device.type in ("cpu", "cuda"))
    settings = TrainerSettings(
        lr_at=lambda step: learning_rate(step, args.lr, args.warm_up_iter, args.milestones, args.lr_decay),
        seed=args.seed, metric=metric, precision=resolve_precision(args.precision, device),
        max_iter=args.max_iter, clip_grad=args.clip_grad, log_every=args.log_every,
        accumulate=getattr(args, "accumulate", 1))
    flags = vars(args) | {"whole_batch": args.batch_size * distributed.size()}
    return Trainer(folder, key, model, optimizer, settings, describe | {"args": flags}, ema)
