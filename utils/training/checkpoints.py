"""What is saved of a training, and how it resumes."""
import math
import time

import torch

from utils.errors import UserError, is_first
from utils.files import write_checkpoint
from utils.training.settings import code_version

# A resumed run must keep these flags, which say what a batch is; these others may change without a word in
# the log.
FIXED_FLAGS = {"whole_batch": "--batch_size (of all processes)", "window_size": "--window_size",
               "max_motion_length": "--max_motion_length"}
FREE_FLAGS = {"is_continue", "epoch", "max_iter", "batch_size", "num_workers", "log_every", "eval_every",
              "device", "compile", "dataset_dir", "checkpoints_dir"}
MEANING = {"model_name": "--model", "model_kwargs": "size or kind of model", "trained_on": "autoencoder",
           "mean": "Mean.npy", "std": "Std.npy"}


def same_value(one, other):
    """Whether two values of checkpoints are alike: tensors, an autoencoder's record (by its weights), or
    plain values."""
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict) and "hash" in one:
        return one["hash"] == other["hash"]
    return one == other


class ResumableRun:
    """A training's state: where it stands, its weights, its optimiser; see Trainer for the arguments."""

    def __init__(self, folder, key, model, optimizer, settings, describe, ema=None):
        self.folder, self.key, self.model, self.optimizer = folder, key, model, optimizer
        self.settings, self.describe, self.ema = settings, describe, ema
        self.epoch = self.batch = self.total_it = 0
        self.best = {"metric": settings.metric, "value": math.inf, "epoch": -1}
        self.saved_at = time.monotonic()

    def state(self, weights_only=False):
        """What a checkpoint holds; ``weights_only`` leaves out what only resuming needs."""
        state = {**self.describe, self.key: self.model.state_dict(), "ep": self.epoch,
                 "total_it": self.total_it, "best": self.best, "code_version": code_version()}
        if self.ema is not None:
            state[f"ema_{self.key}"] = self.ema.model.state_dict()
            state["ema_steps"] = self.ema.steps
        if not weights_only:
            state |= {"optimizer": self.optimizer.state_dict(), "batch": self.batch,
                      "seed": self.settings.seed}
        return state

    def last_state(self):
        return f"the last good state is {self.folder.latest}" if self.folder.latest.is_file() else "nothing has been saved yet"

    def save(self):
        """Keep the state in latest.tar. UserError, and the old file stays, where a weight is no longer a
        finite number."""
        if not all(bool(value.isfinite().all()) for value in self.model.parameters()):
            raise UserError(f"the weights are no longer finite at step {self.total_it}; {self.last_state()}. "
                            "Try a smaller --lr or a longer --warm_up_iter")
        if is_first():
            write_checkpoint(self.folder.latest, self.state())
        self.saved_at = time.monotonic()

    def resume(self, checkpoint):
        """Go on from the dict of a latest.tar. UserError when that run differs in its seed, model, data or
        batches."""
        if self.key not in checkpoint or "optimizer" not in checkpoint:
            raise UserError(f"{self.folder.latest} holds no training state of '{self.key}', so it cannot be "
                            "resumed")
        self._check_same_run(checkpoint)
        try:
            self.model.load_state_dict(checkpoint[self.key])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{self.folder.latest} was trained with other model settings; repeat the flags "
                            "of its first "
                            f"start ({' '.join(str(error).split())[:200]})") from error
        if self.ema is not None:
            self.ema.model.load_state_dict(checkpoint[f"ema_{self.key}"])
            self.ema.steps = checkpoint["ema_steps"]
        self.epoch, self.batch, self.total_it = checkpoint["ep"], checkpoint["batch"], checkpoint["total_it"]
        self.best = checkpoint["best"]
        self.folder.log(f"resumed at epoch {self.epoch}, step {self.total_it}")

    def _check_same_run(self, checkpoint):
        """UserError unless ``checkpoint`` is of this very run; other flags may change, and the log says
        so."""
        before, now = checkpoint.get("args", {}), self.describe.get("args", {})
        changed = [name for name in now if name in before and before[name] != now[name]
                   and name not in FREE_FLAGS]
        fixed = [f"{FIXED_FLAGS[name]} {before[name]}" for name in changed if name in FIXED_FLAGS]
        if checkpoint["seed"] != self.settings.seed:
            fixed.append(f"--seed {checkpoint['seed']}")
        if fixed:
            raise UserError(f"{self.folder.latest} was trained with {', '.join(fixed)}; resume it with the "
                            "same")
        for key in ("model_name", "model_kwargs", "trained_on", "mean", "std", "levels", "actions"):
            if key in checkpoint and key in self.describe and not same_value(checkpoint[key],
                                                                             self.describe[key]):
                what = MEANING.get(key, f"set of {key}")
                raise UserError(f"{self.folder.latest} was trained with another {what}; repeat the flags of "
                                "its first start, "
                                "or pick another --name")
        if changed:
            self.folder.log("settings changed: "
                            + ", ".join(f"--{name} {before[name]} -> {now[name]}" for name in changed))
