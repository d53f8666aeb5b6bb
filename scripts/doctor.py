"""What is there, what is missing, what is damaged, and which commands will work.

    python -m scripts.doctor            # reads every clip
    python -m scripts.doctor --quick    # 200 clips a data set, and one checkpoint a run

Every line is ok, warning, missing (with where it comes from) or damaged (with what to do). Nothing is downloaded or repaired.
Files are looked for where the scripts do, from the current folder; a command is said to work when all that it reads was read.
Exit code: 0 when nothing is damaged, 1 when something is, 2 for bad flags.
"""
import sys
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np
import torch
from tqdm import tqdm

from models import TextEncoder, loading
from models.MARDM import MARDM_models, check_pair
from utils import options
from utils.arrays import load_array
from utils.data import conditions, datasets, packing, specs
from utils.errors import UserError, run
from utils.evaluation import evaluators, scoring, suites, word_vectors
from utils.files import RunFolder
from utils.motion.skeletons import SKELETONS
from utils.report import write_json
from utils.training import settings

QUICK = {"train": 120, "val": 40, "test": 40}  # clips of each split that --quick reads
WINDOW = 64  # frames of train_AE.py's default window
KNOWN_NAN = {"t2m": {"007975", "M007975"}}  # clips that are NaN as published
SOURCES = {"t2m": "made by the instructions at github.com/EricGuo5513/HumanML3D", "kit": "from the same place as HumanML3D",
           "demo": "nothing to do: it is made on first use"}
FOLDERS = {name: known["folder"] for name, known in specs.KNOWN.items()} | {"demo": "demo"}
KINDS = {"ae": ("autoencoder", loading.load_autoencoder), "ema_mardm": ("generator", loading.load_generator),
         "mardm": ("generator", loading.load_generator), "estimator": ("length estimator", loading.load_length_estimator),
         "evaluator": ("evaluator", partial(evaluators.TrainedEvaluator.load, text_features=None))}  # by a checkpoint's keys
LEVELS = ("ok", "warning", "missing", "damaged")
Finding = namedtuple("Finding", "level what advice", defaults=[""])  # advice: what to do, or where a missing thing comes from
ok, warning, missing, damaged = (partial(Finding, level) for level in LEVELS)


def attempt(function, *args):
    """(result, None), or (None, why it failed, in one line): what a reader raises becomes a finding."""
    try:
        return function(*args), None
    except Exception as error:  # damage may end in any
        return None, " ".join(str(error).split())[:250] or type(error).__name__


def some(names, most=5):
    return ", ".join(sorted(names)[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def check_environment():
    """Findings, and {text encoder: None, or why it cannot be used}. Without weights CLIP is not loaded: that would fetch them."""
    fits, openai = (3, 10) <= sys.version_info[:2] <= (3, 12), TextEncoder.import_openai_clip() is not None
    cuda = torch.cuda.is_available() and f"CUDA on {torch.cuda.get_device_name(0)}"
    ffmpeg, reason = attempt(imageio_ffmpeg.get_ffmpeg_exe)
    found = [(ok if fits else warning)(f"Python {sys.version.split()[0]}{'' if fits else '; 3.10 to 3.12 are supported'}"),
             (ok if cuda else warning)(f"torch {torch.__version__}, {cuda or 'no CUDA: the CPU is too slow to train XL'}"),
             missing(f"ffmpeg: {reason}", "use sample.py --no_video") if reason else ok(f"ffmpeg {ffmpeg}")]
    places, problems = " or ".join(str(folder / TextEncoder.CLIP_FILE) for folder in TextEncoder.CLIP_FOLDERS), {}
    for name in TextEncoder.TEXT_ENCODERS:
        if name == "clip" and TextEncoder.find_clip_weights(None) is None:
            reason = f"CLIP's weights are missing: put OpenAI's file at {places}{', or let its package fetch it' * openai}"
        else:
            _, reason = attempt(TextEncoder.load_text_encoder, name)
        problems[name], broken = reason, reason and ("cannot be read" in reason or "holds no" in reason)
        text = reason or f"run by {'openai-clip' if openai and name == 'clip' else 'transformers'}"
        found.append((damaged if broken else missing if reason else ok)(f"text encoder {name}: {text}"))
    return found, problems


def check_dataset(folder, quick):
    """Findings, and what they came from (spec, splits, usable, clips, entries, problem); None where it is no data set."""
    name = next((name for name, place in FOLDERS.items() if place == folder.name), folder.name)
    if not (folder / "new_joint_vecs").is_dir() or folder.name in specs.KNOWN:
        return [warning(f"{folder} is not a data set", "it needs new_joint_vecs/, and a name other than t2m and kit")], None
    spec, reason = attempt(specs.get_spec, name, folder.parent)
    if reason:
        return [(damaged if (folder / "dataset.json").exists() else missing)(reason)], None
    data = SimpleNamespace(spec=spec, quick=quick, root=folder, splits={}, entries={}, stores={})
    return [line for check in (check_clips, check_statistics, check_captions) for line in check(data)], data


def read_clip(name, spec):
    """A clip's ``reason`` why it cannot be used, or its ``frames``, and ``mean`` and mean ``square`` (D,) of its features."""
    path, skeleton = Path(spec.root) / "new_joint_vecs" / f"{name}.npy", SKELETONS[spec.skeleton]
    header, _ = attempt(partial(load_array, mmap_mode="r"), path)  # read_features says what is wrong with a file
    width = header.shape[-1] if getattr(header, "ndim", 0) == 2 else None
    fits = width in (skeleton.feature_dim, skeleton.essential_dim)
    features, reason = packing.read_features(path, width if fits else spec.feature_dim)
    if reason or not fits:
        return SimpleNamespace(reason=reason or f"has {width} columns, skeleton {spec.skeleton} {skeleton.feature_dim}")
    part = features[:, : spec.feature_dim].astype(np.float64)
    return SimpleNamespace(reason=None, frames=len(part), width=width, mean=part.mean(0), square=(part**2).mean(0))


def check_clips(data):
    found, files = [], {path.stem for path in (data.root / "new_joint_vecs").glob("*.npy")}
    for split in QUICK:
        ids, reason = attempt(datasets.read_split, data.spec, split)
        data.splits[split], lost = ids or [], set(ids or []) - files
        if reason:
            found.append((missing if "is missing" in reason else damaged)(reason, "it comes with the data set"))
        if lost:
            found.append(missing(f"{len(lost)} clips of {split}.txt have no .npy: {some(lost)}", "they are left out"))
    names = sorted(files)
    if data.quick:  # some of each split, evenly spaced
        places = {split: np.linspace(0, len(ids) - 1, QUICK[split]).astype(int) for split, ids in data.splits.items() if ids}
        names = sorted(files & {data.splits[split][i] for split in places for i in places[split]})
    with ThreadPoolExecutor(4) as pool:  # threads: reading waits for the disk
        results = pool.map(partial(read_clip, spec=data.spec), names)
        clips = dict(zip(names, tqdm(results, f"reading {data.spec.name}", len(names), unit="clip", leave=False, mininterval=1)))
    data.clips = {name: clip for name, clip in clips.items() if not clip.reason}
    data.usable = {split: [name for name in ids if name in data.clips] for split, ids in data.splits.items()}
    found.append(ok(f"{len(data.clips)} of {len(names)} clips read can be used; {data.spec.skeleton}, {data.spec.fps:g} fps; "
                    + ", ".join(f"{split}.txt lists {len(ids)}" for split, ids in data.splits.items())))
    groups = {}
    for name, clip in clips.items():
        groups.setdefault((clip.reason, name in KNOWN_NAN.get(data.spec.name, ())), []).append(name)
    return found + [
        warning(f"{some(group)}.npy {reason}", "as published; training leaves it out") if published and "NaN" in reason else
        damaged(f"{len(group)} .npy: each {reason}: {some(group)}", "convert them again, or take them off the split lists")
        for (reason, published), group in groups.items() if reason]


def check_statistics(data):
    """Against the training clips read. Tolerances: a column's mean may be off by a tenth of its Std and five standard errors, a
    group's std, which HumanML3D averages, by a factor of 1.25 + 5 / sqrt(clips)."""
    values, data.problem = attempt(datasets.load_statistics, data.spec)
    source = "they come with the data set; scripts.prepare_dataset computes them for your own"
    if data.problem:
        return [(missing if "is missing" in data.problem else damaged)(f"Mean.npy and Std.npy: {data.problem}", source)]
    clips = [data.clips[name] for name in data.usable["train"]]
    if len(clips) < 8:
        return [warning(f"Mean.npy and Std.npy are not compared with only {len(clips)} training clips")]
    frames, means = [clip.frames for clip in clips], np.stack([clip.mean for clip in clips])
    mean, square = (np.average(rows, axis=0, weights=frames) for rows in (means, [clip.square for clip in clips]))
    std, root = np.sqrt(np.maximum(square - mean**2, 0)), np.sqrt(len(clips))
    excess = np.abs(mean - values[0]) / (0.1 * values[1] + 5 * means.std(0) / root + 1e-6)
    groups = [group for group in SKELETONS[data.spec.skeleton].feature_groups if group.stop <= len(mean)]
    ratios = [std[group].mean() / values[1][group].mean() for group in groups if std[group].mean() > 1e-5]  # else: never changes
    factor, limit = max([max(ratio, 1 / ratio) for ratio in ratios] or [1.0]), 1.25 + 5 / root
    text = (f"{len(clips)} training clips: column {excess.argmax()} of Mean.npy is at {excess.max():.2f} of its tolerance, "
            f"Std.npy off by a factor of {factor:.2f} (at most {limit:.2f})")
    return [ok(f"Mean.npy and Std.npy fit {text}") if excess.max() <= 1 and factor <= limit else
            damaged(f"Mean.npy and Std.npy do not fit {text}", f"they belong to other features; {source}")]


def read_captions(data, name):
    return datasets.read_captions(data.root / "texts" / f"{name}.txt")


def check_captions(data):
    reasons = {}
    for split, ids in data.usable.items():
        for name in ids:
            reasons.setdefault(read_captions(data, name)[1], []).append(name)
        store = SimpleNamespace(spec=data.spec, split=split, ids=ids, lengths=[data.clips[name].frames for name in ids],
                                captions=lambda clip, ids=ids: read_captions(data, ids[clip]))
        entries, _ = attempt(datasets.text_clips, store) if ids else (None, None)  # it raises where none is left
        data.stores[split], data.entries[split] = store, entries[0] if entries else []
    advice = "text-to-motion passes over them; a line of texts/ID.txt is `caption` or `caption#word/POS ...#start#end`"
    counts = ", ".join(f"{split} {len(entries)}" for split, entries in data.entries.items())
    text = f"for text-to-motion ({data.spec.min_frames} to {data.spec.max_frames} frames, with captions): {counts} clips"
    return [(damaged if "cannot be read" in reason else missing)(f"{len(names)} clips: each {reason}: {some(names)}", advice)
            for reason, names in reasons.items() if reason] + [(ok if all(data.entries.values()) else warning)(text)]


def check_runs(folder, quick):
    """Findings on checkpoints/<dataset>/, and its runs that load, each generator with its autoencoder (``ae``) or None."""
    names = sorted(path.parent.name for path in folder.glob("*/model") if path.parent.name not in suites.RELEASED_FOLDERS)
    found, runs = [], []
    for name in tqdm(names, f"reading {folder}", unit="run", leave=False, mininterval=1):
        files, result = RunFolder(folder.parent, folder.name, name), None
        paths = [path for path in dict.fromkeys([files.latest, files.checkpoint()]) if path.is_file()]
        if not paths:
            found.append(warning(f"{name} has no latest.tar or net_best_fid.tar", "not trained yet; scripts read no other names"))
        for path in paths[-1:] if quick else paths:  # the last is the one that scripts use
            result, reason = attempt(open_run, path, name)
            found.append(damaged(f"{name}/{path.name}: {reason}", "train or fetch it again") if reason else ok(result.text))
        runs += [result] if result else []
    for generator in [result for result in runs if result.kind == "generator"]:
        found += find_autoencoder(generator, [result for result in runs if result.kind == "autoencoder"])
    return found, runs


def open_run(path, name):
    """A checkpoint's run, its weights loaded, strictly: ``text`` and what commands need. It raises for a file of no use."""
    content = loading.read_checkpoint(path)
    keys = [key for key in KINDS if key in content]
    if not keys:
        raise UserError("it holds no model that is known here")
    kind, load = KINDS[keys[0]]
    # A released generator does not say its head: its name has to.
    assumed = ("MARDM-DDPM-XL" if "ddpm" in name.lower() else "MARDM-SiT-XL") if kind == "generator" else None
    assumed = None if content.get("model_name") else assumed
    model, spec, best = load(path, *([assumed] if assumed else [])), content.get("dataset", {}), content.get("best", {})
    if not all(torch.isfinite(value).all() for key in keys for value in content[key].values()):
        raise UserError("it holds NaN or infinite weights")
    code = loading.weights_hash(model[0]) if kind == "autoencoder" else None
    model_name = content.get("model_name") or ("AE_Model" if kind == "autoencoder" else None)
    parts = (f"{name}/{path.name}: {kind}", model_name, not spec and "a released file, by its keys",
             "total_it" in content and f"{content['total_it']} steps", code and f"weights {code}",
             best.get("epoch", -1) >= 0 and f"best {best['metric']} {best['value']:.4g}")
    mode = (content.get("model_kwargs") or {}).get("cond_mode", "text")
    return SimpleNamespace(text=", ".join(filter(None, parts)), name=name, kind=kind, model=model_name, hash=code, ae=None,
                           released=not spec, trained_on=content.get("trained_on"), text_encoder=spec.get("text_encoder"),
                           cond_mode=mode, assumed=assumed, actions=content.get("actions"),
                           curves=any(path.parent.glob("events.out.tfevents.*")))


def find_autoencoder(generator, autoencoders):
    """Sets ``generator.ae``; findings where that is not simply the run which the generator names."""
    if generator.trained_on is None:
        generator.ae = next((ae for ae in autoencoders if ae.released), None)
        return [warning(f"{generator.name} says neither its autoencoder nor its head; it is taken for {generator.assumed}",
                        "pass --ae_name, and as --model MARDM-SiT-XL or MARDM-DDPM-XL, whichever it was published as")]
    wanted, code = generator.trained_on["name"], generator.trained_on["hash"]
    same = {ae.name: ae for ae in autoencoders if ae.hash == code}
    generator.ae = same.get(wanted, next(iter(same.values()), None))
    replaced = wanted in {ae.name for ae in autoencoders}
    text = f"{generator.name}'s autoencoder {wanted} ({code}) {'has other weights now' if replaced else 'is not there'}"
    if same:
        return [] if wanted in same else [warning(f"{text}; {generator.ae.name} is the same", "pass that as --ae_name")]
    return [(damaged if replaced else missing)(text, "put it back, or train the generator again")]


def released_width(path):
    """Features that a released evaluator or its statistics are for; networks are built, strictly. It raises for a bad file."""
    if path.suffix == ".npy":
        vector = load_array(path)
        if vector.ndim != 1 or not np.isfinite(vector).all() or ("std" in path.name and (vector <= 0).any()):
            raise UserError("it must hold finite numbers, those of a std positive")
        return len(vector)
    if path.parts[-3].endswith("clip"):
        state = evaluators.read_checkpoint(path, ("contrast_model",))["contrast_model"]
        return evaluators.build(evaluators.make_motion_clip, state, path).motion_encoder.embed_motion.in_features
    state = evaluators.read_checkpoint(path, keys := ("text_encoder", "motion_encoder", "movement_encoder"))
    return [evaluators.build(getattr(evaluators, f"make_{key}"), state[key], path) for key in keys][-1].main[0].in_channels


def check_released(name, args):
    """The released evaluators and their statistics, at the places where the evaluation scripts look for them."""
    skeleton, found = SKELETONS[specs.KNOWN[name]["skeleton"]], []
    widths = {"essential": (skeleton.essential_dim,) * 2, "standard": (skeleton.feature_dim - 4, skeleton.feature_dim)}
    for protocol, (of_networks, of_statistics) in widths.items():
        for what, places in suites.released_places(suites.suite_flags(args.checkpoints_dir), protocol, name).items():
            source, files = f"{protocol} protocol: {suites.SOURCE[protocol]}", suites.first_place(places)
            if files is None:
                shown = " or ".join(" and ".join(map(str, group)) for group in places)
                found.append(missing(f"{protocol} {what}: expected at {shown}", source))
            for path in files or ():
                width, reason = attempt(released_width, path)
                if width not in (None, of_statistics if what == "statistics" else of_networks):
                    reason = f"it is for {width} features, the {protocol} protocol has {of_networks}"
                other = width in {width for pair in widths.values() for width in pair}  # no damage, but the other protocol's
                found.append((missing if other else damaged)(f"{path}: {reason}", f"fetch it again ({source})") if reason
                             else ok(f"{path}: {width} features, {protocol} protocol"))
    return found


def check_glove(folder):
    words, reason = attempt(word_vectors.WordVectorizer, folder)
    if words and not np.isfinite(words.vectors).all():
        reason = f"{folder / word_vectors.FILES[0]} holds NaN or infinite values; {word_vectors.SOURCE}"
    return [(missing if reason.startswith("no ") else damaged)(reason) if reason else ok(f"{len(words)} words in {folder}")]


def check_commands(name, data, runs, encoders, args):
    """Which commands will work on a data set; else "missing", with the first thing that stands in the way."""
    found = {kind: next((run for run in runs if run.kind == kind and run.name in ("evaluator", "length_estimator")),
                        next((run for run in runs if run.kind == kind), None)) for kind, _ in KINDS.values()}
    rows = training_commands(data, found, encoders, args)
    for generator in [trained for trained in runs if trained.ae] or [None]:
        found["generator"] = generator
        rows += [*evaluation_commands(name, data, found, encoders, args), *generation_commands(name, data, found, encoders)]
    rows = list(dict.fromkeys(rows))  # the autoencoder's rows come with every generator
    rows += [(f"plot_loss.py --log_dir {args.checkpoints_dir / name / run.name}", None) for run in runs if run.curves][:1]
    for command, reason in rows:
        script, _, flags = command.partition(" ")
        command = f"{script} --dataset_name {name} {flags}".strip() if script != "plot_loss.py" else command
        yield missing(f"{command} will not work", reason) if reason else ok(command)


def training_commands(data, found, encoders, args):
    """[(command, why not, or None)] of the training scripts."""
    ae, training = found["autoencoder"], obstacle(data, ("train", "val"), encoders)
    longest = max((data.clips[clip].frames for clip in data.usable["train"]), default=0) if data else 0
    short = None if longest >= WINDOW else f"no training clip has {WINDOW} frames; pass a smaller --window_size"
    fitting = next(model for model in MARDM_models if ae is None or not attempt(check_pair, model, ae.model)[1])
    pair = f" --ae_name {ae.name} --ae_model {ae.model} --model {fitting}" if ae else ""
    no_ae = None if ae else "no autoencoder works; train_AE.py makes one"
    judged = training or judging(data, found, data.spec.protocol, args, "val")[1]
    rows = [("train_AE.py --name NEW", obstacle(data, ("train", "val")) or short),
            ("train_length_estimator.py --name NEW", training), ("train_evaluator.py --name NEW", training),
            (f"train_MARDM.py --name NEW{pair}", no_ae or training),
            (f"train_MARDM.py --name NEW{pair} --need_evaluation", no_ae or judged)]
    if data and (data.root / "labels.json").is_file():
        reason = obstacle(data, ("train", "val"), {}) or no_actions(data, ("train", "val"))
        rows.append((f"train_MARDM.py --name NEW{pair} --cond_mode action", no_ae or reason))
    return rows


def no_actions(data, splits, actions=None, least=1):
    """Why a generator by actions cannot use the splits, or None."""
    chosen, reason = attempt(conditions.load_conditions, "action", data.spec, None, actions)
    for split in () if reason else splits:
        kept, reason = attempt(chosen.select, data.stores[split], data.entries[split], {})
        if kept and len(kept[0]) < least and not data.quick:
            reason = f"{split} has {len(kept[0])} clips of one action, needed are {least}"
        if reason:
            break
    return reason


def evaluation_commands(name, data, found, encoders, args):
    """[(command, why not, or None)] of both evaluation scripts, by every protocol that could be meant."""
    ae, generator, evaluator = found["autoencoder"], found["generator"], found["evaluator"]
    no_ae = None if ae else "no autoencoder works; train_AE.py makes one"
    no_generator = None if generator else "no generator works with its autoencoder; train_MARDM.py makes one"
    released = ("essential", "standard") if name in specs.KNOWN else ()
    default = data.spec.protocol if data else "trained"
    for protocol in dict.fromkeys((default, *released, *(("trained",) if evaluator else ()))):
        flags = f" --protocol {protocol}" if protocol != default else ""
        flags += f" --evaluator {evaluator.name}" if protocol == "trained" and evaluator else ""
        absent, unfit = judging(data, found, protocol, args) if data else (None, None)
        no_clips = obstacle(data, ("test",)) or (unfit if protocol != default or not absent else None)
        yield f"evaluation_AE.py --name {ae.name if ae else 'AE'}{flags}", no_ae or no_clips
        pair = f" {who(generator)}" if generator else ""
        yield f"evaluation_MARDM.py{pair}{flags}", no_generator or evaluating(data, found, protocol, encoders, args)


def who(generator):
    """The flags that name a generator and its autoencoder."""
    model = f" --model {generator.assumed}" if generator.assumed else ""
    return f"--name {generator.name} --ae_name {generator.ae.name}{model}"


def generation_commands(name, data, found, encoders):
    """[(command, why not, or None)] of sample.py and edit.py."""
    generator, estimator = found["generator"], found["length estimator"]
    if generator is None:
        reason = "no generator works with its autoencoder; train_MARDM.py makes one"
        return [("sample.py", reason), ("edit.py", reason)]
    encoder = generator.text_encoder or specs.KNOWN.get(name, {}).get("text_encoder")
    reason = (generator.released and generator.ae.released and obstacle(data, ())) or None  # they lack the statistics
    what = {"text": ' --text_prompt "a person walks"', "action": " --action all", "uncond": ""}[generator.cond_mode]
    length = " --motion_length 120" if estimator is None else f" --length_estimator {estimator.name}"
    if generator.cond_mode != "text" or estimator and estimator.name == "length_estimator":
        length = ""
    if generator.cond_mode == "text":
        reason = reason or encoders.get(encoder)
    pair = who(generator) + what
    return [(f"sample.py {pair}{length}", reason), (f"edit.py {pair} --source_motion FILE.npy -msec 0.3,0.6", reason)]


def judging(data, found, protocol, args, split="test", tokenizer=None):
    """(why the judges of a protocol cannot be loaded, why clips of a split cannot be judged, the former included): None = can."""
    if data is None:
        return "there is no data set that can be read", "there is no data set that can be read"
    evaluator = found["evaluator"].name if found["evaluator"] else "evaluator"
    flags = suites.suite_flags(args.checkpoints_dir, protocol=protocol, evaluator=evaluator, glove_dir=args.glove_dir)
    judge, absent = attempt(suites.load_suite, flags, data.spec, None, tokenizer)
    if absent:
        return absent, absent
    if protocol == "trained" and split == "test" and tokenizer is None:  # evaluation_AE.py: FID only
        return None, obstacle(data, (split,), None, 2)
    entries = [entry for entry in data.entries[split]
               if data.clips[data.stores[split].ids[entry.clip]].width >= judge.columns]
    distinct = data.spec.distinct_retrieval and protocol == "trained"
    count, needed = len(set(datasets.caption_groups(entries))) if distinct else len(entries), scoring.RETRIEVAL
    few = None if count >= needed or data.quick else f"{split} has {count} clips that can be judged, needed are {needed}"
    captions = datasets.all_captions(entries) if split == "test" else [entry.captions[0] for entry in entries]
    return None, few or attempt(judge.check_captions, captions)[1]


def evaluating(data, found, protocol, encoders, args):
    """Why evaluation_MARDM.py will not work by a protocol, or None."""
    generator = found["generator"]
    needs_encoder = generator.cond_mode == "text" or protocol == "trained"
    problem = obstacle(data, ("test",), encoders if needs_encoder else {}, scoring.RETRIEVAL)
    if problem is None and generator.cond_mode == "action":
        problem = no_actions(data, ("test",), generator.actions or [], scoring.RETRIEVAL)
    return problem or judging(data, found, protocol, args, tokenizer=TextEncoder.clip_tokenizer)[1]


def obstacle(data, splits, encoders=None, least=1):
    """Why the splits cannot be used (for text-to-motion, when the state of the text encoders is given; {} = none is needed), or
    None."""
    if data is None or data.problem:
        return data.problem if data else "there is no data set that can be read"
    for split in splits:
        clips = data.usable[split] if encoders is None else data.entries[split]
        count = len(data.splits[split]) if data.quick and clips else len(clips)  # --quick has read some of them only
        if count < least:
            purpose = "" if encoders is None else " for text-to-motion"
            return f"{split} has {count} clips that can be used{purpose}, needed are {least}"
    if not encoders:
        return None
    kept, _ = TextEncoder.read_feature_file(data.root / "text_features" / f"{data.spec.text_encoder}.pt", None)
    texts = {caption.text for split in splits for caption in datasets.all_captions(data.entries[split])}
    problem = encoders.get(data.spec.text_encoder, f"dataset.json names an unknown text encoder, '{data.spec.text_encoder}'")
    return None if texts <= set(kept) else problem  # features that are kept need no encoder


def examine(args):
    lines, encoders = check_environment()
    sections, data, runs = {"environment": lines}, {}, {}
    for folder in sorted(path for path in args.dataset_dir.glob("[!._]*") if path.is_dir()):
        sections[f"data set {folder}"], found = check_dataset(folder, args.quick)
        data |= {found.spec.name: found} if found else {}
    absent = {name: args.dataset_dir / place for name, place in FOLDERS.items() if not (args.dataset_dir / place).is_dir()}
    sections["other data sets"] = [missing(f"{name}: expected at {path}", SOURCES[name]) for name, path in absent.items()]
    for folder in sorted({path.parents[1] for path in args.checkpoints_dir.glob("*/*/model")}):
        sections[f"runs in {folder}"], runs[folder.name] = check_runs(folder, args.quick)
    sections |= {f"released evaluators of {name}": check_released(name, args) for name in specs.KNOWN}
    sections["word vectors of the released evaluators"] = check_glove(args.glove_dir)
    for name in sorted(set(data) | {name for name in runs if runs[name]}):
        sections[f"commands on {name}"] = list(check_commands(name, data.get(name), runs.get(name, []),
                                                             encoders, args))
    return {title: findings for title, findings in sections.items() if findings}


def parse_args():
    parser = options.make_parser(__doc__)
    parser.add_argument("--dataset_dir", type=Path, default="./datasets", help="folder of the data sets")
    parser.add_argument("--checkpoints_dir", type=Path, default="./checkpoints", help="folder of runs and released evaluators")
    parser.add_argument("--glove_dir", type=Path, default="./glove", help="folder of the GloVe vectors")
    parser.add_argument("--quick", action="store_true", help="read 200 clips a data set and one checkpoint a run")
    parser.add_argument("--json", type=Path, default=None, help="file that receives the report as JSON")
    args = parser.parse_args()
    for path in (args.dataset_dir, args.checkpoints_dir, args.glove_dir, args.json.parent if args.json else Path()):
        if path.is_file() or (args.json and path == args.json.parent and not path.is_dir()):
            parser.error(f"{path} is not a folder")
    return args


def main():
    sections = examine(args := parse_args())
    for title, findings in sections.items():
        lines = [f"  {level:8} {what}{' -- ' if advice else ''}{advice}" for level, what, advice in findings]
        print("", title, *lines, sep="\n")
    counts = Counter(finding.level for findings in sections.values() for finding in findings)
    print("\n" + ", ".join(f"{counts[level]} {level}" for level in LEVELS))
    if args.json:
        report = {title: [finding._asdict() for finding in findings] for title, findings in sections.items()}
        write_json(args.json, {"code": settings.code_version(), "damaged": counts["damaged"], "sections": report})
    sys.exit(1 if counts["damaged"] else 0)


if __name__ == "__main__":
    run(main)
