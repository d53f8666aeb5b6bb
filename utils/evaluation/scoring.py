"""The one scoring loop: clips are drawn, made, embedded and scored, as often as asked.

The trained protocol looks at every clip. Of the released ones the published rule is the default: batches of
32 from the shuffled split, the last one dropped, captions and crops drawn anew in each repeat, zeros after
real clips and the decoder's tail after generated ones. Where that is questionable the results hold a second
set of metrics, ``better``: every clip, retrieval among all of them, both sides treated alike. Shapes: N
clips, T frames, D features, E embedding.
"""
import re

import numpy as np
import torch
from tqdm import tqdm

from utils.data.specs import joints_in_metres
from utils.errors import UserError, is_first
from utils.evaluation.metrics import (
    calculate_activation_statistics,
    calculate_diversity,
    calculate_frechet_distance,
    calculate_multimodality,
    confidence_interval,
    euclidean_distance_matrix,
    foot_skating,
    of_one_length,
    retrieval_batches,
    top_k_hits,
)
from utils.motion.skeletons import SKELETONS

RETRIEVAL = 32  # clips per retrieval batch
# how well clips fit their texts, under any protocol's name
TEXT_METRICS = re.compile(r"(R[123]|matching|clip_score)(_.*)?")
DIVERSITY_PAIRS, DIVERSITY_PAIRS_SMALL = 300, 100
# three batches of texts, 30 clips per text
MULTIMODAL_TEXTS, MULTIMODAL_SAMPLES, MULTIMODAL_PAIRS = 3 * RETRIEVAL, 30, 10


# ---- metrics of embeddings ---------------------------------------------------------------------------------


def retrieval_scores(text, motion, batches):
    """R-precision top 1-3 and matching score over retrieval batches (lists of row numbers, of one size)."""
    rows = np.stack(batches)
    distances = euclidean_distance_matrix(text[rows], motion[rows])  # (batches, rows, rows)
    top = top_k_hits(distances, 3).mean((0, 1)).tolist()
    matching = float(np.trace(distances, axis1=1, axis2=2).sum() / rows.size)
    return {"R1": top[0], "R2": top[1], "R3": top[2], "matching": matching}


def fid_score(real, made):
    """FID of embeddings ``made`` (N, E) against ``real`` (M, E)."""
    return calculate_frechet_distance(*calculate_activation_statistics(real),
                                      *calculate_activation_statistics(made))


def diversity_score(made, rng):
    """Diversity of embeddings (N, E); numpy's global state, which it draws from, is seeded by ``rng``."""
    np.random.seed(int(rng.integers(2**31)))
    pairs = DIVERSITY_PAIRS if len(made) > DIVERSITY_PAIRS else min(DIVERSITY_PAIRS_SMALL, len(made))
    return calculate_diversity(made, pairs)


def both_sides(text, real, made, rows, batches, rng):
    """The metrics of generated and of real clips. text, real, made: embeddings (N, E); rows: those that FID
    and diversity look at; batches: those of retrieval."""
    generated = retrieval_scores(text, made, batches) | {"FID": fid_score(real[rows], made[rows])}
    generated["diversity"] = diversity_score(made[rows], rng)
    return generated, retrieval_scores(text, real, batches) | {"diversity": diversity_score(real[rows], rng)}


def draw_batches(count, rng, groups=None):
    """Retrieval batches of 32 over ``count`` shuffled rows, the last one dropped; with ``groups`` (N,) no
    group twice in a batch."""
    if groups is not None:
        return retrieval_batches(groups, RETRIEVAL, rng)
    order = rng.permutation(count)
    return [order[i : i + RETRIEVAL] for i in range(0, count - RETRIEVAL + 1, RETRIEVAL)]


# ---- the loop ----------------------------------------------------------------------------------------------


def evaluate(suite, draw, generate, repeats, seed, groups=None, multimodal=None):
    """``repeats`` times draw the clips, make one for each, embed and score.

    Args:
        suite: EvaluatorSuite.
        draw: function(repeat) -> Drawn (utils/evaluation/protocols.py).
        generate: function(repeat, drawn) -> un-normalised clips (T, D); where ``suite.published_tail`` pairs
            of a clip and the clip with the published tail (T + 4, D).
        groups: (N,) numbers, none of which a retrieval batch holds twice; None: batches are plain.
        multimodal: optional function(repeat, drawn) -> a list of clips, or pairs, for each of some texts.

    Returns {"generated", "real": {metric: {"mean", "interval"}}, "repeats": [{side: {metric: value}}],
    "scored": how many clips the rule of the protocol keeps, "clips": those of the last repeat}, and of a
    released protocol "better": {"generated", "real", "rule"}. Metrics are named by ``suite.tag``.
    """
    rows, drawn, known = [], None, None
    for repeat in tqdm(range(repeats), desc="repeats", unit="repeat", disable=not is_first()):
        rng, before, drawn = np.random.default_rng([seed, repeat]), drawn, draw(repeat)
        if drawn is not before:
            known = suite.text(drawn.captions), *suite.real(drawn.real)
        check_retrieval(len(drawn.captions), groups)
        made = generate(repeat, drawn)
        batches = draw_batches(len(drawn.captions), rng, groups)
        row = score_repeat(suite, known, suite.made(made), batches, rng)
        if suite.contrast is not None:
            add_clip_scores(row, suite, drawn, suite.clips_of(made), np.concatenate(batches))
        if multimodal is not None:
            samples = np.stack([suite.made(clips)[0] for clips in multimodal(repeat, drawn)])
            np.random.seed(int(rng.integers(2**31)))
            row["generated"]["multimodality"] = calculate_multimodality(samples,
                                                                        min(MULTIMODAL_PAIRS,
                                                                            samples.shape[1]))
        rows.append({side: {suite.tag(key): float(value) for key, value in scores.items()}
                     for side, scores in row.items()})
    scores = {side: summarise([row[side] for row in rows]) for side in rows[0]}
    better = {"better": {"generated": scores["better_generated"], "real": scores["better_real"],
                         "rule": "all clips, retrieval among all of them, real and generated clips treated "
                                 "alike"}
              } if suite.released else {}
    return {"generated": scores["generated"], "real": scores["real"], **better, "repeats": rows,
            "scored": sum(map(len, batches)) if suite.released else len(made), "clips": suite.clips_of(made)}


def check_retrieval(count, groups=None):
    """UserError unless ``count`` clips fill a retrieval batch, which has each of ``groups`` (N,) once."""
    if (count if groups is None else len(set(map(int, groups)))) < RETRIEVAL:
        different = "" if groups is None else " with different captions"
        raise UserError(f"retrieval needs {RETRIEVAL} clips{different}; the split, of {count}, has too few")


def check_evaluation(suite, captions, groups=None, count=None):
    """UserError where ``evaluate`` would raise one, for ``count`` clips (default: one per caption) with these
    captions: too few clips for retrieval, or captions that the evaluators cannot embed."""
    suite.check_captions(captions)
    check_retrieval(len(captions) if count is None else count, groups)
    if not suite.released:
        suite.matching.text_features([caption.text for caption in captions])


def score_repeat(suite, known, made, batches, rng):
    """{"generated", "real": {metric: value}} of one repeat, and "better_generated", "better_real" by a
    released protocol. known: embeddings of texts, of real clips, and of these treated like generated ones;
    made: of generated clips, as published and with nothing after their end."""
    text, real, real_alike = known
    everything, scores = np.arange(len(text)), {}
    kept = np.concatenate(batches) if suite.released else everything
    scores["generated"], scores["real"] = both_sides(text, real, made[0], kept, batches, rng)
    if suite.released:
        scores["better_generated"], scores["better_real"] = both_sides(text, real_alike, made[1], everything,
                                                                       [everything], rng)
    return scores


def add_clip_scores(row, suite, drawn, clips, kept):
    """The CLIP-score of both sides of a repeat."""
    for side, motions in (("generated", clips), ("real", drawn.real)):
        cosines = suite.clip_scores(drawn.captions, motions)
        row[side]["clip_score"], row[f"better_{side}"]["clip_score"] = cosines[kept].mean(), cosines.mean()


def summarise(rows):
    """{metric: {"mean", "interval"}} over repeats; the interval is the 95% half-width."""
    return {key: {"mean": float(np.mean([row[key] for row in rows])),
                  "interval": float(confidence_interval([row[key] for row in rows])) if len(rows) > 1
                  else 0.0}
            for key in rows[0]}


def without_text(scores):
    """Scores, nested in any way, without the metrics that mean nothing for a generator which is told
    nothing."""
    if isinstance(scores, list):
        return [without_text(row) for row in scores]
    if not isinstance(scores, dict):
        return scores
    return {key: without_text(value) for key, value in scores.items() if not TEXT_METRICS.fullmatch(key)}


def mean_foot_skating(motions, spec):
    """Mean horizontal speed (m/s) of feet in contact, over clips of un-normalised features."""
    skeleton, values = SKELETONS[spec.skeleton], []
    for rows in of_one_length(motions):
        joints = joints_in_metres(torch.stack([torch.as_tensor(motions[row]) for row in rows]), spec)
        values += foot_skating(joints, spec.fps, skeleton).tolist()
    return float(np.nanmean(values))
