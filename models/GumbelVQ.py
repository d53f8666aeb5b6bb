"""Gumbel-softmax vector quantization: soft weights over the codebook that sharpen during training (Jang et
al. 2017, arXiv 1611.01144, with distances for logits). A blog post calls it DiVeQ; models/DiVeQ.py differs.

Shapes: (..., d) vectors, K codes.
"""
import math

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from models.FSQ import Quantized
from models.VQ import VQ, nearest_codes, rows_at_a_time
from utils.errors import UserError


class GumbelVQ(VQ):
    """In training z_q = sum of w_i e_i with w = softmax((g_i - ||z - e_i||^2) / tau), g Gumbel noise;
    otherwise the nearest code.

    Args:
        noise: add the Gumbel noise.
        nearest: number of nearest codes that get a weight, 0 = all.
        soft: weighted sums (without noise) outside training too. ``snap`` is then the identity.
        diversity: weight of the loss 1 - entropy of the mean weights / log K.
        tau_start, tau_decay, tau_end: first temperature, its factor per step, and its lower bound.
    """

    def __init__(self, codebook_size=512, dim=512, noise=True, nearest=0, soft=False, diversity=0.0,
                 tau_start=1.0, tau_decay=0.9999, tau_end=0.1):
        super().__init__(codebook_size, dim, beta=0.0)
        if not 0 <= nearest <= self.codebook_size:
            raise UserError(f"a codebook of {self.codebook_size} codes cannot take the nearest {nearest}")
        if min(tau_start, tau_end) <= 0 or not 0 < tau_decay <= 1 or diversity < 0:
            raise UserError("gumbel: tau_start and tau_end are above 0, tau_decay in 0..1, diversity >= 0; "
                            f"got {tau_start}, {tau_end}, {tau_decay} and {diversity}")
        self.noise, self.nearest, self.soft, self.diversity = noise, int(nearest), soft, diversity
        self.tau_start, self.tau_decay, self.tau_end = tau_start, tau_decay, tau_end
        self.register_buffer("steps", torch.tensor(0))

    @property
    def tau(self):
        return max(self.tau_end, self.tau_start * self.tau_decay ** int(self.steps))

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
