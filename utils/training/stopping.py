"""Signals that ask a training to end: SIGINT (Ctrl-C) and SIGTERM (schedulers, torchrun)."""
import os
import signal
from contextlib import contextmanager

from utils.errors import state

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def before_training():
    """From now on SIGTERM ends this process as Ctrl-C does, and both say that there is nothing to save."""
    state.interrupted = "interrupted before the first step; the same command begins again where this one did"
    owner = os.getpid()

    def end(signum, _frame):
        if os.getpid() == owner:
            raise KeyboardInterrupt
        signal.signal(signum, signal.SIG_DFL)  # a worker that was forked from it
        os.kill(os.getpid(), signum)

    signal.signal(signal.SIGTERM, end)


class StopSignals:
    """While this context is active, a signal does not end the process but sets ``name``, the signal's. Within
    ``at_once`` it also raises KeyboardInterrupt, once."""

    name, _raising = None, False

    def __enter__(self):
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, _frame):
        self.name = signal.Signals(number).name
        if self._raising:
            self._raising = False
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self):
        """For long work that changes nothing which is saved."""
        self._raising = True
        try:
            if self.name:
                raise KeyboardInterrupt
            yield
        finally:
            self._raising = False
