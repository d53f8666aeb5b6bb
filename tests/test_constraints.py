"""What clips are held to: joints that stay the source's, a pose to begin in, a path on the floor."""
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from tiny import FAST, enter, fake_features, features_of, walk, write_checkpoints

import edit
import sample
from benchmarks import trajectories
from models.AE import AE_models
from models.chaining import continue_from
from models.guidance import descend, generate_towards
from utils.evaluation.metrics import foot_skating
from utils.motion.features import features_to_joints, rotate_y
from utils.motion.layering import joints_named, layer
from utils.motion.skeletons import SKELETONS
from utils.motion.sources import read_pose, start_in, whole_tokens
from utils.motion.trajectory import SWAY, Course, Trajectory, read_trajectory, skating

BODIES = {"body22": SKELETONS["t2m"], "body21": SKELETONS["kit"], "continuous": SKELETONS["t2m"],
          "millimetres": SKELETONS["kit"]}
TEXT = ["--text_prompt", "jump"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("constraints")
    for name, skeleton in BODIES.items():
        write_checkpoints(root, name, skeleton, ae_model="AE_Model" if name == "continuous" else
                          "FSQ_AE_High", unit=0.001 if name == "millimetres" else 1.0)
    return root


@pytest.fixture
def work(runs, tmp_path, monkeypatch):
    return enter(runs, tmp_path, monkeypatch)


def call(script, dataset, *args):
    """Exit code of a script, and the clips that its folder holds then."""
    code = tiny.call(script.__name__, "--name", "mardm", "--dataset_name", dataset, *FAST, "--no_video",
                     *args)
    files = sorted(Path("generation").glob("*/*.npy"))
    return code, [np.load(file) for file in files]


def pipeline_of(dataset):
    names = dict(checkpoints_dir="checkpoints", name="mardm", ae_name=None, model=None, ae_model=None)
    pipeline, _, spec = sample.load(SimpleNamespace(dataset_name=dataset, device="cpu", **names))
    return pipeline, spec


def bones(joints, skeleton):
    return {bone: joints[:, bone[1]].astype(float) - joints[:, bone[0]] for bone in skeleton.bones}


def angles(joints, among):
    """Scalar products (T, n, n) of bones: they say lengths and angles, wherever the limb is."""
    vectors = np.stack([joints[:, child] - joints[:, parent] for parent, child in among], 1).astype(float)
    return vectors @ vectors.swapaxes(1, 2)


def elbow(joints, skeleton, hand):
    """Cosine (T,) of the angle between upper arm and forearm."""
    joint = skeleton.parents[hand]
    upper = bones(joints, skeleton)[skeleton.parents[joint], joint]
    lower = bones(joints, skeleton)[joint, hand]
    return (upper * lower).sum(-1) / np.linalg.norm(upper, axis=-1) / np.linalg.norm(lower, axis=-1)


# Kept joints.

def test_the_parts_of_the_body():
    for name, arm, head in (("t2m", [13, 16, 18, 20], [12, 15]), ("kit", [8, 9, 10], [4])):
        parts = SKELETONS[name].body_parts
        assert sorted(parts["left_arm"]) == arm and sorted(parts["head"]) == head
        assert sorted(parts["upper_body"] + parts["lower_body"]) == list(range(SKELETONS[name].num_joints))
        sides = {SKELETONS[name].side(joint) for joint in parts["right_leg"] + parts["right_arm"]}
        assert sides == {"right"}


@pytest.mark.parametrize("name", ["t2m", "kit"])
@pytest.mark.parametrize("parts", [["left_arm"], ["right_leg", "head"], ["upper_body"], ["LeftHand"]])
def test_limbs_are_kept_relative_to_the_body(name, parts):
    skeleton = SKELETONS[name]
    source, new = walk(skeleton, 50), walk(skeleton, 50, curve=-0.03, speed=0.06, seed=1)
    kept = joints_named(parts, skeleton, "--keep_joints")
    out = layer(source, new, kept, skeleton)
    assert np.array_equal(out[:, ~kept], new[:, ~kept]) and out.dtype == new.dtype
    for part in parts:
        limb = joints_named([part], skeleton, "--keep_joints")
        if part == "LeftHand":  # the elbow bends as in the source
            hand = skeleton.joint_names.index(part)
            bend, wanted, free = (elbow(clip, skeleton, hand) for clip in (out, source, new))
            assert np.abs(bend - wanted).max() < 1e-4 < 0.03 < np.abs(free - wanted).max()
        else:
            inside = [bone for bone in skeleton.bones if limb[bone[1]] and (limb[bone[0]] or part == "head")]
            inside = inside[:1] if part == "head" else inside
            assert np.abs(angles(out, inside) - angles(source, inside)).max() < 1e-6
    assert np.abs(out[:, kept] - new[:, kept]).max() > 0.03
    assert np.array_equal(layer(source, source, kept, skeleton), source)
    # moved and turned as a whole, the source's limb is the same
    moved = (rotate_y(source.astype(float), np.full((50, 1), 1.3)) + [5, 0, -3]).astype(np.float32)
    assert np.abs(layer(moved, new, kept, skeleton) - out).max() < 1e-4


@pytest.mark.parametrize("name, dtype", [("t2m", np.float32), ("kit", np.float32), ("t2m", np.float64)])
def test_the_lower_body_stays_in_the_world(name, dtype):
    skeleton = SKELETONS[name]
    source = walk(skeleton, 50).astype(dtype)
    source -= source[:, 4:5] * dtype(0.9999)
    # near 0 and with all digits, where sums are not exact by luck
    source *= np.random.default_rng(0).uniform(0.99, 1.01, source.shape).astype(dtype)
    new = walk(skeleton, 50, curve=-0.03, seed=1).astype(dtype)
    kept = joints_named(["lower_body"], skeleton, "--keep_joints")
    out = layer(source, new, kept, skeleton)
    assert np.array_equal(out[:, kept], source[:, kept])
    above = [bone for bone in skeleton.bones if not kept[bone[1]]]
    assert np.abs(angles(out, above) - angles(new, above)).max() < 1e-6
    # the trunk goes and looks where the hips do
    spine = [bone for bone in above if bone[0] == 0]
    heights = [np.stack([bones(clip, skeleton)[bone][:, 1] for bone in spine]) for clip in (out, new)]
    assert np.abs(heights[0] - heights[1]).max() < 1e-5


def test_an_arm_goes_with_the_chest_and_a_leg_stays_upright():
    """New: the source, but bent forward by 60 degrees above the hips."""
    skeleton = SKELETONS["t2m"]
    source = walk(skeleton, 20, curve=0, speed=0)
    turn = np.radians(60)
    new = rotate_y(source - source[:, :1], np.float64(-0.7))
    upper = list(skeleton.body_parts["upper_body"])
    y, z = new[:, upper, 1].copy(), new[:, upper, 2].copy()
    new[:, upper, 1] = y * np.cos(turn) - z * np.sin(turn)
    new[:, upper, 2] = y * np.sin(turn) + z * np.cos(turn)
    kept = joints_named(["left_arm", "right_leg"], skeleton, "--keep_joints")
    assert np.abs(layer(source, new, kept, skeleton) - new).max() < 1e-3


@pytest.mark.parametrize("dataset", BODIES)
def test_edit_keeps_joints(work, dataset):
    source, skeleton = walk(BODIES[dataset], 40), BODIES[dataset]
    np.save("clip.npy", source)
    flags = ["--source_motion", "clip.npy", "-msec", "10,30", *TEXT]
    code, (whole,) = call(edit, dataset, *flags)
    again, clips = call(edit, dataset, *flags, "--keep_joints", "lower_body", "LeftHand")
    assert code == again == 0 and len(clips) == 2
    file, = (work / "generation").glob("*/*keep_lower_body_lefthand_r0.npy")
    out, inside = np.load(file), (np.arange(40) >= 10) & (np.arange(40) < 30)
    kept = joints_named(["lower_body"], skeleton, "")
    assert np.array_equal(out[~inside], source[~inside])
    assert np.array_equal(out[:, kept], source[:, kept])
    assert not np.array_equal(whole[:, kept], source[:, kept])
    assert (np.abs(out - source)[inside][:, ~kept].max((1, 2)) > 1e-4).all()
    assert json.loads(file.with_suffix(".json").read_text())["kept"] == ["lower_body", "LeftHand"]


def test_clean_feet_leave_kept_legs(work, monkeypatch):
    from test_feet import sliding, standing

    source = sliding(standing(SKELETONS["t2m"]))
    np.save("clip.npy", source)
    monkeypatch.setattr(edit, "replace_frames", lambda joints, *_: joints.copy())
    _, (out,) = call(edit, "body22", "--source_motion", "clip.npy", "-msec", "0.0,1.0", *TEXT, "--clean_feet",
                     "--keep_joints", "left_leg")
    left, right = SKELETONS["t2m"].legs
    assert np.array_equal(out[:, left], source[:, left])
    assert not np.array_equal(out[:, right], source[:, right])


@pytest.mark.parametrize("names, message", [
    (["left_arn"], "--keep_joints left_arn: unknown; the t2m skeleton has the parts left_arm"),
    (["LeftToeEnd"], "--keep_joints LeftToeEnd: unknown"),  # of the other skeleton
    (["upper_body", "lower_body"], "nothing is left to change"),
])
def test_joints_that_cannot_be_kept(work, capsys, names, message):
    np.save("clip.npy", walk(SKELETONS["t2m"], 40))
    flags = ["--source_motion", "clip.npy", "-msec", "10,30", *TEXT, "--keep_joints", *names]
    assert call(edit, "body22", *flags) == (2, [])
    check_line(capsys, message)


def check_line(capsys, message):
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and len(err.strip().splitlines()) == 1, err


# A pose to begin in.

@pytest.mark.parametrize("dataset", BODIES)
@pytest.mark.parametrize("frame", [None, 0, 2, 21])
def test_clips_begin_in_the_pose(work, dataset, frame):
    source, skeleton = walk(BODIES[dataset], 40), BODIES[dataset]
    np.save("clip.npy", source)
    where = "clip.npy" if frame is None else f"clip.npy@{frame}"
    code, clips = call(sample, dataset, "--text_prompt", "jump", "sit down", "--motion_length", 44,
                       "--start_pose", where)
    assert code == 0 and len(clips) == 2 and not np.array_equal(*clips)
    pose = source[-1 if frame is None else frame]
    for out in clips:
        assert len(out) == 44 and np.array_equal(out[0], pose)
        if dataset != "millimetres":  # where the untrained generator whirls about
            assert np.abs(out[1] - out[0]).max() < 0.2  # nothing jumps
        for parent, child in skeleton.bones:
            length = np.linalg.norm(out[:, child] - out[:, parent], axis=-1)
            assert np.ptp(length) < 1e-4
    file = next((work / "generation").glob("*/*.json"))
    assert json.loads(file.read_text())["start_pose"] == where


def test_what_came_before_is_known(work):
    """The last token before the pose is the generator's, and the decoder sees those before it too."""
    pipeline, spec = pipeline_of("body22")
    before = features_of(walk(SKELETONS["t2m"], 40), SKELETONS["t2m"])[:36]
    made, = continue_from(pipeline, before, torch.ones(1, 16), [8], [0], time_steps=2, ode_steps=1, cfg=1.0)
    motion = torch.from_numpy(before)[None]
    targets = pipeline.ae.snap(pipeline.ae.encode_targets((motion - pipeline.mean) / pipeline.std)[1])
    alone, = pipeline.decode(targets, torch.tensor([36]))
    assert made.shape == (12, 67) and (made[0] - alone[32]).abs().max() < (made[0] - alone[0]).abs().max()
    other, = continue_from(pipeline, before[-4:], torch.ones(1, 16), [8], [0], time_steps=2, ode_steps=1,
                           cfg=1.0)
    assert not torch.allclose(made, other)


def test_clips_of_several_lengths_do_not_depend_on_each_other(work):
    pipeline, _ = pipeline_of("body22")
    before = features_of(walk(SKELETONS["t2m"], 20), SKELETONS["t2m"])
    settings = dict(time_steps=2, ode_steps=1, cfg=2.0)
    both = continue_from(pipeline, before, torch.eye(16)[:2], [24, 8], [5, 6], **settings)
    alone, = continue_from(pipeline, before, torch.eye(16)[1:2], [8], [6], **settings)
    assert [len(clip) for clip in both] == [28, 12] and torch.allclose(both[1], alone, atol=1e-5)


def test_few_frames_before_the_pose_are_filled_up():
    rows = np.arange(30, dtype=np.float32).reshape(3, 10) + 1
    full = whole_tokens(rows, 4)
    assert np.array_equal(full[1:], rows)
    assert not full[0, :3].any() and np.array_equal(full[0, 3:], rows[0, 3:])
    assert np.array_equal(whole_tokens(np.arange(10)[:, None], 4)[:, 0], np.arange(2, 10))


def test_the_motion_goes_on_from_where_it_was(work):
    """A clip that is cut and gets its own rest back is the clip again."""
    _, spec = pipeline_of("body22")
    source = walk(SKELETONS["t2m"], 60)
    np.save("clip.npy", source)
    joints, features = read_pose("clip.npy@19", spec)
    out = start_in(joints, features, features_of(source, SKELETONS["t2m"])[19:], spec)
    assert np.abs(out - source[19:]).max() < 2e-3


@pytest.mark.parametrize("where, flags, message", [
    ("none.npy", [], "--start_pose: no file none.npy"),
    ("clip.npy@40", [], "the clip has frames 0 to 39"),
    ("clip.npy@-41", [], "the clip has frames 0 to 39"),
    ("clip.npy@end", [], "write CLIP.npy or CLIP.npy@FRAME"),
    ("kit.npy", [], "--start_pose: kit.npy has shape (40, 21, 3)"),
    ("nan.npy@3", [], "holds NaN"),
    ("short.npy", [], "has 3 frames, outside 4.."),
    ("clip.npy", ["--chain"], "leave out --chain"),
    ("clip.npy", ["--trajectory", "path.csv"], "not both"),
    ("clip.npy", ["--motion_length", "196"], "a length of 196 frames is outside 4..192"),
])
def test_poses_that_cannot_be_used(work, capsys, where, flags, message):
    clip = walk(SKELETONS["t2m"], 40)
    np.save("clip.npy", clip)
    np.save("short.npy", clip[:3])
    np.save("kit.npy", walk(SKELETONS["kit"], 40))
    np.save("nan.npy", np.where(np.arange(40)[:, None, None] == 3, np.nan, clip))
    length = [] if "--motion_length" in flags else ["--motion_length", 40]
    assert call(sample, "body22", *TEXT, "--start_pose", where, *length, *flags) == (2, [])
    check_line(capsys, message)


# A path on the floor.

ARC = "seconds,x,z\n0,1,2\n1,1.2,2.6\n2.05,1.6,3.1\n"


def arc(frames=40, heading=None, fps=20.0):
    angle = np.linspace(0, 1.2, frames)
    return Trajectory(np.stack([3 - np.cos(angle), 4 + np.sin(angle)], -1), heading, fps)


def free_features(spec, frames=40, seed=0):
    joints = walk(spec.layout, frames, curve=0, speed=0.03, seed=seed) / spec.metres_per_unit
    return torch.from_numpy(features_of(joints, spec.layout))


def test_the_file_is_interpolated(work):
    (work / "path.csv").write_text("Frame, x ,z,note,heading\n10,0,0,,350\n20,1,0,,10\n\n30,1,2,,30\n")
    path = read_trajectory("path.csv", 20, 4, 196)
    assert len(path) == 20 and np.allclose(path.positions[[0, 5, 10, 15]], [[0, 0], [.5, 0], [1, 0], [1, 1]])
    assert np.allclose(np.degrees(path.heading[[0, 5, 10, 15]]) % 360, [350, 0, 10, 20])
    (work / "path.csv").write_text("\ufeffseconds,x,z\n2,0,0\n4,2,0\n", encoding="utf-8")
    path = read_trajectory("path.csv", 12.5, 4, 196)
    assert len(path) == 24 and path.heading is None and np.allclose(path.positions[10], [0.8, 0])
    assert np.allclose(path.travel(), np.pi / 2)
    assert np.array_equal(Trajectory(np.ones((8, 2)), None, 20).travel(), np.zeros(8))


@pytest.mark.parametrize("dataset", ["body22", "millimetres"])
def test_the_clip_is_put_on_the_path(work, dataset):
    """Exact but for what is quicker than the path: here the free clip glides straight on."""
    _, spec = pipeline_of(dataset)
    features = free_features(spec)
    turn = np.radians(np.linspace(20, 80, 40))
    for heading in (None, turn):
        path = arc(heading=heading, fps=spec.fps)
        course = Course(path, spec, features[None])
        joints = course.place(features, 0)
        away = np.linalg.norm(joints[:, 0, [0, 2]] - path.positions, axis=-1)
        assert away.max() < 0.03 and away[[0, -1]].max() < 1e-5 and joints.dtype == np.float32
        right_hip, left_hip, *_ = spec.layout.face_joints
        across = joints[:, left_hip] - joints[:, right_hip]
        looks = np.arctan2(-across[:, 2], across[:, 0])
        wanted = path.travel()[0] if heading is None else turn
        assert np.abs(np.sin(looks - wanted)).max() < 0.35
        # height and pose are the clip's
        assert np.allclose(joints[:, :, 1], features_to_joints(features.numpy(), spec.joints)[:, :, 1]
                           * spec.metres_per_unit, atol=1e-5)


def test_who_walks_backward_goes_backward_along_the_path(work):
    _, spec = pipeline_of("body22")
    ahead = free_features(spec)
    back, still = ahead.clone(), ahead.clone()
    back[:, 1:3] *= -1
    still[:, 1:3] *= 0
    course = Course(arc(), spec, torch.stack([ahead, back, still]))
    assert np.allclose(course.heading[0], course.heading[2], atol=0.2)
    assert np.allclose(np.cos(course.heading[1] - course.heading[0]), -1, atol=0.05)
    assert course.path[0, -1, 2] > 0.5 and course.path[1, -1, 2] < -0.5


def test_the_loss_knows_path_heading_and_feet(work):
    _, spec = pipeline_of("body22")
    features = free_features(spec)[None]
    straight = Trajectory(np.stack([np.zeros(40), 0.03 * np.arange(40)], -1), np.zeros(40), spec.fps)
    course = Course(straight, spec, features)
    features.requires_grad_()
    rest = course.loss(features) - 0.3 * skating(features, spec)
    assert rest < 0.01
    faster, turned = features.detach().clone(), features.detach().clone()
    faster[..., 2] *= 2
    turned[..., 0, 0] += 0.5  # a quarter to a third of a turn in the first frame
    assert course.loss(faster) > 0.1 and course.loss(turned) > 0.1
    gradient, = torch.autograd.grad(course.loss(features).sum(), features)
    assert torch.isfinite(gradient).all() and gradient[..., :3].abs().max() > 0


def test_skating_is_that_of_the_metric(work):
    from test_feet import sliding, standing

    _, spec = pipeline_of("body22")
    clip = sliding(standing(SKELETONS["t2m"]), speed=0.1)
    slides = skating(torch.from_numpy(features_of(clip, SKELETONS["t2m"]))[None], spec)
    still = skating(torch.from_numpy(features_of(standing(SKELETONS["t2m"]), SKELETONS["t2m"]))[None], spec)
    assert still < 1e-4 and 0.5 < slides.sqrt() / foot_skating(clip, 20, SKELETONS["t2m"]) < 2


@pytest.mark.parametrize("ae_name", ["AE_Model", "FSQ_AE_High", "FSQ_AE_Residual", "VQ_AE_EMA", "VQ_AE_RVQ",
                                     "VQ_AE_Gumbel_Soft"])
def test_targets_go_down_through_every_decoder(ae_name):
    torch.manual_seed(0)
    ae = AE_models[ae_name](width=16, latent_dim=16, depth=1).eval()
    targets = ae.snap(torch.randn(2, 6, ae.target_dim))
    wanted = ae.decode_targets(ae.snap(torch.randn(2, 6, ae.target_dim))).detach()
    free = (ae.decode_targets(targets) - wanted).square().mean((1, 2)).detach()

    def loss(points, rows=slice(None)):
        return (ae.decode_targets(points) - wanted[rows]).square().mean((1, 2)) / free[rows]

    moved = descend(loss, targets, 12)
    assert (loss(moved) < 0.95).all()
    alone = descend(partial(loss, rows=slice(1, 2)), targets[1:], 12)
    assert torch.allclose(moved[1:], alone, atol=1e-4)
    assert all(parameter.grad is None for parameter in ae.parameters())


@pytest.mark.parametrize("dataset", ["body21", "continuous"])
def test_generation_nears_the_goal(work, dataset, monkeypatch):
    monkeypatch.setattr("models.guidance.STEPS", (5, 20))
    pipeline, spec = pipeline_of(dataset)
    pipeline.std[1:3] *= 30  # an untrained decoder hardly moves
    goal = partial(Course, arc(fps=spec.fps), spec)
    settings = dict(time_steps=4, ode_steps=1, cfg=2.0)
    lengths = torch.full((2,), 10)
    targets = pipeline.generator.generate(pipeline.ae, torch.eye(16)[:2], lengths, [1, 2], **settings)
    free = torch.stack(pipeline.decode(targets, lengths * 4))
    course, made = generate_towards(pipeline, goal, torch.eye(16)[:2], 40, [1, 2], **settings)
    assert (course.loss(torch.stack(made)) < 0.8 * course.loss(free)).all()
    _, alone = generate_towards(pipeline, goal, torch.eye(16)[1:2], 40, [2], **settings)
    assert torch.allclose(alone[0], made[1], atol=1e-2)


@pytest.mark.parametrize("dataset", ["body22", "millimetres"])
def test_sample_follows_a_trajectory(work, dataset, monkeypatch, capsys):
    monkeypatch.setattr("models.guidance.STEPS", (2, 2))
    (work / "path.csv").write_text(ARC)
    code, clips = call(sample, dataset, *TEXT, "--repeat_times", 2, "--trajectory", "path.csv")
    assert code == 0 and len(clips) == 2 and not np.array_equal(*clips)
    for out in clips:
        assert len(out) == 40 and np.abs(out[[0, -1]][:, 0, [0, 2]] - [[1, 2], [1.56, 3.05]]).max() < 0.4
    file = next((work / "generation").glob("*/*.json"))
    facts = json.loads(file.read_text())
    assert facts["trajectory"] == "path.csv" and facts["codes"] is None
    for text, there in ((ARC.replace("\n", "\r\n"), True), (ARC.replace("3.1", "3.2"), False)):
        (work / "path.csv").write_text(text)  # the same path in other bytes, and another path
        capsys.readouterr()
        assert call(sample, dataset, *TEXT, "--repeat_times", 2, "--trajectory", "path.csv")[0] == 0
        assert ("2 of 2 clips were there" in capsys.readouterr().err) == there


@pytest.mark.parametrize("text, message", [
    (None, "--trajectory: no file path.csv"),
    ("", "has no column seconds or frame"),
    ("seconds,x\n0,0\n1,1\n", "has no column z"),
    ("x,z\n0,0\n1,1\n", "has no column seconds or frame"),
    ("seconds,x,z\n0,0,0\n", "has 1 rows; a path needs two or more"),
    ("seconds,x,z\n0,0,0\n1,,1\n2,0,2\n", "path.csv line 3: x is '', not a number"),
    ("seconds,x,z\n0,0,0\n1,1\n", "line 3: z is '', not a number"),
    ("seconds,x,z\n0,0,0\n1,nan,1\n", "line 3: x is 'nan'"),
    ("seconds,x,z\n0,0,0\n1,inf,1\n", "line 3: x is 'inf'"),
    ("seconds,x,z\n0,0,0\n2,0,1\n1,0,2\n", "line 4: seconds must grow"),
    ("frame,x,z\n0,0,0\n20,0,1\n20,0,2\n", "line 4: frame must grow"),
    ("seconds,x,z\n0,0,0\n1,0,1\n2,9,1.5\n", "line 4: 9.0 m/s is faster than a person"),
    ("seconds,x,z\n0,0,0\n0.1,0,0.1\n", "3 frames; a clip has 4..196"),
    ("seconds,x,z\n0,0,0\n10,0,9\n", "lasts 10 s, 201 frames; a clip has 4..196"),
    (b"\xff\xfe\x00", "is not a .csv file in UTF-8"),
])
def test_trajectories_that_cannot_be_used(work, capsys, text, message):
    if text is not None:
        (work / "path.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert call(sample, "body22", *TEXT, "--trajectory", "path.csv") == (2, [])
    check_line(capsys, message)


@pytest.mark.parametrize("flags, message", [
    ([*TEXT, "--motion_length", 40], "leave out --motion_length"),
    ([*TEXT, "--chain"], "leave out --chain"),
    (["--text_path", "prompts.txt"], "leave out the #frames"),
])
def test_trajectories_set_the_length(work, capsys, flags, message):
    (work / "path.csv").write_text(ARC)
    (work / "prompts.txt").write_text("jump#40\n")
    assert call(sample, "body22", "--trajectory", "path.csv", *flags) == (2, [])
    check_line(capsys, message)


def test_the_sway_of_the_gait_stays(work):
    """What swings quicker than SWAY stays in the path, what is slower goes."""
    _, spec = pipeline_of("body22")
    frames = 80
    line = Trajectory(np.stack([np.zeros(frames), 0.03 * np.arange(frames)], -1), np.zeros(frames), spec.fps)
    for seconds, most in ((0.4 * SWAY * 2 * np.pi, (0.9, 1.1)), (4 * SWAY * 2 * np.pi, (0, 0.1))):
        features = free_features(spec, frames)
        features[:, :3] = 0
        step = np.diff(np.sin(np.arange(frames + 1) / spec.fps * 2 * np.pi / seconds) * 0.05)
        features[:, 1], features[:, 2] = torch.from_numpy(step), 0.03
        away = Course(line, spec, features[None]).place(features, 0)[:, 0, 0]
        assert most[0] < np.abs(away[20:-20]).max() / 0.05 < most[1]


def test_the_benchmark_of_paths(work, monkeypatch):
    monkeypatch.setattr("models.guidance.STEPS", (2, 2))
    pipeline, spec = pipeline_of("body22")
    row = ("walk", "sit_down", "a line", trajectories.straight(0.5), None)
    found = trajectories.measure(pipeline, spec, dict(cfg=2.0, time_steps=2, ode_steps=1), row,
                                 fake_features(["a", "bc"]), [1, 2], 40)
    assert found["clips"] == 2 and found["passed"] == {"free": 0, "guided": 0}
    assert found["after"][0] < found["before"][0] < found["before"][1]  # the root is moved onto the path
    assert set(found["skating"]) == set(found["jerk"]) == {"free", "forced", "guided"}
    text = trajectories.table([found])
    assert "walk, a line" in text and f"{found['before'][1]:.0f}" in text
    line = Trajectory(np.stack([np.zeros(40), np.linspace(0, 2, 40)], -1), None, 20.0)
    joints = trajectories.forced(line, free_features(spec), spec)
    assert np.allclose(joints[[0, -1], 0][:, [0, 2]], line.positions[[0, -1]], atol=1e-5)
