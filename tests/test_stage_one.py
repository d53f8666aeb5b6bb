"""Autoencoders for a generator: noise on the targets, narrow latents, fine-tuning of the decoder."""
import copy
import shutil

import numpy as np
import pytest
import torch
from test_scripts import ON_DEMO, TRAIN
from tiny import call

from models.AE import AE_models
from models.loading import load_autoencoder, weights_hash
from models.MARDM import check_pair
from utils.data.datasets import MotionStore, WindowDataset
from utils.data.specs import get_spec
from utils.demo.dataset import build_demo
from utils.files import read_checkpoint, write_checkpoint

SHORT = [*TRAIN, "--window_size", "40", "--batch_size", "1024", "--warm_up_iter", "0"]
KINDS = ["AE_Model", "FSQ_AE_High", "FSQ_AE_iFSQ_16x9_Direct", "VQ_AE_EMA", "VQ_AE_RVQ"]


def small(name, dropout=0.0):
    """An autoencoder of the zoo that has seen a batch, and a batch (8, 32, 67)."""
    torch.manual_seed(0)
    ae = AE_models[name](width=16, latent_dim=16, dropout=dropout).train()
    motion = torch.randn(8, 32, 67)
    ae(motion)  # codebooks start from it
    return ae, motion


def seen_by_decoder(ae, motion, noise):
    """The latents that the decoder reads, and its output, with torch's generator at 1."""
    seen = []
    handle = ae.decoder.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    torch.manual_seed(1)
    out = ae(motion, noise)
    handle.remove()
    return seen[0].detach(), out


@pytest.mark.parametrize("name", KINDS)
def test_noise_is_for_training_only(name):
    ae, motion = small(name)
    ae.eval()
    with torch.no_grad():
        assert torch.equal(ae(motion, 0.5).motion, ae(motion).motion)
        assert torch.equal(ae(motion).motion, ae.decode(ae.encode(motion)))
    ae.train()
    ae.requires_grad_(False)
    twins = [copy.deepcopy(ae) for _ in range(3)]  # a codebook moves with every pass
    clean, again, noisy = (seen_by_decoder(twin, motion, noise)[0]
                           for twin, noise in zip(twins, (0, 0, 0.5)))
    assert not torch.equal(clean, noisy)
    assert torch.equal(clean, again)


@pytest.mark.parametrize("name", KINDS)
def test_without_noise_nothing_is_drawn_and_nothing_changes(name):
    """The same as encoder, quantizer and decoder one after the other, dropout included."""
    ae, motion = small(name, dropout=0.3)
    state = {key: value.clone() for key, value in ae.state_dict().items()}
    out = seen_by_decoder(ae, motion, 0.0)[1].motion
    after = torch.get_rng_state()
    ae.load_state_dict(state)
    torch.manual_seed(1)
    assert torch.equal(ae.decode(ae.encode(motion)), out)
    assert torch.equal(torch.get_rng_state(), after)


def test_noise_follows_the_spread_of_each_dimension():
    ae = AE_models["AE_Model"](width=8, latent_dim=8).train()
    torch.manual_seed(0)
    scale = torch.tensor([0.0, 0.01, 1.0, 100.0])
    targets = (torch.randn(64, 50, 4) * scale + 7).requires_grad_()
    noise = (ae.disturb(targets, 0.3) - targets).detach()
    assert torch.allclose(noise.std((0, 1)), 0.3 * scale, rtol=0.05)
    assert float((noise.mean((0, 1)).abs() - 0.02 * scale).max()) <= 0
    assert ae.disturb(targets.bfloat16(), 0.3).dtype == torch.bfloat16


def test_wider_targets_do_not_escape_the_noise():
    """A wider latent meets wider noise, so the loss has no gradient along its scale."""
    ae = AE_models["AE_Model"](width=8, latent_dim=8).train()
    torch.manual_seed(0)
    targets, scale = torch.randn(8, 8, 4), torch.ones((), requires_grad=True)
    torch.manual_seed(1)
    noisy = ae.disturb(targets * scale, 0.5) / scale
    (noisy * torch.randn(8, 8, 4)).sum().backward()
    assert abs(float(scale.grad)) < 1e-4


@pytest.mark.parametrize("name", KINDS)
def test_the_gradient_reaches_the_encoder(name):
    ae, motion = small(name)
    out = seen_by_decoder(ae, motion, 0.5)[1]
    (out.motion - motion).square().mean().backward()
    grads = {key: value.grad for key, value in ae.encoder.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
    assert all(float(grads[key].abs().sum()) > 0 for key in ("model.0.weight", "model.4.weight"))


def test_a_dimension_without_spread_has_a_gradient():
    ae = AE_models["AE_Model"](width=8, latent_dim=8).train()
    targets = torch.ones(2, 3, 4, requires_grad=True)
    noisy = ae.disturb(targets, 0.5)
    noisy.square().sum().backward()
    assert torch.equal(noisy, targets) and torch.equal(targets.grad, torch.full((2, 3, 4), 2.0))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a small demo set, an autoencoder and a generator that was trained on it."""
    root = tmp_path_factory.mktemp("stage_one")
    build_demo(root / "datasets" / "demo", num_clips=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        train("ae", "--model", "FSQ_AE_High", "--width", "16", "--lr", "1e-2", epochs=6)
        assert call("train_MARDM", "--name", "mardm", "--ae_name", "ae", "--ae_model", "FSQ_AE_High",
                    "--model", "FSQ-MARDM-SiT-S", "--cond_mode", "uncond", *TRAIN, "--max_iter", "1") == 0
    return root


@pytest.fixture
def work(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


def train(name, *flags, epochs=2, code=0):
    assert call("train_AE", "--name", name, *SHORT, "--epoch", epochs, *flags) == code


def path_of(name, file):
    return f"checkpoints/demo/{name}/model/{file}"


def content(name, file="latest.tar"):
    return read_checkpoint(path_of(name, file))


def differing(one, other):
    """The names of the weights and buffers that differ between two checkpoints' autoencoders."""
    assert one["ae"].keys() == other["ae"].keys()
    return {name for name, value in one["ae"].items() if not torch.equal(value, other["ae"][name])}


def test_training_with_noise_resumes_bit_for_bit(work):
    flags = ["--model", "FSQ_AE_iFSQ_16x9_Direct", "--width", "16", "--latent_noise", "0.5"]
    train("whole", *flags)
    train("parts", *flags, epochs=1)
    train("parts", *flags, "--is_continue")
    assert not differing(content("whole"), content("parts"))
    train("clean", *flags[:-2])
    assert differing(content("whole"), content("clean"))


def test_noise_is_no_less_than_nothing(work, capsys):
    train("negative", "--latent_noise", "-1", code=2)
    assert "--latent_noise: must be a number of 0 or more" in capsys.readouterr().err


@pytest.mark.parametrize("channels", [64, 16])
def test_narrow_latents_stay_narrow_at_any_width(work, channels):
    name = f"AE_Model_{channels}"
    train(name, "--model", name, "--width", "24", "--max_iter", "1")
    ae, saved = load_autoencoder(path_of(name, "best.tar"), name)
    assert ae.latent_dim == ae.target_dim == channels and saved["model_kwargs"]["width"] == 24
    assert ae.encode_targets(torch.zeros(1, 8, 67))[1].shape == (1, 2, channels)
    check_pair("MARDM-SiT-S", name)


@pytest.mark.parametrize("name", ["AE_Model", "FSQ_AE_iFSQ_64x17_Norm", "FSQ_AE_NoiseDropout", "VQ_AE_EMA",
                                  "VQ_AE_RVQ", "VQ_AE_Gumbel", "VQ_AE_DiVeQ"])
def test_only_the_decoder_trains(name):
    """Nor does training mode change targets, by dropout or noise of the quantizer."""
    ae, motion = small(name, dropout=0.3)
    ae.train_decoder_only()
    before = {key: value.clone() for key, value in ae.state_dict().items()}
    targets = ae.eval().encode_targets(motion)[1]
    optimizer = torch.optim.AdamW(ae.parameters(), 1e-2, weight_decay=0.1)
    for _ in range(2):
        out = ae.train()(motion, 0.3)
        (out.motion.square().mean() + out.loss).backward()
        optimizer.step()
        assert torch.equal(ae.encode_targets(motion)[1], targets)
    changed = {key for key, value in ae.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if key.startswith("decoder.")}
    assert ae.decoder.training and not ae.encoder.training


def test_fine_tuning_begins_with_the_run_and_improves_its_decoder(work):
    train("tuned", "--finetune_decoder", "ae", "--lr", "5e-3", epochs=3)
    parent, tuned = content("ae", "best.tar"), content("tuned")
    assert all(name.startswith("decoder.") for name in differing(parent, tuned))
    assert (tuned["model_name"], tuned["model_kwargs"]) == (parent["model_name"], parent["model_kwargs"])
    assert tuned["decoder_of"] == {"name": "ae", "hashes": [hash_of("ae")]}
    assert error_of("tuned", "latest.tar") < 0.97 * error_of("ae", "best.tar")
    train("hardly", "--finetune_decoder", "ae", "--lr", "1e-9", epochs=1)
    assert all(torch.allclose(value, parent["ae"][name], atol=1e-6)
               for name, value in content("hardly")["ae"].items())


def test_schedules_begin_anew_in_fine_tuning_and_stay_where_the_decoder_alone_is_trained(work):
    train("annealed", "--model", "VQ_AE_Gumbel_Annealed", "--width", "16", "--max_iter", "2")
    train("again", "--finetune", "annealed", "--max_iter", "1")
    train("decoder", "--finetune_decoder", "annealed", "--max_iter", "1")
    steps = {name: [int(content(name)["ae"][f"quantizer.{key}"]) for key in ("horizon", "steps")]
             for name in ("annealed", "again", "decoder")}
    assert steps == {"annealed": [2, 2], "again": [1, 1], "decoder": [2, 2]}


@torch.no_grad()
def error_of(name, file):
    """Mean squared error of a run's reconstructions of training windows, in standard deviations."""
    windows = WindowDataset(MotionStore(get_spec("demo", "datasets"), "train"), 40)
    motion = torch.stack([windows[index, 0] for index in range(0, len(windows), 20)])
    return float((load_autoencoder(path_of(name, file))[0](motion).motion - motion).square().mean())


def hash_of(name):
    return weights_hash(load_autoencoder(path_of(name, "best.tar"))[0])


def test_fine_tuning_resumes_bit_for_bit(work, capsys):
    flags = ["--finetune_decoder", "ae", "--latent_noise", "0.5"]
    train("tuned_whole", *flags)
    train("tuned_parts", *flags, epochs=1)
    train("tuned_parts", *flags[2:], "--is_continue", code=2)
    assert "began with --finetune_decoder ae" in capsys.readouterr().err
    train("tuned_parts", *flags, "--is_continue")
    assert not differing(content("tuned_whole"), content("tuned_parts"))
    train("ae", *flags, "--is_continue", code=2)
    assert "began without --finetune_decoder" in capsys.readouterr().err


def test_fine_tuning_goes_on_with_the_run_that_it_began_with(work, capsys):
    for file in ("latest.tar", "best.tar"):
        write_checkpoint(path_of("moving", file), content("ae", file))
    train("follower", "--finetune_decoder", "moving", epochs=1)
    parent = content("moving", "best.tar")
    parent["ae"]["encoder.model.0.bias"] += 1
    write_checkpoint(path_of("moving", "best.tar"), parent)
    train("follower", "--finetune_decoder", "moving", "--is_continue", code=2)
    assert "was trained with another autoencoder to begin with" in capsys.readouterr().err


def sample(ae_name, *flags):
    return call("sample", "--name", "mardm", "--ae_name", ae_name, *ON_DEMO, "--motion_length", "40",
                "--time_steps", "1", "--ode_steps", "1", "--no_video", "--output_dir", ae_name, *flags)


def test_a_generator_goes_with_a_decoder_that_was_tuned_since(work, capsys):
    """Also with one that was tuned twice, but not with an autoencoder of the same kind and other weights."""
    train("once", "--finetune_decoder", "ae", "--lr", "1e-2", epochs=1)
    train("twice", "--finetune_decoder", "once", "--lr", "1e-2", epochs=1)
    assert content("twice")["decoder_of"]["hashes"] == [hash_of("once"), hash_of("ae")]
    clips = []
    for name in ("ae", "once", "twice"):
        assert sample(name) == 0, capsys.readouterr().err
        clips += [np.load(path) for path in (work / name).rglob("*.npy")]
    assert len(clips) == 3 and not np.array_equal(clips[0], clips[1])
    train("stranger", "--model", "FSQ_AE_High", "--width", "16", "--seed", "1", epochs=1)
    train("tuned_stranger", "--finetune_decoder", "stranger", epochs=1)
    for name in ("stranger", "tuned_stranger"):
        capsys.readouterr()
        assert sample(name) == 2 and "other weights" in capsys.readouterr().err


def test_fine_tuning_can_be_checked(work, capsys):
    train("unborn", "--finetune_decoder", "ae", "--check")
    assert "check: train_AE.py can run" in capsys.readouterr().out
    assert not (work / "checkpoints/demo/unborn").exists()


@pytest.mark.parametrize("flags, message", [
    (["--finetune_decoder", "absent"], "no checkpoint at"),
    (["--finetune_decoder", "mardm"], "holds no autoencoder"),
    (["--finetune_decoder", "ae", "--model", "AE_Model"], "--model: the model is that of --finetune_decoder"),
    (["--finetune_decoder", "ae", "--width", "16"], "--width: the model is that of"),
    (["--finetune_decoder", "ae", "--fsq_reach", "1"], "--fsq_reach: the model is that of"),
    (["--finetune_decoder", "ae", "--quantizer_settings", "eps=0"], "--quantizer_settings: the model is"),
    (["--finetune_decoder", "a/b"], "plain name"),
    (["--finetune", "absent"], "no checkpoint at"),
    (["--finetune", "nowhere/best.tar"], "no checkpoint at nowhere/best.tar"),
    (["--finetune", "ae", "--width", "16"], "--width: the model is that of --finetune ae"),
    (["--finetune", "ae", "--finetune_decoder", "ae"], "pass one"),
])
def test_mistakes_get_one_line(work, capsys, flags, message):
    train("new", *flags, code=2)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "Traceback"))]
    assert len(said) == 1 and message in said[0]


def test_the_statistics_are_the_runs(work, tmp_path):
    """Also where the data set has others: the encoder's weights mean nothing else."""
    shutil.copytree(work / "datasets", tmp_path / "datasets")
    path = tmp_path / "datasets/demo/Std.npy"
    np.save(path, 2 * np.load(path))
    for number, flag in enumerate(("--finetune", "--finetune_decoder")):
        train(f"elsewhere{number}", flag, "ae", "--dataset_dir", tmp_path / "datasets", epochs=1)
        assert torch.equal(content(f"elsewhere{number}")["std"], content("ae")["std"])


def test_a_released_autoencoder_can_be_tuned(work):
    """It says neither what it is nor with which statistics it was trained."""
    torch.manual_seed(0)
    released = {"ae": AE_models["AE_Model"](width=16, latent_dim=16).state_dict()}
    write_checkpoint(path_of("released", "latest.tar"), released)
    train("tuned_released", "--finetune_decoder", "released", epochs=1)
    assert all(name.startswith("decoder.") for name in differing(released, content("tuned_released")))
    assert load_autoencoder(path_of("tuned_released", "best.tar"))[0].latent_dim == 16
