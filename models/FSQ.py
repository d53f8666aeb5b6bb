"""Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505).

Shapes: (..., d) with d = len(levels). A code is a point of the grid {-1 .. 1}^d with ``levels[i]`` values in dimension i;
an index numbers the grid points, first dimension fastest.
"""
import math
from typing import NamedTuple

import torch
from torch import nn

from models.errors import ModelError


class Quantized(NamedTuple):
    """What every quantizer returns: codes (..., d), indices (...) or (..., d), auxiliary loss ()."""

    z_q: torch.Tensor
    indices: torch.Tensor
    loss: torch.Tensor


def check_levels(levels):
    """The levels as a tuple of ints. Raises ModelError unless there is one at least and each is 2 or more."""
    levels = tuple(int(level) for level in levels)
    if not levels or min(levels) < 2:
        raise ModelError(f"FSQ levels must be whole numbers of 2 or more, one a dimension; got {list(levels)}")
    return levels


class FSQ(nn.Module):
    """Rounds every dimension of z to ``levels[i]`` values, with the straight-through gradient.

    Even level counts are shifted by half a step, so L levels give exactly L values. Everything is computed in float32
    whatever the autocast: in bfloat16 half of the codes are never used.

    Args:
        levels: values a dimension, each 2 or more (5 or more advised by the paper).
        eps: how far beyond the outermost level the bound reaches, so that it can be rounded to.
    """

    def __init__(self, levels, eps=1e-3):
        super().__init__()
        self.levels = check_levels(levels)
        self.dim = len(self.levels)
        self.codebook_size = math.prod(self.levels)
        # A grid of more points than an int64 can number is indexed by one digit a dimension.
        self.packed = self.codebook_size < 2**63
        counts = torch.tensor(self.levels, dtype=torch.float32)
        offset = torch.where(counts % 2 == 0, 0.5, 0.0)
        reach = (counts - 1) * (1 + eps) / 2
        self._constant("offset", offset)
        self._constant("reach", reach)
        self._constant("shift", torch.atanh(offset / reach))
        self._constant("half_count", torch.div(counts, 2, rounding_mode="floor"))
        self._constant("top", counts - 1)
        if self.packed:
            self._constant("basis", torch.tensor([math.prod(self.levels[:i]) for i in range(self.dim)]))

    def _constant(self, name, value):
        self.register_buffer(name, value, persistent=False)  # follows from the levels: not part of the weights

    def forward(self, z):
        """z (..., d), unbounded -> Quantized(z_q on the grid, indices, loss 0). ModelError when d is not len(levels)."""
        if z.shape[-1] != self.dim:
            raise ModelError(f"FSQ with {self.dim} levels got vectors of {z.shape[-1]} dimensions")
        with torch.autocast(z.device.type, enabled=False):
            bounded = torch.tanh(z.float() + self.shift) * self.reach - self.offset
            rounded = bounded + (bounded.round() - bounded).detach()
            z_q = rounded / self.half_count
            return Quantized(z_q, self.get_indices(z_q), z_q.new_zeros(()))

    def snap(self, x):
        """The nearest grid point of x (..., d), which lives on the grid's own scale (a sampled coordinate, say)."""
        with torch.autocast(x.device.type, enabled=False):
            return self._from_digits(self._digits(x))

    def get_indices(self, z_q):
        """Grid points (..., d) -> int64 indices (...), or (..., d) digits where the product of levels exceeds int64."""
        digits = self._digits(z_q.detach()).long()
        return (digits * self.basis).sum(-1) if self.packed else digits

    def decode_indices(self, indices):
        """Inverse of ``get_indices``: int64 (...) -> grid points (..., d). ModelError for an index outside the grid."""
        if self.packed:
            if indices.numel() and (indices.min() < 0 or indices.max() >= self.codebook_size):
                raise ModelError(f"FSQ index outside 0..{self.codebook_size - 1}")
            indices = torch.div(indices.unsqueeze(-1), self.basis, rounding_mode="floor") % (self.top.long() + 1)
        return self._from_digits(indices.float())

    def _digits(self, x):
        return torch.minimum((x.float() * self.half_count).round() + self.half_count, self.top).clamp(min=0)

    def _from_digits(self, digits):
        return (digits - self.half_count) / self.half_count
