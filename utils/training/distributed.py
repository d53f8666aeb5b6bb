"""Several processes that work as one, on one machine or many: ``torchrun --nproc_per_node=2 SCRIPT ...``.

Training: a batch of the whole is ``--batch_size`` times the processes, and every process holds consecutive
rows of it, as many as the others. What a step draws for its samples is drawn alike by all, for the whole
batch, and each takes its rows; so the training is that of one process with the larger batch. Evaluation:
processes take turns at batches, and share what they found. With one process (no torchrun) nothing here does
anything. Shapes: B rows of the whole batch, b rows of this process.
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
# of waiting for another process that still lives; torchrun ends all when one has died
TIMEOUT = timedelta(hours=2)


class Group(errors.OneProcess):
    """This process' number, how many there are, and a store that all can write notes to."""

    def __init__(self, rank, size, store):
        self.rank, self.size, self.store = rank, size, store

    def claim(self, what):
        return self.store.add(what, 1) == 1

    def claimed(self, what):
        return self.store.add(what, 0) > 0

    def leave(self):
        """Part from the others, at the end of a script: together, since a connection that closes early can
        lose a last message."""
        try:
            if self.store.add("ready to leave", 1) == self.size:
                self.store.set("all are ready to leave", "")
            self.store.wait(["all are ready to leave"], PARTING)
        # one has not come: it has been ended, or still works, and then needs no answer from here
        except RuntimeError:
            pass
        dist.destroy_process_group()
        errors.processes = errors.OneProcess()


def join(device):
    """The torch.device of this process, which joins the others when torchrun started several; ``device`` as
    asked for."""
    count, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    if count == 1:
        return device
    if device.type == "cuda":
        if device.index is not None:
            raise UserError(f"--device {device}: torchrun's processes each take a GPU of their own; pass "
                            "cuda, cpu, or nothing")
        if local >= torch.cuda.device_count():
            raise UserError(f"torchrun started process {local + 1} on this machine, which has "
                            f"{torch.cuda.device_count()} GPUs; "
                            "pass a smaller --nproc_per_node, or --device cpu")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if size() == 1:
        store, number, count = next(dist.rendezvous("env://", timeout=TIMEOUT))
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", rank=number,
                                world_size=count, store=dist.PrefixStore("group", store), timeout=TIMEOUT)
        errors.processes = Group(number, count, dist.PrefixStore("notes", store))
    return device


def rank():
    return errors.processes.rank


def size():
    return errors.processes.size


@contextmanager
def first_goes_ahead():
    """The first process runs the block before all others do: it makes what they then find."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()


def barrier():
    """Wait until all are here."""
    any_of(False)


def any_of(flag):
    """Whether ``flag`` is true in any process."""
    if size() == 1:
        return flag
    found = torch.tensor(int(flag))
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


def mean_of(values):
    """The means over all processes of a dict of floats."""
    if size() == 1:
        return values
    row = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(row)
    return dict(zip(values, (row / size()).tolist()))


# ---- training ----------------------------------------------------------------------------------------------


class _WithLoss(nn.Module):
    """DistributedDataParallel follows a module's ``forward``: here the model and its loss function are
    one."""

    def __init__(self, model, loss_fn):
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, batch):
        return self.loss_fn(self.model, batch)


def with_loss(model, loss_fn):
    """batch -> ``loss_fn(model, batch)``, whose backward pass leaves the mean gradient of all processes in
    the model."""
    module = _WithLoss(model, loss_fn)
    return module if size() == 1 else DistributedDataParallel(module, forward_sync_buffers=False)


class LocalBatch(NamedTuple):
    """This process' part of a training batch: its ``rows`` (a slice of B) and the generator of what is drawn
    for all B rows (None: torch's own, for a whole batch)."""

    rows: slice = slice(None)
    generator: torch.Generator | None = None


def rows_of(b):
    """The rows of the whole batch that a process holds, of ``b`` each."""
    return slice(b * rank(), b * (rank() + 1))


def local_batch(b, device):
    """The LocalBatch of a process that holds ``b`` rows. The generator starts as the step does (Trainer),
    alike in all processes; torch's own differs between them, so that dropout does."""
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
    """(b, ...) of every process -> (B, ...), in the order of the batch. Differentiable: all that any process
    makes of a row comes back to the process that it is from."""
    return x if size() == 1 else _AllGather.apply(x)


# ---- evaluation --------------------------------------------------------------------------------------------


def turns(items):
    """The items of a list that are this process' to work on."""
    return items[rank() :: size()]


def gather_turns(found):
    """A list in which every process filled some places and left None in the others -> the full list, in all
    processes."""
    if size() == 1:
        return found
    parts = [None] * size()
    dist.all_gather_object(parts, {place: _compact(value) for place, value in enumerate(found)
                                   if value is not None})
    merged = {place: value for part in parts for place, value in part.items()}
    return [merged[place] for place in range(len(found))]


def _compact(value):
    """A tensor, or tuple of tensors, without the rest of the storage that it is a view of: that would be sent
    along."""
    if torch.is_tensor(value):
        return value.clone()
    return tuple(map(_compact, value)) if isinstance(value, tuple) else value
