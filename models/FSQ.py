"""Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505) and its relatives: every dimension is
quantized by itself.

Shapes: (..., d) with d = len(levels). A code is a point of a grid with ``levels[i]`` values in dimension i;
its digits are the numbers of those values in ascending order, and its index numbers the grid points, first
dimension fastest.
"""
import math
from typing import NamedTuple

import torch
from torch import nn

from utils.errors import UserError

TABLE = 4096  # most values that a learned dimension may have
MOST = 2**16  # values that any dimension may have: float32 still tells them well apart


class Quantized(NamedTuple):
    """What every quantizer returns: codes (..., d), indices (...) or (..., axes), auxiliary loss ()."""

    z_q: torch.Tensor
    indices: torch.Tensor
    loss: torch.Tensor


def check_levels(levels):
    """The levels as a tuple of ints. Raises UserError unless there is one at least and each is 2 to MOST."""
    levels = tuple(int(level) for level in levels)
    if not levels or min(levels) < 2 or max(levels) > MOST:
        raise UserError(f"FSQ levels must be whole numbers of 2 to {MOST}, one a dimension; got "
                        f"{list(levels)}")
    return levels


class Grid(nn.Module):
    """What all grids share: numbering, snapping, neighbours, and the straight-through gradient, in float32
    whatever the autocast (in bfloat16 half of the codes are never used).

    A grid of more points than an int64 can number has no flat index: its indices are the digits, (..., d).
    Subclasses give ``bound`` (z, unbounded -> the grid's scale), ``digits`` (point -> nearest digits) and
    ``values`` (digits -> point).
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
        # follows from the levels: not part of the weights
        self.register_buffer(name, value, persistent=False)

    def forward(self, z, mask=None):
        """z (..., d), unbounded -> Quantized(z_q on the grid, indices, loss 0). UserError when d is not
        len(levels). ``mask`` (...; true = a token) is taken as every quantizer takes it; a grid keeps no
        statistics."""
        if z.shape[-1] != self.dim:
            raise UserError(f"FSQ with {self.dim} levels got vectors of {z.shape[-1]} dimensions")
        with torch.autocast(z.device.type, enabled=False):
            x = self.bound(z.float())
            digits = self.digits(x.detach())
            return Quantized(self.pass_gradient(x, self.values(digits)), self.from_digits(digits),
                             x.new_zeros(()))

    def pass_gradient(self, x, codes):
        """The codes, with x's gradient added to their own (those of learned values)."""
        return codes + (x - x.detach())

    def snap(self, x):
        """The nearest grid point of x (..., d), which lives on the grid's own scale (a sampled coordinate,
        say)."""
        with torch.autocast(x.device.type, enabled=False):
            return self.values(self.digits(x.detach().float()))

    def codes_to_latent(self, z_q):
        """Codes (..., target_dim) -> what the decoder reads (..., dim)."""
        return z_q

    def get_indices(self, z_q):
        """Grid points (..., d) -> int64 indices (...), or (..., d) digits where the product of levels exceeds
        int64."""
        return self.from_digits(self.digits(z_q.detach().float()))

    def decode_indices(self, indices):
        """Inverse of ``get_indices``: int64 (...) -> grid points (..., d). UserError for an index outside the
        grid."""
        return self.values(self.to_digits(indices))

    def from_digits(self, digits):
        """Digits (..., d) -> indices."""
        return (digits * self.basis).sum(-1) if self.has_flat_index else digits

    def to_digits(self, indices):
        """Indices -> digits (..., d). UserError for an index outside the grid."""
        if self.has_flat_index:
            check_range(indices, self.codebook_size, "FSQ")
            return torch.div(indices.unsqueeze(-1), self.basis, rounding_mode="floor") % (self.top + 1)
        if indices.shape[-1] != self.dim:
            raise UserError(f"a grid of {self.codebook_size:.2g} points has no flat index: pass {self.dim} "
                            "digits a code")
        if indices.numel() and ((indices < 0) | (indices > self.top)).any():
            raise UserError("FSQ digit outside its levels")
        return indices

    def neighbour(self, z_q, axis):
        """Grid points (..., d) -> those one level further along dimension ``axis``, or nearer where there is
        no further."""
        digits = self.digits(z_q.detach().float())
        digits[..., axis] += torch.where(digits[..., axis] < self.top[axis], 1, -1)
        return self.values(digits)


def check_range(indices, size, what):
    """Raise UserError for an index outside 0..size-1."""
    if indices.numel() and (indices.min() < 0 or indices.max() >= size):
        raise UserError(f"{what} index outside 0..{size - 1}")


# ---- evenly spaced -----------------------------------------------------------------------------------------


class EvenGrid(Grid):
    """Values (digit + low) / per_unit; ``low`` and ``per_unit`` (d,) are given by the subclass."""

    def __init__(self, levels, low, per_unit):
        super().__init__(levels)
        self._constant("low", low)
        self._constant("per_unit", per_unit)

    def digits(self, x):
        return torch.minimum((x * self.per_unit - self.low).round().long().clamp(min=0), self.top)

    def values(self, digits):
        return (digits + self.low) / self.per_unit


class FSQ(EvenGrid):
    """Rounds every dimension of z to ``levels[i]`` values, with the straight-through gradient.

    Even level counts are shifted by half a step, so L levels give exactly L values, -1 among them and 0 too.

    Args:
        levels: values a dimension, each 2 or more (5 or more advised by the paper).
        eps: how far beyond the outermost level the bound reaches, so that it can be rounded to.
    """

    def __init__(self, levels, eps=1e-3):
        counts = torch.tensor(check_levels(levels), dtype=torch.float32)
        half = torch.div(counts, 2, rounding_mode="floor")
        super().__init__(levels, -half, half)
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
        half = (torch.tensor(check_levels(levels), dtype=torch.float32) - 1) / 2
        super().__init__(levels, -half, half)

    def bound(self, z):
        return torch.tanh(z)


class IFSQ(SymmetricFSQ):
    """iFSQ (arXiv 2601.17124): a wider sigmoid in place of the tanh, which spreads a normal z almost evenly
    over (-1, 1). The levels must be odd. As rounding gives the two outermost levels half a cell each, they
    are used half as often."""

    def __init__(self, levels):
        super().__init__(levels)
        if any(level % 2 == 0 for level in self.levels):
            raise UserError(f"iFSQ needs odd levels; got {list(self.levels)}")

    def bound(self, z):
        return 2 * torch.sigmoid(1.6 * z) - 1


class NoiseDropoutFSQ(SymmetricFSQ):
    """The symmetric grid, but in training a vector is at random left as it is, or dithered within half a
    step, or rounded (arXiv 2411.19842, section 3.2). ``indices`` are those of the rounded vector.

    Args:
        keep: share of the vectors that are left unquantized. dither: share that gets uniform noise of half a
            step.
    """

    def __init__(self, levels, keep=0.25, dither=0.25):
        super().__init__(levels)
        if keep < 0 or dither < 0 or keep + dither > 1:
            raise UserError(f"noise dropout: keep and dither are shares of at most 1 together; got {keep} "
                            f"and {dither}")
        self.keep, self.dither = keep, dither

    def pass_gradient(self, x, codes):
        rounded = super().pass_gradient(x, codes)
        if not self.training:
            return rounded
        draw = torch.rand(*x.shape[:-1], 1, device=x.device)
        noisy = x + (torch.rand_like(x) - 0.5) / self.per_unit
        return torch.where(draw < self.keep, x, torch.where(draw < self.keep + self.dither, noisy, rounded))


# ---- learned values ----------------------------------------------------------------------------------------


class TableGrid(Grid):
    """Every dimension has a learned list of values: ``table()`` (d, most levels), ascending, infinite where a
    dimension has fewer. The nearest value is taken; the reconstruction's gradient moves both z and the
    values."""

    def __init__(self, levels):
        super().__init__(levels)
        if max(self.levels) > TABLE:
            raise UserError(f"a learned dimension has at most {TABLE} values; got {max(self.levels)}")

    def bound(self, z):
        return torch.tanh(z)

    @torch.no_grad()
    def digits(self, x):
        table = self.table()
        middles = (table[:, 1:] + table[:, :-1]) / 2
        found = torch.searchsorted(middles, x.reshape(-1, self.dim).T.contiguous()).T
        return torch.minimum(found.reshape(x.shape), self.top)

    def values(self, digits):
        found = self.table().gather(1, digits.reshape(-1, self.dim).T).T
        return found.reshape(digits.shape)


class LearnedFSQ(TableGrid):
    """Learned spacing: the values of a dimension go from -1 to 1 in steps that are the softmax of free
    parameters, so their order holds; they start evenly spaced."""

    def __init__(self, levels):
        super().__init__(levels)
        self.gaps = nn.Parameter(torch.zeros(self.dim, max(self.levels) - 1))
        self._constant("absent", torch.arange(max(self.levels) - 1) >= self.top[:, None])

    def table(self):
        steps = self.gaps.float().masked_fill(self.absent, -math.inf).softmax(1)
        values = torch.cat([steps.new_full((self.dim, 1), -1.0), 2 * steps.cumsum(1) - 1], 1)
        return torch.cat([values[:, :1], values[:, 1:].masked_fill(self.absent, math.inf)], 1)


class ResidualFSQ(TableGrid):
    """Residual FSQ (arXiv 2508.15860): each stage quantizes what the stages before it left, on a symmetric
    grid of its own learned scale. The scales start where a stage exactly fills a cell of the one before, so
    that none dies out.

    A dimension has only L^stages sums, so the nearest sum is found exactly, where stage after stage would
    find it only while the stages do not overlap; and a sum tells its stages. ``levels`` afterwards are the
    counts of the sums.
    """

    def __init__(self, levels, stages=2):
        base = check_levels(levels)
        if stages < 1:
            raise UserError(f"residual FSQ needs 1 stage at least; got {stages}")
        if max(base) ** stages > TABLE:
            raise UserError(f"residual FSQ: {max(base)} levels in {stages} stages make more than {TABLE} "
                            "values a dimension")
        super().__init__([level**stages for level in base])
        counts = torch.tensor(base, dtype=torch.float32)
        self.log_scale = nn.Parameter(-torch.arange(stages)[:, None] * counts.log())
        digits = torch.zeros(stages, self.dim, max(self.levels))
        for i, level in enumerate(base):
            for stage in range(stages):
                digits[stage, i] = torch.arange(max(self.levels)) // level ** (stages - 1 - stage) % level
        self._constant("parts", 2 * digits / (counts[:, None] - 1) - 1)
        self._constant("absent", torch.arange(max(self.levels)) > self.top[:, None])

    def table(self):
        sums = (self.log_scale.float().exp()[..., None] * self.parts).sum(0)  # (d, L^stages)
        return sums.masked_fill(self.absent, math.inf).sort(1).values
