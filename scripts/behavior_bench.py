"""Compares quantizers as behaviour codes: the same network, data order and steps, with each quantizer.

    python -m scripts.behavior_bench --dataset_name imu_har --seeds 3
    python -m scripts.behavior_bench --dataset_name demo --seeds 3 --rows fsq none

Each row is trained by train_behavior.py and evaluated by evaluation_behavior.py with its best checkpoint; the
runs are checkpoints/<dataset>/<name>_<row>_<seed>. Started again it resumes, and more rows or seeds join the
table. Writes behavior_bench.json, .md and .png into --output_dir.
"""
from models.Conv2dFSQ import NORMS
from models.quantizers import QUANTIZERS
from scripts.runs import Calls, add_calls, check_began, newest_result
from utils import options
from utils.curves import STYLE, plt, save_figure
from utils.data.inertial import VIRTUAL, open_asked
from utils.errors import run
from utils.files import read_checkpoint
from utils.motion.inertial import PLACES

ROWS = ("fsq", "vq", "ema", "none")
DISTURBED = {  # column: the evaluation's name of it
    "noise_0.1": "noise of 0.1 of each channel's std", "noise_0.3": "noise of 0.3 of each channel's std",
    "gain_0.8": "gain 0.8", "turned_15": "sensor turned by 15 degrees",
    "turned_45": "sensor turned by 45 degrees"}
FROM_CODES = ("accuracy_from_code", "accuracy_from_nearest_code")
PARTS = ("encoder", "quantizer", "classifier")
COLUMNS = {  # column: (unit, digits)
    **{key: ("", 4) for key in ("accuracy", *FROM_CODES)}, "codes_used": ("", 0), "perplexity": ("", 1),
    "most_used_share": ("", 3), "purity": ("of training codes", 3), "unseen_codes": ("share", 3),
    "stays": ("share of transitions", 3), "variance_explained": ("", 3),
    **{key: ("accuracy", 3) for key in DISTURBED}, **{f"{part}_ms": ("ms", 3) for part in PARTS}}
PASSED = ("epoch", "batch_size", "lr", "fsq_levels", "codes_per_window", "hidden_dim", "recons_weight",
          "norm", "rotate", "places", "min_clips", "label_separator")


def parse_args():
    parser = options.make_parser(__doc__)
    add_calls(parser, "behavior_bench")
    add = parser.add_argument
    add("--rows", nargs="+", choices=[*QUANTIZERS, "none"], default=ROWS, help="quantizers")
    for flag, kind, default in (("epoch", options.positive_int, 40), ("batch_size", options.positive_int, 64),
                                ("lr", options.positive_float, 1e-3),
                                ("hidden_dim", options.positive_int, 128),
                                ("codes_per_window", options.positive_int, 1),
                                ("recons_weight", options.non_negative_float, 0.1),
                                ("rotate", options.number(float, 0, 180), 0.0)):
        add(f"--{flag}", type=kind, default=default, help="as train_behavior.py has it")
    add("--fsq_levels", type=options.positive_int, nargs="+", default=[8, 6, 5, 5, 4],
        help="values per dimension of the grid; codebooks have as many codes and dimensions")
    add("--norm", choices=list(NORMS), default="whiten", help="as train_behavior.py has it")
    options.add_virtual_sensors(parser, VIRTUAL, PLACES)
    return parser.parse_args()


class Bench(Calls):
    """The rows are quantizers."""

    kind, file, columns = "behavior bench", "behavior_bench.json", COLUMNS

    def __init__(self, args):
        super().__init__(args)
        self.settings = {name: getattr(args, name) for name in PASSED} | {"dataset": args.dataset_name}
        self.table = self.open_table(self.settings, [*QUANTIZERS, "none"])

    def open_data(self, args):
        return open_asked(args)

    def measure(self, row, seed):
        """Metrics of a quantizer with one seed."""
        folder = self.folder(row, seed)
        name, resume = folder.root.name, ["--is_continue"] if folder.latest.is_file() else []
        if resume:
            check_began(folder.latest, read_checkpoint(folder.latest).get("args", {}),
                        self.settings | {"quantizer": row})
        passed = self.flags(*(name for name in PASSED if self.settings[name] not in (None, "")))
        seconds = self.call(name, "train_behavior.py", "--name", name, "--seed", seed, "--quantizer", row,
                            *passed, *resume)
        self.call(name, "evaluation_behavior.py", "--name", name, "--seed", seed)
        return read_evaluation(newest_result(folder.root / "eval", "evaluation_behavior")) | {
            "seconds": seconds, "resumed": bool(resume)}

    def whole(self, command):
        """The evaluation loads nothing in workers."""
        words = super().whole(command)
        return words if "evaluation_behavior.py" not in words else words[: words.index("--num_workers")]


def read_evaluation(results):
    """Metrics of evaluation_behavior.py; None for what a network without codes lacks."""
    codes, robust = results["codes"] or {}, results["robustness"]
    used, moves = codes.get("usage", {}), codes.get("transitions") or {}
    known, here = (codes.get(key, {}) for key in ("dictionary_of_train", "dictionary"))
    return {"accuracy": results["accuracy"], **{key: codes.get(key) for key in FROM_CODES},
            "codes_used": used.get("codes_used"), "perplexity": used.get("perplexity"),
            "most_used_share": here["entries"][0]["share"] if here else None,
            "purity": known["summary"]["purity"] if known else None,
            "unseen_codes": codes.get("unseen_codes"),
            "stays": moves.get("stay"), "rates": codes.get("rates"),
            "variance_explained": results["reconstruction"]["variance_explained"],
            **{key: robust[name]["accuracy"] for key, name in DISTURBED.items()},
            **{f"{part}_ms": results["latency"][part]["median_ms"] for part in PARTS},
            "windows": results["windows"], "recall": results["recall"], "steps": results["steps"],
            "codes_per_behavior": {name: row["own"] for name, row in known["behaviors"].items()}
            if known else None}


def draw(table, path):
    """Accuracy by the network and from the code alone; and accuracy of disturbed windows."""
    rows = table.rows()
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
        for panel, keys in ((left, ("accuracy", *FROM_CODES)), (right, ("accuracy", *DISTURBED))):
            width = 0.8 / len(keys)
            for number, key in enumerate(keys):
                shown = [(place, row) for place, row in enumerate(rows) if key in row]
                panel.bar([place + (number - (len(keys) - 1) / 2) * width for place, _ in shown],
                          [row[key] for _, row in shown], width, label=key.replace("_", " "),
                          yerr=[row.get(f"{key}_std", 0) for _, row in shown], capsize=2)
            panel.set_xticks(range(len(rows)), [row["row"] for row in rows])
            panel.set(ylabel="accuracy on the test split", ylim=(0, 1.3))
            panel.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
            panel.legend(fontsize=8, ncols=3, loc="upper right")
        left.set_title("by the network, and from the code alone")
        right.set_title("worse sensors, or mounted differently")
        save_figure(figure, path)


def main():
    bench = Bench(parse_args())
    bench.fill(bench.wanted(bench.args.rows))
    bench.table.publish(draw)


if __name__ == "__main__":
    run(main)
