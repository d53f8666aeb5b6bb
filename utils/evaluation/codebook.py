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
from utils.evaluation.dictionary import FOLDS, count_labels, entropy_bits, fold_of, steps_of
from utils.evaluation.reconstruction import store_batches
from utils.motion.features import facing_joints
from utils.training import distributed

FRAMES = 4  # per token
WINDOW = 10  # tokens of a window in which one code is changed
RANKS = tuple(2**power for power in range(11))  # of the neighbours that a code is changed to: 1, 2, 4 ...
ASKED = 2048  # tokens, at most, whose label is read from the nearest code


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
def collect_clips(ae, store, device="cpu"):
    """The store's clips of at least FRAMES frames, places (n,) in it, and the indices of each one's tokens, a
    list of (L,) or (L, A), int64 on the CPU. ``ae`` has a quantizer."""
    mean, std = (torch.as_tensor(value, device=device) for value in (store.mean, store.std))
    lengths, batches = store_batches(store, 32, device)
    if not len(lengths):
        raise UserError(f"no clip of the split has {FRAMES} frames")
    found = [None] * len(lengths)
    for rows, batch, frames in batches:
        for row, indices in zip(rows, ae.quantize((batch - mean) / std, frames).indices.cpu()):
            found[row] = indices[: lengths[row] // FRAMES]
    return np.flatnonzero(np.asarray(store.lengths) >= FRAMES), distributed.gather_turns(found)


def collect_indices(ae, store, device="cpu"):
    """Indices (N,) or (N, A), int64 on the CPU, of all tokens of a store. ``ae`` has a quantizer."""
    return torch.cat(collect_clips(ae, store, device)[1])


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


class Windows:
    """Random windows of which one token is changed. ``codes`` (samples, d): of those tokens."""

    @torch.no_grad()
    def __init__(self, ae, store, device, samples, rng, batch_size=64):
        self.ae, self.spec, self.batch_size = ae, store.spec, batch_size
        self.mean, self.std = (torch.as_tensor(value, device=device) for value in (store.mean, store.std))
        windows = (draw_windows(store, samples, rng).to(device) - self.mean) / self.std
        self.targets = torch.cat([ae.encode_targets(part)[1] for part in windows.split(batch_size)])
        self.rows = torch.arange(samples, device=device)
        self.places = torch.from_numpy(rng.integers(2, WINDOW - 2, samples)).to(device)
        self.codes = self.targets[self.rows, self.places]
        self.plain = self.pose(self.codes)

    @torch.no_grad()
    def pose(self, new):
        """Joints (samples, 4, J, 3) of the changed tokens, whose codes are ``new`` (samples, d)."""
        changed = self.targets.clone()
        changed[self.rows, self.places] = new
        motion = torch.cat([self.ae.decode_targets(part) for part in changed.split(self.batch_size)])
        frames = self.places[:, None] * FRAMES + torch.arange(FRAMES, device=new.device)
        return facing_joints((motion * self.std + self.mean)[self.rows[:, None], frames], self.spec.joints)

    def displacements(self, new):
        """How far (samples,) joints move on average, in mm, when the codes become ``new``: in the facing
        frame, over the four frames of the token."""
        moved = (self.pose(new) - self.plain).norm(dim=-1).mean((1, 2))
        return (1000 * self.spec.metres_per_unit * moved).cpu().numpy()


def topology(ae, store, device="cpu", samples=256, seed=0, used=None):
    """Mean joint displacement of ``Windows``, in mm, when one token changes: by one step along each axis (one
    level of a grid; the nearest other code of a codebook), and to the code of another random token.

    Returns {"axes": [mm per axis], "step_mm", "swap_mm", "ratio": step / swap, "rank_correlation",
    "samples"}. A ratio near 0 means that codes are ordered by motion, near 1 that they are not. The ratio
    falls with the number of axes, since one of many matters little; the Spearman correlation of swaps' code
    distances and displacements does not. With codes that are in use, ``used`` (K, d), also "nearest":
    ``nearest_codes``.
    """
    rng, q = np.random.default_rng(seed), ae.quantizer
    windows = Windows(ae, store, device, samples, rng)
    axes = [float(windows.displacements(q.neighbour(windows.codes, axis)).mean())
            for axis in tqdm(range(len(q.axis_sizes)), desc="axes", unit="axis")]
    others = other_codes(windows.codes.cpu(), rng).to(device)
    swaps, distances = windows.displacements(others), (others - windows.codes).norm(dim=-1).cpu().numpy()
    step, swap = float(np.mean(axes)), float(swaps.mean())
    constant = np.ptp(swaps) == 0 or np.ptp(distances) == 0  # then there is no order
    correlation = float("nan") if constant else float(spearmanr(distances, swaps).statistic)
    found = {"axes": axes, "step_mm": step, "swap_mm": swap, "ratio": step / swap if swap else float("nan"),
             "rank_correlation": correlation, "samples": samples}
    return found if used is None else found | {"nearest": nearest_codes(windows, used)}


def nearest_used(codes, used, ranks):
    """For codes (n, d) those of the ``used`` ones (K, d) that are nearest, second nearest ..., without the
    code itself: their places in ``used`` (n, len(ranks)) for ranks from 1 to K - 1, and their distances."""
    # the faster way of computing distances leaves a code at a distance from itself
    distances = torch.cdist(codes.float(), used.float(), compute_mode="donot_use_mm_for_euclid_dist")
    distances, places = distances.masked_fill(distances == 0, torch.inf).topk(max(ranks), largest=False)
    chosen = torch.tensor(ranks, device=codes.device) - 1
    return places[:, chosen], distances[:, chosen]


def nearest_codes(windows, used):
    """How smoothly poses change from a code to the codes around it: {"ranks", "mm", "distance"}, means over
    ``Windows`` whose code becomes its nearest, second nearest, 4th, 8th ... of the ``used`` ones (K, d).
    Unlike a step along an axis, that is never a code which no motion has."""
    ranks = [rank for rank in RANKS if rank < len(used)]
    if not ranks:
        return {"ranks": [], "mm": [], "distance": []}
    places, distances = nearest_used(windows.codes, used, ranks)
    return {"ranks": ranks, "distance": distances.mean(0).tolist(),
            "mm": [float(windows.displacements(used[column]).mean()) for column in places.T]}


def nearest_reading(vectors, numbers, labels, groups, seed=0):
    """Labels read from the nearest code of other clips: {"accuracy", "tokens": how many were read, drawn at
    random}. vectors (K, d): of the codes; numbers (N,): of the tokens' codes; labels, groups (N,): see
    utils/evaluation/dictionary.py. A grid of many points repeats hardly any code; its neighbours still tell
    what a code stands for, if nearby codes stand for similar motions."""
    labels, part = np.asarray(labels), fold_of(groups, seed)
    asked = np.random.default_rng(seed).permutation(len(labels))[:ASKED]
    right = 0
    for fold in range(FOLDS):
        names, table = count_labels(numbers[part != fold], labels[part != fold])
        used, mine = np.flatnonzero(table.any(1)), asked[part[asked] == fold]
        nearest = torch.cdist(vectors[numbers[mine]].float(), vectors[used].float()).argmin(1).cpu().numpy()
        right += int((names[table[used].argmax(1)][nearest] == labels[mine]).sum())
    return {"accuracy": right / len(asked), "tokens": len(asked)}


def steps_in_code(codes, groups, seed=0):
    """How far codes (N, d) move from a token to the next one of its clip: {"step", "random": between two
    random tokens, "ratio"}, mean distances. groups (N,): the clip of each token."""
    before, after = steps_of(np.arange(len(codes)), groups)
    one, other = (codes[np.random.default_rng([seed, side]).integers(len(codes), size=len(codes))]
                  for side in (0, 1))
    step, random = (float((one - other).float().norm(dim=-1).mean())
                    for one, other in ((codes[before], codes[after]), (one, other)))
    return {"step": step, "random": random, "ratio": step / random if random else float("nan")}
