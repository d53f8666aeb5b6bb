"""Files: atomic writing, safe reading (no code in a file is run), and the folder of a run."""
import errno
import hashlib
import json
import math
import os
import pickle
import re
import shutil
import time
import uuid
import zipfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from tqdm import tqdm

from utils import locks
from utils.errors import MissingFile, UnreadableFile, UserError, is_first, only_check, say
from utils.weights import check_entries, join, split

DTYPES = {"HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float32,
          "DoubleStorage": torch.float64, "IntStorage": torch.int32, "LongStorage": torch.int64,
          "BoolStorage": torch.bool}
WEIGHTS = ".safetensors"  # see utils/weights.py
LATEST = "latest.tar"
ADVICE = "check --name, --dataset_name and --checkpoints_dir, or train it first"
MOST_DIGITS = 40  # of a whole number in JSON; numbers of codes have up to 20
SUM = "sha256"  # in the .json file of weights
LONGEST_NAME = 255  # bytes of a file's name, on every common file system


class UnwritableFile(UserError):
    """A file that cannot be written: no permission, no space, or something else has its name."""


class UnreadableText(UnreadableFile):
    """No readable text. ``why``: in words."""

    def __init__(self, path, why, missing=False):
        self.why = why
        super().__init__(path, f"cannot be read ({why})", missing)


@contextmanager
def atomic_write(path, one_writer=False, durable=False):
    """Yields a temporary path, which is renamed to ``path`` if the block succeeds. Safe for concurrent
    writers; ``one_writer``: there is only one, so the leftover of a killed one is overwritten. ``durable``:
    the file is on the disk before it gets its name, and its name too when this returns, so that no loss of
    power leaves half of it. UnwritableFile."""
    path = Path(path)
    mark = "partial" if one_writer else uuid.uuid4().hex[:12]
    temporary = path.with_name(f".{mark}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            flush(temporary)
        os.replace(temporary, path)
        if durable:
            flush(path.parent)
    except OSError as error:
        raise UnwritableFile(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def flush(path):
    """Wait until a file, or the names in a folder, are on the disk. OSError where a file cannot get there."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some file systems know no fsync of folders
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


def link_or_copy(source, path):
    """Give a file a second name: a hard link, or a copy where there are no hard links. UnwritableFile."""
    with atomic_write(path, one_writer=True) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def write_text(path, text, **how):
    """Write a text file atomically; ``how``: see ``atomic_write``."""
    with atomic_write(path, **how) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_no_pipe(path):
    """OSError where something else than a file has the name: a folder, or a pipe, which would be waited
    for."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "it is not a file", str(path))


def read_text(path, pipes=False):
    """The text of a file in UTF-8, with or without a byte order mark. UnreadableText for anything else;
    ``pipes``: it may be one, which is waited for."""
    path = Path(path)
    try:
        if not pipes:
            check_no_pipe(path)
        text = path.read_text(encoding="utf-8-sig")  # Windows editors start files with a mark
    except UnicodeDecodeError as error:
        raise UnreadableText(path, "it is not text in UTF-8") from error
    except OSError as error:
        raise UnreadableText(path, error.strerror, isinstance(error, FileNotFoundError)) from error
    if "\0" in text:  # UTF-16 without a mark is UTF-8, with NUL at every other place
        raise UnreadableText(path, "it holds NUL bytes, so it is not text in UTF-8")
    return text


def read_json(path, flag=""):
    """The JSON object, a dict, in a file. UserError, which begins with ``flag``, for any other content; for a
    name that comes twice in an object, of which only the last would count; and for numbers that Python reads
    though they are none of JSON's, or that are of no use."""
    place = f"{flag}: {path}" if flag else path
    try:
        content = json.loads(read_text(path), object_pairs_hook=without_repeats, parse_constant=no_number,
                             parse_int=whole_number, parse_float=finite_number)
    except UnreadableText as error:
        raise UnreadableText(place, error.why, error.missing) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{place} holds no JSON object, {{...}}")
    return content


def without_repeats(pairs):
    """The dict of a JSON object. ValueError where a name is repeated."""
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"'{repeated[:60]}' is named twice")
    return found


def no_number(text):
    raise ValueError(f"{text} is no number")


def whole_number(text):
    return int(text) if len(text) <= MOST_DIGITS else no_number(f"{text[:20]}... ({len(text)} digits)")


def finite_number(text):
    number = float(text)
    return number if math.isfinite(number) else no_number(text[:60])


def plain_id(name):
    """Whether a clip's id, from a list, stays in its folder when it becomes part of a path."""
    parts = name.split("/")
    return (len(name.encode()) < LONGEST_NAME - len(".npy") and "\\" not in name and name.isprintable()
            and not any(part in ("", ".", "..") for part in parts))


def write_checkpoint(path, content, one_writer=True, when_written=lambda: None):
    """``torch.save``, atomically and durably; ``when_written`` is called before the file takes its name.
    UnwritableFile."""
    with atomic_write(path, one_writer, durable=True) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's way to report a full disk
            raise UnwritableFile(f"cannot write {path}: {first_line(error)}") from error
        flush(temporary)  # before any other file changes
        when_written()


def file_hash(path):
    """The first 16 hex digits of a file's SHA-256."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:16]


def digest(value):
    """16 hex digits of the SHA-256 of a value of plain types."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def first_line(error):
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()  # torch colours its messages
    return (text.splitlines() or [type(error).__name__])[0][:120]


def load_plain(path, mapped=False):
    """What ``torch.save`` wrote, on the CPU; ``mapped``: the tensors stay in the file, where its format
    allows that. UserError if damaged, or more than tensors and plain values."""
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            check_archive(path, sums=not mapped)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipped)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is damaged, or holds more than tensors and plain values (code that it could "
                        "run), so it is not loaded") from error
    except Exception as error:  # damage can raise any exception of torch, pickle, zipfile or struct
        raise UserError(f"{path} is not a checkpoint, or is damaged ({type(error).__name__}: "
                        f"{first_line(error)})") from error


def check_archive(path, sums):
    """BadZipFile for a zip archive that ``torch.save`` does not make, as those that unpack to more than their
    size, or, with ``sums``, if a part is not what was written: ``torch.save`` puts a CRC-32 beside each, but
    ``torch.load`` does not look at it. Files without (all sums are 0) pass."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
        if not stored or sum(part.file_size for part in parts) > os.path.getsize(path):
            raise zipfile.BadZipFile("torch.save makes no such archive")
        if sums and any(part.CRC for part in parts) and (wrong := archive.testzip()):
            raise zipfile.BadZipFile(f"the checksum of its part {wrong} does not fit")


def write_weights(path, checkpoint):
    """Write a checkpoint's dict to ``path``, NAME.safetensors, and NAME.json. UserError where that cannot
    be."""
    tensors, plain = split(checkpoint)
    content = save(tensors)
    plain = plain | {SUM: weights_sum(content, plain)}
    write_text(path.with_suffix(".json"), json.dumps(plain, indent=1, allow_nan=False) + "\n")
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def weights_sum(content, plain):
    """SHA-256 in hex digits of the bytes of a .safetensors file and of the dict beside it."""
    about = json.dumps({key: value for key, value in plain.items() if key != SUM}, sort_keys=True)
    return hashlib.sha256(content + about.encode()).hexdigest()


def read_weights(path):
    """The dict that ``write_weights`` wrote. UserError where a file is missing or damaged, or where the two
    do not belong together."""
    about = path.with_suffix(".json")
    if not about.is_file():
        raise MissingFile(f"{path} goes with {about.name}, which is missing; put it beside")
    plain = read_json(about)
    try:
        content = path.read_bytes()
        if plain.get(SUM, wanted := weights_sum(content, plain)) != wanted:  # none in files of earlier code
            raise UserError(f"{path} is damaged or changed, or {about.name} is: their checksum differs; get "
                            "both again")
        return join(load(content), {key: value for key, value in plain.items() if key != SUM})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}); get it again") from error


def read_checkpoint(path, keys=(), advice=ADVICE, mapped=False):
    """The dict in a checkpoint file, .tar or .safetensors, on the CPU. UserError if it is missing
    (``advice``: what to do then), damaged, needs code to load, or lacks one of the ``keys``. In place of a
    latest.tar that cannot be read it is the last good one of before, with a warning. ``mapped``: see
    ``load_plain``."""
    checkpoint, path = read_newest(path, advice, mapped)
    missing = [key for key in keys if key not in checkpoint]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)} (it has {', '.join(map(str, checkpoint))}): it "
                        "is another kind of checkpoint")
    return checkpoint


def read_newest(path, advice=ADVICE, mapped=False):
    """(dict, path of the file that holds it) for ``read_checkpoint``."""
    path = Path(path)
    try:
        return read_dict(path, advice, mapped), path
    except UserError as error:
        for older in earlier_states(path.parent) if path.name == LATEST else ():
            try:
                content = read_dict(older, advice, mapped)
            except UserError:
                continue
            say(f"warning: {error}. {older.name} beside it is read in its place, the state of step "
                f"{content.get('total_it', 'unknown')}")
            return content, older
        raise


def read_dict(path, advice, mapped):
    """The dict in one checkpoint file. UserError as in ``read_checkpoint``."""
    if not path.is_file():
        raise MissingFile(f"no checkpoint at {path}; {advice}")
    checkpoint = read_weights(path) if path.suffix == WEIGHTS else load_plain(path, mapped)
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not the dict of a checkpoint")
    return check_entries(checkpoint, path)


def earlier_states(folder):
    """The files previous_1.tar, previous_2.tar ... of a model folder, from the latest to the earliest."""
    found = (re.fullmatch(r"previous_(\d+)\.tar", path.name) for path in Path(folder).glob("previous_*.tar"))
    numbers = sorted(int(name[1]) for name in found if name)
    return [Path(folder) / f"previous_{number}.tar" for number in numbers]


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
    """checkpoints/<dataset>/<name>/: train.log, run.json, and model/ with latest.tar, the states before it
    (previous_1.tar, ...), best.tar and TensorBoard events. best.tar also has its published name,
    net_best_fid.tar, the only one that released runs have. Exported runs (scripts.export_weights) have
    weights.safetensors only."""

    def __init__(self, checkpoints_dir, dataset, name):
        if name in ("", ".", "..") or Path(name).name != name:
            raise UserError(f"--name '{name}' must be a plain name, without folders")
        self.root = Path(checkpoints_dir) / dataset / name
        self.model_dir = self.root / "model"
        self.latest, self.best = self.model_dir / LATEST, self.model_dir / "best.tar"
        self.published = self.model_dir / "net_best_fid.tar"
        self.finest = self.model_dir / "finest.tar"  # a released evaluator
        self.weights = self.model_dir / f"weights{WEIGHTS}"
        self.read_from = self.latest  # the file that ``read_latest`` has read

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
        """Make the folders and take their lock, which this process keeps until ``release`` or its end (with
        --check only see whether the folders can be made). UserError if another process has the lock, if this
        would overwrite a run, or if there is none to resume."""
        if self.root.is_dir():
            self._take_lock()
        if is_continue and not self.states():
            raise UserError(f"--is_continue: there is no {self.latest} to resume; without that flag the run "
                            "begins")
        existing = self.states() + [path for path in (self.best, self.published, self.finest, self.weights)
                                    if path.is_file()]
        if existing and not is_continue:
            raise UserError(f"{existing[0]} exists; resume with --is_continue (it needs latest.tar), or pick "
                            "another --name")
        if not only_check():
            self.model_dir.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            return
        folders = self.model_dir, *self.model_dir.absolute().parents
        above = next(folder for folder in folders if folder.exists())
        code = errno.ENOTDIR if not above.is_dir() else 0 if os.access(above, os.W_OK) else errno.EACCES
        if code:
            raise OSError(code, os.strerror(code), str(self.model_dir))

    def _take_lock(self):
        if is_first() and not only_check():
            locks.hold(self.root / ".lock", f"{self.root} is in use by",
                       "wait until it ends, or pick another --name")

    def release(self):
        """Give the lock back."""
        locks.release(self.root / ".lock")

    def states(self):
        """The files from which the run could resume, from the latest to the earliest."""
        return [path for path in (self.latest, *earlier_states(self.model_dir)) if path.is_file()]

    def read_latest(self):
        """The dict of the state to resume from: latest.tar, or, with a warning, the last good one of before
        (``read_from`` says which). UserError where none can be read."""
        content, self.read_from = read_newest(self.latest, "without --is_continue the run begins")
        return content

    def save_latest(self, content, keep=2):
        """Write latest.tar. ``keep``: how many states there are then at most, the ones before as
        previous_1.tar and so on. UnwritableFile, with all files as they were."""
        write_checkpoint(self.latest, content, when_written=lambda: self._shift(keep))
        self.read_from = self.latest

    def _shift(self, keep):
        """Before a new latest.tar: the present one becomes previous_1.tar, unless it is damaged."""
        if keep > 1 and self.read_from == self.latest and self.latest.is_file():
            for older in earlier_states(self.model_dir)[::-1]:
                number = int(older.stem.rpartition("_")[2])
                os.replace(older, older.with_name(f"previous_{number + 1}.tar"))
            link_or_copy(self.latest, self.model_dir / "previous_1.tar")
        for older in earlier_states(self.model_dir)[keep - 1 :]:
            older.unlink()

    def save_best(self, content):
        """Write the best checkpoint under both names."""
        write_checkpoint(self.best, content)
        link_or_copy(self.best, self.published)

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
            try:
                with open(self.root / "train.log", "a", encoding="utf-8") as file:
                    file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
            except OSError as error:  # what matters is whether the state can be saved, and that is seen there
                say(f"warning: cannot write {self.root / 'train.log'}: {error.strerror}")
