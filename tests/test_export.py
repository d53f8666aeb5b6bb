"""utils/export/ and scripts/export.py: pybvh, pygltflib, numpy and csv read the files back, and their joints
are compared with the clip's."""
import csv
import sys

import numpy as np
import pybvh
import pygltflib
import pytest
from scipy.spatial.transform import Rotation
from test_rotations import BOTH, LENGTHS, T, ease, figure

from scripts import export
from utils.demo.dataset import make_clip
from utils.errors import UserError, run
from utils.export.formats import FORMATS, Clip, export_clip
from utils.export.mannequin import capsule, mannequin
from utils.export.smpl import REST
from utils.motion.rotations import bone_lengths, with_bone_lengths
from utils.motion.skeletons import SKELETONS

WALK = {"Hips": [("y", np.linspace(0, 380, T)), ("x", ease(T, 0, -70, 0))], "LeftArm": ("z", ease(T, 0, -80)),
        "LeftUpLeg": ("x", ease(T, 0, -70, 20)), "LeftLeg": ("x", ease(T, 0, 60, 5)), "Spine1": ("y", 20)}
EXTRA = {"LeftHipJoint", "RightHipJoint", "LowerBack", "NeckBase", "LeftCollar", "RightCollar"}


def clip_of(name, **turns):
    """A Clip of a figure whose root moves."""
    joints, _ = figure(name, T, **(turns or WALK))
    joints = joints + np.linspace([0, 0, 0], [1.0, 0.2, -2.0], T)[:, None]
    return Clip("a_clip", joints, SKELETONS[name], SKELETONS[name].fps)


def exported(clip, folder, name):
    path, = export_clip(clip, folder, [name])
    assert path == folder / f"a_clip.{name}" and [*folder.iterdir()] == [path]
    return path


def in_order(names, values, skeleton):
    """Of values (..., N, 3) of named joints those of the clip's joints, in the clip's order."""
    return values[..., [names.index(name) for name in skeleton.joint_names], :]


# BVH.

@BOTH
def test_bvh_read_by_pybvh(name, tmp_path):
    clip = clip_of(name)
    read = pybvh.read_bvh_file(exported(clip, tmp_path, "bvh"), world_up="+y")
    at = in_order(read.joint_names, read.joint_positions(), clip.skeleton) / 100
    assert np.abs(at - clip.joints).max() < 1e-6
    assert read.fps == pytest.approx(clip.skeleton.fps) and read.frame_count == T
    assert set(read.euler_orders) == {"XZY"} and {*read.joint_names} - {*clip.skeleton.joint_names} == EXTRA
    angles = np.degrees(read.joint_angles)
    assert np.abs(np.diff(angles, axis=0)).max() < 15 and angles[-1, 0, 2] == pytest.approx(380, abs=1)


@BOTH
def test_the_rest_pose_of_bvh_is_a_t_pose(name, tmp_path):
    clip = clip_of(name)
    read = pybvh.read_bvh_file(exported(clip, tmp_path, "bvh"), world_up="+y")
    joints = [not node.is_end_site() for node in read.nodes]
    rest = in_order(read.joint_names, read.rest_pose_positions()[joints], clip.skeleton)
    t_pose, _ = figure(name, 1, root=(0, 0, 0))
    assert np.abs(rest / 100 - t_pose[0]).max() < 1e-6
    assert np.allclose(read.nodes[0].offset, 0)     # readers disagree on whether it adds to the positions
    ends = {node.parent.name: node.offset for node in read.nodes if node.is_end_site()}
    tips = {name for name, children in zip(clip.skeleton.joint_names, clip.skeleton.children) if not children}
    assert {*ends} == tips and ends["LeftHand"][0] > 5 and ends["RightHand"][0] < -5 and ends["Head"][1] > 10


# GLB.

class Glb:
    """The parts of a .glb file that a player needs, evaluated with numpy."""

    def __init__(self, path):
        self.file = pygltflib.GLTF2().load(path)
        self.names = [node.name for node in self.file.nodes]
        self.parents = {child: index for index, node in enumerate(self.file.nodes) for child in node.children}
        self.joints = self.file.skins[0].joints

    def array(self, index):
        accessor = self.file.accessors[index]
        view = self.file.bufferViews[accessor.bufferView]
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}[accessor.type]
        dtype = {5121: "u1", 5123: "<u2", 5126: "<f4"}[accessor.componentType]
        assert view.byteOffset % 4 == 0
        out = np.frombuffer(self.file.binary_blob(), dtype, accessor.count * width, view.byteOffset)
        assert out.nbytes == view.byteLength
        return out.reshape(accessor.count, width)

    def world(self, frame=None):
        """{node: matrix (4, 4)} at rest or in a frame of the animation."""
        moves = {}
        for channel in self.file.animations[0].channels if frame is not None else ():
            sampler = self.file.animations[0].samplers[channel.sampler]
            moves[channel.target.node, channel.target.path] = self.array(sampler.output)[frame]
        out = {}

        def visit(index):
            node, matrix = self.file.nodes[index], np.eye(4)
            matrix[:3, 3] = moves.get((index, "translation"), node.translation or [0, 0, 0])
            matrix[:3, :3] = Rotation.from_quat(moves.get((index, "rotation"), [0, 0, 0, 1])).as_matrix()
            out[index] = out[self.parents[index]] @ matrix if index in self.parents else matrix
            for child in node.children:
                visit(child)

        for root in self.file.scenes[self.file.scene].nodes:
            visit(root)
        return out

    def places(self, frame, skeleton):
        """Positions (J, 3) of the clip's joints."""
        world = self.world(frame)
        return np.array([world[self.names.index(name)][:3, 3] for name in skeleton.joint_names])

    def skinned(self, frame=None):
        """For each material, the vertices (V, 3) as the skin moves them, with joint numbers (V,)."""
        world = self.world(frame)
        inverse = self.array(self.file.skins[0].inverseBindMatrices).reshape(-1, 4, 4).swapaxes(1, 2)
        matrices = np.stack([world[joint] @ bind for joint, bind in zip(self.joints, inverse)])
        for primitive in self.file.meshes[0].primitives:
            points = self.array(primitive.attributes.POSITION)
            bound = self.array(primitive.attributes.JOINTS_0)
            weights = self.array(primitive.attributes.WEIGHTS_0) / 255
            assert np.allclose(weights.sum(1), 1)
            moved = np.einsum("vw,vwij,vj->vi", weights, matrices[bound], np.c_[points, np.ones(len(points))])
            yield self.file.materials[primitive.material].name, moved[:, :3], bound[:, 0]


@BOTH
def test_glb_read_by_pygltflib(name, tmp_path):
    clip = clip_of(name)
    glb = Glb(exported(clip, tmp_path, "glb"))
    far = [np.abs(glb.places(frame, clip.skeleton) - clip.joints[frame]).max() for frame in range(T)]
    assert max(far) < 1e-5
    animation = glb.file.animations[0]
    times = glb.array(animation.samplers[0].input)[:, 0]
    assert np.allclose(times, np.arange(T) / clip.skeleton.fps) and animation.name == "a_clip"
    assert {sampler.interpolation for sampler in animation.samplers} == {"LINEAR"}
    assert {*glb.names} == {*clip.skeleton.joint_names} | EXTRA | {"Mannequin"}


@BOTH
def test_the_bind_pose_of_glb_is_a_t_pose_on_the_floor(name, tmp_path):
    clip = clip_of(name)
    glb = Glb(exported(clip, tmp_path, "glb"))
    t_pose, _ = figure(name, 1, root=glb.file.nodes[0].translation)
    assert np.abs(glb.places(None, clip.skeleton) - t_pose[0]).max() < 1e-5
    parts = {side: points for side, points, _ in glb.skinned()}
    assert min(points[:, 1].min() for points in parts.values()) == pytest.approx(0, abs=1e-5)
    assert parts["left"][:, 0].max() > 0.4 and parts["left"][:, 0].min() > -0.05    # thighs touch
    assert parts["right"][:, 0].min() < -0.4 and parts["right"][:, 0].max() < 0.05
    depths = parts["centre"][parts["centre"][:, 1] > parts["centre"][:, 1].max() - 0.15][:, 2]
    middle = t_pose[0, clip.skeleton.joint_names.index("Head"), 2]
    assert depths.max() - middle > middle - depths.min() + 0.02     # the nose is ahead
    for primitive in glb.file.meshes[0].primitives:
        points = glb.array(primitive.attributes.POSITION)
        accessor = glb.file.accessors[primitive.attributes.POSITION]
        assert np.array_equal(accessor.min, points.min(0)) and np.array_equal(accessor.max, points.max(0))


@BOTH
def test_the_mannequin_goes_with_the_joints(name, tmp_path):
    """Every vertex keeps its place beside the joint that it is bound to."""
    clip = clip_of(name)
    glb = Glb(exported(clip, tmp_path, "glb"))
    for frame in (0, T // 2, T - 1):
        world = glb.world(frame)
        for (_, rest, bound), (_, moved, _) in zip(glb.skinned(), glb.skinned(frame)):
            for joint in np.unique(bound):
                start, now = glb.world()[joint], world[joint]
                local = rest[bound == joint] - start[:3, 3]
                again = (moved[bound == joint] - now[:3, 3]) @ now[:3, :3]
                assert np.abs(local - again).max() < 1e-5
    ends = {index for index in range(clip.skeleton.num_joints) if not clip.skeleton.children[index]}
    moving = {joint for _, _, bound in glb.skinned() for joint in np.unique(bound)}
    assert {glb.names.index(clip.skeleton.joint_names[index]) for index in ends} <= moving


@pytest.mark.parametrize("start, end", [((0, 0, 0), (0, 1, 0)), ((1, 2, 3), (1, 2, 3)),
                                        ((0, 0, 0), (-1, 0.5, 0.2))])
def test_capsules_are_closed_and_face_outwards(start, end):
    start, end = np.array(start, float), np.array(end, float)
    length = np.linalg.norm(end - start)
    large = 0.2 if length else 0.1
    vertices, normals, triangles = capsule(start, end, 0.1, large)
    corners = vertices[triangles]
    face = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    some = np.linalg.norm(face, axis=1) > 1e-9      # at the poles triangles shrink to lines
    assert ((face * normals[triangles].mean(1)).sum(1)[some] > 0).all() and some.mean() > 0.7
    volume = np.einsum("ti,ti->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6
    bar = length * (0.01 + 0.1 * large + large ** 2) / 3
    assert volume == pytest.approx(np.pi * (bar + (0.1 ** 3 + large ** 3) * 2 / 3), rel=0.12)
    assert np.allclose(np.linalg.norm(normals, axis=1), 1)


def test_every_bone_has_a_capsule():
    clip = clip_of("t2m")
    parts = mannequin(clip.motion.rig, clip.skeleton)
    assert len(parts) == 21 + 2 + 2 + 2     # bones; hands, toes; head and nose
    rest = clip.motion.rig.rest_positions()
    for part in parts:
        assert np.linalg.norm(part.vertices - rest[part.joint], axis=1).min() < 0.2


# npz.

def test_npz_holds_smpls_rotations(tmp_path):
    clip = clip_of("t2m")
    content = np.load(exported(clip, tmp_path, "npz"), allow_pickle=False)
    poses = content["poses"]
    assert poses.shape == (T, 156) and not poses[:, 66:].any() and content["trans"].shape == (T, 3)
    assert not content["betas"].any() and content["gender"] == "neutral" and content["mocap_framerate"] == 20
    joints = smpl_joints(poses, content["trans"], bone_lengths(clip.joints, clip.skeleton), clip.skeleton)
    y_up = np.stack([joints[..., 0], joints[..., 2], -joints[..., 1]], -1)
    off = np.linalg.norm(y_up - clip.joints, axis=-1)
    assert off.max() < 1e-6     # the figure's pelvis and chest are as rigid as SMPL's


def smpl_joints(poses, trans, lengths, skeleton):
    """Joints (T, 22, 3), z up, by SMPL's rule: the pelvis is at trans plus its place in the body at rest."""
    out, world = np.empty((len(poses), 22, 3)), np.empty((len(poses), 22, 3, 3))
    turns = Rotation.from_rotvec(poses.reshape(-1, 3)).as_matrix().reshape(len(poses), 52, 3, 3)
    out[:, 0], world[:, 0] = trans + [-0.0018, -0.2233, 0.0282], turns[:, 0]
    for joint in range(1, 22):
        parent = skeleton.parents[joint]
        out[:, joint] = out[:, parent] + world[:, parent] @ REST[joint] * lengths[joint]
        world[:, joint] = world[:, parent] @ turns[:, joint]
    return out


def test_the_pose_of_smpl_at_rest(tmp_path):
    """Turned to z up, and nothing else: then only the root turns."""
    joints = np.zeros((5, 22, 3))
    for parent, child in SKELETONS["t2m"].bones:
        joints[:, child] = joints[:, parent] + np.array(REST[child]) * LENGTHS["t2m"][child]
    clip = Clip("a_clip", joints, SKELETONS["t2m"], 20.0)
    poses = np.load(exported(clip, tmp_path, "npz"))["poses"]
    assert np.allclose(poses[:, :3], [np.pi / 2, 0, 0], atol=1e-6) and np.abs(poses[:, 3:]).max() < 1e-6
    for index, name in enumerate(SKELETONS["t2m"].joint_names):
        if name.startswith("Left"):
            assert REST[index][0] > 0 or name == "LeftFoot"


def test_npz_needs_smpls_joints(tmp_path):
    with pytest.raises(UserError, match="npz holds rotations of SMPL's joints, and the kit"):
        export_clip(clip_of("kit"), tmp_path, ["bvh", "npz"])
    assert not [*tmp_path.iterdir()]


# CSV.

@BOTH
def test_csv_has_a_row_per_frame(name, tmp_path):
    clip = clip_of(name)
    with open(exported(clip, tmp_path, "csv"), encoding="ascii", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == T and len(rows[0]) == 2 + 3 * clip.skeleton.num_joints
    assert [int(row["frame"]) for row in rows] == [*range(T)]
    assert np.allclose([float(row["time"]) for row in rows], np.arange(T) / clip.skeleton.fps, atol=1e-6)
    for index, joint in enumerate(clip.skeleton.joint_names):
        at = [[float(row[f"{joint}_{axis}"]) for axis in "xyz"] for row in rows]
        assert np.abs(np.array(at) - clip.joints[:, index]).max() < 1e-6


# Clips whose bones change their lengths, as generated ones do.

@pytest.mark.parametrize("actions", [["walk_forward", "wave_left"], ["kick_left", "bow"], ["jump"]])
def test_what_differs_is_bone_lengths(actions, tmp_path):
    joints = make_clip(actions, np.random.default_rng(0))
    noise = np.random.default_rng(1).normal(0, 0.004, joints.shape)
    clip = Clip("a_clip", joints + noise, SKELETONS["t2m"], 20.0)
    kept = with_bone_lengths(clip.joints, clip.skeleton, bone_lengths(clip.joints, clip.skeleton))
    read = pybvh.read_bvh_file(export_clip(clip, tmp_path, ["bvh"])[0], world_up="+y")
    at = in_order(read.joint_names, read.joint_positions(), clip.skeleton) / 100
    glb = Glb(export_clip(clip, tmp_path, ["glb"])[0])
    for places in (at, np.array([glb.places(frame, clip.skeleton) for frame in range(len(joints))])):
        assert np.linalg.norm(places - kept, axis=-1).max() < 1e-5
    mean, most = clip.deviation()
    off = np.linalg.norm(kept - clip.joints, axis=-1)
    assert mean == pytest.approx(off.mean()) and most == pytest.approx(off.max()) and 0.005 < most < 0.05


# scripts/export.py.

@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the script in ``tmp_path``, which has two clips -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    for number, turn in enumerate((20, 60)):
        joints, _ = figure("t2m", 30, Hips=("y", turn))
        np.save(tmp_path / "clips" / f"clip_{number}.npy", joints.astype(np.float32))

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["export.py", *map(str, args)])
        try:
            run(export.main)
        except SystemExit as stop:
            return stop.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return call


def test_a_folder_in_all_formats(call, tmp_path):
    code, out, err = call("clips", "clips/clip_0.npy", "--formats", *FORMATS)
    assert code == 0 and not err
    names = {path.name for path in (tmp_path / "clips").iterdir()}
    assert names == {f"clip_{number}.{suffix}" for number in (0, 1) for suffix in ("npy", *FORMATS)}
    said = "the rig is 0.0 mm from the clip on average, 0.0 mm at most"
    assert "clips/clip_1.glb" in out and out.count(said) == 2
    again = call("clips", "--formats", *FORMATS)      # the same files once more: nothing to complain about
    assert again == (code, out, err)


def test_defaults_and_other_frame_rates(call, tmp_path):
    assert call("clips/clip_0.npy", "--output_dir", "out")[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"clip_0.bvh", "clip_0.glb"}
    assert pybvh.read_bvh_file(tmp_path / "out" / "clip_0.bvh", world_up="+y").fps == pytest.approx(20)
    assert call("clips/clip_0.npy", "--output_dir", "fast", "--fps", "120", "--formats", "bvh")[0] == 0
    assert pybvh.read_bvh_file(tmp_path / "fast" / "clip_0.bvh", world_up="+y").fps == pytest.approx(120)
    np.save("kit.npy", figure("kit", 20)[0])
    assert call("kit.npy", "--skeleton", "kit", "--formats", "bvh", "csv")[0] == 0
    assert pybvh.read_bvh_file(tmp_path / "kit.bvh", world_up="+y").fps == pytest.approx(12.5)


@pytest.mark.parametrize("flags, message", [
    (["none.npy"], "no file or folder none.npy"),
    (["empty"], "empty holds no .npy file"),
    (["features.npy"], "features.npy: joints must have shape (frames, 22, 3)"),
    (["nan.npy"], "nan.npy: joints are not finite"),
    (["text.npy"], "text.npy cannot be read"),
    (["millimetres.npy"], "millimetres cannot be exported: the body is"),
    (["point.npy"], "point cannot be exported: the bone from Hips to LeftUpLeg has no length"),
    (["kit.npy", "--skeleton", "kit", "--formats", "npz"], "choose bvh, glb or csv"),
    (["clips", "--skeleton", "kit"], "has shape (30, 22, 3); expected joints (frames, 21, 3)"),
    (["clips", "--formats", "fbx"], "invalid choice: 'fbx' (choose from 'bvh', 'glb', 'npz', 'csv')"),
    (["clips", "--fps", "0"], "--fps"),
    (["clips/clip_0.npy", "other/clip_0.npy", "--output_dir", "out"], "would both be clip_0 in out"),
    (["other/clip_0.npy", "--formats", "csv"], "other/clip_0.csv exists and is of another clip"),
    (["clips", "--output_dir", "text.npy"], "text.npy"),
    ([], "CLIP"),
])
def test_mistakes_are_one_line(call, tmp_path, flags, message):
    for folder in ("empty", "other"):
        (tmp_path / folder).mkdir()
    joints = figure("t2m", 30)[0]
    np.save("features.npy", np.zeros((60, 263)))
    np.save("nan.npy", np.full((60, 22, 3), np.nan))
    np.save("millimetres.npy", joints * 1000)
    np.save("point.npy", joints[:, :1].repeat(22, 1))
    np.save("kit.npy", figure("kit", 20)[0])
    np.save("other/clip_0.npy", joints)
    (tmp_path / "text.npy").write_text("no clip")
    (tmp_path / "other" / "clip_0.csv").write_text("somebody's")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, out, err = call(*flags)
    assert code == 2 and not out and message in err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
