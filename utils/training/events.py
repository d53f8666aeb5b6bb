"""TensorBoard curves of a run that may be killed at any moment.

Every start writes an event file of its own. Values go to the file at once, and a checkpoint says how long the
files were when it was made; whoever resumes from it cuts off what came later, since that is written again.
"""
import time
from contextlib import suppress
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from utils.files import UnwritableFile, flush

PATTERN = "events.out.tfevents.*"


class Events:
    """The curves in a folder: those of earlier starts, and a new event file for this one.

    Args:
        folder: of the event files.
        lengths: {name: length in bytes} of the files that stay, as ``lengths`` returned them; None: all stay
            as they are. step: the last one that they hold; None in a new run.
    """

    def __init__(self, folder, lengths=None, step=None):
        self.folder = Path(folder)
        if lengths is not None:
            self.cut(lengths)
        number = time.time()
        while (path := self.folder / f"{PATTERN[:-1]}{number:.6f}").exists():
            number += 1e-6
        try:
            self.file = open(path, "wb")
        except OSError as error:
            raise UnwritableFile(f"cannot write {path}: {error.strerror}") from error
        self.records = RecordWriter(self.file)
        self.add(file_version="brain.Event:2")
        if step is not None:  # a TensorBoard that is open forgets what it has seen of later steps
            self.add(session_log=SessionLog(status=SessionLog.START), step=step + 1)

    def cut(self, lengths):
        """Leave of the folder's files what was there when ``lengths`` were taken."""
        for path in self.folder.glob(PATTERN):
            if path.name not in lengths:
                path.unlink()
            elif path.stat().st_size > lengths[path.name]:
                with open(path, "r+b") as file:
                    file.truncate(lengths[path.name])

    def add(self, **fields):
        """Write one event. UnwritableFile where that is not possible."""
        try:
            self.records.write(Event(wall_time=time.time(), **fields).SerializeToString())
            self.file.flush()
        except OSError as error:
            raise UnwritableFile(f"cannot write {self.file.name}: {error.strerror}") from error

    def write(self, values, step):
        """Write {tag: number} of a step."""
        for tag, value in values.items():
            self.add(summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]), step=step)

    def lengths(self):
        """{name: length in bytes} of all event files, which are on the disk when this returns."""
        flush(self.file.name)
        return {path.name: path.stat().st_size for path in sorted(self.folder.glob(PATTERN))}

    def close(self):
        with suppress(OSError):  # what could not be written, which ``add`` has said, is tried again
            self.file.close()
