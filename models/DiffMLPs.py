"""The per-token denoising net and its two published heads (MAR, Li et al. 2024, arXiv 2406.11838; MARDM,
arXiv 2411.16575). models/heads.py has the table of all heads.

Shapes: N tokens, d target dimensions, W width of the net, Z width of the transformer's output; B clips, L
tokens of the longest.
"""
import math
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from diffusions import flow
from diffusions.gaussian import GaussianDiffusion
from models.fast_net import FastNet
from utils.errors import UserError

SOLVER, ODE_STEPS = "adams", 16  # chosen in docs/performance.md
ALWAYS = (0.0, 1.0)  # from noise to data
HEAD_SIZES = {  # of the zoo's generators (models/MARDM.py); XL is the published one
    "S": dict(head_width=256, head_depth=3), "B": dict(head_width=768, head_depth=6),
    "L": dict(head_width=1280, head_depth=12), "XL": dict(head_width=1792, head_depth=16),
    "B-deep": dict(head_width=512, head_depth=2), "L-deep": dict(head_width=1024, head_depth=6),
    "XL-deep": dict(head_width=1280, head_depth=8),
}


def modulate(x, shift, scale):
    return x * (1 + scale) + shift


class TimeEmbedding(nn.Module):
    """t (N,) -> (N, W): sinusoids of the unscaled t, cosines first, period 10,000, then a two-layer MLP."""

    def __init__(self, width, frequencies=256):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))
        half = frequencies // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, t):
        angles = t.float()[:, None] * self.rates
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.mlp[0].weight.dtype))


class ResBlock(nn.Module):
    """LayerNorm, modulation, linear-SiLU-linear, gated residual. ``activated``: SiLU(y), which the caller
    computes once for all blocks."""

    def __init__(self, width):
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x, activated):
        shift, scale, gate = self.adaLN_modulation[1](activated).chunk(3, dim=-1)
        return x + gate * self.mlp(modulate(self.in_ln(x), shift, scale))


class FinalLayer(nn.Module):
    """LayerNorm without affine, modulation (as in ResBlock), linear to the target."""

    def __init__(self, width, target_dim):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, target_dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x, activated):
        shift, scale = self.adaLN_modulation[1](activated).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DenoisingMLP(nn.Module):
    """net(x (N, d), t (N,), c (N, Z)) -> (N, d), or (N, ``out_dim``)."""

    block = ResBlock

    def __init__(self, target_dim, cond_dim, width, depth, out_dim=None):
        super().__init__()
        self.time_embed = TimeEmbedding(width)
        self.cond_embed = nn.Linear(cond_dim, width)
        self.input_proj = nn.Linear(target_dim, width)
        self.res_blocks = nn.ModuleList(self.block(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, out_dim or target_dim)
        self._init_weights()

    def embed_time(self, t):
        """Times (N,) -> (N, W)."""
        return self.time_embed(t)

    def _init_weights(self):
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for layer in (self.time_embed.mlp[0], self.time_embed.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (*self.res_blocks, self.final_layer):  # adaLN-zero: blocks start as the identity
            nn.init.zeros_(layer.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x, t, c):
        activated = F.silu(self.embed_time(t) + self.cond_embed(c))
        x = self.input_proj(x)
        for block in self.res_blocks:
            x = block(x, activated)
        return self.final_layer(x, activated)

    def forward_with_cfg(self, x, t, c, cfg_scale):
        """Classifier-free guidance: c (2N, Z) is the conditional half, then the unconditional one; of x (2N,
        d) only the first half is read. Returns u + cfg_scale (c - u), twice: (2N, d)."""
        half = x[: len(x) // 2]
        cond, uncond = self(repeat(half, "n d -> (two n) d", two=2), t, c).chunk(2)
        return repeat(uncond + cfg_scale * (cond - uncond), "n d -> (two n) d", two=2)


class DiffHead(nn.Module):
    """What all heads share: the net, guidance, the loss, and sampling around the ``process``.

    ``prediction``: the net's output, by default the first of ``predictions``. ``target_scale``: the net works
    on targets divided by it, as in latent diffusion (Rombach et al. 2022, arXiv 2112.10752); 1 as published.
    """

    predictions = ()
    settings = ()  # what a head needs of MARDMSettings beyond the arguments of all heads
    own_cfg = None  # the guidance scale that is part of a head's weights
    guided_in_part = True  # whether guidance can be limited to a part of the way from noise to data

    def __init__(self, target_dim, cond_dim, width, depth, prediction=None, target_scale=1.0):
        super().__init__()
        self.target_dim, self.target_scale = target_dim, target_scale
        self.prediction = prediction or self.predictions[0]
        if self.prediction not in self.predictions:
            raise UserError(f"a {type(self).__name__} predicts {' or '.join(self.predictions)}, not "
                            f"'{self.prediction}'")
        self.net = self.make_net(target_dim, cond_dim, width, depth)

    def make_net(self, target_dim, cond_dim, width, depth):
        return DenoisingMLP(target_dim, cond_dim, width, depth)

    def progress(self, t):
        """How far sampling is at a time of the solver: 0 noise, 1 data."""
        return min(float(t), 1.0)  # dopri5 steps beyond the end

    def guided_at(self, t, interval):
        """Whether ``progress`` at a time of the solver is inside ``interval``."""
        return interval[0] <= self.progress(t) <= interval[1]

    def guided(self, z, z_uncond, cfg, interval=ALWAYS):
        """The plain net under conditions z (N, Z), guided away from ``z_uncond`` by ``cfg``, as a function of
        x (N, d) and one time t -> (N, d). With a ``cfg`` of 1, or no ``z_uncond``, or while ``progress`` is
        outside ``interval`` (Kynkaanniemi et al. 2024, arXiv 2404.07724), only the conditional net runs."""

        def times(t, x, count):
            t = torch.as_tensor(t, device=x.device)
            return t.expand(count, *t.shape)

        def alone(x, t):
            return self.net(x, times(t, x, count), z)

        def guide(x, t):
            if not self.guided_at(t, interval):
                return alone(x, t)
            return self.net.forward_with_cfg(repeat(x, "n d -> (two n) d", two=2), times(t, x, 2 * count),
                                             both, cfg)[:count]

        count = len(z)
        if z_uncond is None or cfg == 1:
            return alone
        both = torch.cat([z, z_uncond])
        return guide

    def masked_loss(self, targets, z, mask, rows, pairs, generator=None):
        """Mean loss () of the masked tokens, with ``pairs`` (noise, time) for each: ``loss`` of targets
        (b, L, d) and conditions z (b, L, Z) for ``rows`` of the batch to which mask (B, L) belongs."""
        # (N,) places of the masked tokens: a mask would be read back from a GPU each time that it is used
        places = mask[rows].flatten().nonzero()[:, 0]
        targets, z = (repeat(rearrange(x, "b l w -> (b l) w")[places], "n w -> (pairs n) w", pairs=pairs)
                      for x in (targets, z))
        own = None
        if generator is not None:
            own = torch.zeros_like(mask)
            own[rows] = True
            own = repeat(own[mask], "n -> (pairs n)", pairs=pairs)
        return self.loss(targets, z, generator=generator, own=own)

    def loss(self, target, z, t=None, noise=None, generator=None, own=None):
        """Mean training loss () of targets (N, d) under conditions z (N, Z); t and noise are drawn unless
        given.

        ``own`` (M,) bool marks these N among M rows of several processes: t and noise are drawn for all M,
        and the loss is the contribution of the N to the mean over all M."""
        target = target / self.target_scale
        count = len(target) if own is None else len(own)
        if t is None:
            t = self.process.draw_time(count, target.device, generator)
        if noise is None:
            noise = torch.randn(count, target.shape[1], device=target.device, generator=generator)
        if own is not None:
            t, noise = t[own], noise[own]
            if not len(target):
                return self.net(target, t, z).sum()  # 0, with a gradient of 0 for every weight
        loss = self.training_loss(lambda x, time: self.net(x, time, z), target, t, noise)
        return loss if own is None else loss * (len(target) / count)

    def training_loss(self, net, target, t, noise):
        return self.process.training_loss(net, target, t, noise)

    def sampler(self, temperature=1.0, fast=True, dtype=None, cache=None, interval=ALWAYS, **solver_settings):
        """A function (z (N, Z), z_uncond (N, Z) or None, draw_noise, cfg=1, counts=None) -> targets (N, d),
        where ``draw_noise() -> (N, d)``, and ``counts`` says how many of the N tokens, in their order, each
        clip has. What depends on time alone is computed here, once.

        ``fast`` False runs the plain net; ``dtype`` and ``cache`` belong to the fast net
        (models/fast_net.py); ``interval``: see ``guided``; for the rest see ``SamplerSettings``.
        """
        run, times = self.process_sampler(temperature, **solver_settings)
        guided = self.guided
        if fast:
            guided = partial(FastNet(self.net, times, dtype, cache).guided, guided_at=self.guided_at)

        @torch.no_grad()
        def sample(z, z_uncond, draw_noise, cfg=1.0, counts=None):
            return run(guided(z, z_uncond, cfg, interval), draw_noise) * self.target_scale

        return sample

    def sample(self, z, z_uncond, draw_noise, cfg=1.0, **kwargs):
        """Targets (N, d) of one call of ``sampler(**kwargs)``."""
        return self.sampler(**kwargs)(z, z_uncond, draw_noise, cfg)


class SiTHead(DiffHead):
    """Flow matching; the net predicts the velocity, or the clean target x_1; sampled by an ODE solver."""

    process, predictions = flow, ("velocity", "x")

    def training_loss(self, net, target, t, noise):
        return flow.training_loss(net, target, t, noise, self.prediction)

    def process_sampler(self, temperature, solver=None, ode_steps=None):
        """A function (net, draw_noise) -> targets, and the times of its calls. ``temperature`` scales the
        initial noise."""
        solver, ode_steps = solver or SOLVER, ode_steps or ODE_STEPS
        if solver not in flow.SOLVERS:
            raise UserError(f"unknown solver '{solver}'; one of {', '.join(flow.SOLVERS)}")
        jump = self.prediction == "x"

        def run(net, draw_noise):
            velocity = flow.velocity_of(net, self.prediction)
            return flow.integrate(velocity, draw_noise() * temperature, solver, ode_steps, jump=jump)

        return run, flow.times_of(solver, ode_steps, jump)


class DDPMHead(DiffHead):
    """50 cosine steps with a noise target; ancestral sampling (solver and ode_steps are ignored)."""

    predictions = ("noise",)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.process = GaussianDiffusion(50)

    def progress(self, t):
        return 1 - float(t) / (self.process.num_steps - 1)

    def process_sampler(self, temperature, **_solver_settings):
        """A function (net, draw_noise) -> targets, and the times of its calls. ``temperature`` scales the
        noise of every step."""

        def run(net, draw_noise):
            return self.process.sample(net, draw_noise(), draw_noise, temperature)

        return run, range(self.process.num_steps - 1, -1, -1)


def make_head(head, head_width, head_depth, target_channels, z_channels):
    """A published head by its published arguments: d and Z."""
    return head(target_channels, z_channels, head_width, head_depth)


DiffMLPs_models = {f"{name}-{size}": partial(make_head, head, **sizes) for size, sizes in HEAD_SIZES.items()
                   for name, head in (("SiT", SiTHead), ("DDPM", DDPMHead))}  # the published table's name
