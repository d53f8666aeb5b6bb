"""Our quantizers against the packages vector-quantize-pytorch and diveq: same weights and input, same codes
and gradients."""
import importlib.util

import pytest
import torch
import vector_quantize_pytorch as theirs

from models.DiVeQ import DiVeQ, SFDiVeQ, step_towards
from models.FSQ import FSQ, SymmetricFSQ
from models.VQ import EMAVQ, RVQ, VQ, RotationVQ, SimVQ

K, D = 32, 6
# The package asks for Python 3.11; nothing but these tests uses it.
needs_diveq = pytest.mark.skipif(importlib.util.find_spec("diveq") is None,
                                 reason="the package diveq needs Python 3.11")


def vectors(seed=0, count=200, dim=D, grad=True):
    return torch.randn(1, count, dim, generator=torch.Generator().manual_seed(seed)).requires_grad_(grad)


def give_codebook(vq, codebook):
    """Put a codebook (K, d) into their VectorQuantize, as a fresh one of ours has it: every code counted
    once."""
    inner = vq._codebook
    inner.embed.data.copy_(codebook[None])
    inner.embed_avg.data.copy_(codebook[None])
    inner.cluster_size.data.fill_(1.0)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (8, 8, 8, 5, 5, 5), (7, 3, 4)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_fsq(levels, symmetric):
    ours = (SymmetricFSQ if symmetric else FSQ)(levels)
    other = theirs.FSQ(list(levels), preserve_symmetry=symmetric)
    z = vectors(dim=len(levels))
    again = z.detach().clone().requires_grad_()
    out, (codes, indices) = ours(z), other(again)
    assert torch.allclose(out.z_q, codes, atol=1e-6) and torch.equal(out.indices, indices.long())
    assert torch.allclose(ours.decode_indices(out.indices), other.indices_to_codes(indices), atol=1e-6)
    weights = torch.randn_like(codes)
    (out.z_q * weights).sum().backward()
    (codes * weights).sum().backward()
    assert torch.allclose(z.grad, again.grad, atol=1e-5)


def test_vq():
    """Codes, straight-through gradient, and both losses (theirs weights the two halves by 1 and beta x 1)."""
    ours = VQ(K, D, beta=0.25).train()
    ours.seeded.fill_(True)
    with torch.no_grad():
        ours.codebook.copy_(vectors(1, K)[0])
    other = theirs.VectorQuantize(dim=D, codebook_size=K, learnable_codebook=True, ema_update=False,
                                  commitment_weight=0.25, rotation_trick=False)
    give_codebook(other, ours.codebook.detach())
    z, again = vectors(), vectors()
    out, (codes, indices, loss) = ours(z), other(again)
    assert torch.equal(out.indices, indices) and torch.allclose(out.z_q, codes, atol=1e-6)
    # theirs: beta x mse(codes, z) with both sides' gradient
    assert torch.allclose(out.loss, loss * 5, atol=1e-5)  # ours: (1 + beta) x mse
    (out.z_q.square().sum()).backward()
    (codes.square().sum()).backward()
    assert torch.allclose(z.grad, again.grad, atol=1e-5)


def test_rotation_trick():
    ours = RotationVQ(K, D).train()
    ours.seeded.fill_(True)
    with torch.no_grad():
        ours.codebook.copy_(vectors(1, K)[0])
    other = theirs.VectorQuantize(dim=D, codebook_size=K, learnable_codebook=True, ema_update=False,
                                  rotation_trick=True)
    give_codebook(other, ours.codebook.detach())
    z, again = vectors(), vectors()
    out, (codes, _, _) = ours(z), other(again)
    weights = torch.randn_like(codes)
    (out.z_q * weights).sum().backward()
    (codes * weights).sum().backward()
    assert torch.allclose(out.z_q, codes, atol=1e-5) and torch.allclose(z.grad, again.grad, atol=1e-4)
    assert not torch.allclose(z.grad, weights, atol=1e-2)  # it is not the straight-through gradient


def test_ema_over_several_steps():
    torch.manual_seed(0)
    ours = EMAVQ(K, D, beta=0.25, decay=0.9, reseed_every=0).train()
    ours.seed(vectors(1)[0].detach())
    ours.seeded.fill_(True)
    other = theirs.VectorQuantize(dim=D, codebook_size=K, decay=0.9, commitment_weight=0.25,
                                  rotation_trick=False).train()
    give_codebook(other, ours.codebook)
    for step in range(5):
        z = vectors(10 + step, grad=False)
        out, (codes, indices, loss) = ours(z), other(z)
        assert torch.equal(out.indices, indices) and torch.allclose(out.z_q, codes, atol=1e-5)
        assert torch.allclose(out.loss, loss.reshape(()), atol=1e-6)
    assert torch.allclose(ours.codebook, other.codebook, atol=1e-5)
    assert torch.allclose(ours.counts, other._codebook.cluster_size[0], atol=1e-5)


def test_rvq():
    torch.manual_seed(0)
    ours = RVQ(K, D, num_layers=3).eval()
    other = theirs.ResidualVQ(dim=D, num_quantizers=3, codebook_size=K).eval()
    for i, (mine, their) in enumerate(zip(ours.layers, other.layers)):
        mine.codebook.copy_(vectors(i, K)[0] / 2**i)
        give_codebook(their, mine.codebook)
    z = vectors(grad=False)
    out, (total, indices, *_) = ours(z), other(z)
    assert torch.equal(out.indices, indices)
    assert torch.allclose(ours.codes_to_latent(out.z_q), total, atol=1e-5)


@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_simvq(beta):
    torch.manual_seed(0)
    ours = SimVQ(K, D, beta)
    other = theirs.SimVQ(dim=D, codebook_size=K, rotation_trick=False,
                         input_to_quantize_commit_loss_weight=beta)
    other.frozen_codebook.copy_(ours.codebook)
    other.code_transform.weight.data.copy_(ours.transform.weight.data)
    z, again = vectors(), vectors()
    out, (codes, indices, loss) = ours(z), other(again)
    assert torch.equal(out.indices, indices) and torch.allclose(out.z_q, codes,
                                                                atol=1e-6) and torch.allclose(out.loss, loss)
    (out.loss + out.z_q.square().sum()).backward()
    (loss + codes.square().sum()).backward()
    assert torch.allclose(z.grad, again.grad, atol=1e-5)
    assert torch.allclose(ours.transform.weight.grad, other.code_transform.weight.grad, atol=1e-5)


def diveq_pair():
    from diveq import DIVEQ

    ours = DiVeQ(K, D, noise_variance=1e-6, replace_every=0).train()
    ours.seeded.fill_(True)
    # theirs takes noise_var for a standard deviation
    other = DIVEQ(K, D, noise_var=1e-3, codebook_reset=False, allow_warning=False, verbose=False)
    with torch.no_grad():
        ours.codebook.copy_(vectors(1, K)[0])
        other.codebook.copy_(ours.codebook)
    return ours, other


@needs_diveq
def test_diveq():
    ours, other = diveq_pair()
    z, again = vectors(), vectors()
    torch.manual_seed(3)
    out = ours(z)
    torch.manual_seed(3)
    codes, indices, _ = other(again[0])
    assert torch.equal(out.indices[0], indices) and torch.allclose(out.z_q[0], codes,
                                                                   atol=1e-5) and out.loss == 0
    weights = torch.randn_like(codes)
    (out.z_q[0] * weights).sum().backward()
    (codes * weights).sum().backward()
    assert torch.allclose(z.grad, again.grad, atol=1e-4) and ours.codebook.grad.abs().sum() > 0
    assert torch.allclose(ours.codebook.grad, other.codebook.grad, atol=1e-4)
    assert torch.allclose(ours.eval()(z).z_q[0], other.inference(again[0])[0], atol=1e-6)


def test_diveqs_gradient_is_that_of_its_formula():
    """d z_q = dz + u (c - z) . (dc - dz) / ||c - z|| with the unit vector u held fixed, written out by
    hand."""
    torch.manual_seed(0)
    z, codes = (torch.randn(5, 4, dtype=torch.double, requires_grad=True) for _ in range(2))
    weights = torch.randn(5, 4, dtype=torch.double)
    with torch.no_grad():
        u = (codes - z) / (codes - z).norm(dim=-1, keepdim=True)
    ((z + step_towards(z, codes, 0.0)) * weights).sum().backward()
    along = (weights * u).sum(-1, keepdim=True)
    assert torch.allclose(codes.grad, along * u) and torch.allclose(z.grad, weights - along * u)


@needs_diveq
def test_sf_diveq():
    """Training: their dithered codebook and gradient, for the same draws. Inference: theirs looks only beside
    the nearest code, so ours, over all segments, is never further from z."""
    from diveq import SFDIVEQ

    ours = SFDiVeQ(K, D, noise_variance=1e-6, segment_points=2048).train()
    ours.seeded.fill_(True)
    other = SFDIVEQ(K, D, noise_var=1e-3, skip_iters=0, avg_iters=0, allow_warning=False)
    with torch.no_grad():
        ours.codebook.copy_(vectors(1, K)[0])
        other.codebook.copy_(ours.codebook)
    z, again = vectors(), vectors()
    torch.manual_seed(3)
    out = ours(z)
    torch.manual_seed(3)
    codes, segments, _ = other(again[0])
    assert torch.allclose(out.z_q[0], codes, atol=1e-5)
    # a share of 1 is the next
    assert (torch.div(out.indices[0], 2048, rounding_mode="floor") == segments).float().mean() > 0.98
    weights = torch.randn_like(codes)
    (out.z_q[0] * weights).sum().backward()
    (codes * weights).sum().backward()
    assert torch.allclose(z.grad, again.grad, atol=1e-4) and torch.allclose(ours.codebook.grad,
                                                                            other.codebook.grad, atol=1e-4)
    with torch.no_grad():
        mine, their = ours.eval()(z).z_q[0], other.inference(again[0])[0]
        gap = (mine - z[0]).norm(dim=-1) - (their - z[0]).norm(dim=-1)
    assert (gap < 1e-3).all() and (gap.abs() < 1e-3).float().mean() > 0.5
