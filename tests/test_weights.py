"""Weights for sharing: exported runs give what the runs give, and those in pretrained/ make a clip."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FakeEncoder
from tiny import FAST, call, fake_features, write_checkpoints

import sample
from models.LengthEstimator import LengthEstimator
from models.loading import load_autoencoder, load_generator
from utils import clips
from utils.errors import UserError
from utils.files import RunFolder, read_checkpoint, write_weights
from utils.motion.skeletons import SKELETONS
from utils.training.finetuning import Parent
from utils.weights import join, split

SIZE = 40e6  # bytes of pretrained/, at most
HEAD_AND_WRISTS = [15, 20, 21]  # of HumanML3D; left before right


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with a tiny generator, its autoencoder and a length estimator."""
    write_checkpoints(tmp_path, "body22", SKELETONS["t2m"])
    model = tmp_path / "checkpoints/body22/length_estimator/model"
    model.mkdir(parents=True)
    dataset = torch.load(tmp_path / "checkpoints/body22/ae/model/latest.tar", weights_only=True)["dataset"]
    torch.save({"estimator": LengthEstimator(16, 50).state_dict(), "dataset": dataset,
                "args": {"lr": 0.001, "dataset_dir": "/home/me"}}, model / "best.tar")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample, "load_text_encoder", lambda name: FakeEncoder(fake_features))
    return tmp_path


def export(*flags, name="mardm"):
    return call("scripts.export_weights", "--name", name, "--dataset_name", "body22", *flags)


def made(folder, name, *flags):
    """The joints that sample.py makes with a run in a folder of runs."""
    assert call("sample", "--checkpoints_dir", folder, "--name", name, "--dataset_name", "body22", *FAST,
                "--text_prompt", "walk", "--no_video", "--output_dir", f"out_{folder}", *flags) == 0
    file, = sorted((sample.Path(f"out_{folder}") / f"{name}_body22").glob("*.npy"))
    return np.load(file)


def test_an_exported_run_makes_the_same_clip(work):
    assert export("--save_as", "small", "--licence", "CC0") == 0
    names = sorted(path.parts[-3] for path in (work / "weights").rglob("*.safetensors"))
    assert names == ["length_estimator", "small", "small_AE"]
    before, after = made("checkpoints", "mardm"), made("weights", "small")  # at estimated lengths
    assert before.shape == after.shape and np.abs(before - after).max() < 0.02
    assert json.loads(next(sample.Path("out_weights").rglob("*.json")).read_text())["run"] == "small"


def test_half_precision_is_all_that_changes(work):
    assert export() == 0
    for name, load in (("ae", load_autoencoder), ("mardm", load_generator)):
        (one, before), (other, after) = (load(RunFolder(folder, "body22", name).checkpoint())
                                         for folder in ("checkpoints", "weights"))
        own = other.state_dict()
        for key, value in one.state_dict().items():
            rounded = value.half().float() if value.dtype == torch.float32 else value
            assert torch.equal(own[key], value if key == "position_enc.pe" else rounded), key
        for key in ("model_name", "model_kwargs", "dataset"):
            assert before[key] == after[key]
    assert torch.equal(read_checkpoint("weights/body22/ae/model/weights.safetensors")["mean"], torch.load(
        "checkpoints/body22/ae/model/latest.tar", weights_only=True)["mean"])


def test_positions_take_no_room_and_finetuning_does_without(work):
    assert export() == 0
    path = RunFolder("weights", "body22", "mardm").checkpoint()
    assert "position_enc.pe" not in read_checkpoint(path)["mardm"]
    model, content = load_generator(path)
    parent = Parent("weights/body22/mardm", "mardm", SimpleNamespace(checkpoints_dir="."), "body22")
    with torch.no_grad():
        wanted = model.position_enc.pe.clone()
        model.cond_emb.weight.zero_()
    parent.hand_over(model, {key: content[key] for key in ("model_name", "model_kwargs")})
    assert torch.equal(model.position_enc.pe, wanted) and model.cond_emb.weight.abs().sum() > 0


def test_no_folder_of_this_machine_goes_out(work):
    assert export() == 0
    args = json.loads((work / "weights/body22/length_estimator/model/weights.json").read_text())["args"]
    assert args == {"lr": 0.001}


def test_running_averages_are_what_is_exported(work):
    path = work / "checkpoints/body22/mardm/model/latest.tar"
    content = torch.load(path, weights_only=True)
    content["ema_mardm"] = {name: value + 1 for name, value in content["mardm"].items()}
    torch.save(content, path)
    assert export() == 0
    read = read_checkpoint("weights/body22/mardm/model/weights.safetensors")
    assert "ema_mardm" not in read
    assert torch.equal(read["mardm"]["cond_emb.bias"], content["ema_mardm"]["cond_emb.bias"].half().float())


@pytest.mark.parametrize("spoil, message", [
    (lambda model: (model / "weights.safetensors").write_bytes(b"\x08" + b"\0" * 7 + b"{}      "),
     "their checksum"),
    (lambda model: (model / "weights.safetensors").write_bytes(b"\xff" * 100), "is damaged"),
    (lambda model: (model / "weights.safetensors").write_bytes(
        (model / "weights.safetensors").read_bytes()[:-50]), "is damaged"),
    (lambda model: (model / "weights.json").unlink(), "which is missing"),
    (lambda model: (model / "weights.json").write_text("{"), "is not JSON"),
    (lambda model: (model / "weights.json").write_text("[]"), "no JSON object"),
])
def test_damaged_weights_are_named(work, spoil, message):
    assert export() == 0
    spoil(work / "weights/body22/ae/model")
    with pytest.raises(UserError, match=message):
        read_checkpoint("weights/body22/ae/model/weights.safetensors", ["ae"])


def test_what_cannot_be_exported_is_refused(work, capsys):
    def refused(*flags, **wanted):
        assert export(*flags, **wanted) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    assert "no checkpoint at" in refused(name="nobody")
    assert "no checkpoint at" in refused("--length_estimator", "nobody")
    assert not (work / "weights").exists()  # nothing half done
    assert export() == 0
    capsys.readouterr()
    assert "exists" in refused()
    torch.save({"ae": {}}, work / "checkpoints/body22/ae/model/latest.tar")
    assert "trained with this code" in refused("--output_dir", "other", name="ae")
    with pytest.raises(UserError, match="not finite"):
        write_weights(work / "x.safetensors", {"ae": {"a": torch.tensor([1e9])}})


def test_split_and_join_agree():
    content = {"ae": {"a": torch.tensor([1.5]), "n": torch.tensor(3)}, "mean": torch.tensor([0.1]), "x": [1]}
    back = join(*split(content))
    assert back["x"] == [1] and torch.equal(back["mean"], content["mean"])
    assert [value.dtype for value in back["ae"].values()] == [torch.float32, torch.int64]


def test_without_a_name_the_pretrained_weights_are_used(work, monkeypatch, capsys):
    assert export("--save_as", "pretrained", "--licence", "for tests", "--output_dir", "pretrained") == 0
    monkeypatch.setattr(clips, "PRETRAINED", work / "pretrained")
    capsys.readouterr()
    assert call("sample", "--dataset_name", "body22", "--text_prompt", "walk", *FAST, "--no_video") == 0
    assert "for tests" in capsys.readouterr().err
    assert len(list((work / "generation/pretrained_body22").glob("*.npy"))) == 1
    with pytest.raises(UserError, match="there are: body22"):
        sample.parse_args([])
    with pytest.raises(UserError, match="pass --name too"):
        sample.parse_args(["--checkpoints_dir", "checkpoints"])
    named = sample.parse_args(["--name", "mine"])
    assert (named.dataset_name, named.checkpoints_dir) == ("t2m", "./checkpoints")


@pytest.mark.parametrize("dataset, licence", [("demo", "MIT"), ("realmotion", "CC BY-NC 4.0")])
def test_the_weights_that_come_with_the_code_do_as_they_are_told(dataset, licence, tmp_path, monkeypatch,
                                                                 capsys):
    monkeypatch.chdir(tmp_path)
    assert call("sample", "--dataset_name", dataset, "--text_prompt", "a person waves with the right hand",
                "--motion_length", 80, "--time_steps", 6, "--no_video") == 0
    assert licence in capsys.readouterr().err
    joints = np.load(next((tmp_path / f"generation/pretrained_{dataset}").glob("*.npy")))
    assert joints.shape == (80, 22, 3)
    head, left_wrist, right_wrist = joints[:, HEAD_AND_WRISTS, 1].max(0)
    assert right_wrist > left_wrist + 0.3 and right_wrist > head - 0.3


def test_the_weights_that_come_with_the_code_are_small():
    files = [path for path in clips.PRETRAINED.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".md"}
    assert sum(path.stat().st_size for path in files) <= SIZE
