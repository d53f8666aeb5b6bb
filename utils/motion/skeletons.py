"""Joint layouts: HumanML3D's 22 joints ("t2m") and KIT-ML's 21 ("kit"). Shapes: J joints."""
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Skeleton:
    """A joint layout.

    chains: paths of joints from the root outwards, each joint's parent before it; raw_offsets (J, 3): unit
    axis along which each bone points in the rest pose; face_joints: right hip, left hip, right shoulder, left
    shoulder; leg_joints: ends of the two bones that give the scale of retargeting; feet_threshold: squared
    displacement in a frame below which a foot stands (units of the data); target_offsets (J, 3) or None:
    bones of the body that all clips of the data set share.
    """

    name: str
    num_joints: int
    chains: tuple
    raw_offsets: tuple
    face_joints: tuple
    leg_joints: tuple
    left_feet: tuple
    right_feet: tuple
    feet_threshold: float
    target_offsets: tuple = None

    @cached_property
    def parents(self):
        """Parent of each joint; -1 for the root."""
        parents = {child: parent for parent, child in self.bones}
        return tuple(parents.get(joint, -1) for joint in range(self.num_joints))

    @property
    def bones(self):
        """[(parent, child)], in an order in which a parent's own bone stands before those that hang on it."""
        return [bone for chain in self.chains for bone in zip(chain, chain[1:])]

    @cached_property
    def turned_by(self):
        """The joint in whose frame each joint's rotation is expressed, for joints 1 .. J-1: its parent, but
        at the start of every chain the root."""
        starts = {chain[1] for chain in self.chains}
        return [0 if joint in starts else self.parents[joint] for joint in range(1, self.num_joints)]

    @property
    def essential_dim(self):
        return 4 + 3 * (self.num_joints - 1)

    @property
    def feature_dim(self):
        return 12 * self.num_joints - 1

    @property
    def feature_groups(self):
        """Slices of the columns within which the standard deviation is averaged."""
        rest = self.num_joints - 1
        ends = np.cumsum([1, 2, 1, 3 * rest, 6 * rest, 3 * self.num_joints, 4]).tolist()
        return [slice(start, end) for start, end in zip([0, *ends], ends)]

    @cached_property
    def sides(self):
        r_hip, l_hip, r_shoulder, l_shoulder = self.face_joints
        sides = ["centre"] * self.num_joints
        for chain in self.chains:
            for side, ends in (("right", {r_hip, r_shoulder}), ("left", {l_hip, l_shoulder})):
                for joint in chain[1:] if ends & set(chain) else ():
                    sides[joint] = side
        return tuple(sides)

    def side(self, joint):
        """"left", "right" or "centre": where the joint lies on the body."""
        return self.sides[joint]


def _axes(words):
    """Rows of unit axes from words like "0 +x -y"."""
    axis = {"x": 0, "y": 1, "z": 2}
    rows = np.zeros((len(words.split()), 3))
    for row, word in zip(rows, words.split()):
        if word != "0":
            row[axis[word[1]]] = 1.0 if word[0] == "+" else -1.0
    return rows


def _skeleton(raw_offsets, bone_lengths=None, **fields):
    raw = _axes(raw_offsets)
    target = raw * np.array(bone_lengths)[:, None] if bone_lengths else None
    rows = [None if table is None else tuple(map(tuple, table.tolist())) for table in (raw, target)]
    return Skeleton(num_joints=len(raw), raw_offsets=rows[0], target_offsets=rows[1], **fields)


SKELETONS = {
    "t2m": _skeleton(
        name="t2m",
        chains=((0, 2, 5, 8, 11), (0, 1, 4, 7, 10), (0, 3, 6, 9, 12, 15),
                (9, 14, 17, 19, 21), (9, 13, 16, 18, 20)),
        raw_offsets="0 +x -x +y -y -y +y -y -y +y +z +z +y +x -x +z -y -y -y -y -y -y",
        bone_lengths=(0.0, 0.10307394713163376, 0.10988335311412811, 0.13156825304031372, 0.39362314343452454,
                      0.3901881277561188, 0.14319026470184326, 0.43243297934532166, 0.42564332485198975,
                      0.057364705950021744, 0.1433817446231842, 0.1494186669588089, 0.21935999393463135,
                      0.13748683035373688, 0.14338283240795135, 0.10303927212953568, 0.13161398470401764,
                      0.12298430502414703, 0.2568398416042328, 0.2630918622016907, 0.2660118639469147,
                      0.26987630128860474),  # metres; all of HumanML3D has this body
        face_joints=(2, 1, 17, 16), leg_joints=(5, 8), left_feet=(7, 10), right_feet=(8, 11),
        feet_threshold=0.002),
    "kit": _skeleton(
        name="kit",
        chains=((0, 11, 12, 13, 14, 15), (0, 16, 17, 18, 19, 20), (0, 1, 2, 3, 4),
                (3, 5, 6, 7), (3, 8, 9, 10)),
        raw_offsets="0 +y +y +y +y +x -y -y -x -y -y +x -y -y +z +z -x -y -y +z +z",
        face_joints=(11, 16, 5, 8), leg_joints=(17, 18), left_feet=(19, 20), right_feet=(14, 15),
        feet_threshold=0.05),
}
