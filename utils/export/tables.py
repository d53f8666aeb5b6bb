"""CSV: joint positions, one row per frame. Conventions: docs/formats.md."""
import numpy as np


def write_csv(clip, path):
    """Write a Clip: frame, time in seconds, and x, y, z in metres of every joint."""
    frames = np.arange(len(clip.joints))
    names = [f"{joint}_{axis}" for joint in clip.skeleton.joint_names for axis in "xyz"]
    rows = np.column_stack([frames, frames / clip.fps, clip.joints.reshape(len(frames), -1)])
    np.savetxt(path, rows, fmt=["%d", *["%.6f"] * (len(names) + 1)], delimiter=",", encoding="ascii",
               header=",".join(["frame", "time", *names]), comments="")
