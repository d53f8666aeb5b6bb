"""Make a data set for training from motion capture and captions.

    python -m scripts.prepare_dataset --source my_capture --out datasets/my_capture
    python train_AE.py --dataset_name my_capture --name FSQ_AE_High --model FSQ_AE_High

The source is a folder with
    joints/ID.npy                 (frames, joints, 3), metres, Y up, in the joint order of --skeleton
    or bvh/ID.bvh                 whose joints are found by the names of --skeleton
    or c3d/ID.c3d                 whose points are joint centres, found in the same way
    or amass/.../ID.npz           rotations of SMPL's joints; needs --body_models
    texts/ID.txt                  one caption per line: plain, or HumanML3D's `caption#word/POS ...#start#end`
    train.txt val.txt test.txt    one ID per line
    labels.json, manifest.*       copied if present; without labels.json it is made from the columns `id` and
                                  `label` of a manifest.csv
OUT receives new_joint_vecs/, texts/, the split lists, Mean.npy and Std.npy (of the training split),
dataset.json, and report.json, which names every clip that was left out, and why.
"""
import csv
import io
import os
import shutil
import signal
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from models.TextEncoder import TEXT_ENCODERS
from utils.data.datasets import TAG_RATE, read_captions
from utils.data.sources import Source, check_source, kind_of, unit_of, up_axis_of
from utils.data.specs import KNOWN, DatasetSpec
from utils.data.writing import make_data_folder, write_statistics
from utils.errors import MissingFile, UserError, one_line, run
from utils.files import UnreadableText, plain_id, read_json, read_text
from utils.motion.features import MotionError, joints_to_features
from utils.motion.skeleton_files import describe as describe_skeleton
from utils.motion.skeleton_files import get_skeleton, has_axes, read_description, source_of, with_axes
from utils.motion.skeletons import SKELETONS
from utils.options import make_parser, non_negative_float, non_negative_int, positive_float, positive_int
from utils.report import write_json

SPLITS = ("train", "val", "test")
WINDOW = 64  # frames of the autoencoder's default window, for the summary
LOOKED_AT = 20  # training clips from which the axes of bones are derived
REPEATED = 0.2  # fraction of clips that share a caption from which retrieval avoids repeats within a batch


class Clip(NamedTuple):
    """A converted clip. reason: why it cannot be used; not_text: why text-to-motion skips it; odd: what looks
    wrong though it is used (each None if nothing); total, squares (D,): sums over its frames."""

    name: str
    reason: str = None
    not_text: str = None
    frames: int = 0
    captions: tuple = ()
    total: np.ndarray = None
    squares: np.ndarray = None
    odd: str = None


def parse_args():
    def default(field):
        each = ", ".join(f"{name} {getattr(skeleton, field):g}" for name, skeleton in SKELETONS.items())
        return f"default: the skeleton's ({each})"

    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--source", type=Path, required=True,
        help="folder with joints/, bvh/, c3d/ or amass/, texts/ and the split lists")
    add("--out", type=Path, required=True, help="folder to make; its name becomes the data set's name")
    add("--skeleton", default="t2m",
        help=f"joint layout of the source: {', '.join(SKELETONS)}, or a skeleton file "
             "(scripts.make_skeleton)")
    add("--fps", type=positive_float,
        help="frames per second: of joints/, which are not resampled; to which the others are resampled; "
             f"{default('fps')}")
    add("--scale", type=positive_float,
        help="metres per unit of the source (kit: millimetres); default: the skeleton file's, else 1; of "
             "bvh/ guessed from the height; c3d/ says it itself")
    add("--up", choices=["y", "z"],
        help="axis of the source that points up; default: the skeleton file's, else y; amass/: z; of c3d/ "
             "guessed from the trunk")
    add("--map", type=Path,
        help='JSON file {JOINT: NAME, ...}: what bvh/ or c3d/ call joints of the skeleton; default: the same')
    add("--body_models", type=Path,
        help="folder with the body models for amass/: smplh/male/model.npz, SMPLX_MALE.npz and the like")
    add("--index", type=Path,
        help="HumanML3D's index.csv: its clips are cut out of amass/; default: every file is a clip")
    add("--min_frames", type=positive_int,
        help=f"text-to-motion skips clips of fewer frames; {default('min_frames')}")
    add("--max_frames", type=positive_int, default=199,
        help="text-to-motion skips clips of more frames; the autoencoder uses them")
    add("--retarget", choices=["target", "none"],
        help="target: move all clips to the skeleton's standard body; none: keep each body (default: target "
             "where the skeleton has a standard body, as t2m)")
    add("--text_encoder", choices=list(TEXT_ENCODERS), default="minilm",
        help="text encoder for models of this data set")
    add("--cfg", type=non_negative_float, default=DatasetSpec.cfg,
        help="guidance scale with which generators of this data set sample unless told otherwise")
    add("--workers", type=non_negative_int, default=min(4, os.cpu_count() or 1),
        help="processes; 0 = the main process. The result is the same for any number")
    add("--overwrite", action="store_true", help="replace a data set that is already at --out")
    args = parser.parse_args()
    described = read_description(args.skeleton)
    args.described_source = source_of(described, args.skeleton)
    if isinstance(described, dict) and args.fps:
        described = described | {"fps": args.fps}
    args.described, args.skeleton = described, get_skeleton(described, args.skeleton)
    args.fps = args.fps or args.skeleton.fps
    args.min_frames = args.min_frames or args.skeleton.min_frames
    args.retarget = args.retarget or ("target" if args.skeleton.target_offsets else "none")
    return args


def check_request(args):
    """UserError for flags or folders from which no data set can be made."""
    source, out = args.source.resolve(), args.out.resolve()
    if args.min_frames > args.max_frames:
        raise UserError(f"--min_frames {args.min_frames} is more than --max_frames {args.max_frames}")
    if args.retarget == "target" and not args.skeleton.target_offsets:
        raise UserError(f"the {args.skeleton.name} skeleton has no standard body; pass --retarget none")
    if not args.source.is_dir():
        raise UserError(f"no folder {args.source}; --source needs joints/, texts/, train.txt, val.txt and "
                        "test.txt")
    check_source(kind_of(args.source), args.skeleton, args.body_models, args.index, args.map)
    if not (args.source / "texts").is_dir():
        raise UserError(f"{args.source} has no folder texts/")
    if args.out.name in ("", "..", *KNOWN):
        raise UserError(f"--out {args.out}: its last part names the data set, and must be a new name (not "
                        f"{' or '.join(KNOWN)}, the published data sets)")
    if source == out or out in source.parents:
        raise UserError(f"--out {args.out} is the source or contains it; pass another folder")
    if args.out.exists() and not args.overwrite:
        raise UserError(f"{args.out} exists already; pass --overwrite to replace it, or another --out")
    if args.out.exists() and not (args.out / "dataset.json").is_file():
        raise UserError(f"{args.out} was not made by this script (no dataset.json), so it is not replaced; "
                        "remove it, or pass another --out")


def read_splits(source):
    """{split: ids}. UserError for a missing list, an id that is not a file name, and a repeated id."""
    splits, seen = {}, {}
    for split in SPLITS:
        path = source / f"{split}.txt"
        if not path.is_file():
            raise UserError(f"{path} is missing: it lists the ids of the split, one per line")
        splits[split] = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        for name in splits[split]:
            if "/" in name or not plain_id(name):
                raise UserError(f"{path}: '{name[:60]}' is not a plain file name")
            if name in seen:
                raise UserError(f"{path}: '{name}' is already in {seen[name]}.txt; one split per clip")
            seen[name] = split
    if not splits["train"]:
        raise UserError(f"{source / 'train.txt'} is empty")
    return splits


def convert(name, args, folder):
    """Write features and captions of one clip to ``folder``; returns its Clip."""
    features, reason, odd = read_features_of(args.clips, name, args.retarget)
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


def read_labels(path, skeleton):
    """{joint: its name in the files} of --map. UserError where it is no JSON object of names, or names a
    joint that the skeleton lacks."""
    if not path.is_file():
        raise MissingFile(f"--map: no file {path}")
    labels = read_json(path, "--map")
    for joint, name in labels.items():
        if joint not in skeleton.joint_names:
            raise UserError(f"--map: {path} names '{joint}', which is no joint of {skeleton.name}: "
                            f"{' '.join(skeleton.joint_names[:6])} ...")
        if not isinstance(name, str):
            raise UserError(f"--map: {path} has {name} for '{joint}', not a name")
    return labels


def read_features_of(source, name, retarget):
    """A clip of a Source -> (features (T, D), None, what looks odd or None), or (None, why not usable,
    None)."""
    skeleton = source.skeleton
    joints, reason = source.read(name)
    if reason:
        return None, reason, None
    try:
        features = joints_to_features(joints, skeleton,
                                      skeleton.target_offsets if retarget == "target" else None)
        return features, None, oddity(joints, *skeleton.height_range)
    except MotionError as error:
        return None, str(error), None


def open_source(args, splits):
    """The Source of --source; what it does not know is derived from its first training clips, and said."""
    kind, (scale, up) = kind_of(args.source), args.described_source
    scale, up = args.scale or (None if kind == "c3d" else scale), args.up or up
    labels = args.map and read_labels(args.map, args.skeleton)
    source = Source(args.source, kind, args.skeleton, scale, up or ("z" if kind == "amass" else "y"),
                    args.fps, labels, args.body_models, args.index)
    if kind == "c3d" and up is None:
        source = source._replace(up=up_axis_of(source, splits["train"]))
        print(f"up axis of c3d/, guessed: {source.up}; --up says otherwise")
    elif kind == "bvh" and scale is None and args.skeleton.name != "kit":
        scale, words = unit_of(source, splits["train"])
        print(f"unit of bvh/, guessed: {words}; --scale says otherwise")
        source = source._replace(scale=scale)
    elif kind != "c3d":
        source = source._replace(scale=scale or 1.0)
    if isinstance(args.described, dict) and not has_axes(args.described):
        clips = [joints for joints, reason in map(source.read, splits["train"][:LOOKED_AT])
                 if reason is None and is_clip(joints, source.skeleton)]
        if clips:
            source = source._replace(skeleton=get_skeleton(with_axes(args.described, clips)))
    return source


def is_clip(joints, skeleton):
    """Whether an array can be converted to features."""
    try:
        return len(joints_to_features(joints, skeleton)) > 0
    except MotionError:
        return False


def oddity(joints, low, high):
    """What is odd about the height of joints (T, J, 3), or None; retargeting would hide a wrong unit."""
    height = float(np.median(np.ptp(joints[..., 1].astype(np.float64), axis=-1)))
    if low <= height <= high:
        return None
    return f"is {height:.3g} units high, a body {low:g} to {high:g}: is the unit right, and is Y up?"


def not_text(frames, captions, shortest, longest):
    """Why text-to-motion skips a clip, by the rule that training applies, or None."""
    if not shortest <= frames <= longest:
        return f"{frames} frames, outside {shortest}..{longest}"
    for _, (start, end) in captions:
        span = min(int(end * TAG_RATE), frames) - int(start * TAG_RATE)
        if start == end == 0 or (start >= 0 and shortest <= span <= longest):
            return None
    return f"its captions' time spans are all outside {shortest}..{longest} frames"


def convert_all(names, work, workers):
    """[work(name)]. The workers leave Ctrl-C to this process, which gives them nothing more to do. UserError
    where one of them is killed."""
    progress = partial(tqdm, total=len(names), desc="converting", unit="clip", mininterval=0.5)
    if workers == 0:
        return list(progress(map(work, names)))
    try:
        with ProcessPoolExecutor(workers, None, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
            return list(progress(pool.map(work, names, chunksize=8)))
    except BrokenProcessPool as error:
        raise UserError("a process that converts clips was killed, perhaps since memory ran out; pass fewer "
                        f"--workers than {workers}, or 0") from error


def prepare(args):
    """Make the data set in OUT.partial, then rename it. Returns the report (dict)."""
    check_request(args)
    splits = read_splits(args.source)
    args.clips = open_source(args, splits)
    args.skeleton = args.clips.skeleton
    partial_out = args.out.with_name(args.out.name + ".partial")
    try:
        make_data_folder(partial_out)
    except OSError as error:
        raise UserError(f"cannot write to {partial_out.parent}: {error.strerror or error}") from None
    try:
        report = fill(partial_out, args, splits)
        replace_folder(partial_out, args.out)
    finally:
        shutil.rmtree(partial_out, ignore_errors=True)
    return report


def fill(folder, args, splits):
    """Write all files of the data set to ``folder``; returns the report. UserError if no clip is usable."""
    names = sum(splits.values(), [])
    clips = {clip.name: clip for clip in convert_all(names, partial(convert, args=args, folder=folder),
                                                     args.workers)}
    usable = {split: [clips[name] for name in names if not clips[name].reason]
              for split, names in splits.items()}
    train = usable["train"]
    if not train:
        first = clips[splits["train"][0]]
        raise UserError(f"no clip of {args.source / 'train.txt'} can be used; the first, {first.name}: "
                        f"{first.reason}")
    for split, members in usable.items():
        (folder / f"{split}.txt").write_text("".join(f"{clip.name}\n" for clip in members), encoding="utf-8")
    total, squares, frames = (sum(getattr(clip, name) for clip in train)
                              for name in ("total", "squares", "frames"))
    constant = write_statistics(folder, total, squares, frames, args.skeleton)
    for path in [args.source / "labels.json", *sorted(args.source.glob("manifest.*"))]:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    labels = read_manifest(args.source / "manifest.csv")
    if labels and not (folder / "labels.json").is_file():
        names = [clip.name for members in usable.values() for clip in members]
        write_json(folder / "labels.json", {name: labels[name] for name in names if name in labels})
    report = make_report(args, clips, usable) | {"constant_columns": constant}
    write_json(folder / "report.json", report)
    write_json(folder / "dataset.json", describe(args, usable))
    return report


def read_manifest(path):
    """{id: {"actions": [label]}} of the columns `id` and `label` of a manifest.csv; clips without a label are
    left out. {} without the file or the columns; UserError if it cannot be read."""
    if not path.is_file():
        return {}
    try:
        reader = csv.DictReader(io.StringIO(read_text(path)))
        rows = [(row.get("id"), (row.get("label") or "").strip()) for row in reader]
    except (UnreadableText, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8 ({getattr(error, 'why', error)})") from error
    return {name: {"actions": [label]} for name, label in rows if name and label}


def repeated_fraction(clips):
    """Fraction of the clips that have a caption in common with another clip."""
    uses = Counter(caption for clip in clips for caption in set(clip.captions))
    return sum(any(uses[caption] > 1 for caption in clip.captions) for clip in clips) / len(clips)


def describe(args, usable):
    """Content of dataset.json."""
    return {
        "name": args.out.name, "skeleton": describe_skeleton(args.skeleton), "fps": args.fps,
        "min_frames": args.min_frames, "max_frames": args.max_frames, "text_encoder": args.text_encoder,
        "cfg": args.cfg, "unit_length": 4,
        "distinct_retrieval": repeated_fraction(sum(usable.values(), [])) > REPEATED,
        "retarget": args.retarget, "num_clips": {split: len(members) for split, members in usable.items()},
        "feature_dim": args.skeleton.feature_dim,
    }


def make_report(args, clips, usable):
    """What became of every clip of the source."""
    good = sum(usable.values(), [])
    unlisted = sorted({*args.clips.names()} - set(clips))
    return {
        "clips": {split: len(members) for split, members in usable.items()},
        "text_to_motion": {split: sum(not clip.not_text for clip in members)
                           for split, members in usable.items()},
        "hours": round(sum(clip.frames for clip in good) / args.fps / 3600, 3),
        f"shorter_than_{WINDOW}_frames": sum(clip.frames < WINDOW for clip in good),
        "share_with_a_repeated_caption": round(repeated_fraction(good), 3),
        "unusable": {clip.name: clip.reason for clip in clips.values() if clip.reason}
        | {name: "is in no split list" for name in unlisted},
        "odd": {clip.name: clip.odd for clip in good if clip.odd},
        "not_used_for_text_to_motion": {clip.name: clip.not_text for clip in good if clip.not_text},
    }


def replace_folder(new, out):
    """Rename ``new`` to ``out``; a data set that was there is moved aside first, and removed last. The name
    that it has meanwhile is none that people give to a folder of theirs."""
    old = out.with_name(f".replaced.{out.name}")
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(out, old)
    os.replace(new, out)
    shutil.rmtree(old, ignore_errors=True)


def print_report(report, out, most=10):
    """Print the summary of a report, with ``most`` clips of each list."""
    def total(key):
        counts = ", ".join(f"{split} {count}" for split, count in report[key].items())
        return f"{sum(report[key].values())} clips ({counts})"

    print(f"{out}: {total('clips')}, {report['hours']:.2f} hours; {report[f'shorter_than_{WINDOW}_frames']} "
          f"are shorter than the autoencoder's window of {WINDOW} frames")
    print(f"text-to-motion uses {total('text_to_motion')}")
    if report["constant_columns"]:
        print(f"{report['constant_columns']} feature columns never change; their Std is set to 1")
    for key, title in (("not_used_for_text_to_motion", "used for the autoencoder, not for text-to-motion"),
                       ("unusable", "left out altogether"),
                       ("odd", "used, but look wrong (unless people lie or crouch)")):
        if report[key]:
            print(f"{len(report[key])} clips {title}:")
        for name, reason in list(report[key].items())[:most]:
            print(one_line(f"  {name}: {reason}", 300))
        if len(report[key]) > most:
            print(f"  and {len(report[key]) - most} more, all in {out / 'report.json'}")


def main():
    args = parse_args()
    print_report(prepare(args), args.out)


if __name__ == "__main__":
    run(main)
