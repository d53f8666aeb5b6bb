"""Writing a data set: its folders and its feature statistics. Shapes: D standard features."""
import shutil

import numpy as np


def average_std(std, skeleton):
    """Standard deviations (D,) -> their means within each group of columns (D,), so that normalising keeps
    the proportions within a group."""
    std = np.array(std, np.float64)
    for group in skeleton.feature_groups:
        std[group] = std[group].mean()
    return std


def make_data_folder(folder):
    """Make the empty folders of a data set, in place of what a killed run left. FileExistsError if something
    else is there."""
    subfolders = [folder / name for name in ("new_joint_vecs", "texts")]
    if folder.exists() and not any(path.is_dir() for path in subfolders):
        raise FileExistsError(f"{folder} exists and is not an unfinished data set; move it away")
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
