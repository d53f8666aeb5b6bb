"""One way to tell a user about a mistake: one line on stderr and exit code 2."""
import sys


class UserError(ValueError):
    """A mistake of the user's (missing folder, wrong flag, damaged file). The message says what, where and what to do."""

    is_user_error = True


def run(main):
    """Call ``main()``. An exception that carries ``is_user_error`` becomes ``error: ...`` and exit code 2; so does
    one of the system's about a file (no right to write there, a disk that is full); every other one keeps its traceback,
    because it is a fault of ours. Ctrl-C ends with 130, as shells expect. Of several
    processes (torchrun) only one says what has stopped them all."""
    from utils import parallel  # late: it raises UserError itself

    try:
        main()
        parallel.leave()
    except KeyboardInterrupt:
        parallel.say("interrupted")
        parallel.leave()
        sys.exit(130)
    except Exception as error:
        about_a_file = isinstance(error, OSError) and error.filename is not None
        if not about_a_file and not getattr(error, "is_user_error", False):
            if parallel.claimed("error"):  # this process only lost those that a mistake has ended
                sys.exit(2)
            raise
        if parallel.claim("error"):
            text = f"{error.filename}: {error.strerror}" if about_a_file else error
            print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
