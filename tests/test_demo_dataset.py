"""The demo data set: people move like people and do what labels and captions say; a seed fixes it all."""
import json
import re
from collections import Counter

import numpy as np
import pytest

from utils.data.datasets import load_statistics, read_captions
from utils.data.specs import get_spec
from utils.demo.actions import ACTIONS
from utils.demo.captions import PHRASES, captions_of, tokens_of
from utils.demo.dataset import MAX_FRAMES, MIN_FRAMES, build_demo, make_clip, perform, plan, split_clips
from utils.demo.grammar import COUNTERCLOCKWISE
from utils.errors import UserError
from utils.motion.features import features_to_joints, joints_to_features
from utils.motion.skeletons import SKELETONS

T2M = SKELETONS["t2m"]
NUM_CLIPS = 80
SEEDS = range(4)


def canonical(joints):
    """The clip on the floor, from the origin, facing +Z at first (as the features have it)."""
    joints = joints.astype(np.float64)
    joints[..., 1] -= joints[..., 1].min()
    joints[..., [0, 2]] -= joints[0, 0, [0, 2]]
    across = joints[0, 1] - joints[0, 2] + joints[0, 16] - joints[0, 17]
    cos, sin = np.array([across[0], across[2]]) / np.hypot(across[0], across[2])
    x, z = joints[..., 0].copy(), joints[..., 2].copy()
    joints[..., 0], joints[..., 2] = cos * x + sin * z, cos * z - sin * x
    return joints


def clips(action):
    number = list(ACTIONS).index(action)
    return [canonical(make_clip([action], np.random.default_rng([seed, number]))) for seed in SEEDS]


def net_turn(joints):
    """Degrees turned to the left over the clip, by the hips."""
    across = joints[:, 1] - joints[:, 2]
    heading = np.unwrap(np.arctan2(-across[:, 2], across[:, 0]))
    return np.degrees(heading[-1] - heading[0])


def top_speed(joints):
    """Metres per second over the floor, in the fastest second of the clip."""
    moved = np.linalg.norm(np.diff(joints[:, 0, [0, 2]], axis=0), axis=-1)
    return np.convolve(moved, np.ones(20), "valid").max()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "demo"
    build_demo(root, num_clips=NUM_CLIPS, seed=3)
    return root


def test_layout(demo):
    names = [f"{i:06d}" for i in range(NUM_CLIPS)]
    labels = json.loads((demo / "labels.json").read_text())
    assert sorted(labels) == names
    splits = {split: (demo / f"{split}.txt").read_text().split() for split in ("train", "val", "test")}
    assert [len(splits[s]) for s in ("train", "val", "test")] == [64, 4, 12]
    assert sorted(sum(splits.values(), [])) == names
    for name in names:
        features = np.load(demo / "new_joint_vecs" / f"{name}.npy")
        assert features.dtype == np.float32 and features.shape[1] == 263 and np.isfinite(features).all()
        assert MIN_FRAMES <= len(features) <= MAX_FRAMES
        captions, problem = read_captions(demo / "texts" / f"{name}.txt")
        assert problem is None and len({caption.text for caption, _ in captions}) == 3
        assert all(tags == (0.0, 0.0) and caption.tokens for caption, tags in captions)
    assert {action for label in labels.values() for action in label["actions"]} == set(ACTIONS)
    assert sum(len(label["actions"]) == 2 for label in labels.values()) == NUM_CLIPS // 4
    assert not demo.with_name("demo.partial").exists()


def test_reads_as_a_data_set(demo):
    spec = get_spec("demo", demo.parent)
    assert (spec.skeleton, spec.fps, spec.min_frames, spec.max_frames) == ("t2m", 20.0, 40, 199)
    assert spec.text_encoder == "minilm"
    mean, std = load_statistics(spec)
    train = [np.load(demo / "new_joint_vecs" / f"{name}.npy")
             for name in (demo / "train.txt").read_text().split()]
    np.testing.assert_allclose(mean, np.concatenate(train).mean(0)[:67], atol=1e-4)
    plain = np.concatenate(train).astype(np.float64).std(0)
    for start, stop in ((0, 1), (1, 3), (3, 4), (4, 67)):
        np.testing.assert_allclose(std[start:stop], plain[start:stop].mean(), rtol=1e-4)


def test_same_seed_same_files_and_no_two_clips_alike(demo, tmp_path):
    build_demo(tmp_path / "demo", num_clips=12, seed=3)
    build_demo(tmp_path / "again", num_clips=12, seed=3)
    build_demo(tmp_path / "other", num_clips=12, seed=4)
    for file in sorted(p.relative_to(tmp_path / "demo") for p in (tmp_path / "demo").rglob("*.*")):
        assert (tmp_path / "demo" / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
    first = [np.load(tmp_path / name / "new_joint_vecs" / "000000.npy") for name in ("demo", "other")]
    assert first[0].shape != first[1].shape or not np.allclose(*first)
    starts = np.stack([np.load(path)[:MIN_FRAMES] for path in sorted((demo / "new_joint_vecs").iterdir())])
    distance = np.abs(starts[:, None, :, :67] - starts[None, :, :, :67]).max((2, 3))
    assert distance[~np.eye(len(starts), dtype=bool)].min() > 0.02


def test_an_interrupted_build_leaves_nothing_and_an_old_one_is_kept(tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt
    monkeypatch.setattr("utils.demo.dataset.captions_of", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_demo(tmp_path / "demo", num_clips=4)
    assert not (tmp_path / "demo").exists()
    monkeypatch.undo()
    build_demo(tmp_path / "demo", num_clips=4)  # what the first build left behind is not in the way
    with pytest.raises(UserError, match="exists already"):
        build_demo(tmp_path / "demo", num_clips=4)


@pytest.mark.parametrize("action", ACTIONS)
def test_bodies_move_like_bodies(action):
    for joints in clips(action):
        assert np.isfinite(joints).all() and MIN_FRAMES < len(joints) <= MAX_FRAMES + 1
        parents, children = zip(*T2M.bones)
        length = np.linalg.norm(joints[:, children] - joints[:, parents], axis=-1)
        assert np.ptp(length, axis=0).max() < 1e-5
        assert 1.4 < joints[:, 15, 1].max() < 2.3
        speed = np.linalg.norm(np.diff(joints, axis=0), axis=-1) * 20
        assert speed.max() < 12  # no joint jumps from one frame to the next
        for toe, ankle in ((10, 7), (11, 8)):
            planted = np.maximum(joints[1:, toe, 1], joints[:-1, toe, 1]) < 0.01
            assert speed[planted, toe].mean() < 0.05
            assert joints[:, ankle, 1].min() > 0.03
        assert joints[:, 4:6, 1].min() > 0.02  # a kneeling knee rests on the floor, not in it


@pytest.mark.parametrize("action", ["walk_forward", "run_forward", "squat", "sit_down", "jump", "bow",
                                    "kick_left"])
def test_knees_and_elbows_bend_the_right_way(action):
    for joints in clips(action):
        ahead = np.cross(joints[:, 1] - joints[:, 2], [0.0, 1.0, 0.0])
        for hip, knee, ankle in ((1, 4, 7), (2, 5, 8)):
            middle = 0.5 * (joints[:, hip] + joints[:, ankle])
            upright = joints[:, hip, 1] - joints[:, ankle, 1] > 0.3
            assert (((joints[:, knee] - middle) * ahead).sum(-1)[upright] > -0.005).all()
        for shoulder, elbow, wrist in ((16, 18, 20), (17, 19, 21)):
            upper, fore = joints[:, elbow] - joints[:, shoulder], joints[:, wrist] - joints[:, elbow]
            cosine = (upper * fore).sum(-1) / np.linalg.norm(upper, axis=-1) / np.linalg.norm(fore, axis=-1)
            assert np.degrees(np.arccos(cosine)).max() < 150


@pytest.mark.parametrize("side, sign", [("left", 1), ("right", -1)])
@pytest.mark.parametrize("degrees, tolerance", [(90, 10), (180, 12), (360, 15)])
def test_turns(side, sign, degrees, tolerance):
    for joints in clips(f"turn_{side}_{degrees}"):
        assert abs(sign * net_turn(joints) - degrees) <= tolerance
        assert np.linalg.norm(joints[:, 0, [0, 2]], axis=-1).max() < 0.2


@pytest.mark.parametrize("side, sign", [("left", 1), ("right", -1)])
def test_curves_circles_and_side_steps(side, sign):
    assert all(60 <= sign * net_turn(joints) <= 150 for joints in clips(f"walk_curve_{side}"))
    assert all(330 <= sign * net_turn(joints) <= 390 for joints in clips(f"walk_circle_{side}"))
    for joints in clips(f"walk_{side}"):
        assert sign * joints[-1, 0, 0] > 0.9 and abs(joints[-1, 0, 2]) < 0.1 and abs(net_turn(joints)) < 5


@pytest.mark.parametrize("action, low, high", [
    ("walk_slow", 0.35, 0.62), ("walk_forward", 0.75, 1.27), ("walk_fast", 1.45, 2.0),
    ("run_forward", 2.1, 3.4)])
def test_speeds_are_those_of_the_action(action, low, high):
    for joints in clips(action):
        assert low < top_speed(joints) < high and joints[-1, 0, 2] > 0.8 and abs(joints[-1, 0, 0]) < 0.3


def test_backward_and_jumps():
    assert all(joints[-1, 0, 2] < -0.8 and abs(net_turn(joints)) < 5 for joints in clips("walk_backward"))
    for action, ahead in (("jump", 0.1), ("jump_forward", 3.9)):
        for joints in clips(action):
            assert joints[:, [7, 8, 10, 11], 1].min(1).max() > 0.08  # both feet leave the floor
            assert abs(joints[-1, 0, 2]) < ahead
    assert all(joints[-1, 0, 2] > 0.5 for joints in clips("jump_forward"))
    assert all(np.abs(joints[:, 10, 1] - joints[:, 11, 1]).max() > 0.2 for joints in clips("hop"))


def test_arms_and_legs_of_the_named_side():
    for side, wrist, other, foot, other_foot in (("left", 20, 21, 10, 11), ("right", 21, 20, 11, 10)):
        for joints in clips(f"raise_{side}") + clips(f"wave_{side}"):
            top = joints[:, wrist, 1].argmax()
            assert joints[top, wrist, 1] > joints[top, 12, 1]
            assert joints[:, other, 1].max() < joints[:, 9, 1].min()
        for joints in clips(f"punch_{side}"):
            assert joints[:, wrist, 2].max() > joints[:, other, 2].max() + 0.15
        for joints in clips(f"kick_{side}"):
            assert joints[:, foot, 1].max() > 0.35 > 0.1 > joints[:, other_foot, 1].max()
    for joints in clips("raise_both") + clips("wave_both"):
        assert (joints[:, [20, 21], 1].max(0) > joints[:, 12, 1].max() - 0.05).all()
    for joints in clips("clap"):
        apart = np.linalg.norm(joints[:, 20] - joints[:, 21], axis=-1)
        assert apart.min() < 0.12 and apart.max() > 0.3


def test_postures():
    for joints in clips("sit_down"):
        assert joints[0, 0, 1] > 0.8 and joints[-1, 0, 1] < 0.6
        assert abs(joints[-1, 4, 1] - joints[-1, 1, 1]) < 0.15
    for joints in clips("stand_up"):
        assert joints[0, 0, 1] < 0.6 and joints[-1, 0, 1] > 0.8
    for joints in clips("squat"):
        assert joints[:, 0, 1].min() < joints[0, 0, 1] - 0.25 and joints[-1, 0, 1] > 0.8
    for joints in clips("bow"):
        assert (joints[:, 15, 1] - joints[:, 0, 1]).min() < 0.55 and joints[:, 0, 1].min() > 0.75
    for joints in clips("kneel"):
        assert joints[:, 4:6, 1].min() < 0.12 and joints[:, 0, 1].min() < 0.62


def test_features_give_the_joints_back():
    for action in ("walk_circle_left", "turn_right_360", "kneel", "jumping_jacks"):
        joints = make_clip([action], np.random.default_rng(5))
        features = joints_to_features(joints, T2M)
        assert np.abs(features[:, 0]).max() < 0.25  # the smoothed heading never flips over
        np.testing.assert_allclose(features_to_joints(features[:, :67], 22), canonical(joints)[:-1],
                                   atol=1e-4)


def test_sequences_perform_both_actions_in_order():
    for seed in SEEDS:
        joints, facts = perform(["turn_left_180", "raise_right"], np.random.default_rng(seed))
        joints = canonical(joints)
        assert len(facts) == 2 and 160 < net_turn(joints) < 200
        raised = joints[:, 21, 1] > joints[:, 12, 1]
        assert raised.any() and net_turn(joints[: raised.argmax()]) > 160  # first the turn, then the arm
        joints = canonical(make_clip(["sit_down", "stand_up"], np.random.default_rng(seed)))
        height = joints[:, 0, 1]
        assert height.min() < 0.6 and min(height[0], height[-1]) > 0.8
    for actions, problem in ((["fly"], "unknown action 'fly'"), (["sit_down", "jump"], "can only stand up"),
                             (["jump", "stand_up"], "can only stand up")):
        with pytest.raises(ValueError, match=problem):
            make_clip(actions, np.random.default_rng(0))


@pytest.mark.parametrize("action", [a for a in ACTIONS if "left" in a or "right" in a])
def test_captions_name_the_side(action):
    side, other = ("left", "right") if "left" in action else ("right", "left")
    words = {"left": {"left", "left-handed", *COUNTERCLOCKWISE},
             "right": {"right", "clockwise", "right-handed"}}
    texts = [text for seed in range(40) for text in captions_of([action], [{}], np.random.default_rng(seed))]
    assert len(set(texts)) > 80
    for text in texts:
        plain = re.sub(r"right (?=angle|round|around)", "", text)  # in "a right angle" it is no direction
        said = set(re.findall(r"[a-z-]+", plain))
        assert said & words[side] and not said & words[other], text
        assert "<" not in text and "{" not in text and "#" not in text


def test_every_action_has_phrases_and_no_phrase_is_empty():
    assert set(PHRASES) == set(ACTIONS)
    for action, phrases in PHRASES.items():
        assert len(phrases) >= 4 and all(text.strip() == text != "" for text, _ in phrases)
        assert {side for _, side in phrases} == {next((s for s in ("left", "right") if s in action), "")}


def test_captions_of_sequences_name_both_and_facts_are_used_when_true():
    rng = np.random.default_rng(0)
    texts = [text for _ in range(40) for text in captions_of(["kick_left", "clap"], [{}, {}], rng)]
    assert all("kick" in text and ("clap" in text or "applau" in text or "together" in text)
               for text in texts)
    counted = [text for _ in range(30) for text in captions_of(["jump"], [{"count": 2}], rng)]
    assert any("twice" in text or "two times" in text for text in counted)
    assert not any("twice" in text for _ in range(30) for text in captions_of(["jump"], [{}], rng))
    assert tokens_of("a man is walking to his left.") == ["a/DET", "man/NOUN", "is/AUX", "walk/VERB",
                                                          "to/ADP", "his/PRON", "left/ADJ"]


def test_the_full_plan_is_balanced():
    sequence = plan(2000, np.random.default_rng(0))
    splits = split_clips(sequence, np.random.default_rng(0))
    sizes = {name: len(indices) for name, indices in splits.items()}
    assert sizes == {"train": 1600, "val": 100, "test": 300}
    for indices in splits.values():
        assert {action for i in indices for action in sequence[i]} == set(ACTIONS)
    sequences = Counter(tuple(actions) for actions in sequence if len(actions) > 1)
    assert len(sequences) > 450
    assert max(count for pair, count in sequences.items() if pair[0] != "sit_down") <= 2
    firsts = Counter(first for first, _ in sequences.elements())
    assert len(firsts) == len(ACTIONS) - 3 and max(firsts.values()) - min(firsts.values()) <= 1


def test_more_clips_for_training_leave_the_others_alone(tmp_path):
    build_demo(tmp_path / "demo", num_clips=40)
    build_demo(tmp_path / "more", num_clips=40, more=60)
    for path in (tmp_path / "demo").rglob("*"):
        other = tmp_path / "more" / path.relative_to(tmp_path / "demo")
        if path.parent.name in ("new_joint_vecs", "texts") or path.name in ("val.txt", "test.txt"):
            assert path.read_bytes() == other.read_bytes(), path
    train = [(tmp_path / name / "train.txt").read_text().split() for name in ("demo", "more")]
    assert train[1] == train[0] + [f"{i:06d}" for i in range(40, 100)]
    labels = json.loads((tmp_path / "more" / "labels.json").read_text())
    added = [labels[f"{i:06d}"]["actions"] for i in range(40, 100)]
    assert sum(len(actions) == 2 for actions in added) == 48 and any(
        actions[0] == "stand_up" for actions in added)
