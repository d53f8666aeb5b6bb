"""Compares quantizers: trains and evaluates rows of the autoencoder zoo with the same network, data order,
steps and optimiser.

    python -m scripts.quantizer_bench --dataset_name demo --steps 2000 --seeds 3 --width 192 \\
        --batch_size 64 --lr 1e-3 --rows AE_Model FSQ_AE_High FSQ_AE_iFSQ_16x9 VQ_AE_EMA
    python -m scripts.quantizer_bench --dataset_name t2m --steps 20000      # every row of the zoo
    python -m scripts.quantizer_bench ... --rows FSQ_AE_High --fsq_levels 8 6 5 --fsq_levels 5 3

Each row is trained by train_AE.py and evaluated, after its last step, by evaluation_AE.py; the runs are
checkpoints/<dataset>/<name>_<row>_<seed>. Started again it resumes, and more rows or seeds join the table.
--jobs 2 trains two at a time. Writes bench.json, bench.md and bench.png into --output_dir. FID needs the data
set's evaluator (train_evaluator.py); with --FID_every it is also measured during training.

VQ_AE_Gumbel rows are Gumbel-softmax VQ, which some documents call DiVeQ; VQ_AE_DiVeQ and VQ_AE_SF_DiVeQ are
the DiVeQ of arXiv 2509.26469. The temperatures of VQ_AE_Gumbel_Annealed rows fall in step with --steps.
"""
import math
from argparse import Namespace
from itertools import cycle

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.meter import seconds
from models.AE import FSQ_LEVELS, FSQ_REACH, AE_models, has_grid
from models.FSQ import check_levels
from models.loading import load_autoencoder, reach_of
from scripts.runs import Experiment, add_experiment, newest_result, read_curves
from train_AE import make_loss
from utils import options
from utils.curves import STYLE, plt, save_figure
from utils.data.datasets import MotionStore, WindowDataset
from utils.errors import UserError, run
from utils.training.gradients import gradient_variance
from utils.training.settings import learning_rate, pick_device, seed_everything

ALL = [row for row in AE_models if row != "FSQ_AE_Model"]  # by default the same as FSQ_AE_Medium
TIMED = 10  # training steps whose median time is reported
GRADIENTS = 64  # batches, and draws for one batch, whose gradients are compared
COLUMNS = {  # column: (unit, digits)
    "bits": ("bits per token", 1), "MPJPE": ("mm, protocol", 1), "MPJPE_facing": ("mm, facing", 1),
    "FID": ("", 4), "acceleration_error": ("mm / frame^2", 2), "codes_used": ("", 0),
    "entropy_share": ("of whole codes", 3), "axes_entropy_share": ("of the axes", 3),
    "step_swap": ("step / swap", 3), "swap_correlation": ("distance of codes and of poses", 2),
    "gradient_variance": ("over batches, relative", 3), "draw_variance": ("same batch, relative", 4),
    "steps_to_FID": ("steps to the threshold", 0),  # its unit names the threshold later: count_steps
    "loss_mean": ("last fifth", 4), "loss_noise": ("std / mean, last fifth", 3), "ms_per_step": ("ms", 0)}


def parse_args():
    parser = options.make_parser(__doc__)
    add_experiment(parser, "bench", 256, "windows")
    add = parser.add_argument
    add("--rows", nargs="+", type=options.row_of(AE_models), metavar="ROW",
        help="rows of the autoencoder zoo; default: all of them, none with --fsq_levels")
    add_network(parser)
    add("--aux_loss_root", type=options.non_negative_float, default=0.0,
        help="weight of the loss on heading and root path")
    add("--fsq_reach", type=options.positive_float, default=FSQ_REACH, help="of the FSQ rows (train_AE.py)")
    add("--FID_every", type=options.positive_int,
        help="steps between two validations with FID; default: none, but for the evaluation after training")
    add("--FID_threshold", type=options.positive_float, default=0.1,
        help="of --FID_every: report the steps until the validation FID is this low (can be changed later)")
    args = parser.parse_args()
    levels = level_rows(args.fsq_levels)
    args.rows = (ALL if args.rows is None and not levels else args.rows or []) + levels
    return args


def add_network(parser):
    """The flags of free level sets, [[int]] or None, and of the sizes of all rows."""
    add = parser.add_argument
    add("--width", type=options.positive_int, default=512, help="channels of the convolutions and the latent")
    add("--window_size", type=options.positive_int, default=64, help="frames per window")
    add("--fsq_levels", nargs="+", type=options.positive_int, action="append", metavar="LEVELS",
        help="a grid with these levels beside the rows of the zoo; give the flag once for each grid")


def level_rows(sets):
    """Names of the rows of level sets, [[int]] or None. UserError for levels that make no grid."""
    return [f"FSQ_AE_Model_{'-'.join(map(str, check_levels(levels)))}" for levels in sets or ()]


def model_flags(row):
    """Flags of train_AE.py for a row of the zoo or of ``level_rows``."""
    model, free, levels = row.partition("FSQ_AE_Model_")
    return ["--model", "FSQ_AE_Model", "--fsq_levels", *levels.split("-")] if free else ["--model", model]


def levels_of(row):
    """The levels of a size of the zoo, or of a row of ``level_rows``; None for other rows."""
    free = row.partition("FSQ_AE_Model_")[2]
    return tuple(map(int, free.split("-"))) if free else FSQ_LEVELS.get(row)


def with_levels(table):
    """Let the rows of level sets that a RunTable holds follow those of the zoo, by size."""
    free = [row for row in table.runs if row not in table.order and levels_of(row)]
    table.order += sorted(free, key=lambda row: math.prod(levels_of(row)))


class Bench(Experiment):
    """The rows are those of the autoencoder zoo."""

    kind, file, order, columns = "quantizer bench", "bench.json", AE_models, COLUMNS
    scripts, before = ("train_AE.py", "evaluation_AE.py"), {"fsq_reach": 1.0, "FID_every": None}
    names = ("steps", "width", "dropout", "batch_size", "window_size", "lr", "aux_loss_root", "fsq_reach",
             "precision", "FID_every")
    trained = ("width", "window_size", "aux_loss_root")
    # the published milestones, 3/5 and 1 of 250,000 steps, in proportion; here the second leaves a twentieth
    milestones = (60, 95)

    def __init__(self, args):
        if args.window_size % 4:
            raise UserError(f"--window_size {args.window_size} must be a multiple of 4")
        super().__init__(args)

    def train_flags(self, row, seed):
        # without FID_every one validation, the last: there are as many epochs as the steps can need
        every = self.settings["FID_every"]
        judged = ["--need_evaluation", "--evaluator", self.args.evaluator, "--eval_steps", every]
        return [*model_flags(row), "--eval_every", self.settings["steps"], *(judged if every else []),
                *(self.flags("fsq_reach") if has_grid(row) else [])]

    def began(self, checkpoint):
        began = super().began(checkpoint)
        return began | {"fsq_reach": reach_of(checkpoint) or self.settings["fsq_reach"],
                        "FID_every": began.get("eval_steps") if began.get("need_evaluation") else None}

    def read(self, folder, seed):
        metrics = read_evaluation(folder.root / "eval") | read_curves(folder)
        if metrics["codes_used"]:
            name = folder.root.name
            self.call(name, "-m", "scripts.analyze_codes", "--name", name, "--seed", seed, "--which",
                      "latest")
            moved = newest_result(folder.root / "eval", "analyze_codes")["topology"]
            metrics |= {"step_mm": moved["step_mm"], "swap_mm": moved["swap_mm"], "step_swap": moved["ratio"],
                        "swap_correlation": moved["rank_correlation"]}
        return metrics

    def study_steps(self, wanted):
        """Time a training step of every run that lacks it and compare its gradients, one by one, while
        nothing else is running."""
        store, device = MotionStore(self.spec, "train", self.args.num_workers), pick_device(self.args.device)
        loss = training_loss(self.settings, store, device)
        for row, seed in tqdm(wanted, desc="a step of each", unit="run"):
            metrics, path = self.table.runs[row][str(seed)], self.folder(row, seed).latest
            if not path.is_file():
                continue  # a table without its runs
            if "gradient_variance" not in metrics:
                metrics |= compare_gradients(path, self.settings, store, loss, device)
            if "ms_per_step" not in metrics:
                metrics["ms_per_step"] = time_per_step(path, self.settings, loss, device)
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


def training_loss(settings, store, device):
    """The loss of the bench's trainings: a function of (model, motion (B, T, D)) -> ()."""
    flags = Namespace(recons_loss="l1_smooth", aux_loss_joints=1.0, aux_loss_root=settings["aux_loss_root"],
                      latent_noise=0.0)
    losses = make_loss(flags, store, device)
    return lambda model, motion: losses(model, motion)["loss"]


def time_per_step(path, settings, loss_fn, device):
    """Median milliseconds of a float32 training step on random motion, without data loading."""
    ae, _ = load_autoencoder(path)
    ae = ae.to(device).train()
    optimizer = torch.optim.AdamW(ae.parameters(), learning_rate(0, settings["lr"]))
    seed_everything(0)
    motion = torch.randn(settings["batch_size"], settings["window_size"], ae.input_width, device=device)

    def step():
        loss = loss_fn(ae, motion)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return 1000 * float(np.median([seconds(step, device) for _ in range(TIMED + 2)][2:]))  # 2 to warm up


def compare_gradients(path, settings, store, loss_fn, device):
    """Relative variances of the encoder's gradient in the state of a checkpoint, in float32: over batches of
    windows of the training clips ("gradient_variance"), and for one of them over what the quantizer draws
    ("draw_variance": 0 for one that draws nothing)."""
    ae, _ = load_autoencoder(path)
    ae, windows = ae.to(device), WindowDataset(store, settings["window_size"])
    places = np.random.default_rng(0).integers(len(windows), size=(GRADIENTS, settings["batch_size"]))
    batches = [torch.stack([windows[int(place),] for place in row]).to(device) for row in places]
    seed_everything(0)
    found = gradient_variance(ae, loss_fn, batches, list(ae.encoder.parameters()))
    return {"gradient_variance": found["batches"], "draw_variance": found["draws"]}


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
    with_levels(bench.table)
    bench.study_steps(wanted)
    if bench.args.FID_every:
        bench.count_steps(bench.args.FID_threshold)
    bench.table.publish(draw)


if __name__ == "__main__":
    run(main)
