"""BVH: a rig's T-pose, and its motion as Euler angles. Conventions: docs/formats.md."""
import numpy as np

from utils.motion.rotations import to_euler

CENTIMETRES = 100.0
ORDER = "XZY"   # R = Rx Rz Ry; of the six, the order that is least often near gimbal lock (docs/formats.md)
INDENT = "  "


def write_bvh(clip, path):
    """Write a Clip. Rotations of all joints in ORDER, in degrees; positions of the root in centimetres."""
    motion = clip.motion
    angles = to_euler(motion.rotations, ORDER)
    values = np.concatenate([motion.root * CENTIMETRES, angles.reshape(len(angles), -1)], axis=1)
    lines = ["HIERARCHY", *_joint(motion.rig, 0, ""),
             "MOTION", f"Frames: {len(values)}", f"Frame Time: {1 / clip.fps:.10g}",
             *(" ".join(f"{value:.6f}" for value in row) for row in values)]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def _joint(rig, joint, indent):
    """The lines of a joint and of all below it."""
    inside = indent + INDENT
    rotations = " ".join(f"{axis}rotation" for axis in ORDER)
    root = joint == 0
    yield f"{indent}{'ROOT' if root else 'JOINT'} {rig.names[joint]}"
    yield indent + "{"
    yield inside + _offset(rig.offsets[joint])
    yield f"{inside}CHANNELS {'6 Xposition Yposition Zposition' if root else 3} {rotations}"
    for child, parent in enumerate(rig.parents):
        if parent == joint:
            yield from _joint(rig, child, inside)
    if joint in rig.tips:
        yield from (inside + line for line in ("End Site", "{", INDENT + _offset(rig.tips[joint]), "}"))
    yield indent + "}"


def _offset(vector):
    return "OFFSET " + " ".join(f"{value * CENTIMETRES:.6f}" for value in vector)
