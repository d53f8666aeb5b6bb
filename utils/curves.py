"""Training curves: read from TensorBoard's event files, smoothed, drawn."""
import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.errors import UserError
from utils.files import atomic_write

# fewer values than this, as of validation metrics, get a marker each and no smoothed line, which would lag
# far behind
FEW = 40
CROWD = 5  # more curves than this have their legend beside the axes
FORMATS = (".png", ".pdf", ".svg", ".jpg")
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
         "grid.linewidth": 0.6, "axes.axisbelow": True, "font.size": 11, "legend.frameon": False}


def smoothing(text):
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, got {text}")
    return value


def run_folder(folder):
    """The folder that names a run: that of its event files, but for the model/ in which training keeps
    them."""
    return folder.parent if folder.name == "model" else folder


def read_runs(log_dirs, names=None):
    """{name: {tag: (steps (N,) int64, values (N,) float64)}} of the runs in log_dirs, one a folder. UserError
    for a folder without events or with several runs, and where names do not match the folders."""
    if names is not None and len(names) != len(log_dirs):
        raise UserError(f"--names gives {len(names)} names for {len(log_dirs)} runs; give one a run")
    runs = {}
    for i, log_dir in enumerate(log_dirs):
        found = find_runs(log_dir)
        if len(found) > 1:
            raise UserError(f"{log_dir} holds {len(found)} runs ({', '.join(sorted(found))}); name one of "
                            "them, or "
                            "several with --log_dirs")
        name = names[i] if names else run_folder(Path(log_dir).resolve()).name
        if name in runs:
            raise UserError(f"two runs are called {name!r}; tell them apart with --names")
        runs[name] = read_scalars(next(iter(found.values())), log_dir)
    return runs


def find_runs(log_dir):
    """{name: its event files} below log_dir. A folder that has events itself, or in model/, is one run with
    all that lies below it; else every folder below it that has events is one."""
    root = Path(log_dir)
    if not root.is_dir():
        raise UserError(f"no folder {log_dir}")
    files = sorted(root.rglob("events.out.tfevents.*"))
    if not files:
        raise UserError(f"no TensorBoard events (events.out.tfevents.*) in {log_dir} or below it")
    if any(file.parent in (root, root / "model") for file in files):
        return {run_folder(root.resolve()).name: files}
    runs = {}
    for file in files:
        folder = run_folder(file.parent)
        runs.setdefault(folder.relative_to(root).as_posix(), []).append(file)
    return runs


def read_scalars(files, log_dir):
    """{tag: (steps, values)} of the event files of one run. Files are taken in the order in which they were
    begun; the iterations that a file covers replace those that earlier files have of the same tags (a resumed
    run repeats what came after its last checkpoint)."""
    parts = []
    for file in files:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
        if scalars:
            parts.append((min(series[0].wall_time for series in scalars.values()), str(file), scalars))
    merged = {}
    for _, _, scalars in sorted(parts, key=lambda part: part[:2]):
        steps = [event.step for series in scalars.values() for event in series]
        first, last = min(steps), max(steps)
        for tag, series in scalars.items():
            kept = {step: value for step, value in merged.get(tag, {}).items() if not first <= step <= last}
            merged[tag] = kept | {event.step: event.value for event in series}
    if not merged:
        raise UserError(f"the TensorBoard events in {log_dir} hold no scalars")
    return {tag: (np.array(sorted(series), dtype=np.int64),
                  np.array([series[step] for step in sorted(series)]))
            for tag, series in merged.items()}


def curve(scalars, metric, name):
    """(steps, values) of a metric of one run, without values that are not finite."""
    if metric not in scalars:
        raise UserError(f"{name} has no metric {metric!r}; it has: {', '.join(sorted(scalars))}")
    steps, values = scalars[metric]
    finite = np.isfinite(values)
    if not finite.any():
        raise UserError(f"{metric} of {name} has no finite value")
    return steps[finite], values[finite]


def ema(values, weight):
    """Exponential moving average (N,) -> (N,), divided by the weight seen so far, so that it does not start
    at zero."""
    smooth, average = np.empty(len(values)), 0.0
    for i, value in enumerate(values):
        average = weight * average + (1 - weight) * value
        smooth[i] = average / (1 - weight ** (i + 1))
    return smooth


def draw_curves(axes, curves, metric, smooth, log_scale=False):
    """Each run of curves {name: (steps, values)} as its smoothed line, with the values themselves pale behind
    it. Few values are marked instead, and the learning rate, which has no noise, is drawn as it is."""
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
    """Write a figure, whole or not at all, and close it. UserError where that cannot be done."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"cannot write {path}: a picture's name must end in {', '.join(FORMATS)}")
    try:
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=150, format=path.suffix[1:].lower())
    finally:
        plt.close(figure)
    print(f"wrote {path}")
