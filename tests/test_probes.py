"""Semantic probes: signs, counts and limits on constructed motions, and agreement with the demo data set."""
import numpy as np
import pytest

from utils.demo.actions import ACTIONS
from utils.demo.dataset import make_clip
from utils.evaluation import probes
from utils.evaluation.prompts import OUTSIDERS, PROMPTS

STANDING = np.array([
    [0, 0.96, 0], [0.06, 0.87, 0], [-0.06, 0.87, 0], [0, 1.08, 0], [0.09, 0.48, 0], [-0.09, 0.48, 0],
    [0, 1.22, 0], [0.09, 0.07, 0], [-0.09, 0.07, 0], [0, 1.28, 0], [0.09, 0.0, 0.13], [-0.09, 0.0, 0.13],
    [0, 1.48, 0], [0.07, 1.4, 0], [-0.07, 1.4, 0], [0, 1.57, 0.05], [0.19, 1.42, 0], [-0.19, 1.42, 0],
    [0.24, 1.16, 0], [-0.24, 1.16, 0], [0.26, 0.9, 0.03], [-0.26, 0.9, 0.03]])


def figure(frames=60):
    return np.tile(STANDING, (frames, 1, 1))


def measure(joints, fps=20.0):
    return probes.measure(probes.prepare(joints, fps))


def turned(joints, degrees):
    """Turn to the left about the vertical axis, by one angle per frame."""
    s, c = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    x, z = joints[..., 0].copy(), joints[..., 2].copy()
    result = joints.copy()
    result[..., 0], result[..., 2] = (x.T * c + z.T * s).T, (z.T * c - x.T * s).T
    return result


def passing(joints, fps=20.0):
    """The actions whose rules hold."""
    return {action for action in probes.RULES if probes.check(action, joints, fps)}


def test_standing_still_is_no_action():
    assert passing(figure()) == set()


@pytest.mark.parametrize("start", (0, 130))
@pytest.mark.parametrize("move, action", [
    ((0, 0, 2.5), "walk_forward"), ((0, 0, -1.5), "walk_backward"), ((1.2, 0, 0), "walk_left"),
    ((-1.2, 0, 0), "walk_right"), ((0, 0, 1.2), "walk_slow"), ((0, 0, 5.0), "walk_fast"),
    ((0, 0, 8.0), "run_forward")])
def test_directions_and_speeds_count_from_the_starting_facing(move, action, start):
    joints = figure() + np.linspace(0, 1, 60)[:, None, None] * np.array(move)
    assert passing(turned(joints, np.full(60, start))) == {action}


@pytest.mark.parametrize("degrees, action", [
    (90, "turn_left_90"), (180, "turn_left_180"), (360, "turn_left_360"), (-90, "turn_right_90"),
    (-180, "turn_right_180"), (-360, "turn_right_360")])
def test_turns_have_sign_and_size(degrees, action):
    assert passing(turned(figure(100), np.clip(np.linspace(-0.1, 1.1, 100), 0, 1) * degrees)) == {action}


@pytest.mark.parametrize("degrees, action", [(100, "walk_curve_left"), (-100, "walk_curve_right"),
                                             (360, "walk_circle_left"), (-360, "walk_circle_right")])
def test_curves_and_circles(degrees, action):
    yaw = np.linspace(0, degrees, 120)
    ahead = np.stack([np.sin(np.radians(yaw)), np.zeros(120), np.cos(np.radians(yaw))], 1)
    assert passing(turned(figure(120), yaw) + np.cumsum(ahead, 0)[:, None] * 0.05) == {action}


def arms(joints, sides, elbow, wrist, chosen=slice(15, 45)):
    """Put elbow and wrist of the sides at positions relative to the shoulder, x outwards, in some frames."""
    for side in sides:
        sign = 1 if side == "left" else -1
        shoulder = joints[chosen, probes.SHOULDER[side]]
        joints[chosen, probes.ELBOW[side]] = shoulder + np.multiply(elbow, (sign, 1, 1))
        joints[chosen, probes.WRIST[side]] = shoulder + np.asarray(wrist) * (sign, 1, 1)
    return joints


def waving(joints, sides, frames=30, height=0.22):
    """Swing raised forearms, one half-swing per 5 frames, from frame 15 on, the wrists at a height."""
    swing = 0.15 * np.sin(np.arange(frames) * 2 * np.pi / 10)
    wrist = np.stack([0.2 + swing, np.full(frames, height), np.zeros(frames)], 1)
    return arms(joints, sides, (0.22, height - 0.27, 0.05), wrist, slice(15, 15 + frames))


@pytest.mark.parametrize("sides, name", [(("left",), "left"), (("right",), "right"),
                                         (("left", "right"), "both")])
def test_arms(sides, name):
    assert passing(arms(figure(), sides, (0.02, 0.26, 0), (0.03, 0.52, 0))) == {f"raise_{name}"}
    assert passing(waving(figure(), sides)) == {f"wave_{name}"}


@pytest.mark.parametrize("side", probes.SIDES)
def test_who_walks_may_raise_or_swing_a_hand_only_briefly(side):
    """The limits of ``hands_down``: a quarter of a second overhead, four half-swings."""
    walk = np.linspace(0, 1, 60)[:, None, None] * np.array((0, 0, 2.5))
    raised = [(arms(figure(), (side,), (0, 0.26, 0), (0, 0.52, 0), slice(20, 20 + frames)), frames / 20, 0)
              for frames in (3, 4, 6, 8)]
    swung = [(waving(figure(), (side,), frames, 0.1), 0, count) for frames, count in ((19, 3), (24, 4))]
    for joints, overhead, waves in raised + swung:
        m = measure(joints + walk)
        assert m[f"overhead_{side}"] == pytest.approx(overhead) and m[f"waves_{side}"] == waves
        assert probes.RULES["walk_forward"](m) == probes.hands_down(m) == (overhead < 0.25 and waves < 4)


def test_claps():
    gap = 0.15 + 0.12 * np.cos(np.arange(40) * 2 * np.pi / 10)
    wrist = np.stack([gap - 0.19, np.full(40, -0.2), np.full(40, 0.35)], 1)
    assert passing(arms(figure(), ("left", "right"), (0.05, -0.24, 0.1), wrist, slice(10, 50))) == {"clap"}


@pytest.mark.parametrize("side", probes.SIDES)
def test_punches(side):
    joints = arms(figure(), probes.SIDES, (0, -0.2, 0.1), (0, -0.05, 0.2), slice(5, 55))
    joints = arms(joints, (side,), (0, -0.02, 0.24), (0, -0.02, 0.5), slice(28, 33))
    assert passing(joints) == {f"punch_{side}"}


@pytest.mark.parametrize("side", probes.SIDES)
def test_kicks(side):
    joints = figure()
    joints[25:32, [probes.ANKLE[side], probes.TOE[side]]] += [0, 0.6, 0.7]
    assert passing(joints) == {f"kick_{side}"}


def test_jumps():
    height = np.maximum(0, 0.25 * np.sin(np.arange(60) * 2 * np.pi / 20))
    joints = figure() + height[:, None, None] * [0, 1, 0]
    assert measure(joints)["jumps"] == 3
    assert passing(joints) == {"jump"}
    assert passing(joints + np.linspace(0, 2.5, 60)[:, None, None] * [0, 0, 1]) == {"jump_forward"}
    joints[:, [8, 11]] = figure()[:, [8, 11]] + [0, 0.35, -0.2]
    joints[:, [8, 11], 1] += height[:, None]
    assert passing(joints) == {"hop"}


def lowered(depth, weight):
    """Pelvis and all above it go down by ``depth``; knees come ahead."""
    joints = figure(len(weight))
    above = [j for j in range(22) if j not in (4, 5, 7, 8, 10, 11)]
    joints[:, above, 1] -= depth * weight[:, None]
    joints[:, [4, 5], 2] += 0.3 * weight[:, None]
    return joints


def test_pelvis_down_and_up():
    down = np.clip(np.linspace(-1, 2, 60), 0, 1)
    assert passing(lowered(0.42, down)) == {"sit_down"}
    assert passing(lowered(0.42, down[::-1])) == {"stand_up"}
    assert passing(lowered(0.38, np.concatenate([down, down[::-1]]))) == {"squat"}
    kneeling = lowered(0.42, down)
    kneeling[:, [4, 5], 1] -= 0.42 * down[:, None]
    assert passing(kneeling) == {"kneel"}


def test_bow_jacks_and_sway():
    bend = np.radians(50) * np.sin(np.linspace(0, np.pi, 60)).clip(0)
    joints = figure()
    upper = [3, 6, 9, 12, 13, 14, 15, 16, 17]
    height = (STANDING[upper, 1] - 0.96)[None]
    joints[:, upper, 1] = 0.96 + height * np.cos(bend)[:, None]
    joints[:, upper, 2] = height * np.sin(bend)[:, None]
    assert passing(joints) == {"bow"}
    opened = (0.5 - 0.5 * np.cos(np.arange(80) * 2 * np.pi / 25))[:, None]
    jacks = figure(80)
    jacks[:, [7, 10], 0] += 0.25 * opened
    jacks[:, [8, 11], 0] -= 0.25 * opened
    jacks[:, [20, 21], 1] += 1.0 * opened
    assert passing(jacks) == {"jumping_jacks"}
    swaying = figure(80)
    feet = [7, 8, 10, 11]
    swaying[..., 0] += 0.09 * np.sin(np.arange(80) * 2 * np.pi / 32)[:, None]
    swaying[:, feet] = STANDING[feet]
    assert passing(swaying) == {"sway"}


def test_sequences_need_their_order():
    joints = arms(figure(100), ("left",), (0.02, 0.26, 0), (0.03, 0.52, 0), slice(10, 40))
    joints[50:] += np.linspace(0, 2.5, 50)[:, None, None] * [0, 0, 1]
    assert probes.check(("raise_left", "walk_forward"), joints)
    assert not probes.check(("walk_forward", "raise_left"), joints)
    assert not probes.check(("raise_right", "walk_forward"), joints)


def test_other_frame_rates_mean_the_same():
    joints = figure(90) + np.linspace(0, 3, 90)[:, None, None] * [0, 0, 1]  # 3 m in 3 s at 30 fps
    assert passing(joints, 30.0) == {"walk_forward"}
    assert measure(joints, 30.0)["speed"] == pytest.approx(1.0, rel=0.05)


def test_wrong_inputs_are_named():
    with pytest.raises(ValueError, match="moonwalk"):
        probes.check("moonwalk", figure())
    with pytest.raises(ValueError, match="no action"):
        probes.check([], figure())
    with pytest.raises(ValueError, match="22, 3"):
        probes.check("jump", np.zeros((10, 21, 3)))
    assert probes.knows(["jump", "bow"]) and not probes.knows([]) and not probes.knows(["jump", "moonwalk"])


def test_prompts_cover_every_action_twice():
    singles = [actions[0] for _, actions in PROMPTS if len(actions) == 1]
    assert len(PROMPTS) >= 60 and len({prompt for prompt, _ in PROMPTS}) == len(PROMPTS)
    assert all(singles.count(action) >= 2 for action in probes.RULES)
    assert all(action in probes.RULES for _, actions in PROMPTS for action in actions)
    assert sum(len(actions) == 2 for _, actions in PROMPTS) >= 8


def test_outsiders_ask_for_two_actions_that_can_follow_each_other():
    assert len({prompt for prompt, _ in (*OUTSIDERS, *PROMPTS)}) == 40 + len(PROMPTS)
    for _, (first, second) in OUTSIDERS:
        assert {first, second} <= set(ACTIONS) and (first == "sit_down") == (second == "stand_up")


def test_report_counts():
    report = probes.probe_report([("jump", True), (("jump",), False), (("jump", "clap"), True),
                                  ("bow", True)])
    assert report["all"] == {"passed": 3, "total": 4, "share": 0.75}
    assert report["actions"] == {"jump": {"passed": 1, "total": 2, "share": 0.5},
                                 "bow": {"passed": 1, "total": 1, "share": 1.0}}
    assert report["sequence"]["total"] == 1 and report["single"]["total"] == 3


@pytest.fixture(scope="module")
def demo_clips():
    """Measurements of two clips per action from the demo data set, with sensor noise of 7 mm."""
    rng = np.random.default_rng(11)
    clips = [(action, make_clip([action], np.random.default_rng([seed, i])))
             for i, action in enumerate(probes.RULES) for seed in range(2)]
    return [(action, measure(joints + 0.007 * rng.standard_normal(joints.shape)))
            for action, joints in clips]


def test_demo_clips_pass_their_own_rule_and_hardly_another(demo_clips):
    own = [probes.RULES[action](m) for action, m in demo_clips]
    others = [rule(m) for action, m in demo_clips for name, rule in probes.RULES.items() if name != action]
    assert np.mean(own) >= 0.97
    assert np.mean(others) <= 0.005


def test_rules_and_demo_actions_are_the_same():
    assert set(ACTIONS) == set(probes.RULES)
