"""Training curves as figures, from the TensorBoard event files of one or several runs.

    python plot_loss.py --log_dir checkpoints/t2m/FSQ_AE_High --output loss_curve.png --smooth 0.9
    python plot_loss.py --log_dirs checkpoints/t2m/A checkpoints/t2m/B --names FSQ VQ --metric Train/loss \\
        --output compare.png
    python plot_loss.py --log_dir checkpoints/t2m/FSQ_AE_High --all --output_dir plots   # a figure per metric

The event files lie in a run's folder or in its model/. Those of a resumed run are joined; where two files
cover the same iterations, the later one counts. --all also takes a folder of several runs.
"""
import re
from pathlib import Path

import numpy as np

from utils import options
from utils.curves import FORMATS, STYLE, add_curves, curve, draw_curves, plt, read_runs, save_figure
from utils.errors import run


def parse_args(argv=None):
    parser = options.make_parser(__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--log_dir", help="folder of one run; with --all also a folder of runs")
    which.add_argument("--log_dirs", nargs="+", help="folders of the runs to compare")
    add_curves(parser)
    parser.add_argument("--log_scale", action="store_true", help="logarithmic vertical axis")
    parser.add_argument("--output", default="loss_curve.png", help="figure to write: " + ", ".join(FORMATS))
    parser.add_argument("--all", action="store_true", help="one figure for every metric, into --output_dir")
    parser.add_argument("--output_dir", default="./plots", help="folder of the figures of --all")
    return parser.parse_args(argv)


def plot_metric(curves, metric, smooth, log_scale, path):
    """One figure of one metric."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
        draw_curves(axes, curves, metric, smooth, log_scale)
        axes.set_title(f"{metric}: {next(iter(curves))}" if len(curves) == 1 else metric)
        save_figure(figure, path)


def plot_all(runs, smooth, log_scale, folder):
    """One figure per metric, with the runs that have finite values of it."""
    taken = set()
    for metric in sorted({tag for scalars in runs.values() for tag in scalars}):
        curves = {name: curve(scalars, metric, name) for name, scalars in runs.items()
                  if metric in scalars and np.isfinite(scalars[metric][1]).any()}
        if not curves:
            print(f"skipped {metric}: no finite value")
            continue
        stem = re.sub(r"[^\w-]+", "_", metric).strip("_") or "metric"
        while stem.lower() in taken:  # no two tags share a file, even where names ignore case
            stem += "_"
        taken.add(stem.lower())
        plot_metric(curves, metric, smooth, log_scale, Path(folder) / f"{stem}.png")


def main(argv=None):
    args = parse_args(argv)
    runs = read_runs(args.log_dirs or [args.log_dir], args.names, several=args.all and args.log_dir)
    if args.all:
        plot_all(runs, args.smooth, args.log_scale, args.output_dir)
    else:
        curves = {name: curve(scalars, args.metric, name) for name, scalars in runs.items()}
        plot_metric(curves, args.metric, args.smooth, args.log_scale, args.output)


if __name__ == "__main__":
    run(main)
