"""Code usage of an autoencoder, and whether neighbouring codes stand for similar motions.

Shapes: N tokens, A axes (dimensions of a grid, layers of a residual codebook, 1 for a plain codebook), L
tokens per window, d width of a target. Rates and entropies are in bits.
"""
import math

import numpy as np
import torch
from scipy.stats import spearmanr
from tqdm import tqdm

from utils.errors import UserError
from utils.evaluation.reconstruction import store_batches
from utils.motion.features import facing_joints
from utils.training import distributed

FRAMES = 4  # per token
WINDOW = 10  # tokens of a window in which one code is changed


def entropy_bits(counts):
    """Plug-in estimate of the entropy from counts (K,): too low where K is not small against their sum."""
    probabilities = np.asarray(counts, np.float64)
    probabilities = probabilities[probabilities > 0] / probabilities.sum()
    return float(-(probabilities * np.log2(probabilities)).sum()) + 0.0


def usage_statistics(indices, codebook_size):
    """Codes used, perplexity, entropy ... of indices (N,), or (N, A) with one per axis. The entropy's ceiling
    is log2 of the codebook size, or log2 N if that is less: N tokens cannot show more."""
    _, counts = np.unique(np.asarray(indices), axis=0, return_counts=True)
    entropy, tokens = entropy_bits(counts), int(counts.sum())
    ceiling = min(math.log2(codebook_size), math.log2(tokens))
    return {"codes_used": len(counts), "codebook_size": codebook_size,
            "codebook_usage": len(counts) / codebook_size, "perplexity": 2.0**entropy, "tokens": tokens,
            "bits_per_token": math.log2(codebook_size), "entropy_bits": entropy,
            "entropy_ceiling_bits": ceiling, "entropy_share": entropy / ceiling if ceiling else 1.0}


def usage_rows(usage, note=""):
    """Table rows (name, value, note) of ``usage_statistics``. A codebook size may exceed any float."""
    return [(key, f"{value:.6g}" if value < 1e300 else f"2^{math.log2(value):.1f}", note)
            for key, value in usage.items()]


def axis_statistics(digits, axis_sizes):
    """Digits (N, A) -> a dict per axis: size, used, entropy_bits, ceiling_bits (log2 size), counts (size)."""
    rows = []
    for column, size in zip(np.asarray(digits).T, axis_sizes):
        counts = np.bincount(column, minlength=size)
        rows.append({"size": size, "used": int((counts > 0).sum()), "entropy_bits": entropy_bits(counts),
                     "ceiling_bits": math.log2(size), "counts": counts.tolist()})
    return rows


def axes_summary(axes):
    """Sums over ``axis_statistics``: bits per token if each axis were coded by itself. An estimate of them
    needs far fewer tokens than one of the entropy of whole codes."""
    entropy, ceiling = (sum(axis[key] for axis in axes) for key in ("entropy_bits", "ceiling_bits"))
    return {"axes_entropy_bits": entropy, "axes_ceiling_bits": ceiling,
            "axes_entropy_share": entropy / ceiling if ceiling else 1.0}


@torch.no_grad()
def collect_indices(ae, store, device="cpu"):
    """Indices (N,) or (N, A), int64 on the CPU, of all tokens of a store. ``ae`` has a quantizer."""
    mean, std = (torch.as_tensor(value, device=device) for value in (store.mean, store.std))
    lengths, batches = store_batches(store, 32, device)
    if not len(lengths):
        raise UserError(f"no clip of the split has {FRAMES} frames")
    found = [None] * len(lengths)
    for rows, batch, frames in batches:
        for row, indices in zip(rows, ae.quantize((batch - mean) / std, frames).indices.cpu()):
            found[row] = indices[: lengths[row] // FRAMES]
    return torch.cat(distributed.gather_turns(found))


def code_axes(ae, indices):
    """axis_statistics of indices (N,) or (N, A), which are on the CPU; the quantizer may be elsewhere."""
    digits = ae.quantizer.to_digits(indices.to(next(ae.parameters()).device)).cpu()
    return axis_statistics(digits, ae.quantizer.axis_sizes)


def code_usage(ae, store, device="cpu"):
    """``usage_statistics`` and ``axes_summary`` of a split; {} for a continuous autoencoder."""
    if ae.codebook_size is None:
        return {}
    indices = collect_indices(ae, store, device)
    return usage_statistics(indices, ae.codebook_size) | axes_summary(code_axes(ae, indices))


def draw_windows(store, samples, rng):
    """(samples, 4 WINDOW, D) float32 un-normalised windows, from random places of random clips."""
    long_enough = np.flatnonzero(np.asarray(store.lengths) >= FRAMES * WINDOW)
    if len(long_enough) == 0:
        raise UserError(f"comparing codes needs a clip of {FRAMES * WINDOW} frames, the split has none")
    windows = []
    for clip in rng.choice(long_enough, samples):
        start = int(rng.integers(store.lengths[clip] - FRAMES * WINDOW + 1))
        windows.append(store.frames(clip, start, start + FRAMES * WINDOW))
    return torch.from_numpy(np.stack(windows))


def other_codes(codes, rng, tries=16):
    """For each of codes (N, d) a random different one of them (itself, if ``tries`` draws find none)."""
    picks = np.arange(len(codes))
    for _ in range(tries):
        same = (codes[picks] == codes).all(1).numpy()
        picks[same] = rng.integers(len(codes), size=int(same.sum()))
    return codes[picks]


@torch.no_grad()
def topology(ae, store, device="cpu", samples=256, seed=0, batch_size=64):
    """Mean joint displacement, in mm, when one token of a window changes: by one step along each axis (one
    level of a grid; the nearest other code of a codebook), and to the code of another random token. Measured
    in the facing frame, over the four frames of the changed token.

    Returns {"axes": [mm per axis], "step_mm", "swap_mm", "ratio": step / swap, "rank_correlation",
    "samples"}. A ratio near 0 means that codes are ordered by motion, near 1 that they are not. The ratio
    falls with the number of axes, since one of many matters little; the Spearman correlation of swaps' code
    distances and displacements does not.
    """
    rng, q = np.random.default_rng(seed), ae.quantizer
    mean, std = (torch.as_tensor(value, device=device) for value in (store.mean, store.std))
    windows = (draw_windows(store, samples, rng).to(device) - mean) / std
    targets = torch.cat([ae.encode_targets(part)[1] for part in windows.split(batch_size)])  # (samples, L, d)
    rows = torch.arange(samples, device=device)
    places = torch.from_numpy(rng.integers(2, WINDOW - 2, samples)).to(device)
    codes = targets[rows, places]

    def pose(new):
        """Joints (samples, 4, J, 3) of the changed tokens, whose codes are ``new`` (samples, d)."""
        changed = targets.clone()
        changed[rows, places] = new
        motion = torch.cat([ae.decode_targets(part) for part in changed.split(batch_size)]) * std + mean
        frames = places[:, None] * FRAMES + torch.arange(FRAMES, device=device)
        return facing_joints(motion[rows[:, None], frames], store.spec.joints)

    plain, mm = pose(codes), 1000 * store.spec.metres_per_unit

    def displacements(new):
        return (mm * (pose(new) - plain).norm(dim=-1)).mean((1, 2)).cpu().numpy()

    axes = [float(displacements(q.neighbour(codes, axis)).mean())
            for axis in tqdm(range(len(q.axis_sizes)), desc="axes", unit="axis")]
    others = other_codes(codes.cpu(), rng).to(device)
    swaps, distances = displacements(others), (others - codes).norm(dim=-1).cpu().numpy()
    step, swap = float(np.mean(axes)), float(swaps.mean())
    constant = np.ptp(swaps) == 0 or np.ptp(distances) == 0  # then there is no order
    correlation = float("nan") if constant else float(spearmanr(distances, swaps).statistic)
    return {"axes": axes, "step_mm": step, "swap_mm": swap, "ratio": step / swap if swap else float("nan"),
            "rank_correlation": correlation, "samples": samples}
