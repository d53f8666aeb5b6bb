"""Stage one: the motion autoencoder, continuous or quantized.

Shapes: B clips, T frames, D features per frame, L = T / 4 tokens, C latent width (512), d width of a target.

Every autoencoder has the same four verbs, so stage two does not branch on the kind of autoencoder:
``encode_targets``, ``embed_targets``, ``snap``, ``decode_targets``.
"""
from collections import OrderedDict
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from models.quantizers import make_quantizer, plan
from models.VQ import all_reduce_

UNIT = 4  # frames per token: two down-samplings by two
PUBLISHED_TOKENS = 49  # tokens to which the published evaluation pads: 196 frames
FSQ_REACH = 4.0  # default of train_AE.py; with the published 1, z may diverge (docs/quantizers.md)


class Reconstruction(NamedTuple):
    """motion (B, T, D); the quantizer's auxiliary loss (); indices (B, L), or None without a quantizer."""

    motion: torch.Tensor
    loss: torch.Tensor
    indices: torch.Tensor | None


def valid_mask(lengths, count):
    """(B, count) bool, true before each of ``lengths`` (B,)."""
    return torch.arange(count, device=lengths.device) < lengths[:, None]


def zero_tail(x, lengths):
    """Zero x (B, C, T) from ``lengths`` (B,) on: convolutions then pad a clip as if it were alone."""
    return x if lengths is None else x * valid_mask(lengths, x.shape[-1])[:, None].to(x.dtype)


class ResConv1DBlock(nn.Module):
    """ReLU, dilated convolution, ReLU, pointwise convolution, dropout, residual."""

    def __init__(self, width, dilation, dropout):
        super().__init__()
        self.conv1 = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv1d(width, width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, lengths=None):
        h = self.conv1(zero_tail(torch.relu(x), lengths))
        return x + self.dropout(self.conv2(torch.relu(h)))


def resnet(width, depth, dropout):
    """Residual blocks with dilations 9, 3, 1, under their released name ``model``."""
    blocks = [ResConv1DBlock(width, 3**i, dropout) for i in reversed(range(depth))]
    return nn.Sequential(OrderedDict(model=nn.Sequential(*blocks)))


def run_stack(layer, x, lengths):
    """Run nested layers over x (B, C, T), zeroed after each clip's end before every convolution of several
    frames; returns x and the lengths (None: all clips are full) at its frame rate."""
    if isinstance(layer, nn.Sequential):
        for inner in layer:
            x, lengths = run_stack(inner, x, lengths)
    elif isinstance(layer, ResConv1DBlock):
        x = layer(x, lengths)
    elif isinstance(layer, nn.Conv1d):
        x = layer(zero_tail(x, lengths))
        if layer.stride[0] == 2 and lengths is not None:
            lengths = lengths // 2
    else:
        x = layer(x)
        if isinstance(layer, nn.Upsample) and lengths is not None:
            lengths = lengths * 2
    return x, lengths


class Encoder(nn.Module):
    """(B, D, T) -> (B, C, T / 4)."""

    def __init__(self, input_width, width, latent_dim, depth, dropout):
        super().__init__()
        down = [nn.Sequential(nn.Conv1d(width, width, 4, stride=2, padding=1), resnet(width, depth, dropout))
                for _ in range(2)]
        first, last = nn.Conv1d(input_width, width, 3, padding=1), nn.Conv1d(width, latent_dim, 3, padding=1)
        self.model = nn.Sequential(first, nn.ReLU(), *down, last)

    def forward(self, x, lengths=None):
        return run_stack(self.model, x, lengths)[0]


class Decoder(nn.Module):
    """(B, C, L) -> (B, D, 4 L)."""

    def __init__(self, input_width, width, latent_dim, depth, dropout):
        super().__init__()
        up = [nn.Sequential(resnet(width, depth, dropout), nn.Upsample(scale_factor=2),
                            nn.Conv1d(width, width, 3, padding=1)) for _ in range(2)]
        first = nn.Conv1d(latent_dim, width, 3, padding=1)
        last = [nn.Conv1d(width, width, 3, padding=1), nn.ReLU(), nn.Conv1d(width, input_width, 3, padding=1)]
        self.model = nn.Sequential(first, nn.ReLU(), *up, *last)

    def forward(self, x, lengths=None):
        return zero_tail(*run_stack(self.model, x, lengths))


class AE(nn.Module):
    """The continuous autoencoder; released MARDM weights load into it.

    Args:
        input_width: D, features per frame (67 for t2m, 64 for kit).
        width: channels of the convolutions.
        latent_dim: C, channels of the latent.
        depth: residual blocks per level.
        dropout: in the residual blocks.

    Attributes: ``target_dim`` d; ``levels`` of the grid and ``codebook_size``, None where there is none;
    ``finite_targets``, whether every target is a code (not when latents are continuous or codes are mixed);
    ``decoder_only``, see ``train_decoder_only``.
    """

    levels, codebook_size, finite_targets, decoder_only = None, None, False, False

    def __init__(self, input_width=67, width=512, latent_dim=512, depth=3, dropout=0.2):
        super().__init__()
        self.input_width, self.latent_dim, self.target_dim = input_width, latent_dim, latent_dim
        self.encoder = Encoder(input_width, width, latent_dim, depth, dropout)
        self.decoder = Decoder(input_width, width, latent_dim, depth, dropout)

    def plan(self, steps):
        """Tell a quantizer that follows a schedule how many training steps there will be."""

    def forward(self, motion, latent_noise=0.0):
        """Normalised motion (B, T, D), T a multiple of 4 -> Reconstruction. ``latent_noise``: how much noise
        the decoder sees in training, in standard deviations of the targets."""
        decoded = self.decode_targets(self.disturb(self.encode_targets(motion)[1], latent_noise))
        return Reconstruction(decoded, decoded.new_zeros(()), None)

    def train_decoder_only(self):
        """From now on training changes the decoder alone. The rest has neither gradients nor dropout nor
        running statistics, so a motion keeps its targets, and targets their latents. Returns self."""
        self.requires_grad_(False)
        self.decoder.requires_grad_(True)
        self.decoder_only = True
        return self.train(self.training)

    def train(self, mode=True):
        super().train(mode)
        if self.decoder_only:
            for part in self.children():
                part.train(mode and part is self.decoder)
        return self

    def disturb(self, targets, amount):
        """Targets (B, L, d), in training with Gaussian noise of ``amount`` standard deviations.

        Deviations are those of this batch (of this process' part of it), per dimension: dimensions may
        differ much, as the layers of RVQ do, and a layer that it left out stays 0. They have a gradient:
        without it, targets would grow to escape the noise, which would grow with them.
        """
        if not (self.training and amount):
            return targets
        spread = targets.float().std((0, 1), unbiased=False)
        return targets + (amount * spread * torch.randn_like(targets)).to(targets.dtype)

    def encode(self, motion, lengths=None):
        """Motion (B, T, D) -> latents (B, C, L). ``lengths`` (B,): frames to read, multiples of 4."""
        return self.encoder(motion.transpose(1, 2), lengths)

    def decode(self, latents, lengths=None):
        """Latents (B, C, L), ``lengths`` (B,) in tokens -> motion (B, T, D), 0 after each clip's end."""
        return self.decoder(latents, lengths).transpose(1, 2)

    def encode_targets(self, motion, lengths=None):
        """Motion (B, T, D), lengths (B,) in frames -> latents (B, L, C), targets (B, L, d)."""
        latents = self.encode(motion, lengths).transpose(1, 2)
        return latents, latents

    def embed_targets(self, targets):
        """Targets (B, L, d) -> latents (B, L, C), the input of the transformer and of the decoder."""
        return targets

    def snap(self, targets):
        """Points (B, L, d) -> the nearest targets that the decoder was trained on; the identity here."""
        return targets

    def decode_targets(self, targets, lengths=None):
        """Targets (B, L, d), lengths (B,) in frames -> motion (B, T, D), 0 after each clip's end."""
        lengths = None if lengths is None else lengths // UNIT
        return self.decode(self.embed_targets(targets).transpose(1, 2), lengths)

    def decode_with_tail(self, latents, frames, mean, std):
        """[(T_i + 4, D)] un-normalised motions of ``frames`` (B,), as the published evaluation makes them:
        latents (B, L, C) are decoded up to 196 frames whatever the clips' lengths, so the evaluator's
        convolutions see what follows a clip's end. mean, std (D,): of the features."""
        latents = F.pad(latents, (0, 0, 0, PUBLISHED_TOKENS - latents.shape[1]))
        motion = self.decode(latents.transpose(1, 2)) * std + mean
        motion = F.pad(motion, (0, 0, 0, UNIT)).cpu()
        return [clip[: count + UNIT] for clip, count in zip(motion, frames.tolist())]


class QuantizedAE(AE):
    """Convolutions -> C -> linear to d -> quantizer -> linear to C -> convolutions. Targets are the codes.

    ``direct``: no linear layers; the convolutions lead straight to the quantizer, and C is d. ``reach``: z
    is divided by it before the quantizer and the decoder reads codes times it, which sets how wide the codes
    are for the network without changing the targets.
    """

    def __init__(self, quantizer, input_width=67, direct=False, reach=1.0, **kwargs):
        super().__init__(input_width, **kwargs | ({"latent_dim": quantizer.dim} if direct else {}))
        self.quantizer, self.norm, self.reach = quantizer, None, reach
        self.target_dim, self.codebook_size = quantizer.target_dim, quantizer.codebook_size
        self.finite_targets = not getattr(quantizer, "soft", False)
        self.pre_quant = nn.Identity() if direct else nn.Linear(self.latent_dim, quantizer.dim)
        self.post_quant = nn.Identity() if direct else nn.Linear(quantizer.dim, self.latent_dim)

    def plan(self, steps):
        plan(self.quantizer, steps)

    def quantize(self, motion, lengths=None):
        """Motion (B, T, D) -> Quantized with z_q (B, L, d), indices (B, L) or, one per axis, (B, L, axes)."""
        z = self.pre_quant(super().encode(motion, lengths).transpose(1, 2)) / self.reach
        mask = None if lengths is None else valid_mask(lengths // UNIT, z.shape[1])
        return self.quantizer(z if self.norm is None else self.norm(z, mask), mask)

    def forward(self, motion, latent_noise=0.0):
        out = self.quantize(motion)
        decoded = self.decode_targets(self.disturb(out.z_q, latent_noise))
        return Reconstruction(decoded, out.loss, out.indices)

    def encode(self, motion, lengths=None):
        """Motion (B, T, D) -> quantized latents (B, C, L): ``decode(encode(x))`` is the reconstruction."""
        return self.encode_with_fsq_output(motion, lengths)[0]

    def encode_with_fsq_output(self, motion, lengths=None):
        """Motion (B, T, D) -> quantized latents (B, C, L) and the quantizer's output (z_q, indices, loss)."""
        out = self.quantize(motion, lengths)
        return self.embed_targets(out.z_q).transpose(1, 2), out

    def decode_from_fsq(self, z_q, lengths=None):
        """Codes (B, L, d) -> motion (B, T, D); ``lengths`` (B,) in frames."""
        return self.decode_targets(z_q, lengths)

    def encode_targets(self, motion, lengths=None):
        z_q = self.quantize(motion, lengths).z_q
        return self.embed_targets(z_q), z_q

    def embed_targets(self, targets):
        return self.post_quant(self.quantizer.codes_to_latent(targets) * self.reach)

    def snap(self, targets):
        return self.quantizer.snap(targets)


class RunningNorm(nn.Module):
    """z (..., d) with mean 0 and spread 1 per dimension, by running statistics: what a grid's bound expects.
    Without it, z starts so narrow that nearly all of it falls on the middle level."""

    def __init__(self, dim, momentum=0.1):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("var", torch.ones(dim))
        self.register_buffer("seeded", torch.tensor(False))  # by the first batch

    def forward(self, z, mask=None):
        """z (..., d) -> (..., d), float32. Training takes statistics of the mask's (...) vectors."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            if self.training:
                self.update((z if mask is None else z[mask]).detach().reshape(-1, z.shape[-1]))
            return self.normalised(z)

    def normalised(self, z):
        return (z - self.mean) * torch.rsqrt(self.var + 1e-8)

    @torch.no_grad()
    def update(self, vectors):
        count, total, squares = vectors.new_full((), len(vectors)), vectors.sum(0), vectors.square().sum(0)
        all_reduce_(count, total, squares)  # over the processes of a training
        some = count > 0  # not read, which would wait for a GPU
        mean, mean_square = total / count.clamp(min=1), squares / count.clamp(min=1)
        weight = torch.where(self.seeded, self.momentum, 1.0) * some
        self.mean.lerp_(mean, weight)
        self.var.lerp_((mean_square - mean.square()).clamp(min=0), weight)
        self.seeded.logical_or_(some)


class RunningWhitening(RunningNorm):
    """z (..., d) with mean 0, spread 1 in every direction and no correlation, by running statistics: for a
    grid whose axes would otherwise all say the same. By the symmetric inverse root of the covariance, which
    neither mixes nor swaps axes more than it must (Huang et al., "Decorrelated Batch Normalization", CVPR
    2018, arXiv 1804.08450). Variances count as ``floor`` of the largest at least: far narrower directions
    stay narrow."""

    def __init__(self, dim, momentum=0.1, floor=1e-4):
        super().__init__(dim, momentum)
        self.floor = floor
        del self.var
        self.register_buffer("covariance", torch.eye(dim))
        self.register_buffer("matrix", torch.eye(dim))

    def normalised(self, z):
        # a copy, as the next batch may change it before the backward pass
        return (z - self.mean) @ self.matrix.clone()

    @torch.no_grad()
    def update(self, vectors):
        vectors = vectors.double()  # differences of squares
        count, total, products = vectors.new_full((), len(vectors)), vectors.sum(0), vectors.T @ vectors
        all_reduce_(count, total, products)
        mean, weight = total / count, torch.where(self.seeded, self.momentum, 1.0)
        self.mean.lerp_(mean.float(), weight)
        self.covariance.lerp_((products / count - mean.outer(mean)).float(), weight)
        self.seeded.fill_(True)
        variances, axes = torch.linalg.eigh(self.covariance.double())
        variances = variances.clamp(min=self.floor * variances[-1].clamp(min=1e-8))
        self.matrix.copy_(axes * variances.rsqrt() @ axes.T)


class FSQ_AE(QuantizedAE):
    """The autoencoder on a grid. ``levels``: values per dimension; ``quantizer``, ``settings``: a name of the
    FSQ family in models/quantizers.py and its hyper-parameters; ``normalise``: adds a RunningNorm."""

    def __init__(self, input_width=67, levels=(8, 5, 5, 5, 5), quantizer="fsq", settings=None,
                 normalise=False, **kwargs):
        super().__init__(make_quantizer("FSQ", quantizer, settings, levels=levels), input_width, **kwargs)
        self.levels = self.quantizer.levels
        if isinstance(self.pre_quant, nn.Linear):
            nn.init.orthogonal_(self.pre_quant.weight)
        if normalise:
            self.norm = RunningNorm(self.quantizer.dim)


class VQ_AE(QuantizedAE):
    """The autoencoder on an unordered codebook of ``num_codes`` codes (per layer, for RVQ) of ``code_dim``
    dimensions (None: latent_dim, 512 as published); ``quantizer``, ``settings``: a name of the VQ family in
    models/quantizers.py and its hyper-parameters."""

    def __init__(self, input_width=67, num_codes=512, code_dim=None, quantizer="vq", settings=None,
                 latent_dim=512, **kwargs):
        sizes = {"codebook_size": num_codes, "dim": latent_dim if code_dim is None else code_dim}
        super().__init__(make_quantizer("VQ", quantizer, settings, **sizes), input_width,
                         latent_dim=latent_dim, **kwargs)


FSQ_LEVELS = {
    "FSQ_AE_Small": (5, 5, 5, 5, 5), "FSQ_AE_Medium": (8, 5, 5, 5, 5),
    "FSQ_AE_Large": (8, 6, 6, 5, 5, 5), "FSQ_AE_High": (8, 8, 8, 5, 5, 5),
    "FSQ_AE_XLarge": (8, 8, 8, 6, 5, 5), "FSQ_AE_Ultra": (8, 8, 8, 8, 5, 5),
    "FSQ_AE_HighDim7": (7, 5, 5, 5, 5, 5, 5), "FSQ_AE_Mega": (8, 8, 8, 8, 8, 5),
    "FSQ_AE_HighDim8": (5, 5, 5, 5, 5, 5, 5, 5),
}

HIGH = FSQ_LEVELS["FSQ_AE_High"]
FSQ_ROWS = {
    "FSQ_AE_Symmetric": dict(quantizer="symmetric", levels=HIGH),
    "FSQ_AE_NoiseDropout": dict(quantizer="noise_dropout", levels=HIGH),
    "FSQ_AE_Learned": dict(quantizer="learned", levels=HIGH),
    "FSQ_AE_Hybrid": dict(quantizer="hybrid", levels=HIGH),
    "FSQ_AE_Residual": dict(quantizer="residual", levels=(5,) * 6),
    "FSQ_AE_iFSQ": dict(quantizer="ifsq", levels=(7, 7, 7, 7, 5, 5)),
    **{f"FSQ_AE_iFSQ_{dims}x{count}": dict(quantizer="ifsq", levels=(count,) * dims)
       for dims, count in ((8, 9), (12, 9), (16, 5), (16, 9), (16, 17), (24, 9), (32, 9), (64, 9), (64, 17),
                           (128, 17))},
    "FSQ_AE_iFSQ_64x17_Norm": dict(quantizer="ifsq", levels=(17,) * 64, normalise=True),
    **{f"FSQ_AE_iFSQ_{dims}x{count}_Direct": dict(quantizer="ifsq", levels=(count,) * dims, direct=True)
       for dims, count in ((16, 9), (64, 17), (192, 17))},
}
VQ_ROWS = {
    "VQ_AE_EMA": dict(quantizer="ema"),
    "VQ_AE_EMA_64k": dict(quantizer="ema", num_codes=65_536, code_dim=32),  # the rate of FSQ_AE_High
    "VQ_AE_EMA_Direct": dict(quantizer="ema", direct=True),
    "VQ_AE_RVQ": dict(quantizer="rvq", code_dim=32),
    "VQ_AE_RVQ_Direct": dict(quantizer="rvq", code_dim=32, direct=True),
    "VQ_AE_RVQ_First": dict(quantizer="rvq", code_dim=32, settings={"use_layers": 1}),
    "VQ_AE_SimVQ": dict(quantizer="simvq"), "VQ_AE_Rotation": dict(quantizer="rotation"),
    "VQ_AE_DiVeQ": dict(quantizer="diveq"), "VQ_AE_SF_DiVeQ": dict(quantizer="sf_diveq"),
    "VQ_AE_Gumbel": dict(quantizer="gumbel"),
    "VQ_AE_Gumbel_NoNoise": dict(quantizer="gumbel", settings={"noise": False}),
    "VQ_AE_Gumbel_Nearest": dict(quantizer="gumbel", settings={"nearest": 16}),
    "VQ_AE_Gumbel_Soft": dict(quantizer="gumbel", settings={"soft": True}),
    "VQ_AE_Gumbel_Diverse": dict(quantizer="gumbel", settings={"diversity": 0.1}),
    **{f"VQ_AE_Gumbel_{name}": dict(quantizer="gumbel", settings=settings | {"temperature": "anneal"})
       for name, settings in (("Annealed", {}), ("Annealed_TopK", {"noise": False, "nearest": 16}),
                              ("Annealed_Soft", {"soft": True}), ("Annealed_Diverse", {"diversity": 0.1}),
                              ("Annealed_Reset", {"reset_every": 20}))},
    "VQ_AE_Gumbel_Adaptive": dict(quantizer="gumbel", settings={"temperature": "adaptive"}),
    "VQ_AE_Gumbel_Learned": dict(quantizer="gumbel", settings={"temperature": "learned"}),
    "VQ_AE_PQ": dict(quantizer="pq", code_dim=48, settings={"groups": 6}),  # the rate of VQ_AE_RVQ
}


def make_narrow_ae(channels, **kwargs):
    """The continuous autoencoder with a latent of ``channels`` whatever the width: the control for a grid of
    as many dimensions."""
    return AE(**kwargs | {"latent_dim": channels})


AE_models = {
    "AE_Model": AE,
    **{f"AE_Model_{channels}": partial(make_narrow_ae, channels) for channels in (64, 16)},
    "FSQ_AE_Model": FSQ_AE,  # free: --fsq_levels, --quantizer and its settings
    **{name: partial(FSQ_AE, levels=levels) for name, levels in FSQ_LEVELS.items()},
    **{name: partial(FSQ_AE, **row) for name, row in FSQ_ROWS.items()},
    "VQ_AE_Model": VQ_AE,  # free: --num_codes, --code_dim, --quantizer and its settings
    **{name: partial(VQ_AE, **row) for name, row in VQ_ROWS.items()},
}


fsq_ae = AE_models["FSQ_AE_Model"]  # the earlier fork's name


def has_grid(name):
    """Whether a row of the zoo, or a family of rows, quantizes on a grid, which has a reach."""
    return name.startswith("FSQ_AE")
