"""The packed clip file: all clips of a split in one file, memory-mapped and shared by processes and workers.

``<data set>/packed/<split>_<columns>.bin``: the float32 rows (columns) of all clips; an index (JSON); its
checksum (CRC-32) and its size in bytes (8 each, little endian); MAGIC. The index also has the captions, why
clips are left out, and size and modification time of all source files: if these have changed, or the index
is damaged, the file is rebuilt. It is written atomically, so concurrent readers and writers never see half a
file. Shapes: T frames, D columns.
"""
import json
import os
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from utils.arrays import UnreadableArray, load_array
from utils.errors import UserError, is_first, only_check, say
from utils.files import UnreadableText, UnwritableFile, atomic_write, read_text

MAGIC = b"CLIPS 2\n"
CHUNK = 512  # clips in memory while the file is written
checked = {}  # path of a packed file -> its sources, and what --check read in its place in this process


class Packed(NamedTuple):
    """``data`` (sum of T, D) of the usable clips, and for every requested name: ``lengths`` (T, or 0),
    ``reasons`` (why it is unusable, or None), ``texts`` ([text, None], or [None, why there is none])."""

    data: np.ndarray
    lengths: list
    reasons: list
    texts: list


def open_packed(root, split, names, columns, num_workers=0):
    """The Packed clips ``names`` of a split of the data set in ``root``, with ``columns`` features. Reads the
    source files on first use and after changes, or every time where nothing can be written."""
    root = Path(root)
    path = root / "packed" / f"{split}_{columns}.bin"
    sources = {"names": names, "motions": stamps(root / "new_joint_vecs", names, ".npy"),
               "texts": stamps(root / "texts", names, ".txt")}
    packed = read_packed(path, sources, columns)
    if packed is not None:
        return packed
    make = partial(write_packed, root=root, sources=sources, columns=columns, num_workers=num_workers,
                   what=f"{root.name}/{split}")
    if only_check():
        if checked.get(path, (None,))[0] != sources:
            checked[path] = sources, without_data(make, columns)
        return checked[path][1]
    try:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            make(file)
    except UnwritableFile as error:
        say(f"warning: {error}, so the clips are read anew at every start")
        return pack_temporarily(make, sources, columns)
    # None: somebody has changed it since
    return read_packed(path, sources, columns) or pack_temporarily(make, sources, columns)


def stamps(folder, names, suffix):
    """[size in bytes, modification time in ns], or None if missing, for the file of every name."""
    found = []
    for name in names:
        try:
            stat = os.stat(f"{folder}/{name}{suffix}")
            found.append([stat.st_size, stat.st_mtime_ns])
        except OSError:
            found.append(None)
    return found


def pack_temporarily(make, sources, columns):
    """The Packed clips from a nameless temporary file, which vanishes with the process."""
    try:
        with tempfile.TemporaryFile() as file:
            make(file)
            file.flush()
            return map_packed(file, sources, columns)
    except OSError as error:
        raise UserError(f"cannot write the clips to {tempfile.gettempdir()} ({error.strerror or error}); "
                        "make room there, or set TMPDIR to another folder") from error


def without_data(make, columns):
    """The Packed clips for --check: all files are read, none written; ``data`` is zeros, without memory."""
    with open(os.devnull, "wb") as file:
        index = make(file)
    zeros = np.broadcast_to(np.float32(0), (sum(index["lengths"]), columns))
    return Packed(zeros, index["lengths"], index["reasons"], index["texts"])


def write_packed(file, root, sources, columns, num_workers, what):
    """Read all clips and captions, write them to an open file, and return the index."""
    names, rows = sources["names"], []
    with (ThreadPoolExecutor(max(1, num_workers)) as pool,  # threads: reading waits for the disk
          tqdm(total=len(names), desc=f"packing {what}", unit="clip", leave=False, mininterval=1,
               disable=not is_first()) as progress):
        for first in range(0, len(names), CHUNK):
            part = names[first : first + CHUNK]
            for features, reason, text in pool.map(partial(read_clip, root, columns), part):
                if features is not None:
                    file.write(np.ascontiguousarray(features).data)
                rows.append((0 if features is None else len(features), reason, text))
                progress.update()
    index = {"sources": sources, "columns": columns} | dict(zip(("lengths", "reasons", "texts"), zip(*rows)))
    content = json.dumps(index).encode()
    numbers = (zlib.crc32(content), len(content))
    file.write(content + b"".join(number.to_bytes(8, "little") for number in numbers) + MAGIC)
    return index


def read_clip(root, columns, name):
    return (*read_features(root / "new_joint_vecs" / f"{name}.npy", columns),
            read_captions_file(root / "texts" / f"{name}.txt"))


def read_packed(path, sources, columns):
    """The Packed clips of a file; None if it is missing, damaged, or made from other sources."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return None
        with open(path, "rb") as file:
            return map_packed(file, sources, columns)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def map_packed(file, sources, columns):
    """The Packed clips of an open file. ValueError if it is damaged or made from other sources."""
    end = file.seek(-len(MAGIC) - 16, os.SEEK_END)
    checksum, size = (int.from_bytes(file.read(8), "little") for _ in range(2))
    if file.read() != MAGIC or size > end:
        raise ValueError("not a file of clips")
    file.seek(end - size)
    content = file.read(size)
    if zlib.crc32(content) != checksum:
        raise ValueError("a damaged index")
    index = json.loads(content)
    rows = sum(index["lengths"])
    if index["sources"] != sources or index["columns"] != columns or 4 * rows * columns != end - size:
        raise ValueError("made from other files")
    shape = (rows, columns)
    # "c" is copy-on-write: torch wants writable arrays, and the file must not change
    data = np.asarray(np.memmap(file, np.float32, "c", shape=shape)) if rows else np.zeros(shape, np.float32)
    return Packed(data, index["lengths"], index["reasons"], index["texts"])


def read_features(path, dim):
    """Features (T, dim) float32 of one clip, and None; or None and why the file is unusable."""
    try:
        features = load_array(path)
    except UnreadableArray as error:
        return None, "file is missing" if error.missing else error.reason
    if features.ndim != 2 or features.shape[1] < dim or len(features) == 0:
        return None, f"has shape {features.shape}, expected (frames, {dim} or more)"
    features = features[:, :dim].astype(np.float32)
    return (features, None) if np.isfinite(features).all() else (None, "holds NaN or infinite values")


def read_captions_file(path):
    """A text file's content, and None; or None and why the file is unusable."""
    try:
        return read_text(path), None
    except UnreadableText as error:
        return None, "has no text file" if error.missing else f"has a text file that {error.reason}"
