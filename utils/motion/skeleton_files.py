"""Skeleton files: a joint layout of your own as JSON. dataset.json and checkpoints hold the same, complete.

    {"name": "studio",
     "joints": [{"name": "Hips", "parent": null},
                {"name": "LeftUpLeg", "parent": "Hips", "axis": "-y", "offset": [0.09, -0.02, 0.0]}, ...],
     "facing": {"right_hip": NAME, "left_hip": NAME, "right_shoulder": NAME, "left_shoulder": NAME},
     "feet": {"left": [ankle, toe], "right": [ankle, toe]}}

and optionally, with what it is otherwise:

    axis             coordinate axis next to the bone: of the offset (of most clips: ``with_axes``)
    offset           the bone in a rest pose that faces +Z, in metres: unknown, so nothing is placed by it
    legs             joints whose bones give the size of a leg: those from left hip to left ankle
    fps, min_frames  of data sets: 20; two seconds, at most 100 frames
    feet_threshold   (metres per frame)^2 below which a foot stands: of 0.89 m/s, as for HumanML3D
    height_range     metres, least and most of a body: 0.5 to 2.5
    source           {"metres_per_unit": 0.01, "up": "y"}: of the files that prepare_dataset reads clips from

The first joint is the pelvis, and every other one comes after its parent. Lengths are in metres.
"""
from pathlib import Path

import numpy as np

from utils.arrays import LARGEST, load_array
from utils.errors import MissingFile, UserError
from utils.facts import read_facts
from utils.files import read_checkpoint, read_json
from utils.motion.features import TINY, rotate_y
from utils.motion.skeletons import SKELETONS, Skeleton, sides_of, way_from_root

FACING = ("right_hip", "left_hip", "right_shoulder", "left_shoulder")
AXES = ("+x", "-x", "+y", "-y", "+z", "-z")
MOST_JOINTS = 200
STANDS = 0.002 * 20 ** 2  # (m/s)^2: HumanML3D's threshold at its 20 frames per second
MOST_MIN_FRAMES = 100  # two seconds of fast recordings would leave too few clips below 199 frames


def get_skeleton(described, where="the skeleton"):
    """The Skeleton of a built-in one's name, or of a description as above. UserError, with ``where`` it
    stands, for a wrong one."""
    if isinstance(described, dict):
        return _from_description(described, where)
    if not isinstance(described, str) or described not in SKELETONS:
        raise UserError(f"{where}: unknown skeleton '{described}'; one of {', '.join(SKELETONS)}, or the "
                        "content of a skeleton file")
    return SKELETONS[described]


def read_description(name):
    """A built-in skeleton's name, or what a file describes: a skeleton file, a dataset.json, or a checkpoint
    (.tar), as text or dict for ``get_skeleton``. UserError for any other file."""
    if name in SKELETONS:
        return name
    path = Path(name)
    if not path.is_file():
        raise MissingFile(f"no skeleton '{name}': neither {' nor '.join(SKELETONS)}, nor a file")
    if path.suffix == ".tar":
        content = read_checkpoint(path, ("dataset",))["dataset"]
    else:
        content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} describes no data set")
    described = content.get("skeleton", content)
    get_skeleton(described, name)  # a mistake is one of this file, not of the clips that it is for
    return described


def read_skeleton(name):
    """The Skeleton of what ``read_description`` reads."""
    return get_skeleton(read_description(name), name)


def skeleton_of(path, joints, described=None):
    """The Skeleton of the clip ``path``, joints (T, J, 3) or features (T, D): the ``described`` one, or the
    built-in one that its shape fits. UserError where none does."""
    known = SKELETONS.values() if described is None else [get_skeleton(described, path)]
    for skeleton in known:
        if joints.shape[1:] in ((skeleton.num_joints, 3), (skeleton.essential_dim,), (skeleton.feature_dim,)):
            return skeleton
    shapes = " or ".join(f"(frames, {skeleton.num_joints}, 3)" for skeleton in known)
    columns = ", ".join(f"{skeleton.essential_dim} or {skeleton.feature_dim}" for skeleton in known)
    raise UserError(f"{path} has shape {joints.shape}; expected joints {shapes}, or features of {columns} "
                    "columns. Clips of another skeleton need --skeleton")


def skeleton_of_file(path, described=None):
    """As ``skeleton_of``, of a .npy file; what is not described may be so by the facts beside it."""
    path = Path(path)
    return skeleton_of(path, load_array(path), described or read_facts(path).get("skeleton"))


def describe(skeleton):
    """What dataset.json and checkpoints hold of a Skeleton: the name of a built-in one, or a description."""
    if skeleton.name in SKELETONS:
        return skeleton.name
    names, rest = skeleton.joint_names, skeleton.rest_offsets
    joints = [{"name": names[0], "parent": None}]
    for joint, parent in list(enumerate(skeleton.parents))[1:]:
        axis = axis_word(skeleton.raw_offsets[joint])
        joints.append({"name": names[joint], "parent": names[parent], "axis": axis}
                      | ({"offset": list(rest[joint])} if rest else {}))
    return {"name": skeleton.name, "joints": joints,
            "facing": {part: names[joint] for part, joint in zip(FACING, skeleton.face_joints)},
            "feet": {"left": [names[joint] for joint in skeleton.left_feet],
                     "right": [names[joint] for joint in skeleton.right_feet]},
            "legs": [names[joint] for joint in skeleton.leg_joints], "fps": skeleton.fps,
            "min_frames": skeleton.min_frames, "feet_threshold": skeleton.feet_threshold,
            "height_range": list(skeleton.height_range)}


def source_of(described, where):
    """(metres per unit, up axis) of the files that go with a description, each None if not given."""
    source = described.get("source", {}) if isinstance(described, dict) else {}
    if not isinstance(source, dict) or source.get("up", "y") not in ("y", "z"):
        raise UserError(f'{where}: "source" must be {{"metres_per_unit": NUMBER, "up": "y" or "z"}}')
    scale = _number(source, "metres_per_unit", None, where) if "metres_per_unit" in source else None
    return scale, source.get("up")


def has_axes(description):
    """Whether every bone of a description has an axis, or an offset that gives it one."""
    return all("axis" in joint or "offset" in joint for joint in description["joints"][1:])


def with_axes(description, clips):
    """A description in which every bone has an axis: where it gives neither axis nor offset, that of the mean
    direction of the bone in ``clips``, a list of joints (T, J, 3), when the body faces +Z."""
    skeleton = get_skeleton(description)
    means = sum(mean_directions(clip, skeleton.parents, skeleton.face_joints) * len(clip) for clip in clips)
    _, *joints = ({"axis": axis_word(mean)} | joint if "offset" not in joint else joint
                     for joint, mean in zip(description["joints"], means))
    return description | {"joints": [description["joints"][0], *joints]}


def mean_directions(joints, parents, face_joints):
    """Mean unit vector (J, 3) from each joint's parent to it in joints (T, J, 3), in each frame's facing."""
    bones = np.asarray(joints, np.float64) - joints[:, [max(parent, 0) for parent in parents]]
    bones = bones / np.maximum(np.linalg.norm(bones, axis=-1, keepdims=True), TINY)
    return rotate_y(bones, -heading_of(joints, face_joints)[:, None]).mean(0)


def heading_of(joints, face_joints):
    """Heading (T,) in radians of joints (T, J, 3), from +Z towards +X."""
    right_hip, left_hip, right_shoulder, left_shoulder = (joints[:, joint] for joint in face_joints)
    across = right_hip - left_hip + right_shoulder - left_shoulder
    return np.arctan2(across[:, 2], -across[:, 0])


def unit_vectors(vectors):
    """Vectors (J, 3) -> as many of length 1, zeros where they have no length."""
    vectors = np.asarray(vectors, float)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), TINY)


def axis_word(vector):
    """The word of the coordinate axis next to a vector (3,); +y for no direction."""
    largest = int(np.argmax(np.abs(vector)))
    if abs(vector[largest]) < TINY:
        return "+y"
    return f"{'-' if vector[largest] < 0 else '+'}{'xyz'[largest]}"


def _from_description(described, where):
    names, parents = _tree(described, where)
    numbers = {name: joint for joint, name in enumerate(names)}

    def find(name, what):
        if not isinstance(name, str) or name not in numbers:
            raise UserError(f"{where}: {what} names the joint '{name}', which is not among the joints")
        return numbers[name]

    face = tuple(find(_member(described, "facing", part, where), f"facing: {part}") for part in FACING)
    if len(set(face)) < 4:
        raise UserError(f"{where}: facing names a joint twice; it needs two hips and two shoulders")
    feet = {side: _feet(described, side, find, where) for side in ("left", "right")}
    ways = {joint: way_from_root(parents, joint) for joint in range(len(names))}
    for side, hip in (("left", face[1]), ("right", face[0])):
        for joint in feet[side]:
            if hip not in ways[joint]:
                raise UserError(f"{where}: feet: the {side} foot's joint '{names[joint]}' is not below the "
                                f"{side} hip '{names[hip]}'")
    ankle = feet["left"][0]
    legs = described.get("legs") or [names[joint] for joint in ways[ankle] if face[1] in ways[joint][:-1]]
    if not isinstance(legs, list):
        raise UserError(f'{where}: "legs" must be a list of joints')
    axes, rest = _bones(described, where)
    pose = [unit if np.any(unit) else axis
            for unit, axis in zip((unit_vectors(rest) if rest else axes), axes)]
    fps = _number(described, "fps", 20.0, where)
    return Skeleton(
        name=_own_name(described, where), num_joints=len(names), joint_names=names, raw_offsets=axes,
        rest_offsets=rest, t_pose=tuple(map(tuple, pose)), face_joints=face,
        left_feet=feet["left"], right_feet=feet["right"],
        chains=_chains(parents, sides_of(parents, face), [feet[side][-1] for side in feet]),
        leg_joints=tuple(find(name, "legs") for name in legs), fps=fps,
        min_frames=int(_number(described, "min_frames", max(4, min(round(2 * fps), MOST_MIN_FRAMES)), where)),
        feet_threshold=_number(described, "feet_threshold", STANDS / fps ** 2, where),
        height_range=_range(described.get("height_range", (0.5, 2.5)), where))


def _tree(described, where):
    """Names and parents (-1: the root) of the joints."""
    joints = described.get("joints")
    if not isinstance(joints, list) or not all(isinstance(joint, dict) for joint in joints):
        raise UserError(f'{where}: "joints" must be a list of {{"name": NAME, "parent": NAME or null}}')
    names = [joint.get("name") for joint in joints]
    if not 5 <= len(names) <= MOST_JOINTS:
        raise UserError(f"{where}: {len(names)} joints; a skeleton has 5 to {MOST_JOINTS}")
    numbers, parents = {}, []
    for number, (name, joint) in enumerate(zip(names, joints)):
        if not isinstance(name, str) or not name or name in numbers:
            raise UserError(f"{where}: joint {number + 1} has no name of its own ('{name}')")
        parent = joint.get("parent")
        if (parent is None) != (number == 0):
            raise UserError(f"{where}: the joint '{name}' has the parent '{parent}'; the first joint, the "
                            "pelvis, has null, and no other one")
        if number and (not isinstance(parent, str) or parent not in numbers):
            raise UserError(f"{where}: the parent '{parent}' of the joint '{name}' does not come before it")
        numbers[name] = number
        parents.append(numbers[parent] if number else -1)
    return tuple(names), tuple(parents)


def _bones(described, where):
    """Raw offsets (J, 3), and rest offsets (J, 3) or None where a joint has none."""
    axes, rest = [(0.0, 0.0, 0.0)], [(0.0, 0.0, 0.0)]
    for joint in described["joints"][1:]:
        place, offset = f"{where}: the joint '{joint['name']}'", joint.get("offset")
        if offset is not None:
            rest.append(_numbers(offset, 3, f"{place}: offset"))
        axis = joint.get("axis") or axis_word(rest[-1] if offset is not None else (0, 1, 0))
        if axis not in AXES:
            raise UserError(f"{place}: the axis '{axis}' is none of {' '.join(AXES)}")
        axes.append(tuple(float(f"{axis[0]}1") if letter == axis[1] else 0.0 for letter in "xyz"))
    return tuple(axes), tuple(rest) if len(rest) == len(axes) else None


def _chains(parents, sides, toes):
    """Paths from the root outwards. At a branch a chain goes on along its own side of the body, towards a
    foot or the farthest end; the other branches are chains of their own."""
    children = [[child for child, parent in enumerate(parents) if parent == joint]
                for joint in range(len(parents))]
    reach = [0] * len(parents)  # (leads to a foot, joints below)
    for joint in reversed(range(len(parents))):
        below = [reach[child] for child in children[joint]]
        reach[joint] = (joint in toes or any(foot for foot, _ in below),
                        max((count + 1 for _, count in below), default=0))
    chains, starts = [], [(0, child) for child in children[0]]
    while starts:
        chain = starts.pop(0)
        while children[chain[-1]]:
            branches = children[chain[-1]]
            onward = max((child for child in branches if sides[child] == sides[chain[-1]]),
                         key=reach.__getitem__, default=None)
            starts += [(chain[-1], child) for child in branches if child != onward]
            if onward is None:
                break
            chain += (onward,)
        chains.append(chain)
    return tuple(chains)


def _own_name(described, where):
    name = described.get("name")
    if not isinstance(name, str) or not name or name in SKELETONS:
        raise UserError(f"{where}: \"name\" must be a name of its own, not '{name}'")
    return name


def _member(described, key, part, where):
    group = described.get(key)
    if not isinstance(group, dict) or part not in group:
        raise UserError(f'{where}: "{key}" lacks "{part}"')
    return group[part]


def _feet(described, side, find, where):
    """Ankle and toe of a side; a foot without a toe has its ankle twice."""
    names = _member(described, "feet", side, where)
    if not isinstance(names, list) or len(names) not in (1, 2):
        raise UserError(f'{where}: feet: "{side}" must be [ankle, toe], or [ankle] where there is no toe')
    return tuple(find(name, f"feet: {side}") for name in (names * 2)[:2])


def _numbers(values, count, what):
    if not isinstance(values, (list, tuple)) or len(values) != count or not all(map(_is_number, values)):
        raise UserError(f"{what} must be {count} finite numbers below {LARGEST:.0e}, got {str(values)[:60]}")
    return tuple(map(float, values))


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


def _number(described, key, default, where):
    value = described.get(key, default)
    if not _is_number(value) or value < 1 / LARGEST:
        raise UserError(f'{where}: "{key}" must be a number above 0, got {str(value)[:60]}')
    return float(value)


def _range(values, where):
    low, high = _numbers(values, 2, f"{where}: height_range")
    if not 0 <= low < high:
        raise UserError(f"{where}: height_range must be the least and the most, got {values}")
    return low, high
