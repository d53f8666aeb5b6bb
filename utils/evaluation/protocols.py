"""The clips that an evaluation is made on, and tables of results that may stand side by side.

Shapes: N clips, T frames, D features.
"""
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from utils.data.datasets import (
    MAX_LENGTH,
    MotionStore,
    TextMotionDataset,
    all_captions,
    by_length,
    caption_groups,
    report_skipped,
    text_clips,
)
from utils.errors import UserError


class Drawn(NamedTuple):
    """One caption of each clip of a split, its length in frames (a multiple of 4), and the real motion (T,
    columns)."""

    captions: list
    frames: list
    real: list


class TextClips:
    """The text-to-motion clips of a split, ordered by length. ``columns``: features of a real frame; None =
    the essential ones. ``conditions``: only clips that have one of these (utils/data/conditions.py)."""

    def __init__(self, spec, split="test", num_workers=0, columns=None, conditions=None):
        self.store = MotionStore(spec, split, num_workers, columns)
        self.entries, dropped = text_clips(self.store)
        if conditions is not None:
            self.entries, dropped = conditions.select(self.store, self.entries, dropped)
        self.entries = by_length(self.entries)
        report_skipped(dropped, f"{spec.name}/{split} (text-to-motion)")
        self.left_out = len(dropped) + len(self.store.skipped)
        self.dataset = TextMotionDataset(self.store, self.entries, None)
        self.captions, self.groups = all_captions(self.entries), caption_groups(self.entries)

    def __len__(self):
        return len(self.entries)

    def whole(self, seed):
        """Every clip at its full length, with a caption that ``seed`` chooses."""
        rng = np.random.default_rng(seed)
        captions = [entry.captions[rng.integers(len(entry.captions))] for entry in self.entries]
        frames = [min(entry.end - entry.start, MAX_LENGTH) // 4 * 4 for entry in self.entries]
        return self._drawn(captions, [entry.start for entry in self.entries], frames)

    def draw(self, seed, repeat):
        """Every clip with a caption and a crop drawn as published (TextMotionDataset)."""
        rows, starts, frames = zip(*(self.dataset.draw(index, [seed, repeat, index])
                                     for index in range(len(self))))
        return self._drawn([self.captions[row] for row in rows], starts, frames)

    def _drawn(self, captions, starts, frames):
        real = [torch.from_numpy(self.store.frames(entry.clip, start, start + count))
                for entry, start, count in zip(self.entries, starts, frames)]
        return Drawn(captions, list(map(int, frames)), real)


def score_rows(scores):
    """Rows (metric, generated, real) of a table; the better figures follow, where there are some."""
    rows = [(key, "{mean:.4f} +- {interval:.4f}".format(**value), "{mean:.4f}".format(**scores["real"][key])
             if key in scores["real"] else "-") for key, value in scores["generated"].items()]
    if "better" in scores:
        rows += [(f"better: {key}", *rest) for key, *rest in score_rows(scores["better"])]
    return rows


def compare_results(paths):
    """Rows (file, metric, mean, interval) of several results of one kind. UserError where two differ in what
    makes figures comparable: kind, protocol, data set, split, number of clips, or the evaluators' files."""
    rows, first = [], None
    for path in map(Path, paths):
        identity, generated = read_result(path)
        first = first or identity
        different = [name for name in identity if identity[name] != first[name]]
        if different:
            raise UserError(f"{path} cannot stand in one table with {paths[0]}: its {different[0]} is "
                            f"{identity[different[0]]}, "
                            f"there it is {first[different[0]]}")
        rows += [(str(path), name, value["mean"], value["interval"]) for name, value in generated.items()]
    return rows


def read_result(path):
    """What makes a result comparable, and its {metric: {"mean", "interval"}}. UserError for another file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        identity = {name: content[name] for name in ("protocol", "kind", "dataset", "split", "clips")}
        identity["evaluators"] = sorted(content["evaluators"]["files"].values())
        return identity, content["scores"]["generated"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no result of evaluation_MARDM.py, or of evaluation_AE.py by a released "
                        "protocol "
                        f"({type(error).__name__}: {error})") from error
