"""Autoencoders for a generator: noise on the targets, narrow latents."""
import pytest
import torch
from test_scripts import TRAIN, call

from models.AE import AE_models
from models.loading import load_autoencoder
from models.MARDM import check_pair
from utils.demo.dataset import build_demo
from utils.files import read_checkpoint

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
    (clean, _), (noisy, _) = (seen_by_decoder(ae.requires_grad_(False), motion, noise) for noise in (0, 0.5))
    assert not torch.equal(clean, noisy)


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
    """A folder with a small demo set."""
    root = tmp_path_factory.mktemp("stage_one")
    build_demo(root / "datasets" / "demo", num_clips=60)
    return root


@pytest.fixture
def work(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


def train(name, *flags, epochs=2, code=0):
    assert call("train_AE", "--name", name, *SHORT, "--epoch", epochs, *flags) == code


def content(name, file="latest.tar"):
    return read_checkpoint(f"checkpoints/demo/{name}/model/{file}")


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
    ae, saved = load_autoencoder(f"checkpoints/demo/{name}/model/best.tar", name)
    assert ae.latent_dim == ae.target_dim == channels and saved["model_kwargs"]["width"] == 24
    assert ae.encode_targets(torch.zeros(1, 8, 67))[1].shape == (1, 2, channels)
    check_pair("MARDM-SiT-S", name)
