"""Fast sampling gives what plain sampling gives: the net, the solvers, the order of sampling, the loss."""
import math

import pytest
import torch
from test_generation import make_pair

from benchmarks.plain import plain_loss
from diffusions import flow
from models import fast_net
from models.AE import AE_models
from models.DiffMLPs import ODE_STEPS, SOLVER, SiTHead
from models.generation import mask_schedule
from models.heads import HEADS
from models.MARDM import MARDM
from utils import options
from utils.errors import UserError


def make_head(head="SiT", **kwargs):
    torch.manual_seed(0)
    made = HEADS[head](6, 16, 32, 3, **kwargs)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def draw(count=7):
    generator = torch.Generator().manual_seed(1)
    return lambda: torch.randn(count, 6, generator=generator)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("cfg", [1, 3.0])
@pytest.mark.parametrize("head, settings", [
    ("SiT", dict(solver="adams", ode_steps=7)), ("SiT", dict(solver="euler", ode_steps=7)), (
        "SiT", dict(solver="heun", ode_steps=4)), ("SiT", dict(solver="dopri5")),
    ("SiT", dict(solver="midpoint", ode_steps=4)), ("DDPM", {})])
def test_fast_net_equals_the_plain_net(head, settings, cfg, packed, monkeypatch):
    monkeypatch.setattr(fast_net, "REORDERED_FROM", 0 if packed else math.inf)
    head, z, z_uncond = make_head(head), torch.randn(7, 16), torch.randn(7, 16)
    plain = head.sample(z, z_uncond, draw(), cfg, fast=False, **settings)
    for table in (1, 40_000, 2**28):  # modulations of one time, of a few, of all at once
        monkeypatch.setattr(fast_net, "TABLE_BYTES", table)
        fast = head.sample(z, z_uncond, draw(), cfg, **settings)
        assert (fast - plain).abs().max() < 1e-5 * plain.abs().max()


def test_the_projections_run_once_for_all_times(monkeypatch):
    monkeypatch.setattr(fast_net, "REORDERED_FROM", math.inf)  # plain layers, whose calls can be counted
    head, calls = make_head(), []
    head.net.res_blocks[1].adaLN_modulation[1].register_forward_hook(
        lambda _layer, args, _out: calls.append(args[0].shape))
    head.sample(torch.randn(7, 16), torch.randn(7, 16), draw(), 2.0, solver="heun", ode_steps=5)
    assert calls == [(6, 14, 32)]  # 5 steps of Heun ask at 6 times; 7 tokens with and without their condition
    calls.clear()
    head.sample(torch.randn(7, 16), torch.randn(7, 16), draw(), 2.0, fast=False, solver="heun", ode_steps=5)
    assert calls == [(14, 32)] * 10


def test_packed_weights_are_kept_on_request_only(monkeypatch):
    """A fused optimiser changes weights without a trace, so what is kept from call to call must be asked
    for."""
    monkeypatch.setattr(fast_net, "REORDERED_FROM", 0)
    head, z, packed = make_head(), torch.randn(7, 16), {}
    before = head.sample(z, None, draw(), cache=packed)
    kept = dict(packed)
    assert torch.equal(head.sample(z, None, draw(), cache=packed), before)
    assert kept.keys() == packed.keys() and all(kept[key] is packed[key] for key in kept)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2, fused=True)
    head.loss(torch.randn(7, 6), z).backward()
    optimizer.step()
    after = head.sample(z, None, draw())
    assert (after - before).abs().max() > 1e-3
    assert (after - head.sample(z, None, draw(), fast=False)).abs().max() < 1e-5 * after.abs().max()


@pytest.mark.parametrize("packed", [True, False])
def test_bfloat16_is_near_and_not_the_same(packed, monkeypatch):
    monkeypatch.setattr(fast_net, "REORDERED_FROM", 0 if packed else math.inf)
    head, z, z_uncond = make_head(), torch.randn(7, 16), torch.randn(7, 16)
    exact, rounded = (head.sample(z, z_uncond, draw(), 2.0, dtype=dtype) for dtype in (None, torch.bfloat16))
    assert rounded.dtype == torch.float32
    assert 1e-5 < (exact - rounded).abs().max() / exact.abs().max() < 5e-2


@pytest.mark.parametrize("solver, order", [("euler", 1), ("midpoint", 2), ("heun", 2), ("adams", 2)])
def test_order_of_the_solvers(solver, order):
    errors = []
    for steps in (20, 40):
        end = flow.integrate(lambda x, t: -x + math.cos(t), torch.ones(1, 1, dtype=torch.float64), solver,
                             steps)
        errors.append(abs(float(end) - (0.5 * math.exp(-1) + (math.sin(1) + math.cos(1)) / 2)))
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("jump", [False, True])
@pytest.mark.parametrize("solver", flow.SOLVERS)
def test_times_of_a_solver_are_those_it_asks_for(solver, jump):
    asked = []
    flow.integrate(lambda x, t: asked.append(float(t)) or -x, torch.ones(2, 1), solver, 5, jump=jump)
    assert not jump or max(asked) <= 1 - flow.LEAST_LEFT + 1e-6
    if solver != "dopri5":
        assert flow.times_of(solver, 5, jump) == sorted(set(asked))


def gaussian_answer(prediction, mean, spread):
    """The best net for data N(mean, spread^2): E[x_1 | x_t], or the velocity that follows from it."""

    def clean(x, t):
        variance = (t * spread) ** 2 + (1 - t) ** 2
        return mean + t * spread**2 / variance * (x - t * mean)

    return clean if prediction == "x" else lambda x, t: (clean(x, t) - x) / (1 - t)


@pytest.mark.parametrize("solver, steps", [("euler", 400), ("adams", 50), ("midpoint", 50), ("heun", 50),
                                           ("dopri5", 0)])
def test_predicted_x_leads_where_the_velocity_leads(solver, steps):
    """For Gaussian data the flow is known: noise x goes to mean + spread x."""
    noise, mean, spread = torch.randn(500, 1, generator=torch.Generator().manual_seed(0)), 2.0, 0.5
    net = flow.velocity_of(gaussian_answer("x", mean, spread), "x")
    end = flow.integrate(net, noise, solver, steps, jump=True)
    assert (end - (mean + spread * noise)).abs().max() < 0.1
    assert (end - (mean + spread * noise)).abs().mean() < 0.02


def test_the_best_net_has_the_same_loss_in_both_predictions():
    target, noise = 2 + 0.5 * torch.randn(4000, 1), torch.randn(4000, 1)
    t = torch.rand(4000) * (1 - flow.LEAST_LEFT)
    answers = {kind: gaussian_answer(kind, 2.0, 0.5) for kind in ("x", "velocity")}
    losses = {kind: float(flow.training_loss(lambda x, time, net=net: net(x, time[:, None]), target, t, noise,
                                             kind))
              for kind, net in answers.items()}
    assert losses["x"] == pytest.approx(losses["velocity"], rel=1e-4)
    biased = float(flow.training_loss(lambda x, time: answers["x"](x, time[:, None]) + 0.1, target, t, noise,
                                      "x"))
    assert biased > losses["x"] * 1.01


def test_an_x_head_learns_and_says_so():
    with pytest.raises(UserError, match="predicts noise, not 'x'"):
        HEADS["DDPM"](6, 16, 32, 1, prediction="x")
    torch.manual_seed(0)
    head, z = HEADS["SiT"](2, 4, 32, 2, prediction="x"), torch.eye(4)
    grid = torch.tensor([[-1.0, 0], [0, 1], [0.5, -0.5], [1, 1]])
    optimizer = torch.optim.AdamW(head.parameters(), 3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(grid.repeat(32, 1), z.repeat(32, 1)).backward()
        optimizer.step()
    for settings in (dict(solver="adams", ode_steps=10), dict(solver="heun", ode_steps=5),
                     dict(solver="dopri5")):
        end = head.sample(z.repeat(8, 1), None, lambda: torch.randn(32, 2), **settings)
        assert (end - grid.repeat(8, 1)).abs().mean() < 0.1, settings


class PolyaUrn(MARDM):
    """Tokens are 0 or 1; given n known tokens, k of them 1, each next one is 1 with probability (k + 1) / (n
    + 2)."""

    def __init__(self):
        super().__init__(ae_dim=1, cond_mode="uncond", width=8, ff=8, heads=2, head_width=8, head_depth=1)
        torch.nn.init.constant_(self.mask_latent, -1.0)
        del self.DiffMLPs
        self.DiffMLPs = Draws()

    def forward(self, latents, *_):
        known = latents >= 0
        share = ((latents * known).sum(1) + 1) / (known.sum(1) + 2)
        return share[:, None].expand_as(latents)


class Draws:
    """A head that answers 1 with probability z."""

    own_cfg, guided_in_part = None, True

    def sampler(self, *_args, **_kwargs):
        return lambda z, _z_uncond, draw_noise, *_: (torch.special.ndtr(draw_noise()) < z).float()


class Plain:
    """An autoencoder that leaves targets as they are."""

    embed_targets = snap = staticmethod(lambda targets: targets)


def urn_distribution(num_tokens, time_steps):
    """Exact probabilities (num_tokens + 1,) of how many tokens are 1, for the groups in which tokens leave
    the mask."""
    counts = [*mask_schedule(num_tokens, time_steps), 0]
    probability, known = {0: 1.0}, 0
    for group in (before - after for before, after in zip(counts[:-1], counts[1:])):
        after = dict.fromkeys(range(known + group + 1), 0.0)
        for ones, weight in probability.items():
            p = (ones + 1) / (known + 2)
            for more in range(group + 1):
                after[ones + more] += weight * math.comb(group, more) * p**more * (1 - p) ** (group - more)
        probability, known = after, known + group
    return torch.tensor([probability[ones] for ones in range(num_tokens + 1)], dtype=torch.float64)


@pytest.mark.parametrize("sampler", ["fast", "reference"])
def test_both_samplers_have_the_exact_distribution(sampler):
    clips, tokens, steps = 3000, 6, 5
    model = PolyaUrn().eval()
    out = MARDM.generate(model, Plain, None, torch.full((clips,), tokens), range(clips), time_steps=steps,
                         sampler=sampler)
    found = torch.bincount(out.sum((1, 2)).long(), minlength=tokens + 1).double()
    expected = urn_distribution(tokens, steps) * clips
    chi_square = float(((found - expected) ** 2 / expected).sum())
    assert chi_square < 22.5  # 6 degrees of freedom, p = 0.001
    independent = torch.tensor([math.comb(tokens, k) for k in range(tokens + 1)]) / 2**tokens * clips
    # what a sampler that forgets its past would give
    assert float(((found - independent) ** 2 / independent).sum()) > 500


def energy(a, b):
    """Energy distance of two samples (n, d) and (m, d): 0 in expectation only when they have one
    distribution."""
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


def p_value(a, b, rounds=200):
    """Share of random splits of the pooled samples that lie at least as far apart as these two."""
    pooled, generator = torch.cat([a, b]), torch.Generator().manual_seed(0)
    splits = (torch.randperm(len(pooled), generator=generator) for _ in range(rounds))
    here = energy(a, b)
    return sum(energy(pooled[order[: len(a)]], pooled[order[len(a) :]]) >= here for order in splits) / rounds


@pytest.fixture(scope="module")
def trained():
    """A small generator trained on sequences that run along the grid, so that neighbouring tokens hang
    together."""
    torch.manual_seed(0)
    ae = AE_models["FSQ_AE_Model"](width=16, latent_dim=16, levels=(5, 5)).eval()
    model = MARDM(ae_dim=16, target_dim=2, cond_dim=2, width=32, ff=64, layers=2, heads=4, head_width=32,
                  head_depth=2, dropout=0.0, count_from_end=True)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(300):
        start, slope = torch.rand(32, 1, 2) * 2 - 1, torch.rand(32, 1, 2) - 0.5
        targets = ae.snap(start + slope * torch.arange(6)[:, None] / 3)
        cond = torch.eye(2)[(slope[:, 0, 0] > 0).long()]
        loss = model.loss(ae.embed_targets(targets).detach(), targets, cond, torch.full((32,), 6))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), ae


def test_two_samples_of_a_trained_model(trained):
    model, ae = trained
    cond, lengths = torch.eye(2)[torch.arange(300) % 2], torch.full((300,), 6)

    def clips(seed, **settings):
        seeds = range(seed, seed + 300)
        return model.generate(ae, cond, lengths, seeds, time_steps=5, cfg=2.0, ode_steps=6,
                              **settings).flatten(1)

    fast = clips(0)
    assert p_value(fast, clips(1000, sampler="reference")) > 0.01
    assert p_value(fast, clips(1000, temperature=0.3)) < 0.01  # the test sees a difference where there is one


def test_equal_seeds_give_equal_clips_when_all_tokens_leave_at_once(trained):
    """One iteration: both samplers sample every token once, from the same noise, so they agree to the last
    code."""
    model, ae = trained
    settings = dict(cond=torch.eye(2), lengths=torch.tensor([6, 4]), seeds=[1, 2], time_steps=1, ode_steps=5)
    assert torch.equal(model.generate(ae, **settings), model.generate(ae, sampler="reference", **settings))


def test_low_precision_of_the_whole_sampler(trained):
    model, ae = trained
    settings = dict(cond=torch.eye(2).repeat(20, 1), lengths=torch.full((40,), 6), seeds=range(40),
                    time_steps=1)
    exact, rounded = (model.generate(ae, **settings, precision=precision) for precision in ("fp32", "bf16"))
    assert torch.equal(ae.snap(rounded), rounded) and (exact == rounded).float().mean() > 0.9
    with pytest.raises(UserError, match="belongs to the fast sampler"):
        model.generate(ae, **settings, precision="bf16", sampler="reference")


@pytest.mark.parametrize("head, prediction", [("SiT", None), ("SiT", "x"), ("DDPM", None)])
def test_loss_on_masked_tokens_equals_the_loss_on_all_tokens_masked(head, prediction):
    model, ae = make_pair(head=head, prediction=prediction)
    targets, cond, lengths = ae.snap(torch.randn(3, 9, 6)), torch.randn(3, 16), torch.tensor([9, 7, 4])
    latents = ae.embed_targets(targets)
    torch.manual_seed(5)
    fast = model.loss(latents, targets, cond, lengths)
    torch.manual_seed(5)
    plain = plain_loss(model, latents, targets, cond, lengths)
    assert fast.item() == pytest.approx(plain.item(), rel=1e-5)
    gradients = [torch.autograd.grad(loss, model.mask_latent)[0] for loss in (fast, plain)]
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-6) and gradients[0].abs().max() > 0


def test_defaults_are_the_fast_ones():
    parser = options.make_parser("")
    options.add_sampler(parser)
    args = parser.parse_args([])
    assert (args.sampler, args.solver, args.ode_steps, args.precision) == ("fast", None, None, "fp32")
    head = SiTHead(2, 8, 8, 1)
    assert head.process_sampler(1.0)[1] == head.process_sampler(1.0, SOLVER, ODE_STEPS)[1]
