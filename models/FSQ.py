"""Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505) and its variants.

Shapes: (..., d) with d = len(levels). A code is a point of a grid with ``levels[i]`` values in dimension i;
its digits are the ranks of those values, and its index numbers the grid points, first dimension fastest.
"""
import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import nn

from utils.errors import UserError

TABLE = 4096  # most values of a learned dimension
MOST = 2**16  # most values of any dimension: float32 still tells them apart


class Quantized(NamedTuple):
    """What every quantizer returns: codes (..., d), indices (...) or (..., axes), auxiliary loss ()."""

    z_q: torch.Tensor
    indices: torch.Tensor
    loss: torch.Tensor


def check_levels(levels):
    """The levels as a tuple of ints. UserError unless there is one at least, each 2 to MOST."""
    levels = tuple(int(level) for level in levels)
    if not levels or min(levels) < 2 or max(levels) > MOST:
        raise UserError(f"FSQ levels are integers from 2 to {MOST}, one per dimension; got {list(levels)}")
    return levels


def check_range(indices, size, what):
    """Raise UserError for an index outside 0..size-1."""
    if indices.numel() and (indices.min() < 0 or indices.max() >= size):
        raise UserError(f"{what} index outside 0..{size - 1}")


class Grid(nn.Module):
    """What all grids share: indexing, snapping, neighbours and the straight-through gradient, in float32
    whatever the autocast (in bfloat16 half of the codes are never used). Subclasses define ``digits`` (point
    -> nearest digits) and ``values`` (digits -> point).

    A grid of more points than an int64 can number has no flat index: its indices are the digits, (..., d).
    """

    def __init__(self, levels):
        super().__init__()
        self.levels = self.axis_sizes = check_levels(levels)
        self.dim = self.target_dim = len(self.levels)
        self.codebook_size = math.prod(self.levels)
        self.has_flat_index = self.codebook_size < 2**63
        self._constant("top", torch.tensor(self.levels) - 1)
        if self.has_flat_index:
            self._constant("basis", torch.tensor([math.prod(self.levels[:i]) for i in range(self.dim)]))

    def _constant(self, name, value):
        """Register a buffer that follows from the levels and is not part of the weights."""
        self.register_buffer(name, value, persistent=False)

    def forward(self, z, mask=None):
        """z (..., d), unbounded -> Quantized(z_q, indices, loss 0). UserError when d is not len(levels).
        ``mask`` is unused: a grid keeps no statistics."""
        if z.shape[-1] != self.dim:
            raise UserError(f"FSQ with {self.dim} levels got vectors of {z.shape[-1]} dimensions")
        with torch.autocast(z.device.type, enabled=False):
            x = self.bound(z.float())
            digits = self.digits(x.detach())
            z_q = self.pass_gradient(x, self.values(digits))
            return Quantized(z_q, self.from_digits(digits), x.new_zeros(()))

    def bound(self, z):
        """z, unbounded -> the grid's scale."""
        return torch.tanh(z)

    def pass_gradient(self, x, codes):
        """The codes, with x's gradient added to their own (that of learned values)."""
        return codes + (x - x.detach())

    def snap(self, x):
        """The nearest grid point of x (..., d) on the grid's scale, such as a sampled target."""
        with torch.autocast(x.device.type, enabled=False):
            return self.values(self.digits(x.detach().float()))

    def codes_to_latent(self, z_q):
        """Codes (..., target_dim) -> the decoder's input (..., dim)."""
        return z_q

    def get_indices(self, z_q):
        """Grid points (..., d) -> int64 indices (...), or digits (..., d) where there is no flat index."""
        return self.from_digits(self.digits(z_q.detach().float()))

    def decode_indices(self, indices):
        """Inverse of ``get_indices``. UserError for an index outside the grid."""
        return self.values(self.to_digits(indices))

    def from_digits(self, digits):
        """Digits (..., d) -> indices."""
        return (digits * self.basis).sum(-1) if self.has_flat_index else digits

    def to_digits(self, indices):
        """Indices -> digits (..., d). UserError for an index outside the grid."""
        if self.has_flat_index:
            check_range(indices, self.codebook_size, "FSQ")
            return self.unpack(indices)
        if indices.shape[-1] != self.dim:
            raise UserError(f"a grid of {self.codebook_size:.2g} points has no flat index: pass "
                            f"{self.dim} digits per code")
        if indices.numel() and ((indices < 0) | (indices > self.top)).any():
            raise UserError("FSQ digit outside its levels")
        return indices

    def unpack(self, indices):
        """``to_digits`` without the check, which waits for a GPU."""
        return indices[..., None] // self.basis % (self.top + 1) if self.has_flat_index else indices

    def neighbour(self, z_q, axis):
        """Grid points (..., d) -> those one level up along dimension ``axis``, or down from the top level."""
        digits = self.digits(z_q.detach().float())
        digits[..., axis] += torch.where(digits[..., axis] < self.top[axis], 1, -1)
        return self.values(digits)


class EvenGrid(Grid):
    """Values digit / per_unit - 1; the subclass passes ``per_unit`` (d,), steps per unit."""

    def __init__(self, levels, per_unit):
        super().__init__(levels)
        self._constant("per_unit", per_unit)

    def digits(self, x):
        return torch.minimum((x * self.per_unit + self.per_unit).round().long().clamp(min=0), self.top)

    def values(self, digits):
        return (digits - self.per_unit) / self.per_unit


class FSQ(EvenGrid):
    """Rounds every dimension of z to ``levels[i]`` values, with the straight-through gradient.

    Even level counts are shifted by half a step, so L levels give exactly L values, -1 and 0 among them. The
    paper advises at least 5. ``eps``: how far the bound reaches beyond the outermost level, so that z can be
    rounded to it.
    """

    def __init__(self, levels, eps=1e-3):
        counts = torch.tensor(check_levels(levels), dtype=torch.float32)
        super().__init__(levels, counts // 2)
        offset = torch.where(counts % 2 == 0, 0.5, 0.0)
        reach = (counts - 1) * (1 + eps) / 2
        self._constant("offset", offset)
        self._constant("reach", reach)
        self._constant("shift", torch.atanh(offset / reach))

    def bound(self, z):
        return (torch.tanh(z + self.shift) * self.reach - self.offset) / self.per_unit


class SymmetricFSQ(EvenGrid):
    """The grid that is symmetric about 0 for even level counts too (Parker et al. 2024, arXiv 2411.19842)."""

    def __init__(self, levels):
        super().__init__(levels, (torch.tensor(check_levels(levels), dtype=torch.float32) - 1) / 2)


class IFSQ(SymmetricFSQ):
    """iFSQ (arXiv 2601.17124): in place of the tanh a wider sigmoid, which spreads a normal z almost evenly
    over (-1, 1). Levels must be odd. The two outermost have half a cell each, so are used half as often."""

    def __init__(self, levels):
        super().__init__(levels)
        if any(level % 2 == 0 for level in self.levels):
            raise UserError(f"iFSQ needs odd levels; got {list(self.levels)}")

    def bound(self, z):
        return 2 * torch.sigmoid(1.6 * z) - 1


class NoiseDropoutFSQ(SymmetricFSQ):
    """The symmetric grid; in training a random fraction ``keep`` of the vectors stays unquantized, a fraction
    ``dither`` gets uniform noise of half a step, and the rest is rounded (arXiv 2411.19842, section 3.2).
    ``indices`` are those of the rounded vectors."""

    def __init__(self, levels, keep=0.25, dither=0.25):
        super().__init__(levels)
        if keep < 0 or dither < 0 or keep + dither > 1:
            raise UserError("noise dropout: keep and dither are fractions that sum to at most 1; "
                            f"got {keep} and {dither}")
        self.keep, self.dither = keep, dither

    def pass_gradient(self, x, codes):
        rounded = super().pass_gradient(x, codes)
        if not self.training:
            return rounded
        draw = torch.rand(*x.shape[:-1], 1, device=x.device)
        noisy = x + (torch.rand_like(x) - 0.5) / self.per_unit
        return torch.where(draw < self.keep, x, torch.where(draw < self.keep + self.dither, noisy, rounded))


class TableGrid(Grid):
    """Every dimension has a learned list of values: ``table()`` (d, most levels), ascending, padded with
    infinity. The reconstruction's gradient moves both z and its nearest values."""

    def __init__(self, levels):
        super().__init__(levels)
        if max(self.levels) > TABLE:
            raise UserError(f"a learned dimension has at most {TABLE} values; got {max(self.levels)}")

    @torch.no_grad()
    def digits(self, x):
        table = self.table()
        middles = (table[:, 1:] + table[:, :-1]) / 2
        found = torch.searchsorted(middles, rearrange(x, "... d -> d (...)").contiguous())
        return torch.minimum(found.T.reshape(x.shape), self.top)

    def values(self, digits):
        return self.table().gather(1, rearrange(digits, "... d -> d (...)")).T.reshape(digits.shape)


class LearnedFSQ(TableGrid):
    """Learned spacing: the values of a dimension go from -1 to 1 in steps that are a softmax of free
    parameters, which keeps their order; they start evenly spaced."""

    def __init__(self, levels):
        super().__init__(levels)
        self.gaps = nn.Parameter(torch.zeros(self.dim, max(self.levels) - 1))
        self._constant("absent", torch.arange(max(self.levels) - 1) >= self.top[:, None])

    def table(self):
        steps = self.gaps.float().masked_fill(self.absent, -math.inf).softmax(1)
        values = (2 * steps.cumsum(1) - 1).masked_fill(self.absent, math.inf)
        return torch.cat([steps.new_full((self.dim, 1), -1.0), values], 1)


class ResidualFSQ(TableGrid):
    """Residual FSQ (arXiv 2508.15860): each stage quantizes the residual of the stages before it, on a
    symmetric grid of learned scale, at first exactly a cell of the previous one, so that every stage is used.

    A dimension has only L^stages sums, so the nearest sum is found exactly, even where stages overlap and a
    greedy search fails; and a sum identifies its stages. ``levels`` become the numbers of sums.
    """

    def __init__(self, levels, stages=2):
        base = check_levels(levels)
        if stages < 1:
            raise UserError(f"residual FSQ needs at least 1 stage; got {stages}")
        if max(base) ** stages > TABLE:
            raise UserError(f"residual FSQ: {max(base)} levels in {stages} stages make more than {TABLE} "
                            "values per dimension")
        super().__init__([level**stages for level in base])
        counts = torch.tensor(base, dtype=torch.float32)
        self.log_scale = nn.Parameter(-torch.arange(stages)[:, None] * counts.log())
        sums, bases = torch.arange(max(self.levels)), torch.tensor(base)[:, None]
        digits = torch.stack([sums // bases ** (stages - 1 - stage) % bases for stage in range(stages)])
        self._constant("parts", 2 * digits / (counts[:, None] - 1) - 1)  # (stages, d, L^stages)
        self._constant("absent", sums > self.top[:, None])

    def table(self):
        sums = (self.log_scale.float().exp()[..., None] * self.parts).sum(0)  # (d, L^stages)
        return sums.masked_fill(self.absent, math.inf).sort(1).values
