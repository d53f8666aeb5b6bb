"""Recordings of inertial sensors in CSV files, one sample a row.

Columns: ``acc_x acc_y acc_z`` (total acceleration, with gravity) and ``gyro_x gyro_y gyro_z`` (angular
velocity); ``body_x body_y body_z`` (acceleration without gravity), else computed; ``time`` in seconds, else a
rate must be known; ``label``, if wanted. Where a network reads several sensors, a column's name begins with
its place: ``hip_acc_x``. Shapes: N samples, C channels.
"""
import csv
from typing import NamedTuple

import numpy as np
from scipy.signal import butter, sosfiltfilt

from utils.arrays import LARGEST
from utils.data.inertial import channel_names
from utils.errors import UnreadableFile
from utils.files import read_text
from utils.motion.inertial import GRAVITY, TRIADS

LOWEST_RATE = 1.0  # samples per second: the filter needs more than twice its cut-off frequency
CUT_OFF, ORDER = 0.3, 3  # Hz: what changes more slowly is gravity (Anguita et al. 2013)
LONGEST_GAP = 0.5  # seconds between two rows
ACCELERATION = {"g": 1.0, "m/s2": 1 / GRAVITY}
ANGULAR = {"rad/s": 1.0, "deg/s": np.pi / 180}


class Units(NamedTuple):
    """Of the columns: keys of ACCELERATION and ANGULAR."""

    acceleration: str = "g"
    angular: str = "rad/s"


class Recording(NamedTuple):
    """signals (N, C) float32 in g and rad/s; labels (N,) of texts, or None."""

    signals: np.ndarray
    labels: np.ndarray


def without_gravity(total, rate):
    """Acceleration (N, 3) without what changes more slowly than 0.3 Hz: a Butterworth filter of third order
    that runs forwards and backwards, so nothing is delayed. Short recordings are extended at their ends."""
    sections = butter(ORDER, CUT_OFF, fs=rate, output="sos")
    return total - sosfiltfilt(sections, total, axis=0, padlen=min(len(total) - 1, int(3 * rate)))


def read_recording(path, rate, places=(), units=None, recorded_at=None):
    """The Recording in a CSV file, resampled to ``rate`` along straight lines.

    places: of the sensors, () for one; units: Units; recorded_at: samples per second where the file has no
    column ``time`` (None: ``rate``). UnreadableFile names the line for missing or wrong values, times that do
    not rise, and gaps of more than half a second."""
    units, places = units or Units(), places or ("sensor",)
    header, rows = _rows(path)
    names = channel_names(places)
    optional = {name for name in names if name.rpartition("_")[0].endswith(TRIADS[0])}
    twice = [name for name in [*names, "time", "label"] if header.count(name) > 1]
    if twice:
        raise UnreadableFile(path, f"has two columns '{twice[0]}'")
    absent = [name for name in names if name not in header]
    lacking = [name for name in absent if name not in optional]
    if lacking:
        raise UnreadableFile(path, f"lacks the column '{lacking[0]}'; it has {', '.join(header[:12])}")
    columns = {name: _numbers(path, rows, header.index(name), name)
               for name in [*(name for name in names if name not in absent), *({"time"} & {*header})]}
    times = columns.get("time", np.arange(len(rows)) / (recorded_at or rate))
    _check_times(path, times)
    wanted = np.arange(int((times[-1] - times[0]) * rate + 1e-3) + 1) / rate + times[0]
    signals = {name: np.interp(wanted, times, values) for name, values in columns.items()}
    for name in names:
        if name not in absent:
            signals[name] *= (ANGULAR[units.angular] if "gyro_" in name else
                              ACCELERATION[units.acceleration])
    for name in absent:
        signals[name] = without_gravity(signals[name.replace("body_", "acc_")][:, None], rate)[:, 0]
    labels = None
    if "label" in header:
        texts = np.array([row[header.index("label")].strip() for row in rows])
        labels = texts[np.searchsorted((times[1:] + times[:-1]) / 2, wanted)]  # of the nearest row
    return Recording(np.stack([signals[name] for name in names], 1).astype(np.float32), labels)


def _rows(path):
    """(names of the columns, rows of texts), or UnreadableFile."""
    rows = [row for row in csv.reader(read_text(path).splitlines()) if row]
    if len(rows) < 3:
        raise UnreadableFile(path, "has no header, or fewer than two samples")
    header = [name.strip().lower() for name in rows[0]]
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise UnreadableFile(path, f"has {len(row)} values in row {number}, and {len(header)} columns")
    return header, rows[1:]


def _numbers(path, rows, column, name):
    """The values (N,) of a column, or UnreadableFile for what is no finite number, or none that a sensor
    gives."""
    values = np.empty(len(rows))
    for number, row in enumerate(rows):
        try:
            values[number] = float(row[column])
        except ValueError:
            values[number] = np.nan
        absurd = name != "time" and abs(values[number]) >= LARGEST  # times may count from 1970
        if not np.isfinite(values[number]) or absurd:
            raise UnreadableFile(path, f"has '{row[column][:40]}' for {name} in row {number + 2}, which is "
                                       + ("absurd" if absurd else "no number"))
    return values


def _check_times(path, times):
    steps = np.diff(times)
    if (steps <= 0).any():
        raise UnreadableFile(path, f"has a time in row {int((steps <= 0).argmax()) + 3} that is not after "
                                   "the one before; times are seconds, in order")
    if steps.max() > LONGEST_GAP:
        raise UnreadableFile(path, f"has a gap of {steps.max():.3g} s before row {int(steps.argmax()) + 3}, "
                                   f"and {LONGEST_GAP} s is the longest; split the file there")
