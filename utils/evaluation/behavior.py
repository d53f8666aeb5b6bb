"""What codes of inertial windows say about behaviour.

Shapes: N windows, T samples, C channels, L codes per window, K behaviours. A code is a text: its index, or
its indices of several axes with "-" between them.
"""
import math
from collections import Counter

import numpy as np

from utils.evaluation.codebook import entropy_bits
from utils.motion.inertial import random_rotations, turn_sensor

SMOOTHING = 0.01  # of counts, in the classifier that sees only codes
TIE = 1e-6  # what the frequency of a behaviour weighs, where counts do not decide
FLOAT_BITS, SENSOR_BITS = 32, 16  # of a number in memory; of what a sensor's converter delivers


def code_texts(indices):
    """Indices (N, L) or (N, L, axes) -> codes (N, L)."""
    indices = np.asarray(indices)
    rows = indices.reshape(*indices.shape[:2], -1)
    return np.array([["-".join(map(str, code)) for code in row] for row in rows.tolist()])


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


def dictionary(codes, labels, behaviors):
    """Code -> behaviour, as a list of dicts from the most frequent code on: "code", "behavior" (the one that
    shows it most), "purity" (share of the code's windows that show it), "windows", and "shown" {behaviour:
    windows}. codes (N, L): each counts for itself."""
    found = {}
    for row, label in zip(codes.tolist(), labels.tolist()):
        for code in row:
            found.setdefault(code, Counter())[behaviors[label]] += 1
    rows = []
    for code, shown in found.items():
        (behavior, most), total = shown.most_common(1)[0], sum(shown.values())
        rows.append({"code": code, "behavior": behavior, "purity": most / total, "windows": total,
                     "shown": dict(shown.most_common())})
    return sorted(rows, key=lambda row: (-row["windows"], row["code"]))


def dictionary_summary(rows, behaviors):
    """"purity": mean over windows; "pure_codes": share of the codes that stand for one behaviour only;
    "codes_per_behavior" {behaviour: codes of which it is the most frequent}; "most_used": the first row's
    code, behaviour and share of all windows."""
    total = sum(row["windows"] for row in rows)
    owners = Counter(row["behavior"] for row in rows)
    return {"codes": len(rows), "purity": sum(row["purity"] * row["windows"] for row in rows) / total,
            "pure_codes": sum(row["purity"] == 1 for row in rows) / len(rows),
            "codes_per_behavior": {name: owners[name] for name in behaviors},
            "most_used": {"code": rows[0]["code"], "behavior": rows[0]["behavior"],
                          "share": rows[0]["windows"] / total}}


def transitions(codes, recordings, starts, hop, most=20):
    """How codes follow each other in continuous recordings: pairs of a window and the one that begins ``hop``
    samples later in the same recording.

    Returns "pairs"; "stays", the share of pairs with one code; "entropy_bits" of the code that follows, and
    "entropy_given_code_bits" when the code before it is known (both plug-in estimates: too low for few
    pairs); and "top", the most frequent changes [{"from", "to", "pairs"}]. A window's codes count as one.
    """
    places = {(recording, start): row for row, (recording, start) in enumerate(zip(recordings.tolist(),
                                                                                  starts.tolist()))}
    whole = [" ".join(row) for row in codes.tolist()]
    pairs = Counter((whole[row], whole[places[recording, start + hop]])
                    for (recording, start), row in places.items() if (recording, start + hop) in places)
    total = sum(pairs.values())
    if not total:
        return {"pairs": 0}
    before, after = Counter(), Counter()
    for (first, second), count in pairs.items():
        before[first] += count
        after[second] += count
    joint, alone = entropy_bits(list(pairs.values())), entropy_bits(list(before.values()))
    changes = Counter({pair: count for pair, count in pairs.items() if pair[0] != pair[1]})
    return {"pairs": total, "stays": 1 - sum(changes.values()) / total,
            "entropy_bits": entropy_bits(list(after.values())), "entropy_given_code_bits": joint - alone,
            "top": [{"from": first, "to": second, "pairs": count}
                    for (first, second), count in changes.most_common(most)]}


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
    """{name: windows as another, worse or otherwise worn sensor gives them} of windows (N, T, C); std (C,):
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
