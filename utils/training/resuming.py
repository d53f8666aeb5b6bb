"""Saving and resuming a training run."""
import math
import time

import torch

from utils.errors import UserError, is_first
from utils.files import UnwritableFile
from utils.training import distributed
from utils.training.settings import code_version
from utils.training.watching import Watch

# Flags that a resumed run must keep, as they define a batch; and flags whose changes are not even logged.
FIXED_FLAGS = {"whole_batch": "--batch_size (of all processes)", "window_size": "--window_size",
               "max_motion_length": "--max_motion_length"}
FREE_FLAGS = {"is_continue", "epoch", "max_iter", "batch_size", "num_workers", "log_every", "eval_every",
              "eval_steps", "device", "compile", "dataset_dir", "checkpoints_dir", "save_minutes",
              "keep_last"}
FIXED_CONTENT = {"model_name": "--model", "model_kwargs": "size or kind of model",
                 "trained_on": "autoencoder", "decoder_of": "autoencoder to begin with",
                 "finetuned_from": "run to begin with",
                 "mean": "Mean.npy", "std": "Std.npy", "levels": "set of levels", "actions": "set of actions",
                 "teacher": "teacher", "sensors": "set of sensors, windows or behaviours"}


def same_value(one, other):
    """Whether two values agree: tensors, records of an autoencoder (by their hashes), or plain values."""
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict) and "hash" in one:
        return one["hash"] == other["hash"]
    return one == other


class ResumableRun:
    """The state of a training run: its place in the data, the weights, and the optimizer's state.

    Args:
        folder: RunFolder, prepared. key: the model's key in checkpoints ("ae", "mardm", "estimator",
        "evaluator"); its average's is "ema_<key>". model, optimizer: of torch. settings: TrainerSettings.
        ema: optional EMA of the model. describe: dict of plain values and tensors from which the model of a
        checkpoint can be rebuilt.

    Attributes that scripts may set: ``codes``, a CodeUse; ``record``, a RunRecord.
    """

    codes = record = events = None

    def __init__(self, folder, key, model, optimizer, settings, describe, ema=None):
        self.folder, self.key, self.model, self.optimizer = folder, key, model, optimizer
        self.settings, self.describe, self.ema = settings, describe, ema
        self.epoch = self.batch = self.total_it = 0
        self.attempt = self.skipped = 0  # of --on_nan rollback, skip
        self.sums, self.count = {}, 0  # of the steps since the last log entry: float64 on the device, steps
        self.best = {"metric": settings.metric, "value": math.inf, "epoch": -1}
        # whether there is a file to return to; lengths of the event files in the state that was restored
        self.has_state, self.curves = False, None
        device = next(model.parameters()).device
        # --on_nan skip must know of a step before it changes anything; a CPU is never behind
        self.at_once = device.type == "cpu" or settings.on_nan == "skip"
        self.watch = Watch(delay=0 if self.at_once else 1)
        self.saved_at = time.monotonic()

    def state(self, weights_only=False):
        """The content of a checkpoint; ``weights_only`` leaves out what only resuming needs."""
        state = {**self.describe, self.key: self.model.state_dict(), "ep": self.epoch,
                 "total_it": self.total_it, "best": self.best, "code_version": code_version()}
        if self.ema is not None:
            state |= {f"ema_{self.key}": self.ema.model.state_dict(), "ema_steps": self.ema.steps}
        if not weights_only:
            state |= {"optimizer": self.optimizer.state_dict(), "batch": self.batch,
                      "seed": self.settings.seed}
        return state

    def last_good(self):
        """Words for the state to which the run can go back."""
        states = self.folder.states()
        return f"the last good state is {states[0]}" if states else "nothing has been saved yet"

    def shared(self):
        """What a checkpoint keeps of all processes: sums of the values to log, and counts of codes. To be
        called by all together."""
        names, sums = list(self.sums), [value.double() for value in self.sums.values()]
        rows = distributed.all_gather(torch.stack(sums)[None]).cpu() if sums else None
        return {"log": {"names": names, "sums": rows, "count": self.count},
                **({"codes": self.codes.state()} if self.codes else {})}

    def save(self):
        """Write the state to latest.tar, in all processes together. UserError, keeping the old files, if a
        weight is not finite or the disk is full."""
        if not all(bool(value.isfinite().all()) for value in self.model.parameters()):
            raise UserError(f"the weights are no longer finite at step {self.total_it}; {self.last_good()}. "
                            "Try a smaller --lr or a longer --warm_up_iter")
        self.write(self.shared())
        self.has_state = True
        self.saved_at = time.monotonic()

    def write(self, shared):
        """Write latest.tar, in the first process."""
        if not is_first():
            return
        content = self.state() | shared | {"watch": self.watch.state(), "attempt": self.attempt,
                                           "skipped": self.skipped}
        if self.events is not None:
            content["curves"] = self.events.lengths()
        try:
            self.folder.save_latest(content, self.settings.keep_last)
        except UnwritableFile as error:
            raise UnwritableFile(f"{error}; {self.last_good()}, and --is_continue goes on from it") from error
        if self.record is not None:
            self.record.note(self.total_it)

    def resume(self, checkpoint):
        """Continue from the dict of a latest.tar. UserError if its seed, model, data or batches differ."""
        if self.key not in checkpoint or "optimizer" not in checkpoint:
            raise UserError(f"{self.folder.latest} has no training state of '{self.key}' to resume")
        self._check_same_run(checkpoint)
        self.restore(checkpoint)
        if self.best is not checkpoint["best"]:
            self.folder.log(f"the best was that of {checkpoint['best']['metric']}; from now on it is that of "
                            f"{self.settings.metric}")
        source = self.folder.read_from
        self.folder.log(f"resumed at epoch {self.epoch}, step {self.total_it}"
                        + (f", from {source.name}" if source != self.folder.latest else ""))

    def restore(self, checkpoint):
        """Take over the state in the dict of a latest.tar."""
        try:
            self.model.load_state_dict(checkpoint[self.key])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{self.folder.latest} was trained with other model settings; repeat the flags "
                            f"of its first start ({' '.join(str(error).split())[:200]})") from error
        if self.ema is not None:
            self.ema.model.load_state_dict(checkpoint[f"ema_{self.key}"])
            self.ema.steps = checkpoint["ema_steps"]
        self.epoch, self.batch, self.total_it = checkpoint["ep"], checkpoint["batch"], checkpoint["total_it"]
        if checkpoint["best"]["metric"] == self.settings.metric:  # values of two metrics do not compare
            self.best = checkpoint["best"]
        # the rest is not in checkpoints of earlier versions
        self.has_state, self.curves = True, checkpoint.get("curves")
        self.attempt, self.skipped = checkpoint.get("attempt", 0), checkpoint.get("skipped", 0)
        self.watch.load(checkpoint.get("watch", {}))
        log = checkpoint.get("log", {"names": [], "sums": None, "count": 0})
        self.sums, self.count = {}, log["count"]
        if log["names"]:
            rows = log["sums"]  # (processes, names); another number of processes shares their mean
            row = rows[distributed.rank()] if len(rows) == distributed.size() else rows.mean(0)
            self.sums = dict(zip(log["names"], row.to(next(self.model.parameters()).device)))
        if self.codes and "codes" in checkpoint:
            self.codes.load(checkpoint["codes"])

    def _check_same_run(self, checkpoint):
        """UserError unless ``checkpoint`` is of this run; changes of other flags are logged."""
        before, now = checkpoint.get("args", {}), self.describe.get("args", {})
        changed = [name for name in now if name in before and before[name] != now[name]
                   and name not in FREE_FLAGS]
        fixed = [f"{FIXED_FLAGS[name]} {before[name]}" for name in changed if name in FIXED_FLAGS]
        if checkpoint["seed"] != self.settings.seed:
            fixed.append(f"--seed {checkpoint['seed']}")
        if fixed:
            raise UserError(f"{self.folder.latest} was trained with {', '.join(fixed)}; resume with the same")
        for key, what in FIXED_CONTENT.items():
            both = key in checkpoint and key in self.describe
            if both and not same_value(checkpoint[key], self.describe[key]):
                raise UserError(f"{self.folder.latest} was trained with another {what}; repeat the flags of "
                                "its first start, or pick another --name")
        if changed:
            self.folder.log("settings changed: "
                            + ", ".join(f"--{name} {before[name]} -> {now[name]}" for name in changed))
