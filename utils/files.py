"""Files: written whole or not at all, read without running anything that they hold, and where those of a run
lie."""
import errno
import hashlib
import os
import pickle
import re
import time
import uuid
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from utils.errors import MissingFile, UserError, is_first, only_check

DTYPES = {"HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float32,
          "DoubleStorage": torch.float64, "IntStorage": torch.int32, "LongStorage": torch.int64,
          "BoolStorage": torch.bool}
NETWORKS = ("ae", "mardm", "ema_mardm", "estimator")  # keys of checkpoints that hold a state dict


# ---- writing -----------------------------------------------------------------------------------------------


class UnwritableFile(UserError):
    """A file that cannot be written: no permission, no room, a name that is taken by something else."""


@contextmanager
def atomic_write(path, one_writer=False):
    """A temporary name beside ``path`` to write to; the file takes its place when the block has ended well,
    so a crash never leaves half a file. Several processes may do this at once. ``one_writer``: only one does,
    so what a killed one has left is overwritten. Raises UnwritableFile."""
    path = Path(path)
    mark = "partial" if one_writer else uuid.uuid4().hex[:12]
    temporary = path.with_name(f".{mark}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UnwritableFile(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def write_text(path, text):
    """Write a text file, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_checkpoint(path, content, one_writer=True):
    """``torch.save``, whole or not at all."""
    with atomic_write(path, one_writer) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # so torch reports a full disk
            raise UnwritableFile(f"cannot write {path}: {first_line(error)}") from error


def publish(path, name):
    """Give a file a second name in its folder: a link where the file system has them, else a copy."""
    path = Path(path)
    with atomic_write(path.with_name(name), one_writer=True) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:
            temporary.write_bytes(path.read_bytes())


def file_hash(path):
    """Short SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:16]


# ---- reading -----------------------------------------------------------------------------------------------


def first_line(error):
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()  # torch colours its messages
    return (text.splitlines() or [type(error).__name__])[0][:120]


def load_plain(path):
    """What ``torch.save`` wrote, on the CPU. UserError for a damaged file, or more than tensors and plain
    values."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is damaged, or holds more than tensors and plain values (code that it could "
                        "run), so it is not "
                        "loaded") from error
    except Exception as error:  # a flipped byte may end in any exception of torch, pickle, zipfile or struct
        raise UserError(
            f"{path} is no checkpoint, or damaged ({type(error).__name__}: {first_line(error)})") from error


def read_checkpoint(path, keys=(), advice="check --name, --dataset_name and --checkpoints_dir, or train it "
                                          "first"):
    """The dict in a checkpoint file, on the CPU. UserError when it is missing, damaged, needs code to load,
    or lacks one of the ``keys``; ``advice``: what to do when it is missing."""
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"no checkpoint at {path}; {advice}")
    checkpoint = load_plain(path)
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint's dict")
    for key, value in checkpoint.items():
        if key in NETWORKS and not isinstance(value, dict):
            raise UserError(f"{path} holds a {type(value).__name__} under '{key}', not a network's weights")
    missing = [key for key in keys if key not in checkpoint]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)} (it has {', '.join(map(str, checkpoint))}): it "
                        "is another kind of "
                        "checkpoint")
    return checkpoint


def is_torchscript(path):
    """Whether this is an archive that ``torch.jit.save`` wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # what else it is, damaged or not, the next reader says
        return False


def read_torchscript(path):
    """{attribute path: tensor} of a TorchScript archive, on the CPU. UserError for a damaged one.

    ``torch.jit.load`` would run the ``__setstate__`` of the archive's classes, which may write to files. Here
    its pickle is read with a ``Record`` in the place of every class and function that it names, and the
    tensors are made from its storages.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            place = next(name for name in archive.namelist()
                         if name.endswith("/constants.pkl")).removesuffix("constants.pkl")
            with archive.open(f"{place}data.pkl") as file:
                root = RecordUnpickler(file).load()
            return {name: read_tensor(record, archive, place) for name, record in tensors_of(root)}
    except Exception as error:
        raise UserError(f"{path} is no TorchScript archive, or damaged ({type(error).__name__}: "
                        f"{first_line(error)})") from error


class Record:
    """Stands for a class, a function's result or an object of a pickle: keeps arguments and attributes, does
    nothing."""

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
    return torch.frombuffer(bytearray(archive.read(f"{place}data/{key}")), dtype=dtype).as_strided(size,
                                                                                                   stride, offset)


# ---- runs --------------------------------------------------------------------------------------------------


class RunFolder:
    """checkpoints/<dataset>/<name>/: ``model/`` with latest.tar, best.tar and TensorBoard's events,
    train.log. The best checkpoint is there under its published name, net_best_fid.tar, too: one file with two
    names."""

    PUBLISHED = "net_best_fid.tar"

    def __init__(self, checkpoints_dir, dataset, name):
        if name in ("", ".", "..") or Path(name).name != name:
            raise UserError(f"--name '{name}' must be a plain name, without folders")
        self.root = Path(checkpoints_dir) / dataset / name
        self.model_dir = self.root / "model"
        self.latest, self.best = self.model_dir / "latest.tar", self.model_dir / "best.tar"
        self.published = self.model_dir / self.PUBLISHED
        self.finest = self.model_dir / "finest.tar"  # a released evaluator

    def prepare(self, is_continue):
        """Make the folders, or with --check only see whether that is possible. UserError when this would
        overwrite a run, or when there is none to resume."""
        if is_continue and not self.latest.is_file():
            raise UserError(f"--is_continue: there is no {self.latest} to resume")
        there = [path for path in (self.latest, self.best, self.published, self.finest) if path.is_file()]
        if there and not is_continue:
            raise UserError(f"{there[0]} exists; resume with --is_continue (it needs latest.tar), or pick "
                            "another --name")
        if not only_check():
            self.model_dir.mkdir(parents=True, exist_ok=True)
            return
        above = next(folder for folder in (self.model_dir, *self.model_dir.absolute().parents) if folder.exists())
        code = errno.ENOTDIR if not above.is_dir() else 0 if os.access(above, os.W_OK) else errno.EACCES
        if code:
            raise OSError(code, os.strerror(code), str(self.model_dir))

    def save_best(self, content):
        """Write the best checkpoint, under both its names."""
        write_checkpoint(self.best, content)
        publish(self.best, self.PUBLISHED)

    def checkpoint(self, which="best"):
        """Path of the checkpoint to use: the best one where there is one, else the latest, else a released
        ``finest.tar``."""
        if which == "best":
            for path in (self.best, self.published):
                if path.is_file():
                    return path
        return self.finest if self.finest.is_file() and not self.latest.is_file() else self.latest

    def log(self, line):
        """Print a line and append it to train.log, once for all processes."""
        if not is_first() or only_check():
            return
        tqdm.write(line)
        with open(self.root / "train.log", "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
