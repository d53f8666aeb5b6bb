"""Work that is done one piece at a time, in the order in which it was asked for: each can be followed and
cancelled."""
import itertools
import threading
import traceback

import torch

from utils.errors import UserError

KEPT = 20  # finished jobs that are still told of
MOST_WAITING = 20
FAULT = "a fault of the program, not yours; the terminal says more"


class Cancelled(Exception):
    """Ends the work of a job that was cancelled."""


class Job:
    """title: what it is; state: waiting, running, done, failed or cancelled; stage: what it does at present;
    done, total: its steps; error: why it failed, one line; result: what its work returned."""

    def __init__(self, number, title, work):
        self.number, self.title, self.work = number, title, work
        self.state, self.stage, self.error, self.result = "waiting", "", "", None
        self.done, self.total = 0, 0
        self.wanted = True

    def begin(self, stage, total=0):
        """Say what begins now, and how many steps it has (0 = unknown). Raises Cancelled."""
        self.stage, self.done, self.total = stage, 0, total
        self.check()

    def follow(self, steps):
        """Yields ``steps`` and counts them. Raises Cancelled."""
        for step in steps:
            self.check()
            yield step
            self.done += 1
        self.check()

    def check(self):
        """Raises Cancelled if the job is no longer wanted."""
        if not self.wanted:
            raise Cancelled

    def about(self):
        """What a page shows of it, as plain values."""
        return {name: getattr(self, name) for name in
                ("number", "title", "state", "stage", "done", "total", "error", "result")}


class Queue:
    """Does the work of its jobs in a thread of its own."""

    def __init__(self):
        self.jobs, self.numbers = [], itertools.count(1)
        self.changed = threading.Condition()
        self.open = True
        self.thread = threading.Thread(target=self._run, name="studio jobs", daemon=True)
        self.thread.start()

    def add(self, title, work):
        """A new Job, whose work is a function (Job) -> a plain value. UserError where too many wait."""
        with self.changed:
            if sum(job.state == "waiting" for job in self.jobs) >= MOST_WAITING:
                raise UserError(f"{MOST_WAITING} requests wait already; let some end, or cancel them")
            job = Job(next(self.numbers), title, work)
            ended = [other for other in self.jobs if other.state not in ("waiting", "running")]
            for other in ended[: max(len(ended) - KEPT, 0)]:
                self.jobs.remove(other)
            self.jobs.append(job)
            self.changed.notify_all()
        return job

    def cancel(self, number):
        """Cancel a job: at once where it waits, at its next step where it runs. UserError for one that is not
        known; one that has ended stays as it is."""
        with self.changed:
            job = next((job for job in self.jobs if job.number == number), None)
            if job is None:
                raise UserError(f"there is no job {number}")
            job.wanted = False
            if job.state == "waiting":
                job.state = "cancelled"

    def about(self):
        """What a page shows of the jobs, each with the ``ahead``: titles of the jobs that it waits for."""
        with self.changed:
            unfinished = [job for job in self.jobs if job.state in ("running", "waiting")]
            return [job.about() | {"ahead": [other.title for other in unfinished[: unfinished.index(job)]]
                                   if job.state == "waiting" else []} for job in self.jobs]

    def close(self, seconds=10):
        """Cancel everything, and wait until the thread has ended."""
        with self.changed:
            self.open = False
            for job in self.jobs:
                job.wanted = False
            self.changed.notify_all()
        self.thread.join(seconds)

    def _next(self):
        """The first job that waits, now running; None once the queue is closed."""
        with self.changed:
            while self.open:
                job = next((job for job in self.jobs if job.state == "waiting"), None)
                if job is not None:
                    job.state = "running"
                    return job
                self.changed.wait()
        return None

    def _run(self):
        while (job := self._next()) is not None:
            try:
                result, state = job.work(job), "done"
            except Cancelled:
                result, state = None, "cancelled"
            except Exception as error:
                result, state = None, "failed"
                job.error = sentence(error)
            with self.changed:
                job.result, job.state, job.work = result, state, None


def sentence(error):
    """What a user is told of an exception. Of one that is no mistake of theirs the terminal gets the
    traceback."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "the memory is full; ask for fewer variants, or a shorter motion"
    traceback.print_exception(error)
    return FAULT
