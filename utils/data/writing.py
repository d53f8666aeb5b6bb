"""Writing a data set: its folders and its feature statistics. Shapes: D standard features."""
import os
import shutil

import numpy as np

from utils.errors import UserError


def average_std(std, skeleton):
    """Standard deviations (D,) -> (D,), averaged within groups of columns, to keep a group's proportions."""
    std = np.array(std, np.float64)
    for group in skeleton.feature_groups:
        std[group] = std[group].mean()
    return std


def make_data_folder(folder):
    """Make a data set's empty folders, over those of a killed run. UserError if it is something else."""
    subfolders = [folder / name for name in ("new_joint_vecs", "texts")]
    if os.path.lexists(folder) and not any(path.is_dir() for path in subfolders):
        raise UserError(f"{folder} exists and is not an unfinished data set; move it away")
    shutil.rmtree(folder, ignore_errors=True)
    for path in subfolders:
        path.mkdir(parents=True)


def write_statistics(folder, total, squares, frames, skeleton):
    """Write Mean.npy and Std.npy (D,) float32 from sums (D,) over ``frames`` frames; the std is averaged
    within groups of columns. Constant columns get std 1, to be divisible; returns their number."""
    mean = total / frames
    std = average_std(np.sqrt(np.maximum(squares / frames - mean ** 2, 0)), skeleton)
    constant = std < 1e-7
    np.save(folder / "Mean.npy", mean.astype(np.float32))
    np.save(folder / "Std.npy", np.where(constant, 1, std).astype(np.float32))
    return int(constant.sum())
