"""What is there, what is missing or damaged, and which commands will work.

    python -m scripts.doctor            # reads every clip
    python -m scripts.doctor --quick    # 200 clips per data set, one checkpoint per run, one generator

Every line is ok, warning, missing (with its source) or damaged (with what to do). Nothing is downloaded or
repaired. Files are looked for where the other scripts do, from the current folder; whether a command works is
its own answer to --check. Exit code: 0 if nothing is damaged, 1 if something is, 2 for bad flags.
"""
import importlib
import io
import re
import shlex
import sys
import tempfile
from collections import Counter, namedtuple
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np
import torch
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from models import TextEncoder, loading
from models.MARDM import MARDM_models, check_pair
from utils import options
from utils.arrays import load_array
from utils.data import datasets, inertial, specs
from utils.errors import UserError, checking, run
from utils.evaluation import evaluators, suites, word_vectors
from utils.files import RunFolder, read_checkpoint
from utils.motion.skeleton_files import get_skeleton
from utils.report import write_json
from utils.training.settings import code_version

QUICK = {"train": 120, "val": 40, "test": 40}  # clips per split that --quick reads
KNOWN_NAN = {"t2m": ("007975", "M007975")}  # clips that contain NaN as published
FOLDERS = {name: known["folder"] for name, known in specs.KNOWN.items()} | {"demo": "demo"}
SOURCES = {"t2m": "follow the instructions at github.com/EricGuo5513/HumanML3D",
           "kit": "from the same place as HumanML3D", "demo": "nothing to do: it is made on first use"}
KINDS = {"ae": ("autoencoder", loading.load_autoencoder), "ema_mardm": ("generator", loading.load_generator),
         "mardm": ("generator", loading.load_generator),
         "estimator": ("length_estimator", loading.load_length_estimator),
         "behavior": ("behavior", loading.load_behavior),
         "evaluator": ("evaluator", partial(evaluators.TrainedEvaluator.load, text_features=None))}
HEADS = ("MARDM-SiT-XL", "MARDM-DDPM-XL")  # what a released generator may be
DIRS = {"dataset_dir": "./datasets", "checkpoints_dir": "./checkpoints", "glove_dir": "./glove"}
LEVELS = ("ok", "warning", "missing", "damaged")
Finding = namedtuple("Finding", "level what advice", defaults=[""])  # advice: what to do, or the source
ok, warning, missing, damaged = (partial(Finding, level) for level in LEVELS)


def attempt(function, *args):
    """(result, None), or (None, Finding): missing if the exception says so, else damaged."""
    try:
        return function(*args), None
    except Exception as error:  # damage can raise anything
        text = " ".join(str(error).split())[:800] or type(error).__name__
        return None, (missing if getattr(error, "missing", False) else damaged)(text)


def some(names, most=5):
    return ", ".join(sorted(names)[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def check_environment():
    supported = (3, 10) <= sys.version_info[:2] <= (3, 12)
    yield (ok if supported else warning)(f"Python {sys.version.split()[0]} (supported: 3.10 to 3.12)")
    cuda = torch.cuda.is_available()
    device = f"CUDA on {torch.cuda.get_device_name(0)}" if cuda else "no CUDA: a CPU is too slow to train XL"
    yield (ok if cuda else warning)(f"torch {torch.__version__}, {device}")
    ffmpeg, problem = attempt(imageio_ffmpeg.get_ffmpeg_exe)
    yield missing(problem.what, "use sample.py --no_video") if problem else ok(f"ffmpeg {ffmpeg}")
    for name in TextEncoder.TEXT_ENCODERS:
        problem = attempt(TextEncoder.load_text_encoder, name)[1] or ok("can be loaded")
        yield problem._replace(what=f"text encoder {name}: {problem.what}")


def read_clip(spec, name):
    """Frames, and mean and mean square (D,), of a clip's features. Raises if it cannot be used."""
    skeleton = spec.layout
    features = load_array(Path(spec.root, "new_joint_vecs", f"{name}.npy"))
    if features.ndim != 2 or features.shape[1] not in (skeleton.feature_dim, skeleton.essential_dim):
        raise UserError(f"has shape {features.shape}, {skeleton.name} needs (frames, {skeleton.feature_dim})")
    if not len(features) or not np.isfinite(features).all():
        raise UserError("holds NaN or infinite values, or no frames")
    features = features[:, : spec.feature_dim].astype(np.float64)
    return len(features), features.mean(0), (features**2).mean(0)


def check_dataset(spec, quick):
    files, splits = {path.stem for path in Path(spec.root).glob("new_joint_vecs/*.npy")}, {}
    for split in QUICK:
        ids, problem = attempt(datasets.read_split, spec, split)
        splits[split] = ids or []
        if problem:
            yield problem._replace(advice="it comes with the data set")
        if lost := set(splits[split]) - files:
            yield missing(f"{len(lost)} clips of {split}.txt have no .npy: {some(lost)}", "they are left out")
    names = sorted(files if not quick else files & {  # evenly spaced clips of each split
        ids[i] for split, ids in splits.items() if ids
        for i in np.linspace(0, len(ids) - 1, QUICK[split]).astype(int)})
    read = dict(zip(names, thread_map(partial(attempt, read_clip, spec), names, max_workers=4, leave=False,
                                      desc=f"reading {spec.name}", unit="clip", mininterval=1)))
    clips = {name: clip for name, (clip, problem) in read.items() if not problem}
    yield ok(f"{len(clips)} of {len(names)} clips read can be used; {spec.layout.name}, {spec.fps:g} fps")
    problems = {}
    for name in sorted(set(names) - set(clips)):
        reason = read[name][1].what.rpartition(f"{name}.npy ")[2]
        problems.setdefault((reason, name in KNOWN_NAN.get(spec.name, ())), []).append(name)
    for (reason, published), group in problems.items():
        text = f"{len(group)} .npy: each {reason}: {some(group)}"
        yield (warning(text, "as published; training leaves it out") if published else
               damaged(text, "convert them again, or remove them from the split lists"))
    yield check_statistics(spec, [clips[name] for name in splits["train"] if name in clips])
    yield from check_captions(spec, {split: {name: clips[name][0] for name in ids if name in clips}
                                     for split, ids in splits.items()})


def check_recordings(folder):
    """A set of inertial recordings (scripts.prepare_imu)."""
    sensors, problem = attempt(inertial.Recorded, folder.name, folder)
    if problem:
        yield problem
        return
    for split in inertial.SPLITS:
        data, problem = attempt(sensors.split, split)
        yield problem or ok(f"{split}: {len(data)} windows of {len(sensors.spec.behaviors)} behaviours")


def check_statistics(spec, clips):
    """Mean.npy and Std.npy against N training clips. Tolerances: of a column's mean a tenth of its Std plus
    five standard errors; of a group's std, which HumanML3D averages, a factor of 1.25 + 5 / sqrt(N)."""
    values, problem = attempt(datasets.load_statistics, spec)
    source = "they come with the data set; scripts.prepare_dataset computes them for your own"
    if problem:
        return problem._replace(what=f"Mean.npy and Std.npy: {problem.what}", advice=source)
    if len(clips) < 8:
        return warning(f"Mean.npy and Std.npy are not compared with only {len(clips)} training clips")
    frames, means, squares = map(np.stack, zip(*clips))
    mean, square = (np.average(rows, axis=0, weights=frames) for rows in (means, squares))
    std, root = np.sqrt(np.maximum(square - mean**2, 0)), np.sqrt(len(clips))
    excess = (np.abs(mean - values[0]) / (0.1 * values[1] + 5 * means.std(0) / root + 1e-6)).max()
    ratios = [std[group].mean() / values[1][group].mean() for group in spec.layout.feature_groups
              if group.stop <= len(mean) and std[group].mean() > 1e-5]  # not a constant group
    factor, limit = max([max(ratio, 1 / ratio) for ratio in ratios] or [1.0]), 1.25 + 5 / root
    text = (f"{len(clips)} training clips: Mean.npy is at {excess:.2f} of its tolerance, Std.npy off by a "
            f"factor of {factor:.2f} (at most {limit:.2f})")
    return (ok(f"Mean.npy and Std.npy fit {text}") if excess <= 1 and factor <= limit else
            damaged(f"Mean.npy and Std.npy do not fit {text}", f"they belong to other features; {source}"))


def check_captions(spec, clips):
    """clips: {split: {id: frames}}."""
    problems, counts = {}, Counter()
    for split, name, frames in ((split, *clip) for split, found in clips.items() for clip in found.items()):
        path = Path(spec.root, "texts", f"{name}.txt")
        captions, reason = datasets.read_captions(path)
        counts[split] += bool(captions) and spec.min_frames <= frames <= spec.max_frames
        if reason:
            empty = not path.is_file() or not path.read_bytes().strip()
            problems.setdefault((missing if empty else damaged, reason), []).append(name)
    for (level, reason), names in problems.items():
        yield level(f"{len(names)} clips: each {reason}: {some(names)}", "text-to-motion leaves them out; a "
                    "line of texts/ID.txt is `caption` or `caption#word/POS ...#start#end`")
    yield (ok if all(counts[split] for split in clips) else warning)(
        f"for text-to-motion ({spec.min_frames} to {spec.max_frames} frames, with captions): "
        + ", ".join(f"{split} {counts[split]}" for split in clips) + " clips")


def open_run(path, name):
    """A run (and ``text`` about it), whose weights are loaded strictly. Raises for a bad checkpoint."""
    content = read_checkpoint(path)
    keys = [key for key in KINDS if key in content]
    if not keys:
        raise UserError("it holds no known model")
    (kind, load), model_name, head = KINDS[keys[0]], content.get("model_name"), None
    if kind == "generator" and not model_name:  # released: the head is not recorded, so the name has to tell
        head = HEADS["ddpm" in name.lower()]
    model = load(path, *filter(None, [head]))
    if not all(torch.isfinite(value).all() for key in keys for value in content[key].values()):
        raise UserError("it holds NaN or infinite weights")
    hashes = loading.target_hashes(model[0], content) if kind == "autoencoder" else []
    best = content.get("best", {})
    spec, kind_of = content.get("dataset", {}), kind.replace("_", " ")
    parts = (f"{name}/{path.name}: {kind_of}", model_name, not spec and "a released file",
             "total_it" in content and f"{content['total_it']} steps", hashes and f"weights {hashes[0]}",
             best.get("epoch", -1) >= 0 and f"best {best['metric']} {best['value']:.4g}")
    return SimpleNamespace(
        name=name, kind=kind, model=model_name or "AE_Model", head=head, hashes=hashes, ae=None,
        cond_mode=(content.get("model_kwargs") or {}).get("cond_mode", "text"), skeleton=spec.get("skeleton"),
        trained_on=content.get("trained_on"), text=", ".join(filter(None, parts)))


def check_runs(folder, quick):
    """Findings on checkpoints/<dataset>/, and the runs that load; a generator's ``ae`` is its autoencoder."""
    found, runs = [], []
    names = sorted({path.parent.name for path in folder.glob("*/model")} - set(suites.RELEASED_FOLDERS))
    for name in tqdm(names, f"reading {folder}", unit="run", leave=False, mininterval=1):
        files, result = RunFolder(folder.parent, folder.name, name), None
        paths = [path for path in dict.fromkeys([files.latest, files.checkpoint()]) if path.is_file()]
        if not paths:
            found.append(warning(f"{name} has no latest.tar or best.tar", "not trained yet"))
        for path in paths[-1:] if quick else paths:  # the last one is what scripts use
            result, problem = attempt(open_run, path, name)
            found.append(damaged(f"{name}/{path.name}: {problem.what}", "train or fetch it again") if problem
                         else ok(result.text))
        runs += [result] if result else []
    for generator in of_kind(runs, "generator"):
        found += find_autoencoder(generator, of_kind(runs, "autoencoder"))
    return found, runs


def find_autoencoder(generator, autoencoders):
    """Sets ``generator.ae``; findings if that is not simply the run that the generator records."""
    if not generator.trained_on:
        generator.ae = next((ae for ae in autoencoders if not ae.skeleton), None)
        return [warning(f"{generator.name} records neither autoencoder nor head; assumed: {generator.head}",
                        f"pass --ae_name, and as --model what it was published as, {' or '.join(HEADS)}")]
    wanted, code = generator.trained_on["name"], generator.trained_on["hash"]
    same = {ae.name: ae for ae in sorted(autoencoders, key=lambda ae: ae.hashes[0] != code)  # itself first
            if code in ae.hashes}
    generator.ae = same.get(wanted) or next(iter(same.values()), None)
    replaced = wanted in [ae.name for ae in autoencoders]
    text = (f"{generator.name}'s autoencoder {wanted} ({code}) "
            f"{'has other weights now' if replaced else 'is not there'}")
    if same:
        but = "" if generator.ae.hashes[0] == code else " but for its decoder"
        return [warning(f"{text}; {generator.ae.name} is the same{but}",
                        "pass it as --ae_name")][wanted in same :]
    return [(damaged if replaced else missing)(text, "put it back, or train the generator again")]


def of_kind(runs, kind):
    """The runs of a kind; first the one with the name that scripts use by default."""
    return sorted((run for run in runs if run.kind == kind), key=lambda run: run.name != kind)


def read_released(path, what, protocol, skeleton):
    """Reads a file of a released evaluator, strictly. Raises for a bad one."""
    if what == "statistics":
        if suites.read_statistics(path, protocol, skeleton).min() <= 0 and "std" in path.name:
            raise UserError(f"{path} holds values of 0 or less")
        return
    network, weight, evaluator = {
        "matching": ("movement_encoder", "main.0.weight", evaluators.MatchingEvaluator), "contrast": (
            "contrast_model", "motion_encoder.embed_motion.weight", evaluators.ContrastEvaluator)}[what]
    width = read_checkpoint(path, (network,))[network][weight].shape[1]
    evaluator.load(path, np.zeros(width), np.ones(width), None)
    suites.check_features(width, path, protocol, skeleton)


def check_released(name, args):
    """The released evaluators and their statistics, where the evaluation scripts look for them."""
    flags, skeleton = suites.suite_flags(args.checkpoints_dir), get_skeleton(specs.KNOWN[name]["skeleton"])
    for protocol in ("essential", "standard"):
        for what in suites.released_places(flags, protocol, name):
            files, problem = attempt(suites.find_released, flags, protocol, name, what)
            for path in files or ():
                good = ok(f"{path}: {what}, {protocol} protocol")
                yield attempt(read_released, path, what, protocol, skeleton)[1] or good
            if problem:
                yield problem


def command_lines(name, labelled, runs, quick):
    """[(script, words)] of the commands that could be meant on a data set."""
    aes, estimators, own = (of_kind(runs, kind) for kind in ("autoencoder", "length_estimator", "evaluator"))
    fitting = aes and next(model for model in MARDM_models if not attempt(check_pair, model, aes[0].model)[1])
    pair = ["--ae_name", aes[0].name, "--ae_model", aes[0].model, "--model", fitting] if aes else []
    for script in ("train_AE", "train_length_estimator", "train_evaluator"):
        yield script, ["--name", "NEW"]
    yield from (("train_MARDM", ["--name", "NEW", *pair, *more])
                for more in ([], ["--need_evaluation"], *([["--cond_mode", "action"]] if labelled else [])))
    protocols = [[], ["--protocol", "standard"]] if name in specs.KNOWN else [other_name("evaluator", own)]
    if own and name in specs.KNOWN:
        protocols.append(["--protocol", "trained", *other_name("evaluator", own)])
    if codes := of_kind(runs, "behavior"):
        yield "evaluation_behavior", ["--name", codes[0].name]
    yield from (("evaluation_AE", [*(["--name", aes[0].name] if aes else []), *flags]) for flags in protocols)
    for generator in of_kind(runs, "generator")[: 1 if quick else None] or [None]:
        who, what = [], ["--text_prompt", "a person walks"]
        length = other_name("length_estimator", estimators) if estimators else ["--motion_length", "120"]
        if generator:
            who = ["--name", generator.name, *(["--ae_name", generator.ae.name] if generator.ae else []),
                   *(["--model", generator.head] if generator.head else [])]
            if generator.cond_mode != "text":
                what, length = ["--action", "all"] if generator.cond_mode == "action" else [], []
        yield from (("evaluation_MARDM", [*who, *flags]) for flags in protocols)
        yield "sample", [*who, *what, *length]
        yield "edit", [*who, *what, "--source_motion", "FILE.npy", "-msec", "0.3,0.6"]


def other_name(flag, runs):
    """The words of a flag for the first run, if that has not the flag's default name."""
    return [f"--{flag}", runs[0].name] if runs and runs[0].name != flag else []


def check_commands(name, spec, runs, args):
    """Which commands on a data set work; else "missing", with the script's own message."""
    known = [run.skeleton for run in runs if run.skeleton] + [spec.skeleton if spec else "t2m"]
    labelled = spec and (Path(spec.root) / "labels.json").is_file()
    given = {flag: str(path) for flag in DIRS if (path := getattr(args, flag)) != Path(DIRS[flag])}
    with tempfile.TemporaryDirectory() as folder:
        clip = np.zeros((60, get_skeleton(known[0]).essential_dim), np.float32)
        np.save(source := Path(folder, "clip.npy"), clip)
        for script, words in command_lines(name, labelled, runs, args.quick):
            scored = script in ("evaluation_AE", "evaluation_MARDM", "train_MARDM")
            shared = [f"--{flag}={path}" for flag, path in given.items() if scored or flag != "glove_dir"]
            words = ["--dataset_name", name, *shared, *words]
            reason = ask(script, [str(source) if word == "FILE.npy" else word for word in words])
            command = shlex.join([f"{script}.py", *words])
            yield missing(f"{command} will not work", reason) if reason else ok(command)


def ask(script, words):
    """Why a command will not work, by its own --check, or None."""
    before, sys.argv = sys.argv, [f"{script}.py", *words, "--check"]
    output = io.StringIO()
    try:
        with redirect_stdout(output), redirect_stderr(output):
            run(importlib.import_module(script).main)
    except SystemExit as stop:
        if stop.code == 130:  # Ctrl-C
            raise KeyboardInterrupt from stop
        return (re.findall(r"\berror: (.+)", output.getvalue()) or [f"exit code {stop.code}"])[-1]
    except Exception as error:  # a bug of the script, or damage that it does not expect
        return f"{type(error).__name__}: {error}"
    finally:
        sys.argv = before
    return None


def examine(args):
    """{title: [Finding]}."""
    sections, data, runs, recordings = {"environment": check_environment()}, {}, {}, set()
    for folder in sorted(path for path in args.dataset_dir.glob("[!._]*") if path.is_dir()):
        name = next((name for name, place in FOLDERS.items() if place == folder.name), folder.name)
        title = f"data set {folder}"
        recorded, problem = attempt(inertial.is_recorded, folder)
        if recorded:
            sections[title] = check_recordings(folder)
            recordings.add(folder.name)
            continue
        if not (folder / "new_joint_vecs").is_dir() or folder.name in specs.KNOWN:
            sections[title] = [warning("this is not a data set: it needs new_joint_vecs/, and another name")]
            continue
        spec, problem = attempt(specs.get_spec, name, folder.parent)
        sections[title] = [problem] if problem else check_dataset(spec, args.quick)
        data |= {} if problem else {name: spec}
    sections["other data sets"] = [missing(f"{name}: expected at {path}", SOURCES[name])
                                   for name, folder in FOLDERS.items()
                                   if not (path := args.dataset_dir / folder).is_dir()]
    for folder in sorted({path.parents[1] for path in args.checkpoints_dir.glob("*/*/model")}):
        sections[f"runs in {folder}"], runs[folder.name] = check_runs(folder, args.quick)
    sections |= {f"released evaluators of {name}": check_released(name, args) for name in specs.KNOWN}
    words, problem = attempt(word_vectors.WordVectorizer, args.glove_dir)
    sections["word vectors"] = [problem or ok(f"{len(words)} words in {args.glove_dir}")]
    for name in sorted((set(data) | {name for name in runs if runs[name]}) - recordings):
        sections[f"commands on {name}"] = check_commands(name, data.get(name), runs.get(name, []), args)
    return {title: found for title, findings in sections.items() if (found := list(findings))}


def parse_args():
    parser = options.make_parser(__doc__)
    for flag, what in zip(DIRS, ("the data sets", "runs and released evaluators", "the GloVe vectors")):
        parser.add_argument(f"--{flag}", type=Path, default=DIRS[flag], help=f"folder of {what}")
    parser.add_argument("--quick", action="store_true",
                        help="200 clips per data set, one checkpoint per run, one generator per data set")
    parser.add_argument("--json", type=Path, default=None, help="file for the report as JSON")
    args = parser.parse_args()
    wrong = [path for flag in DIRS if (path := getattr(args, flag)).is_file()]
    if wrong or (args.json and not args.json.parent.is_dir()):
        parser.error(f"{(wrong or [args.json.parent])[0]} is not a folder")
    return args


def main():
    args = parse_args()
    with checking():
        sections = examine(args)
    for title, findings in sections.items():
        lines = [f"  {level:8} {what}{' -- ' if advice else ''}{advice}" for level, what, advice in findings]
        print("", title, *lines, sep="\n")
    counts = Counter(finding.level for findings in sections.values() for finding in findings)
    print("\n" + ", ".join(f"{counts[level]} {level}" for level in LEVELS))
    if args.json:
        report = {title: [finding._asdict() for finding in findings] for title, findings in sections.items()}
        write_json(args.json, {"code": code_version(), "damaged": counts["damaged"], "sections": report})
    sys.exit(1 if counts["damaged"] else 0)


if __name__ == "__main__":
    run(main)
