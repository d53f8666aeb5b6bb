"""Evaluate a trained generator on the test split: FID, R-precision, matching score, diversity, multimodality, foot skating, and,
for 22-joint skeletons, whether the clips do what fixed prompts say (semantic probes).

    python evaluation_MARDM.py --name FSQ_MARDM --ae_name FSQ_AE_High --ae_model FSQ_AE_High \\
        --model FSQ-MARDM-SiT-XL --dataset_name t2m

Results: the screen, checkpoints/<dataset>/<name>/eval/eval.log and evaluation_MARDM.json.
"""
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from models.AE import AE_models
from models.loading import load_length_estimator, load_pipeline, weights_hash
from models.MARDM import MARDM_models
from models.pipeline import clip_seed, estimate_lengths
from models.TextEncoder import cached_text_features
from utils import options
from utils.datasets import (
    MAX_LENGTH,
    MotionStore,
    caption_groups,
    get_spec,
    load_statistics,
    read_labels,
    report_skipped,
    text_clips,
)
from utils.errors import UserError, run
from utils.evaluation import evaluate_generation, format_table, mean_foot_skating, write_results
from utils.evaluators import TrainedEvaluator
from utils.motion_process import features_to_joints
from utils.probes import PROMPTS, check, probe_report
from utils.train_utils import RunFolder, code_version, machine, peak_memory_mb, pick_device, seed_everything

MULTIMODAL_TEXTS, MULTIMODAL_SAMPLES = 96, 30  # three batches of 32 texts, 30 clips a text


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="MARDM")
    parser.add_argument("--ae_name", default="AE", help="the autoencoder's --name")
    parser.add_argument("--ae_model", choices=list(AE_models), default=None, help="its zoo name; default: as trained")
    parser.add_argument("--model", choices=list(MARDM_models), default=None, help="generator of the zoo; default: as trained")
    parser.add_argument("--which", choices=["best", "latest"], default="best", help="checkpoint: net_best_fid.tar or latest.tar")
    parser.add_argument("--evaluator", default="evaluator", help="--name of the evaluator's run")
    parser.add_argument("--repeats", type=options.positive_int, default=20, help="repeats of the whole protocol")
    parser.add_argument("--cal_mm", action="store_true", help="measure multimodality too (30 clips a text: slow)")
    parser.add_argument("--probe_repeats", type=options.non_negative_int, default=0,
                        help="clips a probe prompt (22-joint skeletons); 0 = no probes")
    parser.add_argument("--length_estimator", default="length_estimator", help="--name of the length estimator's run (probes)")
    options.add_sampler(parser)
    options.add_workers(parser)
    return parser.parse_args()


class TestClips:
    """One caption of each test clip, with its text features, real motion and length."""

    def __init__(self, spec, args):
        self.store = MotionStore(spec, "test", args.num_workers)
        self.entries, dropped = text_clips(self.store)
        report_skipped(dropped, f"{spec.name}/test (text-to-motion)")
        self.left_out = len(dropped) + len(self.store.skipped)
        rng = np.random.default_rng(args.seed)
        self.captions = [entry.captions[rng.integers(len(entry.captions))] for entry in self.entries]
        self.frames = [min(entry.end - entry.start, MAX_LENGTH) // 4 * 4 for entry in self.entries]
        self.real = [torch.from_numpy(self.store.frames(e.clip, e.start, e.start + n))
                     for e, n in zip(self.entries, self.frames)]
        self.groups = caption_groups(self.entries)


def run_probes(pipeline, clips, encode, spec, args):
    """Probe rates of generated clips (every prompt ``--probe_repeats`` times, at estimated lengths), of the real test clips
    under their own labels, and of the real clips under shuffled labels."""
    path = RunFolder(args.checkpoints_dir, spec.name, args.length_estimator).checkpoint()
    jobs = [(prompt, actions, repeat) for prompt, actions in PROMPTS for repeat in range(args.probe_repeats)]
    text = encode([prompt for prompt, _, _ in jobs])
    lengths = estimate_lengths(load_length_estimator(path)[0], text,
                               [clip_seed(args.seed, "length", prompt, repeat) for prompt, _, repeat in jobs],
                               spec.min_frames, MAX_LENGTH)
    seeds = [clip_seed(args.seed, prompt, repeat) for prompt, _, repeat in jobs]
    with tqdm(total=len(jobs), desc="probes", unit="clip") as progress:
        motions = pipeline.sample(text, lengths, seeds, progress=progress, **options.sampler_settings(args))
    joints = [features_to_joints(motion, spec.joints).numpy() for motion in motions]
    report = probe_report([(prompt, actions, check(actions, clip, spec.fps))
                           for (prompt, actions, _), clip in zip(jobs, joints)])
    labels = read_labels(spec, [clips.store.ids[entry.clip] for entry in clips.entries])
    if labels is not None:
        real = [features_to_joints(motion, spec.joints).numpy() for motion in clips.real]
        shuffled = np.random.default_rng(args.seed).permutation(len(labels))
        report["real"] = float(np.mean([check(label, clip, spec.fps) for label, clip in zip(labels, real)]))
        report["shuffled"] = float(np.mean([check(labels[i], clip, spec.fps) for i, clip in zip(shuffled, real)]))
    return report


def make_table(results):
    scores = results["scores"]
    rows = [(key, "{mean:.4f} +- {interval:.4f}".format(**value), "{mean:.4f}".format(**scores["real"][key])
             if key in scores["real"] else "-") for key, value in scores["generated"].items()]
    skating = results["foot_skating"]
    rows.append(("foot skating m/s", f"{skating['generated']:.4f}", f"{skating['real']:.4f}"))
    if "probes" in results:
        probes = results["probes"]
        rows.append(("semantic probes", f"{probes['rate']:.3f}", f"{probes['real']:.3f}" if "real" in probes else "-"))
        if "shuffled" in probes:
            rows.append(("probes, shuffled captions", "-", f"{probes['shuffled']:.3f}"))
    return format_table(rows, ("metric", "generated", "real"))


def main():
    args = parse_args()
    device = pick_device(args.device)
    seed_everything(args.seed)
    spec = get_spec(args.dataset_name, args.dataset_dir)
    if args.probe_repeats and spec.skeleton != "t2m":
        raise UserError(f"--probe_repeats: the probes know the 22-joint skeleton, {spec.name} has '{spec.skeleton}'")
    folder = RunFolder(args.checkpoints_dir, spec.name, args.name)
    path = folder.checkpoint(args.which)
    encode = partial(cached_text_features, spec.text_encoder, folder=spec.root)
    pipeline, checkpoint = load_pipeline(path, RunFolder(args.checkpoints_dir, spec.name, args.ae_name).checkpoint(),
                                         args.model, args.ae_model, lambda: load_statistics(spec), device)
    evaluator_path = RunFolder(args.checkpoints_dir, spec.name, args.evaluator).checkpoint()
    evaluator = TrainedEvaluator.load(evaluator_path, encode, device)
    clips = TestClips(spec, args)
    text = encode([caption.text for caption in clips.captions])
    settings = options.sampler_settings(args)

    def generate(repeat, rows=None, sample=0):
        rows = range(len(clips.frames)) if rows is None else rows
        seeds = [clip_seed(args.seed, repeat, clips.captions[row].text, row, sample) for row in rows]
        with tqdm(total=len(seeds), desc="generating", unit="clip", leave=False) as progress:
            return pipeline.sample(text[list(rows)], [clips.frames[row] for row in rows], seeds, progress=progress, **settings)

    def multimodal(repeat):
        rows = np.random.default_rng([args.seed, repeat]).permutation(len(clips.frames))[:MULTIMODAL_TEXTS]
        return zip(*[generate(repeat, rows, sample + 1) for sample in range(MULTIMODAL_SAMPLES)])

    scores = evaluate_generation(evaluator, clips.captions, clips.real, generate, clips.groups, args.repeats, args.seed,
                                 spec.distinct_retrieval, multimodal if args.cal_mm else None)
    motions = scores.pop("motions")
    results = {
        "kind": "generation", "dataset": spec.name, "split": "test", "clips": len(clips.frames), "left_out": clips.left_out,
        "retrieval": "batches of 32 without repeated captions" if spec.distinct_retrieval else "batches of 32, shuffled",
        "model": checkpoint.get("model_name"), "trained_on": checkpoint.get("trained_on"), "steps": checkpoint.get("total_it"),
        "sampler": settings, "repeats_asked": args.repeats, "scores": scores, "seed": args.seed, "checkpoint": path.name,
        "weights": weights_hash(pipeline.generator), "evaluator": args.evaluator, "code_version": code_version(),
        "machine": machine(), "foot_skating": {"generated": mean_foot_skating(motions, spec),
                                               "real": mean_foot_skating(clips.real, spec)},
    }
    if args.probe_repeats:
        results["probes"] = run_probes(pipeline, clips, encode, spec, args)
    results["peak_memory_mb"] = peak_memory_mb()
    write_results(folder.root / "eval", "evaluation_MARDM", results, make_table(results))


if __name__ == "__main__":
    run(main)
