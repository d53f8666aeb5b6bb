"""Make a data set for train_behavior.py from recordings of an inertial sensor.

    python -m scripts.prepare_imu --source imu_har.npz --out datasets/imu_har --most_per_person 170 \\
        --behaviors walking "walking upstairs" "walking downstairs" sitting standing lying
    python -m scripts.prepare_imu --source my_recordings --out datasets/mine
    python train_behavior.py --dataset_name mine --name mine

The source is
    a .npz file    X_train, X_test (N, T, 9): windows, half overlapping; y_train, y_test (N,): numbers of
                   behaviours. Channels: body acceleration x y z, angular velocity x y z, total acceleration
                   x y z. subjects_train (N,), if there, says whose each window is
    or a folder    of CSV files (docs/behavior.md: columns) with recordings.csv: columns file, subject, and
                   label, where the files have no such column
People are split, never windows: nobody is in two of train, val and test. OUT receives dataset.json,
train.npz, val.npz, test.npz and report.json.
"""
import csv
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from models.Conv2dFSQ import HALVINGS
from utils import options
from utils.arrays import first_absurd, load_arrays
from utils.data.inertial import ARRAYS, KIND, RATE, SPLITS, WINDOW, SensorSpec, cut
from utils.data.recordings import ACCELERATION, ANGULAR, LOWEST_RATE, Units, read_recording
from utils.errors import MissingFile, UnreadableFile, UserError, run, say
from utils.files import plain_id, read_text
from utils.motion.inertial import CHANNELS
from utils.report import format_table, write_json

NPZ = ("X_train", "y_train", "X_test", "y_test", "subjects_train")
VAL, TEST = 0.15, 0.2  # of the people
FEWEST_PEOPLE = 3


class Part(NamedTuple):
    """Windows (N, T, 9) of a split, labels (N,), recordings (N,) and starts (N,)."""

    windows: np.ndarray
    labels: np.ndarray
    recordings: np.ndarray
    starts: np.ndarray

    def take(self, rows):
        return Part(*(array[rows] for array in self))


def parse_args():
    parser = options.make_parser(__doc__)
    add = parser.add_argument
    add("--source", type=Path, required=True, help=".npz file, or folder with recordings.csv")
    add("--out", type=Path, required=True, help="folder to make; its name becomes the data set's name")
    add("--behaviors", nargs="+", default=None, metavar="NAME",
        help="of an .npz file: names of the behaviours 0, 1 ...; default: their numbers")
    add("--rate", type=options.number(float, LOWEST_RATE), default=RATE,
        help="samples per second: of the windows of an .npz file; to which CSV files are resampled")
    add("--window", type=options.number(int, 2), default=None,
        help=f"of CSV files: samples per window; default: {WINDOW}")
    add("--recorded_at", type=options.positive_float, default=None,
        help="samples per second of CSV files without a column time; default: --rate")
    add("--acceleration_unit", choices=list(ACCELERATION), default=None, help="of CSV files; default: g")
    add("--angular_unit", choices=list(ANGULAR), default=None, help="of CSV files; default: rad/s")
    add("--val_subjects", nargs="+", default=None, metavar="NAME",
        help=f"people to validate on; default: {VAL:.0%}% of those for training, drawn by --seed")
    add("--test_subjects", nargs="+", default=None, metavar="NAME",
        help=f"of CSV files: people to test on; default: {TEST:.0%}%, drawn by --seed")
    add("--most_per_person", type=options.positive_int, default=None, metavar="N",
        help="of an .npz file that does not say whose windows it has, but has one person after another: most "
             f"training windows of one person. The last {VAL:.0%}% validate, and the N before them are used "
             "for nothing, so that nobody is on both sides")
    add("--seed", type=options.non_negative_int, default=3407, help="seed of the draw of people")
    return parser.parse_args()


def draw_people(people, share, asked, seed, flag):
    """The people of a split: those ``asked`` for, else a ``share`` of them. UserError for unknown ones."""
    unknown = sorted({*(asked or ())} - {*people})
    if unknown:
        raise UserError(f"{flag}: there is nobody called '{unknown[0]}'; there are {', '.join(people[:20])}")
    order = np.random.default_rng(seed).permutation(len(people))
    return {*(asked or [people[row] for row in order[: max(1, round(share * len(people)))]])}


# A .npz file of windows.

def read_npz(args):
    """({split: Part}, behaviours, samples per window) of a .npz file. UserError where it has other arrays."""
    found = load_arrays(args.source, NPZ)
    for name in NPZ[:4]:
        if name not in found:
            raise UserError(f"{args.source} lacks the array '{name}'; it needs {', '.join(NPZ[:4])}")
    shapes = [found[f"X_{split}"].shape for split in ("train", "test")]
    if shapes[0][1:2] != shapes[1][1:2]:
        raise UserError(f"{args.source}: X_train has shape {shapes[0]} and X_test {shapes[1]}; windows of "
                        "both must have as many samples")
    behaviors = args.behaviors
    if behaviors is None:
        highest = found["y_train"].max(initial=0) if found["y_train"].dtype.kind in "iu" else 0
        behaviors = list(map(str, range(int(highest) + 1)))
    parts = {split: check_windows(args, split, found[f"X_{split}"], found[f"y_{split}"], len(behaviors))
             for split in ("train", "test")}
    train, val = hold_out(args, parts["train"], found.get("subjects_train"))
    parts = {"train": parts["train"].take(train), "val": parts["train"].take(val), "test": parts["test"]}
    return parts, behaviors, parts["train"].windows.shape[1]


def check_windows(args, split, windows, labels, behaviors):
    """The Part of arrays of a .npz file, with recordings found. UserError for other shapes or values."""
    if windows.ndim != 3 or windows.shape[2] != len(CHANNELS) or labels.shape != windows.shape[:1]:
        raise UserError(f"{args.source}: X_{split} has shape {windows.shape} and y_{split} {labels.shape}; "
                        f"needed are (windows, samples, {len(CHANNELS)}) and (windows,)")
    if not windows.size or windows.dtype.kind not in "fiu":
        raise UserError(f"{args.source}: X_{split} has no windows, or holds no numbers")
    if first_absurd(windows.reshape(len(windows), -1)) is not None:
        raise UserError(f"{args.source}: X_{split} holds NaN, infinite or absurd values")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= behaviors:
        raise UserError(f"{args.source}: y_{split} must be whole numbers from 0 to {behaviors - 1}, one for "
                        "each of --behaviors")
    windows, labels = windows.astype(np.float32), labels.astype(np.int64)
    return Part(windows, labels, *find_recordings(windows, labels))


def find_recordings(windows, labels):
    """Numbers of recordings (N,) and first samples (N,): a window whose first half is the second half of the
    one before, of the same behaviour, goes on with its recording."""
    half = windows.shape[1] // 2
    repeated = (windows[1:, :half] == windows[:-1, half : 2 * half]).all((1, 2))
    goes_on = repeated & (labels[1:] == labels[:-1])
    recordings = np.concatenate([[0], np.cumsum(~goes_on)])
    first = np.flatnonzero(np.concatenate([[True], ~goes_on]))
    return recordings, (np.arange(len(labels)) - first[recordings]) * half


def hold_out(args, part, subjects):
    """Rows of the training windows, and rows of those that validate."""
    count = len(part.labels)
    if subjects is not None:
        if args.most_per_person is not None:
            raise UserError(f"--most_per_person: {args.source} says whose its windows are (subjects_train); "
                            "leave it out")
        if subjects.shape != (count,):
            raise UserError(f"{args.source}: subjects_train has shape {subjects.shape}, not ({count},)")
        subjects = subjects.astype(str)
        people = sorted({*subjects.tolist()})
        if len(people) < 2:
            raise UserError(f"{args.source}: subjects_train names one person; two are needed, one to "
                            "validate")
        chosen = draw_people(people, VAL, args.val_subjects, args.seed, "--val_subjects")
        if len(chosen) == len(people):
            raise UserError("--val_subjects names everybody; somebody must be left to train on")
        val = np.isin(subjects, sorted(chosen))
        return np.flatnonzero(~val), np.flatnonzero(val)
    if args.val_subjects is not None:
        raise UserError(f"--val_subjects: {args.source} does not say whose its windows are (subjects_train)")
    if args.most_per_person is None:
        raise UserError(f"{args.source} does not say whose its windows are (subjects_train); where it has "
                        "one person after another, pass --most_per_person N")
    first = count - round(VAL * count)
    if first - args.most_per_person < 1:
        raise UserError(f"--most_per_person {args.most_per_person}: of {count} windows none is left to train "
                        "on")
    return np.arange(first - args.most_per_person), np.arange(first, count)


# A folder of CSV files.

def read_folder(args):
    """({split: Part}, behaviours, samples per window) of a folder with recordings.csv."""
    rows = read_list(args.source / "recordings.csv")
    people = sorted({row["subject"] for row in rows})
    if len(people) < FEWEST_PEOPLE:
        raise UserError(f"{args.source}/recordings.csv has recordings of {len(people)} people; "
                        f"{FEWEST_PEOPLE} are needed, one each for train, val and test")
    if both := sorted({*(args.val_subjects or ())} & {*(args.test_subjects or ())}):
        raise UserError(f"'{both[0]}' is in --val_subjects and in --test_subjects; nobody may be in two "
                        "splits")
    taken = () if args.test_subjects else args.val_subjects or ()
    free = [name for name in people if name not in taken]
    test = draw_people(free, TEST, args.test_subjects, args.seed, "--test_subjects") if free else set()
    others = [name for name in people if name not in test]
    val = draw_people(others, VAL, args.val_subjects, args.seed, "--val_subjects") if others else set()
    if not {*others} - val:
        raise UserError("--val_subjects and --test_subjects name everybody; somebody must be left to train "
                        "on")
    spec = SensorSpec((), args.rate, args.window or WINDOW, ())
    units = Units(args.acceleration_unit or "g", args.angular_unit or "rad/s")
    found = {split: [] for split in SPLITS}
    for number, row in enumerate(tqdm(rows, desc="reading", unit="file", mininterval=1)):
        recording = read_recording(args.source / row["file"], args.rate, units=units,
                                   recorded_at=args.recorded_at)
        split = "test" if row["subject"] in test else "val" if row["subject"] in val else "train"
        found[split] += windows_of(recording, row, spec, number, args.left_out)
    behaviors = sorted({label for windows in found.values() for _, label, _, _ in windows})
    for split, windows in found.items():
        if not windows:
            raise UserError(f"no recording of the people for '{split}' has {spec.window} samples of one "
                            "behaviour; pass a smaller --window, or other people")
    return ({split: pack(windows, behaviors) for split, windows in found.items()}, behaviors, spec.window)


def read_list(path):
    """[{"file", "subject", "label"}] of recordings.csv. UserError where it lacks one of them."""
    if not path.is_file():
        raise MissingFile(f"{path} is missing: it names the CSV files, with the columns file, subject and, "
                          "where the files have no such column, label")
    rows = list(csv.DictReader(read_text(path).splitlines()))
    if not rows or not {"file", "subject"} <= {*rows[0]}:
        raise UserError(f"{path} needs the columns file and subject, and a row for each recording")
    seen = {}
    for number, row in enumerate(rows, 2):
        row |= {key: (row.get(key) or "").strip() for key in ("file", "subject", "label")}
        if not all(row.get(key) for key in ("file", "subject")) or not plain_id(row["file"]):
            raise UserError(f"{path}: row {number} needs the name of a file in the same folder, and a "
                            "subject")
        if row["file"] in seen:
            raise UserError(f"{path}: {row['file']} is in row {seen[row['file']]} and in row {number}; a "
                            "recording is of one person, and counts once")
        seen[row["file"]] = number
    return rows


def windows_of(recording, row, spec, number, left_out):
    """[(window (T, 9), label, number of the recording, first sample)] of a Recording; how many windows hold
    two labels, and recordings that are too short, are noted in ``left_out``."""
    labels = recording.labels
    if labels is None and not row.get("label"):
        raise UnreadableFile(row["file"], "has no column label, and recordings.csv has none for it either")
    starts, windows = cut(len(recording.signals), spec), []
    for start in starts:
        shown = {row["label"]} if labels is None else {*labels[start : start + spec.window].tolist()}
        if len(shown) == 1 and "" not in shown:
            windows.append((recording.signals[start : start + spec.window], shown.pop(), number, start))
    if not starts:
        left_out[row["file"]] = f"{len(recording.signals)} samples, shorter than a window"
    elif len(windows) < len(starts):
        left_out[row["file"]] = f"{len(starts) - len(windows)} windows with two labels, or none"
    return windows


def pack(windows, behaviors):
    signals, labels, recordings, starts = zip(*windows)
    return Part(np.stack(signals), np.array([behaviors.index(label) for label in labels]),
                np.array(recordings), np.array(starts))


def prepare(args):
    """Make the data set; returns its report."""
    if os.path.lexists(args.out):
        raise UserError(f"{args.out} exists already; remove it, or pass another --out")
    if not args.source.exists():
        raise MissingFile(f"--source: there is no {args.source}")
    args.left_out = {}
    of_folder = args.source.is_dir()
    for flag, given, fits in (("--behaviors", args.behaviors, not of_folder),
                              ("--most_per_person", args.most_per_person, not of_folder),
                              ("--test_subjects", args.test_subjects, of_folder),
                              ("--recorded_at", args.recorded_at, of_folder),
                              ("--window", args.window, of_folder),
                              ("--acceleration_unit", args.acceleration_unit, of_folder),
                              ("--angular_unit", args.angular_unit, of_folder)):
        if given is not None and not fits:
            raise UserError(f"{flag} goes with {'an .npz file' if of_folder else 'a folder of CSV files'}, "
                            "and --source is another kind")
    parts, behaviors, window = (read_folder if of_folder else read_npz)(args)
    if window % 2**HALVINGS:
        raise UserError(f"windows of {window} samples do not suit the network: they must be a multiple of "
                        f"{2**HALVINGS} samples")
    if len(behaviors) < 2 or len({*behaviors}) < len(behaviors):
        raise UserError(f"two different behaviours at least are needed; there are: {', '.join(behaviors)}")
    counts = {split: Counter(part.labels.tolist()) for split, part in parts.items()}
    report = {"windows": {split: len(part.labels) for split, part in parts.items()},
              "per_behavior": {split: {name: counts[split][row] for row, name in enumerate(behaviors)}
                               for split in parts},
              "recordings": {split: len({*part.recordings.tolist()}) for split, part in parts.items()},
              "left_out": args.left_out}
    about = {"kind": KIND, "name": args.out.name, "rate": args.rate, "window": window,
             "channels": list(CHANNELS), "behaviors": behaviors, "source": args.source.name}
    folder = args.out.with_name(f"{args.out.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        for split, part in parts.items():
            np.savez(folder / f"{split}.npz", **dict(zip(ARRAYS, part)))
        write_json(folder / "report.json", report)
        write_json(folder / "dataset.json", about)
        os.replace(folder, args.out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return report


def main():
    args = parse_args()
    report = prepare(args)
    print(format_table([(name, *(report["per_behavior"][split][name] for split in SPLITS))
                        for name in report["per_behavior"]["train"]]
                       + [("all windows", *(report["windows"][split] for split in SPLITS)),
                          ("in recordings", *(report["recordings"][split] for split in SPLITS))],
                       ("behaviour", *SPLITS), left=1))
    for name, shown in report["per_behavior"]["train"].items():
        if not shown:
            say(f"warning: no window for training shows '{name}', so no network can learn it")
    for name, reason in list(report["left_out"].items())[:10]:
        print(f"left out of {name}: {reason}")


if __name__ == "__main__":
    run(main)
