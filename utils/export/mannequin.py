"""A body of capsules around a rig in its T-pose, each bound to one joint.

Shapes: V vertices, F triangles, R joints of the rig."""
from typing import NamedTuple

import numpy as np

from utils.drawing import HAND_RADIUS, HEAD_RADIUS, LIMB_RADII, NECK_RADIUS, NOSE_RADIUS, TRUNK_RADIUS
from utils.motion.rotations import STATURE

SIDES, ARC = 16, 5      # corners around a capsule; rings of each of its half balls
TOE_RADIUS = 0.030


class Part(NamedTuple):
    """One capsule: vertices and normals (V, 3), triangles (F, 3); its joint, and the side of the body."""

    vertices: np.ndarray
    normals: np.ndarray
    triangles: np.ndarray
    joint: int
    side: str


def mannequin(rig, skeleton):
    """The Parts of a rig's body, the root at the origin, in metres."""
    rest, radii, scale = rig.rest_positions(), _radii(skeleton), rig.height / STATURE
    parts = []

    def add(start, end, sizes, joint, side):
        parts.append(Part(*capsule(start, end, *(size * scale for size in sizes)), joint, side))

    for place, (joint, parent) in enumerate(zip(rig.joints, rig.parents)):
        side = skeleton.side(joint)
        if place and not rig.forks[place]:
            leaves_trunk = skeleton.side(skeleton.parents[joint]) != side
            sizes = radii[skeleton.parents[joint]], radii[joint]
            add(rest[parent], rest[place], sizes, parent, "centre" if leaves_trunk else side)
        if place in rig.tips and side != "centre":
            size = TOE_RADIUS if joint in (*skeleton.left_feet, *skeleton.right_feet) else HAND_RADIUS
            add(rest[place], rest[place] + rig.tips[place], (size, size), place, side)
        elif place in rig.tips:
            head = rest[place] + rig.tips[place] / 2
            nose = head + [0, -0.01 * scale, HEAD_RADIUS * scale]
            add(head, head, (HEAD_RADIUS, HEAD_RADIUS), place, side)
            add(nose, nose, (NOSE_RADIUS, NOSE_RADIUS), place, side)
    return parts


def _radii(skeleton):
    """{joint: radius} in metres, of a body 1.7 m tall."""
    radii = dict.fromkeys(range(skeleton.num_joints), TRUNK_RADIUS)
    for chain in skeleton.chains:
        if skeleton.side(chain[-1]) == "centre":
            radii |= {joint: NECK_RADIUS for joint in chain[-2:] if len(skeleton.children[joint]) < 2}
        elif {*chain} & {*skeleton.left_feet, *skeleton.right_feet}:
            radii |= dict(zip(chain[1:], (*LIMB_RADII["leg"], LIMB_RADII["leg"][-1])))
        else:
            radii |= dict(zip(chain[:0:-1], LIMB_RADII["arm"]))
    return radii


def capsule(start, end, radius, end_radius):
    """Vertices and normals (V, 3) and triangles (F, 3), counter-clockwise from outside, of a round bar from
    ``start`` to ``end``, both (3,); a ball where these are the same."""
    along = end - start
    length = np.linalg.norm(along)
    along = along / length if length > 1e-9 else np.array([0.0, 1.0, 0.0])
    aside = np.cross(along, np.eye(3)[np.abs(along).argmin()])
    aside /= np.linalg.norm(aside)
    frame = np.stack([aside, np.cross(along, aside), along])
    heights = np.radians(np.concatenate([np.linspace(-90, 0, ARC), np.linspace(0, 90, ARC)]))
    around = np.radians(np.linspace(0, 360, SIDES, endpoint=False))
    height, angle = np.meshgrid(heights, around, indexing="ij")
    normals = np.stack([np.cos(height) * np.cos(angle), np.cos(height) * np.sin(angle), np.sin(height)], -1)
    normals = normals @ frame
    vertices = np.concatenate([start + radius * normals[:ARC], end + end_radius * normals[ARC:]])
    corner = np.arange(len(heights) * SIDES).reshape(len(heights), SIDES)
    below, above = corner[:-1], corner[1:]
    next_below, next_above = np.roll(below, -1, 1), np.roll(above, -1, 1)
    triangles = np.concatenate([np.stack([below, next_below, next_above], -1),
                                np.stack([below, next_above, above], -1)]).reshape(-1, 3)
    return vertices.reshape(-1, 3), normals.reshape(-1, 3), triangles
