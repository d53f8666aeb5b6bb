"""A recording as others make it: BVH files of a figure of 31 joints, in centimetres, at 60 frames per second.

The motion is that of the demo set's figure. Names, proportions and order of the joints differ from all that
the project has; fingers and jaw are still.
"""
import numpy as np
from scipy.spatial.transform import Rotation

from utils.demo.dataset import make_clip
from utils.motion.retargeting import transfer
from utils.motion.skeleton_files import get_skeleton
from utils.motion.skeletons import SKELETONS

# name: (parent, offset in centimetres, joint of the demo's figure); left and middle
BODY = {
    "pelvis": (None, (0, 0, 0), 0), "spine_a": ("pelvis", (0, 9, -1), 3),
    "spine_b": ("spine_a", (0, 11, 0), None), "spine_c": ("spine_b", (0, 11, 1), 6),
    "spine_d": ("spine_c", (0, 10, 0), 9), "neck_a": ("spine_d", (0, 13, 1), 12),
    "neck_b": ("neck_a", (0, 5, 1), None), "skull": ("neck_b", (0, 6, 1), 15),
    "jaw": ("skull", (0, -2, 5), None),
    "l_collar": ("spine_d", (5, 10, 0), 13), "l_upper_arm": ("l_collar", (14, 0, 0), 16),
    "l_forearm": ("l_upper_arm", (29, 0, 0), 18), "l_hand": ("l_forearm", (25, 0, 0), 20),
    "l_thumb": ("l_hand", (4, -1, 4), None), "l_index": ("l_hand", (9, 0, 2), None),
    "l_ring": ("l_hand", (8, 0, -2), None),
    "l_thigh": ("pelvis", (10, -5, 0), 1), "l_shin": ("l_thigh", (0, -44, 0), 4),
    "l_foot": ("l_shin", (0, -42, 0), 7), "l_toe": ("l_foot", (0, -7, 14), 10),
}
MIRROR = {1: 2, 4: 5, 7: 8, 10: 11, 13: 14, 16: 17, 18: 19, 20: 21}
ENDS = {"skull": (0, 12, 0), "jaw": (0, -1, 3), "l_toe": (0, 0, 5), "r_toe": (0, 0, 5)}
ACTIONS = ("walk_forward", "wave_right", "jump", "bow", "kick_left")


def tree():
    """[(name, parent, offset, joint of the demo's figure)], depth first."""
    rows = [(name, *row) for name, row in BODY.items()]
    rows += [(name.replace("l_", "r_", 1), parent.replace("l_", "r_", 1) if parent[:2] == "l_" else parent,
              (-offset[0], *offset[1:]), MIRROR.get(joint))
             for name, parent, offset, joint in rows if name[:2] == "l_"]
    ordered = []

    def add(row):
        ordered.append(row)
        for other in rows:
            if other[1] == row[0]:
                add(other)

    add(rows[0])
    return ordered


def description():
    """Of the 31 joints, as scripts.make_skeleton should find it, in metres."""
    joints = [{"name": name, "parent": parent} | ({"offset": [x / 100 for x in offset]} if parent else {})
              for name, parent, offset, _ in tree()]
    return {"name": "foreign", "joints": joints,
            "facing": {"right_hip": "r_thigh", "left_hip": "l_thigh", "right_shoulder": "r_upper_arm",
                       "left_shoulder": "l_upper_arm"},
            "feet": {"left": ["l_foot", "l_toe"], "right": ["r_foot", "r_toe"]}}


def mapping():
    """{joint of the foreign figure: joint of the demo's}."""
    return {number: joint for number, (_, _, _, joint) in enumerate(tree()) if joint is not None}


def performance(action, seed=0, fps=60):
    """Joints (T, 31, 3) in metres and rotations (T, 31, 3, 3) of an action, interpolated to ``fps``."""
    joints = make_clip([action], np.random.default_rng(seed)).astype(np.float64)
    times = np.arange(int((len(joints) - 1) * fps / 20) + 1) * 20 / fps
    joints = np.stack([np.interp(times, np.arange(len(joints)), column)
                       for column in joints.reshape(len(joints), -1).T], -1).reshape(len(times), 22, 3)
    return transfer(joints, SKELETONS["t2m"], get_skeleton(description()), mapping())


def write_bvh(path, action="walk_forward", seed=0, fps=60, order="ZXY"):
    """Write an action as a BVH file; returns its lines."""
    joints, turned = performance(action, seed, fps)
    rows = tree()
    numbers = {name: number for number, (name, *_) in enumerate(rows)}
    values = [joints[:, 0] * 100]
    for number, (_, parent, _, _) in enumerate(rows):
        above = turned[:, numbers[parent]] if parent else np.eye(3)
        local = np.swapaxes(above, -1, -2) @ turned[:, number]
        values.append(Rotation.from_matrix(local).as_euler(order, degrees=True))
    lines = ["HIERARCHY", *hierarchy(rows, rows[0], order), "MOTION", f"Frames: {len(joints)}",
             f"Frame Time: {1 / fps:.6f}",
             *(" ".join(f"{value:.5f}" for value in row) for row in np.concatenate(values, 1))]
    path.write_text("\n".join(lines) + "\n")
    return lines


def hierarchy(rows, row, order, indent=""):
    name, parent, offset, _ = row
    inside = indent + "\t"
    rotations = " ".join(f"{axis}rotation" for axis in order)
    lines = [f"{indent}{'JOINT' if parent else 'ROOT'} {name}", indent + "{",
             inside + "OFFSET " + " ".join(map(str, offset)),
             f"{inside}CHANNELS {'3' if parent else '6 Xposition Yposition Zposition'} {rotations}"]
    for other in rows:
        if other[1] == name:
            lines += hierarchy(rows, other, order, inside)
    if not any(other[1] == name for other in rows):
        end = " ".join(map(str, ENDS.get(name, (2, 0, 0))))
        lines += [inside + "End Site", inside + "{", f"{inside}\tOFFSET {end}", inside + "}"]
    return [*lines, indent + "}"]


def write_source(folder, clips=20):
    """A source folder for scripts.prepare_dataset: bvh/, texts/ and the split lists."""
    for name in ("bvh", "texts"):
        (folder / name).mkdir(parents=True)
    names = []
    for number in range(clips):
        action = ACTIONS[number % len(ACTIONS)]
        names.append(f"{action}_{number:02d}")
        write_bvh(folder / "bvh" / f"{names[-1]}.bvh", action, seed=number)
        (folder / "texts" / f"{names[-1]}.txt").write_text(f"a person does {action.replace('_', ' ')}\n")
    test, val = names[: clips // 5], names[clips // 5 : 2 * clips // 5]
    for split, ids in (("train", names[2 * clips // 5 :]), ("val", val), ("test", test)):
        (folder / f"{split}.txt").write_text("\n".join(ids) + "\n")
    return names
