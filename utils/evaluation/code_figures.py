"""Pictures of what codes stand for, from the results of scripts.analyze_codes.

K codes, M labels, A axes, N tokens.
"""
import numpy as np
from matplotlib.colors import LogNorm

from utils.curves import STYLE, plt, save_figure
from utils.evaluation.dictionary import entropy_bits

LABELS = 24  # labels in a picture
COLOURS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8")  # of the most frequent labels; others are grey
TOP = 24  # codes in a picture's heat maps
POINTS = 4000  # codes in the map
ARROWS = 40  # transitions drawn in the map
PAIRS = 6  # axes in the matrix of axes
FINEST = 64  # levels of an axis that is drawn there
GREY = "0.72"


def draw_labels(found, divergences, positions, matrix, path):
    """How labels use codes, how alike they are, where they lie on a grid, and how codes follow each other.

    found: codes (K, A), names (M,) and table (K, M) of utils/evaluation/dictionary.py. divergences (M, M).
    positions (M, A), or None where axes have no order. matrix: probabilities (k, k) of transitions between
    the k most frequent codes. path: of the picture.
    """
    codes, names, table = found
    order = np.argsort(-table.sum(0), kind="stable")[:LABELS]
    order = np.sort(order)  # by name
    some = np.argsort(-table.sum(1), kind="stable")[:TOP]
    words = [code_name(code, place) for place, code in zip(some, codes[some])]
    labels = [str(name)[:28] for name in names[order]]
    share = table[some][:, order] / np.maximum(table[:, order].sum(0), 1)
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(2, 2, figsize=(19, 15), layout="constrained")
        heat(figure, panels[0, 0], share.T, (labels, words), "share of the label's tokens",
             "Labels and the most frequent codes", cmap="magma")
        heat(figure, panels[0, 1], divergences[np.ix_(order, order)], (labels, labels),
             "bits, 0 = alike, 1 = nothing in common",
             "Jensen-Shannon divergence of labels, mean over the axes", cmap="magma", vmin=0)
        heat(figure, panels[1, 0], matrix, ([f"#{place}" for place in range(len(matrix))],) * 2,
             "probability of the next code (column)", "Transitions of the most frequent codes", cmap="magma",
             vmin=0, vmax=1)
        if positions is None:
            panels[1, 1].axis("off")
        else:
            heat(figure, panels[1, 1], positions[order], (labels, list(range(positions.shape[1]))),
                 "standard deviations from the mean of all tokens", "Labels on the axes of the grid",
                 cmap="RdBu_r", vmin=-2, vmax=2)
        save_figure(figure, path)


def code_name(code, place):
    """A code of few axes by its digits, another by its place in the order of frequency."""
    return " ".join(map(str, code)) if len(code) <= 8 else f"#{place}"


def heat(figure, panel, values, labels, unit, title, **style):
    """A heat map with (row labels, column labels)."""
    image = panel.imshow(values, aspect="auto", interpolation="nearest", **style)
    figure.colorbar(image, ax=panel, label=unit)
    panel.grid(False)
    panel.set_title(title)
    panel.set_yticks(range(len(labels[0])), labels[0], fontsize=8)
    panel.set_xticks(range(len(labels[1])), labels[1], fontsize=8, rotation=90)


def draw_grid(vectors, entries, changes, axes, nearest, path):
    """Codes in space, their neighbours, and how tokens fill pairs of axes.

    vectors (K, d): of the codes, the most frequent first. entries: label and count of each, [(label or "",
    count)]. changes: the most frequent transitions, [(number, number, count)]. axes: (digits (N, A), sizes).
    nearest: "nearest" and "swap_mm" of ``topology``. path: of the picture.
    """
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(19, 8), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(1.2, 1))
        top = left.subplots(2, 1, height_ratios=(3.2, 1))
        draw_map(top[0], vectors, entries, changes)
        draw_nearest(top[1], *nearest)
        draw_pairs(right, *axes)
        save_figure(figure, path)


def components(vectors):
    """The first two principal components (K, 2) of vectors (K, d), and their shares of the variance."""
    centred = vectors - vectors.mean(0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    plane, variance = centred @ directions[:2].T, values**2
    return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1]))), np.pad(
        variance[:2] / max(variance.sum(), 1e-12), (0, 2 - len(variance[:2])))


def draw_map(panel, vectors, entries, changes):
    """A point per code, as large as it is frequent, in the colour of its label; lines for transitions."""
    plane, shares = components(vectors[:POINTS])
    labels, counts = zip(*entries[:POINTS])
    totals = {label: sum(count for other, count in entries if other == label) for label in {*labels} - {""}}
    coloured = sorted(totals, key=lambda label: (-totals[label], label))[: len(COLOURS)]
    for one, other, count in changes[:ARROWS]:
        if max(one, other) < len(plane):
            panel.annotate("", plane[other], plane[one], zorder=1, arrowprops={
                "arrowstyle": "->", "color": "0.35", "alpha": 0.6, "connectionstyle": "arc3,rad=0.15",
                "linewidth": 0.4 + 2.5 * count / changes[0][2]})
    sizes = 4 + 260 * np.array(counts) / max(counts)
    for label in ["", *coloured]:
        rows = [row for row, found in enumerate(labels)
                if found == label or (not label and found not in coloured)]
        colour = COLOURS[coloured.index(label)] if label else GREY
        panel.scatter(*plane[rows].T, sizes[rows], colour, alpha=0.75, linewidths=0, zorder=2,
                      label=label or ("other labels" if coloured else None))
    panel.set(xlabel=f"first principal component of the codes ({shares[0]:.0%} of their variance)",
              ylabel=f"second ({shares[1]:.0%})", title="Codes in use; arrows: frequent transitions")
    if coloured:
        for handle in panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5)).legend_handles:
            handle.set_sizes([30])


def draw_nearest(panel, nearest, swap_mm):
    """Displacement of joints by the rank of the code that takes a code's place."""
    if not nearest["ranks"]:  # a logarithmic axis needs something to show
        panel.axis("off")
        panel.text(0.5, 0.5, "one code in use: it has no neighbour", ha="center", va="center")
        return
    panel.plot(nearest["ranks"], nearest["mm"], "o-", label="its k-th nearest code in use")
    panel.axhline(swap_mm, color="C3", linewidth=1.6, label="a random other code")
    panel.set(xlabel="k", ylabel="joints move by (mm)", ylim=(0, None))
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter("{x:g}")
    panel.legend(fontsize=8)


def draw_pairs(figure, digits, sizes):
    """How often each pair of levels of two axes occurs (below the diagonal), and each level (on it), of the
    axes that are used most evenly. An axis of very many values, of a codebook, cannot be drawn so."""
    drawable = [axis for axis, size in enumerate(sizes) if size <= FINEST]
    if len(drawable) < 2:
        panel = figure.subplots()
        panel.axis("off")
        panel.text(0.5, 0.5, f"fewer than two axes of at most {FINEST} levels", ha="center", va="center")
        return
    even = {axis: entropy_bits(np.bincount(digits[:, axis])) / np.log2(max(sizes[axis], 2))
            for axis in drawable}
    chosen = sorted(sorted(drawable, key=lambda axis: -even[axis])[:PAIRS])
    panels = figure.subplots(len(chosen), len(chosen), squeeze=False)
    for i, row in enumerate(chosen):
        for j, column in enumerate(chosen):
            panel = panels[i, j]
            panel.grid(False)
            panel.tick_params(labelsize=7, labelleft=j == 0 and i > 0, labelbottom=i == len(chosen) - 1)
            if j > i:
                panel.axis("off")
                continue
            if i == j:
                panel.bar(np.arange(sizes[row]), np.bincount(digits[:, row], minlength=sizes[row]), width=1)
                panel.set_yticks([])
            else:
                counts = np.zeros((sizes[row], sizes[column]))
                np.add.at(counts, (digits[:, row], digits[:, column]), 1)
                panel.imshow(np.where(counts, counts, np.nan), aspect="auto", origin="lower", cmap="viridis",
                             norm=LogNorm(1, max(counts.max(), 2)), interpolation="nearest")
            if i == len(chosen) - 1:
                panel.set_xlabel(f"axis {column}", fontsize=8)
            if j == 0:
                panel.set_ylabel(f"axis {row}", fontsize=8)
    figure.suptitle("Tokens at each pair of levels (logarithmic; white: none)", fontsize=12)
