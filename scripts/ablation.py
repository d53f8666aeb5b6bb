"""Stage two on the targets of different autoencoders: is a grid an easier target for diffusion than an
unordered codebook, and than a continuous latent?

    python -m scripts.quantizer_bench --dataset_name demo --name bench --rows AE_Model VQ_AE_Model VQ_AE_EMA FSQ_AE_High ...
    python -m scripts.ablation --dataset_name demo --ae_bench bench --rows AE_Model VQ_AE_Model VQ_AE_EMA FSQ_AE_High ... \\
                               --predictions velocity x --steps 2000 --seeds 3 --size S

For every autoencoder of --rows (trained before by quantizer_bench.py), every prediction of the head and every
seed a generator is trained by train_MARDM.py, with the same network, data order, steps and optimiser, and
judged by evaluation_MARDM.py after its last step, as a user would call them; the runs are
checkpoints/<dataset>/ablation_<row>_<prediction>_<seed>. All generators count positions from both ends of a
clip, those of the continuous latent too. Started again it goes on where it stopped; --jobs 2 trains two at a
time. Writes ablation.json, ablation.md and ablation.png into --output_dir. It needs the data set's evaluator
(train_evaluator.py) and, for the semantic probes, its length estimator (train_length_estimator.py).
"""
import os
from pathlib import Path

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from analyze_training import first_reach
from models.AE import AE_models
from models.loading import load_autoencoder
from models.MARDM import SIZES, family_of
from scripts.runs import RunTable, Scripts, add_runs, check_begun, evaluator_hash, newest_result, warm_up_of
from utils import options
from utils.curves import STYLE, curve, find_runs, plt, read_scalars, save_figure
from utils.data.specs import get_spec
from utils.errors import UserError, run
from utils.evaluation.suites import load_suite, suite_flags
from utils.files import (
    RunFolder,
    read_checkpoint,
)

PREDICTIONS = ("velocity", "x")
# of the steps: where the learning rate drops; the losses behind it tell how steady the training is
DROP = 0.8
COLUMNS = {  # column: (unit, digits)
    "target_dim": ("dimensions", 0), "FID": ("", 4), "R1": ("", 3), "R3": ("", 3), "matching": ("", 3),
    "diversity": ("", 2), "probes": ("share passed", 3), "foot_skating": ("m/s", 3),
    "steps_to_FID": ("steps to the threshold", 0), "loss_mean": ("last fifth", 3),
    "loss_noise": ("std / mean, last fifth", 3)}


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="ablation", check=False)
    add_runs(parser, "table")
    parser.add_argument("--rows", nargs="+", choices=list(AE_models), required=True, metavar="ROW",
                        help="rows of the autoencoder zoo, trained by scripts.quantizer_bench")
    parser.add_argument("--ae_bench", default="bench", help="--name of that bench")
    parser.add_argument("--ae_seed", type=options.non_negative_int, default=None,
                        help="seed of the autoencoders; default: that of each generator")
    parser.add_argument("--predictions", nargs="+", choices=PREDICTIONS, default=list(PREDICTIONS),
                        help="what the heads predict")
    parser.add_argument("--size", choices=list(SIZES), default="S", help="size of the generators")
    parser.add_argument("--steps", type=options.positive_int, default=20_000,
                        help="training steps of every generator")
    parser.add_argument("--batch_size", type=options.positive_int, default=64, help="clips a step")
    parser.add_argument("--lr", type=options.positive_float, default=2e-4, help="learning rate after warm-up")
    parser.add_argument("--dropout", type=options.fraction, default=0.2, help="dropout of the transformer")
    parser.add_argument("--diffmlps_batch_mul", type=options.positive_int, default=4,
                        help="(noise, time) pairs a masked token sees in a step")
    parser.add_argument("--ema_decay", type=options.fraction, default=0.9999,
                        help="decay of the weights' average")
    parser.add_argument("--scale_targets", action="store_true",
                        help="train on targets divided by their standard deviation")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16", "auto"], default="fp32",
                        help="of training")
    parser.add_argument("--eval_every", type=options.positive_int, default=10,
                        help="epochs between two validations, with FID")
    parser.add_argument("--FID_threshold", type=options.positive_float, default=1.0,
                        help="validation FID whose first reaching is reported (it can be changed later)")
    parser.add_argument("--evaluator", default="evaluator", help="--name of the evaluator's run")
    parser.add_argument("--repeats", type=options.positive_int, default=3, help="repeats of the evaluation")
    parser.add_argument("--probe_repeats", type=options.non_negative_int, default=0,
                        help="clips a probe prompt; 0 = no probes")
    parser.add_argument("--cfg", type=options.non_negative_float, default=None,
                        help="guidance scale; default: the data set's")
    return parser.parse_args()


def settings_of(args, spec):
    """What every run of one table shares."""
    names = ("ae_bench", "ae_seed", "size", "steps", "batch_size", "lr", "dropout", "diffmlps_batch_mul",
             "ema_decay", "scale_targets", "precision", "eval_every", "repeats", "probe_repeats", "cfg")
    return {name: getattr(args, name) for name in names} | {
        "dataset": args.dataset_name, "warm_up_iter": warm_up_of(args),
        "milestones": [int(DROP * args.steps)], "evaluator": evaluator_hash(args, spec)}


class Ablation:
    """Trains and evaluates the rows of a RunTable; a row is "<autoencoder> <prediction>"."""

    def __init__(self, args, spec, folder):
        self.args, self.spec, self.settings, self.call = args, spec, settings_of(args, spec), Scripts(args,
                                                                                                      folder)
        order = [f"{row} {prediction}" for row in AE_models for prediction in PREDICTIONS]
        self.table = RunTable(Path(folder) / "ablation.json", "ablation", self.settings, order, dict(COLUMNS),
                              {"scale_targets": False})

    def autoencoder(self, row, seed):
        """RunFolder of the autoencoder that a generator is trained on. UserError when it is not there."""
        seed = seed if self.args.ae_seed is None else self.args.ae_seed
        folder = RunFolder(self.args.checkpoints_dir, self.spec.name, f"{self.args.ae_bench}_{row}_{seed}")
        if not folder.latest.is_file():
            raise UserError(f"there is no {folder.latest}: train it with python -m scripts.quantizer_bench "
                            f"--name {self.args.ae_bench} "
                            f"--rows {row} --seed {seed} --seeds 1, or pass --ae_bench or --ae_seed")
        return folder

    def folder(self, row, seed):
        return RunFolder(self.args.checkpoints_dir, self.spec.name,
                         f"{self.args.name}_{row.replace(' ', '_')}_{seed}")

    def measure(self, row, seed):
        """The metrics of one row with one seed; what an earlier start did is kept."""
        ae_row, prediction = row.split()
        folder, ae_folder, s = self.folder(row, seed), self.autoencoder(ae_row, seed), self.settings
        name, ae_name, model = folder.root.name, ae_folder.root.name, f"{family_of(ae_row)}-SiT-{s['size']}"
        resume = ["--is_continue"] if folder.latest.is_file() else []
        if resume:
            check_begun(folder.latest, read_checkpoint(folder.latest).get("args", {}), s)
        scale = ["--scale_targets"] if s["scale_targets"] else []
        seconds = self.call(name, "train_MARDM.py", "--name", name, "--model", model, "--ae_name", ae_name,
                            "--ae_model", ae_row, "--prediction", prediction, "--count_from_end", "--seed",
                            seed, "--max_iter", s["steps"], "--epoch", s["steps"], "--batch_size",
                            s["batch_size"], "--lr", s["lr"], "--clip_grad", 1, "--warm_up_iter",
                            s["warm_up_iter"], "--milestones", *s["milestones"], "--dropout", s["dropout"],
                            "--diffmlps_batch_mul", s["diffmlps_batch_mul"], "--ema_decay", s["ema_decay"],
                            "--precision", s["precision"], "--need_evaluation", "--evaluator",
                            self.args.evaluator, "--protocol", "trained", "--eval_every", s["eval_every"],
                            "--log_every", 10, *scale, *resume)
        cfg = [] if s["cfg"] is None else ["--cfg", s["cfg"]]
        self.call(name, "evaluation_MARDM.py", "--name", name, "--which", "latest", "--seed", seed,
                  "--repeats", s["repeats"], "--probe_repeats", s["probe_repeats"], "--evaluator",
                  self.args.evaluator, "--protocol", "trained", *cfg)
        metrics = read_evaluation(folder.root / "eval")
        if metrics["steps"] != s["steps"]:
            raise UserError(f"{folder.latest} has {metrics['steps']} steps, not {s['steps']}; remove it, or "
                            "pick another --name")
        target_dim = read_checkpoint(folder.latest)["model_kwargs"]["target_dim"]
        return metrics | read_curves(folder) | {"target_dim": target_dim, "seconds": seconds,
                                                "resumed": bool(resume)}

    def check(self, wanted):
        """UserError for what is missing, and for heads that are too narrow for their targets."""
        args = self.args
        load_suite(suite_flags(args.checkpoints_dir, protocol="trained", evaluator=args.evaluator),
                   self.spec, lambda _: None)
        estimator = RunFolder(args.checkpoints_dir, self.spec.name, "length_estimator").checkpoint()
        if args.probe_repeats and (self.spec.skeleton != "t2m" or not estimator.is_file()):
            raise UserError(f"--probe_repeats needs 22 joints and a length estimator ({estimator}: "
                            "train_length_estimator.py)")
        for row, seed in wanted:
            ae_row, prediction = row.split()
            ae, _ = load_autoencoder(self.autoencoder(ae_row, seed).latest, ae_row)
            width = SIZES[args.size]["head_width"]
            if prediction == "velocity" and ae.target_dim > width:
                raise UserError(f"{ae_row} has targets of {ae.target_dim} dimensions, a head of size "
                                f"{args.size} is {width} wide "
                                "and cannot tell the noise of more dimensions; pass a larger --size, or "
                                "leave velocity out")

    def count_steps(self, threshold):
        """Steps to the threshold, of every run, from its validations; none where a run has not reached it."""
        for entry in (entry for runs in self.table.runs.values() for entry in runs.values()):
            steps, values = (np.array(entry["validation"][key]) for key in ("steps", "FID"))
            entry["steps_to_FID"] = first_reach(steps, values, threshold, upwards=False)
        self.table.columns["steps_to_FID"] = (f"steps to a validation FID of {threshold:g}", 0)
        self.table.save()


def read_evaluation(folder):
    """The metrics of the newest result of evaluation_MARDM.py in a folder."""
    results = newest_result(folder, "evaluation_MARDM")
    scores = {key: value["mean"] for key, value in results["scores"]["generated"].items()}
    return {**{key: scores[key] for key in ("FID", "R1", "R2", "R3", "matching", "diversity")},
            "steps": results["steps"], "real": {key: value["mean"]
                                                for key, value in results["scores"]["real"].items()},
            "probes": results["probes"]["rate"] if "probes" in results else None,
            "foot_skating": results["foot_skating"]["generated"],
            "foot_skating_real": results["foot_skating"]["real"]}


def read_curves(folder):
    """Validations of a run, and mean and relative noise of the training loss after the learning rate has
    dropped."""
    name = folder.root.name
    scalars = read_scalars(find_runs(folder.root)[name], folder.root)
    steps, fid = curve(scalars, "Val/FID", name)
    at, losses = curve(scalars, "Train/loss", name)
    tail = losses[at > DROP * at[-1]]
    return {"validation": {"steps": steps.tolist(), "FID": fid.tolist()}, "loss_mean": float(tail.mean()),
            "loss_noise": float(tail.std() / tail.mean()) if len(tail) > 1 else None}


def draw(table, path):
    """Left: validation FID over the steps, the seeds' mean. Right: FID against what the clips show, each run
    a point."""
    rows = {row: list(table.runs[row].values()) for row in table.order if table.runs.get(row)}
    families = list(dict.fromkeys(row.split()[0] for row in rows))
    probed = all(entry["probes"] is not None for runs in rows.values() for entry in runs)
    shown, what = ("probes", "semantic probes passed") if probed else ("R3", "R-precision, top 3")
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(14, 5.5), layout="constrained")
        for row, runs in rows.items():
            dashed = row.endswith(" x")
            style = {"color": f"C{families.index(row.split()[0]) % 10}", "marker": "x" if dashed else "o"}
            steps = runs[0]["validation"]["steps"]
            fid = np.mean([entry["validation"]["FID"] for entry in runs
                           if entry["validation"]["steps"] == steps], 0)
            left.plot(steps, fid, label=row, linestyle="--" if dashed else "-", **style)
            right.scatter([entry["FID"] for entry in runs], [entry[shown] for entry in runs], **style)
        left.set(xlabel="training steps", ylabel="validation FID, mean of the seeds", yscale="log")
        right.set(xlabel="test FID", ylabel=what, xscale="log")
        for axis in (left.yaxis, right.xaxis):  # plain numbers, few enough to be read
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        figure.legend(loc="outside right upper", fontsize=9)
        save_figure(figure, path)


def main():
    args = parse_args()
    spec = get_spec(args.dataset_name, args.dataset_dir)
    RunFolder(args.checkpoints_dir, spec.name, args.name)  # a name that is none is seen here
    folder = Path(args.output_dir or f"generation/{args.name}_{spec.name}")
    ablation = Ablation(args, spec, folder)
    os.makedirs(folder, exist_ok=True)
    # a whole table of one seed first
    wanted = [(f"{row} {prediction}", seed) for seed in range(args.seed, args.seed + args.seeds)
              for row in args.rows
              for prediction in args.predictions]
    ablation.check(wanted)  # before the first training, not after hours of it
    ablation.table.fill(wanted, ablation.measure, ablation.call, args.jobs)
    ablation.count_steps(args.FID_threshold)
    ablation.table.publish(draw)


if __name__ == "__main__":
    run(main)
