"""Arrays from .npy files, with one line for those that are damaged, and tensors on their way to a device."""
import numpy as np

from utils.errors import UserError


class UnreadableArray(UserError):
    """A file that holds no array of numbers. ``reason``: the message without its path; ``missing``: there is
    no such file."""

    def __init__(self, path, why, missing=False):
        self.missing = missing
        self.reason = f"cannot be read ({why})"
        super().__init__(f"{path} {self.reason}")


def load_array(path, mmap_mode=None):
    """The array of numbers of a .npy file. UnreadableArray for a missing or damaged file, and for any other
    content."""
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    # a damaged header may end in any exception: of Python's tokenizer and parser, of memory
    except Exception as error:
        why = (str(error).strip().splitlines() or [""])[0][:80]
        raise UnreadableArray(path, why or type(error).__name__,
                              isinstance(error, FileNotFoundError)) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise UnreadableArray(path, "it is an archive")
    if array.dtype.kind not in "fiub":
        raise UnreadableArray(path, f"it holds {array.dtype}, no numbers")
    return array


def upload(x, device):
    """A tensor of the CPU on ``device``, without waiting for what a GPU still has to do."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
