"""The two evaluation loops, reconstruction and generation, and how their results are printed and written.

Each loop returns one dict of plain numbers. MPJPE values are in millimetres: "MPJPE" by the published protocol (joints
recovered with the accumulated heading, root aligned a frame), "MPJPE_facing" in each frame's own facing frame (no heading drift).
Shapes: T frames, D features, J joints, N clips, E embedding.
"""
import json
import math
import os
import re
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from utils import parallel
from utils.datasets import joints_in_metres
from utils.errors import UserError
from utils.eval_utils import (
    acceleration_error,
    calculate_activation_statistics,
    calculate_diversity,
    calculate_frechet_distance,
    calculate_mpjpe,
    calculate_multimodality,
    confidence_interval,
    euclidean_distance_matrix,
    foot_skating,
    retrieval_batches,
    top_k_hits,
)
from utils.motion_process import SKELETONS, facing_joints, features_to_joints, recover_root

RETRIEVAL = 32  # clips a retrieval batch
TEXT_METRICS = re.compile(r"(R[123]|matching|clip_score)(_.*)?")  # how well clips fit their texts, under any protocol's name
DIVERSITY_PAIRS, DIVERSITY_PAIRS_SMALL = 300, 100


# ---- reconstruction ----------------------------------------------------------------------------------------------


def heading_error(motion, target, metres_per_unit=1.0):
    """Mean absolute error () of the accumulated heading (radians, half yaw) plus that of the root path (metres), of un-normalised
    features (B, T, D). Differentiable."""
    heading = (motion[..., 0].cumsum(1) - target[..., 0].cumsum(1)).abs().mean()
    path = (recover_root(motion)[1] - recover_root(target)[1])[..., [0, 2]].abs().mean()
    return heading + path * metres_per_unit


def padded_batches(store, lengths, device, batch_size):
    """Batches of a store's clips, from their first frame on, in the order of their ``lengths`` (frames; 0 leaves a clip out).

    Returns how many clips that is, and this process' turns of the batches: (first place in that order, clip numbers,
    un-normalised motion (B, T, D) with zeros behind each end, frames (B,)), the latter two on ``device``."""
    usable = [clip for clip in np.argsort(lengths, kind="stable") if lengths[clip] > 0]

    def batches():
        for first in parallel.turns(range(0, len(usable), batch_size)):
            clips = usable[first : first + batch_size]
            motions = [torch.from_numpy(store.frames(clip, 0, lengths[clip])) for clip in clips]
            batch = torch.nn.utils.rnn.pad_sequence(motions, batch_first=True).to(device)
            yield first, clips, batch, torch.as_tensor(lengths[clips], device=device)

    return len(usable), batches()


@torch.no_grad()
def reconstruct(ae, store, device="cpu", batch_size=32, max_frames=400):
    """[(original (T, D), reconstruction (T, D))] un-normalised, for every clip of a store, cut to a multiple of 4 frames
    (and to ``max_frames``), in the store's order; a clip of less than 4 frames has none. Clips of similar length run together;
    padding does not leak."""
    mean, std = (torch.as_tensor(value, device=device) for value in (store.mean, store.std))
    lengths = np.minimum(store.lengths, max_frames) // 4 * 4
    count, batches = padded_batches(store, lengths, device, batch_size)
    pairs, places = [None] * count, np.cumsum(lengths > 0) - 1
    for _, clips, batch, frames in batches:
        _, targets = ae.encode_targets((batch - mean) / std, frames)
        made = (ae.decode_targets(targets, frames) * std + mean).cpu()
        for clip, real, motion in zip(clips, batch.cpu(), made):
            pairs[places[clip]] = (real[: lengths[clip]], motion[: lengths[clip]])
    return parallel.merge(pairs)


@torch.no_grad()
def reconstruct_twice(ae, motions, mean, std, device="cpu", batch_size=32, frames=196, tail=4):
    """[(reconstruction (T, D) of the clip alone, and (T + tail, D) as the published evaluation makes it: the clip is encoded and
    decoded with zeros behind its end, up to ``frames``)] of un-normalised motions (T, D or more), each a multiple of 4 frames."""
    mean, std = (torch.as_tensor(value, device=device) for value in (mean, std))
    pairs = [None] * len(motions)
    for first in parallel.turns(range(0, len(motions), batch_size)):
        part = motions[first : first + batch_size]
        lengths = torch.tensor([len(motion) for motion in part], device=device)
        x = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)[..., : len(mean)].to(device)
        behind = torch.arange(x.shape[1], device=device) >= lengths[:, None]
        x = F.pad(((x - mean) / std).masked_fill(behind[..., None], 0), (0, 0, 0, frames - x.shape[1]))
        alone, padded = (ae.decode_targets(ae.encode_targets(x, ends)[1], ends) * std + mean for ends in (lengths, None))
        padded = F.pad(padded, (0, 0, 0, tail)).cpu()
        pairs[first : first + len(part)] = [(clip[:count], long[: count + tail])
                                            for clip, long, count in zip(alone.cpu(), padded, lengths.tolist())]
    return parallel.merge(pairs)


def of_one_length(motions, most=256):
    """Row numbers of motions (T_i, D) in groups of equal length, of ``most`` rows at most."""
    lengths = np.array([len(motion) for motion in motions])
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        yield from np.split(rows, range(most, len(rows), most))


def reconstruction_errors(pairs, spec):
    """{"MPJPE", "MPJPE_facing" (mm, mean over frames), "acceleration_error" (mm / frame^2)} of reconstruct's pairs."""
    totals, frames, num_joints = np.zeros(3), 0, spec.joints
    originals, made = zip(*pairs)
    for rows in of_one_length(originals):
        both = [torch.stack([motions[row] for row in rows]) for motions in (originals, made)]  # (B, T, D)
        real, fake = (features_to_joints(x, num_joints).numpy() for x in both)
        real_facing, fake_facing = (facing_joints(x, num_joints).numpy() for x in both)
        count, length = real.shape[:2]
        totals += count * length * np.array([
            calculate_mpjpe(real, fake).mean(), calculate_mpjpe(real_facing, fake_facing).mean(),
            acceleration_error(real, fake).mean() if length > 2 else 0.0])
        frames += count * length
    protocol, facing, acceleration = (totals / frames * 1000 * spec.metres_per_unit).tolist()
    return {"MPJPE": protocol, "MPJPE_facing": facing, "acceleration_error": acceleration}


def reconstruction_fid(evaluator, pairs):
    """FID of the reconstructions against the originals. UserError for fewer than two."""
    if len(pairs) < 2:
        raise UserError(f"FID needs 2 clips or more, the split has {len(pairs)} that can be used")
    real, made = (embed_all(evaluator, motions) for motions in zip(*pairs))
    return float(calculate_frechet_distance(*calculate_activation_statistics(real), *calculate_activation_statistics(made)))


# ---- generation --------------------------------------------------------------------------------------------------


def embed_all(evaluator, motions, batch_size=64, tail=0):
    """Embeddings (N, E) float64 of un-normalised motions, a list of (T_i, D); batches of similar length. ``tail``: so many
    frames at each one's end lie behind the clip (MatchingEvaluator.embed_motion)."""
    order = sorted(range(len(motions)), key=lambda i: len(motions[i]))
    out = [None] * len(motions)
    for first in parallel.turns(range(0, len(order), batch_size)):
        rows = order[first : first + batch_size]
        batch = torch.nn.utils.rnn.pad_sequence([torch.as_tensor(motions[row]) for row in rows], batch_first=True)
        lengths = torch.tensor([len(motions[row]) - tail for row in rows])
        found = evaluator.embed_motion(batch, lengths, tail) if tail else evaluator.embed_motion(batch, lengths)
        for row, embedding in zip(rows, found.double().cpu().numpy()):
            out[row] = embedding
    return np.stack(parallel.merge(out))


def retrieval_scores(text, motion, batches):
    """R-precision top 1-3 and matching score over retrieval batches (lists of row numbers, of one size)."""
    rows = np.stack(batches)
    distances = euclidean_distance_matrix(text[rows], motion[rows])  # (batches, rows, rows)
    top = top_k_hits(distances, 3).mean((0, 1)).tolist()
    return {"R1": top[0], "R2": top[1], "R3": top[2], "matching": float(np.trace(distances, axis1=1, axis2=2).sum() / rows.size)}


def diversity_score(made, rng):
    """Diversity of embeddings (N, E); numpy's global state, which it draws from, is seeded by ``rng``."""
    np.random.seed(int(rng.integers(2**31)))
    pairs = DIVERSITY_PAIRS if len(made) > DIVERSITY_PAIRS else min(DIVERSITY_PAIRS_SMALL, len(made))
    return float(calculate_diversity(made, pairs))


def distribution_scores(real, made, rng):
    """FID of ``made`` (N, E) against ``real`` (M, E), and the diversity of ``made``."""
    fid = calculate_frechet_distance(*calculate_activation_statistics(real), *calculate_activation_statistics(made))
    return {"FID": float(fid), "diversity": diversity_score(made, rng)}


def draw_batches(groups, rng, distinct):
    """Retrieval batches of 32 over shuffled rows, last one dropped; ``distinct``: no group twice in a batch."""
    if distinct:
        return retrieval_batches(groups, RETRIEVAL, rng)
    order = rng.permutation(len(groups))
    return [order[i : i + RETRIEVAL] for i in range(0, len(order) - RETRIEVAL + 1, RETRIEVAL)]


def evaluate_generation(evaluator, captions, real, generate, groups, repeats, seed, distinct=False, multimodal=None):
    """The generation protocol: ``repeats`` times generate a clip for each caption, embed, score.

    Args:
        evaluator: embed_text(captions) and embed_motion(motion, lengths).
        captions: one Caption a test clip; real: the un-normalised real motions, in the same order.
        generate: function(repeat) -> un-normalised motions, in the same order.
        groups: (N,) numbers; clips with one number share a caption.
        distinct: draw retrieval batches without repeated groups.
        multimodal: optional function(repeat) -> (texts, samples, T..) list of lists of motions, for multimodality.

    Returns {"real": {metric: value}, "generated": {metric: {"mean", "interval"}}, "repeats": [...]} .
    """
    text = evaluator.embed_text(captions).double().cpu().numpy()
    real_embeddings = embed_all(evaluator, real)
    rows, real_rows, motions = [], [], []
    for repeat in tqdm(range(repeats), desc="repeats", unit="repeat", disable=not parallel.is_first()):
        rng = np.random.default_rng([seed, repeat])
        motions = generate(repeat)
        made = embed_all(evaluator, motions)
        batches = draw_batches(groups, rng, distinct)
        if not batches:
            raise UserError(f"retrieval needs {RETRIEVAL} clips with different captions; the split has too few")
        scores = retrieval_scores(text, made, batches) | distribution_scores(real_embeddings, made, rng)
        if multimodal is not None:
            samples = [embed_all(evaluator, clips) for clips in multimodal(repeat)]
            np.random.seed(int(rng.integers(2**31)))
            scores["multimodality"] = float(calculate_multimodality(np.stack(samples), min(10, len(samples[0]))))
        rows.append(scores)
        real_rows.append(retrieval_scores(text, real_embeddings, batches)
                         | {"diversity": diversity_score(real_embeddings, rng)})
    return {"generated": summarise(rows), "real": summarise(real_rows), "repeats": rows, "motions": motions}


def summarise(rows):
    """{metric: {"mean", "interval"}} over repeats; the interval is the 95% half-width."""
    return {key: {"mean": float(np.mean([row[key] for row in rows])),
                  "interval": float(confidence_interval([row[key] for row in rows])) if len(rows) > 1 else 0.0}
            for key in rows[0]}


def without_text(scores):
    """Scores, nested in any way, without the figures that mean nothing for a generator which is told nothing."""
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


# ---- output ------------------------------------------------------------------------------------------------------


def format_table(rows, header, left=None):
    """A plain aligned table of strings: the first ``left`` columns (None: all) to the left, the others to the right."""
    cells = [list(map(str, row)) for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    aligned = [[cell.ljust(width) if left is None or i < left else cell.rjust(width) for i, (cell, width)
                in enumerate(zip(row, widths))] for row in cells]
    lines = ["  ".join(row).rstrip() for row in aligned]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def write_results(folder, name, results, table):
    """Print a table, append it to eval.log, and write the dict to <name>.json (atomically), both under ``folder``; once for all
    processes."""
    if not parallel.is_first():
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    print(table)
    with open(folder / "eval.log", "a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {name}\n{table}\n\n")
    write_json(folder / f"{name}.json", results)


def finite_or_none(value):
    """A copy of plain values, nested in any way, with None in the place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path, value):
    """Write JSON by way of a temporary name. JSON has no NaN or infinity: they are written as null."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    text = json.dumps(finite_or_none(value), indent=1, allow_nan=False, ensure_ascii=False)
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)
