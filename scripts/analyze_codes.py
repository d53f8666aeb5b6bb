"""How a trained autoencoder uses its codes, and whether neighbouring codes stand for similar motions.

    python -m scripts.analyze_codes --name FSQ_AE_High --dataset_name t2m

Code usage: codes used, their fraction of the codebook, perplexity, entropy and its upper bound, bits per
second; entropy and a histogram for every axis (a dimension of a grid, a layer of RVQ). Topology: the mean
joint displacement by one step along each axis (of a codebook: to the nearest other code) against that by a
random swap of codes, and by the nearest, second nearest ... code that is in use. Where the data set has a
labels.json, also what codes stand for: a dictionary (code -> label, with its purity, also on clips that it
has not seen), what is typical of each label, and how codes follow each other; clips of several labels do not
count, since nobody says which frames belong to which. Prints a table, and writes analyze_codes.json and .png,
analyze_codes_grid.png and analyze_codes_labels.png into the run's eval/.
"""
import numpy as np
import torch

from models.AE import AE_models
from models.loading import load_autoencoder, weights_hash
from utils import options
from utils.curves import STYLE, plt, save_figure
from utils.data.datasets import MotionStore, read_labels, short_label, statistics_of
from utils.data.specs import get_spec
from utils.errors import UserError, run, say
from utils.evaluation import code_figures, codebook, dictionary
from utils.files import RunFolder
from utils.report import format_table, of_split, write_results
from utils.training.settings import code_version, machine, pick_device, seed_everything

MANY = 64  # axes of more values than this are drawn as curves of sorted frequencies, not as rows of an image
LISTED = 24  # axes in the printed table
SHOWN = 10  # codes and labels there


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="AE", check=False)
    options.add_workers(parser)
    options.add_trained(parser, AE_models, "autoencoder")
    options.add_split(parser)
    parser.add_argument("--samples", type=options.positive_int, default=256, help="tokens changed per axis")
    options.add_label_separator(parser)
    parser.add_argument("--entries", type=options.positive_int, default=200,
                        help="codes of the dictionary that the JSON lists, the most frequent ones")
    return parser.parse_args()


class Tokens:
    """The tokens of a split's clips: ``indices`` (N,) or (N, A); ``groups`` (N,), the clip of each; the
    ``codes`` (K, 1 or A) in use and the ``numbers`` (N,) of the tokens'; ``digits`` (K, axes) and ``vectors``
    (K, d) of the codes."""

    def __init__(self, ae, store, device):
        clips, found = codebook.collect_clips(ae, store, device)
        self.names = [store.ids[clip] for clip in clips]
        self.groups = np.repeat(np.arange(len(clips)), [len(indices) for indices in found])
        self.indices = torch.cat(found)
        self.codes, self.numbers = dictionary.number_codes(self.indices)
        codes = torch.from_numpy(self.codes).to(device)
        codes = codes if self.indices.ndim == 2 else codes[:, 0]
        self.digits = ae.quantizer.to_digits(codes).cpu().numpy()
        with torch.no_grad():
            self.vectors = ae.quantizer.decode_indices(codes)

    def labels(self, known, separator=""):
        """The label of each token, (N,) of str, "" where its clip has none or several. known: {id: [label]};
        separator: as ``short_label`` has it."""
        known = {name: short_label(labels[0], separator) for name, labels in known.items()
                 if len(labels) == 1}
        return np.array([known.get(name, "") for name in self.names], object)[self.groups]


def read_dictionary(tokens, labels, seed, entries):
    """What the labels (N,) of Tokens say about their codes: (results, names (M,), table (K, M))."""
    told = np.flatnonzero(labels != "")
    numbers, labels, groups = tokens.numbers[told], labels[told], tokens.groups[told]
    names, table = dictionary.count_labels(numbers, labels)
    table = np.pad(table, ((0, len(tokens.codes) - len(table)), (0, 0)))
    found, digits = dictionary.dictionary(tokens.digits, names, table), tokens.digits[numbers]
    clips, reading, nearest = len(np.unique(groups)), None, None
    if clips >= dictionary.FOLDS:
        reading = dictionary.cross_reading(numbers, labels, groups, seed)
        nearest = codebook.nearest_reading(tokens.vectors, numbers, labels, groups, seed)
    return {"clips": clips, "clips_left_out": len(tokens.names) - clips, "names": names.tolist(),
            "summary": dictionary.summary(table), "reading": reading, "nearest_reading": nearest,
            "entries": found[:entries], "entries_in_all": len(found),
            "signatures": dictionary.signatures(tokens.digits, names, table),
            "divergences": dictionary.axis_divergences(digits, labels).tolist(),
            "positions": dictionary.positions(digits, labels).tolist()}, names, table


def dictionary_rows(found):
    """Table rows of ``read_dictionary``."""
    total, reading, near = found["summary"], found["reading"], found["nearest_reading"]
    rows = [("labels", total["labels"], f"{found['clips']} clips with one label, "
             f"{found['clips_left_out']} without or with several"),
            ("purity", f"{total['purity']:.3f}", f"of the average token's code; {total['chance']:.3f} by the "
             "most frequent label"),
            ("purity_repeated", f"{total['purity_repeated']:.3f}", "of codes that occur more than once, "
             f"{total['tokens_repeated']:.0%} of the tokens"),
            ("information_bits", f"{total['information_bits']:.3f}", f"of {total['label_bits']:.3f} bits "
             "of a label, as counted")]
    if reading:
        rows.append(("label from code alone", f"{reading['accuracy']:.3f}", "of tokens of other clips; "
                     f"{reading['covered']:.0%} have a known code, {reading['accuracy_covered']:.3f} of them "
                     f"right; {reading['chance']:.3f} by the most frequent label"))
        rows.append(("label from nearest code", f"{near['accuracy']:.3f}", f"of {near['tokens']} tokens, by "
                     "the nearest code of other clips"))
    rows += [(f"code {' '.join(map(str, entry['code'][:8]))}{' ...' * (len(entry['code']) > 8)}",
              f"{entry['purity']:.2f}", f"{entry['label']}, {entry['count']} tokens")
             for entry in found["entries"][:SHOWN]]
    rows += [(f"label {row['label'][:30]}", row["codes_used"], f"codes in {row['tokens']} tokens, "
              f"perplexity {row['perplexity']:.1f}, the label of {row['own']} codes")
             for row in sorted(found["signatures"], key=lambda row: -row["tokens"])[:SHOWN]]
    return rows


def make_table(results):
    axes, moved = results["axes"], results["topology"]
    rows = codebook.usage_rows(results["codes"])
    rows += [(name, f"{table[name]:.4g}", note) for table, name, note in (
        (results, "bits_per_second", f"{results['tokens_per_second']:g} tokens per second"),
        (results, "entropy_per_second", "bits, of whole codes as counted"),
        (moved, "step_mm", "mean joint displacement by one step, all axes"),
        (moved, "swap_mm", "by a random other code"), (moved, "ratio", "step / swap"),
        (moved, "rank_correlation", "of the distance of swapped codes with that displacement"))]
    rows += [(f"axis {i}", f"{mm:.4g} mm per step", f"{axis['used']} of {axis['size']} used, entropy "
              f"{axis['entropy_bits']:.3f} of {axis['ceiling_bits']:.3f} bits")
             for i, (axis, mm) in enumerate(zip(axes[:LISTED], moved["axes"]))]
    if len(axes) > LISTED:
        rows.append((f"axes {LISTED} to {len(axes) - 1}", "in the JSON", ""))
    near, steps, path = moved["nearest"], results["transitions"], results["steps_in_code"]
    rows += [(f"nearest code in use, k = {rank}", f"{mm:.4g} mm", f"{mm / moved['swap_mm']:.3f} of a random "
              "other code's") for rank, mm in zip(near["ranks"], near["mm"]) if moved["swap_mm"]]
    rows += [("code stays", f"{steps['stay']:.3f}", f"of the steps; {steps['run_length']:.2f} tokens a run"),
             ("next code, given this one", f"{steps['entropy_bits']:.3f}",
              f"bits, {steps['next_bits']:.3f} without it, as counted"),
             ("step in code space", f"{path['ratio']:.3f}",
              "from a token to the next / between random tokens")]
    if results["dictionary"]:
        rows += dictionary_rows(results["dictionary"])
    return format_table(rows, ("metric", "value", ""))


def draw_usage(panel, axes):
    """Frequency of every value of every axis, 1 = even use; of large axes sorted, as curves."""
    label, largest = "frequency, 1 = even use", max(axis["size"] for axis in axes)
    frequencies = [np.array(axis["counts"]) / sum(axis["counts"]) * axis["size"] for axis in axes]
    if largest > MANY:
        for i, values in enumerate(frequencies):
            panel.plot(np.arange(1, len(values) + 1), np.sort(values)[::-1], label=f"axis {i}")
        panel.axhline(1, color="0.5", linewidth=0.8)
        panel.set_yscale("symlog", linthresh=0.1)
        panel.set(xlabel="codes, most frequent first", ylabel=label, title="Code usage")
        if 1 < len(axes) <= 12:
            panel.legend(fontsize=8)
        return
    rows = np.full((len(axes), largest), np.nan)
    for row, values in zip(rows, frequencies):
        row[: len(values)] = values
    image = panel.imshow(rows, aspect="auto", vmin=0, vmax=2, cmap="RdBu_r", interpolation="nearest")
    plt.colorbar(image, ax=panel, label=label, extend="max")
    panel.grid(False)
    panel.set(xlabel="level", ylabel="axis", title="Level usage", yticks=ticks(len(axes)),
              xticks=ticks(largest))


def ticks(count, most=12):
    return np.arange(0, count, max(1, -(-count // most)))


def draw_topology(panel, moved):
    displacements = moved["axes"]
    panel.bar(np.arange(len(displacements)), displacements, color="C0", label="one step along an axis")
    panel.axhline(moved["swap_mm"], color="C3", linewidth=1.6, label="random other code")
    panel.axhline(moved["step_mm"], color="C0", linewidth=1, linestyle="--", label="mean of the steps")
    panel.set(xlabel="axis", ylabel="mean joint displacement (mm)", xticks=ticks(len(displacements)),
              ylim=(0, 1.3 * max(*displacements, moved["swap_mm"])),
              title=f"Step / swap = {moved['ratio']:.2f}")
    panel.legend(loc="upper right", fontsize=9)


def draw(results, path):
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
        draw_usage(left, results["axes"])
        draw_topology(right, results["topology"])
        codes = results["codes"]
        figure.suptitle(f"{results['model']}, {results['dataset']} {results['split']}: "
                        f"{codes['codes_used']:,} codes used, {codes['bits_per_token']:.1f} bits per token, "
                        f"axes at {codes['axes_entropy_share']:.0%} of their entropy")
        save_figure(figure, path)


def draw_all(tokens, found, results, folder):
    """All pictures, into ``folder``. found: names (M,) and table (K, M) of the dictionary, or None. Only the
    axes of a grid have an order, in which labels have positions."""
    stem = of_split("analyze_codes", results)
    draw(results, folder / f"{stem}.png")
    main = [""] * len(tokens.codes)
    if found is not None:
        names, table = found
        main = [names[row.argmax()] if row.any() else "" for row in table]
        matrix = dictionary.transition_matrix(tokens.numbers, tokens.groups,
                                              min(code_figures.TOP, len(tokens.codes)))
        read = {key: np.array(results["dictionary"][key]) for key in ("divergences", "positions")}
        code_figures.draw_labels((tokens.digits, names, table), read["divergences"],
                                 read["positions"] if results["ordered"] else None, matrix,
                                 folder / f"{stem}_labels.png")
    changes = dictionary.transitions(tokens.numbers, tokens.groups, most=code_figures.ARROWS)["top"]
    code_figures.draw_grid(
        tokens.vectors.cpu().numpy(), list(zip(main, np.bincount(tokens.numbers).tolist())),
        [(change["from"], change["to"], change["count"]) for change in changes],
        (tokens.digits[tokens.numbers], [axis["size"] for axis in results["axes"]]),
        (results["topology"]["nearest"], results["topology"]["swap_mm"]), folder / f"{stem}_grid.png")


def main():
    args = parse_args()
    device = pick_device(args.device)
    seed_everything(args.seed)
    spec = get_spec(args.dataset_name, args.dataset_dir)
    folder = RunFolder(args.checkpoints_dir, spec.name, args.name)
    path = folder.checkpoint(args.which)
    ae, checkpoint = load_autoencoder(path, args.model)
    if ae.codebook_size is None:
        raise UserError(f"{path} is a continuous autoencoder, which has no codes")
    known = read_labels(spec)
    store = MotionStore(spec, args.split, args.num_workers, statistics=statistics_of(checkpoint))
    ae = ae.to(device)
    tokens = Tokens(ae, store, device)
    labels = tokens.labels(known or {}, args.label_separator)
    found, read = None, None
    if (labels != "").any():
        read, *found = read_dictionary(tokens, labels, args.seed, args.entries)
    else:
        say(f"no dictionary: {spec.root}/labels.json gives no clip of the split exactly one label")
    axes = codebook.code_axes(ae, tokens.indices)
    codes = codebook.usage_statistics(tokens.indices, ae.codebook_size) | codebook.axes_summary(axes)
    rate = spec.fps / codebook.FRAMES
    results = {
        "kind": "codes", "dataset": spec.name, "split": args.split,
        "model": checkpoint.get("model_name") or args.model, "model_kwargs": checkpoint.get("model_kwargs"),
        "codes": codes, "axes": axes, "ordered": ae.levels is not None, "tokens_per_second": rate,
        "bits_per_second": rate * codes["bits_per_token"],
        "entropy_per_second": rate * codes["entropy_bits"],
        "topology": codebook.topology(ae, store, device, args.samples, args.seed, tokens.vectors),
        "transitions": dictionary.transitions(tokens.numbers, tokens.groups, tokens.digits),
        "steps_in_code": codebook.steps_in_code(tokens.vectors[tokens.numbers], tokens.groups, args.seed),
        "dictionary": read, "label_separator": args.label_separator, "checkpoint": path.name,
        "weights": weights_hash(ae), "seed": args.seed, "code_version": code_version(), "machine": machine()}
    write_results(folder.root / "eval", "analyze_codes", results, make_table(results))
    draw_all(tokens, found, results, folder.root / "eval")


if __name__ == "__main__":
    run(main)
