"""run.json of a run folder: what was trained with what, and every start of it.

    {"format": 1, "script", "name", "dataset", "seed",
     "data": {"files", "bytes", "names_and_sizes", "lists": {file: hash}},     # see ``fingerprint``
     "parents": {"trained_on" | "evaluator" | "teacher" | ...: {"name", "hash" or "hashes" ...}},
     "starts": [{"began", "command", "arguments", "versions", "code", "machine", "processes", "from_step",
                 "to_step", "seconds", "ended"}]}

Hashes are the first 16 hex digits of a SHA-256. Times are local, with their offset.
"""
import hashlib
import os
import platform
import shlex
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

from utils.errors import UserError, is_first
from utils.files import file_hash, read_json
from utils.report import write_json
from utils.training import distributed
from utils.training.settings import code_version, machine

LISTS = ("train.txt", "val.txt", "test.txt", "Mean.npy", "Std.npy", "dataset.json", "labels.json",
         "train.npz", "val.npz", "test.npz")  # the last three: sets of inertial recordings
FOLDERS = ("new_joint_vecs", "texts")
PARENTS = ("trained_on", "decoder_of", "finetuned_from", "teacher")  # keys of a checkpoint
RUNNING = "running"


def fingerprint(root):
    """What tells one state of a data set from another, without reading the clips: names and sizes of all
    clips and texts as one hash, and a hash of each small file."""
    digest, count, total = hashlib.sha256(), 0, 0
    for folder in FOLDERS:
        path = Path(root) / folder
        found = os.scandir(path) if path.is_dir() else ()
        entries = sorted((entry.name, entry.stat().st_size) for entry in found)
        for name, size in entries:
            digest.update(f"{folder}/{name}\0{size}\n".encode())
        count, total = count + len(entries), total + sum(size for _, size in entries)
    lists = {name: file_hash(Path(root) / name) for name in LISTS if (Path(root) / name).is_file()}
    return {"files": count, "bytes": total, "names_and_sizes": digest.hexdigest()[:16], "lists": lists}


def git_state():
    """Version of the code; its commit, and a hash of what was changed since, where it is a git checkout."""
    state = {"version": code_version()}
    folder = Path(__file__).resolve().parent
    for key, command in (("commit", ["rev-parse", "HEAD"]), ("changes", ["diff", "HEAD"])):
        try:
            out = subprocess.run(["git", *command], capture_output=True, check=True, cwd=folder).stdout
        except (OSError, subprocess.CalledProcessError):
            return state
        state[key] = out.decode().strip() if key == "commit" else out and hashlib.sha256(out).hexdigest()[:16]
    return state | {"changes": state["changes"] or None}


def now():
    return datetime.now().astimezone().isoformat(timespec="seconds")


class RunRecord:
    """Keeps run.json of a folder, in the first process.

    Args:
        folder: RunFolder. args: parsed flags. root: folder of the data set. describe: what checkpoints keep
        of the model. parents: {what: {"name" ..., "hash" ...}} besides those in ``describe``.
    """

    def __init__(self, folder, args, root, describe, parents=None):
        self.folder, self.args, self.root = folder, args, root
        self.path = folder.root / "run.json"
        self.parents = {key: describe[key] for key in PARENTS if key in describe} | (parents or {})
        self.content = None

    def begin(self, step):
        """Append a start that goes on after ``step``."""
        if not is_first():
            return
        self.content, data = self._earlier(), fingerprint(self.root)
        if self.content["data"] not in (None, data):
            self.folder.log(f"the data set in {self.root} is not as it was when the run began (run.json)")
        self.content |= {"data": self.content["data"] or data, "parents": self.parents}
        self.began = time.monotonic()
        start = {"began": now(), "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
                 "arguments": vars(self.args),
                 "versions": {"python": platform.python_version(), "torch": torch.__version__,
                              "numpy": np.__version__}, "code": git_state(), "machine": machine(),
                 "processes": distributed.size(), "from_step": step}
        if self.content["starts"] and self.content["data"] != data:
            start["data"] = data
        self.content["starts"].append(start)
        self.note(step)

    def _earlier(self):
        """The record of the starts before this one; a damaged one is kept aside."""
        args = self.args
        fresh = {"format": 1, "script": Path(sys.argv[0]).name, "name": args.name,
                 "dataset": args.dataset_name, "seed": args.seed, "data": None, "parents": {}, "starts": []}
        if not self.path.is_file():
            return fresh
        try:
            content = read_json(self.path)
            if not isinstance(content["starts"], list):
                raise TypeError("starts")
            for start in content["starts"]:
                if start["ended"] == RUNNING:
                    start["ended"] = f"killed after step {start['to_step']}, which was the last one saved"
            return fresh | content
        except (UserError, KeyError, TypeError):
            aside = self.path.with_name(f"run.damaged-{time.time():.0f}.json")
            os.replace(self.path, aside)
            self.folder.log(f"{self.path} could not be read, and is {aside.name} now")
            return fresh

    def note(self, step, ended=RUNNING):
        """Write that the state of ``step`` has been saved, or how the start ended."""
        if self.content is None:
            return
        self.content["starts"][-1] |= {"to_step": step, "seconds": round(time.monotonic() - self.began, 1),
                                       "ended": ended}
        write_json(self.path, self.content)
