"""The networks and samplers against what the published code computes (tolerances: tests/golden/README.md)."""
import json

import pytest
import torch
from conftest import golden, name_fill, relative_error

from diffusions import flow
from diffusions.gaussian import GaussianDiffusion
from models.AE import AE_models
from models.generation import mask_schedule, padding_mask_of
from models.MARDM import MARDM_models

SINGLE_PASS, CHAIN = 3e-6, 1e-5


def tensors(archive):
    return {key: torch.as_tensor(archive[key]) for key in archive.files}


def golden_keys(module_name):
    return json.loads(golden("state_dict_keys.json").read_text())[module_name]


def shapes_of(module):
    return {key: list(value.shape) for key, value in module.state_dict().items()}


@pytest.mark.parametrize("which, width", [("t2m", 67), ("kit", 64)])
def test_autoencoder(which, width):
    data = tensors(golden(f"ae_{which}.npz"))
    ae = name_fill(AE_models["AE_Model"](input_width=width))
    assert shapes_of(ae) == golden_keys(f"AE_Model_{which}")
    latent = ae.encode(data["x"])
    assert relative_error(latent, data["latent"]) < SINGLE_PASS
    assert relative_error(ae.decode(data["latent"]), data["recon"]) < SINGLE_PASS


@pytest.fixture(scope="module")
def xl_models():
    """Each XL model is built and filled once for all tests here."""
    built = {}

    def get(name):
        if name not in built:
            built[name] = name_fill(MARDM_models[name](ae_dim=512, cond_mode="text"))
        return built[name]

    return get


@pytest.mark.parametrize("name", ["MARDM-SiT-XL", "MARDM-DDPM-XL"])
@torch.no_grad()
def test_generator(name, xl_models):
    data = tensors(golden(f"{name}.npz"))
    model = xl_models(name)
    assert shapes_of(model) == golden_keys(name)
    assert torch.equal(padding_mask_of(data["m_lens"], data["latents"].shape[1]), data["padding_mask"])
    tokens = ~data["padding_mask"]  # what the published code computes for padding, nothing reads
    out = model(data["latents"], data["cond"], data["padding_mask"])
    assert relative_error(out[tokens], data["transformer_out"][tokens]) < SINGLE_PASS
    out = model(data["latents"], data["cond"], data["padding_mask"], force_mask=True)
    assert relative_error(out[tokens], data["transformer_out_uncond"][tokens]) < SINGLE_PASS
    net = model.DiffMLPs.net
    assert relative_error(net(data["net_x"], data["net_t"], data["net_c"]), data["net_out"]) < SINGLE_PASS
    guided = net.forward_with_cfg(data["net_x"], data["net_t"], data["cfg_c"], 4.5)
    assert relative_error(guided, data["cfg_out"]) < SINGLE_PASS
    loss = model.DiffMLPs.loss(data["loss_target"], data["loss_z"], data["loss_t"], data["loss_noise"])
    assert relative_error(loss, data["loss"]) < SINGLE_PASS


@torch.no_grad()
def test_ode_endpoint(xl_models):
    data = tensors(golden("MARDM-SiT-XL.npz"))
    head = xl_models("MARDM-SiT-XL").DiffMLPs
    end = flow.integrate(head.guided(data["ode_z"], None, 1.0), data["ode_noise"], "dopri5", rtol=1e-6,
                         atol=1e-6)
    assert relative_error(end, data["ode_end"]) < CHAIN


@torch.no_grad()
def test_ancestral_chain(xl_models):
    data = tensors(golden("MARDM-DDPM-XL.npz"))
    head = xl_models("MARDM-DDPM-XL").DiffMLPs
    draws = iter([data["ddpm_noise"], *data["ddpm_step_noise"]])
    end = head.sample(data["ddpm_z"], None, lambda: next(draws))
    assert relative_error(end, data["ddpm_end"]) < CHAIN


@torch.no_grad()
def test_ancestral_steps(xl_models):
    data = tensors(golden("ddpm_steps.npz"))
    head = xl_models("MARDM-DDPM-XL").DiffMLPs
    for k, t in enumerate(data["t"].tolist()):
        net = head.guided(data["z"][k], None, 1.0)
        out = head.process.ancestral_step(net, data["x"][k], t, data["noise"][k], float(data["temperature"]))
        assert relative_error(out, data["out"][k]) < SINGLE_PASS
        cond, uncond = data["cfg_z"][k].chunk(2)
        net = head.guided(cond, uncond, float(data["cfg_scale"]))
        out = head.process.ancestral_step(net, data["cfg_x"][k], t, data["cfg_noise"][k])
        assert relative_error(out, data["cfg_out"][k]) < SINGLE_PASS


@pytest.mark.parametrize("table", ["betas", "alphas_cumprod", "posterior_variance",
                                   "posterior_log_variance_clipped", "posterior_mean_coef1",
                                   "posterior_mean_coef2"])
def test_noise_schedule(table):
    assert relative_error(getattr(GaussianDiffusion(50), table), golden("MARDM-DDPM-XL.npz")[table]) < 1e-12


def test_every_step_of_the_schedule_is_taken():
    """The reference respaces its steps by ``timestep_map``: all 50 of them here, sampled from the last to the
    first."""
    process, seen = GaussianDiffusion(50), []
    process.sample(lambda x, t: seen.append(t) or 0 * x, torch.zeros(2, 3), lambda: torch.zeros(2, 3))
    assert seen == [int(t) for t in golden("MARDM-DDPM-XL.npz")["timestep_map"][::-1]]


def test_mask_schedule():
    for key, expected in json.loads(golden("mask_schedule.json").read_text()).items():
        num_tokens, steps = map(int, key.split(","))
        assert mask_schedule(num_tokens, steps) == expected, key
