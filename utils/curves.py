"""Training curves: read from TensorBoard's event files, smoothed, drawn."""
import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.errors import UserError
from utils.files import atomic_write, first_line

FEW = 40  # curves of fewer values, such as validation metrics, get markers and no smoothing, which would lag
CROWD = 5  # with more curves the legend is beside the axes
FORMATS = (".png", ".pdf", ".svg", ".jpg")
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
         "grid.linewidth": 0.6, "axes.axisbelow": True, "font.size": 11, "legend.frameon": False}


def add_curves(parser):
    """Flags of the scripts that draw curves."""
    parser.add_argument("--names", nargs="+", default=None, help="names of the runs; default: their folders'")
    parser.add_argument("--metric", default="Train/loss", help="tag of the metric to draw")
    parser.add_argument("--smooth", type=smoothing, default=0.9,
                        help="decay of the moving average per logged value: 0 (no smoothing) to below 1")


def smoothing(text):
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, got {text}")
    return value


def run_folder(folder):
    """The folder of a run from that of its event files, which may be the run's model/."""
    return folder.parent if folder.name == "model" else folder


def read_runs(log_dirs, names=None, several=False):
    """{name: {tag: (steps (N,) int64, values (N,) float64)}} of the runs in log_dirs: one per folder, or
    ``several``. UserError for a folder with no events or too many runs, and for names that do not fit."""
    found = []
    for log_dir in log_dirs:
        runs = find_runs(log_dir)
        if len(runs) > 1 and not several:
            raise UserError(f"{log_dir} contains {len(runs)} runs ({', '.join(sorted(runs))}); name one of "
                            "them, or several with --log_dirs")
        found += [(name if several else run_folder(Path(log_dir).resolve()).name, files, log_dir)
                  for name, files in runs.items()]
    own = [name for name, *_ in found]
    if names is not None and len(names) != len(found):
        raise UserError(f"--names gives {len(names)} names for {len(found)} runs ({', '.join(own)}); give "
                        "one per run")
    read = {}
    for name, (_, files, log_dir) in zip(names or own, found):
        if name in read:
            raise UserError(f"two runs are called {name!r}; tell them apart with --names")
        read[name] = read_scalars(files, log_dir)
    return read


def find_runs(log_dir):
    """{name: event files} below log_dir. If log_dir or its model/ has event files, all below it is one run;
    else every folder with event files is a run."""
    root = Path(log_dir)
    if not root.is_dir():
        raise UserError(f"no folder {log_dir}")
    files = sorted(file for file in root.rglob("events.out.tfevents.*") if file.is_file())
    if not files:
        raise UserError(f"no TensorBoard events (events.out.tfevents.*) in {log_dir} or below it")
    if any(file.parent in (root, root / "model") for file in files):
        return {run_folder(root.resolve()).name: files}
    runs = {}
    for file in files:
        runs.setdefault(run_folder(file.parent).relative_to(root).as_posix(), []).append(file)
    return runs


def read_scalars(files, log_dir):
    """{tag: (steps, values)} of one run's event files, in the order in which they were begun. A later file
    replaces earlier values of its tags within the range of their steps: resumed runs of earlier versions
    repeat what came after their last checkpoint."""
    parts = []
    for file in files:
        try:
            events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
            scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
        except Exception as error:  # damage can raise any exception of protobuf and TensorBoard
            raise UserError(f"{file} cannot be read ({type(error).__name__}: {first_line(error)}); move it "
                            "away") from error
        if scalars:
            parts.append((min(series[0].wall_time for series in scalars.values()), str(file), scalars))
    merged = {}
    for _, _, scalars in sorted(parts, key=lambda part: part[:2]):
        for tag, series in scalars.items():
            first, last = (end(event.step for event in series) for end in (min, max))
            kept = {step: value for step, value in merged.get(tag, {}).items() if not first <= step <= last}
            merged[tag] = kept | {event.step: event.value for event in series}
    if not merged:
        raise UserError(f"the TensorBoard events in {log_dir} hold no scalars")
    return {tag: (np.array(sorted(series), np.int64), np.array([series[step] for step in sorted(series)]))
            for tag, series in merged.items()}


def curve(scalars, metric, name):
    """(steps, values) of one metric of a run, finite values only."""
    if metric not in scalars:
        raise UserError(f"{name} has no metric {metric!r}; it has: {', '.join(sorted(scalars))}")
    steps, values = scalars[metric]
    finite = np.isfinite(values)
    if not finite.any():
        raise UserError(f"{metric} of {name} has no finite value")
    return steps[finite], values[finite]


def ema(values, weight):
    """Bias-corrected exponential moving average with decay ``weight``: (N,) -> (N,)."""
    smooth, average = np.empty(len(values)), 0.0
    for i, value in enumerate(values):
        average = weight * average + (1 - weight) * value
        smooth[i] = average / (1 - weight ** (i + 1))
    return smooth


def draw_curves(axes, curves, metric, smooth, log_scale=False):
    """Draw the runs {name: (steps, values)} smoothed, with the logged values as a pale line. Curves of few
    values get markers, and are not smoothed; neither is the learning rate, which has no noise."""
    exact = metric.endswith("/lr")
    for i, (name, (steps, values)) in enumerate(curves.items()):
        few, colour = len(values) < FEW, f"C{i % 10}"
        weight = 0 if few or exact else smooth
        label = name if len(curves) > 1 or not weight else f"smoothed ({weight:g})"
        if weight:
            axes.plot(steps, values, color=colour, alpha=0.35, linewidth=0.8,
                      label=None if len(curves) > 1 else "as logged")
        axes.plot(steps, ema(values, weight), color=colour, linewidth=1.9, label=label,
                  marker="o" if few else "", markersize=4)
    if log_scale and all((values > 0).all() for _, values in curves.values()):
        axes.set_yscale("log")
    axes.set_xlabel("iteration")
    axes.set_ylabel(metric)
    axes.margins(x=0.02)
    axes.legend(**(dict(loc="upper left", bbox_to_anchor=(1.01, 1.0)) if len(curves) > CROWD else {}))


def save_figure(figure, path):
    """Write a figure atomically and close it. UserError if it cannot be written."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"cannot write {path}: the name of a figure must end in {', '.join(FORMATS)}")
    try:
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=150, format=path.suffix[1:].lower())
    finally:
        plt.close(figure)
    print(f"wrote {path}")
