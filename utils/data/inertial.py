"""Windows of inertial signals and the behaviours that they show: recorded (made by scripts.prepare_imu), or
measured by virtual sensors in the clips of a motion data set, whose behaviours are its labels.

A recorded set is a folder with dataset.json ({"kind": "imu", "name", "rate", "window", "behaviors",
"channels", ...}) and, for each split, SPLIT.npz: ``windows`` (N, T, C), ``labels`` (N,), ``recordings`` (N,)
and ``starts`` (N,). Shapes: N windows, T samples, C channels.
"""
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from utils.arrays import first_absurd, load_arrays
from utils.data.datasets import MotionStore, read_labels, report_skipped, short_label
from utils.data.specs import get_spec, joints_in_metres
from utils.errors import UserError, is_first
from utils.files import read_json
from utils.motion.features import MotionError
from utils.motion.inertial import (
    CHANNELS,
    FEWEST,
    PLACES,
    channel_names,
    random_rotations,
    turn_sensor,
    virtual_sensors,
)

KIND = "imu"  # of a dataset.json
SPLITS = ("train", "val", "test")
OVERLAP = 2  # consecutive windows of a recording share half
ARRAYS = ("windows", "labels", "recordings", "starts")
RATE, WINDOW = 50.0, 128  # of Anguita et al.: 2.56 s
VIRTUAL = {"places": ("right_wrist", "hip", "right_ankle"), "rate": RATE, "window": WINDOW, "min_clips": 10,
           "label_separator": ""}  # what virtual sensors are, and on which clips, where a user does not say


@dataclass(frozen=True)
class SensorSpec:
    """What a network must know of its input. places: of the sensors, () where they were recorded; rate:
    samples per second; window: samples; behaviors: names of the classes; separator: the part of a label from
    it on was left out ("" = none)."""

    places: tuple
    rate: float
    window: int
    behaviors: tuple
    separator: str = ""

    @property
    def hop(self):
        """Samples between the beginnings of consecutive windows."""
        return self.window // OVERLAP

    @property
    def channels(self):
        return channel_names(self.places or ("sensor",))

    def describe(self):
        """What a checkpoint keeps."""
        return asdict(self) | {"places": list(self.places), "behaviors": list(self.behaviors)}


def spec_of(description, path):
    """The SensorSpec in a checkpoint. UserError where it is not one."""
    try:
        fields = dict(description) | {key: tuple(map(str, description[key])) for key in ("places",
                                                                                        "behaviors")}
        spec = SensorSpec(**fields)
        known = {*spec.places} <= {*PLACES}
        if not (known and spec.rate > 0 and spec.window > 1 and len(spec.behaviors) > 1):
            raise ValueError
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged, or of another program: it does not describe its "
                        "sensors") from error
    return spec


class InertialWindows(Dataset):
    """The windows of a split. ``self[index, seed]`` is a normalised window (T, C) and its label.

    windows: (N, T, C) float32, not normalised; labels (N,); recordings (N,): numbers, those of one recording
    are equal; starts (N,): first samples in it; mean, std (C,): None = this split's own; rotate: degrees by
    which the sensor is turned at most, about any axis, at each draw."""

    def __init__(self, windows, labels, recordings, starts, statistics=None, rotate=0.0):
        self.windows, self.labels = windows, labels
        self.recordings, self.starts, self.rotate = recordings, starts, rotate
        self.mean, self.std = statistics or window_statistics(windows)

    def __len__(self):
        return len(self.labels)

    def clip_id(self, index):
        return f"recording {self.recordings[index]} from sample {self.starts[index]}"

    def __getitem__(self, key):
        index, seed = key
        window = self.windows[index]
        if self.rotate:
            rng = np.random.default_rng(seed)
            window = turn_sensor(window, random_rotations(self.rotate * rng.random(), 1, rng)[0])
        return torch.from_numpy((window - self.mean) / self.std), int(self.labels[index])

    def normalised(self, windows=None):
        """All windows (N, T, C) as the network reads them; or others of the same channels."""
        return torch.from_numpy(((self.windows if windows is None else windows) - self.mean) / self.std)


def window_statistics(windows):
    """Mean and std (C,) float32 of windows (N, T, C); a channel that never changes has std 1."""
    mean, std = windows.mean((0, 1), dtype=np.float64), windows.std((0, 1), dtype=np.float64)
    return mean.astype(np.float32), np.where(std < 1e-6, 1, std).astype(np.float32)


def collate_windows(samples):
    """windows (B, T, C) and labels (B,)."""
    windows, labels = zip(*samples)
    return {"windows": torch.stack(windows), "labels": torch.tensor(labels)}


def cut(count, spec):
    """The first samples of the windows in a recording of ``count`` samples."""
    return range(0, count - spec.window + 1, spec.hop)


def is_recorded(root):
    """Whether a folder is a set of recordings."""
    path = Path(root) / "dataset.json"
    return path.is_file() and read_json(path).get("kind") == KIND


class Recorded:
    """A folder of scripts.prepare_imu. root: the folder; spec: its SensorSpec; described: what checkpoints
    keep of the data set."""

    def __init__(self, name, root):
        self.name, self.root = name, root
        path = Path(root) / "dataset.json"
        about = read_json(path)
        self.described = {"name": name, "kind": KIND, "source": str(about.get("source", ""))}
        sensors = {key: about.get(key) for key in ("rate", "window", "behaviors")}
        self.spec = spec_of({"places": [], **sensors}, path)

    def split(self, split, statistics=None, rotate=0.0):
        """The InertialWindows of a split. UserError where its file is missing or damaged."""
        path = Path(self.root) / f"{split}.npz"
        found = load_arrays(path, ARRAYS)
        lacking = [name for name in ARRAYS if name not in found]
        if lacking:
            raise UserError(f"{path} lacks '{lacking[0]}'; make the data set again: python -m "
                            "scripts.prepare_imu")
        windows, labels, recordings, starts = (found[name] for name in ARRAYS)
        expected = (len(labels), self.spec.window, len(CHANNELS))
        if windows.shape != expected or not len(labels) == len(recordings) == len(starts):
            raise UserError(f"{path} has windows of shape {windows.shape}, expected {expected}")
        if not len(labels) or labels.min() < 0 or labels.max() >= len(self.spec.behaviors):
            raise UserError(f"{path} has no windows, or labels outside 0..{len(self.spec.behaviors) - 1}")
        if first_absurd(windows.reshape(len(windows), -1)) is not None:
            raise UserError(f"{path} holds NaN, infinite or absurd values")
        return InertialWindows(windows.astype(np.float32), labels.astype(np.int64), recordings, starts,
                               statistics, rotate)


class Virtual:
    """Virtual sensors on a motion data set: a window's behaviour is the one label of its clip in labels.json.
    Attributes as Recorded.

    spec: SensorSpec without behaviors, which are then the labels of the training clips that ``min_clips``
    clips show, each long enough for a window."""

    def __init__(self, motion, spec, min_clips=1):
        self.name, self.root, self.motion, self.spec = motion.name, motion.root, motion, spec
        self.described = motion.describe()
        labels = read_labels(motion)
        if labels is None:
            raise UserError(f'{motion.root} has no labels.json ({{ID: {{"actions": [NAME]}}}}): behaviours '
                            "are its labels")
        self.label_of = {name: short_label(shown[0], spec.separator) for name, shown in labels.items()
                         if len(shown) == 1}
        if not spec.behaviors:
            store = MotionStore(motion, "train")
            shown = Counter(self.label_of[name] for name, length in zip(store.ids, store.lengths)
                            if name in self.label_of and not self._too_short(length))
            behaviors = tuple(sorted(label for label, count in shown.items() if count >= min_clips))
            if len(behaviors) < 2:
                raise UserError(f"{len(behaviors)} labels of {motion.root} are shown alone by {min_clips} or "
                                f"more training clips of {spec.window / spec.rate:.2f} s; two are needed")
            self.spec = SensorSpec(**{**asdict(spec), "behaviors": behaviors})

    def _too_short(self, frames):
        return frames < FEWEST or (frames - 1) / self.motion.fps * self.spec.rate + 1 < self.spec.window

    def split(self, split, statistics=None, rotate=0.0):
        """The InertialWindows of a split; says which clips are left out, and why."""
        store, left_out, parts = MotionStore(self.motion, split), {}, []
        for clip, name in enumerate(tqdm(store.ids, f"sensing {split}", unit="clip", leave=False,
                                         mininterval=1, disable=not is_first())):
            reason = self._reason(name, store.lengths[clip])
            if reason is None:
                try:
                    parts.append((clip, *self._windows(store, clip)))
                except MotionError as error:
                    reason = str(error)
            if reason:
                left_out[name] = reason
        report_skipped(left_out, f"{self.name}/{split} (behaviours)")
        if not parts:
            raise UserError(f"no clip of {self.name}/{split} shows a behaviour for "
                            f"{self.spec.window / self.spec.rate:.2f} s")
        clips, windows, starts = zip(*parts)
        counts = list(map(len, starts))
        labels = [self.spec.behaviors.index(self.label_of[store.ids[clip]]) for clip in clips]
        return InertialWindows(np.concatenate(windows), np.repeat(labels, counts), np.repeat(clips, counts),
                               np.concatenate(starts), statistics, rotate)

    def _reason(self, name, frames):
        """Why a clip is left out, or None."""
        if name not in self.label_of:
            return "labels.json does not give it exactly one label"
        if self.label_of[name] not in self.spec.behaviors:
            return f"too few training clips show '{self.label_of[name]}'"
        return "it is shorter than a window" if self._too_short(frames) else None

    def _windows(self, store, clip):
        frames = np.array(store.frames(clip, 0, store.lengths[clip]))
        joints = joints_in_metres(frames, self.motion)
        signals = virtual_sensors(joints, self.motion.layout, self.motion.fps, self.spec.places,
                                  self.spec.rate)
        starts = np.array(cut(len(signals), self.spec))
        return np.stack([signals[start : start + self.spec.window] for start in starts]), starts


def open_asked(args):
    """The Recorded or Virtual set of a command line to train on; those of the flags in VIRTUAL that were not
    given are None or "". UserError for one that a set of recordings has no use for."""
    given = {name: getattr(args, name) for name in VIRTUAL if getattr(args, name, None)}
    if given and is_recorded(Path(args.dataset_dir) / args.dataset_name):
        raise UserError(f"--{next(iter(given))} is for virtual sensors, and {args.dataset_name} is a set of "
                        "recordings; leave it out")
    asked = VIRTUAL | given
    spec = SensorSpec(tuple(asked["places"]), asked["rate"], asked["window"], (), asked["label_separator"])
    return open_sensors(args.dataset_name, args.dataset_dir, spec, asked["min_clips"])


def open_sensors(name, dataset_dir, spec, min_clips=1):
    """The Recorded or Virtual set ``name``; makes ``demo`` on first use. ``spec``: places, rate, window and
    separator of virtual sensors, and with behaviors, those of a trained network, with which a recorded set
    must agree (else UserError)."""
    root = Path(dataset_dir) / name
    if not is_recorded(root):
        if not spec.places:
            raise UserError(f"{root} is no set of recordings (scripts.prepare_imu), and the network was "
                            "trained on one; pass its --dataset_name")
        return Virtual(get_spec(name, dataset_dir), spec, min_clips)
    found = Recorded(name, str(root))
    if spec.behaviors and (found.spec.behaviors, found.spec.window) != (spec.behaviors, spec.window):
        raise UserError(f"{root} has other behaviours or windows than the network was trained on: "
                        f"{', '.join(found.spec.behaviors)}, {found.spec.window} samples")
    return found
