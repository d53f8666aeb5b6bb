"""GLB (glTF 2.0): a mannequin that is bound to a rig, and the rig's motion. Conventions: docs/formats.md."""
import numpy as np
import pygltflib as gltf

from utils.drawing import COLOURS
from utils.export.mannequin import mannequin

KINDS = {1: gltf.SCALAR, 3: gltf.VEC3, 4: gltf.VEC4, 16: gltf.MAT4}
COMPONENTS = {"u1": gltf.UNSIGNED_BYTE, "u2": gltf.UNSIGNED_SHORT, "f4": gltf.FLOAT}
VERTICES, INDICES = gltf.ARRAY_BUFFER, gltf.ELEMENT_ARRAY_BUFFER


class _Buffer:
    """Collects arrays into the one buffer of a file."""

    def __init__(self, document):
        self.document, self.bytes = document, bytearray()

    def add(self, array, target=None, bounds=False, normalized=None):
        """The number of a new accessor for an array (N,) or (N, components); ``bounds``: with its least and
        largest values."""
        rows = array.reshape(len(array), -1)
        self.bytes += b"\0" * (-len(self.bytes) % 4)
        view = gltf.BufferView(buffer=0, byteOffset=len(self.bytes), byteLength=array.nbytes, target=target)
        self.bytes += array.tobytes()
        self.document.bufferViews.append(view)
        self.document.accessors.append(gltf.Accessor(
            bufferView=len(self.document.bufferViews) - 1, componentType=COMPONENTS[array.dtype.str[1:]],
            count=len(rows), type=KINDS[rows.shape[1]], normalized=normalized,
            min=rows.min(0).tolist() if bounds else None, max=rows.max(0).tolist() if bounds else None))
        return len(self.document.accessors) - 1


def write_glb(clip, path):
    """Write a Clip: one node per joint, a skinned mesh, and an animation; metres, Y up, facing +Z."""
    rig = clip.motion.rig
    document = gltf.GLTF2(asset=gltf.Asset(version="2.0", generator="FSQ-MARDM"))
    buffer = _Buffer(document)
    parts = mannequin(rig, clip.skeleton)
    floor = [0.0, -min(part.vertices[:, 1].min() for part in parts), 0.0]     # the T-pose stands on y = 0
    _add_joints(document, rig, floor)
    _add_mesh(document, buffer, parts, floor)
    places = rig.rest_positions() + floor
    inverse = np.tile(np.eye(4), (len(places), 1, 1))
    inverse[:, 3, :3] = -places     # by columns
    document.skins = [gltf.Skin(joints=list(range(len(places))), skeleton=0, name="Rig",
                                inverseBindMatrices=buffer.add(inverse.astype("<f4").reshape(-1, 16)))]
    _add_animation(document, buffer, clip)
    document.scenes = [gltf.Scene(nodes=[0, len(places)])]
    document.scene = 0
    document.buffers = [gltf.Buffer(byteLength=len(buffer.bytes))]
    document.set_binary_blob(bytes(buffer.bytes))
    document.save_binary(path)


def _add_joints(document, rig, floor):
    """A node for each joint of the rig, in the rig's order, and one for the mesh."""
    for joint, name in enumerate(rig.names):
        children = [child for child, parent in enumerate(rig.parents) if parent == joint]
        offset = rig.offsets[joint].tolist() if joint else floor
        document.nodes.append(gltf.Node(name=name, children=children, translation=offset))
    document.nodes.append(gltf.Node(name="Mannequin", mesh=0, skin=0))


def _add_mesh(document, buffer, parts, floor):
    """One mesh with a material for each side of the body."""
    primitives = []
    for side in sorted({part.side for part in parts}):
        own = [part for part in parts if part.side == side]
        starts = np.cumsum([0, *(len(part.vertices) for part in own)])
        triangles = np.concatenate([part.triangles + start for part, start in zip(own, starts)])
        bound = np.zeros((starts[-1], 4), np.uint8)
        bound[:, 0] = np.concatenate([[part.joint] * len(part.vertices) for part in own])
        weights = np.tile(np.array([255, 0, 0, 0], np.uint8), (starts[-1], 1))
        points = (np.concatenate([part.vertices for part in own]) + floor).astype("<f4")
        normals = np.concatenate([part.normals for part in own]).astype("<f4")
        primitives.append(gltf.Primitive(
            attributes=gltf.Attributes(POSITION=buffer.add(points, VERTICES, bounds=True),
                                       NORMAL=buffer.add(normals, VERTICES),
                                       JOINTS_0=buffer.add(bound, VERTICES),
                                       WEIGHTS_0=buffer.add(weights, VERTICES, normalized=True)),
            indices=buffer.add(triangles.astype("<u2").ravel(), INDICES), material=len(document.materials)))
        linear = ((np.array(COLOURS[side]) / 255) ** 2.2).tolist()      # from sRGB
        document.materials.append(gltf.Material(name=side, pbrMetallicRoughness=gltf.PbrMetallicRoughness(
            baseColorFactor=[*linear, 1.0], metallicFactor=0.0, roughnessFactor=0.7), alphaCutoff=None))
    document.meshes.append(gltf.Mesh(name="Mannequin", primitives=primitives))


def _add_animation(document, buffer, clip):
    """The root's positions and every joint's rotations, linear between the frames."""
    motion, animation = clip.motion, gltf.Animation(name=clip.name)
    times = buffer.add((np.arange(len(motion.root)) / clip.fps).astype("<f4"), bounds=True)

    def add(values, node, path):
        animation.samplers.append(gltf.AnimationSampler(input=times, output=buffer.add(values.astype("<f4")),
                                                        interpolation=gltf.ANIM_LINEAR))
        target = gltf.AnimationChannelTarget(node=node, path=path)
        animation.channels.append(gltf.AnimationChannel(sampler=len(animation.samplers) - 1, target=target))

    add(motion.root, 0, "translation")
    for joint in range(len(motion.rig.names)):
        add(np.roll(motion.rotations[:, joint], -1, axis=-1), joint, "rotation")    # glTF: w last
    document.animations = [animation]
