"""Motion features against the reference's, and what holds for any motion: recovery, invariance, gradients."""
import json

import numpy as np
import pytest
import torch
from conftest import golden, relative_error

from utils.data.writing import average_std
from utils.errors import UserError
from utils.motion.features import (
    MotionError,
    essential,
    facing_joints,
    features_to_joints,
    features_to_standard,
    joints_to_features,
    recover_root,
    retarget,
    rotate_y,
)
from utils.motion.skeletons import SKELETONS

T2M, KIT = SKELETONS["t2m"], SKELETONS["kit"]


def figure(heading, path, skeleton=T2M, seed=0):
    """Joints (T, J, 3) of a body that swings its limbs, with ``heading`` (T,) and ``path`` (T, 2) of x, z."""
    rng = np.random.default_rng(seed)
    frames, time = len(heading), np.arange(len(heading))
    lengths = 0.1 + 0.3 * rng.random(skeleton.num_joints)
    if skeleton.target_offsets:
        lengths = np.abs(skeleton.target_offsets).sum(-1)
    joints = np.zeros((frames, skeleton.num_joints, 3))
    joints[:, 0] = [0, 0.95, 0]
    for parent, child in skeleton.bones:
        swing = 0.4 * rng.random() * np.sin((0.1 + 0.2 * rng.random()) * time)  # none at frame 0
        x, y, z = np.array(skeleton.raw_offsets[child]) * lengths[child]
        bone = np.stack([x + 0 * swing, y * np.cos(swing) - z * np.sin(swing),
                         y * np.sin(swing) + z * np.cos(swing)], -1)
        joints[:, child] = joints[:, parent] + bone
    return rotate_y(joints, heading[:, None]) + np.stack([path[:, 0], 0 * heading, path[:, 1]], -1)[:, None]


def circle(direction, turns=1.5, frames=150, skeleton=T2M):
    """A body on a circle of 1.5 m, to the left for direction 1, to the right for -1; it faces +Z first."""
    heading = direction * np.linspace(0, turns * 2 * np.pi, frames)
    path = 1.5 * direction * np.stack([1 - np.cos(heading), np.sin(heading)], -1)
    return figure(heading, path, skeleton)


def placed(joints, skeleton=T2M):
    """What recovery returns: the clip on the floor, from x = z = 0, facing +Z first, less its last frame."""
    right_hip, left_hip, right_shoulder, left_shoulder = joints[0, list(skeleton.face_joints)]
    across = right_hip - left_hip + right_shoulder - left_shoulder
    origin = joints[0, 0].copy()
    origin[1] = joints[..., 1].min()
    return rotate_y(joints - origin, -np.arctan2(across[2], -across[0]))[:-1]


# Against the reference


@pytest.mark.parametrize("file, skeleton, tolerance",
                         [("motion_t2m.npz", T2M, 1e-5), ("motion_kit.npz", KIT, 2e-4)])
def test_features_and_recovery_agree_with_the_reference(file, skeleton, tolerance):
    data = golden(file)
    features = joints_to_features(data["positions"], skeleton, data["target_offsets"])
    assert features.dtype == np.float32
    assert skeleton.feet_threshold == float(data["feet_threshold"])
    assert relative_error(features, data["features"]) <= tolerance
    assert relative_error(features_to_joints(data["features"], skeleton.num_joints),
                          data["recovered"]) <= tolerance
    dim = skeleton.essential_dim
    for columns in (slice(0, 1), slice(1, 3), slice(3, 4), slice(4, dim)):  # each on its own scale
        assert relative_error(features[:, columns], data["features"][:, columns]) <= tolerance


def test_sample_of_humanml3d():
    data = golden("sample_012314.npz")
    features = joints_to_features(data["joints"], T2M, T2M.target_offsets)
    assert relative_error(features[:100], data["features"][:100]) <= 1e-5  # later, smoothing lacks a frame
    assert relative_error(features_to_joints(data["features"], 22), data["joints"]) <= 1e-5


def test_target_offsets_are_humanml3ds():
    offsets = json.loads(golden("t2m_skeleton.json").read_text())["t2m_target_offsets"]
    assert np.array_equal(np.array(offsets), np.array(T2M.target_offsets))


@pytest.mark.parametrize("side, faulty", [("left", [35, 97]), ("right", [36, 104])])
def test_turns_agree_but_for_the_sign_fault(side, faulty):
    data = golden("motion_turns_t2m.npz")
    positions, reference = data[f"positions_{side}"], data[f"features_{side}"]
    features = joints_to_features(positions, T2M, data["target_offsets"])
    fault = np.abs(features[:, 0] - reference[:, 0]) > 1e-3
    assert np.flatnonzero(fault).tolist() == faulty
    assert np.allclose(features[fault, 0], -reference[fault, 0], atol=1e-5)
    scale = np.abs(reference).max()
    assert np.abs(features - reference)[~fault, 0].max() <= 1e-5 * scale
    # The reference's float32 roots are its machine's; where MKL rounds correctly, 1.5e-5 was seen.
    assert np.abs(features - reference)[:, 1:].max() <= 2e-5 * scale
    moved = retarget(positions.astype(np.float64), T2M, data["target_offsets"])
    assert np.abs(features_to_joints(features, 22) - placed(moved)).max() <= 1e-5
    assert np.abs(features_to_joints(reference, 22) - placed(moved)).max() > 0.05  # the fault is real


# What holds for any motion


@pytest.mark.parametrize("skeleton", [T2M, KIT], ids=["t2m", "kit"])
@pytest.mark.parametrize("direction", [1, -1], ids=["left", "right"])
def test_full_circles_come_back(direction, skeleton):
    joints = circle(direction, skeleton=skeleton)
    features = joints_to_features(joints, skeleton)
    assert features.shape == (len(joints) - 1, skeleton.feature_dim)
    assert np.abs(features_to_joints(features, skeleton.num_joints) - placed(joints, skeleton)).max() <= 1e-4


@pytest.mark.parametrize("direction", [1, -1], ids=["left", "right"])
def test_a_steady_turn_never_flips_its_sign(direction):
    features = joints_to_features(circle(direction, turns=3, frames=300), T2M)
    assert (np.sign(features[1:, 0]) == -direction).all()
    heading, _ = recover_root(features)
    assert heading[-1] * direction > 5 * np.pi  # left is positive, and all turns count


def test_place_and_heading_of_a_clip_do_not_matter():
    joints = circle(1, turns=0.4)
    moved = rotate_y(joints, np.float64(2.3)) + [3.0, -0.7, 5.0]
    assert np.allclose(joints_to_features(joints, T2M), joints_to_features(moved, T2M), atol=1e-6)


def test_first_frame_faces_forward_from_the_origin():
    joints = rotate_y(circle(1), np.float64(-2.0)) + [1.0, 0.5, 2.0]
    recovered = features_to_joints(joints_to_features(joints, T2M), 22)
    assert np.allclose(recovered[0, 0, [0, 2]], 0) and abs(recovered[..., 1].min()) < 1e-5
    assert recovered[0, 1, 0] > recovered[0, 2, 0]  # the left hip on the +X side
    assert recovered[0, 10, 2] > recovered[0, 7, 2] - 0.01  # toes before the ankle


def test_retargeting_keeps_directions_and_gives_the_bones():
    big = 1.7 * circle(1)
    small = retarget(big, T2M, T2M.target_offsets)
    for parent, child in T2M.bones:
        length = np.linalg.norm(small[:, child] - small[:, parent], axis=-1)
        assert np.allclose(length, np.linalg.norm(T2M.target_offsets[child]), rtol=2e-5)  # float32 rotations
    assert np.allclose(small * 1.7, big, atol=5e-6)  # the figure has the target's proportions
    small = joints_to_features(big / 1.7, T2M)
    error = np.abs(joints_to_features(big, T2M, T2M.target_offsets) - small).max(0)
    assert error[:67].max() < 5e-6 and error[193:].max() < 5e-6 and error[67:193].max() < 1e-4
    assert not np.allclose(joints_to_features(big, T2M), small, atol=1e-2)


def test_velocities_and_contacts():
    joints = figure(np.zeros(40), np.zeros((40, 2)))
    joints[:] = joints[:1]
    joints[:, :, 2] += np.arange(40)[:, None] * 0.1  # glides forward 0.1 m per frame
    joints[:, 10] = joints[0, 10]  # but for the left toe
    features = joints_to_features(joints, T2M)
    assert np.allclose(features[:, 1:3], [0, 0.1], atol=1e-6) and np.allclose(features[:, 0], 0, atol=1e-6)
    velocities = features[:, 193:259].reshape(-1, 22, 3)
    assert np.allclose(velocities[:, 5], [0, 0, 0.1], atol=1e-6)
    assert np.allclose(velocities[:, 10], 0, atol=1e-6)
    assert (features[:, 259:] == [0, 1, 0, 0]).all()  # left ankle, left toe, right ankle, right toe


def test_rotations_are_rotations_even_for_odd_bones():
    joints = circle(1)
    joints[:, 4] = joints[:, 1] + [0, 0.4, 0]  # the left thigh points against its axis
    joints[:, 15] = joints[:, 12]  # the head's bone has no length
    features = joints_to_features(joints, T2M, T2M.target_offsets)
    assert np.isfinite(features).all()
    a, b = np.moveaxis(features[:, 67:193].reshape(-1, 21, 2, 3), 2, 0)
    assert np.allclose((a * a).sum(-1), 1, atol=1e-5) and np.allclose((a * b).sum(-1), 0, atol=1e-5)


@pytest.mark.parametrize("heading", [0.0, np.pi / 2, np.pi, np.pi + 1e-5, np.pi - 1e-3, 3.0])
@pytest.mark.parametrize("tilt", [0.0, 1e-5, 1e-4, 1e-3, 1e-2])
def test_retargeting_bones_against_their_axis_and_bodies_that_look_back(heading, tilt):
    """Where single precision is least accurate, joints are still close to those of double precision."""
    upright = figure(np.zeros(30), np.zeros((30, 2)))
    body = upright.copy()
    thigh = np.linalg.norm(T2M.target_offsets[4]) * np.array([np.sin(tilt), np.cos(tilt), 0])
    body[:, 4] = body[:, 1] + thigh  # the knee is above the hip
    for joint in (7, 10):  # ankle and toe move along
        body[:, joint] = body[:, 4] + upright[:, joint] - upright[:, 4]
    joints = rotate_y(body, np.float64(heading))
    assert np.abs(retarget(joints, T2M, T2M.target_offsets) - joints).max() < 4e-4
    features = joints_to_features(joints, T2M, T2M.target_offsets)
    assert np.abs(features - joints_to_features(joints, T2M))[:, :67].max() < 1e-3
    assert np.abs(features_to_joints(features, 22) - placed(joints)).max() < 1e-3


# Recovery: shapes, libraries, gradients


@pytest.mark.parametrize("skeleton", [T2M, KIT], ids=["t2m", "kit"])
def test_torch_and_numpy_agree_in_batches(skeleton):
    features = np.stack([joints_to_features(circle(d, skeleton=skeleton), skeleton) for d in (1, -1)])
    joints = features_to_joints(features, skeleton.num_joints)
    assert joints.shape == (2, 149, skeleton.num_joints, 3) and joints.dtype == np.float32
    tensor = features_to_joints(torch.as_tensor(features), skeleton.num_joints)
    assert torch.is_tensor(tensor) and tensor.dtype == torch.float32
    assert np.allclose(tensor.numpy(), joints, atol=1e-5)
    assert np.allclose(features_to_joints(features[1], skeleton.num_joints), joints[1], atol=1e-6)
    short = features_to_joints(essential(features, skeleton), skeleton.num_joints)
    assert short.shape == joints.shape and np.array_equal(short, joints)
    heading, root = recover_root(features)
    assert heading.shape == (2, 149) and np.allclose(root, joints[:, :, 0], atol=1e-6)


def test_facing_joints_hold_neither_path_nor_heading():
    features = joints_to_features(circle(1), T2M)
    facing = facing_joints(features, 22)
    heading, root = recover_root(features)
    assert np.allclose(facing[:, 0], root * [0, 1, 0])
    world = rotate_y(facing, heading[:, None]) + (root * [1, 0, 1])[:, None]
    assert np.allclose(world, features_to_joints(features, 22), atol=1e-6)
    disturbed = features.copy()
    disturbed[10, :3] += 1
    assert np.array_equal(facing_joints(disturbed, 22), facing)
    assert np.allclose(facing_joints(torch.as_tensor(features), 22).numpy(), facing)


def test_gradients_reach_every_feature_that_recovery_reads():
    features = torch.as_tensor(joints_to_features(circle(1)[:8], T2M)[:, :67],
                               dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: features_to_joints(x, 22), (features,))
    (features_to_joints(features, 22) ** 2).sum().backward()
    assert (features.grad[:, 3:] != 0).any(0).all() and (features.grad[:-1, :3] != 0).all()


def test_standard_features_of_essential_ones():
    features = joints_to_features(circle(1), T2M)
    again = features_to_standard(features[:, :67], T2M)
    assert again.shape == (len(features) - 1, 263)
    assert np.abs(again - features[:-1])[:60].max() < 1e-4  # later, smoothing lacks a frame


# Skeletons, statistics, errors


def test_skeletons():
    assert (T2M.feature_dim, T2M.essential_dim, KIT.feature_dim, KIT.essential_dim) == (263, 67, 251, 64)
    assert T2M.parents == (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19)
    for skeleton in (T2M, KIT):
        assert len(skeleton.bones) == skeleton.num_joints - 1
        assert all(skeleton.side(joint) == "left" for joint in skeleton.left_feet)
        assert all(skeleton.side(joint) == "right" for joint in skeleton.right_feet)
    sides = {side: [joint for joint in range(22) if T2M.side(joint) == side]
             for side in ("left", "right", "centre")}
    assert sides == {"left": [1, 4, 7, 10, 13, 16, 18, 20], "right": [2, 5, 8, 11, 14, 17, 19, 21],
                     "centre": [0, 3, 6, 9, 12, 15]}


def test_std_is_averaged_within_groups():
    std = np.arange(263.0)
    out = average_std(std, T2M)
    edges = [0, 1, 3, 4, 67, 193, 259, 263]
    for start, end in zip(edges, edges[1:]):
        assert np.allclose(out[start:end], (start + end - 1) / 2)
    assert np.array_equal(std, np.arange(263.0))  # the argument is left alone


@pytest.mark.parametrize("joints, words", [
    (np.zeros((5, 21, 3)), "(5, 21, 3), expected (frames, 22, 3)"),
    (np.zeros((5, 66)), "expected (frames, 22, 3)"),
    (np.zeros((1, 22, 3)), "1 frames, expected 2"),
    (np.full((5, 22, 3), np.nan), "NaN"),
    (np.full((5, 22, 3), "a"), "expected numbers"),
])
def test_wrong_joints_are_refused(joints, words):
    with pytest.raises(MotionError) as error:
        joints_to_features(joints, T2M)
    assert words in str(error.value) and isinstance(error.value, UserError)


def test_too_few_columns_and_legless_sources_are_refused():
    with pytest.raises(MotionError, match="64 columns, expected 67"):
        features_to_joints(np.zeros((5, 64)), 22)
    with pytest.raises(MotionError, match="leg has no length"):
        joints_to_features(np.zeros((5, 22, 3)), T2M, T2M.target_offsets)
