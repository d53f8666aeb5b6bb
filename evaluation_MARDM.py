"""Evaluate a trained generator on the test split: FID, R-precision, matching score, diversity, multimodality,
CLIP-score, foot skating, acceleration, peak jerk, smoothness in turns and transitions, distance to the
training clips, label accuracy, and, for 22-joint skeletons, whether the clips do what fixed prompts say
(semantic probes).

    python evaluation_MARDM.py --name FSQ_MARDM --ae_name FSQ_AE_High --ae_model FSQ_AE_High \\
        --model FSQ-MARDM-SiT-XL --dataset_name t2m     # --protocol standard for 263 features

Results: the screen, checkpoints/<dataset>/<name>/eval/eval.log and, in the same folder,
evaluation_MARDM_<protocol>.json (evaluation_MARDM.json with the data set's own evaluator); --eval_name puts
them into a folder within eval/. Metrics of two protocols cannot be compared.
"""
import time
from functools import partial

import numpy as np
from tqdm import tqdm

from models.AE import AE_models
from models.generation import check_settings
from models.LengthEstimator import LengthTable
from models.loading import load_length_estimator, load_pipeline
from models.MARDM import MARDM_models
from models.pipeline import clip_seed, estimate_lengths
from models.TextEncoder import cached_text_features, cached_text_words, clip_tokenizer, text_reader
from utils import options
from utils.clips import checkpoint_paths
from utils.data.conditions import load_conditions
from utils.data.datasets import MAX_LENGTH, load_statistics, read_labels
from utils.data.specs import get_spec, joints_in_metres
from utils.errors import UserError, is_first, run, say
from utils.evaluation import scoring
from utils.evaluation.neighbours import label_accuracy, nearest_train
from utils.evaluation.probes import RULES, action_change, check, knows, probe_report
from utils.evaluation.prompts import OUTSIDERS, PROMPTS
from utils.evaluation.protocols import TextClips, result_header, score_rows
from utils.evaluation.smoothness import MEASURES, smoothness
from utils.evaluation.suites import add_suite, load_suite
from utils.files import RunFolder
from utils.report import format_table, write_results
from utils.training import distributed
from utils.training.settings import seed_everything, start


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="MARDM")
    parser.add_argument("--ae_name", default=None,
                        help="the autoencoder's --name; default: the one the generator was trained on")
    parser.add_argument("--ae_model", choices=list(AE_models), default=None,
                        help="its zoo name; default: as trained")
    options.add_trained(parser, MARDM_models, "generator")
    add_suite(parser)
    parser.add_argument("--repeats", type=options.positive_int, default=20,
                        help="repeats of the whole protocol")
    parser.add_argument("--cal_mm", action="store_true",
                        help="measure multimodality too (30 clips per text: slow)")
    parser.add_argument("--probe_repeats", type=options.non_negative_int, default=0,
                        help="clips per probe prompt (22-joint skeletons); 0 = no probes")
    parser.add_argument("--length_estimator", default="length_estimator",
                        help="--name of the length estimator's run (probes)")
    parser.add_argument("--eval_name", type=options.plain_name, default=None,
                        help="folder within eval/ for this result, to keep several of one run; default: none")
    options.add_sampler(parser)
    options.add_workers(parser)
    return parser.parse_args()


def generate(pipeline, cond, frames, seeds, what, **settings):
    """Un-normalised motions of ``pipeline.sample``, whose batches are divided among the processes."""
    with tqdm(total=len(distributed.turns(seeds)), desc=what, unit="clip", leave=False,
              disable=not is_first()) as progress:
        return distributed.gather_turns(pipeline.sample(cond, frames, seeds, progress=progress,
                                                        turns=distributed.turns, **settings))


class Maker:
    """Generates a clip for each one of a Drawn, under its condition, from seeds of its own.

    clips: TextClips. settings: of the sampler. decode: of ``Pipeline.sample``, what is made of targets.
    """

    def __init__(self, pipeline, clips, conditions, settings, seed, decode=None):
        self.pipeline, self.settings, self.seed, self.decode = pipeline, settings, seed, decode
        self.seconds, self.made = 0.0, 0  # of generating, and how many clips
        self.conditions = conditions.lookup(clips.store, clips.entries)

    def __call__(self, repeat, drawn, rows=None, sample=0):
        """Un-normalised clips, or what ``decode`` makes, of ``rows`` (None = all); ``sample`` varies them."""
        rows = range(len(drawn.frames)) if rows is None else rows
        cond = self.conditions(rows, [drawn.captions[row] for row in rows])
        seeds = [clip_seed(self.seed, repeat, drawn.captions[row].text, row, sample) for row in rows]
        begun = time.perf_counter()
        made = generate(self.pipeline, cond, [drawn.frames[row] for row in rows], seeds, "generating",
                        decode=self.decode, **self.settings)
        self.seconds += time.perf_counter() - begun
        self.made += len(made)
        return made

    def many(self, repeat, drawn):
        """For multimodality: several clips for each of some texts."""
        order = np.random.default_rng([self.seed, repeat]).permutation(len(drawn.frames))
        return zip(*[self(repeat, drawn, order[: scoring.MULTIMODAL_TEXTS], sample + 1)
                     for sample in range(scoring.MULTIMODAL_SAMPLES)])


def probe_jobs(conditions, checkpoint, spec, args):
    """[(prompt or action, the actions to be seen, repeat)], their conditions (of texts with their words), and
    their length estimator."""
    if conditions.mode == "text":
        jobs = [(prompt, actions, repeat) for prompt, actions in (*PROMPTS, *OUTSIDERS)
                for repeat in range(args.probe_repeats)]
        path = RunFolder(args.checkpoints_dir, spec.name, args.length_estimator).checkpoint()
        words = cached_text_words(spec.text_encoder, [prompt for prompt, _, _ in jobs], spec.root)
        return jobs, words[list(range(len(jobs)))], load_length_estimator(path)[0]
    names = [name for name in conditions.actions if name in RULES]
    if not names:
        raise UserError(f"--probe_repeats: the probes know none of the actions "
                        f"{', '.join(conditions.actions[:5])} ...")
    jobs = [(name, (name,), repeat) for name in names for repeat in range(args.probe_repeats)]
    cond = conditions.of_actions([name for name, _, _ in jobs])
    return jobs, cond, LengthTable(checkpoint["length_counts"])


def run_probes(probes, pipeline, clips, spec, seed, real, settings):
    """Probe rates of generated clips (``--probe_repeats`` per prompt or action, at estimated lengths; "rate":
    of PROMPTS; "outsiders": a report of its own), of the real test clips under their own labels, and of the
    real clips under shuffled labels. probes: of ``probe_jobs``."""
    jobs, cond, estimator = probes
    seeds = [clip_seed(seed, "length", prompt, repeat) for prompt, _, repeat in jobs]
    lengths = estimate_lengths(estimator, cond, seeds, spec.min_frames, MAX_LENGTH)
    seeds = [clip_seed(seed, prompt, repeat) for prompt, _, repeat in jobs]
    motions = generate(pipeline, cond, lengths, seeds, "probes", **settings)
    results = [(actions, check(actions, joints_in_metres(motion, spec), spec.fps))
               for (_, actions, _), motion in zip(jobs, motions)]
    outside = {prompt for prompt, _ in OUTSIDERS}
    report, outsiders = (probe_report([result for (prompt, _, _), result in zip(jobs, results)
                                       if (prompt in outside) == chosen]) for chosen in (False, True))
    report |= {"rate": report["all"]["share"]} | (
        {"outsiders": outsiders} if outsiders["all"]["total"] else {})
    known, names = read_labels(spec) or {}, clips.ids
    if all(knows(known.get(name)) for name in names):
        joints = [joints_in_metres(motion, spec) for motion in real]
        shuffled = np.random.default_rng(seed).permutation(len(names))
        for side, order in (("real", range(len(names))), ("shuffled", shuffled)):
            report[side] = float(np.mean([check(known[names[row]], clip, spec.fps)
                                          for row, clip in zip(order, joints)]))
    return report


def training_clips(spec, workers, conditions):
    """The training split's TextClips, or None, which a line says, where that split cannot be read."""
    try:
        return TextClips(spec, "train", workers, conditions=conditions)
    except UserError as error:
        say(f"warning: no distances to training clips and no accuracy of labels: {error}")
        return None


def measure_smoothness(motions, ids, spec):
    """``smoothness`` of motions (T, D) made under, or real ones with, the labels of the clips ``ids``: where
    they name two actions that the probes know, a motion that performs both has its change of action."""
    joints = [joints_in_metres(motion, spec) for motion in motions]
    labels = (read_labels(spec) or {}) if spec.layout.name == "t2m" else {}
    changes = []
    for clip, name in zip(joints, ids):
        actions = labels.get(name, [])
        change = action_change(actions, clip, spec.fps) if len(actions) == 2 and knows(actions) else None
        changes.append([] if change is None else [change])
    return smoothness(joints, spec.fps, spec.layout, changes)


def clip_metrics(made, whole, clips, training, suite, device):
    """Metrics beside the evaluator's: {metric: {"generated", "real", ...}}, None for what cannot be measured.

    made: generated clips (T, D). whole: the Drawn whose real ones they stand for, of the TextClips ``clips``.
    training: TextClips or None."""
    spec = clips.store.spec
    generated, real = (scoring.motion_quality(side, spec) for side in (made, whole.real))
    found = {key: {"generated": generated[key], "real": real[key]} for key in generated}
    found |= {"nearest_train": None, "label_accuracy": None, "smoothness": {
        side: measure_smoothness(motions, clips.ids, spec)
        for side, motions in (("generated", made), ("real", whole.real))}}
    if training is not None:
        known, labels = training.whole(0).real, read_labels(spec)
        found["nearest_train"] = nearest_train(made, whole.real, known, spec, device)
        if labels:
            found["label_accuracy"] = label_accuracy(labels, (clips.ids, made, whole.real),
                                                     (training.ids, known), suite.embed)
    return found


CLIP_ROWS = {"foot_skating": ("foot skating m/s", 4), "acceleration": ("acceleration m/s^2", 3),
             "peak_jerk": ("peak jerk m/s^3", 1), "label_accuracy": ("label accuracy", 3),
             "nearest_train": ("nearest training clip m", 4)}


def smoothness_rows(found):
    """Table rows of ``smoothness`` for both sides, of the segments that have stretches."""
    return [(f"{name} {unit}, {segment} ({values['stretches']})", *(
        "-" if value is None else f"{value:.{digits}f}"
        for value in (values[name], found["real"][segment][name])))
        for segment, values in found["generated"].items() if values["stretches"]
        for name, (unit, digits) in MEASURES.items()]


def make_table(results):
    seconds = results["seconds"]
    rows = [*score_rows(results["scores"]), ("seconds: generating", f"{seconds['generating']:.1f}", "-"),
            ("seconds: all else", f"{seconds['judging']:.1f}", "-"),
            ("seconds per clip", f"{results['seconds_per_clip']:.4f}", "-")]
    rows += [(name, *(f"{results[key][side]:.{digits}f}" for side in ("generated", "real")))
             for key, (name, digits) in CLIP_ROWS.items() if results[key]]
    rows += smoothness_rows(results["smoothness"])
    if nearest := results["nearest_train"]:
        rows.append(("nearer than 5% of real clips", f"{nearest['generated_below']:.3f}", "0.050"))
    if probes := results.get("probes"):
        rows.append(("semantic probes", f"{probes['rate']:.3f}",
                     f"{probes['real']:.3f}" if "real" in probes else "-"))
        rows += [(f"semantic probes, {name}", f"{count['share']:.3f}", "-") for name, count in (
            ("one action", probes["single"]), ("two in a row", probes["sequence"]),
            ("two in a row, by outsiders", probes.get("outsiders", {}).get("all"))) if count]
        if "shuffled" in probes:
            rows.append(("probes, shuffled captions", "-", f"{probes['shuffled']:.3f}"))
    return format_table(rows, (f"{results['protocol']} protocol", "generated", "real"))


def main():
    args = parse_args()
    device = start(args.device, args.precision)
    seed_everything(args.seed)
    with distributed.first_goes_ahead():
        spec = get_spec(args.dataset_name, args.dataset_dir)
    if args.probe_repeats and spec.layout.name != "t2m":
        raise UserError(f"--probe_repeats: the probes know the 22-joint skeleton, {spec.name} has "
                        f"'{spec.layout.name}'")
    folder = RunFolder(args.checkpoints_dir, spec.name, args.name)
    path, ae_path = checkpoint_paths(args, args.which)
    encode = partial(cached_text_features, spec.text_encoder, folder=spec.root)
    pipeline, checkpoint = load_pipeline(path, ae_path, args.model, args.ae_model,
                                         lambda: load_statistics(spec), device)
    mode = pipeline.generator.cond_mode
    if mode == "uncond" and (args.cal_mm or args.probe_repeats):
        raise UserError("--cal_mm, --probe_repeats: nothing to measure, this generator was trained without "
                        "conditions")
    settings = options.sampler_settings(args, spec, pipeline.generator)
    check_settings(pipeline.generator, settings)
    read_labels(spec)  # damage is noticed before anything is generated
    read = partial(text_reader(pipeline.generator.text_cond), spec.text_encoder, folder=spec.root)
    conditions = load_conditions(mode, spec, read, checkpoint.get("actions", []))
    with distributed.first_goes_ahead():
        suite = load_suite(args, spec, encode, clip_tokenizer, device)
        clips = TextClips(spec, "test", args.num_workers, suite.columns, conditions)
        distinct = spec.distinct_retrieval and not suite.released
        groups = clips.groups if distinct else None
        scoring.check_evaluation(suite, clips.captions, groups, len(clips))
        training = training_clips(spec, args.num_workers, conditions)
        probes = probe_jobs(conditions, checkpoint, spec, args) if args.probe_repeats else None
        maker = Maker(pipeline, clips, conditions, settings, args.seed,
                      pipeline.decode_with_tail if suite.published_tail else None)
    if options.checked():
        return
    begun = time.perf_counter()
    whole = clips.whole(args.seed)
    draw = partial(clips.draw, args.seed) if suite.released else lambda _repeat: whole
    scores = scoring.evaluate(suite, draw, maker, args.repeats, args.seed, groups,
                              maker.many if args.cal_mm else None)
    found = clip_metrics(scores.pop("clips"), whole, clips, training, suite, device)
    if mode == "uncond":
        found["label_accuracy"] = None  # nothing was asked for
    seconds = {"generating": maker.seconds, "judging": time.perf_counter() - begun - maker.seconds}
    results = {
        "clips": len(clips), "clips_scored": scores.pop("scored"), "left_out": clips.left_out,
        "retrieval": "batches of 32 without repeated captions" if distinct else "batches of 32, shuffled",
        "name": args.name, "trained_on": checkpoint.get("trained_on"), "cond_mode": mode, "sampler": settings,
        "repeats_asked": args.repeats, "scores": scoring.without_text(scores) if mode == "uncond" else scores,
        "autoencoder": {"name": ae_path.parent.parent.name, "weights": pipeline.hashes[1]},
        "seconds": seconds, "seconds_per_clip": maker.seconds / maker.made, **found}
    if args.probe_repeats:
        results["probes"] = run_probes(probes, pipeline, clips, spec, args.seed, whole.real, settings)
    results = result_header("generation", suite, spec, "test", args, path, checkpoint,
                            pipeline.hashes[0]) | results
    write_results(folder.root / "eval" / (args.eval_name or ""), suite.tag("evaluation_MARDM"), results,
                  make_table(results))


if __name__ == "__main__":
    run(main)
