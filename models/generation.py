"""The generation loops of stage two. ``generate``: all tokens start masked, and each iteration unmasks some
for good (MARDM). ``generate_in_order``: one token after the other (GPT).

Which tokens are unmasked when is drawn on the CPU before the loop, from the clips' own random generators, so
the loop never waits for an accelerator. Shapes: B clips, L tokens, N tokens of all clips that are sampled in
an iteration, d width of a target.
"""
import math
from dataclasses import dataclass

import torch
from einops import rearrange, repeat

from models.attention import Cache
from models.DiffMLPs import ALWAYS
from utils.arrays import upload
from utils.errors import UserError
from utils.text_condition import concatenate, drop, pooled


@dataclass(frozen=True)
class SamplerSettings:
    """How clips are generated. The "fast" ``sampler`` samples a token in the iteration that unmasks it.
    "reference" samples every masked token in each iteration and keeps those that are unmasked: the same
    distribution for 11 x the work. It also runs without models/fast_net.py and with one transformer call per
    guidance branch, and, where tokens come in order, reads all tokens before anew for each."""

    time_steps: int = 18  # iterations of unmasking
    cfg: float = 4.5  # guidance scale, 1 = none
    # "linear": the scale grows from 1 with the fraction of tokens that are unmasked (Chang et al. 2023, arXiv
    # 2301.00704)
    cfg_schedule: str = "constant"
    cfg_interval: tuple = ALWAYS  # part of the head's way from noise (0) to data (1) on which it is guided
    temperature: float = 1.0  # factor of the noise
    sampler: str = "fast"
    precision: str = "fp32"  # "bf16": products in bfloat16; "tf32" is set in utils/training/settings.py
    hard_pseudo_reorder: bool = False  # known tokens first in the transformer: changes rounding only
    solver: str | None = None  # of the SiT head, as is ode_steps; None: the head's own
    ode_steps: int | None = None
    # when targets become points of the grid: "every": each as it is sampled; "end": all, after the last
    # iteration; "none": never, the decoder reads what was sampled
    snap: str = "every"

    def guidance(self, i):
        """The guidance scale of iteration i."""
        if self.cfg_schedule == "constant":
            return self.cfg
        return 1 + (self.cfg - 1) * (1 - math.cos(0.5 * math.pi * (i + 1) / self.time_steps))

    def check(self):
        """UserError for settings that nothing can be generated with."""
        for name, allowed in (("sampler", ("fast", "reference")), ("snap", ("every", "end", "none")),
                              ("cfg_schedule", ("constant", "linear"))):
            if getattr(self, name) not in allowed:
                raise UserError(f"unknown {name} '{getattr(self, name)}'; one of {', '.join(allowed)}")
        low, high = self.cfg_interval
        if not 0 <= low < high <= 1:
            raise UserError(f"the guidance interval goes from 0 (noise) to 1 (data); got {low:g} to {high:g}")
        if self.time_steps < 1:
            raise UserError(f"generation needs at least 1 iteration; got {self.time_steps}")
        if self.precision == "bf16" and self.sampler != "fast":
            raise UserError("precision bf16 belongs to the fast sampler; the reference sampler is float32")


def check_lengths(lengths):
    """UserError for a clip without a token."""
    if int(lengths.min()) < 1:
        raise UserError(f"generation needs at least 1 token; got a clip of {int(lengths.min())}")


def check_settings(generator, settings):
    """UserError for keyword arguments of ``MARDM.generate`` that this generator cannot follow."""
    settings = SamplerSettings(**settings)
    settings.check()
    if not generator.fills_in:
        check_in_order(settings)
    head = generator.DiffMLPs
    check_head(head, settings)
    head.process_sampler(settings.temperature, solver=settings.solver, ode_steps=settings.ode_steps)


def check_in_order(settings):
    """UserError for SamplerSettings that mean nothing where tokens come in order, and are not the default."""
    for name in ("time_steps", "cfg_schedule", "snap", "solver", "ode_steps", "hard_pseudo_reorder"):
        if getattr(settings, name) != getattr(SamplerSettings, name):
            raise UserError(f"--{name}: an autoregressive generator draws points of the grid one after the "
                            "other, without iterations, solver or snapping; leave the flag out")


def check_fills_in(generator, what):
    """UserError for a generator that does not fill in tokens around given ones, which ``what`` needs."""
    if not generator.fills_in:
        raise UserError(f"{what} generates tokens before or after given ones, which an autoregressive "
                        "generator (FSQ-GPT-*) cannot read: it draws every token from those that it drew "
                        "before, from the first on; take a masked one (FSQ-MARDM-*)")


def check_head(head, settings):
    """UserError for SamplerSettings that a head cannot follow."""
    if head.own_cfg is not None and head.own_cfg != settings.cfg:
        raise UserError(f"the head was distilled with a guidance scale of {head.own_cfg:g}, which is part of "
                        f"its weights; it cannot be guided by {settings.cfg:g}")
    if head.own_cfg is not None and settings.cfg_schedule != "constant":
        raise UserError("guidance is part of a distilled head's weights; it has no --cfg_schedule")
    if not head.guided_in_part and tuple(settings.cfg_interval) != ALWAYS:
        raise UserError("--cfg_interval: this generator's head is not guided on a part of its way; leave the "
                        "flag out")


def padding_mask_of(lengths, num_tokens):
    """(B, L) bool, true = padding, for lengths (B,) in tokens."""
    return torch.arange(num_tokens, device=lengths.device) >= lengths[:, None]


def mask_schedule(num_tokens, time_steps):
    """How many of ``num_tokens`` are masked in each iteration: ``time_steps`` ints, ``num_tokens`` first.
    Float32 and round-half-to-even, as the published models were run."""
    ratio = torch.cos(torch.linspace(0, 1, time_steps, dtype=torch.float32) * math.pi * 0.5)
    return (ratio * num_tokens).round().clamp(min=1).long().tolist()


class UnmaskingPlan:
    """Which tokens (B, L) are masked in which iteration, and which are sampled; all on the CPU."""

    def __init__(self, fill, generators, settings):
        """fill (B, L) bool: the tokens to generate. generators: one per clip."""
        self.settings, self.generators = settings, generators
        steps = settings.time_steps
        # rank 0 is sampled last; tokens that are not generated have a rank above all
        self.ranks = torch.full(fill.shape, fill.shape[1] + 1)
        for row, places, generator in zip(self.ranks, fill, generators):
            row[places] = torch.randperm(int(places.sum()), generator=generator)
        self.counts = torch.tensor([mask_schedule(n, steps) if n else [0] * steps
                                    for n in fill.sum(1).tolist()])  # (B, steps)

    def masked(self, i):
        """(B, L): masked in iteration i."""
        return self.ranks < self.counts[:, i, None]

    def sampled(self, i):
        """(B, L): sampled in iteration i."""
        if self.settings.sampler == "reference" or i + 1 == self.settings.time_steps:
            return self.masked(i)
        return self.masked(i) & ~self.masked(i + 1)

    def noise_source(self, counts, dim, device):
        """A function that draws (N, d), each clip's ``counts`` rows from its own generator."""
        return noise_source(self.generators, counts, dim, device)


def noise_source(generators, counts, dim, device):
    """A function that draws (N, d), each clip's ``counts`` rows from its own one of ``generators``."""
    def draw():
        rows = [torch.randn(n, dim, generator=g) for n, g in zip(counts, generators) if n]
        return upload(torch.cat(rows), device)

    return draw


def generators_of(seeds):
    """Each clip's own random generator, from ints."""
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


@torch.no_grad()
def generate(model, ae, cond, lengths, seeds, settings, known=None, progress=None, weight_cache=None):
    """Sample targets (B, L, d), on the grid of ``ae``, for ``lengths`` (B,) in tokens.

    Args:
        model: MARDM. ae: its autoencoder (embed_targets and snap are used). settings: SamplerSettings.
        cond: (B, cond_dim), or None when unconditional.
        seeds: one int per clip. A clip draws from its own generator, so it does not depend on its batch
            (except with dopri5, which chooses its steps for the whole batch).
        known: optional (targets (B, L, d), keep (B, L) bool): tokens that stay as they are.
        progress: function that wraps the range of iterations.
        weight_cache: see ``fast_linear``'s ``cache``; shared by calls between which the weights do not
            change.
    """
    settings.check()
    check_lengths(lengths)
    cond = cond if model.text_cond == "tokens" else pooled(cond)
    device, dim, fast = model.mask_latent.device, model.target_dim, settings.sampler == "fast"
    padding = padding_mask_of(lengths.cpu(), int(lengths.max()))
    fill, targets = ~padding, torch.zeros(*padding.shape, dim, device=device)
    if known is not None:
        targets, fill = torch.where(known[1][..., None], known[0], targets), fill & ~known[1].cpu()
    plan = UnmaskingPlan(fill, generators_of(seeds), settings)
    padding = padding.to(device)
    low = settings.precision == "bf16"
    head = model.DiffMLPs
    sample = sampler_of(head, settings, weight_cache)
    iterations = range(settings.time_steps)
    for i in iterations if progress is None else progress(iterations):
        sampled, masked = plan.sampled(i), upload(plan.masked(i), device)
        # (N,) computed on the CPU: a boolean mask would make the loop wait for the accelerator
        places = upload(sampled.flatten().nonzero()[:, 0], device)
        if not len(places):
            continue
        latents = torch.where(masked[..., None], model.mask_latent, ae.embed_targets(targets))
        cfg = settings.guidance(i) if head.own_cfg is None else 1.0
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            order = masked if settings.hard_pseudo_reorder else None
            branches = guidance_branches(model, latents, cond, padding, cfg, order, together=fast)
        z, z_uncond = (at_places(branch, places) for branch in branches)
        counts = sampled.sum(1).tolist()
        new = sample(z, z_uncond, plan.noise_source(counts, dim, device), cfg, counts)
        new = ae.snap(new) if settings.snap == "every" else new
        flat = rearrange(targets, "b l d -> (b l) d").index_copy(0, places, new)
        targets = rearrange(flat, "(b l) d -> b l d", b=len(targets))
    targets = ae.snap(targets) if settings.snap == "end" else targets
    return targets * ~padding[..., None]


def sampler_of(head, settings, weight_cache=None):
    """The head's ``sampler`` by SamplerSettings. UserError for those that it cannot follow."""
    check_head(head, settings)
    return head.sampler(settings.temperature, settings.sampler == "fast",
                        torch.bfloat16 if settings.precision == "bf16" else None, weight_cache,
                        settings.cfg_interval, solver=settings.solver, ode_steps=settings.ode_steps)


def at_places(branch, places):
    """Rows (N, Z) float32 of a transformer's output (B, L, Z), by their places (N,) in the batch's B L
    tokens; None stays None."""
    return None if branch is None else rearrange(branch, "b l z -> (b l) z")[places].float()


@torch.no_grad()
def generate_in_order(model, ae, cond, lengths, seeds, settings, progress=None, weight_cache=None):
    """As ``generate``, with a GPT: tokens are drawn one after the other, each given those before it."""
    settings.check()
    check_in_order(settings)
    check_lengths(lengths)
    cond = cond if model.text_cond == "tokens" else pooled(cond)
    device, generators, lengths = model.mask_latent.device, generators_of(seeds), lengths.cpu()
    padding = padding_mask_of(lengths, int(lengths.max())).to(device)
    fast, low = settings.sampler == "fast", settings.precision == "bf16"
    sample = sampler_of(model.DiffMLPs, settings, weight_cache)
    targets = torch.zeros(*padding.shape, model.target_dim, device=device)
    read, more = model.mask_latent.expand(len(padding), 1, -1), {"cache": Cache()} if fast else {}
    iterations = range(padding.shape[1])
    for i in iterations if progress is None else progress(iterations):
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            branches = guidance_branches(model, read, cond, padding, settings.cfg, together=fast, **more)
        counts = (lengths > i).long()  # a clip that is complete draws nothing more
        places = upload(counts.nonzero()[:, 0], device)
        z, z_uncond = (at_places(None if branch is None else branch[:, -1:], places) for branch in branches)
        noise = noise_source(generators, counts.tolist(), model.target_dim, device)
        new = sample(z, z_uncond, noise, settings.cfg)
        targets[:, i] = targets[:, i].index_copy(0, places, new)
        latents = ae.embed_targets(targets[:, i : i + 1])
        read = latents if fast else torch.cat([read, latents], 1)
    return targets


def guidance_branches(model, latents, cond, padding, cfg, order=None, together=True, **more):
    """Transformer output (B, L, Z) with the condition and, when guidance needs it, without (else None); one
    call for both, or two. ``order``: see ``MARDM.forward``'s mask; ``more``: further arguments of the
    model."""
    more |= {} if order is None else {"mask": order}
    if model.cond_mode == "uncond":
        return model(latents, None, padding, True, **more), None
    if cfg == 1:
        return model(latents, cond, padding, **more), None
    if not together:
        return model(latents, cond, padding, **more), model(latents, cond, padding, True, **more)

    def twice(x):
        return repeat(x, "b ... -> (two b) ...", two=2) if torch.is_tensor(x) else x

    both = concatenate(cond, drop(cond, torch.zeros_like(padding[:, :1])))
    more = {name: twice(value) for name, value in more.items()}
    return model(twice(latents), both, twice(padding), **more).chunk(2)
