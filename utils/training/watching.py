"""Numbers of the training steps that tell whether something goes wrong: loss and norm of the gradient."""
import math
import statistics
from collections import deque
from typing import NamedTuple

import torch

SPIKE = 10  # times the running median: worth a line
WINDOW, FEWEST, QUIET = 101, 20, 100  # steps of the median; that it needs; without a further line


class Diverged(Exception):
    """A step whose loss or gradient is not finite, where the run goes back to its last good checkpoint."""


class Step(NamedTuple):
    """number (from 1), epoch and batch: place of a step. values: {name: () on the device}, detached."""

    number: int
    epoch: int
    batch: int
    values: dict


class Watch:
    """Reads loss and gradient norm of each step.

    On a GPU the host is ahead of the device, and would wait if it read the numbers of the step that it has
    just begun. So it reads them ``delay`` steps later, from a copy that the device made meanwhile.
    """

    def __init__(self, delay):
        self.delay, self.waiting = delay, deque()
        self.norms, self.spike_at = deque(maxlen=WINDOW), -QUIET

    def put(self, step):
        numbers = torch.stack([step.values["loss"].double(), step.values["grad_norm"].double()])
        copied = None
        if numbers.is_cuda:
            numbers, copied = numbers.to("cpu", non_blocking=True), torch.cuda.Event()
            copied.record()
        self.waiting.append((step, numbers, copied))

    def take(self, all_steps=False):
        """[(Step, loss, norm)] of the steps that are ready; ``all_steps``: wait for the others too."""
        found = []
        while len(self.waiting) > (0 if all_steps else self.delay):
            step, numbers, copied = self.waiting.popleft()
            if copied is not None:
                copied.synchronize()
            found.append((step, *numbers.tolist()))
        return found

    def spike(self, number, norm):
        """A line for the log if the norm is far above the median of the steps before it, or None."""
        median = statistics.median(self.norms) if len(self.norms) >= FEWEST else math.inf
        self.norms.append(norm)
        if not norm > SPIKE * median > 0 or number - self.spike_at < QUIET:
            return None
        self.spike_at = number
        return (f"the norm of the gradient is {norm:.4g} at step {number}, {norm / median:.0f} times the "
                "median of the steps before")

    def state(self):
        return {"norms": list(self.norms), "spike_at": self.spike_at}

    def load(self, state):
        self.waiting.clear()
        self.norms, self.spike_at = deque(state.get("norms", ()), WINDOW), state.get("spike_at", -QUIET)
