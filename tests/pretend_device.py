"""A pretend accelerator: finds on a machine without a GPU what would fail, or wait, on one.

    with PretendDevice("cuda:1") as device:
        ...  # code that is told to run on cuda:1
    device.waits  # where the host had to wait for the device

A tensor that is made on the device, or moved to it, becomes ``Marked``: its numbers stay in a CPU tensor,
its ``device`` says cuda:1, and every operation on it passes through here. PretendDeviceError is raised where
CUDA would fail, or where code does not run on the device that it was told:

- one operation gets tensors of host and device. As on CUDA, a 0-dimensional tensor in a pointwise operation,
  indices, and the lengths of packed sequences may be on the host;
- a random generator of the other side; ``numpy()`` of a tensor on the device;
- ``.cuda()``, or a device other than the one given ("cuda" is cuda:0): it is hidden, or hard-coded.

``waits`` has a Wait for each synchronisation that CUDA would make. "read": the host needs numbers of the
device (item, bool, tolist, cpu, nonzero, boolean masks, synchronize ...). "upload": the host copies to the
device and waits, as it does unless the memory is pinned and the copy ``non_blocking``. Within ``no_waits()``
each of them is an error at once.

What it cannot see: CUDA's kernels, rounding and random numbers; which operations CUDA's autocast leaves in
float32 (the list is the CPU's); streams, events and memory; torch.compile; several processes; CUDA tensors
that share a graph with the host's in a backward pass; and that a tensor is on the host when a torch function
which works on the device makes it inside.
"""
import traceback
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
aten = torch.ops.aten

# Operations whose result, or its shape, the host reads.
READS = {aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.allclose, aten.nonzero,
         aten.masked_select, aten.bincount, aten._unique2, aten.unique_dim, aten.unique_consecutive,
         aten.repeat_interleave}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
PACKING = {aten._pack_padded_sequence, aten._pack_padded_sequence_backward}  # their lengths are the host's
# Besides pointwise ones, operations that take a 0-dimensional tensor of the host for a number.
TAKES_NUMBERS = {aten.fill, aten.fill_, aten.masked_fill, aten.masked_fill_, aten.index_fill,
                 aten.index_fill_, aten.where}


class PretendDeviceError(AssertionError):
    """What would fail on an accelerator, or wait where ``no_waits`` forbids it."""


class Wait(NamedTuple):
    kind: str  # "read" or "upload"
    what: str  # the operation
    place: str  # file:line function, of this project


def place():
    """The innermost frame in a file of this project, other than this file."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and path != Path(__file__).resolve() and ".venv" not in path.parts:
            return f"{path.relative_to(ROOT)}:{frame.lineno} {frame.name}"
    return "outside the project"


class Marked(torch.Tensor):
    """A tensor on the pretend device ``owner``; ``inner``: its numbers, a CPU tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner, owner):
        new = torch.Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), dtype=inner.dtype,
                                                  storage_offset=inner.storage_offset())
        new.inner, new.owner = inner, owner
        return new

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        owner = next(x.owner for x in tree_iter((args, kwargs)) if isinstance(x, Marked))
        return owner.run(func, args, kwargs or {})

    device = property(lambda self: self.owner.device)
    is_cuda, is_cpu = property(lambda self: True), property(lambda self: False)

    def get_device(self):
        return self.device.index

    def to(self, *args, copy=False, **kwargs):
        other = args[0] if args and isinstance(args[0], torch.Tensor) else kwargs.pop("other", None)
        if other is not None:
            args = (other.device, other.dtype, *args[1:])
        device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
        here = self
        if dtype not in (None, self.dtype) or copy or layout is not None:
            here = super().to(dtype or self.dtype, copy=copy, memory_format=layout or torch.preserve_format)
        if device is None or self.owner.is_here(device):
            return here
        self.owner.wait("read", "cpu()")
        return _Download.apply(here)

    def cpu(self, **_kwargs):
        return self.to("cpu")

    def cuda(self, *_args, **_kwargs):
        raise PretendDeviceError(f"a hidden .cuda() at {place()}")

    def type_as(self, other):
        return self.to(other)

    def tolist(self):
        self.owner.wait("read", "tolist()")
        return self.inner.tolist()

    def numpy(self, *_args, **_kwargs):
        raise PretendDeviceError(f"numpy() of a tensor on the device at {place()}: it needs cpu() first")

    __array__ = numpy

    def pin_memory(self, *_args):
        raise PretendDeviceError(f"pin_memory() of a tensor on the device at {place()}")

    def is_pinned(self, *_args):
        return False

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        raise PretendDeviceError(f".data = at {place()}: the pretend device does not know how")

    def __deepcopy__(self, memo):
        new = Marked(self.inner.clone(), self.owner)
        if getattr(self, "_is_param", False):
            new._is_param = True
        memo[id(self)] = new.requires_grad_(self.requires_grad)
        return new

    def __reduce_ex__(self, protocol):  # torch.save: the file is read with map_location="cpu" anyway
        self.owner.wait("read", "torch.save")
        return self.inner.__reduce_ex__(protocol)

    def __repr__(self, **_kwargs):
        return f"Marked({self.inner}, device={self.device})"


class _Download(torch.autograd.Function):
    """Marked -> a CPU tensor; gradients go back to the device."""

    @staticmethod
    def forward(ctx, x):
        ctx.owner = x.owner
        return x.inner.clone()

    @staticmethod
    def backward(ctx, gradient):
        return Marked(gradient.clone(), ctx.owner)


class _Calls(TorchFunctionMode):
    """Sees calls from Python: what they make belongs to the device where an argument does."""

    def __init__(self, owner):
        super().__init__()
        self.owner = owner

    def __torch_function__(self, func, types, args=(), kwargs=None):
        owner, kwargs = self.owner, dict(kwargs or {})
        before = owner.inside, owner.generator
        if func is torch.Tensor.cuda:
            raise PretendDeviceError(f"a hidden .cuda() at {place()}")
        if func is torch.Tensor.pin_memory:
            return owner.pin(args[0])
        if func is torch.Tensor.is_pinned:
            return owner.is_pinned(args[0])
        if func in (torch.Tensor.to, torch.Tensor.type_as):
            func, (args, kwargs) = torch.Tensor.to, owner.destination(args, kwargs)
        if func is torch.as_tensor and isinstance(args[0], Marked):
            return args[0].to(kwargs.get("device") or owner.device, kwargs.get("dtype"))
        if func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor):
            default = args[0].device if func is torch.Tensor.new_tensor else CPU
            device = torch.device(kwargs.pop("device", None) or default)
            made = func(*args, **kwargs)  # on the host first, by PyTorch too
            return made.to(owner.device) if owner.is_here(device) else made
        owner.inside |= any(isinstance(x, Marked) for x in tree_iter((args, kwargs)))
        owner.generator = kwargs.get("generator")  # an operation gets another Python object for it
        try:
            return func(*args, **kwargs)
        finally:
            owner.inside, owner.generator = before


class _Operations(TorchDispatchMode):
    """Sees every operation, those inside of others and of backward passes too."""

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # else each operation goes through torch.compile's machinery

    def __init__(self, owner):
        super().__init__()
        self.owner = owner

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.owner.run(func, args, kwargs or {})


class PretendDevice:
    """The device ``name`` ("cuda" or "cuda:N") of a machine with four of them; a context manager."""

    def __init__(self, name="cuda:1"):
        self.device = torch.device("cuda", torch.device(name).index or 0)
        self.waits, self.forbidden, self.pinned = [], False, {}
        self.inside, self.generator = False, None  # of the call from Python that is being made, see _Calls

    def count(self, kind=None, where=""):
        """How many waits there were, of one kind, and at places that contain ``where``."""
        return sum(kind in (None, wait.kind) and where in wait.place for wait in self.waits)

    @contextmanager
    def watch(self):
        """The list of the waits within the block."""
        before, self.waits = self.waits, []
        found = self.waits
        try:
            yield found
        finally:
            self.waits = before + found

    @contextmanager
    def no_waits(self):
        """Every wait within the block is an error."""
        before, self.forbidden = self.forbidden, True
        try:
            yield
        finally:
            self.forbidden = before

    def each_without_waits(self, iterations):
        """The items of ``iterations``; what is done between two of them must not wait."""
        for item in iterations:
            with self.no_waits():
                yield item

    def wait(self, kind, what):
        self.waits.append(Wait(kind, what, place()))
        if self.forbidden:
            raise PretendDeviceError(f"the host waits for the device ({kind}: {what}) at {place()}")

    def is_here(self, device):
        """Whether a torch.device is this one; False for the CPU. An error for any other."""
        if device.type == "cpu":
            return False
        if device.type != "cuda" or (device.index or 0) != self.device.index:
            raise PretendDeviceError(f"device {device} asked for at {place()}, where the script was told "
                                     f"{self.device}: a hard-coded device?")
        return True

    def pin(self, x):
        x = x.clone()
        storage = x.untyped_storage()
        self.pinned[storage.data_ptr()] = storage  # kept: no other storage gets its address
        return x

    def is_pinned(self, x):
        return x.untyped_storage().data_ptr() in self.pinned

    def upload(self, x, non_blocking):
        if not (non_blocking and self.is_pinned(x)):
            self.wait("upload", "to(device)" + " of pageable memory" * bool(non_blocking))

    def destination(self, args, kwargs):
        """The arguments of ``to``, a tensor replaced with its device and type, and "cuda" with its number."""
        if len(args) > 1 and isinstance(args[1], torch.Tensor):
            args = (args[0], args[1].device, args[1].dtype, *args[2:])

        def numbered(value):
            device = torch.device(value) if isinstance(value, (str, torch.device)) else CPU
            return self.device if self.is_here(device) else value

        return (args[0], *map(numbered, args[1:])), {key: numbered(value) for key, value in kwargs.items()}

    def run(self, func, args, kwargs):
        """One operation: checks it, and runs it on the CPU tensors."""
        packet, asked = func.overloadpacket, kwargs.get("device")
        tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_device, asked_here = any(isinstance(x, Marked) for x in tensors), asked and self.is_here(asked)
        if packet is aten._to_copy and not on_device:
            return self.run_upload(func, args, kwargs, asked_here)
        if packet is aten.copy_:
            return self.run_copy(func, *args, **kwargs)
        here = on_device or asked_here or (self.inside and not tensors)
        if self.generator is not None and here != (self.generator.device.type == "cuda"):
            raise PretendDeviceError(f"a generator of {self.generator.device} for a tensor on the "
                                     f"{'device' if here else 'host'} at {place()}")
        if not here:
            return func(*args, **kwargs)
        self.check_sides(func, packet, args, kwargs, tensors)
        self.check_waits(packet, args)
        inner_args, inner_kwargs = tree_map_only(Marked, lambda x: x.inner, (args, kwargs))
        out = func(*inner_args, **inner_kwargs | ({"device": CPU} if asked else {}))
        if torch.Tag.inplace_view in func.tags:  # squeeze_ and the like: the shape outside follows
            with no_dispatch():
                func(*args, **kwargs)
        written = written_argument(func, args, kwargs)
        if written is not None and isinstance(out, torch.Tensor):
            return written
        if packet is aten._pack_padded_sequence:  # whose second result is on the host
            return Marked(out[0], self), out[1]
        return tree_map_only(torch.Tensor, lambda x: Marked(x, self), out)

    def run_upload(self, func, args, kwargs, asked_here):
        """A CPU tensor is copied, to the device perhaps."""
        if not asked_here:
            return func(*args, **kwargs)
        self.upload(args[0], kwargs.get("non_blocking"))
        return Marked(func(*args, **kwargs | {"device": CPU}), self)

    def run_copy(self, func, to, source, non_blocking=False):
        """``copy_`` works across devices."""
        if isinstance(to, Marked) and not isinstance(source, Marked) and source.dim():
            self.upload(source, non_blocking)
        elif isinstance(source, Marked) and not isinstance(to, Marked):
            self.wait("read", "copy_")
        func(*(x.inner if isinstance(x, Marked) else x for x in (to, source)))
        return to

    def check_sides(self, func, packet, args, kwargs, tensors):
        """An error for tensors of the host that the operation cannot take."""
        plain = [x for x in tensors if not isinstance(x, Marked)]
        if packet in INDEXING and isinstance(args[0], Marked):
            indices = [x for x in args[1] if x is not None and not isinstance(x, Marked)]
            if indices:
                self.wait("upload", "indices")
            plain = [x for x in plain if not any(x is y for y in indices) and x.numel() > 1]
        elif packet in PACKING:
            plain = []
        elif (torch.Tag.pointwise in func.tags or packet in TAKES_NUMBERS
              or str(packet).startswith("aten._foreach_")):
            written = written_argument(func, args, kwargs)
            plain = [x for x in plain if x.dim() or x is written]
        if plain:
            sides = ", ".join(f"{'device' if isinstance(x, Marked) else 'host'} {tuple(x.shape)}"
                              for x in tensors)
            raise PretendDeviceError(f"{func} mixes tensors of host and device ({sides}) at {place()}")

    def check_waits(self, packet, args):
        if packet in READS:
            self.wait("read", str(packet))
        if packet in INDEXING and any(x is not None and x.dtype in (torch.bool, torch.uint8)
                                      for x in args[1]):
            value = args[2] if packet is not aten.index else None
            if value is None or isinstance(value, Marked) or value.numel() > 1:  # else CUDA just fills
                self.wait("read", f"{packet} with a boolean mask")

    def __enter__(self):
        self.stack = ExitStack()
        for target, name, value in self.patches():
            self.stack.enter_context(mock.patch.object(target, name, value))
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # parameters stay the objects they are
        self.stack.callback(torch.__future__.set_swap_module_params_on_conversion, before)
        self.stack.enter_context(_Operations(self))
        self.stack.enter_context(_Calls(self))
        return self

    def __exit__(self, *error):
        return self.stack.__exit__(*error)

    def patches(self):
        """(object, name, replacement): what PyTorch asks the CUDA library or a tensor's C++ side."""
        owner, cuda = self, torch.cuda

        class Generator(torch.Generator):
            """Draws on the CPU, and says where it was told to."""

            def __new__(cls, device="cpu"):
                new = super().__new__(cls, "cpu")
                new.told = owner.device if owner.is_here(torch.device(device)) else CPU
                return new

            device = property(lambda self: self.told)

        class Autocast(torch.autocast):
            """Autocast of the device is the CPU's, where the numbers are."""

            def __init__(self, device_type, *args, **kwargs):
                super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

        class Event:
            """The pretend device has done at once what it was asked for."""

            def record(self):
                pass

            synchronize = record

        iterate = DataLoader.__iter__

        def batches(loader):  # the thread that pins asks for a real accelerator
            return map(pin_memory, iterate(loader)) if loader.pin_memory else iterate(loader)

        group = torch._C._group_tensors_by_device_and_dtype  # of C++, where a Marked tensor is on the CPU

        def grouped(lists, with_indices=False):
            return {(owner.device if isinstance(found[0][0], Marked) else device, dtype): (found, indices)
                    for (device, dtype), (found, indices) in group(lists, with_indices).items()}

        def hidden(*_args, **_kwargs):
            raise PretendDeviceError(f"a hidden .cuda() at {place()}")

        yield from [
            (cuda, "is_available", lambda: True), (cuda, "device_count", lambda: 4),
            (cuda, "current_device", lambda: 0),
            (cuda, "get_device_name", lambda *_args: "pretend accelerator"),
            (cuda, "is_bf16_supported", lambda *_args: True), (cuda, "_lazy_init", lambda: None),
            (cuda, "synchronize", lambda *_args: owner.wait("read", "synchronize")),
            (cuda, "Event", Event), (cuda, "manual_seed_all", lambda _seed: None),
            (cuda, "set_rng_state", lambda *_args: None),
            (cuda, "get_rng_state", lambda *_args: torch.get_rng_state()),
            (torch.nn.Module, "cuda", hidden), (torch, "Generator", Generator), (torch, "autocast", Autocast),
            (DataLoader, "__iter__", batches), (torch._C, "_group_tensors_by_device_and_dtype", grouped),
        ]


def written_argument(func, args, kwargs):
    """The tensor that an in-place operation, or one with ``out``, writes to and returns; None without one."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            if isinstance(value, torch.Tensor):
                return value
    return None
