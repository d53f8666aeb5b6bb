"""Files of weights, read without running anything that they hold."""
import pickle
import re
import zipfile

import torch

from models.errors import ModelError

DTYPES = {"HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float32,
          "DoubleStorage": torch.float64, "IntStorage": torch.int32, "LongStorage": torch.int64, "BoolStorage": torch.bool}


def first_line(error):
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()  # torch colours its messages
    return (text.splitlines() or [type(error).__name__])[0][:120]


def load_plain(path):
    """What ``torch.save`` wrote, on the CPU. ModelError for a damaged file, or more than tensors and plain values."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(f"{path} holds more than tensors and plain values (code that it could run, or damage), so it is not "
                         "loaded") from error
    except Exception as error:  # a flipped byte may end in any exception of torch, pickle, zipfile or struct
        raise ModelError(f"{path} is no checkpoint, or damaged ({type(error).__name__}: {first_line(error)})") from error


def is_torchscript(path):
    """Whether this is an archive that ``torch.jit.save`` wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # what else it is, damaged or not, the next reader says
        return False


def read_torchscript(path):
    """{attribute path: tensor} of a TorchScript archive, on the CPU. ModelError for a damaged one.

    ``torch.jit.load`` would run the ``__setstate__`` of the archive's classes, which may write to files. Here its pickle is read
    with a ``Record`` in the place of every class and function that it names, and the tensors are made from its storages.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            place = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).removesuffix("constants.pkl")
            with archive.open(f"{place}data.pkl") as file:
                root = RecordUnpickler(file).load()
            return {name: read_tensor(record, archive, place) for name, record in tensors_of(root)}
    except Exception as error:
        raise ModelError(f"{path} is no TorchScript archive, or damaged ({type(error).__name__}: {first_line(error)})") from error


class Record:
    """Stands for a class, a function's result or an object of a pickle: keeps arguments and attributes, does nothing."""

    __slots__ = ("args", "__dict__")
    name = ""

    def __new__(cls, *args):
        record = super().__new__(cls)
        record.args = args
        return record


class RecordUnpickler(pickle._Unpickler):  # in Python: a damaged number makes that in C take all memory
    """Reads a pickle with Records in the place of all that it names."""

    def find_class(self, module, name):
        return type("Record", (Record,), {"name": f"{module}.{name}", "__slots__": ()})

    def persistent_load(self, pid):  # ("storage", class, key, place, number of elements)
        return pid


def tensors_of(module, prefix=""):
    """(attribute path, Record) of every tensor of a module and of the modules in it."""
    for name, value in vars(module).items():
        if isinstance(value, Record) and value.name == "torch._utils._rebuild_tensor_v2":
            yield prefix + name, value
        elif isinstance(value, Record):
            yield from tensors_of(value, f"{prefix}{name}.")


def read_tensor(record, archive, place):
    """The tensor of a Record of ``_rebuild_tensor_v2``. torch refuses sizes that reach beyond the storage."""
    (_, kind, key, *_), offset, size, stride, *_ = record.args
    dtype = DTYPES[kind.name.removeprefix("torch.")]
    return torch.frombuffer(bytearray(archive.read(f"{place}data/{key}")), dtype=dtype).as_strided(size, stride, offset)
