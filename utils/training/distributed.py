"""Data parallelism over the processes of ``torchrun --nproc_per_node=2 SCRIPT ...``, on one or more machines.

Training: the global batch is ``--batch_size`` times the number of processes; each process has an equal number
of consecutive rows. What a step draws at random it draws for the global batch, identically in all processes,
and each uses its rows: training equals that of one process with the global batch. Evaluation: batches are
dealt out and their results gathered. In a single process (no torchrun) everything here does nothing. Shapes:
B rows of the global batch, b rows of this process.
"""
import os
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils import errors
from utils.errors import UserError, is_first

PARTING = timedelta(seconds=20)
TIMEOUT = timedelta(hours=2)  # of waiting for a process that is alive; if one dies, torchrun ends all


class Group(errors.OneProcess):
    """Rank of this process, number of processes, and a key-value store that they share."""

    def __init__(self, rank, size, store):
        self.rank, self.size, self.store = rank, size, store

    def claim(self, what):
        return self.store.add(what, 1) == 1

    def claimed(self, what):
        return self.store.add(what, 0) > 0

    def leave(self):
        """Leave the group, all together: closing a connection early can lose messages."""
        try:
            if self.store.add("ready to leave", 1) == self.size:
                self.store.set("all are ready to leave", "")
            self.store.wait(["all are ready to leave"], PARTING)
        except RuntimeError:  # a process was ended, or is still busy and will not need this one
            pass
        dist.destroy_process_group()
        errors.processes = errors.OneProcess()


def join(device):
    """Join the process group, if torchrun made one. Returns this process' device, of the type of
    ``device``."""
    count, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    if count == 1:
        return device
    if device.type == "cuda":
        if device.index is not None:
            raise UserError(f"--device {device}: torchrun's processes each take a GPU of their own; pass "
                            "cuda, cpu, or nothing")
        if local >= torch.cuda.device_count():
            raise UserError(f"torchrun started process {local + 1} on this machine, which has "
                            f"{torch.cuda.device_count()} GPUs; pass a smaller --nproc_per_node, or "
                            "--device cpu")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if size() == 1:
        store, number, count = next(dist.rendezvous("env://", timeout=TIMEOUT))
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", rank=number,
                                world_size=count, store=dist.PrefixStore("group", store), timeout=TIMEOUT)
        errors.processes = Group(number, count, dist.PrefixStore("notes", store))
    return device


def is_lost(error):
    """Whether an exception comes from another process of the group, which has ended."""
    return size() > 1 and (isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "by peer" in str(error)))


def rank():
    return errors.processes.rank


def size():
    return errors.processes.size


@contextmanager
def first_goes_ahead():
    """The first process runs the block before all others, which then find what it made."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()


def barrier():
    """Wait for all processes."""
    any_of(False)


def any_of(flag):
    """Whether ``flag`` is true in any process."""
    return bool(highest(int(flag)))


def highest(number):
    """The largest of all processes' whole numbers."""
    if size() == 1:
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def sum_of(counts):
    """A new tensor: the sum of all processes' tensors."""
    total = counts.clone()
    if size() > 1:
        dist.all_reduce(total)
    return total


def mean_of(values):
    """The means over all processes of a dict of floats."""
    if size() == 1:
        return values
    row = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(row)
    return dict(zip(values, (row / size()).tolist()))


class _WithLoss(nn.Module):
    """Model and loss function as one module, as DistributedDataParallel works through ``forward``."""

    def __init__(self, model, loss_fn):
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, batch):
        return self.loss_fn(self.model, batch)


def with_loss(model, loss_fn):
    """batch -> ``loss_fn(model, batch)``, whose backward pass averages the gradients over the processes."""
    module = _WithLoss(model, loss_fn)
    return module if size() == 1 else DistributedDataParallel(module, forward_sync_buffers=False)


class LocalBatch(NamedTuple):
    """This process' part of a training batch: ``rows`` (a slice of B), and the generator for random numbers
    of all B rows (None: torch's own)."""

    rows: slice = slice(None)
    generator: torch.Generator | None = None


def rows_of(b):
    """This process' rows of the global batch, where each process has ``b``."""
    return slice(b * rank(), b * (rank() + 1))


def local_batch(b, device):
    """The LocalBatch of ``b`` rows. Its generator has the step's seed in all processes; torch's own is seeded
    with seed + rank (Trainer), so that dropout differs."""
    if size() == 1:
        return LocalBatch()
    return LocalBatch(rows_of(b), torch.Generator(device).manual_seed(torch.initial_seed() - rank()))


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x) for _ in range(size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(size())[rank()]


def all_gather(x):
    """(b, ...) of each process -> (B, ...). Differentiable: gradients of all processes are summed."""
    return x if size() == 1 else _AllGather.apply(x)


def turns(items):
    """This process' items of a list: every ``size()``-th."""
    return items[rank() :: size()]


def gather_turns(found):
    """Merge lists in which each process filled some places and left the others None; returned in all."""
    if size() == 1:
        return found
    parts = [None] * size()
    dist.all_gather_object(parts, {place: _compact(value) for place, value in enumerate(found)
                                   if value is not None})
    merged = {place: value for part in parts for place, value in part.items()}
    return [merged[place] for place in range(len(found))]


def _compact(value):
    """A tensor, or tuple of tensors, without the rest of its storage, which would be sent along."""
    if torch.is_tensor(value):
        return value.clone()
    return tuple(map(_compact, value)) if isinstance(value, tuple) else value
