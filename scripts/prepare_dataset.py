"""Make a data set for training from motion capture and captions.

    python -m scripts.prepare_dataset --source my_capture --out datasets/my_capture
    python train_AE.py --dataset_name my_capture --name FSQ_AE_High --model FSQ_AE_High

The source is a folder with
    joints/ID.npy                 (frames, joints, 3), metres, Y up, in the joint order of --skeleton
    texts/ID.txt                  a caption a line: plain, or HumanML3D's `caption#word/POS ...#start#end`
    train.txt val.txt test.txt    an ID a line
    labels.json, manifest.*       copied when there
OUT receives new_joint_vecs/, texts/, the split lists, Mean.npy and Std.npy (of the training split),
dataset.json, and report.json, which names every clip that was left out, and why.
"""
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from models.TextEncoder import TEXT_ENCODERS
from utils.arrays import UnreadableArray, load_array
from utils.data.datasets import TAG_RATE, read_captions
from utils.data.specs import KNOWN
from utils.data.writing import make_data_folder, write_statistics
from utils.errors import UserError, run
from utils.motion.features import MotionError, joints_to_features
from utils.motion.skeletons import SKELETONS
from utils.options import make_parser, non_negative_int, positive_float, positive_int
from utils.report import write_json

SPLITS = ("train", "val", "test")
WINDOW = 64  # frames of the autoencoder's default window, for the summary
RATES = {"t2m": 20.0, "kit": 12.5}  # frames a second
SHORTEST = {"t2m": 40, "kit": 24}  # frames
# how far a body reaches upwards, in the data sets' units: metres, millimetres
TALL = {"t2m": (0.5, 2.5), "kit": (500, 2500)}
# share of clips with a caption of another clip from which retrieval needs batches without repeats
REPEATED = 0.2


class Clip(NamedTuple):
    """A clip after its conversion: ``reason`` says why it cannot be used, ``not_text`` why text-to-motion
    passes over it (None where they can), ``odd`` what looks wrong though it is used; ``total`` and
    ``squares`` (D,) are sums over its frames."""

    name: str
    reason: str = None
    not_text: str = None
    frames: int = 0
    captions: tuple = ()
    total: np.ndarray = None
    squares: np.ndarray = None
    odd: str = None


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("--source", type=Path, required=True,
                        help="folder with joints/, texts/ and the split lists")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; its name is the data set's "
                                                                "name")
    parser.add_argument("--skeleton", choices=list(SKELETONS), default="t2m",
                        help="joint layout of the source")
    parser.add_argument("--fps", type=positive_float, help="frames a second of the source, kept as they are "
                        "(default: 20, for kit 12.5)")
    parser.add_argument("--min_frames", type=positive_int,
                        help="text-to-motion passes over clips of fewer frames (default: 40, for kit 24)")
    parser.add_argument("--max_frames", type=positive_int, default=199,
                        help="text-to-motion passes over clips of more frames; the autoencoder uses them")
    parser.add_argument("--retarget", choices=["target", "none"],
                        help="target: move all clips to the skeleton's standard body; none: keep each body "
                             "(default: target where the skeleton has a standard body, as t2m)")
    parser.add_argument("--text_encoder", choices=list(TEXT_ENCODERS), default="minilm",
                        help="text encoder that models of this data set are trained with")
    parser.add_argument("--workers", type=non_negative_int, default=min(4, os.cpu_count() or 1),
                        help="processes; 0 = this one alone. The result is the same for any number")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace a data set that is already at --out")
    args = parser.parse_args()
    args.fps = args.fps or RATES[args.skeleton]
    args.min_frames = args.min_frames or SHORTEST[args.skeleton]
    args.retarget = args.retarget or ("target" if SKELETONS[args.skeleton].target_offsets else "none")
    return args


# Reading the source


def check_request(args):
    """UserError for flags or folders with which nothing sensible can be made."""
    if args.min_frames > args.max_frames:
        raise UserError(f"--min_frames {args.min_frames} is more than --max_frames {args.max_frames}")
    if args.retarget == "target" and not SKELETONS[args.skeleton].target_offsets:
        raise UserError(f"the {args.skeleton} skeleton has no standard body to retarget to; pass --retarget "
                        "none")
    if not args.source.is_dir():
        raise UserError(f"no folder {args.source}; --source needs joints/, texts/, train.txt, val.txt and "
                        "test.txt")
    for folder in ("joints", "texts"):
        if not (args.source / folder).is_dir():
            raise UserError(f"{args.source} has no folder {folder}/")
    if args.out.name in ("", "..", *KNOWN):
        raise UserError(f"--out {args.out}: its last part names the data set, so it must be a name of its "
                        "own "
                        f"(and none of {', '.join(KNOWN)}, which are published data sets)")
    source, out = args.source.resolve(), args.out.resolve()
    if source == out or out in source.parents:
        raise UserError(f"--out {args.out} is the source or holds it; pass another folder")
    if args.out.exists() and not args.overwrite:
        raise UserError(f"{args.out} exists already; pass --overwrite to replace it, or another --out")
    if args.out.exists() and not (args.out / "dataset.json").is_file():
        raise UserError(f"{args.out} is no data set made by this script (no dataset.json), so it is not "
                        "replaced; "
                        "remove it, or pass another --out")


def read_splits(source):
    """{split: ids}. UserError for a missing list, an id that is no file name, and an id that stands twice."""
    splits, seen = {}, {}
    for split in SPLITS:
        path = source / f"{split}.txt"
        if not path.is_file():
            raise UserError(f"{path} is missing: it lists the ids of the split, one a line")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise UserError(f"{path} is not UTF-8 text") from None
        splits[split] = [line.strip() for line in lines if line.strip()]
        for name in splits[split]:
            if Path(name).name != name or "\\" in name:
                raise UserError(f"{path}: '{name}' is not a plain file name")
            if name in seen:
                raise UserError(f"{path}: '{name}' stands in {seen[name]}.txt already; a clip belongs to one "
                                "split")
            seen[name] = split
    if not splits["train"]:
        raise UserError(f"{source / 'train.txt'} is empty")
    return splits


# Converting clips


def convert(name, args, folder):
    """Write features and captions of one clip to ``folder``; returns its Clip."""
    features, reason, odd = read_features_of(args.source / "joints" / f"{name}.npy", args.skeleton,
                                             args.retarget)
    captions, no_text = read_captions(args.source / "texts" / f"{name}.txt")
    if reason or no_text:
        return Clip(name, reason or no_text)
    np.save(folder / "new_joint_vecs" / f"{name}.npy", features)
    lines = [f"{text}#{' '.join(tokens)}#{start}#{end}\n" for (text, tokens), (start, end) in captions]
    (folder / "texts" / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    precise = features.astype(np.float64)
    return Clip(name, None, not_text(len(features), captions, args.min_frames, args.max_frames),
                len(features), tuple(text.lower() for (text, _), _ in captions), precise.sum(0),
                (precise ** 2).sum(0), odd)


def read_features_of(path, skeleton_name, retarget):
    """Of a joints file: features (T, D), None, and what looks odd or None; or None, the reason why it cannot
    be used, None."""
    skeleton = SKELETONS[skeleton_name]
    try:
        joints = load_array(path)
        features = joints_to_features(joints, skeleton,
                                      skeleton.target_offsets if retarget == "target" else None)
        return features, None, oddity(joints, *TALL[skeleton_name])
    except UnreadableArray as error:
        return None, "has no joints file" if error.missing else f"joints {error.reason}", None
    except MotionError as error:
        return None, str(error), None


def oddity(joints, low, high):
    """What is strange about the height of a body, joints (T, J, 3); None if nothing is. Retargeting would
    hide a wrong unit."""
    # (T,): highest minus lowest joint
    reach = float(np.median(np.ptp(joints[..., 1].astype(np.float64), axis=-1)))
    if low <= reach <= high:
        return None
    return f"reaches {reach:.3g} units upwards, a standing body {low:g} to {high:g}: is the unit right, and is Y up?"


def not_text(frames, captions, shortest, longest):
    """Why text-to-motion passes over a clip, by the rule that training applies; None where it does not."""
    if not shortest <= frames <= longest:
        return f"{frames} frames, outside {shortest}..{longest}"
    for _, (start, end) in captions:
        span = min(int(end * TAG_RATE), frames) - int(start * TAG_RATE)
        if start == end == 0 or shortest <= span <= longest:
            return None
    return f"its captions' time spans are all outside {shortest}..{longest} frames"


def convert_all(names, work, workers):
    """``work(name)`` for all names, in their order. The workers leave Ctrl-C to this process, which ends
    them."""
    progress = partial(tqdm, total=len(names), desc="converting", unit="clip", mininterval=0.5)
    if workers == 0:
        return list(progress(map(work, names)))
    with multiprocessing.Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        return list(progress(pool.imap(work, names, chunksize=8)))


# Writing the data set


def prepare(args):
    """Make the data set in OUT.partial and rename it at the end. Returns the report (dict)."""
    check_request(args)
    splits = read_splits(args.source)
    partial_out = args.out.with_name(args.out.name + ".partial")
    make_folders(partial_out)
    try:
        report = fill(partial_out, args, splits)
        replace_folder(partial_out, args.out)
    finally:
        shutil.rmtree(partial_out, ignore_errors=True)
    return report


def make_folders(folder):
    try:
        make_data_folder(folder)
    except FileExistsError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"cannot write to {folder.parent}: {error.strerror}") from None


def fill(folder, args, splits):
    """Write everything that a data set holds to ``folder``; returns the report. UserError where no clip is
    usable."""
    names = sum(splits.values(), [])
    clips = {clip.name: clip for clip in convert_all(names, partial(convert, args=args, folder=folder),
                                                     args.workers)}
    usable = {split: [clips[name] for name in names if not clips[name].reason]
              for split, names in splits.items()}
    if not usable["train"]:
        first = clips[splits["train"][0]]
        raise UserError(f"no clip of {args.source / 'train.txt'} can be used; the first, {first.name}: "
                        f"{first.reason}")
    for split, members in usable.items():
        (folder / f"{split}.txt").write_text("".join(f"{clip.name}\n" for clip in members), encoding="utf-8")
    train = usable["train"]
    total, squares, frames = (sum(getattr(clip, name) for clip in train)
                              for name in ("total", "squares", "frames"))
    constant = write_statistics(folder, total, squares, frames, SKELETONS[args.skeleton])
    for path in [args.source / "labels.json", *sorted(args.source.glob("manifest.*"))]:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    report = make_report(args, clips, usable) | {"constant_columns": constant}
    write_json(folder / "report.json", report)
    write_json(folder / "dataset.json", describe(args, usable))
    return report


def repeated_share(clips):
    """Share of the clips that have a caption in common with another clip."""
    uses = Counter(caption for clip in clips for caption in set(clip.captions))
    return sum(any(uses[caption] > 1 for caption in clip.captions) for clip in clips) / len(clips)


def describe(args, usable):
    """The content of dataset.json."""
    clips = sum(usable.values(), [])
    return {
        "name": args.out.name, "skeleton": args.skeleton, "fps": args.fps,
        "min_frames": args.min_frames, "max_frames": args.max_frames, "text_encoder": args.text_encoder,
        "unit_length": 4, "distinct_retrieval": repeated_share(clips) > REPEATED, "retarget": args.retarget,
        "num_clips": {split: len(members) for split, members in usable.items()},
        "feature_dim": SKELETONS[args.skeleton].feature_dim,
    }


def make_report(args, clips, usable):
    """What became of every clip of the source."""
    good = sum(usable.values(), [])
    unusable = {clip.name: clip.reason for clip in clips.values() if clip.reason}
    unlisted = sorted({path.stem for path in (args.source / "joints").glob("*.npy")} - set(clips))
    unusable |= {name: "is in no split list" for name in unlisted}
    return {
        "clips": {split: len(members) for split, members in usable.items()},
        "text_to_motion": {split: sum(not clip.not_text for clip in members)
                           for split, members in usable.items()},
        "hours": round(sum(clip.frames for clip in good) / args.fps / 3600, 3),
        f"shorter_than_{WINDOW}_frames": sum(clip.frames < WINDOW for clip in good),
        "share_with_a_repeated_caption": round(repeated_share(good), 3),
        "unusable": unusable,
        "odd": {clip.name: clip.odd for clip in good if clip.odd},
        "not_used_for_text_to_motion": {clip.name: clip.not_text for clip in good if clip.not_text},
    }


def replace_folder(new, out):
    """Rename ``new`` to ``out``; a data set that lay there is moved aside first and removed last."""
    old = out.with_name(out.name + ".old")
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(out, old)
    os.replace(new, out)
    shutil.rmtree(old, ignore_errors=True)


def print_report(report, out, most=10):
    """The summary that a user reads; report.json holds the same in full."""
    counts = ", ".join(f"{split} {count}" for split, count in report["clips"].items())
    print(f"{out}: {sum(report['clips'].values())} clips ({counts}), {report['hours']:.2f} hours; "
          f"{report[f'shorter_than_{WINDOW}_frames']} are shorter than the autoencoder's window of {WINDOW} "
          "frames")
    counts = ", ".join(f"{split} {count}" for split, count in report["text_to_motion"].items())
    print(f"text-to-motion uses {sum(report['text_to_motion'].values())} clips ({counts})")
    if report["constant_columns"]:
        print(f"{report['constant_columns']} feature columns never change; their Std is set to 1")
    for key, title in (("not_used_for_text_to_motion",
                        "not used for text-to-motion, only for the autoencoder"),
                       ("unusable", "left out altogether"), ("odd", "used, but look wrong (unless people lie "
                                                                    "or crouch)")):
        if report[key]:
            print(f"{len(report[key])} clips {title}:")
        for name, reason in list(report[key].items())[:most]:
            print(f"  {name}: {reason}")
        if len(report[key]) > most:
            print(f"  and {len(report[key]) - most} more, all in {out / 'report.json'}")


def main():
    args = parse_args()
    print_report(prepare(args), args.out)


if __name__ == "__main__":
    run(main)
