"""Arrays: reading .npy and .npz files, one-hot rows, tensors on their way to a device."""
import zipfile

import numpy as np
import torch

from utils.errors import UnreadableFile
from utils.files import check_no_pipe

MOST_BYTES = 2 ** 30  # of an array in a .npz file, unpacked
LARGEST = 1e7  # coordinates beyond this (10 km in millimetres) are no motion


class UnreadableArray(UnreadableFile):
    """No readable array of numbers. ``reason``: the message without the path; ``missing``: no such file."""

    def __init__(self, path, why, missing=False):
        super().__init__(path, f"cannot be read ({why})", missing)


def load_array(path, mmap_mode=None):
    """The array of numbers in a .npy file. UnreadableArray if it is missing, damaged, or something else."""
    try:
        check_no_pipe(path)
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except Exception as error:  # a damaged header can raise anything, from Python's tokenizer to MemoryError
        raise UnreadableArray(path, _why(error), isinstance(error, FileNotFoundError)) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise UnreadableArray(path, "it is an archive")
    if array.dtype.kind not in "fiub":
        raise UnreadableArray(path, f"it contains {array.dtype}, not numbers")
    return array


def load_arrays(path, names):
    """{name: array} of those of the ``names`` that a .npz file has: numbers, text or bytes. UnreadableArray
    if the file is missing, damaged, or something else, or an array holds objects, which are not unpickled."""
    try:
        check_no_pipe(path)
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in archive.infolist()}
        large = [name for name in names if sizes.get(name, 0) > MOST_BYTES]
        if large:
            raise ValueError(f"'{large[0]}' has more than {MOST_BYTES >> 20} MB")
        with np.load(path, allow_pickle=False) as content:
            found = {name: content[name] for name in names if name in sizes}
    except Exception as error:  # as in load_array, and of zipfile and zlib
        missing = isinstance(error, FileNotFoundError)
        raise UnreadableArray(path, _why(error), missing) from error
    for name, array in found.items():
        if getattr(array, "dtype", np.dtype(object)).kind not in "fiubUS":
            raise UnreadableArray(path, f"'{name}' is neither numbers nor text")
    return found


def first_absurd(rows):
    """Number of the first of the ``rows`` (N, C) with NaN, an infinite value or one beyond LARGEST, or
    None."""
    bad = ~(np.abs(rows) < LARGEST).all(1)
    return int(bad.argmax()) if bad.any() else None


def _why(error):
    why = getattr(error, "strerror", None) or str(error).strip()
    return (why.splitlines() or [""])[0][:80] or type(error).__name__


def one_hot(names, known):
    """Rows of zeros with a 1 at each name's place in ``known``: (N, number of known names)."""
    return torch.eye(len(known))[[known.index(name) for name in names]]


def upload(x, device):
    """A tensor of the CPU on ``device``, without waiting for what a GPU still has to do."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
