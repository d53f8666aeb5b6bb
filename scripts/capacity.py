"""What more codes are worth: grids of many sizes with the same network, data order, steps and optimiser.

    python -m scripts.capacity --dataset_name realmotion --steps 1000 --seeds 3 --width 192 --dropout 0 \\
        --batch_size 32 --lr 8e-4 --warm_up_iter 100
    python -m scripts.capacity ... --rows FSQ_AE_Small FSQ_AE_High --fsq_levels 5 3 --reaches 4

A row is a size of the autoencoder zoo, or the grid of an --fsq_levels, with a reach (train_AE.py); without
--rows and --fsq_levels all sizes of the zoo and five further grids, 15 to 390,625 codes. Each is trained by
train_AE.py and evaluated, after its last step, by evaluation_AE.py; the runs are
checkpoints/<dataset>/<name>_<row>_<reach>_<seed>. Started again it resumes, and more rows, reaches or seeds
join the table. Writes capacity.json, capacity.md and capacity.png into --output_dir, and prints how the
number of codes, and of dimensions, goes with error and speed (Spearman's rank correlation over the rows).
"""
import math

import numpy as np
from scipy.stats import spearmanr

from analyze_training import first_reach
from models.AE import FSQ_LEVELS, FSQ_REACH
from scripts.quantizer_bench import COLUMNS as BENCH
from scripts.quantizer_bench import Bench, add_network, level_rows, levels_of, model_flags, read_evaluation
from scripts.runs import add_experiment, read_losses
from utils import options
from utils.curves import STYLE, plt, save_figure
from utils.errors import run
from utils.report import format_table

SETS = ((5, 3), (8, 6, 5), (8, 5, 5, 5), (7, 5, 5, 5, 5), (8, 8, 8, 6, 5))  # 15 to 15,360 codes
COLUMNS = {"codes": ("size of the grid", 0), "target_dim": ("dimensions", 0), "bits": BENCH["bits"],
           **{key: BENCH[key] for key in ("MPJPE", "MPJPE_facing", "FID", "codes_used")},
           "codebook_usage": ("of the grid", 4), "axes_entropy_share": BENCH["axes_entropy_share"],
           "final_loss": ("training, last fifth", 4),
           "steps_to_loss": ("steps to the threshold", 0)}  # its unit names the threshold later: count_steps
TRENDS = {"MPJPE": "error by protocol", "MPJPE_facing": "error of the pose", "FID": "FID",
          "steps_to_loss": "steps to the loss"}


def parse_args():
    parser = options.make_parser(__doc__)
    add_experiment(parser, "capacity", 256, "windows")
    add = parser.add_argument
    add("--rows", nargs="+", type=options.row_of(FSQ_LEVELS), metavar="ROW",
        help="sizes of the autoencoder zoo; default: all of them, none with --fsq_levels")
    add_network(parser)
    add("--reaches", type=options.positive_float, nargs="+", default=(1.0, FSQ_REACH),
        help="reaches of every grid; 1 is FSQ as published")
    add("--loss_threshold", type=options.positive_float,
        help="report the steps until the training loss is this low (can be changed later); default: the "
             "highest final loss of any run in the table, which all of them reach")
    args = parser.parse_args()
    nothing = args.rows is None and args.fsq_levels is None
    args.rows = (list(FSQ_LEVELS) if nothing else args.rows or []) + level_rows(SETS if nothing
                                                                                else args.fsq_levels)
    return args


class Capacity(Bench):
    """A row is "<autoencoder> <reach>"."""

    kind, file, columns, order = "capacity", "capacity.json", COLUMNS, ()
    names = ("steps", "width", "dropout", "batch_size", "window_size", "lr", "precision")
    trained, before = ("width", "window_size"), {}

    def train_flags(self, row, seed):
        model, reach = row.split()
        return [*model_flags(model), "--fsq_reach", reach, "--eval_every", self.settings["steps"],
                "--log_every", max(1, min(10, self.settings["steps"] // 20))]

    def began(self, checkpoint):
        return checkpoint.get("args", {})

    def read(self, folder, seed):
        steps, losses, last = read_losses(folder)
        return read_evaluation(folder.root / "eval") | {
            "losses": {"steps": steps.tolist(), "values": losses.tolist()}, "final_loss": float(last.mean())}

    def sort(self):
        """Put the table's rows in order: by reach, and then by the number of codes, which is added to each
        run."""
        for row, runs in self.table.runs.items():
            for metrics in runs.values():
                metrics["codes"] = math.prod(levels_of(row.split()[0]))
        self.table.order = sorted(self.table.runs, key=lambda row: (
            float(row.split()[1]), math.prod(levels_of(row.split()[0])), row))

    def count_steps(self, threshold):
        """Note in every run after how many steps its training loss reached the threshold, if it did."""
        runs = [metrics for row in self.table.runs.values() for metrics in row.values()]
        threshold = threshold or max(metrics["final_loss"] for metrics in runs)
        for metrics in runs:
            losses = metrics["losses"]
            metrics["steps_to_loss"] = first_reach(np.array(losses["steps"]), np.array(losses["values"]),
                                                   threshold, upwards=False)
        self.table.columns = self.table.columns | {
            "steps_to_loss": (f"steps to a training loss of {threshold:.4g}", 0)}
        self.table.save()


def by_reach(rows):
    """{reach: [row of ``RunTable.rows``]}."""
    groups = {}
    for summary in rows:
        groups.setdefault(summary["row"].split()[1], []).append(summary)
    return groups


def trends(rows):
    """For each reach of three rows or more, how codes, and dimensions, go with ``TRENDS`` (Spearman, over
    rows), and the best row; a text."""
    lines = []
    for reach, group in by_reach(rows).items():
        for key, name in TRENDS.items():
            known = [summary for summary in group if key in summary]
            if len(known) < 3:
                continue
            best = min(known, key=lambda summary: summary[key])
            values = [summary[key] for summary in known]
            lines.append((reach, name, f"{best['row'].split()[0]} ({best[key]:.4g})", *(
                rank_correlation([summary[size] for summary in known], values)
                for size in ("codes", "target_dim"))))
    header = ("reach", "what", "lowest", "correlation with codes", "with dimensions")
    return format_table(lines, header) if lines else ""


def rank_correlation(one, other):
    """Spearman's, as text; "-" where one of them does not vary."""
    return f"{spearmanr(one, other).statistic:.2f}" if np.ptp(one) and np.ptp(other) else "-"


def draw(table, path):
    """The grids, from the smallest on, against errors, FID, codes in use and their share, and the steps to a
    loss."""
    shown = ("MPJPE", "MPJPE_facing", "FID", "codes_used", "codebook_usage", "steps_to_loss")
    rows = table.rows()
    sizes = {summary["row"].split()[0]: round(summary["codes"]) for summary in rows}
    places = {name: place for place, name in enumerate(sorted(sizes, key=lambda name: (sizes[name], name)))}
    labels = [f"{name.removeprefix('FSQ_AE_').removeprefix('Model_')}: {sizes[name]:,}" for name in places]
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(2, 3, figsize=(18, 11), layout="constrained")
        for number, (reach, group) in enumerate(by_reach(rows).items()):
            for panel, key in zip(panels.flat, shown):
                known = sorted((summary for summary in group if key in summary),
                               key=lambda summary: places[summary["row"].split()[0]])
                panel.errorbar([places[summary["row"].split()[0]] + 0.1 * number for summary in known],
                               [summary[key] for summary in known],
                               [summary.get(f"{key}_std", 0) for summary in known], marker="o", capsize=2,
                               color=f"C{number}", linestyle=":", label=f"reach {reach}")
        for panel, key in zip(panels.flat, shown):
            unit = table.columns[key][0]
            panel.set_ylabel(f"{key} ({unit})" if unit else key)
            panel.set_xticks(range(len(labels)), labels, rotation=60, ha="right", rotation_mode="anchor",
                             fontsize=8)
        for panel in panels.flat[3:5]:
            panel.set_yscale("log")
        panels[0, 0].legend()
        figure.supxlabel("grid: number of codes")
        save_figure(figure, path)


def main():
    args = parse_args()
    capacity = Capacity(args)
    capacity.fill(capacity.wanted([f"{row} {reach:g}" for row in args.rows for reach in args.reaches]))
    capacity.sort()
    capacity.count_steps(args.loss_threshold)
    capacity.table.publish(draw)
    if found := trends(capacity.table.rows()):
        print(f"\n{found}")


if __name__ == "__main__":
    run(main)
