"""The training loop.

A run is a pure function of its arguments: batches depend on (seed, epoch), random numbers on (seed, step). So
an interrupted run resumes bit for bit as if it had not been interrupted (on the same machine, with the same
settings).
"""
import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from tqdm import tqdm

from utils.errors import UserError, is_first, say, state
from utils.files import UnwritableFile
from utils.training import distributed
from utils.training.events import Events
from utils.training.record import RunRecord
from utils.training.resuming import ResumableRun
from utils.training.settings import autocast, learning_rate, peak_memory_mb, resolve_precision, step_seed
from utils.training.stopping import StopSignals
from utils.training.watching import Diverged, Step

# oneDNN caches buffers for the last 1,024 shapes by default, which takes gigabytes as batches differ in
# shape.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

MOST_RETURNS = 3  # to one checkpoint, of --on_nan rollback
MOST_SKIPS = 100  # in a row, of --on_nan skip
SHOWN = 8  # clips of a batch that a message names


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
    by number of samples. save_minutes: between two saves, which is most of what a crash loses. keep_last:
    states that are kept. validate_every: steps between validations within an epoch; 0 = none there. on_nan:
    what follows a loss or gradient that is not finite: "stop", "skip" (leave out the step) or "rollback"
    (return to the last state, and go on with other random numbers).
    """

    lr_at: Callable
    seed: int
    metric: str = "Val/loss"
    precision: str = "fp32"
    max_iter: int = 0
    clip_grad: float = 0.0
    log_every: int = 10
    accumulate: int = 1
    save_minutes: float = 10.0
    keep_last: int = 2
    validate_every: int = 0
    on_nan: str = "stop"


class Trainer(ResumableRun):
    """Trains one model and maintains its run folder. Arguments: see ResumableRun."""

    skips_in_a_row = 0

    def fit(self, loader, loss_fn, epochs, validate=None):
        """Train for ``epochs`` epochs, or up to ``settings.max_iter`` steps.

        ``loss_fn(model, batch)`` returns a dict of scalar tensors to log; "loss" is minimised. Under torchrun
        each process gets its rows of the batch, and gradients are averaged over the processes.
        ``validate(epoch, now)`` is called in all processes after every epoch (from 0), and at the steps of
        ``settings.validate_every``, and returns {tag: value}, or {} if it is not due (``now``: it is,
        whatever the epoch). UserError where a loss, gradient or weight is not finite (``settings.on_nan``),
        or a file cannot be written. SIGINT and SIGTERM finish the step, or leave the validation, save, and
        raise KeyboardInterrupt.
        """
        steps = len(loader)
        if steps == 0:
            raise UserError("the training split is smaller than one batch; pass a smaller --batch_size")
        self.loader, self.max_iter = loader, min(self.settings.max_iter or epochs * steps, epochs * steps)
        step_fn, ended = distributed.with_loss(self.model, loss_fn), "by an error"
        with StopSignals() as self.stop:
            state.interrupted = "interrupted"
            try:
                self._begin()
                self._run(step_fn, validate)
                ended = "finished"
            except KeyboardInterrupt:
                ended = f"stopped by {self.stop.name}"
                raise
            except Exception as error:
                ended = f"{type(error).__name__}: {error}"
                if distributed.is_lost(error):
                    raise UserError("another process of this training has ended, so this one does; "
                                    f"{self.last_good()}, and --is_continue goes on from it") from error
                raise
            finally:
                self._end(ended)
        distributed.barrier()  # until the first process has written everything
        self.folder.log(f"done: {self.total_it} steps, best {self.best['metric']} {self.best['value']:.5g} "
                        f"{self._best_place()}, peak memory {peak_memory_mb():.0f} MB"
                        + (f", {self.skipped} steps skipped" if self.skipped else ""))

    def _begin(self):
        self.progress = tqdm(total=self.max_iter, initial=self.total_it, unit="step", mininterval=1,
                             desc=self.folder.root.name, smoothing=0.05, disable=not is_first())
        self._open_events()
        if self.record is not None:
            self.record.begin(self.total_it)
        if self.settings.on_nan == "rollback" and not self.has_state:
            self.save()  # so that there is a state to return to

    def _open_events(self):
        """The curves from the restored state on."""
        if is_first():
            self.events = (Events(self.folder.model_dir, self.curves, self.total_it) if self.has_state
                           else Events(self.folder.model_dir, {}))

    def _end(self, ended):
        self.progress.close()
        if self.events is not None:
            self.events.close()
        try:
            if self.record is not None:
                self.record.note(self.total_it, ended)
        except UnwritableFile as error:  # which must not hide why the run ended
            say(f"warning: {error}")
        self.folder.release()

    def _run(self, step_fn, validate):
        # a run that died in its last validation has done all steps, but is still within an epoch
        while self.total_it < self.max_iter or self.batch:
            try:
                self._run_epoch(step_fn, validate)
                self._finish_epoch(validate, last=self.total_it >= self.max_iter)
            except Diverged as fault:
                self._return(fault)

    def _return(self, fault):
        """Go back to the last good state, and on with other random numbers."""
        attempt = self.attempt + 1
        distributed.barrier()
        self.restore(self.folder.read_latest())
        if attempt - self.attempt > MOST_RETURNS:
            raise UserError(f"{fault}. It came again after {MOST_RETURNS} returns to {self.folder.read_from}")
        self.attempt = attempt
        self.folder.log(f"{fault}. Returned to step {self.total_it}, with other random numbers (attempt "
                        f"{attempt})")
        if self.events is not None:
            self.events.close()
        self._open_events()
        self.progress.n = self.total_it

    def _run_epoch(self, step_fn, validate):
        self.loader.batch_sampler.epoch, self.loader.batch_sampler.start = self.epoch, self.batch
        self.model.train()
        for batch in self.loader:
            if self.total_it >= self.max_iter:
                break
            if self.batch and self._steps_are_due():  # before a step, so that a run saved here does so too
                self._settle(all_steps=True)
                self._judge(self._validate(validate, now=True), self.epoch)
                self.model.train()
            values = self._step(batch, step_fn)
            self.batch += 1
            self.total_it += 1
            self.progress.update()
            if values is not None:
                self.watch.put(Step(self.total_it, self.epoch, self.batch - 1, values))
                self._settle()
            if self.total_it % self.settings.log_every == 0:
                self._log_step()
            self._save_when_due()
        self._log_step()

    def _step(self, batch, step_fn):
        """One step. The values to log, or None where it was left out."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr_at(self.total_it)
        self.optimizer.zero_grad(set_to_none=True)
        # what a forward pass may change: codebooks that follow running means, and the like
        buffers = [value.clone() for value in self.model.buffers()] if self.settings.on_nan == "skip" else []
        totals = {}
        seed = step_seed(self.settings.seed, self.total_it, self.attempt)
        for i, (part, fraction) in enumerate(split_batch(batch, self.settings.accumulate)):
            # for dropout and what quantizers draw; other random numbers are drawn for all processes
            # (distributed.local_batch)
            torch.manual_seed(seed + i * distributed.size() + distributed.rank())
            with autocast(self.settings.precision, next(self.model.parameters()).device):
                values = step_fn(part)
            # NaN for a loss that is not finite: the gradient then is NaN in all processes
            values["loss"].backward(values["loss"].detach() * 0 + fraction)
            totals = {name: totals.get(name, 0) + fraction * value.detach() for name, value in values.items()}
        parameters = [value for value in self.model.parameters() if value.grad is not None]
        norm = get_total_norm([value.grad for value in parameters])
        totals["grad_norm"] = norm
        if self.at_once and not math.isfinite(norm):
            return self._fault(self.total_it + 1, self.epoch, self.batch, float(totals["loss"]), float(norm),
                               buffers)
        if self.settings.clip_grad:
            clip_grads_with_norm_(parameters, self.settings.clip_grad, norm)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model)
        self.skips_in_a_row = 0
        return totals

    def _settle(self, all_steps=False):
        """Add up the values of the steps whose gradients are known to be finite."""
        for step, loss, norm in self.watch.take(all_steps):
            if not math.isfinite(norm):
                self._fault(step.number, step.epoch, step.batch, loss, norm)
            line = self.watch.spike(step.number, norm)
            if line:
                self.folder.log(line)
            self.sums = {name: self.sums.get(name, 0) + value.double() for name, value in step.values.items()}
            self.count += 1

    def _fault(self, number, epoch, batch, loss, norm, buffers=()):
        """What ``on_nan`` says about a step (``number`` from 1) whose loss or gradient is not finite."""
        clips = self.loader.batch_sampler.clips(self.loader.dataset, epoch, batch)
        wrong = f"the norm of the gradient is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        what = f"{wrong} at step {number}"
        shown = ", ".join(clips[:SHOWN]) + (f" and {len(clips) - SHOWN} more" if len(clips) > SHOWN else "")
        self.folder.log(f"{what}; the batch has {', '.join(clips)}")
        if self.settings.on_nan == "rollback":
            raise Diverged(what)
        if self.settings.on_nan == "skip":
            self.skipped, self.skips_in_a_row = self.skipped + 1, self.skips_in_a_row + 1
            if self.skips_in_a_row <= MOST_SKIPS:
                for value, before in zip(self.model.buffers(), buffers):
                    value.copy_(before)
                return None
            what = f"{what}, as in the {MOST_SKIPS} steps before"
        raise UserError(f"{what}; the batch has {shown} (all: train.log); {self.last_good()}. Try a smaller "
                        "--lr, a longer --warm_up_iter, or --on_nan skip or rollback")

    def _log_step(self):
        """Write the means since the last time, if there are any."""
        self._settle(all_steps=True)
        if not self.count:
            return
        means = distributed.mean_of({name: float(total) / self.count for name, total in self.sums.items()})
        self.sums, self.count = {}, 0
        self.progress.set_postfix(loss=f"{means['loss']:.4f}", refresh=False)
        values = {f"Train/{name}": value for name, value in means.items()}
        values["Train/lr"] = self.settings.lr_at(self.total_it - 1)
        if self.settings.on_nan == "skip":
            values["Train/skipped"] = self.skipped
        self._write(values | (self.codes.tags() if self.codes else {}))

    def _write(self, values):
        if self.events is not None:  # in the first process
            self.events.write(values, self.total_it)

    def _save_when_due(self, now=False):
        due = is_first() and (now or time.monotonic() - self.saved_at >= 60 * self.settings.save_minutes)
        # signals reach the processes at different steps, and their clocks differ
        asked = distributed.highest(2 if self.stop.name else int(due))
        if asked:
            self._settle(all_steps=True)
            self.save()
        if asked == 2:
            self._say_stopped()
            distributed.barrier()  # torchrun ends all processes once one has ended
            raise KeyboardInterrupt

    def _say_stopped(self):
        self.folder.log(f"stopped at step {self.total_it}; resume with --is_continue")

    def _steps_are_due(self):
        return self.settings.validate_every > 0 and self.total_it % self.settings.validate_every == 0

    def _validate(self, validate, now):
        """{tag: value} of a validation. A signal leaves it; the state is then that before it."""
        if not self.has_state:
            self.save()  # without a latest.tar, a best.tar would be the end of a killed run
        shared = self.shared()  # here, while all processes are together
        self.model.eval()
        try:
            with self.stop.at_once():
                # plain floats: numpy numbers in a checkpoint could not be loaded without running code
                return {tag: float(value) for tag, value in validate(self.epoch, now).items()}
        except BaseException:  # with a signal, whatever followed from it in another process
            if not self.stop.name:
                raise
            self.write(shared)
            self._say_stopped()
            raise KeyboardInterrupt from None

    def _judge(self, values, epoch):
        """Write and log {tag: value} of a validation in an epoch (from 0), and keep the best model."""
        self._write(values)
        if values:
            shown = " ".join(f"{tag} {value:.4g}" for tag, value in values.items())
            self.folder.log(f"epoch {epoch + 1} step {self.total_it}: {shown}")
        if values.get(self.settings.metric, math.inf) < self.best["value"]:
            self.best = {"metric": self.settings.metric, "value": values[self.settings.metric],
                         "epoch": epoch, "step": self.total_it}
            if is_first():
                self.folder.save_best(self.state(weights_only=True))

    def _best_place(self):
        """Where the best model comes from; checkpoints of earlier versions know its epoch alone."""
        step = self.best.get("step")
        return f"in epoch {self.best['epoch'] + 1}" + (f", step {step}" if step is not None else "")

    def _finish_epoch(self, validate, last):
        values = self._validate(validate, last or self._steps_are_due()) if validate is not None else {}
        self.epoch, self.batch = self.epoch + 1, 0
        if self.codes:
            tags, line = self.codes.end_epoch()
            self._write(tags)
            if line:
                self.folder.log(f"epoch {self.epoch} step {self.total_it}: {line}")
        self._judge(values, self.epoch - 1)
        self._save_when_due(now=last)


def make_trainer(args, folder, key, model, describe, metric="Val/loss", ema=None, root=None, parents=None):
    """A Trainer from the flags of utils/options.py's add_training, with AdamW and the published betas. With
    ``root``, the folder of the data set, it keeps a RunRecord (``parents``: see there)."""
    device = next(model.parameters()).device
    # fused: one pass over the weights, not one per operation of the update
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.99),
                                  weight_decay=args.weight_decay, fused=device.type in ("cpu", "cuda"))
    settings = TrainerSettings(
        lr_at=lambda step: learning_rate(step, args.lr, args.warm_up_iter, args.milestones, args.lr_decay),
        seed=args.seed, metric=metric, precision=resolve_precision(args.precision, device),
        max_iter=args.max_iter, clip_grad=args.clip_grad, log_every=args.log_every,
        accumulate=getattr(args, "accumulate", 1), save_minutes=args.save_minutes, keep_last=args.keep_last,
        validate_every=getattr(args, "eval_steps", 0), on_nan=args.on_nan)
    flags = vars(args) | {"whole_batch": args.batch_size * distributed.size()}
    trainer = Trainer(folder, key, model, optimizer, settings, describe | {"args": flags}, ema)
    if root is not None:
        trainer.record = RunRecord(folder, args, root, describe, parents)
    return trainer
