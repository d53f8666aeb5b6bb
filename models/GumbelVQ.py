"""Gumbel-softmax vector quantization: soft weights over the codebook that sharpen during training (Jang et
al. 2017, arXiv 1611.01144, with distances for logits). A blog post calls it DiVeQ; models/DiVeQ.py differs.

Shapes: (..., d) vectors, N of them in a batch, K codes.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.FSQ import Quantized
from models.VQ import VQ, all_gather, all_reduce_, broadcast_, jittered, nearest_codes, rows_at_a_time
from utils.errors import UserError

TEMPERATURES = ("decay", "anneal", "adaptive", "learned")
ANNEALED = 0.8  # of the training's steps, after which an annealed temperature is at its end, and resets stop
MEMORY, RATE = 0.99, 1.01  # of the adaptive temperature: of the codes' use, and its change per step


@dataclass(frozen=True)
class GumbelSettings:
    """Hyper-parameters of GumbelVQ."""

    noise: bool = True  # add the Gumbel noise
    nearest: int = 0  # number of nearest codes that get a weight, 0 = all
    soft: bool = False  # weighted sums (without noise) outside training too; ``snap`` is then the identity
    diversity: float = 0.0  # weight of the loss 1 - entropy of the mean weights / log K
    tau_start: float = 1.0  # the temperature begins here
    tau_decay: float = 0.9999  # its factor per step, with "decay"
    tau_end: float = 0.1  # its lower bound
    # "decay": by tau_decay. "anneal": geometrically from tau_start to tau_end in the first ANNEALED of the
    # training, however long that is. "adaptive": up while the perplexity of the codes' use is under
    # ``wanted_use`` of K, down while it is above. "learned": a parameter.
    temperature: str = "decay"
    wanted_use: float = 0.5
    # Steps after which unused codes restart at the vectors quantized worst, in the first ANNEALED of the
    # training: the decoder has to learn the last ones. 0 = never.
    reset_every: int = 0

    def check(self, codes):
        """UserError for settings that a codebook of so many ``codes`` cannot have."""
        if not 0 <= self.nearest <= codes:
            raise UserError(f"a codebook of {codes} codes cannot take the nearest {self.nearest}")
        if min(self.tau_start, self.tau_end) <= 0 or not 0 < self.tau_decay <= 1 or self.diversity < 0:
            raise UserError("gumbel: tau_start and tau_end are above 0, tau_decay in 0..1, diversity >= 0; "
                            f"got {self.tau_start}, {self.tau_end}, {self.tau_decay} and {self.diversity}")
        if self.temperature not in TEMPERATURES:
            raise UserError(f"gumbel: temperature is one of {', '.join(TEMPERATURES)}; "
                            f"got '{self.temperature}'")
        if self.temperature != "decay" and self.tau_start <= self.tau_end:
            raise UserError(f"gumbel: with temperature={self.temperature} tau_start must be above tau_end; "
                            f"got {self.tau_start} and {self.tau_end}")
        if not 0 < self.wanted_use <= 1 or self.reset_every < 0:
            raise UserError("gumbel: wanted_use is a fraction above 0, reset_every 0 or more; "
                            f"got {self.wanted_use} and {self.reset_every}")


class GumbelVQ(VQ):
    """In training z_q = sum of w_i e_i with w = softmax((g_i - ||z - e_i||^2) / tau), g Gumbel noise;
    otherwise the nearest code. ``settings``: those of GumbelSettings."""

    Settings = GumbelSettings

    def __init__(self, codebook_size=512, dim=512, **settings):
        super().__init__(codebook_size, dim, beta=0.0)
        self.settings = s = GumbelSettings(**settings)
        s.check(self.codebook_size)
        self.noise, self.nearest, self.soft, self.diversity = s.noise, int(s.nearest), s.soft, s.diversity
        self.register_buffer("steps", torch.tensor(0))
        if s.temperature == "anneal" or s.reset_every:
            self.register_buffer("horizon", torch.tensor(0))  # steps of the training; 0 = not known
        if s.temperature == "adaptive":
            self.register_buffer("adapted", torch.tensor(float(s.tau_start)))
            self.register_buffer("shares", torch.full((self.codebook_size,), 1 / self.codebook_size))
        if s.temperature == "learned":
            self.log_tau = nn.Parameter(torch.tensor(math.log(s.tau_start - s.tau_end)))
        if s.reset_every:
            self.register_buffer("uses", torch.zeros(self.codebook_size, dtype=torch.long))

    def plan(self, steps):
        """Tell how many training steps there will be, from now on: an annealed temperature and resets follow
        them. Without it, the temperature falls by tau_decay, and resets do not stop."""
        self.steps.zero_()
        if hasattr(self, "horizon"):
            self.horizon.fill_(steps)

    def annealed(self):
        """How far the training is on its way to the end of annealing and resets, 0 to 1; None if nobody has
        told how many steps there will be."""
        horizon = int(self.horizon)
        return min(1.0, int(self.steps) / (ANNEALED * horizon)) if horizon else None

    @property
    def tau(self):
        """The temperature: a number, or a tensor () where it is adaptive or learned."""
        s = self.settings
        if s.temperature == "adaptive":
            return self.adapted.clone()  # changed in place before the backward pass
        if s.temperature == "learned":
            return s.tau_end + self.log_tau.exp()
        if s.temperature == "anneal" and (done := self.annealed()) is not None:
            return s.tau_start * (s.tau_end / s.tau_start) ** done
        return max(s.tau_end, s.tau_start * s.tau_decay ** int(self.steps))

    def before_step(self, vectors):
        super().before_step(vectors)
        every = self.settings.reset_every
        if every and self.steps > 0 and self.steps % every == 0 and self.annealed() != 1:
            self.reset(all_gather(vectors))

    @torch.no_grad()
    def reset(self, vectors):
        """Codes unused since the last call restart at those of the vectors (N, d) that are farthest from
        their codes, the farthest first."""
        unused = (self.uses == 0).nonzero()[:, 0]
        self.uses.zero_()
        if not len(unused) or not vectors.isfinite().all():
            return
        codes = F.embedding(nearest_codes(vectors, self.codebook), self.codebook)
        worst = (vectors - codes).square().sum(1).topk(min(len(unused), len(vectors))).indices
        self.codebook[unused[: len(worst)]] = jittered(vectors, worst)
        broadcast_(self.codebook)

    @torch.no_grad()
    def after_search(self, z, indices, mask):
        """Count the codes nearest to the vectors, where something follows from it."""
        s = self.settings
        if not s.reset_every and s.temperature != "adaptive":
            return
        chosen = (indices if mask is None else indices[mask]).reshape(-1)
        uses = torch.zeros(self.codebook_size, dtype=torch.long, device=z.device)
        uses.index_add_(0, chosen, torch.ones_like(chosen))
        all_reduce_(uses)
        if s.reset_every:
            self.uses += uses
        if s.temperature == "adaptive":
            self.shares.lerp_(uses / uses.sum().clamp(min=1), 1 - MEMORY)
            perplexity = (-(self.shares * self.shares.clamp(min=1e-12).log()).sum()).exp()
            wide = perplexity < s.wanted_use * self.codebook_size
            self.adapted.mul_(torch.where(wide, RATE, 1 / RATE)).clamp_(s.tau_end, s.tau_start)

    def quantize(self, z, mask):
        indices = self.get_indices(z)
        if not self.training and not self.soft:
            return Quantized(self.decode_indices(indices), indices, z.new_zeros(()))
        tau, flat = self.tau, z.reshape(-1, self.dim)
        valid = flat.new_ones(len(flat)) if mask is None else mask.reshape(-1).to(flat.dtype)
        rows = max(1, rows_at_a_time(4 * (self.nearest * self.dim or self.codebook_size)))
        # checkpointing recomputes the weights in the backward pass, so those of all vectors never coexist
        parts = [checkpoint(self.mix, part, weight, self.codebook, tau, use_reentrant=False)
                 for part, weight in zip(flat.split(rows), valid.split(rows))]
        z_q = torch.cat([part for part, _ in parts]).reshape(z.shape)
        mean = torch.stack([total for _, total in parts]).sum(0) / valid.sum().clamp(min=1)
        if self.training:
            self.after_search(z.detach(), indices, mask)
            self.steps += 1
        else:
            indices = self.get_indices(z_q)  # of the code nearest to the decoder's input
        return Quantized(z_q, indices, self.diversity_loss(mean) if self.diversity else z.new_zeros(()))

    def mix(self, flat, valid, table, tau):
        """flat (N, d) -> soft codes (N, d), and their weights' sum (K,) over the ``valid`` (N,; 0 or 1)."""
        if self.nearest:
            picks = nearest_codes(flat.detach(), table, self.nearest).reshape(len(flat), -1)
            near = F.embedding(picks, table)  # (N, K', d)
            logits = -(flat[:, None] - near).square().sum(-1)
        else:
            logits = 2 * flat @ table.T - table.square().sum(1) - flat.square().sum(1, keepdim=True)  # (N, K)
        if self.noise and self.training:
            logits = logits - torch.empty_like(logits).exponential_().clamp(min=1e-20).log()
        weights = (logits / tau).softmax(1)
        if not self.nearest:
            return weights @ table, valid @ weights
        counted = (weights * valid[:, None]).flatten()
        total = flat.new_zeros(self.codebook_size).index_add(0, picks.flatten(), counted)
        return (weights[..., None] * near).sum(1), total

    def diversity_loss(self, mean):
        entropy = -(mean * mean.clamp(min=1e-12).log()).sum()
        return self.diversity * (1 - entropy / math.log(max(self.codebook_size, 2)))

    def snap(self, x):
        return x if self.soft else super().snap(x)
