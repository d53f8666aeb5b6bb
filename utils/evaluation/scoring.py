"""The scoring loop of all protocols: draw clips, generate, embed and score, and repeat.

The trained protocol scores every clip. A released protocol by default follows its published rule: batches of
32 from the shuffled split, the last one dropped, captions and crops drawn anew in each repeat, and, for the
essential one, the decoder's tail after generated clips where real ones have zeros. Since that rule is
questionable, the results hold a second set of metrics, ``better``: every clip, retrieval among all of them,
real and generated clips treated alike. Shapes: N clips, T frames, D features, E embedding.
"""
import re

import numpy as np
import torch
from tqdm import tqdm

from utils.data.specs import joints_in_metres
from utils.errors import UserError, is_first
from utils.evaluation import metrics

RETRIEVAL = 32  # clips per retrieval batch
TEXT_METRICS = re.compile(r"(R[123]|matching|clip_score)(_.*)?")  # how well clips fit texts, any protocol
DIVERSITY_PAIRS, DIVERSITY_PAIRS_SMALL = 300, 100
# three batches of texts, 30 clips per text
MULTIMODAL_TEXTS, MULTIMODAL_SAMPLES, MULTIMODAL_PAIRS = 3 * RETRIEVAL, 30, 10


def retrieval_scores(text, motion, batches):
    """R-precision top 1-3 and matching score over retrieval batches (lists of row numbers, of one size)."""
    rows = np.stack(batches)
    distances = metrics.euclidean_distance_matrix(text[rows], motion[rows])  # (batches, rows, rows)
    top = metrics.top_k_hits(distances, 3).mean((0, 1)).tolist()
    matching = float(np.trace(distances, axis1=1, axis2=2).sum() / rows.size)
    return {"R1": top[0], "R2": top[1], "R3": top[2], "matching": matching}


def fid_score(real, made):
    """FID of embeddings ``made`` (N, E) against ``real`` (M, E)."""
    return metrics.calculate_frechet_distance(*metrics.calculate_activation_statistics(real),
                                              *metrics.calculate_activation_statistics(made))


def diversity_score(made, rng):
    """Diversity of embeddings (N, E); ``rng`` seeds numpy's global state, which it draws from."""
    np.random.seed(int(rng.integers(2**31)))
    pairs = DIVERSITY_PAIRS if len(made) > DIVERSITY_PAIRS else min(DIVERSITY_PAIRS_SMALL, len(made))
    return metrics.calculate_diversity(made, pairs)


def both_sides(prefix, text, real, made, rows, batches, rng):
    """{prefix + "generated", prefix + "real": {metric: value}} of embeddings (N, E): FID and diversity over
    ``rows``, retrieval over ``batches``."""
    generated = retrieval_scores(text, made, batches) | {"FID": fid_score(real[rows], made[rows])}
    generated["diversity"] = diversity_score(made[rows], rng)
    return {f"{prefix}generated": generated, f"{prefix}real": retrieval_scores(text, real, batches)
            | {"diversity": diversity_score(real[rows], rng)}}


def draw_batches(count, rng, groups=None):
    """Retrieval batches of 32 from ``count`` shuffled rows, the last one dropped; with ``groups`` (N,) no
    group appears twice in a batch."""
    if groups is not None:
        return metrics.retrieval_batches(groups, RETRIEVAL, rng)
    order = rng.permutation(count)
    return [order[i : i + RETRIEVAL] for i in range(0, count - RETRIEVAL + 1, RETRIEVAL)]


def evaluate(suite, draw, generate, repeats, seed, groups=None, multimodal=None):
    """Scores of generated and of real clips over ``repeats``.

    Args:
        suite: EvaluatorSuite.
        draw: function(repeat) -> Drawn (utils/evaluation/protocols.py); one that returns the same object
            again is embedded once.
        generate: function(repeat, drawn) -> an un-normalised clip (T, D) for each drawn one; where
            ``suite.published_tail`` pairs of the clip and the clip with its tail (T + 4, D).
        groups: (N,) numbers, each at most once in a retrieval batch; None: batches are drawn freely.
        multimodal: optional function(repeat, drawn) -> for each of some texts, several clips (or pairs).

    Returns {"generated", "real": {metric: {"mean", "interval"}}, "repeats": [{side: {metric: value}}],
    "scored": number of clips in FID and diversity, "clips": the last repeat's generated clips (T, D)}, and
    for a released protocol "better": {"generated", "real", "rule"}. ``suite.tag`` names the metrics.
    UserError where the clips do not fill a retrieval batch.
    """
    rows, drawn, known = [], None, None
    for repeat in tqdm(range(repeats), desc="repeats", unit="repeat", disable=not is_first()):
        rng, before, drawn = np.random.default_rng([seed, repeat]), drawn, draw(repeat)
        check_retrieval(len(drawn.captions), groups)
        batches = draw_batches(len(drawn.captions), rng, groups)
        if drawn is not before:
            known = suite.text(drawn.captions), *suite.real(drawn.real)
        made = generate(repeat, drawn)
        row = score_repeat(suite, known, drawn, made, batches, rng)
        if multimodal is not None:
            samples = np.stack([suite.made(clips)[0] for clips in multimodal(repeat, drawn)])
            np.random.seed(int(rng.integers(2**31)))
            row["generated"]["multimodality"] = metrics.calculate_multimodality(
                samples, min(MULTIMODAL_PAIRS, samples.shape[1]))
        rows.append({side: {suite.tag(key): float(value) for key, value in scores.items()}
                     for side, scores in row.items()})
    scores = {side: summarise([row[side] for row in rows]) for side in rows[0]}
    better = {"better": {"generated": scores["better_generated"], "real": scores["better_real"],
                         "rule": "all clips, retrieval among all of them, real and generated clips treated "
                                 "alike"}} if suite.released else {}
    return {"generated": scores["generated"], "real": scores["real"], **better, "repeats": rows,
            "scored": sum(map(len, batches)) if suite.released else len(made), "clips": suite.clips_of(made)}


def check_retrieval(count, groups=None):
    """UserError unless ``count`` clips fill a retrieval batch, which has each of ``groups`` (N,) once."""
    if (count if groups is None else len(set(map(int, groups)))) < RETRIEVAL:
        different = "" if groups is None else " with different captions"
        raise UserError(f"retrieval needs {RETRIEVAL} clips{different}; the split of {count} clips has too "
                        "few")


def check_evaluation(suite, captions, groups=None, count=None):
    """UserError where ``evaluate`` would raise one, for ``count`` clips (default: one per caption) with these
    captions: too few clips for retrieval, or captions that the evaluators cannot embed."""
    suite.check_captions(captions)
    check_retrieval(len(captions) if count is None else count, groups)
    if not suite.released:
        suite.matching.text_features([caption.text for caption in captions])


def score_repeat(suite, known, drawn, made, batches, rng):
    """``both_sides`` of one repeat, and those of ``better`` by a released protocol, with CLIP-scores. known:
    embeddings of texts, of real clips as published, and of real clips treated like generated ones."""
    (text, real, real_alike), (published, alone) = known, suite.made(made)
    everything = np.arange(len(text))
    kept = np.concatenate(batches) if suite.released else everything
    scores = both_sides("", text, real, published, kept, batches, rng)
    if suite.released:
        scores |= both_sides("better_", text, real_alike, alone, everything, [everything], rng)
    if suite.contrast is not None:
        for side, motions in (("generated", suite.clips_of(made)), ("real", drawn.real)):
            cosines = suite.clip_scores(drawn.captions, motions)
            scores[side]["clip_score"] = cosines[kept].mean()
            scores[f"better_{side}"]["clip_score"] = cosines.mean()
    return scores


def summarise(rows):
    """{metric: {"mean", "interval"}} over repeats; the interval is the 95% half-width, 0 for one repeat."""
    return {key: {"mean": float(np.mean([row[key] for row in rows])),
                  "interval": float(metrics.confidence_interval([row[key] for row in rows]))
                  if len(rows) > 1 else 0.0} for key in rows[0]}


def without_text(scores):
    """Scores, nested in any way, without the metrics that mean nothing for an unconditional generator."""
    if isinstance(scores, list):
        return [without_text(row) for row in scores]
    if not isinstance(scores, dict):
        return scores
    return {key: without_text(value) for key, value in scores.items() if not TEXT_METRICS.fullmatch(key)}


def motion_quality(motions, spec):
    """{"foot_skating" (m/s), "acceleration" (m/s^2), "peak_jerk" (m/s^3)}: means over clips of un-normalised
    features (T, D), T >= 4. Clips without any foot contact do not count in foot skating."""
    values = []
    for rows in metrics.of_one_length(motions):
        joints = joints_in_metres(torch.stack([torch.as_tensor(motions[row]) for row in rows]), spec)
        values.append([metrics.foot_skating(joints, spec.fps, spec.layout),
                       metrics.acceleration(joints, spec.fps), metrics.peak_jerk(joints, spec.fps)])
    means = np.nanmean(np.concatenate(values, axis=1), axis=1)
    return dict(zip(("foot_skating", "acceleration", "peak_jerk"), means.tolist()))
