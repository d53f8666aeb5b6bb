"""One way to tell a user about a mistake: one line on stderr and exit code 2.

A script may run in several processes (torchrun). What it tells the user is told once: this module asks
``processes``, which is one process alone until utils/training/distributed.py puts a group in its place.
"""
import sys
from contextlib import contextmanager
from types import SimpleNamespace

state = SimpleNamespace(only_check=False)  # --check: the command writes nothing and stops once all is loaded


class UserError(ValueError):
    """A mistake of the user's (missing folder, wrong flag, damaged file). The message says what, where and
    what to do. ``missing``: something is not there, as opposed to wrong or damaged."""

    missing = False


class MissingFile(UserError):
    """A file or folder that does not exist."""

    missing = True


class OneProcess:
    """The answers of a process that runs alone. ``distributed.Group`` has those of several."""

    rank, size = 0, 1

    def claim(self, what):
        """True in the one process that asks first."""
        return True

    def claimed(self, what):
        """Whether a process has claimed ``what``."""
        return False

    def leave(self):
        """End together with the others."""


processes = OneProcess()


def is_first():
    """Whether this is the process that writes files and shows progress."""
    return processes.rank == 0


def say(*lines):
    """Print on stderr, from the first process only."""
    if is_first():
        print(*lines, file=sys.stderr)


@contextmanager
def checking(active=True):
    """Within the block, ``only_check()`` is ``active``, unless a parser of utils/options.py sets it."""
    before, state.only_check = state.only_check, active
    try:
        yield
    finally:
        state.only_check = before


def only_check():
    """Whether the command was called with --check, so that it must not write anything."""
    return state.only_check


def run(main):
    """Call ``main()``. A UserError becomes ``error: ...`` and exit code 2; so does an OSError about a file
    (no permission, a full disk); every other exception keeps its traceback, because it is a fault of ours.
    Ctrl-C ends with 130, as shells expect."""
    try:
        with checking(False):
            main()
        processes.leave()
    except KeyboardInterrupt:
        say("interrupted")
        processes.leave()
        sys.exit(130)
    except Exception as error:
        about_a_file = isinstance(error, OSError) and error.filename is not None
        if not about_a_file and not isinstance(error, UserError):
            if processes.claimed("error"):  # this process only lost those that a mistake has ended
                sys.exit(2)
            raise
        if processes.claim("error"):
            text = f"{error.filename}: {error.strerror}" if about_a_file else error
            print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
