"""A user's mistake ends in one line on stderr and exit code 2, once for all processes of a run.

``processes`` is a single process until utils/training/distributed.py replaces it by the group of torchrun's.
"""
import sys
from contextlib import contextmanager
from types import SimpleNamespace

# only_check: of --check; the command writes nothing and stops once all is loaded. interrupted: what is said
# on Ctrl-C. at_end: functions () that ``run`` calls last, however a command ends.
state = SimpleNamespace(only_check=False, interrupted="interrupted", at_end=[])


class UserError(ValueError):
    """A user's mistake (missing folder, wrong flag, damaged file): what is wrong, where, and what to do.
    ``missing``: something does not exist, rather than being wrong or damaged."""

    missing = False


class MissingFile(UserError):
    """A file or folder that does not exist."""

    missing = True


class UnreadableFile(UserError):
    """A file that is missing, damaged or of another content. ``reason``: the message without the path;
    ``missing``: no such file."""

    def __init__(self, path, reason, missing=False):
        self.reason, self.missing = reason, missing
        super().__init__(f"{path} {reason}")


class OneProcess:
    """A process that runs alone; ``distributed.Group`` is one of several."""

    rank, size = 0, 1

    def claim(self, what):
        """True in the process that claims ``what`` first."""
        return True

    def claimed(self, what):
        """Whether any process has claimed ``what``."""
        return False

    def leave(self):
        """End together with the other processes."""


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


def one_line(text, most=1000):
    """A text as one line of at most about ``most`` characters, whatever a damaged file has put into it."""
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(text))
    return text if len(text) <= most else f"{text[:most]} ... ({len(text) - most:,} more characters)"


def run(main):
    """Call ``main()``. A UserError, or an OSError about a file (no permission, disk full), becomes one
    line and exit code 2, Ctrl-C 130; any other exception is a bug and keeps its traceback."""
    state.interrupted = "interrupted"
    try:
        with checking(False):
            main()
        processes.leave()
    except KeyboardInterrupt:
        say(state.interrupted)
        processes.leave()
        sys.exit(130)
    except Exception as error:
        about_a_file = isinstance(error, OSError) and error.filename is not None
        if not about_a_file and not isinstance(error, UserError):
            if processes.claimed("error"):  # a consequence: another process ended with a UserError
                sys.exit(2)
            raise
        if processes.claim("error"):
            text = f"{error.filename}: {error.strerror}" if about_a_file else error
            print(f"error: {one_line(text)}", file=sys.stderr)
        sys.exit(2)
    finally:
        for last in state.at_end:
            last()
