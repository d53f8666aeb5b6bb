"""What codes stand for: a dictionary from codes to the labels of what they encode, whatever was encoded.

N tokens (of motions, of windows of a sensor ...) in the order of time, each with
    indices (N,) or (N, A): its code, one number or one per axis,
    labels (N,): the name of what was seen,
    groups (N,): the clip or recording that it belongs to; only tokens of one group follow each other.
K codes in use, "numbered" from the most frequent one on; M labels in alphabetical order. Entropies are
plug-in estimates, in bits: too low, and information too high, where K is not small against N.
"""
import numpy as np

from utils.errors import UserError

FOLDS = 2  # parts into which groups are divided to read codes that a dictionary has not seen


def entropy_bits(counts):
    """Plug-in estimate of the entropy from counts (K,): too low where K is not small against their sum."""
    probabilities = np.asarray(counts, np.float64).ravel()
    probabilities = probabilities[probabilities > 0] / probabilities.sum()
    return float(-(probabilities * np.log2(probabilities)).sum()) + 0.0


def number_codes(indices):
    """The codes in use (K, A), the most frequent first, and the number (N,) of every token's code in it."""
    indices = np.asarray(indices).reshape(len(indices), -1)
    codes, numbers, counts = np.unique(indices, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return codes[order], rank[numbers.ravel()]


def count_labels(numbers, labels):
    """Names of the labels (M,) and how often each code has each of them, (K, M). UserError without tokens."""
    if not len(numbers):
        raise UserError("no token has a label, so there is no dictionary")
    names, columns = np.unique(np.asarray(labels), return_inverse=True)
    table = np.zeros((int(np.max(numbers)) + 1, len(names)), np.int64)
    np.add.at(table, (numbers, columns.ravel()), 1)
    return names, table


def dictionary(codes, names, table):
    """An entry per code (K, A) that has a label: {"code", "count", "share" of all tokens, "label": its most
    frequent one, "purity": the share of that label among the code's tokens, "labels": {name: count}}."""
    total, entries = int(table.sum()), []
    for code, row in zip(codes, table):
        count, best = int(row.sum()), int(row.argmax())
        if not count:
            continue
        order = [column for column in np.argsort(-row, kind="stable") if row[column]]
        entries.append({"code": code.tolist(), "count": count, "share": count / total,
                        "label": str(names[best]), "purity": float(row[best] / count),
                        "labels": {str(names[column]): int(row[column]) for column in order}})
    return entries


def summary(table):
    """How much codes say about labels, of counts (K, M): "purity" (of the average token's code), the same of
    "repeated" codes (a code that occurs once is pure by necessity; nan if all do), the share of the codes
    that are "pure", "chance" (always the most frequent label), "label_bits" (entropy of labels),
    "information_bits" (mutual information) and its share."""
    table = np.asarray(table, np.float64)
    total, often = table.sum(), table[table.sum(1) > 1]
    labels, codes = entropy_bits(table.sum(0)), entropy_bits(table.sum(1))
    information = labels + codes - entropy_bits(table)
    return {"tokens": int(total), "codes_used": int((table.sum(1) > 0).sum()), "labels": table.shape[1],
            "purity": float(table.max(1).sum() / total), "chance": float(table.sum(0).max() / total),
            "purity_repeated": float(often.max(1).sum() / often.sum()) if len(often) else float("nan"),
            "tokens_repeated": float(often.sum() / total), "label_bits": labels,
            "pure_codes": float((table.max(1) == table.sum(1))[table.any(1)].mean()),
            "information_bits": information, "information_share": information / labels if labels else 1.0}


def signatures(codes, names, table, most=5):
    """What is typical of each label: {"label", "tokens", "codes_used", "perplexity" of its codes, "own": the
    codes whose label it is, "top": its ``most`` most frequent codes, each {"code", "share" of the label's
    tokens, "lift": that share over the code's share of all tokens}}."""
    everywhere, rows = table.sum(1) / table.sum(), []
    own = np.bincount(table[table.any(1)].argmax(1), minlength=len(names))
    for name, column, count in zip(names, table.T, own):
        shares = column / column.sum()
        top = [place for place in np.argsort(-column, kind="stable")[:most] if column[place]]
        rows.append({"label": str(name), "tokens": int(column.sum()), "codes_used": int((column > 0).sum()),
                     "perplexity": 2.0 ** entropy_bits(column), "own": int(count),
                     "top": [{"code": codes[place].tolist(), "share": float(shares[place]),
                              "lift": float(shares[place] / everywhere[place])} for place in top]})
    return rows


def divergences(table):
    """Jensen-Shannon divergence (M, M) in bits between the labels' distributions over codes, of counts
    (K, M): 0 where two labels use codes alike, 1 where they share none."""
    shares = table / table.sum(0)
    alone = column_entropies(shares)
    middle = np.stack([column_entropies((shares + column[:, None]) / 2) for column in shares.T])
    return np.maximum(middle - (alone[:, None] + alone) / 2, 0)


def column_entropies(shares):
    """Entropy (M,) in bits of each column of probabilities (K, M)."""
    return -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(0)


def axis_divergences(digits, labels):
    """``divergences`` (M, M) by each axis of the codes alone, mean over the axes: unlike those of whole codes
    they tell labels apart whose codes hardly ever recur. digits: (N, A), labels: (N,)."""
    return np.mean([divergences(count_labels(number_codes(column)[1], labels)[1])
                    for column in np.asarray(digits).T], axis=0)


def positions(digits, labels):
    """Where labels lie on the axes: the mean digit (M, A) of each label's tokens less that of all tokens, in
    standard deviations of all (0 on an axis of one value). digits: (N, A), labels: (N,)."""
    digits, (names, rows) = np.asarray(digits, float), np.unique(labels, return_inverse=True)
    means = np.stack([digits[rows.ravel() == row].mean(0) for row in range(len(names))])
    spread = digits.std(0)
    return (means - digits.mean(0)) / np.where(spread > 0, spread, 1)


def read_labels(names, table, numbers):
    """The dictionary's label (n,) for codes with these numbers, "" for those that it does not have."""
    known = np.append(names[table.argmax(1)].astype(object), "")
    known[:-1][table.sum(1) == 0] = ""
    return known[np.where(np.asarray(numbers) < len(table), numbers, len(table))]


def fold_of(groups, seed=0, folds=FOLDS):
    """A part (N,) from 0 to folds - 1 for every token, the same for all tokens of a group, parts of about
    equally many groups. UserError for fewer groups than ``folds``."""
    kinds, places = np.unique(groups, return_inverse=True)
    if len(kinds) < folds:
        raise UserError(f"reading codes of other clips needs {folds} labelled clips, there are {len(kinds)}")
    return (np.random.default_rng(seed).permutation(len(kinds)) % folds)[places.ravel()]


def cross_reading(numbers, labels, groups, seed=0, folds=FOLDS):
    """Labels read from codes alone by a dictionary of other groups: {"covered": share of the tokens whose
    code it has, "accuracy_covered": of those, "accuracy": of all, where a code that it lacks is read as the
    most frequent label, "chance": of that label alone}. UserError for fewer groups than ``folds``."""
    numbers, labels, part = np.asarray(numbers), np.asarray(labels), fold_of(groups, seed, folds)
    covered, right, guessed = np.zeros((3, len(labels)), bool)
    for fold in range(folds):
        rest, mine = part != fold, part == fold
        names, table = count_labels(numbers[rest], labels[rest])
        found, usual = read_labels(names, table, numbers[mine]), names[table.sum(0).argmax()]
        covered[mine], guessed[mine] = found != "", labels[mine] == usual
        right[mine] = np.where(found == "", usual, found) == labels[mine]
    return {"covered": float(covered.mean()), "accuracy": float(right.mean()),
            "accuracy_covered": float(right[covered].mean()) if covered.any() else float("nan"),
            "chance": float(guessed.mean()), "folds": folds}


def steps_of(values, groups):
    """The values (n,) before and after every step from a token to the next one of its group."""
    values, groups = map(np.asarray, (values, groups))
    same = groups[1:] == groups[:-1]
    return values[:-1][same], values[1:][same]


def transitions(numbers, groups, codes=None, most=20):
    """How codes follow each other: {"steps", "stay": share of the steps that keep the code, "run_length":
    mean tokens in a row with one code, "entropy_bits" of the next code given this one, "next_bits" without
    it, "top": the ``most`` most frequent changes, each {"from", "to", "count", "probability" given "from"}}.
    Without ``codes`` (K, A), "from" and "to" are numbers. UserError where no token follows another."""
    before, after = steps_of(numbers, groups)
    if not len(before):
        raise UserError("no token follows another one of its clip, so there are no transitions")
    stay = before == after
    pairs, counts = np.unique(np.stack([before, after], 1), axis=0, return_counts=True)
    leaving, next_bits = np.bincount(before), entropy_bits(np.bincount(after))
    given = max(entropy_bits(counts) - entropy_bits(leaving), 0.0)
    changes = [place for place in np.argsort(-counts, kind="stable") if pairs[place, 0] != pairs[place, 1]]

    def shown(number):
        return int(number) if codes is None else codes[number].tolist()

    return {"steps": len(before), "stay": float(stay.mean()), "entropy_bits": given, "next_bits": next_bits,
            "run_length": float(len(numbers) / (len(numbers) - stay.sum())),
            "top": [{"from": shown(one), "to": shown(other), "count": int(count),
                     "probability": float(count / leaving[one])}
                    for (one, other), count in zip(pairs[changes[:most]], counts[changes[:most]])]}


def transition_matrix(numbers, groups, size):
    """Probabilities (size, size) of the next code, given this one, of the first ``size`` codes; what goes to
    other codes is missing from a row's sum. Rows of codes that nothing follows are 0."""
    before, after = steps_of(numbers, groups)
    leaving = np.maximum(np.bincount(before, minlength=size)[:size], 1)
    kept = (before < size) & (after < size)
    counts = np.bincount(before[kept] * size + after[kept], minlength=size * size).reshape(size, size)
    return counts / leaving[:, None]
