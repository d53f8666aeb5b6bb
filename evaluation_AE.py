"""Evaluate a trained autoencoder on the test split: both MPJPEs, acceleration error, FID, and how the codes are used.

    python evaluation_AE.py --name FSQ_AE_High --model FSQ_AE_High --dataset_name t2m

Results: the screen, checkpoints/<dataset>/<name>/eval/eval.log and evaluation_AE.json. FID needs an evaluator of the data set
(train_evaluator.py); without one the other figures are given, and it says so.
"""
from functools import partial

from models.AE import AE_models
from models.loading import load_autoencoder, weights_hash
from models.TextEncoder import cached_text_features
from utils import options
from utils.datasets import MotionStore, get_spec
from utils.errors import run
from utils.evaluation import (
    code_usage,
    format_table,
    reconstruct,
    reconstruction_errors,
    reconstruction_fid,
    write_results,
)
from utils.evaluators import TrainedEvaluator
from utils.train_utils import RunFolder, code_version, machine, peak_memory_mb, pick_device, seed_everything


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="AE")
    options.add_workers(parser)
    parser.add_argument("--model", choices=list(AE_models), default=None, help="autoencoder of the zoo; default: as trained")
    parser.add_argument("--split", choices=["train", "val", "test"], default="test", help="split to evaluate on")
    parser.add_argument("--which", choices=["best", "latest"], default="best", help="checkpoint: net_best_fid.tar or latest.tar")
    parser.add_argument("--evaluator", default="evaluator", help="--name of the evaluator's run")
    return parser.parse_args()


def main():
    args = parse_args()
    device = pick_device(args.device)
    seed_everything(args.seed)
    spec = get_spec(args.dataset_name, args.dataset_dir)
    folder = RunFolder(args.checkpoints_dir, spec.name, args.name)
    path = folder.checkpoint(args.which)
    ae, checkpoint = load_autoencoder(path, args.model)
    ae = ae.to(device)
    store = MotionStore(spec, args.split, args.num_workers)

    pairs = reconstruct(ae, store, device)
    figures = reconstruction_errors(pairs, spec.joints)
    evaluator_path = RunFolder(args.checkpoints_dir, spec.name, args.evaluator).checkpoint()
    if evaluator_path.is_file():
        text_features = partial(cached_text_features, spec.text_encoder, folder=spec.root)
        figures["FID"] = reconstruction_fid(TrainedEvaluator.load(evaluator_path, text_features, device), pairs)
    else:
        print(f"no FID: there is no evaluator at {evaluator_path} (train_evaluator.py makes one)")
    usage = code_usage(ae, store, device)
    results = {
        "kind": "reconstruction", "dataset": spec.name, "split": args.split, "clips": len(pairs),
        "frames": sum(len(real) for real, _ in pairs), "left_out": len(store.skipped), "model": checkpoint.get("model_name"),
        "levels": list(ae.levels) if ae.levels else None, "target_dim": ae.target_dim, "codebook_size": ae.codebook_size,
        "figures": figures, "codes": usage, "checkpoint": path.name, "weights": weights_hash(ae),
        "steps": checkpoint.get("total_it"), "seed": args.seed, "code_version": code_version(), "machine": machine(),
        "peak_memory_mb": peak_memory_mb(),
    }
    units = {"MPJPE": "mm, by protocol (root aligned, accumulated heading)", "MPJPE_facing": "mm, in the facing frame",
             "acceleration_error": "mm / frame^2", "FID": f"evaluator {args.evaluator}"}
    rows = [(key, f"{value:.4g}", units[key]) for key, value in figures.items()]
    rows += [("levels", "x".join(map(str, ae.levels)) if ae.levels else "none", f"{ae.target_dim} dimensions")]
    rows += [(key, f"{value:.6g}", f"on {args.split}") for key, value in usage.items()]
    write_results(folder.root / "eval", "evaluation_AE", results, format_table(rows, ("figure", "value", "")))


if __name__ == "__main__":
    run(main)
