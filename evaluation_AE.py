"""Evaluate a trained autoencoder on the test split: both MPJPEs, acceleration error, FID, how the codes are
used, and, where clips are labelled, whether the reconstructions still do what the labels say (semantic
probes).

    python evaluation_AE.py --name FSQ_AE_High --model FSQ_AE_High --dataset_name t2m

Results: the screen, checkpoints/<dataset>/<name>/eval/eval.log and, beside it, evaluation_AE_<protocol>.json
(evaluation_AE.json for a data set with an evaluator of its own, and without any). Without an evaluator the
other figures are given, and it says so.
"""
from functools import partial
from itertools import groupby

from models.AE import AE_models
from models.loading import load_autoencoder, weights_hash
from models.TextEncoder import cached_text_features
from utils import options
from utils.data.datasets import MotionStore, read_labels
from utils.data.specs import get_spec, joints_in_metres
from utils.errors import UserError, is_first, only_check, run
from utils.evaluation.codebook import code_usage, usage_rows
from utils.evaluation.probes import check, knows, probe_report
from utils.evaluation.protocols import TextClips, score_rows
from utils.evaluation.reconstruction import (
    reconstruct,
    reconstruct_with_tail,
    reconstruction_errors,
    reconstruction_fid,
)
from utils.evaluation.scoring import check_evaluation, evaluate
from utils.evaluation.suites import add_suite, load_suite
from utils.files import RunFolder
from utils.report import format_table, write_results
from utils.training import distributed
from utils.training.settings import code_version, machine, peak_memory_mb, seed_everything, start


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
    """The EvaluatorSuite; None, with a line that says why, where there are none and --protocol does not
    insist."""
    try:
        return load_suite(args, spec, partial(cached_text_features, spec.text_encoder, folder=spec.root),
                          device=device)
    except UserError as error:
        if args.protocol:
            raise
        if is_first():
            print(f"no FID: {error}")
        return None


def load_text_clips(suite, spec, args):
    """The TextClips of a released protocol. UserError if they cannot be evaluated."""
    clips = TextClips(spec, args.split, args.num_workers, suite.columns)
    check_evaluation(suite, clips.captions, count=len(clips))
    return clips


def judge(suite, ae, pairs, spec, args, device):
    """{"FID"} by an evaluator of our own, on every clip, and None; by a released one the FID and all scores
    of its protocol."""
    if not suite.released:
        return {"FID": reconstruction_fid(suite.matching, pairs)}, None
    clips = load_text_clips(suite, spec, args)

    def generate(_repeat, drawn):
        pairs = reconstruct_with_tail(ae, drawn.real, clips.store.mean, clips.store.std, device)
        return pairs if suite.published_tail else [clip for clip, _ in pairs]

    scores = evaluate(suite, partial(clips.draw, args.seed), generate, args.repeats, args.seed)
    scores.pop("clips")
    return {suite.tag("FID"): scores["generated"][suite.tag("FID")]["mean"]}, scores


def probe_reconstructions(spec, store, pairs):
    """Probe report of what the reconstructions of labelled clips do; None where nothing is labelled with what
    the probes know."""
    labels = read_labels(spec) or {} if spec.skeleton == "t2m" else {}
    names = [name for name, length in zip(store.ids, store.lengths) if length >= 4]
    rows = [(labels[name], check(labels[name], joints_in_metres(made, spec), spec.fps))
            for name, (_, made) in zip(names, pairs)
            if knows(labels.get(name))]
    return probe_report(rows) if rows else None


def make_table(results):
    units = {"MPJPE": "mm, by protocol (root aligned, accumulated heading)",
             "MPJPE_facing": "mm, in the facing frame", "acceleration_error": "mm / frame^2"}
    rows = [(key, f"{value:.4g}", units.get(key, f"{results['protocol']} protocol"))
            for key, value in results["metrics"].items()]
    if results["probes"]:
        rows.append(("semantic probes", f"{results['probes']['all']['share']:.3f}",
                     "of labelled clips, reconstructed"))
    if results["scores"]:
        rows += [(f"scores: {key}", made, f"real clips {real}")
                 for key, made, real in score_rows(results["scores"])]
    runs = [(level, len(list(same))) for level, same in groupby(results["levels"] or [])]
    shown = "x".join(f"{level}^{count}" if count > 1 else f"{level}" for level, count in runs)
    rows += [("levels", shown or "none", f"{results['target_dim']} dimensions")]
    rows += usage_rows(results["codes"], f"on {results['split']}")
    return format_table(rows, ("figure", "value", ""))


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
        store = MotionStore(spec, args.split, args.num_workers)

    if only_check():
        suite = find_suite(args, spec, device)
        if suite is not None and suite.released:
            load_text_clips(suite, spec, args)
    if options.checked():
        return
    pairs = reconstruct(ae, store, device)
    figures = reconstruction_errors(pairs, spec)
    suite, scores = find_suite(args, spec, device), None
    if suite is not None:
        found, scores = judge(suite, ae, pairs, spec, args, device)
        figures |= found
    usage = code_usage(ae, store, device)
    results = {
        "kind": suite.tag("reconstruction") if suite else "reconstruction",
        "protocol": suite and suite.protocol, "evaluators": suite and suite.describe(), "dataset": spec.name,
        "split": args.split, "clips": len(pairs), "frames": sum(len(real) for real, _ in pairs),
        "left_out": len(store.skipped), "model": checkpoint.get("model_name") or args.model,
        "model_kwargs": checkpoint.get("model_kwargs"), "levels": list(ae.levels) if ae.levels else None,
        "target_dim": ae.target_dim, "codebook_size": ae.codebook_size, "finite_targets": ae.finite_targets,
        "metrics": figures, "scores": scores,
        "probes": probe_reconstructions(spec, store, pairs),
        "repeats_asked": args.repeats if scores else None, "codes": usage, "checkpoint": path.name,
        "weights": weights_hash(ae), "steps": checkpoint.get("total_it"), "seed": args.seed,
        "code_version": code_version(), "machine": machine(), "peak_memory_mb": peak_memory_mb(),
    }
    write_results(folder.root / "eval", suite.tag("evaluation_AE") if suite else "evaluation_AE", results,
                  make_table(results))


if __name__ == "__main__":
    run(main)
