"""Behaviour codes: virtual sensors on motions whose signals are known, recordings, the network, what codes
are said to mean, and the commands."""
import csv
import json
import shutil

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from tiny import call, walk

import train_behavior
from models.AE import RunningNorm
from models.Conv2dFSQ import Conv2dFSQ, Deployed
from models.loading import load_behavior
from scripts import behavior_bench, doctor
from scripts.runs import newest_result
from utils.data.inertial import InertialWindows, SensorSpec, cut
from utils.data.recordings import Units, read_recording, without_gravity
from utils.demo.dataset import build_demo
from utils.errors import UserError
from utils.evaluation import behavior
from utils.export.onnx_files import write_onnx
from utils.motion.features import MotionError
from utils.motion.inertial import (
    CHANNELS,
    GRAVITY,
    PLACES,
    channel_names,
    random_rotations,
    sense,
    sensor_joint,
    turn_sensor,
    virtual_sensors,
)
from utils.motion.skeletons import SKELETONS

T = 41
TIMES = np.arange(T) / 20
UPRIGHT = np.tile(np.eye(3), (T, 1, 1))


def triads(signals):
    """body, gyro, acc: (N, 3) each."""
    return np.split(signals, 3, axis=1)


# Virtual sensors.

def test_at_rest_a_sensor_measures_one_g_upwards():
    body, gyro, acc = triads(sense(np.ones((T, 3)), UPRIGHT, 20, 50))
    assert len(acc) == 101 and np.allclose(acc, [0, 1, 0], atol=1e-6)
    assert np.abs(body).max() < 1e-6 and np.abs(gyro).max() < 1e-6


def test_gravity_is_measured_along_the_sensors_own_axes():
    lying = np.tile(Rotation.from_euler("z", 90, degrees=True).as_matrix(), (T, 1, 1))  # its x points up
    _, _, acc = triads(sense(np.zeros((T, 3)), lying, 20, 50))
    assert np.allclose(acc, [1, 0, 0], atol=1e-6)


def test_in_free_fall_nothing_is_measured():
    fall = np.stack([0.8 * TIMES, 2 - GRAVITY / 2 * TIMES**2, 0 * TIMES], 1)
    body, _, acc = triads(sense(fall, UPRIGHT, 20, 50))
    assert np.abs(acc).max() < 1e-5 and np.allclose(body, [0, -1, 0], atol=1e-5)


def test_an_accelerating_sensor():
    path = np.stack([0 * TIMES, 0 * TIMES, GRAVITY / 8 * TIMES**2], 1)  # a quarter of g ahead
    body, _, acc = triads(sense(path, UPRIGHT, 20, 20))
    assert len(acc) == T and np.allclose(body, [0, 0, 0.25], atol=1e-6)
    assert np.allclose(acc, [0, 1, 0.25], atol=1e-6)


def test_on_a_wheel_a_sensor_measures_the_centripetal_acceleration():
    speed, radius = 2.0, 0.5
    turns = Rotation.from_rotvec(np.outer(speed * TIMES, [0, 1, 0]))
    body, gyro, acc = triads(sense(turns.apply([radius, 0, 0]), turns.as_matrix(), 20, 50))
    inner = slice(10, -10)  # the spline's ends do not know what comes before and after
    assert np.allclose(gyro, [0, speed, 0], atol=1e-4)
    assert np.allclose(body[inner], [-(speed**2) * radius / GRAVITY, 0, 0], atol=2e-4)
    assert np.allclose((acc - body), [0, 1, 0], atol=1e-5)


def test_angular_velocity_is_measured_about_the_sensors_own_axes():
    turns = Rotation.from_euler("z", 1.0) * Rotation.from_rotvec(np.outer(1.5 * TIMES, [1, 0, 0]))
    _, gyro, _ = triads(sense(np.zeros((T, 3)), turns.as_matrix(), 20, 50))
    assert np.allclose(gyro, [1.5, 0, 0], atol=1e-4)


@pytest.mark.parametrize("name", ["t2m", "kit"])
def test_places_are_wrists_hip_and_ankles(name):
    skeleton = SKELETONS[name]
    joints = {place: skeleton.joint_names[sensor_joint(skeleton, place)] for place in PLACES}
    assert joints == {"left_wrist": "LeftHand", "right_wrist": "RightHand", "hip": "Hips",
                      "left_ankle": "LeftFoot", "right_ankle": "RightFoot"}


def test_sensors_on_a_body_that_turns_round():
    """A T-pose that turns about a vertical axis: each sensor's axes are the world's at rest, so all measure
    the same turning, and a wrist is drawn to the middle, along its arm."""
    skeleton, speed = SKELETONS["t2m"], 1.2
    pose = np.zeros((22, 3))
    lengths = np.linalg.norm(skeleton.target_offsets, axis=1)
    for parent, child in skeleton.bones:
        pose[child] = pose[parent] + lengths[child] * np.array(skeleton.t_pose[child])
    turns = Rotation.from_rotvec(np.outer(speed * TIMES, [0, 1, 0])).as_matrix()
    signals = virtual_sensors(np.einsum("tij,nj->tni", turns, pose), skeleton, 20, list(PLACES), 50)
    assert signals.shape == (101, 9 * 5) and signals.dtype == np.float32
    for number, place in enumerate(PLACES):
        body, gyro, acc = triads(signals[10:-10, 9 * number : 9 * number + 9])
        x, _, z = pose[sensor_joint(skeleton, place)]
        assert np.allclose(gyro, [0, speed, 0], atol=2e-3), place
        assert np.allclose(body, np.array([x, 0, z]) * -(speed**2) / GRAVITY, atol=2e-3), place
        assert np.allclose(acc - body, [0, 1, 0], atol=1e-3)


def test_a_sensor_that_is_mounted_otherwise():
    signals = virtual_sensors(walk(SKELETONS["t2m"], 60), SKELETONS["t2m"], 20, ["hip"], 50)
    turn, = random_rotations(40, 1, np.random.default_rng(0))
    turned = turn_sensor(signals, turn)
    assert np.degrees(Rotation.from_matrix(turn).magnitude()) == pytest.approx(40)
    for before, after in zip(triads(signals), triads(turned)):
        assert np.allclose(np.linalg.norm(before, axis=1), np.linalg.norm(after, axis=1), atol=1e-4)
        assert np.allclose(before @ turn.T, after, atol=1e-5)
    again = turn_sensor(np.stack([signals, signals]), np.stack([turn, np.eye(3)]))
    assert np.allclose(again[0], turned) and np.allclose(again[1], signals, atol=1e-6)


def test_names_of_channels_and_too_short_clips():
    assert channel_names(["hip"]) == list(CHANNELS) and channel_names(["hip", "left_ankle"])[9] == (
        "left_ankle_body_x")
    with pytest.raises(MotionError, match="3 frames are too few"):
        sense(np.zeros((3, 3)), UPRIGHT[:3], 20, 50)


# Recordings.

def test_gravity_is_what_changes_slowly():
    seconds = np.arange(1000) / 50
    swing = 0.3 * np.sin(2 * np.pi * 2 * seconds)
    tilt = 0.9 + 0.05 * np.sin(2 * np.pi * 0.05 * seconds)
    left = without_gravity((swing + tilt)[:, None], 50)[:, 0]
    assert np.abs(left - swing)[100:-100].max() < 0.01


def write_csv(path, columns):
    names, values = zip(*columns.items())
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([names, *zip(*values)])
    return path


def six(count, frequency=1.0, rate=50.0):
    """Columns of a sensor whose x swings at ``frequency`` Hz, and whose y is 1 g."""
    swing = np.sin(2 * np.pi * frequency * np.arange(count) / rate)
    columns = dict.fromkeys([name for name in CHANNELS[3:]], np.zeros(count))
    return columns | {"acc_x": 0.3 * swing, "acc_y": np.ones(count), "gyro_z": swing}


def test_a_recording_in_other_units_at_another_rate(tmp_path):
    columns = six(200, rate=100) | {"time": 5 + np.arange(200) / 100, "label": ["walk"] * 100 + ["sit"] * 100}
    columns |= {"acc_y": np.full(200, GRAVITY), "gyro_z": np.full(200, 180.0)}
    found = read_recording(write_csv(tmp_path / "a.csv", columns), 50, units=Units("m/s2", "deg/s"))
    assert found.signals.shape == (100, 9) and found.signals.dtype == np.float32
    assert np.allclose(found.signals[:, 7], 1, atol=1e-6) and np.allclose(found.signals[:, 5], np.pi)
    assert found.labels.tolist() == ["walk"] * 50 + ["sit"] * 50
    assert np.allclose(found.signals[:, 6], columns["acc_x"][::2] / GRAVITY, atol=1e-6)


@pytest.mark.parametrize("change,message", [
    (lambda columns: columns.pop("gyro_y"), "lacks the column 'gyro_y'"),
    (lambda columns: columns.update(acc_x=["0"] * 9 + ["much"] + ["0"] * 90), "'much' for acc_x in row 11"),
    (lambda columns: columns.update(time=np.r_[np.arange(50), np.arange(50)] / 50), "row 52 that is not"),
    (lambda columns: columns.update(time=np.r_[np.arange(50), np.arange(100, 150)] / 50), "a gap of 1.02 s"),
    (lambda columns: columns.update(acc_z=np.r_[np.ones(20), 1e30, np.ones(79)]), "row 22, which is absurd"),
    (lambda columns: columns.update({" ACC_X": np.zeros(100)}), "two columns 'acc_x'"),
], ids=["column", "number", "order", "gap", "absurd", "twice"])
def test_recordings_that_cannot_be_read(change, message, tmp_path):
    columns = six(100)
    change(columns)
    with pytest.raises(UserError, match=message):
        read_recording(write_csv(tmp_path / "a.csv", columns), 50)


# The network.

SMALL = {"hidden_dim": 16, "num_classes": 4, "window": 32}


def test_the_default_grid_has_4800_codes():
    model = Conv2dFSQ()
    assert model.quantizer.codebook_size == 4800 and model.window == 128 and model.tokens == 1
    out = model(torch.randn(2, 128, 9))
    assert out.logits.shape == (2, 10) and out.windows.shape == (2, 128, 9) and out.indices.shape == (2, 1)


@pytest.mark.parametrize("quantizer,settings", [("fsq", {}), ("ifsq", {}), ("vq", {}), ("ema", {}),
                                                ("rvq", {"num_layers": 2}), ("none", {})])
@pytest.mark.parametrize("tokens,channels", [(1, 9), (2, 18)])
def test_every_quantizer_in_the_same_network(quantizer, settings, tokens, channels):
    torch.manual_seed(0)
    model = Conv2dFSQ(channels, fsq_levels=[5, 5, 3], quantizer=quantizer, settings=settings, tokens=tokens,
                      **SMALL)
    windows = torch.randn(8, 32, channels)
    out = model(windows)
    (out.logits.square().mean() + out.windows.square().mean() + out.loss).backward()
    assert model.encoder[0].weight.grad.abs().sum() > 0 and model.pre_quant.weight.grad.abs().sum() > 0
    with torch.no_grad():
        out = model.eval()(windows)
        if quantizer == "none":
            assert out.indices is None
            return
        assert out.indices.shape[:2] == (8, tokens)
        z_q = model.quantizer.decode_indices(out.indices)  # the code alone says the rest
        assert torch.allclose(model.classify(z_q), out.logits, atol=1e-5)
        assert torch.allclose(model.decode(z_q), out.windows, atol=1e-5)
        if quantizer in ("fsq", "ifsq"):  # codes of a fresh codebook are nearly the same: rounding decides
            assert torch.equal(model(windows[:1]).indices, out.indices[:1])


@pytest.mark.parametrize("sizes,message", [
    ({"input_channels": 10}, "no multiple of 3"), ({"window": 100}, "multiple of 8 samples"),
    ({"window": 64, "tokens": 3}, "multiple of 24"), ({"hidden_dim": 30}, "multiple of 4"),
    ({"quantizer": "magic"}, "unknown quantizer"), ({"fsq_levels": [1]}, "levels are integers")])
def test_sizes_that_do_not_go_together(sizes, message):
    with pytest.raises(UserError, match=message):
        Conv2dFSQ(**sizes)


@pytest.mark.parametrize("norm, least, most", [("whiten", 4.9, 5.1), ("scale", 1, 4)])
def test_whitened_numbers_do_not_all_say_the_same(norm, least, most):
    """How loud a window is decides over all features of a fresh encoder, and so over all that it makes of
    them: of the five numbers only some differ (participation ratio of their covariance)."""
    torch.manual_seed(0)
    model = Conv2dFSQ(norm=norm, **SMALL)
    windows = torch.randn(256, 32, 9) * torch.rand(256, 1, 1) * 3
    spread = torch.linalg.eigvalsh(model.encode(windows).detach().squeeze(1).T.cov())
    assert least < float(spread.sum() ** 2 / spread.square().sum()) < most


def test_checkpoints_without_a_norm_were_scaled(tmp_path):
    model = Conv2dFSQ(norm="scale", **SMALL)
    torch.save({"behavior": model.state_dict(), "model_kwargs": SMALL}, tmp_path / "old.tar")
    assert type(load_behavior(tmp_path / "old.tar")[0].norm) is RunningNorm


def test_windows_of_another_shape_are_refused():
    with pytest.raises(UserError, match="32 samples x 9 channels, not of 40 x 9"):
        Conv2dFSQ(**SMALL)(torch.randn(1, 40, 9))


# What codes mean.

CODES = np.array([["7"], ["7"], ["7"], ["2"], ["2"], ["9"]])
LABELS = np.array([0, 0, 1, 1, 1, 0])


def test_the_classifier_that_sees_only_codes():
    known = behavior.CodeClassifier(CODES, LABELS, 2)
    assert known.predict(np.array([["7"], ["2"], ["9"]])).tolist() == [0, 1, 0]
    assert known.unseen(np.array([["7"], ["5"]])) == 0.5
    frequent = behavior.CodeClassifier(CODES, np.array([2, 2, 1, 1, 1, 1]), 3)
    assert frequent.predict(np.array([["unseen"]])).tolist() == [1]
    # the majority decides, however rare the behaviour is elsewhere
    rare = behavior.CodeClassifier(np.array([["a"]] * 5 + [["b"]] * 100), np.array([0] * 3 + [1] * 102), 2)
    assert rare.predict(np.array([["a"]])).tolist() == [0]


def test_unseen_codes_are_read_as_the_nearest_known():
    known = np.array([["0-0", "a"], ["0-0", "b"], ["10-10", "b"]])
    places = np.array([[[0, 0], [0, 1]], [[0, 0], [5, 5]], [[9, 9], [5, 5]]])
    codes = np.array([["0-0", "a"], ["7-7", "b"], ["1-2", "c"]])
    where = np.array([[[9, 9], [0, 1]], [[6, 6], [5, 5]], [[1, 2], [4, 3]]])  # what is known stays, wherever
    found = behavior.nearest_known(codes, known, where, places)
    assert found.tolist() == [["0-0", "a"], ["10-10", "b"], ["0-0", "b"]]


def test_several_codes_decide_together():
    codes = np.array([["1", "1"], ["1", "2"], ["2", "1"], ["2", "2"]] * 5)
    labels = np.array([0, 1, 1, 1] * 5)
    known = behavior.CodeClassifier(codes, labels, 2)
    assert known.predict(codes[:4]).tolist()[3] == 1 and known.predict(np.array([["1", "1"]])).tolist() == [0]


def test_what_codes_of_windows_stand_for():
    found = behavior.meanings(np.array([[7], [7], [7], [2], [2], [9]]), LABELS, ["walk", "sit", "lie"])
    assert found["entries"][0] == {"code": [7], "count": 3, "share": 0.5, "label": "walk", "purity": 2 / 3,
                                   "labels": {"walk": 2, "sit": 1}}
    assert [row["code"] for row in found["entries"]] == [[7], [2], [9]]
    assert found["summary"]["purity"] == pytest.approx(5 / 6)
    assert found["summary"]["pure_codes"] == pytest.approx(2 / 3)
    assert {name: row["own"] for name, row in found["behaviors"].items()} == {"walk": 2, "sit": 1}


def test_several_codes_of_a_window_each_stand_for_themselves():
    found = behavior.meanings(np.array([[[1, 2], [3, 4]], [[1, 2], [5, 6]]]), np.array([0, 1]), ["a", "b"])
    assert found["entries"][0]["code"] == [1, 2] and found["entries"][0]["labels"] == {"a": 1, "b": 1}
    assert found["summary"]["tokens"] == 4 and found["summary"]["codes_used"] == 3


def test_transitions_stay_within_recordings():
    indices = np.array([[8], [5], [8], [5], [5]])  # out of order; of the second recording a window is missing
    recordings, starts = np.array([0, 1, 0, 1, 0]), np.array([0, 192, 64, 0, 128])
    moves = behavior.transitions(indices, recordings, starts, 64)
    assert moves["steps"] == 2 and moves["stay"] == 0.5
    assert moves["top"] == [{"from": [8], "to": [5], "count": 1, "probability": 0.5}]
    assert moves["next_bits"] == pytest.approx(1) and moves["entropy_bits"] == pytest.approx(1)
    assert behavior.transitions(indices[:1], recordings[:1], starts[:1], 64) is None
    assert behavior.transitions(indices, recordings, starts, 32) is None


def test_codes_of_several_axes_are_one_text():
    assert behavior.code_texts(np.array([[[3, 4]], [[0, 1]]])).tolist() == [["3-4"], ["0-1"]]
    assert behavior.code_texts(np.array([[3, 4]])).tolist() == [["3", "4"]]


def test_rates_name_both_baselines():
    found = behavior.rates(4800, 1, SensorSpec((), 50.0, 128, ("a", "b")), 5.0)
    assert found["bits_per_window"] == pytest.approx(np.log2(4800))
    assert found["window_bits_float32"] == 128 * 9 * 32 and found["window_bits_sensor"] == 128 * 6 * 16
    assert found["compression_sensor"] == pytest.approx(128 * 6 * 16 / np.log2(4800))
    assert found["bits_per_second"] == pytest.approx(np.log2(4800) * 50 / 64)


def test_disturbances_are_repeatable_and_as_large_as_they_say():
    windows, std = np.ones((50, 32, 9), np.float32), np.full(9, 2, np.float32)
    found, again = (behavior.disturbances(windows, std, 3) for _ in range(2))
    assert all(np.array_equal(found[name], again[name]) for name in found)
    assert (found["noise of 0.1 of each channel's std"] - windows).std() == pytest.approx(0.2, rel=0.05)
    assert np.allclose(found["gain 0.8"], 0.8)
    turned = found["sensor turned by 90 degrees"]
    assert np.allclose(np.linalg.norm(turned[..., :3], axis=-1), 3**0.5, atol=1e-5)
    assert not np.allclose(turned[0], turned[1])


def test_windows_are_turned_in_training_as_the_seed_says():
    windows = np.random.default_rng(0).standard_normal((4, 16, 9)).astype(np.float32)
    data = InertialWindows(windows, np.arange(4), np.arange(4), np.zeros(4), rotate=30)
    one, same, other = (data[key][0] for key in ((1, 5), (1, 5), (1, 6)))
    assert torch.equal(one, same) and not torch.allclose(one, other, atol=1e-2)
    assert torch.allclose(data.normalised().mean((0, 1)), torch.zeros(9), atol=1e-5)


# The commands.

FREQUENCIES = {"rest": 0.0, "slow": 1.5, "fast": 5.0}
TRAIN = ["--device", "cpu", "--num_workers", "0", "--hidden_dim", "16", "--batch_size", "8", "--log_every",
         "5", "--lr", "5e-3", "--warm_up_iter", "5"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder with recordings of five people, as CSV and as a data set, and a trained network."""
    root = tmp_path_factory.mktemp("imu")
    source = root / "source"
    source.mkdir()
    rows = [("file", "subject", "label")]
    for person in range(5):
        for label, frequency in FREQUENCIES.items():
            columns = six(400, frequency) | {"gyro_x": np.full(400, 0.01 * person)}  # tells whose it is
            write_csv(source / f"{person}_{label}.csv", columns)
            rows.append((f"{person}_{label}.csv", f"person{person}", label))
    with open(source / "recordings.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert call("scripts.prepare_imu", "--source", source, "--out", "datasets/mine", "--window", 64) == 0
        # whitened, the little that there is besides three behaviours is spread over codes: whose window it is
        assert call("train_behavior", "--name", "codes", "--dataset_name", "mine", "--epoch", 25, "--norm",
                    "scale", *TRAIN) == 0
    return root


@pytest.fixture
def work(recorded, monkeypatch):
    monkeypatch.chdir(recorded)
    return recorded


def people_of(root, split):
    windows = np.load(root / f"datasets/mine/{split}.npz")["windows"]
    return {*(windows[:, 0, 3] * 100).round().astype(int).tolist()}


def test_nobody_is_in_two_splits(work):
    people = [people_of(work, split) for split in ("train", "val", "test")]
    assert all(people) and sum(map(len, people)) == 5 == len(set.union(*people))
    about = json.loads((work / "datasets/mine/dataset.json").read_text())
    assert about["behaviors"] == ["fast", "rest", "slow"] and about["window"] == 64
    train = np.load(work / "datasets/mine/train.npz")
    assert train["starts"].max() == 320 and len(train["labels"]) == len(people[0]) * 3 * 11


def test_training_and_evaluation(work, capsys):
    assert call("evaluation_behavior", "--name", "codes", "--dataset_name", "mine", "--device", "cpu") == 0
    out = capsys.readouterr().out
    results = json.loads((work / "checkpoints/mine/codes/eval/evaluation_behavior.json").read_text())
    codes, record = results["codes"], json.loads((work / "checkpoints/mine/codes/run.json").read_text())
    assert results["accuracy"] > 0.9 and codes["accuracy_from_code"] > 0.9 and "from the code alone" in out
    here, known = codes["dictionary"]["entries"], codes["dictionary_of_train"]
    assert codes["usage"]["codes_used"] == len(here) < codes["usage"]["tokens"] == 33
    assert sum(row["count"] for row in here) == results["windows"] == 33
    assert sum(row["own"] for row in known["behaviors"].values()) == known["summary"]["codes_used"]
    assert codes["transitions"]["steps"] == 30 and codes["rates"]["bits_per_window"] > 12
    assert set(results["latency"]) == {"encoder", "quantizer", "classifier", "decoder", "window_to_behavior"}
    assert results["robustness"]["gain 0.95"]["accuracy"] > 0.8
    assert all(0 <= row["same_code"] <= 1 for row in results["robustness"].values())
    assert {"train.npz", "dataset.json"} <= {*record["data"]["lists"]}


def test_other_splits_have_results_of_their_own(work):
    flags = ["--name", "codes", "--dataset_name", "mine", "--device", "cpu"]
    assert call("evaluation_behavior", *flags) == call("evaluation_behavior", *flags, "--split", "val") == 0
    folder = work / "checkpoints/mine/codes/eval"
    assert [json.loads((folder / f"evaluation_behavior{end}.json").read_text())["split"]
            for end in ("", "_val")] == ["test", "val"]
    assert newest_result(folder, "evaluation_behavior")["split"] == "test"


def test_flags_of_virtual_sensors_are_refused_for_recordings(work, capsys):
    for script, flag, value in (("train_behavior", "--places", "hip"), ("train_behavior", "--rate", "100"),
                                ("train_behavior", "--window", "64"), ("train_behavior", "--min_clips", "2"),
                                ("scripts.behavior_bench", "--label_separator", ",")):
        assert call(script, "--name", "new", "--dataset_name", "mine", flag, value) == 2
        assert f"{flag} is for virtual sensors, and mine is a set of recordings" in capsys.readouterr().err


def test_results_outlive_an_onnx_file_that_cannot_be_written(work, capsys):
    pytest.importorskip("onnx", reason="ONNX export is not tested: the package onnx is not installed")
    pytest.importorskip("onnxruntime", reason="ONNX export is not tested: no onnxruntime here")
    path = work / "checkpoints/mine/codes/eval/evaluation_behavior.json"
    path.unlink(missing_ok=True)
    assert call("evaluation_behavior", "--name", "codes", "--dataset_name", "mine", "--device", "cpu",
                "--onnx", "/proc/nothing/codes.onnx") == 2
    assert "cannot write /proc/nothing/codes.onnx" in capsys.readouterr().err and path.is_file()


def test_the_control_has_no_codes(work, capsys):
    flags = ["--name", "none", "--dataset_name", "mine"]
    assert call("train_behavior", *flags, "--quantizer", "none", "--epoch", 1, *TRAIN) == 0
    assert call("evaluation_behavior", *flags, "--device", "cpu") == 0
    out = capsys.readouterr().out
    results = json.loads((work / "checkpoints/mine/none/eval/evaluation_behavior.json").read_text())
    assert results["codes"] is None and "code alone" not in out and "same code" not in out


def test_a_training_resumes_as_if_it_had_not_stopped(work):
    flags = ["--dataset_name", "mine", "--rotate", "20", *TRAIN]
    assert call("train_behavior", "--name", "whole", "--epoch", 3, *flags) == 0
    assert call("train_behavior", "--name", "parts", "--epoch", 1, *flags) == 0
    assert call("train_behavior", "--name", "parts", "--epoch", 3, "--is_continue", *flags) == 0
    whole, parts = (torch.load(work / f"checkpoints/mine/{name}/model/latest.tar", weights_only=True)
                    for name in ("whole", "parts"))
    assert all(torch.equal(value, parts["behavior"][name]) for name, value in whole["behavior"].items())
    assert call("train_behavior", "--name", "parts", "--epoch", 4, "--is_continue", *flags, "--fsq_levels",
                "5", "5") == 2


def test_onnx_computes_the_same(work, tmp_path, capsys):
    pytest.importorskip("onnx", reason="ONNX export is not tested: the package onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="ONNX export is not tested: no onnxruntime here")
    path = tmp_path / "codes.onnx"
    assert call("evaluation_behavior", "--name", "codes", "--dataset_name", "mine", "--device", "cpu",
                "--onnx", path) == 0
    assert "by onnxruntime 1.0000 of 33 windows" in capsys.readouterr().out
    windows = np.load(work / "datasets/mine/test.npz")["windows"]
    probabilities, codes = runtime.InferenceSession(path).run(None, {"window": windows[:1]})
    assert probabilities.sum() == pytest.approx(1, abs=1e-5) and codes.shape == (1, 1)


@pytest.mark.parametrize("quantizer", ["vq", "rvq", "none"])
def test_networks_of_other_quantizers_become_onnx(quantizer, tmp_path):
    pytest.importorskip("onnx", reason="ONNX export is not tested: the package onnx is not installed")
    pytest.importorskip("onnxruntime", reason="ONNX export is not tested: no onnxruntime here")
    torch.manual_seed(0)
    model = Conv2dFSQ(quantizer=quantizer, fsq_levels=[5, 5], **SMALL)
    network = Deployed(model, torch.zeros(9), torch.ones(9))
    found = write_onnx(network, torch.randn(6, 32, 9), tmp_path / "a.onnx")
    assert found["same_codes"] == 1 and found["bytes"] == (tmp_path / "a.onnx").stat().st_size


def test_an_onnx_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX export is not tested: no onnxruntime here")
    pytest.importorskip("onnx", reason="ONNX export is not tested: the package onnx is not installed")
    network = Deployed(Conv2dFSQ(**SMALL), torch.zeros(9), torch.ones(9)).eval()

    class Wrong:
        def __init__(self, *_, **__):
            pass

        def run(self, _, feeds):
            probabilities, codes = (value.numpy() for value in network(torch.tensor(feeds["window"])))
            return probabilities, codes + 1

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    with torch.no_grad(), pytest.raises(UserError, match="0.0% of the codes are the same"):
        write_onnx(network, torch.randn(4, 32, 9), tmp_path / "a.onnx")
    assert not [*tmp_path.iterdir()]


def test_without_the_package_onnx_is_refused(work, tmp_path, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert call("evaluation_behavior", "--name", "codes", "--dataset_name", "mine", "--onnx",
                tmp_path / "a.onnx") == 2
    assert "--onnx needs the package onnxruntime" in capsys.readouterr().err


def test_monitor_prints_behaviours_over_time(work, tmp_path, capsys):
    parts = [six(300, frequency) for frequency in (0.0, 5.0)]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    path = write_csv(tmp_path / "day.csv", columns)
    flags = ["--name", "codes", "--dataset_name", "mine", "--device", "cpu", "--monitor"]
    assert call("evaluation_behavior", *flags, path) == 0
    table, stretches = capsys.readouterr().out.split("\n\n")
    rows = table.splitlines()[2:]
    assert len(rows) == len(cut(600, SensorSpec((), 50.0, 64, ()))) == 17
    assert rows[0].split()[:3] == ["0.00", "1.28", "rest"] and rows[-1].split()[2] == "fast"
    assert stretches.splitlines()[0].startswith("0.00 to ") and stretches.strip().endswith("s: fast")
    write_csv(path, six(30))
    assert call("evaluation_behavior", *flags, path) == 2
    assert "0.60 s are shorter than the network's window of 1.28 s" in capsys.readouterr().err
    assert call("evaluation_behavior", *flags, tmp_path / "nothing.csv") == 2
    assert call("evaluation_behavior", *flags, tmp_path / "joints.npy") == 2
    assert "joints are read by networks of virtual sensors" in capsys.readouterr().err


def test_the_doctor_knows_recordings_and_their_networks(work, tmp_path):
    assert [finding.level for finding in doctor.check_recordings(work / "datasets/mine")] == ["ok"] * 3
    damaged = shutil.copytree(work / "datasets/mine", tmp_path / "mine")
    content = (damaged / "train.npz").read_bytes()
    (damaged / "train.npz").write_bytes(content[: len(content) // 2])
    assert [finding.level for finding in doctor.check_recordings(damaged)] == ["damaged", "ok", "ok"]
    shutil.copytree(work / "checkpoints/mine/codes", tmp_path / "checkpoints/mine/codes")
    found, runs = doctor.check_runs(tmp_path / "checkpoints/mine", quick=True)
    assert [finding.level for finding in found] == ["ok"] and runs[0].kind == "behavior"


def test_the_bench_tabulates_quantizers(work, tmp_path, monkeypatch, capsys):
    """With a run that is there in place of trainings: what is called, and what becomes of the results."""
    assert call("evaluation_behavior", "--name", "codes", "--dataset_name", "mine", "--device", "cpu") == 0
    called = []

    def run(self, name, script, *flags):
        called.append([script, *map(str, flags)])
        folder = tmp_path / "checkpoints/mine" / name
        shutil.copytree(work / "checkpoints/mine/codes/eval", folder / "eval", dirs_exist_ok=True)
        return 1.5

    monkeypatch.setattr(behavior_bench.Bench, "call", run)
    flags = ["--dataset_name", "mine", "--seeds", "2", "--rows", "fsq", "ema", "--norm", "scale",
             "--checkpoints_dir", tmp_path / "checkpoints", "--output_dir", tmp_path / "table"]
    assert call("scripts.behavior_bench", *flags) == 0
    table = json.loads((tmp_path / "table/behavior_bench.json").read_text())
    assert [row["row"] for row in table["rows"]] == ["fsq", "ema"] and table["rows"][0]["seeds"] == 2
    row = table["rows"][0]
    assert 0.9 < row["accuracy_from_code"] <= 1 and 0.9 < row["accuracy_from_nearest_code"] <= 1
    assert (tmp_path / "table/behavior_bench.png").stat().st_size > 10_000
    assert len(called) == 8 and {words[0] for words in called} == {"train_behavior.py",
                                                                   "evaluation_behavior.py"}
    monkeypatch.setattr("sys.argv", called[0])
    args = train_behavior.parse_args()
    assert (args.quantizer, args.seed, args.fsq_levels, args.epoch) == ("fsq", 3407, [8, 6, 5, 5, 4], 40)
    assert args.norm == "scale"
    called.clear()
    assert call("scripts.behavior_bench", *flags) == 0 and not called  # all is there
    capsys.readouterr()
    assert call("scripts.behavior_bench", *flags, "--epoch", "3") == 2
    assert "was made with epoch 40, not 3" in capsys.readouterr().err
    model = tmp_path / "checkpoints/mine/behavior_bench_fsq_3407/model"
    shutil.copytree(work / "checkpoints/mine/codes/model", model)
    assert call("scripts.behavior_bench", *flags[:-1], tmp_path / "other") == 2
    assert f"{model / 'latest.tar'} was begun with" in capsys.readouterr().err and not called


def test_annealed_temperatures_follow_the_training(work):
    flags = ["--name", "annealed", "--dataset_name", "mine", "--quantizer", "gumbel", "--quantizer_settings",
             "temperature=anneal", "--epoch", "1", *TRAIN]
    assert call("train_behavior", *flags) == 0
    state = torch.load(work / "checkpoints/mine/annealed/model/latest.tar", weights_only=True)["behavior"]
    assert int(state["quantizer.horizon"]) == int(state["quantizer.steps"]) > 1
    # and the codes of a codebook are reported as those of a grid are
    assert call("evaluation_behavior", *flags[:4], "--device", "cpu") == 0
    report = work / "checkpoints/mine/annealed/eval/evaluation_behavior.json"
    codes = json.loads(report.read_text())["codes"]
    assert 0 < codes["accuracy_from_nearest_code"] <= 1 and codes["usage"]["codes_used"] > 0


# prepare_imu.

def har_like(path, subjects=None, people=6, each=10):
    """A .npz of windows: each person's is one recording of one behaviour."""
    long = np.random.default_rng(0).standard_normal((people, (each + 1) * 16, 9)).round(3)
    windows = np.concatenate([[row[16 * i : 16 * i + 32] for i in range(each)] for row in long])
    labels = np.repeat(np.arange(people) % 2, each)
    given = {} if subjects is None else {"subjects_train": np.repeat(np.arange(people), each)}
    np.savez(path, X_train=windows, y_train=labels, X_test=windows[:5], y_test=labels[:5], **given)
    return path


def test_windows_of_a_npz_are_split_by_people_and_chained_to_recordings(tmp_path, capsys):
    source = har_like(tmp_path / "a.npz", subjects=True)
    assert call("scripts.prepare_imu", "--source", source, "--out", tmp_path / "mine", "--val_subjects", "4",
                "--behaviors", "walk", "sit") == 0
    train, val = (np.load(tmp_path / f"mine/{split}.npz") for split in ("train", "val"))
    assert len(val["labels"]) == 10 and len(train["labels"]) == 50
    assert np.array_equal(val["windows"], np.load(source)["X_train"][40:50].astype(np.float32))
    assert val["starts"].tolist() == [16 * i for i in range(10)] and len({*train["recordings"].tolist()}) == 5


def test_windows_of_nobody_known_need_a_gap(tmp_path, capsys):
    source = har_like(tmp_path / "a.npz")
    flags = ["--source", source, "--out", tmp_path / "mine"]
    assert call("scripts.prepare_imu", *flags) == 2
    assert "pass --most_per_person N" in capsys.readouterr().err and not (tmp_path / "mine").exists()
    assert call("scripts.prepare_imu", *flags, "--most_per_person", "10") == 0
    train, val = (np.load(tmp_path / f"mine/{split}.npz")["windows"] for split in ("train", "val"))
    assert len(val) == 9 and len(train) == 41
    assert np.array_equal(train, np.load(source)["X_train"][:41].astype(np.float32))
    assert call("scripts.prepare_imu", *flags, "--most_per_person", "10") == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("change,message", [
    ({"y_train": np.full(60, 7)}, "y_train must be whole numbers from 0 to 1"),
    ({"X_train": np.zeros((60, 32, 6))}, "(windows, samples, 9)"),
    ({"X_train": np.full((60, 32, 9), np.nan)}, "X_train holds NaN"),
    ({"y_train": np.array(["walk"] * 60)}, "y_train must be whole numbers from 0 to 1"),
    ({"X_train": np.zeros((0, 32, 9)), "y_train": np.zeros(0, int)}, "X_train has no windows"),
    ({"X_train": np.full((60, 32, 9), "x")}, "holds no numbers"),
    ({"X_test": np.zeros((5, 16, 9))}, "must have as many samples"),
    ({"X_train": np.zeros((60, 20, 9)), "X_test": np.zeros((5, 20, 9))}, "multiple of 8 samples")])
def test_npz_files_that_cannot_be_used(change, message, tmp_path, capsys):
    arrays = dict(np.load(har_like(tmp_path / "a.npz"))) | change
    np.savez(tmp_path / "b.npz", **arrays)
    flags = ["--source", tmp_path / "b.npz", "--out", tmp_path / "mine", "--most_per_person", 5]
    assert call("scripts.prepare_imu", *flags, "--behaviors", "a", "b") == 2
    said = capsys.readouterr().err
    assert message in said and not (tmp_path / "mine").exists()
    if "y_train" in change and change["y_train"].dtype.kind == "U":  # nor without names
        assert call("scripts.prepare_imu", *flags) == 2


@pytest.mark.parametrize("subjects, flags, message", [
    (None, ["--val_subjects", "4"], "--val_subjects: "),
    (True, ["--most_per_person", "5"], "says whose its windows are"),
    (True, ["--window", "64"], "--window goes with a folder of CSV files"),
    (True, ["--acceleration_unit", "m/s2"], "--acceleration_unit goes with a folder"),
    (True, ["--window", "1"], "must be a whole number of 2 or more"),
    (True, ["--rate", "0.5"], "must be a number of 1.0 or more")])
def test_flags_that_a_npz_has_no_use_for(subjects, flags, message, tmp_path, capsys):
    source = har_like(tmp_path / "a.npz", subjects)
    assert call("scripts.prepare_imu", "--source", source, "--out", tmp_path / "mine", *flags) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "mine").exists()


def test_people_to_validate_on_are_not_drawn_for_the_test(recorded, tmp_path, capsys):
    flags = ["--source", recorded / "source", "--window", "64", "--val_subjects"]
    for person in range(5):
        assert call("scripts.prepare_imu", *flags, f"person{person}", "--out", tmp_path / f"{person}") == 0
    assert call("scripts.prepare_imu", *flags, "person1", "--test_subjects", "person1", "person2", "--out",
                tmp_path / "mine") == 2
    assert "'person1' is in --val_subjects and in --test_subjects" in capsys.readouterr().err


def test_recordings_of_two_people_are_too_few(recorded, tmp_path, capsys):
    rows = (recorded / "source/recordings.csv").read_text().splitlines()
    (tmp_path / "recordings.csv").write_text("\n".join(rows[:6]))
    assert call("scripts.prepare_imu", "--source", tmp_path, "--out", tmp_path / "mine") == 2
    assert "recordings of 2 people; 3 are needed" in capsys.readouterr().err


def test_nobody_is_two_people_and_no_file_is_of_two(recorded, tmp_path, capsys):
    source = shutil.copytree(recorded / "source", tmp_path / "source")
    table = (source / "recordings.csv").read_text().splitlines()
    spaced = [line.replace("person1,", " person1 ,") if "slow" in line else line for line in table]
    (source / "recordings.csv").write_text("\n".join(spaced))
    flags = ["--source", source, "--window", "64", "--out"]
    assert call("scripts.prepare_imu", *flags, tmp_path / "mine", "--test_subjects", "person1") == 0
    assert len(np.load(tmp_path / "mine/test.npz")["labels"]) == 3 * 11  # all three of this person
    (source / "recordings.csv").write_text("\n".join([*table, table[1].replace("person0", "person9")]))
    assert call("scripts.prepare_imu", *flags, tmp_path / "other") == 2
    assert "is in row 2 and in row 17; a recording is of one person" in capsys.readouterr().err


def test_a_behaviour_that_training_never_shows_is_named(recorded, tmp_path, capsys):
    source = shutil.copytree(recorded / "source", tmp_path / "source")
    table = (source / "recordings.csv").read_text()
    (source / "recordings.csv").write_text(table.replace("person1,slow", "person1,crawling"))
    assert call("scripts.prepare_imu", "--source", source, "--window", "64", "--out", tmp_path / "mine",
                "--test_subjects", "person1") == 0
    assert "warning: no window for training shows 'crawling'" in capsys.readouterr().err


# Virtual sensors on a motion data set.

@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("virtual")
    build_demo(root / "datasets/demo", num_clips=100)
    return root


def test_behaviours_of_the_demo_set(demo, monkeypatch, capsys):
    monkeypatch.chdir(demo)
    flags = ["--name", "codes", "--dataset_name", "demo", "--min_clips", "1", "--places", "hip",
             "--window", "64"]
    assert call("train_behavior", *flags, "--check", *TRAIN) == 0
    assert "can run" in capsys.readouterr().out and not (demo / "checkpoints").exists()
    assert call("train_behavior", *flags, "--epoch", 1, *TRAIN) == 0
    captured = capsys.readouterr()
    assert "exactly one label" in captured.err
    assert call("evaluation_behavior", *flags[:4], "--device", "cpu") == 0, capsys.readouterr().err
    results = json.loads((demo / "checkpoints/demo/codes/eval/evaluation_behavior.json").read_text())
    labels = json.loads((demo / "datasets/demo/labels.json").read_text())
    assert {*results["behaviors"]} <= {name for label in labels.values() for name in label["actions"]}
    assert results["sensors"]["places"] == ["hip"] and results["codes"]["transitions"]["steps"] > 0
    np.save(demo / "clip.npy", walk(SKELETONS["t2m"], 100))
    capsys.readouterr()
    assert call("evaluation_behavior", *flags[:4], "--device", "cpu", "--monitor", "clip.npy") == 0
    assert len(capsys.readouterr().out.split("\n\n")[0].splitlines()) == 2 + 6  # 4.95 s


def test_a_label_without_its_style(demo):
    from utils.data.inertial import Virtual
    from utils.data.specs import get_spec

    spec = get_spec("demo", demo / "datasets")
    path = demo / "datasets/demo/labels.json"
    text = path.read_text()
    labels = {name: {"actions": [f"{'walk' if 'walk' in label['actions'][0] else 'other'}, {name}"]}
              for name, label in json.loads(text).items()}
    try:
        path.write_text(json.dumps(labels))
        sensors = Virtual(spec, SensorSpec(("hip",), 50.0, 128, (), ","))
        data = sensors.split("test")
    finally:
        path.write_text(text)
    assert sensors.spec.behaviors == ("other", "walk") and {*data.labels.tolist()} == {0, 1}
    same = data.recordings == data.recordings[0]
    assert (np.diff(data.starts[same]) == 64).all() and data.windows.shape[1:] == (128, 9)


def test_a_network_of_recordings_asks_for_recordings(recorded, demo, monkeypatch, capsys):
    monkeypatch.chdir(demo)
    (demo / "checkpoints/demo").mkdir(parents=True, exist_ok=True)
    if not (demo / "checkpoints/demo/other").exists():
        (demo / "checkpoints/demo/other").symlink_to(recorded / "checkpoints/mine/codes")
    assert call("evaluation_behavior", "--name", "other", "--dataset_name", "demo") == 2
    assert "is no set of recordings" in capsys.readouterr().err


def test_places_twice_and_settings_of_nothing(demo, monkeypatch, capsys):
    monkeypatch.chdir(demo)
    flags = ["--name", "bad", "--dataset_name", "demo", "--min_clips", "2"]
    assert call("train_behavior", *flags, "--places", "hip", "hip") == 2
    assert "names a place twice" in capsys.readouterr().err
    assert call("train_behavior", *flags, "--quantizer", "none", "--quantizer_settings", "beta=1") == 2
    assert "--quantizer is none" in capsys.readouterr().err
