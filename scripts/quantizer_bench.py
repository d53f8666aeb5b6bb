"""Compares quantizers: trains and evaluates rows of the autoencoder zoo with the same network, data order,
steps and optimiser.

    python -m scripts.quantizer_bench --dataset_name demo --steps 2000 --seeds 3 --width 192 \\
        --batch_size 64 --lr 1e-3 --rows AE_Model FSQ_AE_High FSQ_AE_iFSQ_16x9 VQ_AE_EMA
    python -m scripts.quantizer_bench --dataset_name t2m --steps 20000      # every row of the zoo

Each row is trained by train_AE.py and evaluated, after its last step, by evaluation_AE.py; the runs are
checkpoints/<dataset>/<name>_<row>_<seed>. Started again it resumes, and more rows or seeds join the table.
--jobs 2 trains two at a time. Writes bench.json, bench.md and bench.png into --output_dir. FID needs the data
set's evaluator (train_evaluator.py).
"""
import math
from itertools import cycle

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.meter import seconds
from models.AE import FSQ_REACH, AE_models, has_grid
from models.loading import load_autoencoder, reach_of
from scripts.runs import Experiment, add_experiment, newest_result
from utils import options
from utils.curves import STYLE, plt, save_figure
from utils.errors import UserError, run
from utils.training.settings import learning_rate, pick_device, seed_everything

ALL = [row for row in AE_models if row != "FSQ_AE_Model"]  # by default the same as FSQ_AE_Medium
TIMED = 10  # training steps whose median time is reported
COLUMNS = {  # column: (unit, digits)
    "bits": ("bits per token", 1), "MPJPE": ("mm, protocol", 1), "MPJPE_facing": ("mm, facing", 1),
    "FID": ("", 4), "acceleration_error": ("mm / frame^2", 2), "codes_used": ("", 0),
    "entropy_share": ("of whole codes", 3), "axes_entropy_share": ("of the axes", 3),
    "step_swap": ("step / swap", 3), "swap_correlation": ("distance of codes and of poses", 2),
    "ms_per_step": ("ms", 0)}


def parse_args():
    parser = options.make_parser(__doc__)
    add_experiment(parser, "bench", 256, "windows")
    add = parser.add_argument
    add("--rows", nargs="+", choices=list(AE_models), default=ALL, metavar="ROW",
        help="rows of the autoencoder zoo; default: all of them")
    add("--width", type=options.positive_int, default=512, help="channels of the convolutions and the latent")
    add("--window_size", type=options.positive_int, default=64, help="frames per window")
    add("--aux_loss_root", type=options.non_negative_float, default=0.0,
        help="weight of the loss on heading and root path")
    add("--fsq_reach", type=options.positive_float, default=FSQ_REACH, help="of the FSQ rows (train_AE.py)")
    args = parser.parse_args()
    if args.window_size % 4:
        raise UserError(f"--window_size {args.window_size} must be a multiple of 4")
    return args


class Bench(Experiment):
    """The rows are those of the autoencoder zoo."""

    kind, file, order, columns = "quantizer bench", "bench.json", AE_models, COLUMNS
    scripts, before = ("train_AE.py", "evaluation_AE.py"), {"fsq_reach": 1.0}
    names = ("steps", "width", "dropout", "batch_size", "window_size", "lr", "aux_loss_root", "fsq_reach",
             "precision")
    trained = ("width", "window_size", "aux_loss_root")
    # the published milestones, 3/5 and 1 of 250,000 steps, in proportion; here the second leaves a twentieth
    milestones = (60, 95)

    def train_flags(self, row, seed):
        # as many epochs as the steps can need, and one validation, the last
        return ["--model", row, "--eval_every", self.settings["steps"],
                *(self.flags("fsq_reach") if has_grid(row) else [])]

    def began(self, checkpoint):
        return super().began(checkpoint) | {"fsq_reach": reach_of(checkpoint) or self.settings["fsq_reach"]}

    def read(self, folder, seed):
        metrics = read_evaluation(folder.root / "eval")
        if metrics["codes_used"]:
            name = folder.root.name
            self.call(name, "-m", "scripts.analyze_codes", "--name", name, "--seed", seed, "--which",
                      "latest")
            moved = newest_result(folder.root / "eval", "analyze_codes")["topology"]
            metrics |= {"step_mm": moved["step_mm"], "swap_mm": moved["swap_mm"], "step_swap": moved["ratio"],
                        "swap_correlation": moved["rank_correlation"]}
        return metrics

    def time_steps(self, wanted):
        """Time a training step of every run that lacks it, one by one, while nothing else is running."""
        for row, seed in tqdm(wanted, desc="time per step", unit="run"):
            metrics = self.table.runs[row][str(seed)]
            if "ms_per_step" not in metrics:
                metrics["ms_per_step"] = time_per_step(self.folder(row, seed).latest, self.settings,
                                                       pick_device(self.args.device))
        self.table.save()


def read_evaluation(folder):
    """Metrics of evaluation_AE.py. A soft codebook has no rate: its targets are not a finite set."""
    results = newest_result(folder, "evaluation_AE")
    metrics, codes = results["metrics"], results["codes"]
    fid = [value for key, value in metrics.items() if key.startswith("FID")]
    usage = ("codes_used", "codebook_usage", "perplexity", "entropy_bits", "entropy_share",
             "axes_entropy_share")
    return {"bits": math.log2(results["codebook_size"]) if results["finite_targets"] else None,
            "FID": fid[0] if fid else None, "steps": results["steps"], "target_dim": results["target_dim"],
            **{key: metrics[key] for key in ("MPJPE", "MPJPE_facing", "acceleration_error")},
            **{key: codes.get(key) for key in usage}}


def time_per_step(path, settings, device):
    """Median milliseconds of a float32 training step on random motion, without data loading."""
    ae, _ = load_autoencoder(path)
    ae = ae.to(device).train()
    optimizer = torch.optim.AdamW(ae.parameters(), learning_rate(0, settings["lr"]))
    seed_everything(0)
    motion = torch.randn(settings["batch_size"], settings["window_size"], ae.input_width, device=device)

    def step():
        out = ae(motion)
        loss = torch.nn.functional.smooth_l1_loss(out.motion, motion) + out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return 1000 * float(np.median([seconds(step, device) for _ in range(TIMED + 2)][2:]))  # 2 to warm up


def draw(table, path):
    """Above, rate against both MPJPEs, with a line for what has no rate; below, two measures of topology."""
    rows = table.rows()
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(2, 2, figsize=(14, 13), layout="constrained")
        for axes, key in zip(panels[0], ("MPJPE", "MPJPE_facing")):
            draw_rate(figure, axes, key, rows)
        draw_bars(panels[1, 0], "step_swap", "joint displacement: neighbouring / random other code", rows)
        draw_bars(panels[1, 1], "swap_correlation", "rank correlation: distance of codes, of poses", rows)
        save_figure(figure, path)


def draw_rate(figure, axes, key, rows):
    """Bits per token against an error."""
    rated = [summary for summary in rows if "bits" in summary]
    for summary in rated:
        axes.errorbar(summary["bits"], summary[key], summary.get(f"{key}_std"), marker="o", capsize=2,
                      **colour(summary))
    for summary, style in zip([row for row in rows if "bits" not in row], cycle(("--", ":", "-."))):
        axes.axhline(summary[key], color="0.4", linestyle=style, label=f"{short(summary)}, which has no rate")
    if rated:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.margins(x=0.3)
    name_points(figure, axes, [(summary, summary["bits"], summary[key]) for summary in rated])
    axes.set(xlabel="rate: bits per token", ylabel=f"{key} ({COLUMNS[key][0]})")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def draw_bars(axes, key, label, rows):
    """A bar for each row that has the metric, the first one on top."""
    rows = [summary for summary in reversed(rows) if key in summary]
    for place, summary in enumerate(rows):
        axes.barh(place, summary[key], xerr=summary.get(f"{key}_std"), capsize=2, **colour(summary))
    axes.set_yticks(range(len(rows)), list(map(short, rows)), fontsize=8)
    axes.set(xlabel=label)


def colour(summary):
    return {"color": "C0" if has_grid(summary["row"]) else "C3"}


def short(summary):
    return summary["row"].replace("_AE", "").replace("AE_Model", "AE").replace("_", " ")


def name_points(figure, axes, points, apart=9):
    """Write the row's name beside each (summary, x, y); names of nearly the same rate are kept at least
    ``apart`` typographic points above each other."""
    figure.draw_without_rendering()  # lays out the axes, which transData needs
    highest = {}
    for summary, x, y in sorted(points, key=lambda point: point[2]):
        height, place = axes.transData.transform((x, y))[1] * 72 / figure.dpi, round(4 * math.log2(x))
        shift = max(0, highest.get(place, -apart) + apart - height)
        highest[place] = height + shift
        axes.annotate(short(summary), (x, y), (5, shift - 2), textcoords="offset points", fontsize=7,
                      **colour(summary))


def main():
    bench = Bench(parse_args())
    wanted = bench.wanted(bench.args.rows)
    bench.fill(wanted)
    bench.time_steps(wanted)
    bench.table.publish(draw)


if __name__ == "__main__":
    run(main)
