"""Files: atomic writing, safe reading (no code in a file is run), and the folder of a run."""
import errno
import hashlib
import json
import os
import pickle
import re
import time
import uuid
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from tqdm import tqdm

from utils.errors import MissingFile, UserError, is_first, only_check
from utils.weights import NETWORKS, join, split

DTYPES = {"HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float32,
          "DoubleStorage": torch.float64, "IntStorage": torch.int32, "LongStorage": torch.int64,
          "BoolStorage": torch.bool}
WEIGHTS = ".safetensors"  # see utils/weights.py


class UnwritableFile(UserError):
    """A file that cannot be written: no permission, no space, or something else has its name."""


@contextmanager
def atomic_write(path, one_writer=False):
    """Yields a temporary path, which is renamed to ``path`` if the block succeeds. Safe for concurrent
    writers; ``one_writer``: there is only one, so the leftover of a killed one is overwritten.
    UnwritableFile."""
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
    """Write a text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path, flag=""):
    """The JSON object, a dict, in a file. UserError, which begins with ``flag``, for any other content."""
    place = f"{flag}: {path}" if flag else path
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{place} holds no JSON object, {{...}}")
    return content


def write_checkpoint(path, content, one_writer=True):
    """``torch.save``, atomically."""
    with atomic_write(path, one_writer) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's way to report a full disk
            raise UnwritableFile(f"cannot write {path}: {first_line(error)}") from error


def file_hash(path):
    """The first 16 hex digits of a file's SHA-256."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:16]


def first_line(error):
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()  # torch colours its messages
    return (text.splitlines() or [type(error).__name__])[0][:120]


def load_plain(path, mapped=False):
    """What ``torch.save`` wrote, on the CPU; ``mapped``: the tensors stay in the file, where its format
    allows that. UserError if damaged, or more than tensors and plain values."""
    try:
        mmap = mapped and zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is damaged, or holds more than tensors and plain values (code that it could "
                        "run), so it is not loaded") from error
    except Exception as error:  # damage can raise any exception of torch, pickle, zipfile or struct
        raise UserError(f"{path} is not a checkpoint, or is damaged ({type(error).__name__}: "
                        f"{first_line(error)})") from error


def write_weights(path, checkpoint):
    """Write a checkpoint's dict to ``path``, NAME.safetensors, and NAME.json. UserError where that cannot
    be."""
    tensors, plain = split(checkpoint)
    write_text(path.with_suffix(".json"), json.dumps(plain, indent=1, allow_nan=False) + "\n")
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(tensors))


def read_weights(path):
    """The dict that ``write_weights`` wrote. UserError where a file is missing or damaged."""
    about = path.with_suffix(".json")
    if not about.is_file():
        raise MissingFile(f"{path} goes with {about.name}, which is missing; put it beside")
    try:
        return join(load_file(path), read_json(about))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}); get it again") from error


def read_checkpoint(path, keys=(), advice="check --name, --dataset_name and --checkpoints_dir, or train it "
                                          "first", mapped=False):
    """The dict in a checkpoint file, .tar or .safetensors, on the CPU. UserError if it is missing
    (``advice``: what to do then), damaged, needs code to load, or lacks one of the ``keys``. ``mapped``: see
    ``load_plain``."""
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"no checkpoint at {path}; {advice}")
    checkpoint = read_weights(path) if path.suffix == WEIGHTS else load_plain(path, mapped)
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not the dict of a checkpoint")
    for key in NETWORKS:
        if not isinstance(checkpoint.get(key, {}), dict):
            raise UserError(f"{path} holds a {type(checkpoint[key]).__name__} under '{key}', not a network's "
                            "weights")
    missing = [key for key in keys if key not in checkpoint]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)} (it has {', '.join(map(str, checkpoint))}): it "
                        "is another kind of checkpoint")
    return checkpoint


def is_torchscript(path):
    """Whether this is an archive that ``torch.jit.save`` wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # not a zip file, or damaged: the next reader says which
        return False


def read_torchscript(path):
    """{attribute path: tensor} of a TorchScript archive, on the CPU. UserError if it is damaged.

    ``torch.jit.load`` runs the ``__setstate__`` of the archive's classes, which may write files. This reads
    the pickle with a ``Record`` in place of every class and function, and makes tensors from the storages.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            constants = next(name for name in archive.namelist() if name.endswith("/constants.pkl"))
            folder = constants.removesuffix("constants.pkl")
            with archive.open(f"{folder}data.pkl") as file:
                root = RecordUnpickler(file).load()
            return {name: read_tensor(record, archive, folder) for name, record in tensors_of(root)}
    except Exception as error:
        raise UserError(f"{path} is not a TorchScript archive, or is damaged ({type(error).__name__}: "
                        f"{first_line(error)})") from error


class Record:
    """Any class, object or function result in a pickle: keeps arguments and attributes, does nothing."""

    __slots__ = ("args", "__dict__")
    name = ""

    def __new__(cls, *args):
        record = super().__new__(cls)
        record.args = args
        return record


class RecordUnpickler(pickle._Unpickler):  # pure Python: with a damaged size the C one allocates all memory
    """Unpickles with Records in place of classes and functions."""

    def find_class(self, module, name):
        return type("Record", (Record,), {"name": f"{module}.{name}", "__slots__": ()})

    def persistent_load(self, pid):  # ("storage", class, key, device, number of elements)
        return pid


def tensors_of(module, prefix=""):
    """(attribute path, Record) of every tensor of a module and its submodules."""
    for name, value in vars(module).items():
        if isinstance(value, Record) and value.name == "torch._utils._rebuild_tensor_v2":
            yield prefix + name, value
        elif isinstance(value, Record):
            yield from tensors_of(value, f"{prefix}{name}.")


def read_tensor(record, archive, folder):
    """The tensor of a ``_rebuild_tensor_v2`` Record. torch refuses sizes that exceed the storage."""
    (_, kind, key, *_), offset, size, stride, *_ = record.args
    storage = bytearray(archive.read(f"{folder}data/{key}"))
    dtype = DTYPES[kind.name.removeprefix("torch.")]
    return torch.frombuffer(storage, dtype=dtype).as_strided(size, stride, offset)


class RunFolder:
    """checkpoints/<dataset>/<name>/: train.log, and model/ with latest.tar, best.tar and TensorBoard events.
    best.tar also has its published name, net_best_fid.tar, the only one that released runs have. Exported
    runs (scripts.export_weights) have weights.safetensors only."""

    def __init__(self, checkpoints_dir, dataset, name):
        if name in ("", ".", "..") or Path(name).name != name:
            raise UserError(f"--name '{name}' must be a plain name, without folders")
        self.root = Path(checkpoints_dir) / dataset / name
        self.model_dir = self.root / "model"
        self.latest, self.best = self.model_dir / "latest.tar", self.model_dir / "best.tar"
        self.published = self.model_dir / "net_best_fid.tar"
        self.finest = self.model_dir / "finest.tar"  # a released evaluator
        self.weights = self.model_dir / f"weights{WEIGHTS}"

    @classmethod
    def find(cls, text, checkpoints_dir, dataset):
        """The checkpoint to use of a run that is named by its folder, or by its name on the same data set, or
        by the path of the checkpoint itself."""
        path = Path(text)
        if path.suffix in (".tar", WEIGHTS):
            return path
        if (path / "model").is_dir():
            path = path.absolute()
            return cls(path.parents[1], path.parent.name, path.name).checkpoint()
        return cls(checkpoints_dir, dataset, text).checkpoint()

    def prepare(self, is_continue):
        """Make the folders (with --check only see whether that is possible). UserError if this would
        overwrite a run, or if there is none to resume."""
        if is_continue and not self.latest.is_file():
            raise UserError(f"--is_continue: there is no {self.latest} to resume")
        existing = [path for path in (self.latest, self.best, self.published, self.finest, self.weights)
                    if path.is_file()]
        if existing and not is_continue:
            raise UserError(f"{existing[0]} exists; resume with --is_continue (it needs latest.tar), or pick "
                            "another --name")
        if not only_check():
            self.model_dir.mkdir(parents=True, exist_ok=True)
            return
        folders = self.model_dir, *self.model_dir.absolute().parents
        above = next(folder for folder in folders if folder.exists())
        code = errno.ENOTDIR if not above.is_dir() else 0 if os.access(above, os.W_OK) else errno.EACCES
        if code:
            raise OSError(code, os.strerror(code), str(self.model_dir))

    def save_best(self, content):
        """Write the best checkpoint under both names: a hard link, or a copy where there are no hard
        links."""
        write_checkpoint(self.best, content)
        with atomic_write(self.published, one_writer=True) as temporary:
            temporary.unlink(missing_ok=True)
            try:
                os.link(self.best, temporary)
            except OSError:
                temporary.write_bytes(self.best.read_bytes())

    def checkpoint(self, which="best"):
        """The path of the checkpoint to use: "best" is best.tar, else net_best_fid.tar, else the latest; the
        latest is latest.tar, or where there is none a released finest.tar or exported weights."""
        best = [path for path in (self.best, self.published) if which == "best" and path.is_file()]
        others = [path for path in (self.latest, self.finest, self.weights) if path.is_file()]
        return [*best, *others, self.latest][0]

    def log(self, line):
        """Print a line and append it to train.log, once for all processes."""
        if is_first() and not only_check():
            tqdm.write(line)
            with open(self.root / "train.log", "a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
