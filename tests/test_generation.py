"""The masked transformer: padding, batches, guidance, training, and that only on-grid tokens are ever
seen."""
import pytest
import torch

from diffusions import flow
from models.AE import AE_models
from models.CategoricalHead import grid_of
from models.generation import mask_schedule, padding_mask_of
from models.MARDM import MARDM, MARDM_models, check_pair
from models.pipeline import Pipeline, clip_seed
from utils.errors import UserError

SMALL = dict(width=32, ff=64, layers=2, heads=4, head_width=32, head_depth=2)


def make_pair(ae_name="FSQ_AE_High", head="SiT", **kwargs):
    torch.manual_seed(0)
    ae = AE_models[ae_name](width=32, latent_dim=32).eval()
    settings = SMALL | dict(count_from_end=True) | kwargs
    settings |= {"grid": grid_of(ae.quantizer)} if head.startswith("Cat") else {}
    model = MARDM(ae_dim=32, target_dim=ae.target_dim, cond_dim=16, head=head, **settings)
    with torch.no_grad():  # adaLN-zero starts with dead branches: wake them, so that the tests see every path
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval(), ae


def make_pipeline(*args, **kwargs):
    model, ae = make_pair(*args, **kwargs)
    return Pipeline(model, ae, torch.zeros(67), torch.ones(67))


@pytest.mark.parametrize("ae_name", ["AE_Model", "FSQ_AE_High", "VQ_AE_Model"])
@pytest.mark.parametrize("head, solver", [
    ("SiT", "adams"), ("SiT", "euler"), ("SiT", "heun"), ("SiT", "midpoint"), ("DDPM", "euler")])
def test_a_clip_is_the_same_alone_and_in_any_batch(ae_name, head, solver):
    pipeline = make_pipeline(ae_name, head)
    cond, frames, seeds = torch.randn(3, 16), [40, 64, 52], [5, 6, 7]
    settings = dict(time_steps=6, cfg=2.0, solver=solver, ode_steps=4)
    together = pipeline.sample(cond, frames, seeds, **settings)
    for i in range(3):
        alone = pipeline.sample(cond[i : i + 1], frames[i : i + 1], seeds[i : i + 1], **settings)[0]
        assert alone.shape == (frames[i], 67)
        assert (alone - together[i]).abs().max() < 1e-4 * alone.abs().max()


def test_codes_are_identical_alone_and_in_a_batch():
    model, ae = make_pair()
    cond, lengths = torch.randn(2, 16), torch.tensor([9, 17])
    together = model.generate(ae, cond, lengths, [1, 2], time_steps=8, ode_steps=4)
    for i, length in enumerate(lengths.tolist()):
        alone = model.generate(ae, cond[i : i + 1], lengths[i : i + 1], [i + 1], time_steps=8, ode_steps=4)
        assert torch.equal(alone[0], together[i, :length])
    assert torch.equal(ae.snap(together[1]), together[1])


@pytest.mark.parametrize("ae_name", ["FSQ_AE_Hybrid", "FSQ_AE_Residual", "FSQ_AE_iFSQ_64x17", "VQ_AE_RVQ",
                                     "VQ_AE_RVQ_First", "VQ_AE_SF_DiVeQ", "VQ_AE_Gumbel_Soft"])
def test_every_kind_of_target_is_generated_snapped_and_decoded(ae_name):
    model, ae = make_pair(ae_name)
    targets = model.generate(ae, torch.randn(2, 16), torch.tensor([5, 8]), [1, 2], time_steps=4, ode_steps=3)
    assert targets.shape == (2, 8, ae.target_dim) and torch.allclose(ae.snap(targets[1]), targets[1],
                                                                     atol=1e-5)
    if ae_name != "VQ_AE_Gumbel_Soft":  # whose targets are no finite set
        quantizer = ae.quantizer
        assert torch.allclose(quantizer.decode_indices(quantizer.get_indices(targets[1])), targets[1],
                              atol=1e-5)
    assert ae.decode_targets(targets, torch.tensor([20, 32])).shape == (2, 32, 67)


def test_transformer_sees_on_grid_tokens_only():
    model, ae = make_pair()
    seen = []
    embed = ae.embed_targets
    ae.embed_targets = lambda targets: seen.append(targets.clone()) or embed(targets)
    model.generate(ae, torch.randn(1, 16), torch.tensor([12]), [0], time_steps=6, ode_steps=3)
    assert len(seen) >= 5
    for targets in seen:
        assert torch.equal(ae.snap(targets), targets) or (targets == 0).any()  # 0 = not sampled yet, masked
        sampled = targets[targets.abs().sum(-1) > 0]
        assert torch.equal(ae.snap(sampled), sampled)


def test_seeds_decide():
    pipeline = make_pipeline()
    one, two, other = pipeline.sample(torch.randn(1, 16).repeat(3, 1), [40] * 3, [1, 1, 2], time_steps=4,
                                      ode_steps=3)
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert clip_seed(1, "a", 0) != clip_seed(1, "a", 1) != clip_seed(2, "a", 1)


@torch.no_grad()
def test_positions_from_the_end_do_not_depend_on_the_padding():
    """The last token of a clip is told apart from the same token of a longer clip, whatever the batch is
    padded to."""
    model, _ = make_pair()
    latents, cond = torch.randn(1, 12, 32), torch.randn(1, 16)
    out = {n: model(latents[:, :n], cond, padding_mask_of(torch.tensor([6]), n)) for n in (6, 9, 12)}
    assert torch.allclose(out[6][0, :6], out[9][0, :6], atol=1e-5) and torch.allclose(out[6][0, :6],
                                                                                      out[12][0, :6],
                                                                                      atol=1e-5)
    x = torch.zeros(1, 6, 32)
    short = model.position_enc(x, padding_mask_of(torch.tensor([4]), 6))
    full = model.position_enc(x, padding_mask_of(torch.tensor([6]), 6))
    assert (short[0, :4] - full[0, :4]).abs().amax(-1).min() > 0.1
    assert torch.allclose(short[0, 3] - model.position_enc(x)[0, 3], full[0, 5] - model.position_enc(x)[0, 5])


@torch.no_grad()
def test_padding_does_not_reach_the_transformer():
    model, _ = make_pair()
    latents, cond, lengths = torch.randn(2, 10, 32), torch.randn(2, 16), torch.tensor([6, 10])
    out = model(latents, cond, padding_mask_of(lengths, 10))
    latents[0, 6:] = 99.0
    again = model(latents, cond, padding_mask_of(lengths, 10))
    assert torch.allclose(out[0, :6], again[0, :6], atol=1e-6)
    alone = model(latents[:1, :6], cond[:1], padding_mask_of(lengths[:1], 6))
    assert torch.allclose(alone[0], out[0, :6], atol=1e-5)


@pytest.mark.parametrize("head", ["SiT", "DDPM"])
def test_guidance_of_one_is_the_conditional_model(head):
    model, ae = make_pair("AE_Model", head)
    cond, lengths = torch.randn(2, 16), torch.tensor([5, 8])
    plain = model.generate(ae, cond, lengths, [1, 2], time_steps=4, cfg=1, ode_steps=3)
    nearly = model.generate(ae, cond, lengths, [1, 2], time_steps=4, cfg=1 + 1e-7, ode_steps=3)
    guided = model.generate(ae, cond, lengths, [1, 2], time_steps=4, cfg=8, ode_steps=3)
    scale = plain.abs().max()
    assert (plain - nearly).abs().max() < 1e-4 * scale < (plain - guided).abs().max()


@pytest.mark.parametrize("head", ["SiT", "DDPM"])
def test_temperature_scales_the_noise(head):
    pipeline = make_pipeline("AE_Model", head)
    settings = dict(time_steps=4, cfg=1, ode_steps=3)
    cond = torch.randn(1, 16)
    spread = {}
    for temperature in (0.0, 0.5, 1.0):
        a, b = pipeline.sample(cond.repeat(2, 1), [40, 40], [1, 2], temperature=temperature, **settings)
        spread[temperature] = float((a - b).abs().mean())
    if head == "SiT":  # the starting noise is scaled, so at 0 nothing is random but the order of unmasking
        assert spread[0.0] < spread[0.5] < spread[1.0]
    assert len(set(spread.values())) == 3


@pytest.mark.parametrize("head", ["SiT", "DDPM"])
def test_scaled_targets(head):
    """A head with a scale learns from targets divided by it, and its samples are multiplied by it before they
    are snapped."""
    (plain, ae), (scaled, _) = make_pair("AE_Model", head), make_pair("AE_Model", head, target_scale=0.25)
    cond, lengths = torch.randn(2, 16), torch.tensor([5, 8])
    # one iteration: nothing of what was sampled is read again
    settings = dict(time_steps=1, ode_steps=3, cfg=2.0)
    samples = [model.generate(ae, cond, lengths, [1, 2], **settings) for model in (plain, scaled)]
    torch.testing.assert_close(samples[1], 0.25 * samples[0])
    latents = torch.randn(2, 8, 32)
    losses = []
    for model, targets in ((plain, latents / 0.25), (scaled, latents)):
        torch.manual_seed(3)
        losses.append(model.loss(latents, targets, cond, lengths))
    torch.testing.assert_close(*losses)
    grid_model, grid = make_pair(target_scale=0.25)
    known = grid.snap(torch.rand(2, 8, 6) * 2 - 1)
    keep = torch.arange(8).expand(2, 8) < 3
    codes = grid_model.generate(grid, cond, lengths, [1, 2], known=(known, keep), **settings)[1]
    assert torch.equal(grid.snap(codes), codes) and torch.equal(codes[:3], known[1, :3])


def test_pseudo_reorder_changes_rounding_only():
    model, _ = make_pair()
    latents, cond, padding = torch.randn(2, 10, 32), torch.randn(2,
                                                                 16), padding_mask_of(torch.tensor([7, 10]),
                                                                                      10)
    mask = torch.rand(2, 10, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        assert torch.allclose(model(latents, cond, padding), model(latents, cond, padding, mask=mask),
                              atol=1e-5)


def test_known_tokens_stay():
    model, ae = make_pair()
    targets = ae.snap(torch.randn(1, 12, 6))
    keep = torch.zeros(1, 12, dtype=torch.bool)
    keep[:, :5] = True
    out = model.generate(ae, torch.randn(1, 16), torch.tensor([12]), [3], time_steps=5, known=(targets, keep),
                         ode_steps=3)
    assert torch.equal(out[0, :5], targets[0, :5]) and not torch.equal(out[0, 5:], targets[0, 5:])


@pytest.mark.parametrize("cond_mode", ["action", "uncond"])
def test_other_conditions(cond_mode):
    model, ae = make_pair(cond_mode=cond_mode, num_actions=5)
    cond = torch.eye(5)[:2] if cond_mode == "action" else None
    out = model.generate(ae, cond, torch.tensor([5, 7]), [1, 2], time_steps=3, ode_steps=2)
    assert out.shape == (2, 7, 6) and (out[0, 5:] == 0).all()


class CountingHead:
    """Answers with a fixed target and counts the tokens it was asked for."""

    own_cfg, guided_in_part = None, True

    def __init__(self, head):
        self.tokens, self.head = 0, head

    def sampler(self, *args, **kwargs):
        sample = self.head.sampler(*args, **kwargs)

        def counted(z, *rest):
            self.tokens += len(z)
            return sample(z, *rest)

        return counted


@pytest.mark.parametrize("sampler, expected", [("fast", 20), ("reference", sum(mask_schedule(20, 18)))])
def test_work_of_the_samplers(sampler, expected):
    model, ae = make_pair()
    head = CountingHead(model.DiffMLPs)
    del model.DiffMLPs
    model.DiffMLPs = head
    model.generate(ae, torch.randn(1, 16), torch.tensor([20]), [0], sampler=sampler, ode_steps=1)
    assert head.tokens == expected


def test_one_batch_overfits():
    torch.manual_seed(0)
    ae = AE_models["FSQ_AE_High"](width=32, latent_dim=32).eval()
    model = MARDM(ae_dim=32, target_dim=6, cond_dim=16, dropout=0.0,
                  **(SMALL | dict(width=64, head_width=64)))
    targets, cond, lengths = ae.snap(torch.randn(4, 6, 6)), torch.randn(4, 16), torch.tensor([6, 6, 5, 4])
    latents = ae.embed_targets(targets).detach()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for _ in range(400):
        loss = model.loss(latents, targets, cond, lengths)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.3 * sum(losses[:20])


def test_training_mask_leaves_padding_alone():
    model, _ = make_pair()
    torch.manual_seed(0)
    padding = padding_mask_of(torch.tensor([3, 49, 20]), 49)
    shares = torch.stack([model.draw_mask(padding) for _ in range(500)])
    assert not (shares & padding).any() and shares.any(-1).any(-1).all()
    assert abs(float(shares[:, 1].float().mean()) - 2 / torch.pi) < 0.03  # the mean of cos(pi u / 2)


def test_zoo_and_pairs():
    assert {"MARDM-DDPM-XL", "MARDM-SiT-XL", "FSQ-MARDM-SiT-XL", "FSQ-MARDM-DDPM-XL", "VQ-MARDM-SiT-XL",
            "VQ_MARDM-SiT-XL", "FSQ-MARDM-SiT-S", "MARDM-SiT-B", "MARDM-DDPM-L"} <= set(MARDM_models)
    assert MARDM_models["FSQ-MARDM-SiT-S"](ae_dim=8).count_from_end and not MARDM_models[
        "MARDM-SiT-S"](ae_dim=8).count_from_end
    check_pair("FSQ-MARDM-SiT-S", "FSQ_AE_High")
    check_pair("VQ_MARDM-SiT-XL", "VQ_AE_Model")
    check_pair("MARDM-SiT-XL", "AE_Model")
    for model, ae in [("MARDM-SiT-XL", "FSQ_AE_High"), ("FSQ-MARDM-SiT-XL", "AE_Model"),
                      ("VQ-MARDM-SiT-XL", "FSQ_AE_High")]:
        with pytest.raises(UserError, match="needs an autoencoder"):
            check_pair(model, ae)


def test_bad_calls():
    model, ae = make_pair()
    with pytest.raises(UserError, match="1 token"):
        model.generate(ae, torch.randn(1, 16), torch.tensor([0]), [0])
    with pytest.raises(UserError, match="do not belong together"):
        Pipeline(model, AE_models["AE_Model"](width=32, latent_dim=32), torch.zeros(67), torch.ones(67))


def test_masked_tokens_are_corrupted_in_the_published_proportions():
    """Of the masked tokens 10% become noise, 88% of the others the mask token, the rest stay (MARDM)."""
    model, _ = make_pair()
    latents = torch.full((200, 100, 32), 7.0)
    mask = torch.rand(200, 100, generator=torch.Generator().manual_seed(0)) < 0.5
    torch.manual_seed(1)  # not the mask's own numbers again
    out = model.corrupt(latents, mask)
    kept = (out == 7).all(-1)
    hidden = (out == model.mask_latent).all(-1)
    noised = ~kept & ~hidden
    assert kept[~mask].all()
    count = mask.sum()
    assert abs(noised.sum() / count - 0.10) < 0.01
    assert abs(hidden.sum() / count - 0.90 * 0.88) < 0.01


def test_steps_of_the_flow_get_shorter_towards_the_data():
    """1 - (1 - i / steps)^1.5: the spacing with which the default number of steps was chosen."""
    times = [t for t, _ in flow.time_grid(4)] + [flow.time_grid(4)[-1][1]]
    assert times == pytest.approx([0, 1 - 0.75**1.5, 1 - 0.5**1.5, 1 - 0.25**1.5, 1])


@pytest.mark.parametrize("name", MARDM_models)
def test_every_generator_knows_its_autoencoders(name):
    kind = {"FSQ": "FSQ_AE_High", "VQ-": "VQ_AE_EMA", "VQ_": "VQ_AE_EMA", "MAR": "AE_Model"}[name[:3]]
    check_pair(name, kind)
    for other in {"FSQ_AE_High", "VQ_AE_EMA", "AE_Model"} - {kind}:
        with pytest.raises(UserError, match="needs an autoencoder"):
            check_pair(name, other)


def test_a_new_head_has_a_family_too():
    check_pair("FSQ-MARDM-OneStep-S", "FSQ_AE_High")
