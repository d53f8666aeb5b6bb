"""Joint layouts: HumanML3D's 22 joints ("t2m") and KIT-ML's 21 ("kit"). Shapes: J joints.

Others are read from files: utils/motion/skeleton_files.py.
"""
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
    bones of the body that all clips of the data set share; fps, min_frames: defaults of data sets
    made with the layout; height_range: (least, most) plausible vertical extent of a body (units of the data).
    joint_names: names that animation software and motion capture files know; t_pose (J, 3): unit direction of
    each bone in a T-pose, or the rest pose of the data's files, that faces +Z, with the left hand at +X;
    rest_offsets (J, 3) or None: bones of a rest pose of the same facing (units of the data).
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
    fps: float
    min_frames: int
    height_range: tuple
    joint_names: tuple
    t_pose: tuple
    target_offsets: tuple = None
    rest_offsets: tuple = None

    @cached_property
    def parents(self):
        """Parent of each joint; -1 for the root."""
        parents = {child: parent for parent, child in self.bones}
        return tuple(parents.get(joint, -1) for joint in range(self.num_joints))

    @property
    def bones(self):
        """[(parent, child)]; a parent's own bone comes before those of its children."""
        return [bone for chain in self.chains for bone in zip(chain, chain[1:])]

    @cached_property
    def turned_by(self):
        """For joints 1 .. J - 1, the joint in whose frame the rotation is expressed: the parent, or the root
        at the start of a chain."""
        starts = {chain[1] for chain in self.chains}
        return [0 if joint in starts else self.parents[joint] for joint in range(1, self.num_joints)]

    @cached_property
    def legs(self):
        """The left leg and the right one: joints (hip, knee, ankle ... toe) of each."""
        r_hip, l_hip = self.face_joints[:2]
        return tuple(way[way.index(hip):] for hip, feet in ((l_hip, self.left_feet), (r_hip, self.right_feet))
                     for way in [self.way_to(feet[-1])])

    @cached_property
    def children(self):
        """Tuple of the children of each joint, in the order of the chains."""
        return tuple(tuple(dict.fromkeys(child for parent, child in self.bones if parent == joint))
                     for joint in range(self.num_joints))

    @cached_property
    def body_parts(self):
        """{name: joints}: arms and legs without the joint that they leave, the head with the neck; the lower
        body is the root and both legs, the upper body all else."""
        chest = self.spine[-1]
        r_arm, l_arm = (self.below(self.way_to(joint)[len(self.way_to(chest))])
                        for joint in self.face_joints[2:])
        right, left = map(self.below, self.face_joints[:2])
        lower = (0, *left, *right)
        return {"left_arm": l_arm, "right_arm": r_arm, "left_leg": left, "right_leg": right,
                "head": tuple(joint for joint in self.below(chest) if joint not in (chest, *r_arm, *l_arm)),
                "lower_body": lower,
                "upper_body": tuple(joint for joint in range(self.num_joints) if joint not in lower)}

    @cached_property
    def spine(self):
        """The joints from the pelvis, from which both legs leave, to the chest, from which both arms do."""
        r_hip, l_hip, r_shoulder, l_shoulder = ([0, *self.way_to(joint)[1:-1]] for joint in self.face_joints)
        pelvis = [joint for joint in r_hip if joint in l_hip][-1]
        chest = [joint for joint in r_shoulder if joint in l_shoulder][-1]
        way = self.way_to(chest)
        return way[way.index(pelvis):] if pelvis in way else [pelvis]

    def below(self, joint):
        """A joint and all that hang on it."""
        return tuple(other for other in range(self.num_joints) if joint in self.way_to(other))

    def depth(self, joint):
        """How many bones lead from the root to a joint."""
        return 0 if joint == 0 else 1 + self.depth(self.parents[joint])

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

    def side(self, joint):
        """"left", "right" or "centre": where the joint lies on the body."""
        return self._sides[joint]

    def way_to(self, joint):
        """The joints from the root to ``joint``, both included."""
        return way_from_root(self.parents, joint)

    @cached_property
    def _sides(self):
        return sides_of(self.parents, self.face_joints)


def rest_directions(names, directions):
    """Unit vectors (J, 3) as tuples; ``directions``: {name: direction} of the left and the middle joints."""
    out = np.zeros((len(names), 3))
    for joint, name in enumerate(names[1:], 1):
        out[joint] = directions[name.replace("Right", "Left")]
        out[joint] *= (-1 if name.startswith("Right") else 1, 1, 1)
        out[joint] /= np.linalg.norm(out[joint])
    return tuple(map(tuple, out.tolist()))


def sides_of(parents, face_joints):
    """"left", "right" or "centre" of each joint: on the way to, or beyond, a hip or shoulder of one side."""
    ways = [way_from_root(parents, joint) for joint in range(len(parents))]
    right, left = ({joint for end in ends for joint, way in enumerate(ways)
                    if end in way or joint in ways[end]} for ends in (face_joints[::2], face_joints[1::2]))
    return tuple("right" if joint in right - left else "left" if joint in left - right else "centre"
                 for joint in range(len(parents)))


def way_from_root(parents, joint):
    """The joints from the root to ``joint``, both included."""
    way = []
    while joint >= 0:
        way.append(joint)
        joint = parents[joint]
    return way[::-1]


def _skeleton(raw_offsets, joint_names, t_pose, bone_lengths=None, **fields):
    """``raw_offsets``: one word per joint, an axis such as +x or -y, or 0 for the root; ``joint_names``: one
    word per joint."""
    names = tuple(joint_names.split())
    raw = tuple(tuple(float(f"{word[0]}1") if axis in word else 0.0 for axis in "xyz")
                for word in raw_offsets.split())
    target = bone_lengths and tuple(tuple(length * x for x in axis)
                                    for axis, length in zip(raw, bone_lengths))
    return Skeleton(num_joints=len(raw), raw_offsets=raw, target_offsets=target, rest_offsets=target,
                    joint_names=names, t_pose=rest_directions(names, t_pose), **fields)


# Directions of the bones that end in these joints: limbs straight, feet flat, trunk as in a body at rest.
_LIMBS = {"LeftLeg": (0, -1, 0), "LeftFoot": (0, -1, 0), "LeftForeArm": (1, 0, 0), "LeftHand": (1, 0, 0)}
_TRUNK = {"LeftUpLeg": (0.60, -0.79, -0.05), "Spine": (0, 0.97, -0.24), "Spine1": (0, 1, 0.02),
          "Spine2": (0, 0.92, 0.40), "Neck": (0, 0.98, -0.18), "Head": (0, 0.80, 0.60),
          "LeftShoulder": (0.52, 0.83, -0.22), "LeftArm": (0.95, 0.30, -0.10),
          "LeftToeBase": (0, -0.43, 0.90)}


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
        feet_threshold=0.002, fps=20.0, min_frames=40, height_range=(0.5, 2.5),
        joint_names="Hips LeftUpLeg RightUpLeg Spine LeftLeg RightLeg Spine1 LeftFoot RightFoot Spine2 "
                    "LeftToeBase RightToeBase Neck LeftShoulder RightShoulder Head LeftArm RightArm "
                    "LeftForeArm RightForeArm LeftHand RightHand",
        t_pose=_TRUNK | _LIMBS),
    "kit": _skeleton(
        name="kit",
        chains=((0, 11, 12, 13, 14, 15), (0, 16, 17, 18, 19, 20), (0, 1, 2, 3, 4),
                (3, 5, 6, 7), (3, 8, 9, 10)),
        raw_offsets="0 +y +y +y +y +x -y -y -x -y -y +x -y -y +z +z -x -y -y +z +z",
        face_joints=(11, 16, 5, 8), leg_joints=(17, 18), left_feet=(19, 20), right_feet=(14, 15),
        feet_threshold=0.05, fps=12.5, min_frames=24, height_range=(500, 2500),  # millimetres
        # Right and left as ``face_joints`` has them, against the signs of x in ``raw_offsets``.
        joint_names="Hips Spine Spine1 Spine2 Head RightArm RightForeArm RightHand LeftArm LeftForeArm "
                    "LeftHand RightUpLeg RightLeg RightFoot RightToeBase RightToeEnd LeftUpLeg LeftLeg "
                    "LeftFoot LeftToeBase LeftToeEnd",
        t_pose=_LIMBS | {"LeftUpLeg": (1, 0, 0), "Spine": (0, 1, 0), "Spine1": (0, 1, 0),
                         "Spine2": (0, 1, 0), "Head": (0, 1, 0), "LeftArm": (1, 0, 0),
                         "LeftToeBase": (0, 0, 1), "LeftToeEnd": (0, 0, 1)}),
}
