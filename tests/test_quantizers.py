"""Quantizers and autoencoders: exactness of the grid, round trips, and the four verbs."""
import pytest
import torch

from models.AE import FSQ_LEVELS, AE_models
from models.errors import ModelError
from models.FSQ import FSQ
from models.VQ import VQ


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
        by_hand = torch.round(torch.tanh(z[:, column] + torch.atanh(torch.tensor(o / h))) * h - o) / (levels // 2)
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
    with pytest.raises(ModelError, match="2 or more"):
        FSQ(levels)


def test_wrong_width_and_wrong_index_are_refused():
    with pytest.raises(ModelError, match="dimensions"):
        FSQ([5, 5])(torch.zeros(3, 4))
    with pytest.raises(ModelError, match="outside"):
        FSQ([5, 5]).decode_indices(torch.tensor([25]))
    with pytest.raises(ModelError, match="outside"):
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
    assert torch.equal(quantizer.snap(z), quantizer.decode_indices(torch.cdist(z.reshape(-1, 8), quantizer.codebook)
                                                                   .argmin(1)).reshape(z.shape))


@pytest.mark.parametrize("name", ["AE_Model", "FSQ_AE_Model", "FSQ_AE_High", "VQ_AE_Model"])
@torch.no_grad()
def test_four_verbs(name):
    torch.manual_seed(0)
    ae = AE_models[name](input_width=67, width=32, latent_dim=32).eval()
    motion = torch.randn(2, 32, 67)
    latents, targets = ae.encode_targets(motion)
    assert latents.shape == (2, 8, 32) and targets.shape == (2, 8, ae.target_dim)
    assert torch.allclose(ae.embed_targets(targets), latents, atol=1e-6)
    assert torch.allclose(ae.snap(targets), targets, atol=1e-6)  # what the encoder yields is on the grid
    assert torch.allclose(ae.decode_targets(targets), ae(motion).motion, atol=1e-5)
    assert torch.allclose(ae.decode(ae.encode(motion)), ae(motion).motion, atol=1e-5)


def test_names_that_users_know():
    ae = AE_models["FSQ_AE_High"](width=32, latent_dim=32).eval()
    latents, out = ae.encode_with_fsq_output(torch.randn(1, 16, 67))
    assert latents.shape == (1, 32, 4) and out.z_q.shape == (1, 4, 6)
    assert ae.decode_from_fsq(out.z_q).shape == (1, 16, 67)
    assert torch.equal(ae.quantizer.get_indices(out.z_q), out.indices)


@pytest.mark.parametrize("name", ["AE_Model", "FSQ_AE_High", "VQ_AE_Model"])
@torch.no_grad()
def test_padding_does_not_leak(name):
    """A clip's targets and its decoded motion are the same alone and padded in a batch, whatever the padding holds."""
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
