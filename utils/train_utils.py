"""The one training engine: seeds, the learning rate as a function of the step, EMA, checkpoints, logs, ``Trainer.fit``.

A run is a pure function of its arguments: batches come from (seed, epoch), random numbers from (seed, step). So a run that
was interrupted anywhere goes on bit for bit as if it had not been (on one machine, with the same settings).
"""
import copy
import math
import os
import platform
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils import parallel
from utils.errors import UserError

# Batches differ in shape, and oneDNN keeps buffers for each of the last 1,024 shapes: gigabytes on a CPU. It reads this once.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

SAVE_SECONDS = 60  # at most this much work is lost by a crash
# A resumed run must keep these flags, which say what a batch is; these others may change without a word in the log.
FIXED_FLAGS = {"whole_batch": "--batch_size (of all processes)", "window_size": "--window_size",
               "max_motion_length": "--max_motion_length"}
FREE_FLAGS = {"is_continue", "epoch", "max_iter", "batch_size", "num_workers", "log_every", "eval_every", "device", "compile",
              "dataset_dir", "checkpoints_dir"}
MEANING = {"model_name": "--model", "model_kwargs": "size or kind of model", "trained_on": "autoencoder", "mean": "Mean.npy",
           "std": "Std.npy"}


def seed_everything(seed):
    """Seed python, numpy and torch (CPU and CUDA)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def step_seed(seed, step):
    """The seed of a training step: what the step draws depends on nothing that came before."""
    return (seed * 1_000_003 + step * 7_919 + 17) % 2**63


def learning_rate(step, base, warm_up=0, milestones=(), decay=0.1):
    """lr of ``step`` (from 0): linear warm-up over ``warm_up`` steps, then ``decay`` more at every milestone passed."""
    if step < warm_up:
        return base * (step + 1) / warm_up
    return base * decay ** sum(step >= milestone for milestone in milestones)


def peak_memory_mb():
    """Largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def code_version():
    """Short git hash of the code, with + when it is changed; "unknown" outside a repository."""
    here = Path(__file__).resolve().parent
    try:
        text = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=here, capture_output=True, text=True, check=True)
        return text.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine():
    """The machine in words, for results."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return f"{device}, {platform.system()} {platform.machine()}, torch {torch.__version__}"


def allow_tf32(allowed):
    """Whether float32 products on CUDA may run in TF32 from now on."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")


def pick_device(name="auto", precision="fp32"):
    """torch.device of a --device flag; "auto" is CUDA where there is one. A --precision of "tf32" lets float32 products on
    CUDA run in TF32 from now on."""
    allow_tf32(precision == "tf32")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: no CUDA GPU is usable here; pass --device cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"--device {name}: not a device that this code runs on; use cpu, cuda or cuda:N")
    return torch.device(name)


def start(name="auto", precision="fp32"):
    """The torch.device of this process for a --device and a --precision flag, see ``pick_device``. Under torchrun the
    process joins the others (utils/parallel.py)."""
    return parallel.join(pick_device(name, precision))


def resolve_precision(precision, device):
    """A --precision flag with "auto" replaced: bf16 where the device computes it natively, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def autocast(precision, device):
    """The context of a training step. "tf32" also lets float32 products on CUDA run in TF32."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def save_atomic(obj, path):
    """torch.save by way of a temporary name: a crash never leaves half a file under the real one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    torch.save(obj, temporary)
    os.replace(temporary, path)


def split_batch(batch, parts):
    """[(part of a batch, its share of the samples)]: a tensor, or a dict of tensors and lists, cut along the samples."""
    if parts == 1:
        return [(batch, 1.0)]
    columns = batch if isinstance(batch, dict) else {"": batch}
    size = len(next(iter(columns.values())))
    step = -(-size // parts)
    pieces = []
    for first in range(0, size, step):
        part = {name: column[first : first + step] for name, column in columns.items()}
        pieces.append((part if isinstance(batch, dict) else part[""], min(step, size - first) / size))
    return pieces


class EMA:
    """Exponential moving average of a model's parameters; its early decay grows with the number of steps, so that a short
    run is not averaged with its initialisation. Buffers are copied."""

    def __init__(self, model, decay=0.9999):
        self.decay, self.steps = decay, 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model):
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), weight)
        for mine, theirs in zip(self.model.buffers(), model.buffers()):
            mine.copy_(theirs)


def same_value(one, other):
    """Whether two values of checkpoints are alike: tensors, an autoencoder's record (by its weights), or plain values."""
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict) and "hash" in one:
        return one["hash"] == other["hash"]
    return one == other


class RunFolder:
    """checkpoints/<dataset>/<name>/: ``model/`` with latest.tar, net_best_fid.tar and TensorBoard's events, train.log."""

    def __init__(self, checkpoints_dir, dataset, name):
        if name in ("", ".", "..") or Path(name).name != name:
            raise UserError(f"--name '{name}' must be a plain name, without folders")
        self.root = Path(checkpoints_dir) / dataset / name
        self.model_dir = self.root / "model"
        self.latest, self.best = self.model_dir / "latest.tar", self.model_dir / "net_best_fid.tar"
        self.finest = self.model_dir / "finest.tar"  # a released evaluator

    def prepare(self, is_continue):
        """Make the folders. UserError when this would overwrite a run, or when there is none to go on with."""
        if is_continue and not self.latest.is_file():
            raise UserError(f"--is_continue: there is no {self.latest} to go on with")
        there = [path for path in (self.latest, self.best, self.finest) if path.is_file()]
        if there and not is_continue:
            raise UserError(f"{there[0]} exists; go on with --is_continue (it needs latest.tar), or pick another --name")
        self.model_dir.mkdir(parents=True, exist_ok=True)

    def checkpoint(self, which="best"):
        """Path of the checkpoint to use: the best one where there is one, else the latest, else a released ``finest.tar``."""
        if which == "best" and self.best.is_file():
            return self.best
        return self.finest if self.finest.is_file() and not self.latest.is_file() else self.latest

    def log(self, line):
        """Print a line and append it to train.log, once for all processes."""
        if not parallel.is_first():
            return
        tqdm.write(line)
        with open(self.root / "train.log", "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


class Trainer:
    """Fits one model and keeps its run folder.

    Args:
        folder: RunFolder, prepared.
        key: the model's key in checkpoints ("ae", "mardm", "estimator", "evaluator"); its average is "ema_<key>".
        model, optimizer: as usual; ``lr_at(step)`` gives the learning rate.
        describe: dict of plain values and tensors that lets the checkpoint rebuild its model.
        ema: optional EMA. seed: of batches and steps. metric: validation tag whose lowest value is the best.
        precision: "fp32", "tf32" or "bf16" (autocast) of the training steps. max_iter: most steps; 0 = as the epochs say.
        accumulate: parts into which a batch is split; their gradients are added up, weighted by their samples.
    """

    def __init__(self, folder, key, model, optimizer, lr_at, describe, seed, ema=None, log_every=10, clip_grad=None,
                 metric="Val/loss", precision="fp32", max_iter=0, accumulate=1):
        self.folder, self.key, self.model, self.optimizer, self.lr_at = folder, key, model, optimizer, lr_at
        self.describe, self.seed, self.ema, self.log_every, self.clip_grad = describe, seed, ema, log_every, clip_grad
        self.metric, self.precision, self.max_iter, self.accumulate = metric, precision, max_iter, accumulate
        self.epoch = self.batch = self.total_it = 0
        self.best = {"metric": metric, "value": math.inf, "epoch": -1}
        self.stop_signal = None
        self.saved_at = time.monotonic()

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def state(self, weights_only=False):
        """What a checkpoint holds; ``weights_only`` leaves out what only resuming needs."""
        state = {**self.describe, self.key: self.model.state_dict(), "ep": self.epoch, "total_it": self.total_it,
                 "best": self.best, "code_version": code_version()}
        if self.ema is not None:
            state[f"ema_{self.key}"] = self.ema.model.state_dict()
            state["ema_steps"] = self.ema.steps
        if not weights_only:
            state |= {"optimizer": self.optimizer.state_dict(), "batch": self.batch, "seed": self.seed}
        return state

    def last_state(self):
        return f"the last good state is {self.folder.latest}" if self.folder.latest.is_file() else "nothing has been saved yet"

    def save(self):
        """Keep the state in latest.tar. UserError, and the old file stays, where a weight is no longer a finite number."""
        if not all(bool(value.isfinite().all()) for value in self.model.parameters()):
            raise UserError(f"the weights are no longer finite at step {self.total_it}; {self.last_state()}. "
                            "Try a smaller --lr or a longer --warm_up_iter")
        if parallel.is_first():
            save_atomic(self.state(), self.folder.latest)
        self.saved_at = time.monotonic()

    def resume(self, checkpoint):
        """Go on from the dict of a latest.tar. UserError when that run differs in its seed, model, data or batches."""
        if self.key not in checkpoint or "optimizer" not in checkpoint:
            raise UserError(f"{self.folder.latest} holds no training state of '{self.key}', so it cannot be resumed")
        self._check_same_run(checkpoint)
        try:
            self.model.load_state_dict(checkpoint[self.key])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{self.folder.latest} was trained with other model settings; repeat the flags of its first "
                            f"start ({' '.join(str(error).split())[:200]})") from error
        if self.ema is not None:
            self.ema.model.load_state_dict(checkpoint[f"ema_{self.key}"])
            self.ema.steps = checkpoint["ema_steps"]
        self.epoch, self.batch, self.total_it = checkpoint["ep"], checkpoint["batch"], checkpoint["total_it"]
        self.best = checkpoint["best"]
        self.folder.log(f"resumed at epoch {self.epoch}, step {self.total_it}")

    def _check_same_run(self, checkpoint):
        """UserError unless ``checkpoint`` is of this very run; other flags may change, and the log says so."""
        before, now = checkpoint.get("args", {}), self.describe.get("args", {})
        changed = [name for name in now if name in before and before[name] != now[name] and name not in FREE_FLAGS]
        fixed = [f"{FIXED_FLAGS[name]} {before[name]}" for name in changed if name in FIXED_FLAGS]
        if checkpoint["seed"] != self.seed:
            fixed.append(f"--seed {checkpoint['seed']}")
        if fixed:
            raise UserError(f"{self.folder.latest} was trained with {', '.join(fixed)}; resume it with the same")
        for key in ("model_name", "model_kwargs", "trained_on", "mean", "std", "levels", "actions"):
            if key in checkpoint and key in self.describe and not same_value(checkpoint[key], self.describe[key]):
                what = MEANING.get(key, f"set of {key}")
                raise UserError(f"{self.folder.latest} was trained with another {what}; repeat the flags of its first start, "
                                "or pick another --name")
        if changed:
            self.folder.log("settings changed: " + ", ".join(f"--{name} {before[name]} -> {now[name]}" for name in changed))

    # ---- the loop ----------------------------------------------------------------------------------------------

    def fit(self, loader, loss_fn, epochs, validate=None):
        """Train until ``epochs`` epochs, or ``max_iter`` steps, are done.

        ``loss_fn(model, batch)`` returns a dict of 0-d tensors, "loss" among them, which is minimised; of several processes
        (torchrun) each gets its rows of the batch, and the mean of their losses counts. ``validate(epoch)``, which all call,
        returns a dict of floats by tag, or {} when it is not due. UserError on a loss that is not finite.
        """
        steps = len(loader)
        if steps == 0:
            raise UserError("the training split is smaller than one batch; pass a smaller --batch_size")
        first = parallel.is_first()
        writer = SummaryWriter(self.folder.model_dir) if first else None
        step_fn = parallel.with_loss(self.model, loss_fn)
        self.max_iter = min(self.max_iter or epochs * steps, epochs * steps)
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
        parallel.barrier()  # what the first process has written is there for all
        self.folder.log(f"done: {self.total_it} steps, best {self.best['metric']} {self.best['value']:.5g} after epoch "
                        f"{self.best['epoch'] + 1}, peak memory {peak_memory_mb():.0f} MB")

    def _request_stop(self, signum, _frame):
        self.stop_signal = signum  # the step in progress is finished first, so the state saved is whole

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
            if self.total_it % self.log_every == 0:
                self._log_step(sums, count, writer, progress)
                sums, count = {}, 0
            self._save_when_due()
            if self.total_it == self.max_iter:
                break
        if count:
            self._log_step(sums, count, writer, progress)

    def _step(self, batch, step_fn):
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_at(self.total_it)
        self.optimizer.zero_grad(set_to_none=True)
        totals = {}
        seed = step_seed(self.seed, self.total_it)
        for i, (part, share) in enumerate(split_batch(batch, self.accumulate)):
            torch.manual_seed(seed + i * parallel.size() + parallel.rank())  # dropout; the rest: parallel.share
            with autocast(self.precision, next(self.model.parameters()).device):
                values = step_fn(part)
            (values["loss"] * share).backward()
            totals = {name: totals.get(name, 0) + share * value.detach() for name, value in values.items()}
        if self.clip_grad:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model)
        return totals

    def _log_step(self, sums, count, writer, progress):
        means = parallel.mean_of({name: float(total) / count for name, total in sums.items()})
        if not math.isfinite(means["loss"]):
            raise UserError(f"the loss is {means['loss']} at step {self.total_it}; {self.last_state()}. "
                            "Try a smaller --lr or a longer --warm_up_iter")
        means = {f"Train/{name}": value for name, value in means.items()}
        self._write(writer, means | {"Train/lr": self.lr_at(self.total_it - 1)})
        progress.set_postfix(loss=f"{means['Train/loss']:.4f}", refresh=False)

    def _write(self, writer, values):
        if writer is not None:  # the first process has one
            for tag, value in values.items():
                writer.add_scalar(tag, value, self.total_it)

    def _save_when_due(self, now=False):
        stop = parallel.any_of(self.stop_signal is not None)  # the signal reaches the processes in different steps
        if now or stop or time.monotonic() - self.saved_at > SAVE_SECONDS:
            self.save()
        if stop:
            self.folder.log(f"stopped at step {self.total_it}; go on with --is_continue")
            parallel.barrier()  # torchrun ends all processes as soon as one has ended
            raise KeyboardInterrupt

    def _finish_epoch(self, validate, writer, last):
        values = {}
        if validate is not None:
            self.model.eval()
            # plain floats: a numpy number in a checkpoint could not be loaded without running code
            values = {tag: float(value) for tag, value in validate(self.epoch, last).items()}
        self.epoch, self.batch = self.epoch + 1, 0
        self._write(writer, values)
        if values:
            shown = " ".join(f"{tag} {value:.4g}" for tag, value in values.items())
            self.folder.log(f"epoch {self.epoch} step {self.total_it}: {shown}")
        if values.get(self.metric, math.inf) < self.best["value"]:
            self.best = {"metric": self.metric, "value": values[self.metric], "epoch": self.epoch - 1}
            if parallel.is_first():
                save_atomic(self.state(weights_only=True), self.folder.best)
        self._save_when_due(now=last)


def make_trainer(args, folder, key, model, describe, metric="Val/loss", ema=None, accumulate=1):
    """The Trainer of a training script's command line (utils/options.py: add_training), with AdamW as published."""
    # fused: one pass over the weights instead of one for each operation of the update
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.99), weight_decay=args.weight_decay, fused=fused)
    flags = vars(args) | {"whole_batch": args.batch_size * parallel.size()}
    return Trainer(
        folder, key, model, optimizer, describe=describe | {"args": flags}, seed=args.seed, ema=ema, metric=metric,
        lr_at=lambda step: learning_rate(step, args.lr, args.warm_up_iter, args.milestones, args.lr_decay),
        log_every=args.log_every, clip_grad=args.clip_grad, max_iter=args.max_iter, accumulate=accumulate,
        precision=resolve_precision(args.precision, next(model.parameters()).device))
