"""Evaluate a trained autoencoder on the test split: both MPJPEs, acceleration error, FID, code usage, and for
labelled clips whether the reconstructions still do what the labels say (semantic probes).

    python evaluation_AE.py --name FSQ_AE_High --model FSQ_AE_High --dataset_name t2m

Results: the screen, checkpoints/<dataset>/<name>/eval/eval.log and, in the same folder,
evaluation_AE_<protocol>.json (evaluation_AE.json with the data set's own evaluator, or without any).
Without an evaluator it says so, and gives all metrics but the FID.
"""
from functools import partial
from itertools import groupby

from models.AE import AE_models
from models.loading import load_autoencoder, weights_hash
from models.TextEncoder import cached_text_features
from utils import options
from utils.data.datasets import MotionStore, read_labels, statistics_of
from utils.data.specs import get_spec, joints_in_metres
from utils.errors import UserError, is_first, run
from utils.evaluation.codebook import code_usage, usage_rows
from utils.evaluation.probes import check, knows, probe_report
from utils.evaluation.protocols import TextClips, result_header, score_rows
from utils.evaluation.reconstruction import (
    reconstruct,
    reconstruction_errors,
    reconstruction_fid,
    reconstruction_scores,
)
from utils.evaluation.scoring import check_evaluation
from utils.evaluation.suites import add_suite, load_suite
from utils.files import RunFolder
from utils.report import format_table, write_results
from utils.training import distributed
from utils.training.settings import seed_everything, start

UNITS = {"MPJPE": "mm, by protocol (root aligned, accumulated heading)",
         "MPJPE_facing": "mm, in the facing frame", "acceleration_error": "mm / frame^2"}


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="AE")
    options.add_workers(parser)
    options.add_trained(parser, AE_models, "autoencoder")
    options.add_split(parser)
    parser.add_argument("--repeats", type=options.positive_int, default=20,
                        help="repeats of a released protocol")
    add_suite(parser)
    return parser.parse_args()


def find_suite(args, spec, device):
    """The EvaluatorSuite; None, with a printed reason, where there is none and no --protocol was given."""
    encode = partial(cached_text_features, spec.text_encoder, folder=spec.root)
    try:
        return load_suite(args, spec, encode, device=device)
    except UserError as error:
        if args.protocol:
            raise
        if is_first():
            print(f"no FID: {error}")
        return None


def probe_reconstructions(spec, store, pairs):
    """Probe report of the reconstructions of labelled clips; None where the probes know no label."""
    labels = read_labels(spec) or {} if spec.layout.name == "t2m" else {}
    names = [name for name, length in zip(store.ids, store.lengths) if length >= 4]
    rows = [(labels[name], check(labels[name], joints_in_metres(made, spec), spec.fps))
            for name, (_, made) in zip(names, pairs) if knows(labels.get(name))]
    return probe_report(rows) if rows else None


def make_table(results):
    rows = [(key, f"{value:.4g}", UNITS.get(key, f"{results['protocol']} protocol"))
            for key, value in results["metrics"].items()]
    if results["probes"]:
        counted = results["probes"]["all"]
        rows.append(("semantic probes", f"{counted['share']:.3f}",
                     f"of {counted['total']} clips with labels that they know, reconstructed"))
    if results["scores"]:
        rows += [(f"scores: {key}", made, f"real clips {real}")
                 for key, made, real in score_rows(results["scores"])]
    runs = [(level, len(list(same))) for level, same in groupby(results["levels"] or [])]
    shown = "x".join(f"{level}^{count}" if count > 1 else f"{level}" for level, count in runs)
    rows += [("levels", shown or "none", f"{results['target_dim']} dimensions")]
    rows += usage_rows(results["codes"], f"on {results['split']}")
    return format_table(rows, ("metric", "value", ""))


def main():
    args = parse_args()
    device = start(args.device)
    seed_everything(args.seed)
    with distributed.first_goes_ahead():
        spec = get_spec(args.dataset_name, args.dataset_dir)
        folder = RunFolder(args.checkpoints_dir, spec.name, args.name)
        path = folder.checkpoint(args.which)
        ae, checkpoint = load_autoencoder(path, args.model)
        ae = ae.to(device)
        own = statistics_of(checkpoint)
        store = MotionStore(spec, args.split, args.num_workers, statistics=own)
        suite, clips = find_suite(args, spec, device), None
        if suite and suite.released:
            clips = TextClips(spec, args.split, args.num_workers, suite.columns, statistics=own)
            check_evaluation(suite, clips.captions, count=len(clips))
    if options.checked():
        return
    pairs = reconstruct(ae, store, device)
    metrics, scores = reconstruction_errors(pairs, spec), None
    if clips is not None:
        scores = reconstruction_scores(suite, ae, clips, partial(clips.draw, args.seed),
                                       (args.repeats, args.seed))
        metrics[suite.tag("FID")] = scores["generated"][suite.tag("FID")]["mean"]
    elif suite:
        metrics["FID"] = reconstruction_fid(suite.matching, pairs)
    results = {
        "metrics": metrics, "scores": scores, "repeats_asked": args.repeats if scores else None,
        "probes": probe_reconstructions(spec, store, pairs), "codes": code_usage(ae, store, device),
        "clips": len(pairs), "frames": sum(len(real) for real, _ in pairs), "left_out": len(store.skipped),
        "model_kwargs": checkpoint.get("model_kwargs"), "levels": list(ae.levels) if ae.levels else None,
        "target_dim": ae.target_dim, "codebook_size": ae.codebook_size, "finite_targets": ae.finite_targets}
    results = result_header("reconstruction", suite, spec, args.split, args, path, checkpoint,
                            weights_hash(ae)) | results
    write_results(folder.root / "eval", suite.tag("evaluation_AE") if suite else "evaluation_AE", results,
                  make_table(results))


if __name__ == "__main__":
    run(main)
