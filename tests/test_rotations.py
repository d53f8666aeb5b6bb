"""utils/motion/rotations.py: rotations from joint positions, held to figures that known rotations pose and to
forward kinematics; nothing flips."""
import numpy as np
import pytest
from conftest import golden
from scipy.spatial.transform import Rotation

from utils.motion.features import MotionError
from utils.motion.rotations import (
    _limb_turn,
    bone_lengths,
    continuous,
    forward,
    from_matrices,
    orientations,
    rig_motion,
    rig_of,
    to_euler,
    to_matrices,
    with_bone_lengths,
)
from utils.motion.skeletons import SKELETONS

LENGTHS = {"t2m": np.linalg.norm(SKELETONS["t2m"].target_offsets, axis=1), "kit": np.full(21, 0.2)}
BOTH = pytest.mark.parametrize("name", ["t2m", "kit"])


def joint(skeleton, name):
    return skeleton.joint_names.index(name)


def figure(name, frames=40, root=(0.3, 1.0, -0.2), **turns):
    """Joints (frames, J, 3) of a T-pose in which joints are turned, and their orientations in the world
    (frames, J, 3, 3). turns: NAME=(axis, degrees), degrees a number or (frames,), or a list of such pairs,
    the outermost first.

    Plain forward kinematics, with none of the code under test."""
    skeleton = SKELETONS[name]
    offsets = np.array(skeleton.t_pose) * LENGTHS[name][:, None]
    out = np.tile(np.asarray(root, float), (frames, skeleton.num_joints, 1))
    world = np.tile(np.eye(3), (frames, skeleton.num_joints, 1, 1))
    for index, parent in [(0, -1), *((child, parent) for parent, child in skeleton.bones)]:
        if parent >= 0:
            out[:, index] = out[:, parent] + world[:, parent] @ offsets[index]
            world[:, index] = world[:, parent]
        given = turns.get(skeleton.joint_names[index], [])
        for axis, degrees in given if isinstance(given, list) else [given]:
            degrees = np.broadcast_to(degrees, frames)
            world[:, index] = world[:, index] @ Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    return out, world


def positions(motion):
    return forward(motion)[:, motion.rig.own]


def local(motion, name):
    """Rotation vectors (T, 3) in degrees of a joint in its parent's frame."""
    turns = to_matrices(motion.rotations[:, motion.rig.names.index(name)])
    return Rotation.from_matrix(turns).as_rotvec(degrees=True)


def fastest(motion):
    """Largest change of any rotation from frame to frame, in degrees."""
    cos = (motion.rotations[1:] * motion.rotations[:-1]).sum(-1)
    assert (cos >= 0).all(), "the sign of a quaternion flips"
    return np.degrees(2 * np.arccos(np.minimum(cos, 1))).max()


def ease(frames, *values):
    """Values that are passed smoothly, (frames,)."""
    at = np.linspace(0, len(values) - 1, frames)
    before = np.minimum(at.astype(int), len(values) - 2)
    share = (1 - np.cos(np.pi * (at - before))) / 2
    return np.array(values)[before] * (1 - share) + np.array(values)[before + 1] * share


T = 60
LIE, STAND_ON_HANDS = ease(T, 0, -90, 0), ease(T, 0, 180)
# poses: what turns, and the most degrees a frame by which a rotation may change
POSES = {
    "faces away": (dict(Hips=("y", 180)), 1e-3),
    "turns round": (dict(Hips=("y", np.linspace(0, 360, T))), 6.2),
    "turns round twice": (dict(Hips=("Y", np.linspace(0, -720, T))), 12.3),
    "lies down": (dict(Hips=("x", LIE)), 5),
    "lies on its side": (dict(Hips=("z", LIE)), 5),
    "stands on its hands": (dict(Hips=("x", STAND_ON_HANDS), LeftArm=("z", 85), RightArm=("z", -85)), 5),
    "arms hang": (dict(LeftArm=("z", ease(T, 0, -90)), RightArm=("z", ease(T, 0, 90))), 4),
    "arms ahead": (dict(LeftArm=("y", ease(T, 0, -90)), RightArm=("y", ease(T, 0, 90))), 4),
    "sits": (dict(LeftUpLeg=("x", ease(T, 0, -90)), LeftLeg=("x", ease(T, 0, 90)),
                  RightUpLeg=("x", ease(T, 0, -90)), RightLeg=("x", ease(T, 0, 90))), 6),
    "leg to the front, over the head, down": (dict(LeftUpLeg=("x", ease(T, 0, -175, 0))), 12),
    "leg past straight up": (dict(RightUpLeg=("x", ease(T, 0, -150, -210, -150, 0))), 18),
    "arm across to the other side": (dict(LeftArm=("y", ease(T, 0, -179, 0))), 18),
    "windmill": (dict(LeftArm=[("x", np.linspace(0, 720, T)), ("z", -70)]), 14.5),
    "knee bent to the front": (dict(LeftLeg=("x", ease(T, 0, -70, 0))), 8),
    "elbow bent back": (dict(LeftForeArm=("y", ease(T, 0, 70, 0))), 8),
    "everything at once": (dict(Hips=[("y", np.linspace(0, 300, T)), ("x", LIE / 2)],
                                Spine1=("y", ease(T, 0, 50)), LeftArm=[("z", -60), ("x", ease(T, 0, 70))],
                                LeftForeArm=("y", ease(T, 0, -100)),
                                RightUpLeg=("x", ease(T, 0, -80)), RightLeg=("x", ease(T, 0, 100))), 10),
}


@BOTH
def test_a_t_pose_turns_nothing(name):
    joints, _ = figure(name)
    motion = rig_motion(joints, SKELETONS[name])
    assert np.abs(motion.rotations - [1, 0, 0, 0]).max() < 1e-9
    assert np.abs(positions(motion) - joints).max() < 1e-12


@BOTH
def test_the_rig_at_rest_stands_in_a_t_pose(name):
    """y up, facing +z, the left hand at +x, whatever the clip does."""
    joints, _ = figure(name, Hips=("x", 80), LeftArm=("z", -70), RightLeg=("x", 90))
    rig = rig_of(joints, SKELETONS[name])
    at = dict(zip(rig.names, rig.rest_positions()))
    for side, sign in (("Left", 1), ("Right", -1)):
        arm = [at[f"{side}{part}"] for part in ("Arm", "ForeArm", "Hand")]
        leg = at[f"{side}Foot"] - at[f"{side}UpLeg"]
        for one, two in zip(arm, arm[1:]):
            assert np.allclose((two - one) / np.linalg.norm(two - one), [sign, 0, 0])
        assert np.allclose(leg / np.linalg.norm(leg), [0, -1, 0]) and at[f"{side}UpLeg"][0] * sign > 0.05
        assert at[f"{side}ToeBase"][2] > at[f"{side}Foot"][2] + 0.05
    assert at["Head"][1] == max(place[1] for place in at.values()) and abs(at["Head"][0]) < 1e-9
    assert np.allclose(np.linalg.norm(rig.offsets[rig.own], axis=1)[1:], LENGTHS[name][1:])
    assert sorted(rig.tips) == [place for place in range(len(rig.names)) if place not in rig.parents]


def test_left_and_right_are_where_the_layout_has_them():
    for skeleton in SKELETONS.values():
        names = [skeleton.joint_names[joint] for joint in skeleton.face_joints]
        assert names == ["RightUpLeg", "LeftUpLeg", "RightArm", "LeftArm"]
        for index, name in enumerate(skeleton.joint_names):
            side = skeleton.side(index)
            assert name.startswith(side.title()) if side != "centre" else name[0] in "HSN"


@BOTH
@pytest.mark.parametrize("pose", POSES)
def test_rotations_reach_every_joint_and_nothing_flips(name, pose):
    turns, most = POSES[pose]
    joints, _ = figure(name, T, **turns)
    motion = rig_motion(joints, SKELETONS[name])
    assert np.abs(positions(motion) - joints).max() < 1e-9
    assert fastest(motion) < most


@BOTH
def test_the_whole_body_turns_at_the_hips_only(name):
    joints, world = figure(name, T, Hips=[("y", np.linspace(0, 200, T)), ("x", 40), ("z", -30)])
    motion = rig_motion(joints, SKELETONS[name])
    assert np.abs(to_matrices(motion.rotations[:, 0]) - world[:, 0]).max() < 1e-9
    assert np.abs(motion.rotations[:, 1:] - [1, 0, 0, 0]).max() < 1e-9


@BOTH
@pytest.mark.parametrize("side, sign", [("Left", 1), ("Right", -1)])
@pytest.mark.parametrize("twist", [-70, 0, 70])
def test_elbows_and_knees_are_hinges_and_say_how_the_limb_is_turned(name, side, sign, twist):
    arm = {f"{side}Arm": [("z", -sign * 50), ("x", twist)], f"{side}ForeArm": ("y", -sign * 80)}
    leg = {f"{side}UpLeg": [("x", -60), ("y", twist / 2)], f"{side}Leg": ("x", 75)}
    joints, world = figure(name, **arm, **leg)
    bodies, _ = orientations(joints, SKELETONS[name], SKELETONS[name].t_pose)
    for part in (*arm, *leg):
        index = joint(SKELETONS[name], part)
        assert np.abs(bodies[:, index] - world[:, index]).max() < 0.02, part     # a foot says 0.05 of it
    motion = rig_motion(joints, SKELETONS[name])
    assert np.allclose(local(motion, f"{side}ForeArm"), [0, -sign * 80, 0], atol=2)
    assert np.allclose(local(motion, f"{side}Leg"), [75, 0, 0], atol=2)


@BOTH
def test_a_straight_limb_keeps_the_turn_it_had_while_bent(name):
    """An arm turned by 60 degrees is bent, straight for a second, with noise of a millimetre, and bent
    again."""
    bent = np.full(10, -60.0)
    bend = np.concatenate([bent, ease(10, -60, 0), np.zeros(20), ease(10, 0, -60), bent])
    joints, world = figure(name, T, LeftArm=[("z", -40), ("x", 60)], LeftForeArm=("y", bend))
    joints += np.random.default_rng(0).normal(0, 0.001, joints.shape)
    motion = rig_motion(joints, SKELETONS[name])
    assert fastest(motion) < 13     # the bending alone is up to 10.4, and noise turns short bones
    bodies, _ = orientations(joints, SKELETONS[name], SKELETONS[name].t_pose)
    own = joint(SKELETONS[name], "LeftArm")
    off = Rotation.from_matrix(bodies[:, own].swapaxes(-1, -2) @ world[:, own]).magnitude()
    assert np.degrees(off[:15]).max() < 6 and np.degrees(off).max() < 45


def test_a_limb_may_go_round():
    turn = np.linspace(0, 4 * np.pi, T)
    assert np.abs(_limb_turn(np.exp(1j * turn), np.zeros(T - 1)) - turn)[5:-5].max() < 0.01


@BOTH
def test_a_straight_leg_is_turned_as_its_foot_points(name):
    joints, _ = figure(name, LeftUpLeg=("y", 50))
    assert np.allclose(local(rig_motion(joints, SKELETONS[name]), "LeftUpLeg"), [0, 50, 0], atol=12)
    assert np.abs(local(rig_motion(joints, SKELETONS[name]), "LeftFoot")).max() < 12


def test_the_spine_shares_the_turn_of_the_chest():
    joints, _ = figure("kit", Spine2=("y", 60))     # whose spine is straight
    motion = rig_motion(joints, SKELETONS["kit"])
    turns = [local(motion, part)[0] for part in ("LowerBack", "Spine", "Spine1", "Spine2")]
    assert np.allclose(turns, [[0, 0, 0], [0, 20, 0], [0, 20, 0], [0, 20, 0]], atol=1e-6)


def test_a_head_turns_rather_than_tilts():
    for turn in (-60, -30, 30, 60):
        joints, _ = figure("t2m", Neck=("y", turn))
        assert np.allclose(local(rig_motion(joints, SKELETONS["t2m"]), "Neck"), [0, turn, 0], atol=1e-6)
    nodding, _ = figure("t2m", T, Neck=("x", ease(T, -60, 50)))
    motion = rig_motion(nodding, SKELETONS["t2m"])
    assert np.allclose(local(motion, "Neck")[:, 1:], 0, atol=1e-6) and fastest(motion) < 4


def test_bones_that_leave_a_fork_may_change_their_angles():
    """Hips, collars and neck that move against each other, which one rotation cannot follow."""
    joints, _ = figure("t2m", T)
    noise = np.random.default_rng(1).normal(0, 0.01, joints.shape)
    joints += np.apply_along_axis(np.convolve, 0, noise, np.ones(9) / 3, mode="same")
    motion = rig_motion(joints, SKELETONS["t2m"])
    lengths = bone_lengths(joints, SKELETONS["t2m"])
    kept = with_bone_lengths(joints, SKELETONS["t2m"], lengths)
    assert np.abs(positions(motion) - kept).max() < 1e-9 < 1e-3 < np.abs(kept - joints).max()
    steady = Rotation.from_quat(motion.rotations[:, 1], scalar_first=True).magnitude()
    assert motion.rig.forks[1] and 1 < np.degrees(steady).max() < 40


@pytest.mark.parametrize("file", ["sample_012314.npz", "motion_turns_t2m.npz"])
def test_clips_of_the_published_data(file):
    content = golden(file)
    joints = content["joints" if "joints" in content.files else "positions_left"].astype(float)
    motion = rig_motion(joints, SKELETONS["t2m"])
    kept = with_bone_lengths(joints, SKELETONS["t2m"], bone_lengths(joints, SKELETONS["t2m"]))
    assert np.abs(positions(motion) - kept).max() < 1e-9
    if file == "sample_012314.npz":     # of one body, which SMPL posed: bones keep lengths and angles
        assert np.abs(positions(motion) - joints).max() < 1e-5
        assert fastest(motion) < 75     # a forearm that is flung by 69 degrees
        for fork in np.flatnonzero(motion.rig.forks):
            turn = Rotation.from_quat(motion.rotations[:, fork], scalar_first=True)
            assert np.degrees((turn * turn[0].inv()).magnitude()).max() < 0.1


def test_a_bone_without_length_for_a_while_goes_with_its_parent():
    joints, _ = figure("t2m", T, LeftArm=("z", -60), LeftForeArm=("y", -50))
    joints[20, joint(SKELETONS["t2m"], "LeftHand")] = joints[20, joint(SKELETONS["t2m"], "LeftForeArm")]
    joints[40] = 0.0
    motion = rig_motion(joints, SKELETONS["t2m"])
    assert np.isfinite(motion.rotations).all() and np.allclose(np.linalg.norm(motion.rotations, axis=-1), 1)
    assert np.abs(np.delete(positions(motion) - joints, [20, 40], 0)).max() < 1e-9


def test_one_frame():
    joints, _ = figure("kit", 1, LeftUpLeg=("x", -40))
    assert np.abs(positions(rig_motion(joints, SKELETONS["kit"])) - joints).max() < 1e-9


@pytest.mark.parametrize("change, message", [
    (lambda joints: joints * 1000, "tall in a T-pose, so the joints are not in metres"),
    (lambda joints: joints * 0.01, "not in metres"),
    (lambda joints: joints[:, [*range(21), 19]], "from RightForeArm to RightHand has no length"),
])
def test_unusable_bodies_are_named(change, message):
    with pytest.raises(MotionError, match=message):
        rig_motion(change(figure("t2m")[0]), SKELETONS["t2m"])


@pytest.mark.parametrize("order", ["XYZ", "XZY", "YXZ", "YZX", "ZXY", "ZYX"])
def test_euler_angles_are_the_rotations_and_do_not_jump(order):
    """A walk through rotations, with gimbal lock of every order on its way."""
    axes = np.random.default_rng(3).normal(size=(3, 2, 3))
    steps = np.linspace(0, 1, 200)[:, None, None]
    turns = [Rotation.from_rotvec((axis * 2 * steps).reshape(-1, 3)) for axis in axes]
    random = (turns[0] * turns[1] * turns[2]).as_matrix().reshape(200, 2, 3, 3)
    spin = Rotation.from_euler("Y", np.linspace(0, 800, 200), degrees=True).as_matrix()[:, None]
    there_and_back = np.r_[np.linspace(0, 90, 91), np.full(18, 90), np.linspace(90, 0, 91)]
    triples = np.stack([np.full(200, 30), there_and_back, np.full(200, 20)], -1)
    locked = Rotation.from_euler(order, triples, degrees=True).as_matrix()[:, None]
    quaternions = continuous(from_matrices(np.concatenate([random, spin, locked], 1)))
    angles = to_euler(quaternions, order)
    for index in range(quaternions.shape[1]):
        again = Rotation.from_euler(order, angles[:, index], degrees=True).as_matrix()
        assert np.abs(again - to_matrices(quaternions[:, index])).max() < 1e-6
    assert np.abs(np.diff(angles[:, 2:], axis=0)).max() < 5
    assert np.abs(np.diff(angles, axis=0)).max() < 181
    assert np.abs(angles[:, 3] - triples).max() < 1e-3
    if order[1] != "Y":
        assert np.isclose(np.abs(angles[-1, 2]).max(), 800)


def test_quaternions_keep_their_side():
    turns = Rotation.from_euler("x", np.linspace(0, 1000, 90), degrees=True).as_quat(scalar_first=True)
    mixed = turns * np.where(np.random.default_rng(0).random(90) < 0.5, -1, 1)[:, None]
    kept = continuous(mixed[:, None])[:, 0]
    assert ((kept[1:] * kept[:-1]).sum(-1) > 0.99).all() and kept[0, 0] >= 0
    assert np.allclose(np.abs((kept * turns).sum(-1)), 1)
