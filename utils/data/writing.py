"""Writing a data set: its folders, and the statistics of its features. Shapes: D standard features."""
import shutil

import numpy as np


def average_std(std, skeleton):
    """Standard deviations of standard features (D,) -> their means within the groups of columns (D,), so that
    normalising keeps the proportions within a group."""
    std = np.array(std, np.float64)
    for group in skeleton.feature_groups:
        std[group] = std[group].mean()
    return std


def make_data_folder(folder):
    """Make the empty folders of a data set. What a killed run left there goes; FileExistsError where it is
    something else."""
    rooms = [folder / name for name in ("new_joint_vecs", "texts")]
    if folder.exists() and not any(room.is_dir() for room in rooms):
        raise FileExistsError(f"{folder} is in the way and is no data set half made; move it away")
    shutil.rmtree(folder, ignore_errors=True)
    for room in rooms:
        room.mkdir(parents=True)


def write_statistics(folder, total, squares, frames, skeleton):
    """Write Mean.npy and Std.npy (D,) float32 from sums (D,) over ``frames`` frames; the std is averaged
    within groups of columns. A group that never changes gets std 1, so that it can be divided by; returns the
    number of such columns."""
    mean = total / frames
    std = average_std(np.sqrt(np.maximum(squares / frames - mean ** 2, 0)), skeleton)
    constant = std < 1e-7
    np.save(folder / "Mean.npy", mean.astype(np.float32))
    np.save(folder / "Std.npy", np.where(constant, 1, std).astype(np.float32))
    return int(constant.sum())
