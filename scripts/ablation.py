"""Generators on the targets of different autoencoders: is a grid an easier target for diffusion than an
unordered codebook, and than a continuous latent?

    python -m scripts.quantizer_bench --dataset_name demo --rows AE_Model VQ_AE_EMA FSQ_AE_High ...
    python -m scripts.ablation --dataset_name demo --rows AE_Model VQ_AE_EMA FSQ_AE_High ... \\
        --predictions velocity x --steps 2000 --seeds 3 --size S

For every autoencoder of --rows (trained by scripts.quantizer_bench), every prediction of the head and every
seed, train_MARDM.py trains a generator with the same network, data order, steps and optimiser, and
evaluation_MARDM.py evaluates it after its last step; the runs are
checkpoints/<dataset>/<name>_<row>_<prediction>_<seed>. All generators count positions from both ends of a
clip, those of the continuous latent too. Started again it resumes; --jobs 2 trains two at a time. Writes
ablation.json, ablation.md and ablation.png into --output_dir. It needs the data set's evaluator
(train_evaluator.py) and, for semantic probes, its length estimator (train_length_estimator.py).
"""
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from models.AE import AE_models
from models.loading import load_autoencoder
from models.MARDM import SIZES, family_of
from scripts.runs import TAIL, Experiment, add_experiment, read_curves, read_generation
from utils import options
from utils.curves import STYLE, plt, save_figure
from utils.errors import UserError, run
from utils.evaluation.smoothness import SMOOTHNESS
from utils.evaluation.suites import load_suite, suite_flags
from utils.files import RunFolder, read_checkpoint

PREDICTIONS = ("velocity", "x")
COLUMNS = {  # column: (unit, digits)
    "target_dim": ("dimensions", 0), "FID": ("", 4), "R1": ("", 3), "R3": ("", 3), "matching": ("", 3),
    "diversity": ("", 2), "probes": ("fraction passed", 3), "foot_skating": ("m/s", 3),
    **SMOOTHNESS,
    "steps_to_FID": ("steps to the threshold", 0),  # its unit names the threshold later: count_steps
    "loss_mean": ("last fifth", 3), "loss_noise": ("std / mean, last fifth", 3)}


def parse_args():
    parser = options.make_parser(__doc__)
    add_experiment(parser, "ablation", 64, "clips")
    add = parser.add_argument
    add("--rows", nargs="+", type=options.row_of(AE_models), required=True, metavar="ROW",
        help="rows of the autoencoder zoo, trained by scripts.quantizer_bench")
    add("--ae_bench", default="bench", help="--name of that bench")
    add("--ae_seed", type=options.non_negative_int,
        help="seed of the autoencoders; default: that of each generator")
    add("--predictions", nargs="+", choices=PREDICTIONS, default=PREDICTIONS, help="what the heads predict")
    add("--size", choices=list(SIZES), default="S", help="size of the generators")
    add("--diffmlps_batch_mul", type=options.positive_int, default=4,
        help="(noise, time) pairs per masked token and step")
    add("--ema_decay", type=options.fraction, default=0.9999, help="decay of the weights' moving average")
    add("--scale_targets", action="store_true", help="divide targets by their standard deviation")
    add("--eval_every", type=options.positive_int, default=10, help="epochs between two validations with FID")
    add("--FID_threshold", type=options.positive_float, default=1.0,
        help="report the steps until the validation FID is this low (can be changed later)")
    add("--repeats", type=options.positive_int, default=3, help="repeats of the evaluation")
    add("--probe_repeats", type=options.non_negative_int, default=0, help="clips per probe; 0 = no probes")
    add("--cfg", type=options.non_negative_float, help="guidance scale; default: the data set's")
    return parser.parse_args()


class Ablation(Experiment):
    """A row is "<autoencoder> <prediction>"."""

    kind, file, columns = "ablation", "ablation.json", COLUMNS
    order = tuple(f"{row} {prediction}" for row in AE_models for prediction in PREDICTIONS)
    scripts, before = ("train_MARDM.py", "evaluation_MARDM.py"), {"scale_targets": False}
    names = ("ae_bench", "ae_seed", "size", "steps", "batch_size", "lr", "dropout", "diffmlps_batch_mul",
             "ema_decay", "scale_targets", "precision", "eval_every", "repeats", "probe_repeats", "cfg")
    trained = ("diffmlps_batch_mul", "ema_decay", "scale_targets", "eval_every")
    evaluated, evaluation_flags = ("repeats", "probe_repeats", "cfg"), ("--protocol", "trained")
    milestones = (TAIL,)

    def autoencoder(self, row, seed):
        """RunFolder of the autoencoder of a generator. UserError if it has not been trained."""
        args = self.args
        seed = seed if args.ae_seed is None else args.ae_seed
        folder = RunFolder(args.checkpoints_dir, self.spec.name, f"{args.ae_bench}_{row}_{seed}")
        if not folder.latest.is_file():
            raise UserError(f"there is no {folder.latest}: train it with python -m scripts.quantizer_bench "
                            f"--name {args.ae_bench} --rows {row} --seed {seed} --seeds 1, or pass "
                            "--ae_bench or --ae_seed")
        return folder

    def train_flags(self, row, seed):
        ae_row, prediction = row.split()
        return ["--model", f"{family_of(ae_row)}-SiT-{self.settings['size']}", "--ae_model", ae_row,
                "--ae_name", self.autoencoder(ae_row, seed).root.name, "--prediction", prediction,
                "--count_from_end", "--clip_grad", 1, "--log_every", 10, "--need_evaluation", "--evaluator",
                self.args.evaluator, "--protocol", "trained"]

    def read(self, folder, seed):
        target_dim = read_checkpoint(folder.latest)["model_kwargs"]["target_dim"]
        return read_generation(folder.root / "eval") | read_curves(folder) | {"target_dim": target_dim}

    def check(self, wanted):
        """UserError for what is missing, and for heads that are too narrow for their targets."""
        args = self.args
        load_suite(suite_flags(args.checkpoints_dir, protocol="trained", evaluator=args.evaluator),
                   self.spec, lambda _: None)
        estimator = RunFolder(args.checkpoints_dir, self.spec.name, "length_estimator").checkpoint()
        if args.probe_repeats and (self.spec.layout.name != "t2m" or not estimator.is_file()):
            raise UserError(f"--probe_repeats needs 22 joints and a length estimator ({estimator}: "
                            "train_length_estimator.py)")
        for row, seed in wanted:
            ae_row, prediction = row.split()
            ae, _ = load_autoencoder(self.autoencoder(ae_row, seed).latest, ae_row)
            width = SIZES[args.size]["head_width"]
            if prediction == "velocity" and ae.target_dim > width:
                raise UserError(f"{ae_row} has targets of {ae.target_dim} dimensions; a head of size "
                                f"{args.size} is {width} wide and cannot predict the noise of more "
                                "dimensions; pass a larger --size, or leave velocity out")


def draw(table, path):
    """Left: the seeds' mean validation FID by steps. Right: probes or R-precision by FID, a point per run."""
    rows = {row: list(table.runs[row].values()) for row in table.order if table.runs.get(row)}
    families = list(dict.fromkeys(row.split()[0] for row in rows))
    probed = all(metrics["probes"] is not None for runs in rows.values() for metrics in runs)
    shown, label = ("probes", "semantic probes passed") if probed else ("R3", "R-precision, top 3")
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(14, 5.5), layout="constrained")
        for row, runs in rows.items():
            dashed = row.endswith(" x")
            style = {"color": f"C{families.index(row.split()[0]) % 10}", "marker": "x" if dashed else "o"}
            steps = runs[0]["validation"]["steps"]
            fid = np.mean([metrics["validation"]["FID"] for metrics in runs
                           if metrics["validation"]["steps"] == steps], 0)
            left.plot(steps, fid, label=row, linestyle="--" if dashed else "-", **style)
            right.scatter([metrics["FID"] for metrics in runs], [metrics[shown] for metrics in runs], **style)
        left.set(xlabel="training steps", ylabel="validation FID, mean of the seeds", yscale="log")
        right.set(xlabel="test FID", ylabel=label, xscale="log")
        for axis in (left.yaxis, right.xaxis):  # plain numbers, few enough to be read
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        figure.legend(loc="outside right upper", fontsize=9)
        save_figure(figure, path)


def main():
    args = parse_args()
    ablation = Ablation(args)
    wanted = ablation.wanted([f"{row} {prediction}" for row in args.rows for prediction in args.predictions])
    ablation.check(wanted)  # before the first training, not after hours of it
    ablation.fill(wanted)
    ablation.count_steps(args.FID_threshold)
    ablation.table.publish(draw)


if __name__ == "__main__":
    run(main)
