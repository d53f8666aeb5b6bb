"""Paths on the floor that a body is to follow: read from files, as a loss, and put into a clip.

Shapes: B clips, T frames, J joints, D features. Angles are radians from +Z towards +X: positive to the left.
"""
import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d

from utils.errors import MissingFile, UserError
from utils.files import UnreadableText, read_text
from utils.motion.features import LARGEST, features_to_joints, recover_root, rotate_y
from utils.motion.feet import CONTACT_HEIGHT, CONTACT_SPEED, SLIDING_SPEED

FASTEST = 8.0  # metres per second
MOVING = 0.1  # metres per second: slower, the direction of travel is not known
TRAVELS = 0.5  # metres: a clip that goes less far says nothing about the direction it likes to go in
ALONG = 0.3  # seconds: sigma of the Gaussian over the direction of travel
SWAY = 0.3  # seconds: sigma; what is faster than this in the pelvis' path is the gait's and stays
# Weights of the loss beside the squared distance from the path, in m^2.
TURNED, TURNED_FREELY = 0.3, 0.1  # 1 - cosine of the error of a given heading, and of one that is not
SKATING = 0.3  # squared speed of feet in contact, in (m/s)^2


@dataclass(frozen=True)
class Trajectory:
    """positions: (T, 2), x and z in metres. heading: (T,), or None where the file has none."""

    positions: np.ndarray
    heading: np.ndarray | None
    fps: float

    def __len__(self):
        return len(self.positions)

    def travel(self):
        """Direction (T,) in which the path goes, held where it stands still; 0 where it goes nowhere."""
        step = gaussian_filter1d(np.gradient(self.positions, axis=0), ALONG * self.fps, axis=0,
                                 mode="nearest")
        moving = np.flatnonzero(np.hypot(*step.T) * self.fps > MOVING)
        if not len(moving):
            return np.zeros(len(step))
        return np.interp(np.arange(len(step)), moving, np.unwrap(np.arctan2(*step[moving].T)))


def read_trajectory(path, fps, shortest, longest):
    """The Trajectory of a .csv file: columns seconds or frame, x, z, optional heading (degrees); other
    columns are ignored. Interpolated linearly, at ``fps``, from its first row to its last, to a multiple of 4
    frames. UserError if it cannot be used, or has less than ``shortest`` or more than ``longest`` frames."""
    names, rows, lines = read_table(path)
    times = rows["seconds"] if "seconds" in rows else rows["frame"] / fps
    steps = np.diff(times)
    if (steps <= 0).any():
        raise UserError(f"--trajectory: {path} line {lines[int(np.argmax(steps <= 0)) + 1]}: {names[0]} must "
                        "grow from row to row")
    frames = int((times[-1] - times[0]) * fps + 1 + 1e-6)
    if not shortest <= frames < longest + 4:
        raise UserError(f"--trajectory: {path} lasts {times[-1] - times[0]:g} s, {frames} frames; a clip has "
                        f"{shortest}..{longest}")
    positions = np.stack([rows["x"], rows["z"]], -1)
    speed = np.hypot(*np.diff(positions, axis=0).T) / steps
    if (speed > FASTEST).any():
        at = int(speed.argmax())
        raise UserError(f"--trajectory: {path} line {lines[at + 1]}: {speed[at]:.1f} m/s is faster than a "
                        f"person ({FASTEST:g}); x and z are in metres")
    at = times[0] + np.arange(frames // 4 * 4) / fps
    columns = [np.interp(at, times, column) for column in positions.T]
    heading = rows.get("heading")
    heading = None if heading is None else np.interp(at, times, np.unwrap(np.radians(heading)))
    return Trajectory(np.stack(columns, -1), heading, fps)


def read_table(path):
    """(names of the columns that count, {name: (rows,) float64}, line number of each row) of a .csv file with
    two rows or more. UserError if it cannot be used."""
    where = f"--trajectory: {path}"
    if not Path(path).is_file():
        raise MissingFile(f"--trajectory: no file {path}")
    try:
        text = read_text(path)
        reader = csv.DictReader(text.splitlines())
        table = [(reader.line_num, row) for row in reader]
    except UnreadableText as error:
        raise UserError(f"{where} is not a .csv file in UTF-8 ({error.why})") from error
    except csv.Error as error:
        raise UserError(f"{where} is not a .csv file ({error})") from error
    columns = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
    time = next((name for name in ("seconds", "frame") if name in columns), None)
    missing = [name for name in ("x", "z") if name not in columns]
    if time is None or missing:
        raise UserError(f"{where} has no column {'seconds or frame' if time is None else missing[0]}; its "
                        "first line names the columns: seconds (or frame), x, z and, if wanted, heading")
    names = [time, "x", "z"] + ["heading"] * ("heading" in columns)
    if len(table) < 2:
        raise UserError(f"{where} has {len(table)} rows; a path needs two or more")
    values = [[number(row[columns[name]], f"{where} line {line}: {name}") for name in names]
              for line, row in table]
    return names, dict(zip(names, np.array(values).T)), [line for line, _ in table]


def number(text, place):
    """The float that ``text`` says. UserError, which begins with ``place``, where it says none of use."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = np.nan
    if not abs(value) < LARGEST:
        raise UserError(f"{place} is '{'' if text is None else text}', not a number of use")
    return value


class Course:
    """A Trajectory in the frames of B clips, which begin at x = z = 0 and face +Z.

    features: (B, T, D) un-normalised, of clips that were generated freely. Without a heading, each body keeps
    the angle to its path at which that clip travels: who walked backward goes backward along the path."""

    def __init__(self, trajectory, spec, features):
        self.trajectory, self.spec = trajectory, spec
        frames, given = len(trajectory), trajectory.heading is not None
        went = features[..., :-1, 1:3].sum(-2).cpu().numpy() * spec.metres_per_unit
        aside = np.where(np.hypot(*went.T) > TRAVELS, np.arctan2(went[:, 0], went[:, 1]), 0)[:, None]
        heading = trajectory.heading if given else trajectory.travel() - aside
        self.heading = np.broadcast_to(heading, (len(features), frames))  # in the world
        moved = np.insert(trajectory.positions - trajectory.positions[0], 1, 0, axis=-1)
        self.path = rotate_y(moved, -self.heading[:, :1])  # (B, T, 3) in the clips' frames
        self.weight = TURNED if given else TURNED_FREELY

    def loss(self, features):
        """(B,) of features (B, T, D): how far the body is from path and heading, and how much feet slide."""
        heading, root = recover_root(features)
        path, wanted = (torch.as_tensor(rows.copy(), dtype=root.dtype, device=root.device)
                        for rows in (self.path, self.heading - self.heading[:, :1]))
        away = (root * self.spec.metres_per_unit - path)[..., [0, 2]].square().sum(-1).mean(-1)
        turned = (1 - torch.cos(heading - wanted)).mean(-1)
        return away + self.weight * turned + SKATING * skating(features, self.spec)

    def place(self, features, clip):
        """Joints (T, J, 3) float32 in metres, in the world, of features (T, D) of the clip with a number: on
        the path but for the sway of the gait, and in a given heading but for quick turns; exactly in the
        first frame and in the last one."""
        sigma = SWAY * self.spec.fps
        joints = features_to_joints(np.asarray(features, np.float64), self.spec.joints)
        heading, root = recover_root(np.asarray(features, np.float64))
        root = root * self.spec.metres_per_unit
        extra = np.zeros(len(root))
        if self.trajectory.heading is not None:
            missing = self.heading[clip] - self.heading[clip, 0] - heading
            extra = smoothed(np.unwrap(missing), sigma)
        away = smoothed((self.path[clip] - root) * [1, 0, 1], sigma)
        pose = joints * self.spec.metres_per_unit - root[:, None] * [1, 0, 1]
        joints = rotate_y(pose, extra[:, None]) + ((root + away) * [1, 0, 1])[:, None]
        joints = rotate_y(joints, self.heading[clip, 0])
        start = np.insert(self.trajectory.positions[0], 1, 0)
        return (joints + start).astype(np.float32)


def smoothed(rows, sigma):
    """Rows (T, ...) after a Gaussian over time, of ``sigma`` frames; the first row and the last one stay."""
    more = min(int(4 * sigma), len(rows) - 1)  # mirrored at both ends in time and in value
    around = np.pad(rows, [(more, more)] + [(0, 0)] * (rows.ndim - 1), mode="reflect", reflect_type="odd")
    return gaussian_filter1d(around, sigma, axis=0, truncate=more / sigma)[more : more + len(rows)]


def skating(features, spec):
    """Mean squared horizontal speed (B,), in (m/s)^2, of feet in contact, as ``feet.foot_contacts`` finds
    them, of features (B, T, D); 0 without contact. Feet that are too fast to stand do not count."""
    feet = [*spec.layout.left_feet, *spec.layout.right_feet]
    joints = features_to_joints(features, spec.joints)[..., feet, :] * spec.metres_per_unit
    velocity = (joints[..., 1:, :, :] - joints[..., :-1, :, :]) * spec.fps
    height = (joints[..., 1:, :, 1] + joints[..., :-1, :, 1]) / 2 - joints[..., 1].amin(-2)[..., None, :]
    speed = velocity[..., [0, 2]].square().sum(-1)
    stands = (height < CONTACT_HEIGHT) & (velocity[..., 1].abs() < CONTACT_SPEED)
    stands = (stands & (speed < SLIDING_SPEED ** 2)).detach()
    return (speed * stands).sum((-1, -2)) / stands.sum((-1, -2)).clamp(min=1)
