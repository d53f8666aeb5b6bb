"""A command that goes wrong in the ways that scripts/soak_inputs.py must notice: main() does what its first
word says."""
import os
import pickle
import signal
import sys
import time
from pathlib import Path

from utils.errors import UserError


def main():
    word, data = sys.argv[1], Path("clips/walk.npy").read_bytes()
    if data[:6] == b"\x93NUMPY":
        return  # the undamaged file
    if word == "hangs":
        time.sleep(60)
    elif word == "allocates":
        bytearray(os.urandom(1) * (200 * 2 ** 20))
    elif word == "raises":
        raise KeyError("joints")
    elif word == "unpickles":
        pickle.loads(data)
    elif word == "leaves":
        Path(".partial.walk.csv").write_text("half")
        raise UserError("clips/walk.npy is damaged")
    elif word == "writes":
        Path("walk.csv").write_text("0,0,0")
    elif word == "mumbles":
        raise UserError("something is wrong")
    elif word == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        raise UserError("clips/walk.npy is damaged")
