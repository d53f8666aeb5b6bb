"""The clips that an evaluation is made on, and what its results say and may be compared with.

Shapes: N clips, T frames, D features.
"""
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from utils.data import datasets
from utils.errors import UserError
from utils.files import read_json
from utils.training.settings import code_version, machine, peak_memory_mb


class Drawn(NamedTuple):
    """For each clip of a split a caption, a length in frames (a multiple of 4), and the real clip (T, D)."""

    captions: list
    frames: list
    real: list


class TextClips:
    """The text-to-motion clips of a split, ordered by length. ``columns``: features of a real frame; None =
    the essential ones. ``conditions``: only clips that have one of these (utils/data/conditions.py).
    ``statistics``: as for MotionStore."""

    def __init__(self, spec, split="test", num_workers=0, columns=None, conditions=None, statistics=None):
        self.store = datasets.MotionStore(spec, split, num_workers, columns, statistics)
        self.entries, dropped = datasets.text_clips(self.store)
        if conditions is not None:
            self.entries, dropped = conditions.select(self.store, self.entries, dropped)
        self.entries = datasets.by_length(self.entries)
        datasets.report_skipped(dropped, f"{spec.name}/{split} (text-to-motion)")
        self.left_out = len(dropped) + len(self.store.skipped)
        self.dataset = datasets.TextMotionDataset(self.store, self.entries, None)
        self.captions = datasets.all_captions(self.entries)
        self.groups = datasets.caption_groups(self.entries)

    def __len__(self):
        return len(self.entries)

    @property
    def ids(self):
        """The id of every clip's motion."""
        return [self.store.ids[entry.clip] for entry in self.entries]

    def whole(self, seed):
        """Every clip at its full length, with a random caption."""
        rng = np.random.default_rng(seed)
        captions = [entry.captions[rng.integers(len(entry.captions))] for entry in self.entries]
        frames = [min(entry.end - entry.start, datasets.MAX_LENGTH) // 4 * 4 for entry in self.entries]
        return self._drawn(captions, [entry.start for entry in self.entries], frames)

    def draw(self, seed, repeat):
        """Every clip with a random caption and crop, as published (TextMotionDataset)."""
        rows, starts, frames = zip(*(self.dataset.draw(index, [seed, repeat, index])
                                     for index in range(len(self))))
        return self._drawn([self.captions[row] for row in rows], starts, frames)

    def _drawn(self, captions, starts, frames):
        real = [torch.from_numpy(self.store.frames(entry.clip, start, start + count))
                for entry, start, count in zip(self.entries, starts, frames)]
        return Drawn(captions, list(map(int, frames)), real)


def result_header(kind, suite, spec, split, args, path, checkpoint, weights):
    """What every result says: kind, evaluators, data set, network, seed, and code and machine at this moment.

    suite: EvaluatorSuite or None. args: ``model``, ``seed``. path, checkpoint: the network's file and its
    content; weights: their hash."""
    return {"kind": suite.tag(kind) if suite else kind, "protocol": suite and suite.protocol,
            "evaluators": suite and suite.describe(), "dataset": spec.name, "split": split,
            "model": checkpoint.get("model_name") or args.model, "checkpoint": path.name, "weights": weights,
            "steps": checkpoint.get("total_it"), "seed": args.seed, "code_version": code_version(),
            "machine": machine(), "peak_memory_mb": peak_memory_mb()}


def score_rows(scores):
    """Table rows (metric, generated, real); those of ``better`` follow, if there are any."""
    rows = [(key, "{mean:.4f} +- {interval:.4f}".format(**value), "{mean:.4f}".format(**scores["real"][key])
             if key in scores["real"] else "-") for key, value in scores["generated"].items()]
    if "better" in scores:
        rows += [(f"better: {key}", *rest) for key, *rest in score_rows(scores["better"])]
    return rows


def compare_results(paths):
    """Rows (file, metric, mean, interval) of several results. UserError where two differ in what makes them
    comparable: protocol, kind, data set, split, number of clips, or the evaluators' files."""
    rows, first = [], None
    for path in map(Path, paths):
        identity, generated = read_result(path)
        first = first or identity
        different = [name for name in identity if identity[name] != first[name]]
        if different:
            raise UserError(f"{path} cannot be compared with {paths[0]}: its {different[0]} is "
                            f"{identity[different[0]]}, there it is {first[different[0]]}")
        rows += [(str(path), name, *value) for name, value in generated.items()]
    return rows


def read_result(path):
    """What makes a result comparable, and {metric: (mean, interval)}, nan for null. UserError for another
    file."""
    try:
        content = read_json(path)
        identity = {name: content[name] for name in ("protocol", "kind", "dataset", "split", "clips")}
        identity["evaluators"] = sorted(content["evaluators"]["files"].values())
        generated = {name: tuple(math.nan if value[key] is None else float(value[key])
                                 for key in ("mean", "interval"))
                     for name, value in content["scores"]["generated"].items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no result of evaluation_MARDM.py, or of evaluation_AE.py by a released "
                        f"protocol ({type(error).__name__}: {error})") from error
    return identity, generated
