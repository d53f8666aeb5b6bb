"""The clips of a session: takes, each with what it was before it was edited. Their files lie in one folder.

Shapes: T frames, J joints.
"""
import itertools
import shutil
import threading
from pathlib import Path
from typing import NamedTuple

from utils.arrays import load_array
from utils.clips import check_finite, write_joints
from utils.data.specs import DatasetSpec
from utils.errors import UserError
from utils.export.formats import FORMATS, Clip, check_formats, export_clip
from utils.facts import write_facts
from utils.viewer.page import page_text, read_clip
from utils.visualize import render_video, safe_filename

MOST_TAKES = 200


class Version(NamedTuple):
    """key: no other version has it; path: its .npy file of joints (T, J, 3) in metres; caption: what the page
    calls it; facts: see utils/facts.py."""

    key: int
    path: Path
    caption: str
    facts: dict
    spec: DatasetSpec
    frames: int


class Take:
    """A clip; the last of its versions is the current one."""

    def __init__(self, number, title):
        self.number, self.title, self.versions = number, title, []

    @property
    def current(self):
        return self.versions[-1]

    def about(self):
        """What a page shows of it, as plain values."""
        key, _, caption, facts, spec, frames = self.current
        return {"number": self.number, "title": self.title, "caption": caption, "fps": spec.fps,
                "seconds": round(frames / spec.fps, 3), "key": key,
                "model": facts["run"], "dataset": facts["dataset"], "seed": facts["seed"],
                "repeat": facts["repeat"], "edits": len(self.versions) - 1,
                "parts": [[start / spec.fps, stop / spec.fps, prompt]
                          for start, stop, prompt in facts.get("parts", [])],
                "formats": formats_of(spec.layout)}


def formats_of(skeleton):
    """The names of the formats in which clips of a skeleton can be had."""
    names = ["mp4", "npy"]
    for name in FORMATS:
        try:
            check_formats([name], skeleton)
        except UserError:
            continue
        names.append(name)
    return names


class Takes:
    """All takes, safe to be used from several threads. A take that is not there is a UserError."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.takes, self.numbers, self.keys = {}, itertools.count(1), itertools.count(1)
        self.lock, self.drawing = threading.RLock(), threading.Lock()

    def about(self):
        """What a page shows of the takes."""
        with self.lock:
            return [take.about() for take in self.takes.values()]

    def take(self, number):
        """The Take of a number."""
        with self.lock:
            if type(number) is not int or number not in self.takes:
                raise UserError("this clip is not there any more")
            return self.takes[number]

    def check_room(self, more):
        """UserError where there is no room for so many more takes."""
        if len(self.takes) + more > MOST_TAKES:
            raise UserError(f"the studio keeps {MOST_TAKES} clips; remove some first")

    def add(self, clips, spec):
        """New takes of clips (name, joints (T, J, 3), caption, facts), as ``sample.write`` takes them; their
        numbers. UserError for joints that are not finite."""
        for _, joints, caption, _ in clips:
            check_finite(joints, caption)
        numbers = []
        for _, joints, caption, facts in clips:
            with self.lock:
                take = Take(next(self.numbers), caption)
                take.versions.append(self._written(take, joints, caption, facts, spec))
                self.takes[take.number] = take
                numbers.append(take.number)
        return numbers

    def _written(self, take, joints, caption, facts, spec):
        folder = self.folder / f"{take.number:03d}"
        stem = f"{take.number:03d}_{safe_filename(take.title)}" + "_edited" * bool(take.versions)
        path = write_joints(folder, stem, joints)
        write_facts(path, facts | {"fps": spec.fps})
        return Version(next(self.keys), path, caption, facts, spec, len(joints))

    def check_current(self, number, version):
        """The Take of a number. UserError where ``version`` is not its current one any more."""
        take = self.take(number)
        if take.current is not version:
            raise UserError("the clip was changed while this edit waited; edit it again")
        return take

    def change(self, number, before, clip, spec):
        """Make a clip, as for ``add``, the current version of a take whose current one is ``before``.
        UserError where that has changed meanwhile."""
        _, joints, caption, facts = clip
        check_finite(joints, caption)
        with self.lock:
            take = self.check_current(number, before)
            take.versions.append(self._written(take, joints, caption, facts, spec))

    def undo(self, number):
        """Make the version before the last edit the current one."""
        with self.lock:
            take = self.take(number)
            if len(take.versions) < 2:
                raise UserError("this clip has not been edited: there is nothing to undo")
            for file in self._files(take.versions.pop()):
                file.unlink()

    def remove(self, number):
        """Forget a take, and remove its files."""
        with self.lock:
            take = self.take(number)
            del self.takes[number]
            shutil.rmtree(take.current.path.parent, ignore_errors=True)

    def _files(self, version):
        return [file for file in version.path.parent.iterdir() if file.stem == version.path.stem]

    def page(self, numbers):
        """The viewer's page of the current versions of some takes, as text."""
        with self.lock:
            takes = [self.take(number) for number in numbers]
            clips = [read_clip(take.current.path)._replace(title=take.current.caption) for take in takes]
        if not clips:
            raise UserError("choose a clip to see")
        return page_text(f"Clip {numbers[0]}" if len(clips) == 1 else f"{len(clips)} clips", clips)

    def export(self, number, name):
        """The path of a take's file in a format, which is made when it is first asked for."""
        version = self.take(number).current
        joints, layout = load_array(version.path), version.spec.layout
        if name not in formats_of(layout):
            raise UserError(f"there is no such format as '{name}' for this clip; one of "
                            f"{', '.join(formats_of(layout))}")
        path = version.path.with_suffix(f".{name}")
        if path.exists():
            return path
        if name != "mp4":
            return export_clip(Clip(path.stem, joints, layout, version.spec.fps), path.parent, [name])[0]
        with self.drawing:  # one at a time, and each once: a video takes seconds of a core
            if not path.exists():
                render_video(joints, path, layout, version.spec.fps, version.caption)
        return path
