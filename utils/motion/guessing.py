"""What the joints of a BVH file are, guessed: sides by the names, hips, shoulders, feet, unit and up axis by
the geometry. Shapes: T frames, J nodes of the file.
"""
import re

import numpy as np

from utils.errors import UserError
from utils.motion.bvh import positions, rest_positions
from utils.motion.features import TINY, rotate_y
from utils.motion.skeleton_files import FACING, axis_word, heading_of, mean_directions
from utils.motion.skeletons import way_from_root

UNITS = {"metres": 1.0, "centimetres": 0.01, "inches": 0.0254, "millimetres": 0.001}  # in metres
BODY = (1.1, 2.4)  # metres: bones from toe to head of a person, end to end
USUAL = 1.75  # the same of a person of 1.7 m, for files in no usual unit
FPS = 20.0
MOST_FRAMES = 500  # that are looked at


def upright(vectors, up):
    """Vectors (..., 3) of files whose up axis is y or z, with Y up."""
    return vectors if up == "y" else vectors[..., [0, 2, 1]] * [1, 1, -1]


def up_of(trunk):
    """"y" or "z": the axis along which joints (T, N, 3) of the trunk are farther apart."""
    _, y, z = np.ptp(trunk.mean(0), axis=0)
    return "z" if z > y else "y"


def guess_skeleton(bvh, name, up=None, fingers=True):
    """(description for a skeleton file, [what was guessed, in words]) of a Bvh. ``up``: y or z; None =
    guessed. ``fingers``: keep the joints beyond the wrists. UserError where left and right, legs or arms are
    not found."""
    step = -(-len(bvh.values) // MOST_FRAMES)
    joints = positions(bvh._replace(values=bvh.values[::step]))
    guess = _Guess(bvh, joints, up)
    kept = guess.kept(fingers)
    pelvis, names, parents = guess.pelvis, bvh.names, bvh.parents
    rest = upright(rest_positions(bvh), guess.up)
    rest = rotate_y(rest - rest[pelvis], -heading_of(rest[None], guess.face)) * guess.unit
    means = mean_directions(guess.joints, [max(parent, 0) for parent in parents], guess.face)
    rows = [{"name": names[pelvis], "parent": None}]
    for joint in kept[1:]:
        parent = parents[joint]
        rows.append({"name": names[joint], "parent": names[parent], "axis": axis_word(means[joint]),
                     "offset": np.round(rest[joint] - rest[parent], 5).tolist()})
    feet = {side: [names[joint] for joint in guess.feet[side]] for side in ("left", "right")}
    return {"name": name, "joints": rows, "facing": dict(zip(FACING, (names[joint] for joint in guess.face))),
            "feet": feet, "legs": [names[joint] for joint in guess.leg], "fps": FPS,
            "source": {"metres_per_unit": guess.unit, "up": guess.up}}, guess.report(kept)


def guess_unit(height):
    """(metres per unit, in words) of a body whose bones from toe to head are ``height`` units long, end to
    end. UserError for no length."""
    if height < TINY:
        raise UserError("all joints lie in one point")
    for words, metres in UNITS.items():
        if BODY[0] <= height * metres <= BODY[1]:
            return metres, f"{words}, as the bones from toe to head are {height:.4g} units long"
    metres = float(f"{USUAL / height:.4g}")
    return metres, (f"{metres:g} metres per unit: the bones from toe to head are {height:.4g} units long, "
                    "which no usual unit makes a person, so they are taken for one of 1.7 m")


class _Guess:
    """What the nodes of a file are. joints: (T, J, 3) of the file; up: "y", "z" or None, to be guessed."""

    def __init__(self, bvh, joints, up):
        self.bvh, self.names, self.parents = bvh, bvh.names, bvh.parents
        self.sides = _sides_by_name(bvh)
        bones = joints - joints[:, [max(parent, 0) for parent in self.parents]]
        self.lengths = np.linalg.norm(bones, axis=-1).mean(0)
        self.children = [[] for _ in self.parents]
        for joint, parent in list(enumerate(self.parents))[1:]:
            self.children[parent].append(joint)
        self.below = np.zeros(len(self.parents))  # length of the bones to the farthest end
        for joint in reversed(range(1, len(self.parents))):
            parent = self.parents[joint]
            self.below[parent] = max(self.below[parent], self.lengths[joint] + self.below[joint])
        limbs = {side: [self.path(joint) for joint in self.roots(side)] for side in ("left", "right")}
        if not all(len(found) >= 2 for found in limbs.values()):
            raise UserError("the names of the joints do not say which are left and right (or there are no "
                            f"two limbs of each side): {', '.join(self.names[:8])} ...; write the file by "
                            "hand")
        ways = [way_from_root(self.parents, path[0]) for found in limbs.values() for path in found]
        self.pelvis = [joint for joint in ways[0] if all(joint in way for way in ways)][-1]
        self.up, self.up_guessed = up or self.guess_up(joints), up is None
        self.joints = joints = upright(joints, self.up)
        height = joints.mean(0)[:, 1]
        legs = {side: min(found, key=lambda path: height[path[-1]]) for side, found in limbs.items()}
        arms = {side: max((path for path in found if path != legs[side]), key=self.reach)
                for side, found in limbs.items()}
        (left_hip, self.leg, left_foot), (right_hip, _, right_foot) = map(self.parts, legs.values())
        (left_shoulder, _, left_hand), (right_shoulder, _, right_hand) = map(self.parts, arms.values())
        self.face = right_hip, left_hip, right_shoulder, left_shoulder
        self.feet, self.hands = {"left": left_foot, "right": right_foot}, (left_hand[0], right_hand[0])
        self.unit, self.unit_words = guess_unit(self.height(legs["left"]))

    def roots(self, side):
        """Where the limbs of a side leave the body."""
        return [joint for joint, own in enumerate(self.sides) if own == side
                and self.parents[joint] >= 0 and self.sides[self.parents[joint]] != side]

    def path(self, joint):
        """From a joint to the farthest end, along the bones."""
        path = [joint]
        while children := self.children[path[-1]]:
            path.append(max(children, key=lambda child: self.lengths[child] + self.below[child]))
        return path

    def reach(self, path):
        return self.lengths[path[1:]].sum()

    def parts(self, path):
        """Of a limb: its hip or shoulder, the ends of the bones from there to ankle or wrist, and [ankle or
        wrist, the next joint]. A limb's two longest bones begin at the hip or shoulder, and end at the ankle
        or wrist; bones between them belong to a divided thigh or arm."""
        if len(path) < 3:
            raise UserError(f"the limb of '{self.names[path[0]]}' has {len(path)} joints, fewer than 3; "
                            "write the file by hand")
        first, last = sorted(np.argsort(-self.lengths[path[1:]], kind="stable")[:2].tolist())
        tips = [joint for joint in path[last + 2 :] if self.lengths[joint] > 0.01 * self.reach(path)]
        return path[first], path[first + 1 : last + 2], [path[last + 1], (tips or [path[last + 1]])[0]]

    def below_pelvis(self, joint):
        """The joints from below the pelvis to ``joint``; [] of a joint that is not below it."""
        way = way_from_root(self.parents, joint)
        return way[way.index(self.pelvis) + 1 :] if self.pelvis in way else []

    def height(self, leg):
        """Length of the bones from the end of a leg's path to the head."""
        trunk = max((self.lengths[self.below_pelvis(joint)].sum() for joint, side in enumerate(self.sides)
                     if side is None), default=0.0)
        return float(trunk + self.lengths[self.below_pelvis(leg[-1])].sum())

    def guess_up(self, joints):
        """The axis along which the trunk is longest."""
        trunk = [joint for joint, side in enumerate(self.sides) if side is None and self.below_pelvis(joint)]
        return up_of(joints[:, [self.pelvis, *trunk]])

    def kept(self, fingers):
        """The nodes of the skeleton: those below the pelvis, and of the ends those of feet without a toe."""
        kept = []
        for joint, node in enumerate(self.bvh.nodes):
            way = way_from_root(self.parents, joint)
            beyond = any(hand in way[:-1] for hand in self.hands)
            toe = any(joint in foot for foot in self.feet.values())
            if self.pelvis in way and (toe or not node.end) and (fingers or not beyond):
                kept.append(joint)
        return kept

    def report(self, kept):
        """What was guessed, in words."""
        name = self.names.__getitem__
        lines = [f"{len(kept)} of {len(self.names)} nodes; the pelvis is {name(self.pelvis)}",
                 *(f"{part.replace('_', ' ')}: {name(joint)}" for part, joint in zip(FACING, self.face)),
                 *(f"{side} foot: {' and '.join(dict.fromkeys(map(name, foot)))}"
                   for side, foot in self.feet.items()),
                 f"unit: {self.unit_words}", f"up: {self.up}{' (guessed)' if self.up_guessed else ''}",
                 f"{self.bvh.fps:g} frames per second in the file, {FPS:g} in data sets"]
        many = [joint for joint in kept if any(hand in way_from_root(self.parents, joint)[:-1]
                                               for hand in self.hands)]
        if many:
            lines.append(f"{len(many)} joints are beyond the wrists; --no_fingers leaves them out")
        return lines + self.doubts()

    def doubts(self):
        """What looks wrong."""
        joints, heading = self.joints, heading_of(self.joints, self.face)
        toes = sum(joints[:, foot[1]] - joints[:, foot[0]] for foot in self.feet.values())
        ahead = rotate_y(toes, -heading)[:, 2].mean()
        if ahead < -0.1 * np.linalg.norm(toes, axis=-1).mean():
            return ["doubt: the toes point backwards; are left and right exchanged, or the file mirrored?"]
        return []


def _sides_by_name(bvh):
    """"left", "right" or None of each node: the word, a single letter L or R set apart, or a first letter by
    which two names differ. Ends take their parent's."""
    names = set(bvh.names)
    sides = []
    for node in bvh.nodes:
        sides.append(sides[node.parent] if node.end else _side(node.name, names))
    return sides


def _side(name, names):
    plain = name.split(":")[-1]
    for side in ("left", "right"):
        if side in plain.lower():
            return side
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", plain)}
    letter = next((letter for letter in "lr" if letter in words), None)
    if letter is None and plain and plain[0] in "lLrR":
        other = str.translate(plain[0], str.maketrans("lLrR", "rRlL"))
        letter = plain[0].lower() if name.replace(plain, other + plain[1:]) in names else None
    return {"l": "left", "r": "right", None: None}[letter]
