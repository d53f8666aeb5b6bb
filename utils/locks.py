"""Locks on folders, so that two processes do not write into one.

A lock is that of the operating system (POSIX record lock) on a small file, so it ends with its process,
however that ends: nothing stale is left to remove. The processes that this one starts do not inherit it.
"""
import atexit
import errno
import fcntl
import io
import os
import shlex
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from utils.errors import UserError, say, state

# (path, process) -> the open file. The lock ends when the process closes this, or any other, of the file.
held = {}


def hold(path, what, advice):
    """Take the lock ``path`` for this process; again is as good as once. UserError "<what> <the process that
    has it>; <advice>"."""
    path = Path(path).absolute()
    if (path, os.getpid()) in held:
        return
    while True:
        try:
            file = open(path, "a+", encoding="utf-8", errors="replace")
        except io.UnsupportedOperation as error:  # a pipe
            raise UserError(f"{path} is not a file, so it cannot be locked; remove it") from error
        if not _lock(file, path):
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise UserError(f"{what} {owner}; {advice}")
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            break
        file.close()  # its owner has removed it since it was opened
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')} "
               f"({command})")
    file.flush()
    held[path, os.getpid()] = file


def _lock(file, path):
    """Whether this process has the lock now; on file systems that have no locks, too, with a warning."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        say(f"warning: {path} cannot be locked ({error.strerror}), so nothing keeps a second process out")
    return True


def release(path):
    """Give a lock back, if this process has it."""
    key = Path(path).absolute(), os.getpid()
    if key in held:
        with suppress(OSError):  # a lock that stays as a file is none
            key[0].unlink()
        held.pop(key).close()


def release_all():
    """Give back all locks of this process."""
    for path, _ in list(held):
        release(path)


state.at_end.append(release_all)  # a process may run several commands, one after the other
atexit.register(release_all)
