"""How fast and how steadily runs learn, side by side, from their TensorBoard event files.

    python analyze_training.py --log_dirs checkpoints/t2m/A checkpoints/t2m/B --names "FSQ" "VQ" \\
        --metric Train/loss --threshold 0.1 --window 200 --output_dir analysis

For each run: the iteration at which the metric reaches the threshold; its mean, std and std/mean over the
last values; and the best value, with its iteration, of the metric and of every Val/ metric. Prints a table,
and writes analysis.json (with all metrics) and analysis.png to --output_dir.
"""
import re
from pathlib import Path

import numpy as np

from utils import options
from utils.curves import STYLE, add_curves, curve, draw_curves, ema, plt, read_runs, save_figure
from utils.errors import UserError, run
from utils.report import format_table, write_json

# Metrics where higher is better, by the last part of the tag; for all others lower is better.
MORE_IS_BETTER = re.compile(r"R\d|R_precision.*|top_?\d|.*clip.*|.*accuracy.*|diversity|multimodality|"
                            r"perplexity|codes_used|.*usage.*", re.IGNORECASE)


def parse_args(argv=None):
    parser = options.make_parser(__doc__)
    parser.add_argument("--log_dirs", nargs="+", required=True, help="folders of the runs")
    add_curves(parser)
    parser.add_argument("--threshold", type=float, default=0.1,
                        help="value of the metric to reach, in its own unit")
    parser.add_argument("--window", type=options.non_negative_int, default=0,
                        help="last logged values to average; 0 = a quarter of each run's, at most 200")
    parser.add_argument("--maximize", nargs="*", default=[], metavar="TAG",
                        help="tags where higher is better, besides R-precision, CLIP score, diversity and "
                             "code usage")
    parser.add_argument("--output_dir", default="./analysis", help="folder of analysis.json and analysis.png")
    return parser.parse_args(argv)


def more_is_better(tag, maximize=()):
    return tag in maximize or MORE_IS_BETTER.fullmatch(tag.rsplit("/", 1)[-1]) is not None


def first_reach(steps, values, threshold, upwards):
    """Iteration of the first value at or beyond the threshold, or None."""
    reached = values >= threshold if upwards else values <= threshold
    return int(steps[reached.argmax()]) if reached.any() else None


def best_value(steps, values, upwards):
    """{"best", "iteration", "last"} of a metric."""
    i = int(values.argmax() if upwards else values.argmin())
    return {"best": float(values[i]), "iteration": int(steps[i]), "last": float(values[-1])}


def analyze(scalars, name, args):
    """All results of one run, as written to the JSON file."""
    steps, values = curve(scalars, args.metric, name)
    upwards = more_is_better(args.metric, args.maximize)
    tail = values[-(args.window or min(200, -(-len(values) // 4))):]
    mean, std = float(tail.mean()), float(tail.std())
    metrics = {tag: best_value(*curve(scalars, tag, name), more_is_better(tag, args.maximize))
               for tag in sorted(scalars) if np.isfinite(scalars[tag][1]).any()}
    return {
        "last_iteration": int(steps[-1]),
        "logged_values": len(values),
        "reached_at": first_reach(steps, values, args.threshold, upwards),
        "reached_at_smoothed": first_reach(steps, ema(values, args.smooth), args.threshold, upwards),
        "window": {"values": len(tail), "mean": mean, "std": std,
                   "std_over_mean": std / abs(mean) if mean else None},
        "metrics": metrics,
    }


def show(number):
    if number is None:
        return "never"
    return f"{number:,}" if isinstance(number, int) else f"{number:.4g}"


def report(results, args):
    """The text for the screen: a table of the metric, and one of its and every Val/ metric's best values."""
    sign = ">=" if more_is_better(args.metric, args.maximize) else "<="
    header = ["run", "iterations", f"{sign} {args.threshold:g} at", "smoothed at", "mean", "std", "std/mean",
              "values"]
    rows = []
    for name, result in results.items():
        window = result["window"]
        ratio = "-" if window["std_over_mean"] is None else f"{window['std_over_mean']:.2%}"
        iterations = [show(result[key]) for key in ("last_iteration", "reached_at", "reached_at_smoothed")]
        rows.append([name, *iterations, show(window["mean"]), show(window["std"]), ratio, window["values"]])
    tags = [args.metric] + sorted({tag for result in results.values() for tag in result["metrics"]
                                   if tag.startswith("Val/") and tag != args.metric})
    best = [[tag, name, show(result["metrics"][tag]["best"]), show(result["metrics"][tag]["iteration"]),
             show(result["metrics"][tag]["last"])]
            for tag in tags for name, result in results.items() if tag in result["metrics"]]
    return (f"{args.metric}: reaching {args.threshold:g}, and the last values of each run\n\n"
            f"{format_table(rows, header, left=1)}\n\nBest values\n\n"
            f"{format_table(best, ['metric', 'run', 'best', 'at iteration', 'last'], left=2)}")


def plot(curves, results, args, path):
    """Left: the curves, the threshold, and where each smoothed curve reaches it. Right: mean and std of the
    last values."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), width_ratios=[2.2, 1],
                                             layout="constrained")
        draw_curves(left, curves, args.metric, args.smooth)
        left.axhline(args.threshold, color="0.35", linewidth=1, linestyle="--")
        for i, result in enumerate(results.values()):
            reached, window = result["reached_at_smoothed"], result["window"]
            if reached is not None:
                left.plot(reached, args.threshold, "o", color=f"C{i % 10}", markeredgecolor="white", zorder=5)
            right.errorbar(i, window["mean"], yerr=window["std"], fmt="o", color=f"C{i % 10}", capsize=6,
                           markersize=7)
        left.set_title(f"{args.metric}, threshold {args.threshold:g}")
        right.set_xticks(range(len(results)), list(results), rotation=20 if len(results) > 3 else 0)
        right.set_xlim(-0.6, len(results) - 0.4)
        counts = [result["window"]["values"] for result in results.values()]
        shown = " to ".join(map(str, dict.fromkeys([min(counts), max(counts)])))
        right.set_title(f"mean \u00b1 std, last {shown} values")
        save_figure(figure, path)


def main(argv=None):
    args = parse_args(argv)
    if not np.isfinite(args.threshold):
        raise UserError(f"--threshold must be a finite number, got {args.threshold}")
    runs = read_runs(args.log_dirs, args.names)
    results = {name: analyze(scalars, name, args) for name, scalars in runs.items()}
    print(report(results, args) + "\n")
    settings = {key: getattr(args, key) for key in ("metric", "threshold", "window", "smooth")}
    write_json(Path(args.output_dir) / "analysis.json", {**settings, "runs": results})
    print(f"wrote {Path(args.output_dir) / 'analysis.json'}")
    curves = {name: curve(scalars, args.metric, name) for name, scalars in runs.items()}
    plot(curves, results, args, Path(args.output_dir) / "analysis.png")


if __name__ == "__main__":
    run(main)
