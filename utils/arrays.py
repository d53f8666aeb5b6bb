"""Arrays: reading .npy files, one-hot rows, tensors on their way to a device."""
import numpy as np
import torch

from utils.errors import UserError


class UnreadableArray(UserError):
    """No readable array of numbers. ``reason``: the message without the path; ``missing``: no such file."""

    def __init__(self, path, why, missing=False):
        self.missing, self.reason = missing, f"cannot be read ({why})"
        super().__init__(f"{path} {self.reason}")


def load_array(path, mmap_mode=None):
    """The array of numbers in a .npy file. UnreadableArray if it is missing, damaged, or something else."""
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except Exception as error:  # a damaged header can raise anything, from Python's tokenizer to MemoryError
        why = (str(error).strip().splitlines() or [""])[0][:80] or type(error).__name__
        raise UnreadableArray(path, why, isinstance(error, FileNotFoundError)) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise UnreadableArray(path, "it is an archive")
    if array.dtype.kind not in "fiub":
        raise UnreadableArray(path, f"it contains {array.dtype}, not numbers")
    return array


def one_hot(names, known):
    """Rows of zeros with a 1 at each name's place in ``known``: (N, number of known names)."""
    return torch.eye(len(known))[[known.index(name) for name in names]]


def upload(x, device):
    """A tensor of the CPU on ``device``, without waiting for what a GPU still has to do."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
