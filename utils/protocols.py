"""The published evaluation, and the clips that an evaluation is made on.

What the published code does is the default: batches of 32 from the shuffled split, the last one dropped, captions and crops drawn
anew in each repeat, zeros behind real clips and the decoder's tail behind generated ones. Where that is questionable the results
hold a second set of figures, ``better``: every clip, retrieval among all of them, both sides treated alike.
Shapes: N clips, T frames, D features, E embedding.
"""
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from utils import parallel
from utils.datasets import (
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
from utils.eval_utils import calculate_multimodality
from utils.evaluation import RETRIEVAL, distribution_scores, diversity_score, draw_batches, retrieval_scores, summarise

MULTIMODAL_TEXTS, MULTIMODAL_SAMPLES, MULTIMODAL_PAIRS = 3 * RETRIEVAL, 30, 10  # three batches of texts, 30 clips a text


class Drawn(NamedTuple):
    """One caption of each clip of a split, its length in frames (a multiple of 4), and the real motion (T, columns)."""

    captions: list
    frames: list
    real: list


class TextClips:
    """The text-to-motion clips of a split, ordered by length. ``columns``: features of a real frame; None = the essential ones.
    ``conditions``: only clips that have one of these (utils/conditions.py)."""

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
        rows, starts, frames = zip(*(self.dataset.draw(index, [seed, repeat, index]) for index in range(len(self))))
        return self._drawn([self.captions[row] for row in rows], starts, frames)

    def _drawn(self, captions, starts, frames):
        real = [torch.from_numpy(self.store.frames(entry.clip, start, start + count))
                for entry, start, count in zip(self.entries, starts, frames)]
        return Drawn(captions, list(map(int, frames)), real)


def evaluate_protocol(judges, draw, generate, repeats, seed, multimodal=None):
    """``repeats`` times draw the clips, make one for each, embed and score.

    Args:
        judges: Judges of a released protocol.
        draw: function(repeat) -> Drawn.
        generate: function(repeat, drawn) -> [(clip (T, D), clip with the published tail (T + 4, D))], un-normalised.
        multimodal: optional function(repeat, drawn) -> a list of such pairs for each of some texts.

    Returns {"generated", "real": {metric: {"mean", "interval"}}, "better": {"generated", "real"}, "repeats": [...],
    "scored": clips that the published rule keeps, "clips": the clips of the last repeat}. Metrics are named by ``judges.tag``.
    """
    rows = []
    for repeat in tqdm(range(repeats), desc="repeats", unit="repeat", disable=not parallel.is_first()):
        rng, drawn = np.random.default_rng([seed, repeat]), draw(repeat)
        made = generate(repeat, drawn)
        row = score_repeat(judges, drawn, made, rng)
        if multimodal is not None:
            samples = np.stack([judges.made(pairs)[0] for pairs in multimodal(repeat, drawn)])
            np.random.seed(int(rng.integers(2**31)))
            row["generated"]["multimodality"] = calculate_multimodality(samples, MULTIMODAL_PAIRS)
        rows.append({side: {judges.tag(key): float(value) for key, value in scores.items()} for side, scores in row.items()})
    scores = {side: summarise([row[side] for row in rows]) for side in rows[0]}
    return {"generated": scores["generated"], "real": scores["real"],
            "better": {"generated": scores["better_generated"], "real": scores["better_real"],
                       "rule": "all clips, retrieval among all of them, real and generated clips treated alike"},
            "repeats": rows, "scored": len(made) // RETRIEVAL * RETRIEVAL, "clips": [clip for clip, _ in made]}


def score_repeat(judges, drawn, made, rng):
    """{"generated", "real", "better_generated", "better_real": {metric: value}} of one repeat."""
    text = judges.text(drawn.captions)
    batches = draw_batches(np.arange(len(text)), rng, distinct=False)
    if not batches:
        raise UserError(f"retrieval needs {RETRIEVAL} clips; the split has {len(text)}")
    kept, everything = np.concatenate(batches), np.arange(len(text))
    scores = {}
    for prefix, real, fake, rows, groups in zip(("", "better_"), judges.real(drawn.real), judges.made(made), (kept, everything),
                                                (batches, [everything])):
        scores[f"{prefix}generated"] = retrieval_scores(text, fake, groups) | distribution_scores(real[rows], fake[rows], rng)
        scores[f"{prefix}real"] = retrieval_scores(text, real, groups) | {
            "diversity": diversity_score(real[rows], rng)}
    if judges.contrast is not None:
        for side, motions in (("generated", [clip for clip, _ in made]), ("real", drawn.real)):
            cosines = judges.clip_scores(drawn.captions, motions)
            scores[side]["clip_score"], scores[f"better_{side}"]["clip_score"] = cosines[kept].mean(), cosines.mean()
    return scores


def score_rows(scores):
    """Rows (metric, generated, real) of a table; the better figures follow, where there are some."""
    rows = [(key, "{mean:.4f} +- {interval:.4f}".format(**value), "{mean:.4f}".format(**scores["real"][key])
             if key in scores["real"] else "-") for key, value in scores["generated"].items()]
    if "better" in scores:
        rows += [(f"better: {key}", *rest) for key, *rest in score_rows(scores["better"])]
    return rows


def compare_results(paths):
    """Rows (file, metric, mean, interval) of several results of one kind. UserError where two differ in what makes figures
    comparable: kind, protocol, data set, split, number of clips, or the judges' files."""
    rows, first = [], None
    for path in map(Path, paths):
        identity, generated = read_result(path)
        first = first or identity
        different = [name for name in identity if identity[name] != first[name]]
        if different:
            raise UserError(f"{path} cannot stand in one table with {paths[0]}: its {different[0]} is {identity[different[0]]}, "
                            f"there it is {first[different[0]]}")
        rows += [(str(path), name, value["mean"], value["interval"]) for name, value in generated.items()]
    return rows


def read_result(path):
    """What makes a result comparable, and its {metric: {"mean", "interval"}}. UserError for another file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        identity = {name: content[name] for name in ("protocol", "kind", "dataset", "split", "clips")}
        identity["judge"] = sorted(content["judge"]["files"].values())
        return identity, content["scores"]["generated"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no result of evaluation_MARDM.py, or of evaluation_AE.py by a released protocol "
                        f"({type(error).__name__}: {error})") from error
