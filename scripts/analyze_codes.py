"""How a trained autoencoder uses its codes, and whether neighbouring codes stand for similar motions.

    python -m scripts.analyze_codes --name FSQ_AE_High --dataset_name t2m

Code usage: codes used, their fraction of the codebook, perplexity, entropy and its upper bound, bits per
second; entropy and a histogram for every axis (a dimension of a grid, a layer of RVQ). Topology: the mean
joint displacement by one step along each axis (of a codebook: to the nearest other code) against that by a
random swap of codes. Prints a table, and writes analyze_codes.json and .png into the run's eval/.
"""
import numpy as np

from models.AE import AE_models
from models.loading import load_autoencoder, weights_hash
from utils import options
from utils.curves import STYLE, plt, save_figure
from utils.data.datasets import MotionStore, statistics_of
from utils.data.specs import get_spec
from utils.errors import UserError, run
from utils.evaluation import codebook
from utils.files import RunFolder
from utils.report import format_table, write_results
from utils.training.settings import code_version, machine, pick_device, seed_everything

MANY = 64  # axes of more values than this are drawn as curves of sorted frequencies, not as rows of an image
LISTED = 24  # axes in the printed table


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="AE", check=False)
    options.add_workers(parser)
    options.add_trained(parser, AE_models, "autoencoder")
    options.add_split(parser)
    parser.add_argument("--samples", type=options.positive_int, default=256, help="tokens changed per axis")
    return parser.parse_args()


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
    store = MotionStore(spec, args.split, args.num_workers, statistics=statistics_of(checkpoint))
    ae = ae.to(device)
    indices = codebook.collect_indices(ae, store, device)
    axes = codebook.code_axes(ae, indices)
    codes = codebook.usage_statistics(indices, ae.codebook_size) | codebook.axes_summary(axes)
    tokens = spec.fps / codebook.FRAMES
    results = {
        "kind": "codes", "dataset": spec.name, "split": args.split,
        "model": checkpoint.get("model_name") or args.model, "model_kwargs": checkpoint.get("model_kwargs"),
        "codes": codes, "axes": axes, "tokens_per_second": tokens,
        "bits_per_second": tokens * codes["bits_per_token"],
        "entropy_per_second": tokens * codes["entropy_bits"],
        "topology": codebook.topology(ae, store, device, args.samples, args.seed), "checkpoint": path.name,
        "weights": weights_hash(ae), "seed": args.seed, "code_version": code_version(), "machine": machine()}
    write_results(folder.root / "eval", "analyze_codes", results, make_table(results))
    draw(results, folder.root / "eval" / "analyze_codes.png")


if __name__ == "__main__":
    run(main)
