"""A page in your browser that makes clips: words on a timeline, 3D playback, sections replaced by new words,
files for other software. docs/studio.md shows it.

    python studio.py                            # then open http://127.0.0.1:7860/
    python studio.py --checkpoints_dir runs --port 8000 --ode_steps 8

It shows every generator in --checkpoints_dir and makes clips as sample.py and edit.py do, with the same
numbers for the same words, seed and settings, one request at a time. Only this machine reaches it, unless
--host says otherwise. Its clips lie in a temporary folder that goes when it ends: download what you keep.
"""
import gc
import signal
import tempfile
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

import edit
import sample
from models.chaining import count_windows
from utils import options
from utils.clips import DATASET, PRETRAINED
from utils.data.specs import spec_of_checkpoint
from utils.errors import MissingFile, UserError, only_check, run, say
from utils.files import RunFolder, read_checkpoint
from utils.studio.jobs import Queue
from utils.studio.requests import MOST_SECONDS, Trained, read_edit, read_motion, window_of
from utils.studio.server import address, is_local, open_server
from utils.studio.takes import Takes

TRAIN = ("No generator has been trained yet. `make demo` trains one in about half an hour, without data of "
         "yours; docs/training.md says how to train on a data set. Then load this page again.")


def parse_args(words=None):
    parser = options.make_parser(__doc__)
    options.add_common(parser, name=None)
    options.add_sampler(parser)
    parser.add_argument("--host", default="127.0.0.1",
                        help="address to listen on; any but this machine's own lets others use the studio")
    parser.add_argument("--port", type=options.number(int, 0, 65535), default=7860,
                        help="port to listen on; 0 = any that is free")
    return parser.parse_args(words)


def find_generators(checkpoints_dir):
    """([Trained] of the generators in checkpoints/<dataset>/<name>/ and in pretrained/, [why a run was left
    out])."""
    found, left_out = [], []
    pretrained = sorted(PRETRAINED.glob("*/*/model"), key=lambda path: path.parts[-3] != DATASET)
    for folder in (*sorted(Path(checkpoints_dir).glob("*/*/model")), *pretrained):
        runs, dataset, name = str(folder.parents[2]), *folder.parts[-3:-1]
        path = RunFolder(runs, dataset, name).checkpoint()
        try:
            trained = read_generator(path, runs, dataset, name) if path.is_file() else None
        except UserError as error:
            left_out.append(str(error))
            continue
        found += [trained] if trained else []
    return found, left_out


def read_generator(path, runs, dataset, name):
    """The Trained in a checkpoint, None for another kind of network. UserError where it cannot be used."""
    checkpoint = read_checkpoint(path, mapped=True)
    if not {"mardm", "ema_mardm"} & set(checkpoint):
        return None
    if not checkpoint.get("model_name"):
        raise UserError(f"{path} does not say which head it has, as released files do not; use sample.py "
                        "--model")
    kwargs = checkpoint.get("model_kwargs") or {}
    return Trained(runs, dataset, name, spec_of_checkpoint(checkpoint, dataset),
                   kwargs.get("cond_mode", "text"), list(checkpoint.get("actions") or []),
                   kwargs.get("distilled_cfg"))


class Studio:
    """What the page can ask for. Methods take the dict of a request and return plain values; UserError for
    what cannot be done."""

    def __init__(self, args, folder):
        self.args, self.takes, self.queue = args, Takes(folder), Queue()
        self.defaults = vars(sample.parse_args(["--name", "any"])) | vars(args)
        self.found, self.loaded = {}, (None, None)

    def models(self, _data=None):
        """The generators there are, and what a page begins with."""
        found, left_out = find_generators(self.args.checkpoints_dir)
        self.found = {(trained.dataset, trained.name): trained for trained in found}
        fits = [trained.dataset == self.args.dataset_name and self.args.name in (None, trained.name)
                for trained in self.found.values()]
        wanted = fits.index(True) if any(fits) else 0
        return {"models": [trained.about() for trained in found], "wanted": wanted, "left_out": left_out,
                "advice": "" if found else TRAIN, "seed": self.args.seed, "guidance": self.args.cfg,
                "longest": MOST_SECONDS}

    def state(self, _data=None):
        """What is being made, and what there is."""
        return {"jobs": self.queue.about(), "clips": self.takes.about()}

    def trained(self, data):
        """The Trained that a request names."""
        key = (str(data.get("dataset")), str(data.get("model")))
        if key not in self.found:
            self.models()
        if key not in self.found:
            raise UserError("this generator is not there (any more); choose another, or load the page again"
                            if self.found else TRAIN)
        return self.found[key]

    def generate(self, data):
        """Queue the making of new clips."""
        trained = self.trained(data)
        motion = read_motion(data, trained)
        self.takes.check_room(motion.variants)
        title = " / ".join(motion.prompts)[:120]
        job = self.queue.add(title, lambda job: self.make(job, trained, motion))
        return {"job": job.number}

    def edit(self, data):
        """Queue the replacing of a section of a clip."""
        trained, take = self.trained(data), self.takes.take(data.get("clip"))
        before = take.current
        if (before.spec.skeleton, before.spec.fps) != (trained.spec.skeleton, trained.spec.fps):
            raise UserError(f"the clip has the skeleton {before.spec.skeleton} at {before.spec.fps:g} frames "
                            f"a second, and {trained.name} makes {trained.spec.skeleton} at "
                            f"{trained.spec.fps:g}; choose the generator that made the clip")
        wanted = read_edit(data, trained, before.frames)
        title = f"clip {take.number}: {wanted.prompt}"[:120]
        job = self.queue.add(title, lambda job: self.change(job, trained, take.number, before, wanted))
        return {"job": job.number}

    def cancel(self, data):
        """Cancel a job."""
        self.queue.cancel(data.get("job"))
        return {}

    def undo(self, data):
        """Take the last edit of a clip back."""
        self.takes.undo(data.get("clip"))
        return {}

    def remove(self, data):
        """Forget a clip."""
        self.takes.remove(data.get("clip"))
        return {}

    def export(self, data):
        """Make a file of a clip; where it can be had."""
        path = self.takes.export(data.get("clip"), data.get("format"))
        return {"name": path.name, "address": f"files/{data['clip']}/{data['format']}"}

    def load(self, job, trained):
        """The pipeline, checkpoint and DatasetSpec of a Trained. One is kept, until another is wanted."""
        path = RunFolder(trained.runs, trained.dataset, trained.name).checkpoint()
        key = (path, path.stat().st_mtime_ns if path.is_file() else None)
        if key != self.loaded[0]:
            job.begin(f"loading {trained.name}")
            if self.loaded[0] is not None:
                self.loaded = (None, None)
                gc.collect()
                torch.cuda.empty_cache()
            self.loaded = (key, sample.load(self.wishes(trained), self.args.precision))
        return self.loaded[1]

    def wishes(self, trained, settings=None, **flags):
        """The command line of sample.py or edit.py that says the same as a request."""
        flags |= {"checkpoints_dir": trained.runs, "name": trained.name, "dataset_name": trained.dataset}
        if settings is not None:
            flags |= {"seed": settings.seed, "clean_feet": settings.clean_feet}
            flags |= {} if settings.guidance is None else {"cfg": settings.guidance}
        flags |= {} if trained.about()["fixed"] is None else {"cfg": None}
        return Namespace(**(self.defaults | flags))

    def make(self, job, trained, motion):
        """The work of ``generate``: the numbers of the new takes."""
        loaded = self.load(job, trained)
        words = {"text": "text_prompt", "action": "action"}.get(trained.condition)
        args = self.wishes(trained, motion.settings, repeat_times=motion.variants, chain=motion.chained,
                           **({words: motion.prompts} if words else {}))
        job.begin("reading the words")
        steps = args.time_steps
        if motion.chained:
            args.part_lengths = motion.frames
            chains = list(sample.chains(args, *loaded))
            steps *= sum(count_windows(frames, args.context) for one in chains for frames in one.frames)
            clips = sample.chained_clips(args, chains, loaded[2])
        else:
            args.motion_length = motion.frames[0]
            clips = sample.single_clips(args, *loaded)
        job.begin("generating", steps)
        return self.takes.add(follow(job, loaded[0], clips), loaded[2])

    def change(self, job, trained, number, before, wanted):
        """The work of ``edit``: the number of the take."""
        self.takes.check_current(number, before)
        loaded = self.load(job, trained)
        spec = loaded[2]
        words = {"text": "text_prompt", "action": "action"}.get(trained.condition)
        args = self.wishes(trained, wanted.settings, source_motion=str(before.path), keep_joints=(),
                           **({words: [wanted.prompt]} if words else {}))
        job.begin("reading the words")
        joints, features = edit.read_source(before.path, spec, longest=before.frames)
        first, end = window_of(wanted.start, wanted.stop, len(joints))
        inside = slice(first, end)
        edited = (np.arange(len(joints)) >= wanted.start) & (np.arange(len(joints)) < wanted.stop)
        clips = edit.edited_clips(args, (joints[inside], features[inside]), edited[inside], *loaded)
        job.begin("generating", args.time_steps)
        (name, new, _, facts), = follow(job, loaded[0], clips)
        whole = joints.copy()
        whole[inside] = new
        facts |= {"edited": [(wanted.start, wanted.stop)]}
        if len(new) < len(whole):  # codes are those of the window alone
            facts["codes"] = None
        times = f"{wanted.start / spec.fps:g}-{wanted.stop / spec.fps:g} s"
        caption = f"{before.caption} / {wanted.prompt} ({times})"
        facts |= {"parts": before.facts["parts"]} if "parts" in before.facts else {}
        self.takes.change(number, before, (name, whole, caption, facts), spec)
        return [number]


def follow(job, pipeline, clips):
    """The list of ``clips``, an iterator over what the pipeline makes; a job counts its iterations."""
    pipeline.iterations = job.follow
    try:
        return list(clips)
    finally:
        pipeline.iterations = None


def stop(*_signal):
    raise KeyboardInterrupt


def main():
    args = parse_args()
    if only_check() and not find_generators(args.checkpoints_dir)[0]:
        raise MissingFile(TRAIN)
    if options.checked():
        return
    if not is_local(args.host):
        say(f"warning: {args.host} can be reached from other machines; whoever reaches it can make, see and "
            "remove clips, without a password")
    signal.signal(signal.SIGTERM, stop)
    with suppress(KeyboardInterrupt), tempfile.TemporaryDirectory(prefix="studio-") as folder:
        studio = Studio(args, folder)
        try:
            server = open_server(studio, args.host, args.port)
            print(f"studio: {address(server)}   (Ctrl-C ends it, and removes its clips)", flush=True)
            server.serve_forever()
        finally:
            studio.queue.close()


if __name__ == "__main__":
    run(main)
