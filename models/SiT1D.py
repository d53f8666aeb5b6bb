"""A head across frames: a small transformer that denoises all tokens of a clip that are sampled together.

The published head denoises each token alone, given the transformer's output. Here the tokens that are sampled
in one iteration see each other's noise, so what is drawn for one fits what is drawn for the next. It predicts
the clean target (Li and He 2025, arXiv 2511.13720). Shapes: B clips, L tokens, N tokens to denoise, d target
dimensions, W width of the net, Z width of the transformer's output; R rows of M tokens that see each other.
"""
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from diffusions import flow
from models.attention import Attention
from models.DiffMLPs import ALWAYS, DenoisingMLP, ResBlock, SiTHead, modulate
from utils.arrays import upload

GROUPS = 8  # most groups into which training divides a clip's masked tokens


class JointBlock(nn.Module):
    """Modulated attention to the tokens of the same row, then a ResBlock."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(width, max(1, width // 64), 0.0)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        self.mlp = ResBlock(width)

    def forward(self, x, activated, apart):
        shift, scale, gate = self.adaLN_modulation[1](activated).chunk(3, dim=-1)
        return self.mlp(x + gate * self.attn(modulate(self.norm(x), shift, scale), apart), activated)


class JointNet(DenoisingMLP):
    """net(x (R, M, d), t (R, M), c (R, M, Z), apart (R, M, M) or (R, M)) -> (R, M, d). ``apart``: true for
    two tokens that do not see each other, or for a token that nobody sees."""

    block = JointBlock

    def _init_weights(self):
        super()._init_weights()
        for block in self.res_blocks:
            nn.init.zeros_(block.mlp.adaLN_modulation[1].weight)

    def forward(self, x, t, c, apart):
        activated = F.silu(self.embed_time(t.flatten()).view(*t.shape, -1) + self.cond_embed(c))
        x = self.input_proj(x)
        for block in self.res_blocks:
            x = block(x, activated, apart)
        return self.final_layer(x, activated)


class SiT1DHead(SiTHead):
    """Flow matching of all tokens that are sampled together; attention spans them.

    Training imitates sampling: a clip's masked tokens are divided at random into groups, of which each has
    its own time and sees itself only, for an iteration samples a random part of what is masked.
    """

    predictions = ("x", "velocity")

    def make_net(self, target_dim, cond_dim, width, depth):
        return JointNet(target_dim, cond_dim, width, depth)

    def masked_loss(self, targets, z, mask, rows, pairs, generator=None):
        whole, device = (pairs, *mask.shape), targets.device

        def own(x):
            return rearrange(x[:, rows], "pairs b ... -> (pairs b) ...")

        parts = torch.randint(1, GROUPS + 1, (*whole[:2], 1), device=device, generator=generator)
        group = own((torch.rand(whole, device=device, generator=generator) * parts).long())
        noise = own(torch.randn(*whole, targets.shape[-1], device=device, generator=generator))
        times = own(torch.rand(*whole[:2], GROUPS, device=device, generator=generator))
        masked = own(repeat(mask, "b l -> pairs b l", pairs=pairs))
        targets, z = (repeat(x, "b ... -> (pairs b) ...", pairs=pairs) for x in (targets, z))
        targets, t = targets / self.target_scale, times.gather(1, group)
        seen = masked[:, None, :] & (group[:, :, None] == group[:, None, :])
        # a token sees itself in any case: attention to nothing is not a number
        apart = ~(seen | torch.eye(mask.shape[1], dtype=torch.bool, device=device))
        errors = flow.errors(partial(self.net, c=z, apart=apart), targets, t, noise, self.prediction)
        # over the count of all processes, as ``DiffHead.loss`` with ``own``
        return (errors * masked[..., None]).sum() / (mask.sum() * pairs * targets.shape[-1])

    def loss(self, *_args, **_kwargs):
        raise NotImplementedError("a head across frames needs whole clips: masked_loss")

    def sampler(self, temperature=1.0, fast=True, dtype=None, cache=None, interval=ALWAYS, **solver_settings):
        """As ``DiffHead.sampler``, always with the plain net; it needs ``counts``."""
        run, _ = self.process_sampler(temperature, **solver_settings)

        @torch.no_grad()
        def sample(z, z_uncond, draw_noise, cfg=1.0, counts=None):
            guided = self.guided_rows(z, z_uncond, cfg, interval, counts or [len(z)])
            with torch.autocast(z.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                return run(guided, draw_noise).float() * self.target_scale

        return sample

    def guided_rows(self, z, z_uncond, cfg, interval, counts):
        """As ``guided``, where each clip's tokens see each other: ``counts`` of them, in the order of z."""
        counts = torch.tensor([count for count in counts if count])
        inside = torch.arange(int(counts.max())) < counts[:, None]
        places, apart = upload(inside.flatten().nonzero()[:, 0], z.device), upload(~inside, z.device)

        def to_rows(x):
            return x.new_zeros(inside.numel(), x.shape[1]).index_copy(0, places, x).view(*inside.shape, -1)

        def call(x, t, c, apart):
            t = t if isinstance(t, torch.Tensor) else x.new_full((), t)  # filled where x is: no upload
            return self.net(x, t.expand(x.shape[:2]), c, apart).float()

        def guide(x, t):
            rows = to_rows(x)
            if both is None or not self.guided_at(t, interval):
                out = call(rows, t, c, apart)
            else:
                cond, uncond = call(torch.cat([rows, rows]), t, both, torch.cat([apart, apart])).chunk(2)
                out = uncond + cfg * (cond - uncond)
            return out.flatten(0, 1)[places]

        c = to_rows(z)
        both = None if z_uncond is None or cfg == 1 else torch.cat([c, to_rows(z_uncond)])
        return guide
