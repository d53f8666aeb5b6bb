"""Conditions: texts, actions, none; lengths without text; units of length in metrics."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.LengthEstimator import LengthTable, sample_length
from utils.data.conditions import Conditions, load_conditions
from utils.data.datasets import Caption, TextClip, read_labels
from utils.data.specs import KNOWN, DatasetSpec, joints_in_metres
from utils.errors import UserError
from utils.evaluation.reconstruction import heading_error, reconstruction_errors
from utils.evaluation.scoring import motion_quality, without_text

LABELS = {"a": {"actions": ["walk"]}, "b": {"actions": ["jump"]}, "c": {"actions": ["walk", "jump"]},
          "d": {"actions": ["sit"]}}
LINE = Caption("somebody moves", ())


def data_set(tmp_path, labels=LABELS):
    (tmp_path / "train.txt").write_text("a b c")
    if labels is not None:
        (tmp_path / "labels.json").write_text(labels if isinstance(labels, str) else json.dumps(labels))
    return SimpleNamespace(root=str(tmp_path), name="own")


STORE = SimpleNamespace(ids=["a", "b", "c", "d"], spec=SimpleNamespace(name="own"), split="train")
ENTRIES = [TextClip(0, 0, 80, (LINE, LINE)), *(TextClip(clip, 0, end, (LINE,))
                                               for clip, end in ((1, 40), (2, 60), (3, 60)))]


def test_a_class_is_an_action_shown_alone_in_training(tmp_path):
    conditions = load_conditions("action", data_set(tmp_path), None)
    assert conditions.actions == ("jump", "walk")  # "sit" is not in the training split
    kept, dropped = conditions.select(STORE, ENTRIES, {"x": "too short"})
    assert [entry.clip for entry in kept] == [0, 1] and set(dropped) == {"x", "c", "d"}
    assert conditions.features(STORE, kept).tolist() == [[0, 1], [0, 1], [1, 0]]  # a row per caption
    assert conditions.lookup(STORE, kept)([1, 0, 1], [LINE] * 3).tolist() == [[1, 0], [0, 1], [1, 0]]
    assert conditions.select(STORE, ENTRIES[:2], {}) == (ENTRIES[:2], {})
    with pytest.raises(UserError, match="exactly one of the generator's actions"):
        conditions.select(STORE, ENTRIES[2:], {})


def test_texts_and_nothing():
    encode = SimpleNamespace(seen=[])
    text = Conditions("text", lambda texts: encode.seen.append(list(texts)) or torch.ones(len(texts), 3))
    assert text.select(STORE, ENTRIES, {}) == (ENTRIES, {}) and text.describe(STORE, ENTRIES) == {}
    assert text.features(STORE, ENTRIES).shape == (5, 3)
    assert text.lookup(STORE, ENTRIES)([0], [LINE]).shape == (1, 3)
    assert encode.seen == [["somebody moves"] * 5, ["somebody moves"]]
    nothing = Conditions("uncond")
    assert nothing.features(STORE, ENTRIES).shape == (5, 0)
    assert nothing.lookup(STORE, ENTRIES)([0, 1], [LINE] * 2) is None
    assert nothing.describe(STORE, ENTRIES)["length_counts"].sum() == 4


@pytest.mark.parametrize("labels, message", [(None, "has no labels.json"), ("{", "is not JSON"),
                                             ("[]", "no JSON object"), ({"a": {}}, "not of the form"),
                                             ({"a": {"actions": []}}, "exactly one action")])
def test_bad_labels_are_named(tmp_path, labels, message):
    with pytest.raises(UserError, match=message):
        load_conditions("action", data_set(tmp_path, labels), None)


def test_lengths_come_from_the_training_clips_of_the_action(tmp_path):
    conditions = load_conditions("action", data_set(tmp_path), None)
    kept, _ = conditions.select(STORE, ENTRIES, {})
    table = LengthTable(conditions.describe(STORE, kept)["length_counts"])
    shown = table(conditions.of_actions(["walk", "jump", "walk"]))
    assert sample_length(shown, torch.Generator().manual_seed(0)).tolist() == [80, 40, 80]
    clips = [TextClip(0, 0, 199, (LINE,)), TextClip(0, 0, 100, (LINE,))]
    longest = Conditions("uncond").length_counts(STORE, clips, 64)
    assert longest.nonzero().tolist() == [[0, 16]] and longest.shape == (1, 50)


def test_without_text():
    scores = {"generated": {"FID_essential": 1, "R1_essential": 2, "clip_score_essential": 3,
                            "diversity_essential": 4},
              "better": {"real": {"matching_essential": 5}, "rule": "all"}, "repeats": [{"FID": 1, "R3": 2}]}
    assert without_text(scores) == {"generated": {"FID_essential": 1, "diversity_essential": 4},
                                    "better": {"real": {}, "rule": "all"}, "repeats": [{"FID": 1}]}


def test_read_labels(tmp_path):
    assert read_labels(data_set(tmp_path))["c"] == ["walk", "jump"]
    (tmp_path / "other").mkdir()
    assert read_labels(data_set(tmp_path / "other", None)) is None


def test_metrics_are_in_metres_for_a_data_set_in_millimetres():
    """KIT's features are in millimetres: the same motion gives the same metrics as one in metres."""
    known = {key: value for key, value in KNOWN["kit"].items() if key != "folder"}
    kit = DatasetSpec(name="kit", root="", **known)
    metres = DatasetSpec(name="own", root="", **(known | {"metres_per_unit": 1.0}))
    assert kit.metres_per_unit == 0.001 and kit.describe()["metres_per_unit"] == 0.001
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(0, 0.02, (40, 64)).cumsum(0))
    features[:, 0] = 0.01
    large = features.clone()
    large[:, 1:] *= 1000  # all but the yaw velocity are lengths
    assert np.allclose(joints_in_metres(large, kit), joints_in_metres(features, metres))
    quality = motion_quality([large], kit)
    assert quality == pytest.approx(motion_quality([features], metres)) and 0 < quality["foot_skating"] < 10
    noise = torch.from_numpy(rng.normal(0, 0.01, (40, 64)))
    noise[:, 0] = 0
    found = reconstruction_errors([(large, large + 1000 * noise)], kit)
    assert found == pytest.approx(reconstruction_errors([(features, features + noise)], metres))
    assert 1 < found["MPJPE"] < 100  # millimetres
    assert heading_error(large[None], large[None] + 1000 * noise, 0.001) == pytest.approx(
        heading_error(features[None], features[None] + noise))
