"""Compares quantizers: trains every row of the zoo with the same network, data order, steps and optimiser,
and evaluates it.

    python -m scripts.quantizer_bench --dataset_name demo --steps 2000 --seeds 3 --width 192 --batch_size 64 --lr 1e-3 \\
                                      --rows AE_Model FSQ_AE_High FSQ_AE_iFSQ_16x9 VQ_AE_EMA
    python -m scripts.quantizer_bench --dataset_name t2m --steps 20000 --seeds 3          # every row of the zoo

Each row is trained by train_AE.py and judged by evaluation_AE.py, after its last step, as a user would call
them; the runs are checkpoints/<dataset>/bench_<row>_<seed>. Started again it goes on where it stopped, and
more rows or seeds join the table. --jobs 2 trains two at a time. Writes bench.json, bench.md and bench.png
into --output_dir. FID needs the data set's evaluator (train_evaluator.py).
"""
import math
import os
import time
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from models.AE import FSQ_REACH, AE_models, has_grid
from models.loading import load_autoencoder, reach_of
from scripts.runs import RunTable, Scripts, add_runs, check_begun, evaluator_hash, newest_result, warm_up_of
from utils import options
from utils.curves import STYLE, plt, save_figure
from utils.data.specs import get_spec
from utils.errors import UserError, run
from utils.files import (
    RunFolder,
    read_checkpoint,
)
from utils.training.settings import learning_rate, pick_device, seed_everything

ALL = [row for row in AE_models if row != "FSQ_AE_Model"]  # which is FSQ_AE_Medium, unless told otherwise
TIMED = 10  # steps whose median is the time of a step
COLUMNS = {  # column: (unit, digits)
    "bits": ("bits a token", 1), "MPJPE": ("mm, protocol", 1), "MPJPE_facing": ("mm, facing", 1),
    "FID": ("", 4), "acceleration_error": ("mm / frame^2", 2), "codes_used": ("", 0),
    "entropy_share": ("of whole codes", 3), "axes_entropy_share": ("of the axes", 3),
    "step_swap": ("step / swap", 3), "swap_correlation": ("distance of codes and of poses", 2),
    "ms_per_step": ("ms", 0)}


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="bench", check=False)
    add_runs(parser, "table")
    parser.add_argument("--steps", type=options.positive_int, default=20_000,
                        help="training steps of every row")
    parser.add_argument("--rows", nargs="+", choices=list(AE_models), default=ALL, metavar="ROW",
                        help="rows of the autoencoder zoo; default: all of them")
    parser.add_argument("--width", type=options.positive_int, default=512,
                        help="channels of the convolutions and the latent")
    parser.add_argument("--dropout", type=options.fraction, default=0.2,
                        help="dropout of the residual blocks")
    parser.add_argument("--batch_size", type=options.positive_int, default=256, help="windows a step")
    parser.add_argument("--window_size", type=options.positive_int, default=64, help="frames of a window")
    parser.add_argument("--lr", type=options.positive_float, default=2e-4, help="learning rate after warm-up")
    parser.add_argument("--aux_loss_root", type=options.non_negative_float, default=0.0,
                        help="weight of the loss on heading and root path")
    parser.add_argument("--fsq_reach", type=options.positive_float, default=FSQ_REACH,
                        help="of the FSQ rows (train_AE.py)")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16", "auto"], default="fp32",
                        help="of training")
    parser.add_argument("--evaluator", default="evaluator", help="--name of the evaluator's run, for the FID")
    return parser.parse_args()


def settings_of(args, spec):
    """What every run of one table shares."""
    names = ("steps", "width", "dropout", "batch_size", "window_size", "lr", "aux_loss_root", "fsq_reach",
             "precision")
    # The published milestones, at 3/5 and 1 of 250,000 steps, in proportion; the second leaves a last
    # twentieth.
    milestones = [args.steps * 6 // 10, args.steps * 19 // 20]
    return {name: getattr(args, name) for name in names} | {
        "dataset": args.dataset_name, "warm_up_iter": warm_up_of(args), "milestones": milestones,
        "evaluator": evaluator_hash(args, spec)}


class Bench:
    """Trains and evaluates the rows of a RunTable."""

    def __init__(self, args, spec, folder):
        self.args, self.spec, self.settings, self.call = args, spec, settings_of(args, spec), Scripts(args,
                                                                                                      folder)
        self.table = RunTable(Path(folder) / "bench.json", "quantizer bench", self.settings, AE_models,
                              COLUMNS, {"fsq_reach": 1.0})

    def folder(self, row, seed):
        return RunFolder(self.args.checkpoints_dir, self.spec.name, f"{self.args.name}_{row}_{seed}")

    def measure(self, row, seed):
        """The metrics of one row with one seed; what an earlier start did is kept."""
        folder, s = self.folder(row, seed), self.settings
        name = folder.root.name
        resume = ["--is_continue"] if folder.latest.is_file() else []
        if resume:
            began = read_checkpoint(folder.latest)
            check_begun(folder.latest, began.get("args", {})
                        | {"fsq_reach": reach_of(began) or s["fsq_reach"]}, s)
        reach = ["--fsq_reach", s["fsq_reach"]] if has_grid(row) else []
        # As many epochs as the steps can need; the one validation is the last.
        seconds = self.call(name, "train_AE.py", "--name", name, "--model", row, "--seed", seed, "--max_iter",
                            s["steps"], "--epoch", s["steps"], "--eval_every", s["steps"], "--width",
                            s["width"], "--dropout", s["dropout"], "--batch_size", s["batch_size"],
                            "--window_size", s["window_size"], "--lr", s["lr"], "--warm_up_iter",
                            s["warm_up_iter"], "--milestones", *s["milestones"], "--aux_loss_root",
                            s["aux_loss_root"], *reach, "--precision", s["precision"], *resume)
        self.call(name, "evaluation_AE.py", "--name", name, "--which", "latest", "--seed", seed,
                  "--evaluator", self.args.evaluator)
        metrics = read_evaluation(folder.root / "eval")
        if metrics["codes_used"]:
            self.call(name, "-m", "scripts.analyze_codes", "--name", name, "--which", "latest", "--seed",
                      seed)
            metrics |= read_topology(folder.root / "eval")
        if metrics["steps"] != s["steps"]:
            raise UserError(f"{folder.latest} has {metrics['steps']} steps, not {s['steps']}; remove it, or "
                            "pick another --name")
        return metrics | {"seconds": seconds, "resumed": bool(resume)}  # the time of the last start alone

    def time_steps(self, wanted):
        """Time a step of every run that was not timed, one after the other, when nothing else of the bench
        runs."""
        for row, seed in tqdm(wanted, desc="time of a step", unit="run"):
            run = self.table.runs[row][str(seed)]
            if "ms_per_step" not in run:
                run["ms_per_step"] = time_per_step(self.folder(row, seed).latest, self.settings,
                                                  pick_device(self.args.device))
        self.table.save()


def read_evaluation(folder):
    """The metrics of the newest result of evaluation_AE.py in a folder. A soft codebook has no rate: its
    targets are no finite set."""
    results = newest_result(folder, "evaluation_AE")
    fid = [value for key, value in results["metrics"].items() if key.startswith("FID")]
    codes = results["codes"]
    bits = math.log2(results["codebook_size"]) if results["finite_targets"] else None
    errors = {key: results["metrics"][key] for key in ("MPJPE", "MPJPE_facing", "acceleration_error")}
    usage = ("codes_used", "codebook_usage", "perplexity", "entropy_bits", "entropy_share",
             "axes_entropy_share")
    return {"bits": bits, "FID": fid[0] if fid else None, "steps": results["steps"],
            "target_dim": results["target_dim"],
            **errors, **{key: codes.get(key) for key in usage}}


def read_topology(folder):
    """What scripts/analyze_codes.py found: joint displacement by a step to a neighbouring code, and by a
    random swap."""
    moved = newest_result(folder, "analyze_codes")["topology"]
    return {"step_mm": moved["step_mm"], "swap_mm": moved["swap_mm"], "step_swap": moved["ratio"],
            "swap_correlation": moved["rank_correlation"]}


def time_per_step(path, settings, device):
    """Median milliseconds of a float32 training step on random motion, without loading data."""
    ae, checkpoint = load_autoencoder(path)
    ae = ae.to(device).train()
    optimizer = torch.optim.AdamW(ae.parameters(), learning_rate(0, settings["lr"]))
    seed_everything(0)
    motion = torch.randn(settings["batch_size"], settings["window_size"], ae.input_width, device=device)
    times = []
    for _ in range(TIMED + 2):
        start = time.perf_counter()
        out = ae(motion)
        loss = torch.nn.functional.smooth_l1_loss(out.motion, motion) + out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times[2:]))


def draw(table, path):
    """Rate against distortion, both MPJPEs, what has no rate as a line; and the topology, by two measures."""
    rows = table.rows()
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(2, 2, figsize=(14, 13), layout="constrained")
        for axes, key in zip(panels[0], ("MPJPE", "MPJPE_facing")):
            draw_rate(figure, axes, key, rows)
        for axes, key, what in zip(panels[1], ("step_swap", "swap_correlation"), (
                "joint displacement: neighbouring code / random other code",
            "rank correlation: distance of codes, of poses")):
            draw_bars(axes, key, what, [summary for summary in rows if key in summary])
        save_figure(figure, path)


def draw_rate(figure, axes, key, rows):
    """Bits a token against an error."""
    rated = [summary for summary in rows if "bits" in summary]
    for summary in rated:
        axes.errorbar(summary["bits"], summary[key], summary.get(f"{key}_std"), marker="o", capsize=2,
                      **colour(summary))
    for summary, style in zip([summary for summary in rows if summary not in rated],
                              cycle(("--", ":", "-."))):
        axes.axhline(summary[key], color="0.4", linestyle=style, label=f"{short(summary)}, which has no rate")
    if rated:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.margins(x=0.3)
    name_points(figure, axes, [(summary, summary["bits"], summary[key]) for summary in rated])
    axes.set(xlabel="rate: bits a token", ylabel=f"{key} ({COLUMNS[key][0]})")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def colour(summary):
    return {"color": "C0" if has_grid(summary["row"]) else "C3"}


def short(summary):
    return summary["row"].replace("_AE", "").replace("AE_Model", "AE").replace("_", " ")


def draw_bars(axes, key, what, rows):
    """A figure of every row, the first one on top."""
    for place, summary in enumerate(reversed(rows)):
        axes.barh(place, summary[key], xerr=summary.get(f"{key}_std"), capsize=2, **colour(summary))
    axes.set_yticks(range(len(rows)), [short(summary) for summary in reversed(rows)], fontsize=8)
    axes.set(xlabel=what)


def name_points(figure, axes, points, apart=9):
    """Write the row's name beside each (summary, x, y); of about one rate, ``apart`` points of type above
    each other at least."""
    figure.draw_without_rendering()  # places the axes, so that data can be told in points
    highest = {}
    for summary, x, y in sorted(points, key=lambda point: point[2]):
        height, place = axes.transData.transform((x, y))[1] * 72 / figure.dpi, round(4 * math.log2(x))
        shift = max(0, highest.get(place, -apart) + apart - height)
        highest[place] = height + shift
        axes.annotate(short(summary), (x, y), (5, shift - 2), textcoords="offset points", fontsize=7,
                      **colour(summary))


def main():
    args = parse_args()
    if args.window_size % 4:
        raise UserError(f"--window_size {args.window_size} must be a multiple of 4")
    spec = get_spec(args.dataset_name, args.dataset_dir)
    RunFolder(args.checkpoints_dir, spec.name, args.name)  # a name that is none is seen here
    folder = Path(args.output_dir or f"generation/{args.name}_{spec.name}")
    bench = Bench(args, spec, folder)
    os.makedirs(folder, exist_ok=True)
    # a whole table of one seed first
    wanted = [(row, seed) for seed in range(args.seed, args.seed + args.seeds) for row in args.rows]
    bench.table.fill(wanted, bench.measure, bench.call, args.jobs)
    bench.time_steps(wanted)
    bench.table.publish(draw)


if __name__ == "__main__":
    run(main)
