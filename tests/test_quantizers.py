"""Quantizers and autoencoders: exactness of the grid, round trips, and the four verbs."""
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import models.VQ as VQ_module
from models.AE import FSQ_LEVELS, FSQ_REACH, AE_models, RunningNorm, RunningWhitening
from models.FSQ import FSQ
from models.MARDM import check_pair
from models.quantizers import QUANTIZERS, make_quantizer
from models.VQ import VQ
from utils.errors import UserError

VARIANTS = {  # one of each quantizer, and those of its settings that change what it does
    **{name: (name, {}) for name in QUANTIZERS},
    "pq": ("pq", {"groups": 3}),
    "ema_large": ("ema", {"reseed_every": 1}),
    "rvq_first": ("rvq", {"num_layers": 3, "use_layers": 1}),
    "residual_3": ("residual", {"stages": 3}),
    "gumbel_plain": ("gumbel", {"noise": False}),
    "gumbel_nearest": ("gumbel", {"nearest": 4}),
    "gumbel_soft": ("gumbel", {"soft": True}),
    "gumbel_diverse": ("gumbel", {"diversity": 0.5}),
    "gumbel_annealed": ("gumbel", {"temperature": "anneal"}),
    "gumbel_top_k": ("gumbel", {"temperature": "anneal", "noise": False, "nearest": 4}),
    "gumbel_adaptive": ("gumbel", {"temperature": "adaptive"}),
    "gumbel_learned": ("gumbel", {"temperature": "learned"}),
    "gumbel_reset": ("gumbel", {"reset_every": 5}),
}


def build(variant, levels=(5, 7, 5), codes=32, dim=3):
    name, settings = VARIANTS[variant]
    sizes = {"levels": levels} if QUANTIZERS[name].family == "FSQ" else {"codebook_size": codes, "dim": dim}
    return make_quantizer(QUANTIZERS[name].family, name, settings, **sizes)


def train(quantizer, steps=150, tokens=256):
    """A linear autoencoder of structured data through the quantizer; returns the reconstruction losses."""
    torch.manual_seed(0)
    enter, leave = torch.nn.Linear(8, quantizer.dim), torch.nn.Linear(quantizer.dim, 8)
    basis = torch.randn(3, 8)
    optimizer = torch.optim.Adam([*enter.parameters(), *leave.parameters(), *quantizer.parameters()], 1e-2)
    quantizer.train()
    losses = []
    for _ in range(steps):
        x = torch.randn(tokens, 3) @ basis
        out = quantizer(enter(x))
        recons = (leave(quantizer.codes_to_latent(out.z_q)) - x).square().mean()
        optimizer.zero_grad()
        (recons + out.loss).backward()
        assert enter.weight.grad.abs().sum() > 0 and all(torch.isfinite(p.grad).all()
                                                         for p in enter.parameters())
        optimizer.step()
        losses.append(float(recons.detach()))
    return losses, enter, torch.randn(64, 3) @ basis


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_quantizer_trains_and_round_trips(variant):
    torch.manual_seed(0)
    quantizer = build(variant)
    losses, enter, x = train(quantizer)
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    quantizer.eval()
    with torch.no_grad():
        z = enter(x)
        out = quantizer(z)
        assert len(out.indices.unique(dim=0)) >= 8  # it has not collapsed
        assert out.z_q.shape == (64, quantizer.target_dim)
        assert quantizer.codes_to_latent(out.z_q).shape == z.shape
        # nothing is random, and nothing moves, outside training
        assert torch.equal(quantizer(z).z_q, out.z_q)
        assert torch.equal(quantizer.snap(out.z_q), out.z_q) or torch.allclose(quantizer.snap(out.z_q),
                                                                               out.z_q, atol=1e-5)
        assert torch.equal(quantizer.get_indices(out.z_q), out.indices)
        if variant != "gumbel_soft":  # whose codes are no finite set
            assert torch.allclose(quantizer.decode_indices(out.indices), out.z_q, atol=1e-6)
            assert torch.equal(quantizer.get_indices(quantizer.decode_indices(out.indices)), out.indices)
        noisy = quantizer.snap(out.z_q + 0.3 * torch.randn_like(out.z_q))
        assert torch.allclose(quantizer.snap(noisy), noisy, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_digits_and_neighbours(variant):
    """Digits lie within the axes; a step along an axis changes the code, and of a grid's digits that one by
    one."""
    torch.manual_seed(0)
    quantizer = build(variant).train()
    quantizer(torch.randn(300, 3))
    quantizer.eval()
    codes = quantizer.snap(torch.randn(50, quantizer.target_dim))
    digits = quantizer.to_digits(quantizer.get_indices(codes))
    assert digits.shape == (50, len(quantizer.axis_sizes))
    assert (digits >= 0).all() and (digits < torch.tensor(quantizer.axis_sizes)).all()
    for axis in range(len(quantizer.axis_sizes)):
        moved = quantizer.neighbour(codes, axis)
        assert moved.shape == codes.shape and ((moved - codes).abs().amax(-1) > 0).all()
        if QUANTIZERS[VARIANTS[variant][0]].family == "FSQ" and axis < quantizer.dim:
            change = (quantizer.to_digits(quantizer.get_indices(moved)) - digits).abs()
            assert torch.equal(change, torch.nn.functional.one_hot(torch.tensor(axis),
                                                                   change.shape[1]).expand_as(change))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_quantizer_is_float32_under_autocast(variant):
    torch.manual_seed(0)
    quantizer = build(variant).train()
    z = torch.randn(64, 3)
    quantizer(z)
    quantizer.eval()
    plain = quantizer(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = quantizer(z)
        assert torch.equal(quantizer.snap(out.z_q), quantizer.snap(plain.z_q))
    assert out.z_q.dtype == torch.float32 and torch.equal(out.z_q, plain.z_q)


class LargestTensor(TorchDispatchMode):
    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if torch.is_tensor(x):
                self.bytes = max(self.bytes, x.numel() * x.element_size())
        return out


def largest_tensor_of_a_step(quantizer, tokens):
    z = torch.randn(tokens, 4, requires_grad=True)
    with LargestTensor() as largest:
        out = quantizer.train()(z)
        (out.z_q.square().sum() + out.loss).backward()
        quantizer.eval().snap(z)
    assert z.grad.abs().sum() > 0
    return largest.bytes


@pytest.mark.parametrize("variant", ["vq", "ema", "simvq", "rotation", "diveq", "sf_diveq", "gumbel",
                                     "gumbel_nearest"])
def test_memory_of_searches_is_bounded(variant, monkeypatch):
    """4,096 codes and 500 vectors would make a matrix of 8 MB; where 1 MB is allowed no tensor of a training
    step is larger."""
    assert VQ_module.DISTANCE_BYTES <= 256 * 2**20
    monkeypatch.setattr(VQ_module, "DISTANCE_BYTES", 2**20)
    torch.manual_seed(0)
    assert 2**17 < largest_tensor_of_a_step(build(variant, codes=4096, dim=4), 500) <= 2**20


def test_memory_of_65536_codes_is_bounded():
    """1,100 vectors would make a matrix of 288 MB."""
    torch.manual_seed(0)
    assert largest_tensor_of_a_step(build("vq", codes=65536, dim=4), 1100) <= 256 * 2**20


def test_padding_moves_no_statistics():
    torch.manual_seed(0)
    for variant in ("ema", "rvq", "diveq", "vq", "hybrid"):
        plain, masked = (build(variant).train() for _ in range(2))
        masked.load_state_dict(plain.state_dict())
        z = torch.randn(2, 10, 3)
        mask = torch.arange(10) < torch.tensor([[6], [10]])
        for step in range(3):
            losses = []
            for quantizer, garbage in ((plain, 0.0), (masked, 1e3)):
                torch.manual_seed(step)
                losses.append(quantizer(torch.where(mask[..., None], z, torch.full_like(z, garbage)),
                                        mask).loss)
            assert torch.allclose(*losses), variant
        for (key, a), b in zip(plain.state_dict().items(), masked.state_dict().values()):
            assert torch.allclose(a.float(), b.float()), (variant, key)


def test_dead_codes_start_again():
    """Codes far from the data: with re-seeding all come into use, without it they stay dead."""
    used = {}
    for every in (0, 5):
        torch.manual_seed(0)
        quantizer = make_quantizer("VQ", "ema", {"reseed_every": every, "decay": 0.8}, codebook_size=16,
                                   dim=2).train()
        quantizer(torch.randn(100, 2))
        with torch.no_grad():
            quantizer.codebook[4:] = 50.0
            quantizer.sums.copy_(quantizer.codebook * quantizer.counts[:, None])
        for _ in range(60):
            quantizer(torch.randn(100, 2))
        used[every] = len(quantizer(torch.randn(1000, 2)).indices.unique())
    assert used[0] == 4 and used[5] == 16


def test_diveq_replaces_unused_codes():
    torch.manual_seed(0)
    quantizer = make_quantizer("VQ", "diveq", {"replace_every": 10}, codebook_size=16, dim=2).train()
    quantizer(torch.randn(100, 2))
    with torch.no_grad():
        quantizer.codebook[4:] = 50.0
        quantizer.uses.zero_()
    for _ in range(12):
        quantizer(torch.randn(200, 2))
    assert (quantizer.codebook.abs() < 10).all()


def test_learned_spacing_moves_and_stays_in_order():
    torch.manual_seed(0)
    quantizer = build("learned", levels=(5, 8, 3))
    before = quantizer.table().detach().clone()
    assert torch.allclose(before[1], torch.linspace(-1, 1, 8), atol=1e-6)
    train(quantizer)
    table = quantizer.table().detach()
    assert not torch.allclose(before, table, atol=1e-3)
    for row, count in zip(table, (5, 8, 3)):
        assert (row[:count].diff() > 0).all() and torch.isinf(row[count:]).all()
        assert row[0] == -1 and abs(row[count - 1] - 1) < 1e-5


def test_residual_starts_as_an_even_grid_of_all_sums():
    quantizer = build("residual", levels=(5, 7, 5))
    assert quantizer.levels == (25, 49, 25)
    steps = quantizer.table()[1].diff()
    assert torch.allclose(steps, steps[:1].expand(48), atol=1e-6)


def test_a_hybrids_offsets_stay_in_their_cell():
    """Also the largest offsets that the parameters can make: grid point and offset are told from their
    sum."""
    quantizer = build("hybrid", levels=(5, 8))
    signs = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).sign()
    with torch.no_grad():
        quantizer.offsets.codebook.copy_(20 * signs.cumsum(0))
    indices = torch.arange(0, 40 * 64, 7)
    digits = quantizer.to_digits(indices)
    again = quantizer.to_digits(quantizer.get_indices(quantizer.decode_indices(indices)))
    assert torch.equal(digits[:, :2], again[:, :2])  # offsets at the bound may be the same code twice


def test_noise_dropout_mixes_three_kinds_in_training_only():
    torch.manual_seed(0)
    quantizer = make_quantizer("FSQ", "noise_dropout", {"keep": 0.25, "dither": 0.25}, levels=(5, 5)).train()
    z = torch.randn(4000, 2)
    x, out = quantizer.bound(z), quantizer(z)
    kept = (out.z_q == x).all(1)
    rounded = (out.z_q == quantizer.snap(x)).all(1)
    assert abs(float(kept.float().mean()) - 0.25) < 0.03 and abs(float(rounded.float().mean()) - 0.5) < 0.03
    assert ((out.z_q - x).abs() <= 0.25 + 1e-6).all()  # half a step
    assert torch.equal(out.indices, quantizer.get_indices(x))
    assert torch.equal(quantizer.eval()(z).z_q, quantizer.snap(x))


def test_ifsq_spreads_a_normal_z_evenly():
    """Largest distance between the distribution of the bounded z and the uniform one, against that of the
    tanh."""
    z = torch.randn(20000, 1, generator=torch.Generator().manual_seed(0))
    uniform = torch.linspace(-1, 1, len(z))
    even, plain = ((make_quantizer("FSQ", name, {}, levels=(9,)).bound(z)[:, 0].sort().values
                    - uniform).abs().max()
                   for name in ("ifsq", "symmetric"))
    assert even < 0.05 < 0.1 < plain


def test_gumbel_weights_and_temperature():
    """Without noise z_q = softmax(-||z - e||^2 / tau) e, by hand; tau falls with the steps down to its
    end."""
    torch.manual_seed(0)
    quantizer = make_quantizer("VQ", "gumbel", {"noise": False, "tau_decay": 0.5, "tau_end": 0.2},
                               codebook_size=9, dim=3).train()
    quantizer(torch.randn(50, 3))
    z = torch.randn(20, 3)
    assert quantizer.tau == 0.5
    by_hand = (-torch.cdist(z, quantizer.codebook).square() / 0.5).softmax(1) @ quantizer.codebook
    assert torch.allclose(quantizer(z).z_q, by_hand, atol=1e-5)
    for _ in range(5):
        quantizer(z)
    assert quantizer.tau == 0.2
    assert torch.equal(quantizer.eval()(z).z_q, quantizer.snap(z))


def gumbel(codes=8, **settings):
    return make_quantizer("VQ", "gumbel", settings, codebook_size=codes, dim=2).train()


@pytest.mark.parametrize("steps", [10, 1000])
def test_an_annealed_temperature_follows_the_length_of_the_training(steps):
    """From tau_start to tau_end, geometrically, in the first 80% of the steps, and that is kept in
    checkpoints."""
    quantizer = gumbel(temperature="anneal", tau_start=2.0, tau_end=0.02)
    quantizer.plan(steps)
    taus = []
    for share in (0, 0.2, 0.4, 0.8, 1.0):
        quantizer.steps.fill_(int(share * steps))
        taus.append(quantizer.tau)
    assert taus == pytest.approx([2, 2 * 0.01**0.25, 0.2, 0.02, 0.02])
    other = gumbel(temperature="anneal", tau_start=2.0, tau_end=0.02)
    other.plan(steps * 7)  # a resumed run asked for more
    other.load_state_dict(quantizer.state_dict())
    assert other.tau == quantizer.tau and int(other.horizon) == steps
    other.plan(50)  # a fine-tuning of it
    assert other.tau == 2


def test_other_temperatures_do_not_ask_for_the_length():
    quantizer = gumbel()
    quantizer.plan(10)
    quantizer.steps.fill_(1000)
    assert quantizer.tau == pytest.approx(0.9999**1000)
    # as files from before the other temperatures have it
    assert set(quantizer.state_dict()) == {"codebook", "seeded", "steps"}
    unplanned = gumbel(temperature="anneal")
    unplanned.steps.fill_(1000)
    assert unplanned.tau == quantizer.tau


def test_an_adaptive_temperature_rises_while_few_codes_are_in_use():
    one, many = gumbel(temperature="adaptive"), gumbel(temperature="adaptive")
    points = torch.linspace(-8, 8, 8)[:, None].expand(8, 2)
    for quantizer in (one, many):
        quantizer.seeded.fill_(True)
        with torch.no_grad():
            quantizer.codebook.copy_(points)
        quantizer.adapted.fill_(0.5)
        quantizer.shares.copy_(torch.eye(8)[0])
    one(points[:1].repeat(40, 1))
    assert float(one.tau) == pytest.approx(0.505)
    many.shares.fill_(1 / 8)
    many(points.repeat(5, 1))
    assert float(many.tau) == pytest.approx(0.5 / 1.01)
    for _ in range(400):
        many(points.repeat(5, 1))
    assert float(many.tau) == pytest.approx(0.1)  # and not below its end
    before = float(many.tau)
    many.eval()(points)
    assert float(many.tau) == before


def test_a_learned_temperature_has_a_gradient_and_a_lower_bound():
    torch.manual_seed(0)
    quantizer = gumbel(temperature="learned")
    assert float(quantizer.tau.detach()) == pytest.approx(1)
    quantizer(torch.randn(30, 2)).z_q.square().sum().backward()
    assert abs(float(quantizer.log_tau.grad)) > 1e-4
    with torch.no_grad():
        quantizer.log_tau.fill_(-50)
    assert float(quantizer.tau.detach()) == pytest.approx(0.1)


def test_unused_codes_restart_at_the_vectors_quantized_worst():
    torch.manual_seed(0)
    quantizer = gumbel(codes=4, reset_every=2)
    quantizer.seeded.fill_(True)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[0.0, 0], [1, 0], [90, 90], [-90, 90]]))
    vectors = torch.tensor([[0.0, 0.1]] * 10 + [[1, 0.1]] * 10 + [[5.0, 0], [0, -7]])
    for _ in range(3):
        quantizer(vectors)
    near = quantizer.codebook.detach()
    assert torch.allclose(near[:2], torch.tensor([[0.0, 0], [1, 0]]))
    assert (near[2] - vectors[21]).abs().max() < 0.1 and (near[3] - vectors[20]).abs().max() < 0.1


@pytest.mark.parametrize("planned, last", [(20, 14), (0, 18)])
def test_resets_stop_when_a_fifth_of_the_training_is_left(monkeypatch, planned, last):
    quantizer, seen = gumbel(reset_every=2), []
    quantizer.plan(planned)  # 0: nobody has told
    monkeypatch.setattr(quantizer, "reset", lambda _: seen.append(int(quantizer.steps)))
    for _ in range(20):
        quantizer(torch.randn(20, 2))
    assert seen == [*range(2, last + 1, 2)]


def test_product_quantization_is_a_codebook_for_each_part():
    torch.manual_seed(0)
    quantizer = make_quantizer("VQ", "pq", {"groups": 2}, codebook_size=8, dim=6).train()
    for _ in range(30):
        quantizer(torch.randn(200, 6))
    z = torch.randn(50, 6, requires_grad=True)
    out = quantizer.eval()(z)
    assert quantizer.codebook_size == 64 and quantizer.axis_sizes == (8, 8) and out.indices.shape == (50, 2)
    for i, layer in enumerate(quantizer.layers):
        part = z[:, 3 * i : 3 * i + 3].detach()
        nearest = torch.cdist(part, layer.codebook).argmin(1)
        assert torch.equal(out.indices[:, i], nearest)
        assert torch.allclose(out.z_q[:, 3 * i : 3 * i + 3], layer.codebook[nearest])
    out.z_q.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))


def test_gumbel_diversity_is_zero_for_even_use_and_one_for_a_single_code():
    quantizer = make_quantizer("VQ", "gumbel", {"diversity": 2.0}, codebook_size=8, dim=2)
    assert float(quantizer.diversity_loss(torch.full((8,), 1 / 8))) == pytest.approx(0, abs=1e-6)
    assert float(quantizer.diversity_loss(torch.eye(8)[3])) == pytest.approx(2, abs=1e-6)


def test_rvq_layers_lower_the_error_one_after_the_other():
    torch.manual_seed(0)
    quantizer = make_quantizer("VQ", "rvq", {"num_layers": 4, "layer_dropout": 0}, codebook_size=16,
                               dim=4).train()
    for _ in range(60):
        quantizer(torch.randn(256, 4))
    z = torch.randn(500, 4)
    out = quantizer.eval()(z)
    assert out.z_q.shape == (500, 16) and out.indices.shape == (500, 4) and quantizer.codebook_size == 16**4
    sums = out.z_q.unflatten(-1, (4, 4)).cumsum(1)
    errors = (sums - z[:, None]).square().mean((0, 2))
    assert (errors.diff() < 0).all()


def test_rvq_trains_with_fewer_layers_at_times():
    torch.manual_seed(0)
    quantizer = make_quantizer("VQ", "rvq", {"num_layers": 3, "layer_dropout": 1.0}, codebook_size=8,
                               dim=2).train()
    counts = {int((quantizer(torch.randn(4, 2)).indices[0] >= 0).sum()) for _ in range(40)}
    assert counts == {1, 2, 3}


@pytest.mark.parametrize("family, name, settings, message", [
    ("FSQ", "ema", {}, "belongs to --model VQ_AE_Model"),
    ("VQ", "fsq", {}, "belongs to --model FSQ_AE_Model"),
    ("FSQ", "fsqq", {}, "unknown quantizer"),
    ("FSQ", "fsq", {"decay": 0.9}, "no setting 'decay'"),
    ("FSQ", "residual", {"stages": 0}, "1 stage"),
    ("FSQ", "residual", {"stages": 9}, "more than 4096"),
    ("FSQ", "noise_dropout", {"keep": 0.8, "dither": 0.8}, "at most 1"),
    ("FSQ", "hybrid", {"offset_codes": 0}, "1 code"),
    ("VQ", "rvq", {"num_layers": 2, "use_layers": 3}, "cannot use 3 of 2"),
    ("VQ", "rvq", {"num_layers": 0}, "1 layer"),
    ("VQ", "ema", {"decay": 1.5}, "0..1"),
    ("VQ", "gumbel", {"nearest": 99}, "nearest 99"),
    ("VQ", "gumbel", {"tau_end": 0.0}, "above 0"),
    ("VQ", "gumbel", {"temperature": "warm"}, "decay, anneal, adaptive, learned; got 'warm'"),
    ("VQ", "gumbel", {"temperature": "anneal", "tau_start": 0.1}, "tau_start must be above tau_end"),
    ("VQ", "gumbel", {"wanted_use": 0.0}, "fraction above 0"),
    ("VQ", "gumbel", {"reset_every": -1}, "0 or more"),
    ("VQ", "pq", {"groups": 3}, "no multiple of groups=3"),
    ("VQ", "pq", {"groups": 0}, "no multiple of groups=0"),
    ("VQ", "diveq", {"noise_variance": -1.0}, "0 or more"),
    ("VQ", "sf_diveq", {"segment_points": 0}, "1 point"),
])
def test_bad_settings_are_refused(family, name, settings, message):
    sizes = {"levels": (5, 5)} if family == "FSQ" else {"codebook_size": 16, "dim": 2}
    with pytest.raises(UserError, match=message):
        make_quantizer(family, name, settings, **sizes)


def test_ifsq_refuses_even_levels():
    with pytest.raises(UserError, match="odd levels"):
        make_quantizer("FSQ", "ifsq", {}, levels=(8, 5))


def test_running_norm_by_hand():
    torch.manual_seed(0)
    norm, z = RunningNorm(2), torch.randn(64, 8, 2) * torch.tensor([0.1, 5.0]) + torch.tensor([0.0, 3.0])
    mask = torch.arange(8) < 6
    mask = mask.expand(64, 8)
    z[~mask] = 1e6  # what lies behind a clip's end counts for nothing
    out = norm(z, mask)[mask]
    assert torch.allclose(out.mean(0), torch.zeros(2), atol=1e-4) and torch.allclose(out.std(0),
                                                                                     torch.ones(2), atol=1e-2)
    norm(torch.ones(4, 2))  # the second batch counts a tenth
    assert torch.allclose(norm.mean, 0.9 * z[mask].mean(0) + 0.1, atol=1e-4)
    before = norm.mean.clone()
    norm.eval()(z)
    assert torch.equal(norm.mean, before)


def test_running_whitening_by_hand(monkeypatch):
    torch.manual_seed(0)
    mix = torch.tensor([[5.0, 5.0, 1.0], [0.0, 0.2, 0.0], [0.0, 0.0, 1.0]])  # two axes say nearly the same
    norm, z = RunningWhitening(3), torch.randn(512, 4, 3) @ mix + torch.tensor([30.0, 0.0, -3.0])
    out = norm(z).flatten(0, 1)
    assert torch.allclose(out.mean(0), torch.zeros(3), atol=1e-3)
    assert torch.allclose(out.T.cov(), torch.eye(3), atol=1e-3)
    assert torch.allclose(norm.matrix, norm.matrix.T, atol=1e-5)
    first = norm.covariance.clone()
    norm(torch.zeros(4, 3))  # the second batch counts a tenth
    assert torch.allclose(norm.covariance, 0.9 * first, rtol=1e-5)
    before = norm.matrix.clone()
    norm.eval()(z)
    assert torch.equal(norm.matrix, before)
    flat = RunningWhitening(2)(torch.randn(4096, 1) @ torch.ones(1, 2) + 1e-4 * torch.randn(4096, 2))
    assert float(flat.detach().T.cov().trace()) == pytest.approx(1, abs=0.01)  # noise is not blown up
    # of two processes that see the same the statistics are those of one
    monkeypatch.setattr("models.AE.all_reduce_", lambda *sums: [one.mul_(2) for one in sums])
    twice = RunningWhitening(3)
    assert torch.allclose(twice(z).flatten(0, 1), out, atol=1e-4)


def test_whitening_survives_two_batches_before_one_backward_pass():
    torch.manual_seed(0)
    norm, z = RunningWhitening(2), torch.randn(2, 16, 2, requires_grad=True)
    sum(norm(part).square().sum() for part in z).backward()
    assert (z.grad.flatten(1).norm(dim=1) > 0).all()
    assert norm(torch.zeros(8, 2)).isfinite().all()  # and a batch that says nothing


def test_a_normalised_grid_is_filled_from_the_start():
    """The encoder's first z spreads a tenth of what the bound expects: most of it falls on the middle
    level."""
    torch.manual_seed(0)
    share = {}
    for normalise in (False, True):
        ae = AE_models["FSQ_AE_Model"](levels=(9,) * 8, quantizer="ifsq", normalise=normalise, width=32,
                                       latent_dim=32)
        digits = ae.quantizer.to_digits(ae(torch.randn(64, 64, 67)).indices)
        share[normalise] = float((digits == 4).float().mean())
    assert share[True] < 0.2 and share[False] > 0.4


def test_a_direct_grid_is_the_latent():
    ae = AE_models["FSQ_AE_Model"](levels=(9,) * 8, quantizer="ifsq", direct=True, width=32,
                                   latent_dim=32).eval()
    assert ae.latent_dim == ae.target_dim == 8 and not any("quant" in name for name in ae.state_dict())
    motion = torch.randn(2, 64, 67)
    latents, targets = ae.encode_targets(motion)
    assert torch.equal(latents, targets) and torch.equal(ae.snap(targets), targets)
    assert torch.allclose(targets, ae.quantizer(ae.encoder(motion.transpose(1, 2)).transpose(1, 2)).z_q)
    assert torch.allclose(ae.decode_targets(targets), ae.decoder(targets.transpose(1, 2)).transpose(1, 2))


def test_reach_widens_the_grid_for_the_decoder_alone():
    """Encoder and decoder of reach 4 are those of reach 1 with 4 times the last and a quarter of the first
    weights."""
    torch.manual_seed(0)
    wide, narrow = (AE_models["FSQ_AE_High"](width=32, latent_dim=32, reach=reach).eval()
                    for reach in (4.0, 1.0))
    narrow.load_state_dict(wide.state_dict())
    with torch.no_grad():
        for value in narrow.pre_quant.parameters():
            value /= 4
        narrow.post_quant.weight *= 4
    motion = 5 * torch.randn(2, 64, 67)
    targets = wide.encode_targets(motion)[1]
    assert torch.equal(targets, narrow.encode_targets(motion)[1]) and torch.equal(wide.snap(targets), targets)
    assert torch.allclose(wide(motion).motion, narrow(motion).motion, atol=1e-5)


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 6, 7, 8, 9, 16])
def test_fsq_reaches_exactly_its_levels(levels):
    quantizer = FSQ([levels])
    z_q = quantizer(torch.linspace(-30, 30, 20001)[:, None]).z_q
    values = z_q.unique()
    assert len(values) == levels
    assert values.min() == -1 and values.max() <= 1
    assert torch.allclose(values.diff(), torch.full((levels - 1,), 1 / (levels // 2)))


@pytest.mark.parametrize("name", FSQ_LEVELS)
def test_every_index_of_every_zoo_row_round_trips(name):
    quantizer = FSQ(FSQ_LEVELS[name])
    indices = torch.arange(quantizer.codebook_size)
    codes = quantizer.decode_indices(indices)
    assert torch.equal(quantizer.get_indices(codes), indices)
    assert torch.equal(quantizer.snap(codes), codes)
    assert len(codes.unique(dim=0)) == quantizer.codebook_size


def test_fsq_formula():
    """z_q = round(tanh(z + atanh(o / h)) h - o) / floor(L / 2), computed here by hand."""
    z = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)) * 2
    for column, levels in enumerate((8, 5)):
        h, o = (levels - 1) * 1.001 / 2, 0.5 if levels % 2 == 0 else 0.0
        by_hand = torch.round(torch.tanh(z[:, column] + torch.atanh(torch.tensor(o / h))) * h
                              - o) / (levels // 2)
        assert torch.allclose(FSQ((8, 5))(z).z_q[:, column], by_hand)


def test_fsq_is_float32_under_autocast_and_passes_gradients():
    quantizer = FSQ([8, 8, 8, 5, 5, 5])
    z = torch.randn(4096, 6, generator=torch.Generator().manual_seed(1))
    plain = quantizer(z).indices
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = quantizer(z)
    assert out.z_q.dtype == torch.float32 and torch.equal(out.indices, plain)
    z.requires_grad_()
    quantizer(z).z_q.sum().backward()
    assert (z.grad > 0).all()


def test_fsq_of_more_codes_than_an_int64_holds():
    quantizer = FSQ([17] * 64)
    out = quantizer(torch.randn(3, 64))
    assert quantizer.codebook_size == 17**64 and out.indices.shape == (3, 64)
    assert torch.allclose(quantizer.decode_indices(out.indices), out.z_q)


def test_snap_takes_the_nearest_grid_point():
    quantizer = FSQ([8, 5])
    grid = quantizer.decode_indices(torch.arange(40))
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(2)) * 1.5
    assert torch.equal(quantizer.snap(x), grid[torch.cdist(x, grid).argmin(1)])


@pytest.mark.parametrize("levels", [[], [1, 5], [-3]])
def test_bad_levels_are_refused(levels):
    with pytest.raises(UserError, match="2 to 65536"):
        FSQ(levels)


def test_wrong_width_and_wrong_index_are_refused():
    with pytest.raises(UserError, match="dimensions"):
        FSQ([5, 5])(torch.zeros(3, 4))
    with pytest.raises(UserError, match="outside"):
        FSQ([5, 5]).decode_indices(torch.tensor([25]))
    with pytest.raises(UserError, match="outside"):
        VQ(8, 4).decode_indices(torch.tensor([8]))


def test_vq_round_trip_seeding_and_gradients():
    torch.manual_seed(0)
    quantizer = VQ(64, 8).train()
    z = torch.randn(40, 10, 8, requires_grad=True)
    out = quantizer(z)
    assert quantizer.seeded and len(out.indices.unique()) > 30  # codes start where the data is
    out.loss.backward()
    assert quantizer.codebook.grad.abs().sum() > 0 and z.grad.abs().sum() > 0
    indices = torch.arange(64)
    assert torch.equal(quantizer.get_indices(quantizer.decode_indices(indices)), indices)
    assert torch.equal(quantizer.snap(z), quantizer.decode_indices(torch.cdist(z.reshape(-1, 8),
                                                                               quantizer.codebook)
                                                                   .argmin(1)).reshape(z.shape))


@pytest.mark.parametrize("name, reach", [(name, 1) for name in AE_models] + [
    (name, FSQ_REACH) for name in ("FSQ_AE_High", "FSQ_AE_Hybrid", "FSQ_AE_Residual",
                                   "FSQ_AE_iFSQ_16x9_Direct", "FSQ_AE_iFSQ_64x17_Norm")])
@torch.no_grad()
def test_four_verbs(name, reach):
    torch.manual_seed(0)
    ae = AE_models[name](input_width=67, width=32, latent_dim=32,
                         **({} if reach == 1 else {"reach": reach})).train()
    motion = torch.randn(2, 32, 67)
    ae(motion)  # codebooks start from the first batch
    ae.eval()
    latents, targets = ae.encode_targets(motion)
    assert latents.shape == (2, 8, ae.latent_dim) and targets.shape == (2, 8, ae.target_dim)
    narrow = {"AE_Model_64": 64, "AE_Model_16": 16}
    assert ae.latent_dim == (ae.quantizer.dim if name.endswith("Direct") else narrow.get(name, 32))
    assert torch.allclose(ae.embed_targets(targets), latents, atol=1e-6)
    assert torch.allclose(ae.snap(targets), targets, atol=1e-6)  # what the encoder yields is on the grid
    assert torch.allclose(ae.decode_targets(targets), ae(motion).motion, atol=1e-5)
    assert torch.allclose(ae.decode(ae.encode(motion)), ae(motion).motion, atol=1e-5)


@pytest.mark.parametrize("name", AE_models)
def test_every_row_has_its_generator(name):
    family = {"FSQ": "FSQ-MARDM-SiT-S", "VQ": "VQ-MARDM-SiT-S"}.get(name.split("_")[0], "MARDM-SiT-S")
    check_pair(family, name)
    for other in {"FSQ-MARDM-SiT-S", "VQ-MARDM-SiT-S", "MARDM-SiT-S"} - {family}:
        with pytest.raises(UserError, match="needs an autoencoder"):
            check_pair(other, name)


def test_which_targets_are_a_finite_set():
    small = {"width": 32, "latent_dim": 32}
    names = ("AE_Model", "VQ_AE_Gumbel", "VQ_AE_Gumbel_Soft", "FSQ_AE_High")
    finite = {name: AE_models[name](**small).finite_targets for name in names}
    assert finite == {"AE_Model": False, "VQ_AE_Gumbel": True, "VQ_AE_Gumbel_Soft": False,
                      "FSQ_AE_High": True}
    assert AE_models["VQ_AE_Model"](**small).target_dim == 32  # codes are as long as the latent


def test_names_that_users_know():
    ae = AE_models["FSQ_AE_High"](width=32, latent_dim=32).eval()
    latents, out = ae.encode_with_fsq_output(torch.randn(1, 16, 67))
    assert latents.shape == (1, 32, 4) and out.z_q.shape == (1, 4, 6)
    assert ae.decode_from_fsq(out.z_q).shape == (1, 16, 67)
    assert torch.equal(ae.quantizer.get_indices(out.z_q), out.indices)


@pytest.mark.parametrize("name", ["AE_Model", "FSQ_AE_High", "VQ_AE_Model", "FSQ_AE_Hybrid", "VQ_AE_RVQ",
                                  "VQ_AE_Gumbel_Soft"])
@torch.no_grad()
def test_padding_does_not_leak(name):
    """A clip's targets and its decoded motion are the same alone and padded in a batch, whatever the padding
    holds."""
    torch.manual_seed(0)
    ae = AE_models[name](width=32, latent_dim=32).eval()
    clips = [torch.randn(length, 67) for length in (24, 40)]
    batch = torch.full((2, 40, 67), 7.0)
    for row, clip in zip(batch, clips):
        row[: len(clip)] = clip
    frames = torch.tensor([24, 40])
    _, together = ae.encode_targets(batch, frames)
    motion = ae.decode_targets(together, frames)
    for i, clip in enumerate(clips):
        _, alone = ae.encode_targets(clip[None])
        assert torch.allclose(together[i, : len(clip) // 4], alone[0], atol=1e-5)
        assert torch.allclose(motion[i, : len(clip)], ae.decode_targets(alone)[0], atol=1e-5)
        assert (motion[i, len(clip):] == 0).all()
