"""What codes of inertial windows say about behaviour.

Shapes: N windows, T samples, C channels, L codes per window, K behaviours.
"""
import math

import numpy as np
from scipy.spatial.distance import cdist

from utils.evaluation import dictionary
from utils.motion.inertial import random_rotations, turn_sensor

SMOOTHING = 0.01  # of counts, in the classifier that sees only codes
TIE = 1e-6  # what the frequency of a behaviour weighs, where counts do not decide
FLOAT_BITS, SENSOR_BITS = 32, 16  # of a number in memory; of what a sensor's converter delivers


def code_text(code):
    """A code, [int], as text."""
    return "-".join(map(str, code))


def code_texts(indices):
    """Indices (N, L) or (N, L, axes) -> codes (N, L)."""
    indices = np.asarray(indices)
    rows = indices.reshape(*indices.shape[:2], -1)
    return np.array([list(map(code_text, row)) for row in rows.tolist()])


class CodeClassifier:
    """The behaviour from codes alone, as symbols: the network's idea of which codes are near is not used.

    Counts, in training windows, how often each behaviour shows each code at each of the L places, and takes
    the likeliest behaviour if places were independent (naive Bayes). With one code per window that is the
    behaviour that showed the code most often. Where that decides nothing, as for a code that training never
    saw, it is the most frequent behaviour.
    """

    def __init__(self, codes, labels, count):
        self.shown = np.bincount(labels, minlength=count)  # (K,)
        self.tables = []
        for column in codes.T:
            table = {}
            for code, label in zip(column.tolist(), labels.tolist()):
                table.setdefault(code, np.zeros(count))[label] += 1
            self.tables.append(table)

    def predict(self, codes):
        """Codes (N, L) -> behaviours (N,)."""
        nothing, shown = np.zeros(len(self.shown)), np.log(np.maximum(self.shown, SMOOTHING))
        scores = np.tile(shown + TIE * self.shown / self.shown.sum(), (len(codes), 1))
        for table, column in zip(self.tables, codes.T):
            counts = np.stack([table.get(code, nothing) for code in column.tolist()])
            scores += np.log(counts + SMOOTHING) - shown
        return scores.argmax(1)

    def unseen(self, codes):
        """Share of codes (N, L) that no training window has at that place."""
        return float(np.mean([code not in table for table, column in zip(self.tables, codes.T)
                              for code in column.tolist()]))


def nearest_known(codes, known, vectors, known_vectors):
    """Codes (N, L) with those that ``known`` (M, L) lacks at their place replaced by the nearest that it has
    there, by what the decoder reads of them: vectors (N, L, d), known_vectors (M, L, d)."""
    columns = []
    for place, (column, there) in enumerate(zip(codes.T, known.T)):
        names, rows = np.unique(there, return_index=True)
        nearest = cdist(vectors[:, place], known_vectors[rows, place]).argmin(1)
        columns.append(np.where(np.isin(column, names), column, names[nearest]))
    return np.stack(columns, 1)


def meanings(indices, labels, behaviors):
    """What the codes of windows, indices (N, L) or (N, L, axes), stand for, each for itself: "summary",
    "entries" and "behaviors" ({name: its signature}) of utils/evaluation/dictionary.py."""
    tokens = np.asarray(indices)
    codes, numbers = dictionary.number_codes(tokens.reshape(len(labels) * tokens.shape[1], -1))
    names, table = dictionary.count_labels(numbers, np.asarray(behaviors)[labels].repeat(tokens.shape[1]))
    return {"summary": dictionary.summary(table), "entries": dictionary.dictionary(codes, names, table),
            "behaviors": {row["label"]: row for row in dictionary.signatures(codes, names, table)}}


def transitions(indices, recordings, starts, hop):
    """``dictionary.transitions`` from windows to those that begin ``hop`` samples later in the same
    recording, all codes of a window as one; None where no window has such a successor."""
    order = np.lexsort((starts, recordings))
    follows = (np.diff(recordings[order]) == 0) & (np.diff(starts[order]) == hop)
    if not follows.any():
        return None
    stretches = np.cumsum(np.append(True, ~follows))
    codes, numbers = dictionary.number_codes(np.asarray(indices)[order])
    return dictionary.transitions(numbers, stretches, codes)


def rates(codebook_size, tokens, spec, entropy):
    """What a window costs as codes, and how often that fits into its signals. ``entropy``: bits per code, as
    counted. The signals: all channels as 32-bit floats, as the network reads them; and six channels per
    sensor as 16-bit numbers, which is what a sensor delivers (body acceleration is computed from it)."""
    bits, channels = tokens * math.log2(codebook_size), len(spec.channels)
    floats = spec.window * channels * FLOAT_BITS
    sensor = spec.window * (channels * 2 // 3) * SENSOR_BITS
    return {"bits_per_window": bits, "entropy_bits_per_window": tokens * entropy,
            "bits_per_second": bits * spec.rate / spec.hop, "window_bits_float32": floats,
            "window_bits_sensor": sensor, "compression_float32": floats / bits,
            "compression_sensor": sensor / bits}


def disturbances(windows, std, seed):
    """{name: windows (N, T, C) as a worse sensor gives them, or one that is mounted differently}; std (C,):
    of the training windows, per channel."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(windows.shape).astype(np.float32) * std
    changed = {f"noise of {share:g} of each channel's std": windows + share * noise
               for share in (0.1, 0.3, 1)}
    changed |= {f"gain {gain:g}": windows * np.float32(gain) for gain in (0.8, 0.95, 1.05, 1.25)}
    for degrees in (5, 15, 45, 90):
        turned = turn_sensor(windows, random_rotations(degrees, len(windows), rng))
        changed[f"sensor turned by {degrees} degrees"] = turned
    return changed


def recall(predicted, labels, behaviors):
    """{behaviour: share of its windows that are recognised}; None for those that no window shows."""
    return {name: float((predicted[labels == row] == row).mean()) if (labels == row).any() else None
            for row, name in enumerate(behaviors)}
