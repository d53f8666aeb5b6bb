"""Recordings at another frame rate. Shapes: T frames recorded, N wanted."""
import numpy as np
from scipy.spatial.transform import Slerp


def sample_times(count, recorded, fps=None):
    """Times in seconds of ``count`` frames at ``recorded`` frames per second (T,), and those at ``fps``
    within them (N,). The two are the same object where there is nothing to resample, as without ``fps``."""
    times = np.arange(count) / recorded
    if fps is None or count < 2 or abs(fps / recorded - 1) < 1e-3:  # 30.0003 for 0.033333 seconds
        return times, times
    return times, np.minimum(np.arange(int((count - 1) * fps / recorded + 1e-3) + 1) / fps, times[-1])


def at_times(values, times, wanted):
    """Values (T, ...) at the ``times`` (T,) -> (N, ...) at the ``wanted`` times, along straight lines."""
    if wanted is times:
        return values
    columns = [np.interp(wanted, times, column) for column in values.reshape(len(times), -1).T]
    return np.stack(columns, -1).reshape(len(wanted), *values.shape[1:])


def slerp(rotations, times, wanted):
    """A Rotation of T frames -> one of N, by the shortest rotation between two frames."""
    return rotations if wanted is times else Slerp(times, rotations)(wanted)
