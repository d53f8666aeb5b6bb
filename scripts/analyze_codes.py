"""How a trained autoencoder uses its codes, and whether neighbouring codes are neighbouring motions.

    python -m scripts.analyze_codes --name FSQ_AE_High --dataset_name t2m

Codes used, share of the codebook, perplexity, entropy against its ceiling, bits a second; the same and a
histogram for every axis (a dimension of a grid, a layer of RVQ); and the mean joint displacement by one step
along each axis (of a codebook: to the nearest other code) against that by a random swap of codes. Results:
the screen, and analyze_codes.json and .png in checkpoints/<dataset>/<name>/eval/.
"""

import numpy as np

from models.AE import AE_models
from models.loading import load_autoencoder, weights_hash
from utils import options
from utils.curves import STYLE, plt, save_figure
from utils.data.datasets import MotionStore
from utils.data.specs import get_spec
from utils.errors import UserError, run
from utils.evaluation.codebook import (
    FRAMES,
    axes_summary,
    axis_statistics,
    collect_indices,
    topology,
    usage_rows,
    usage_statistics,
)
from utils.files import RunFolder
from utils.report import format_table, write_results
from utils.training.settings import code_version, machine, pick_device, seed_everything

# an axis of more values than this is drawn as a curve of its codes in order of use, not as a row of shares
MANY = 64
LISTED = 24  # axes that the printed table lists


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="AE", check=False)
    options.add_workers(parser)
    options.add_trained(parser, AE_models, "autoencoder")
    options.add_split(parser)
    parser.add_argument("--samples", type=options.positive_int, default=256,
                        help="tokens that are changed, for each axis")
    return parser.parse_args()


def make_table(results):
    codes, moved = results["codes"], results["topology"]
    rows = usage_rows(codes)
    rows += [("bits_per_second", f"{results['bits_per_second']:.4g}",
              f"{results['tokens_per_second']:g} tokens a second"),
             ("entropy_per_second", f"{results['entropy_per_second']:.4g}", "bits, of whole codes as counted"),
             ("step_mm", f"{moved['step_mm']:.4g}", "mean joint displacement by one step, all axes"),
             ("swap_mm", f"{moved['swap_mm']:.4g}", "by a random other code"),
             ("ratio", f"{moved['ratio']:.4g}", "step / swap"),
             ("rank_correlation", f"{moved['rank_correlation']:.4g}",
              "of the distance of swapped codes with that displacement")]
    for i, (axis, mm) in enumerate(zip(results["axes"][:LISTED], moved["axes"])):
        rows.append((f"axis {i}", f"{mm:.4g} mm a step", f"{axis['used']} of {axis['size']} used, entropy "
                     f"{axis['entropy_bits']:.3f} of {axis['ceiling_bits']:.3f} bits"))
    if len(results["axes"]) > LISTED:
        rows.append((f"axes {LISTED} to {len(results['axes']) - 1}", "in the JSON", ""))
    return format_table(rows, ("figure", "value", ""))


def draw_use(axes_of_figure, axes):
    """Shares of every value of every axis, 1 = even use; or, of large axes, the codes in order of use."""
    if max(axis["size"] for axis in axes) > MANY:
        for i, axis in enumerate(axes):
            counts = np.sort(axis["counts"])[::-1]
            axes_of_figure.plot(np.arange(1, len(counts) + 1), counts / counts.sum() * len(counts),
                                label=f"axis {i}")
        axes_of_figure.axhline(1, color="0.5", linewidth=0.8)
        axes_of_figure.set_yscale("symlog", linthresh=0.1)
        axes_of_figure.set(xlabel="codes in order of use", ylabel="share, 1 = even use",
                           title="Use of the codes")
        if 1 < len(axes) <= 12:
            axes_of_figure.legend(fontsize=8)
        return
    shares = np.full((len(axes), max(axis["size"] for axis in axes)), np.nan)
    for row, axis in zip(shares, axes):
        row[: axis["size"]] = np.array(axis["counts"]) / sum(axis["counts"]) * axis["size"]
    image = axes_of_figure.imshow(shares, aspect="auto", vmin=0, vmax=2, cmap="RdBu_r",
                                  interpolation="nearest")
    plt.colorbar(image, ax=axes_of_figure, label="share, 1 = even use", extend="max")
    axes_of_figure.grid(False)
    axes_of_figure.set(xlabel="level", ylabel="axis", title="Use of the levels",
                       yticks=whole_ticks(len(axes)), xticks=whole_ticks(shares.shape[1]))


def whole_ticks(count, most=12):
    return np.arange(0, count, max(1, -(-count // most)))


def draw_topology(axes_of_figure, moved):
    axes_of_figure.bar(np.arange(len(moved["axes"])), moved["axes"], color="C0",
                       label="one step along an axis")
    axes_of_figure.axhline(moved["swap_mm"], color="C3", linewidth=1.6, label="random other code")
    axes_of_figure.axhline(moved["step_mm"], color="C0", linewidth=1, linestyle="--",
                           label="mean of the steps")
    axes_of_figure.set(xlabel="axis", ylabel="mean joint displacement (mm)",
                       title=f"Step / swap = {moved['ratio']:.2f}",
                       ylim=(0, 1.3 * max(*moved["axes"], moved["swap_mm"])),
                       xticks=whole_ticks(len(moved["axes"])))
    axes_of_figure.legend(loc="upper right", fontsize=9)


def draw(results, path):
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
        draw_use(left, results["axes"])
        draw_topology(right, results["topology"])
        codes = results["codes"]
        figure.suptitle(f"{results['model']}, {results['dataset']} {results['split']}: "
                        f"{codes['codes_used']:,} codes used, "
                        f"{codes['bits_per_token']:.1f} bits a token, axes at "
                        f"{codes['axes_entropy_share']:.0%} of their entropy")
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
        raise UserError(f"{path} holds a continuous autoencoder, which has no codes")
    ae, store = ae.to(device), MotionStore(spec, args.split, args.num_workers)
    indices = collect_indices(ae, store, device)
    axes = axis_statistics(ae.quantizer.to_digits(indices), ae.quantizer.axis_sizes)
    codes, tokens = usage_statistics(indices, ae.codebook_size) | axes_summary(axes), spec.fps / FRAMES
    results = {
        "kind": "codes", "dataset": spec.name, "split": args.split,
        "model": checkpoint.get("model_name") or args.model, "model_kwargs": checkpoint.get("model_kwargs"),
        "codes": codes, "axes": axes, "tokens_per_second": tokens,
        "bits_per_second": tokens * codes["bits_per_token"], "entropy_per_second": tokens * codes["entropy_bits"],
        "topology": topology(ae, store, device, args.samples, args.seed), "checkpoint": path.name,
        "weights": weights_hash(ae), "seed": args.seed, "code_version": code_version(), "machine": machine()}
    write_results(folder.root / "eval", "analyze_codes", results, make_table(results))
    draw(results, folder.root / "eval" / "analyze_codes.png")


if __name__ == "__main__":
    run(main)
