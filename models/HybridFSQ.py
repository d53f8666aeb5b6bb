"""FSQ + VQ: a grid, and a small codebook inside its cells. Shapes: (..., d), d the dimensions of the grid."""
import torch
from torch import nn

from models.FSQ import FSQ, Quantized, check_range
from models.VQ import VQ

CELL = 0.49  # of a step: how far an offset reaches, so that a sum identifies its grid point and offset


class CellVQ(VQ):
    """Codes inside half a step of 0 in every dimension: CELL x tanh of the parameters."""

    def codes(self):
        return CELL * torch.tanh(self.codebook)

    @torch.no_grad()
    def seed(self, vectors):
        super().seed(vectors)
        self.codebook.copy_(torch.atanh((self.codebook / CELL).clamp(-0.95, 0.95)))


class HybridFSQ(nn.Module):
    """FSQ + VQ: z_q is a grid point plus one of ``offset_codes`` offsets for the position inside its cell.
    Offsets stay inside the cell, so rounding a sum returns its grid point, and snapping is exact. ``beta``:
    weight of the offsets' commitment loss; with 0.25 it pulls all z into one cell."""

    def __init__(self, levels, offset_codes=64, beta=0.0):
        super().__init__()
        self.grid = FSQ(levels)
        self.offsets = CellVQ(offset_codes, self.grid.dim, beta)
        self.levels, self.dim, self.target_dim = self.grid.levels, self.grid.dim, self.grid.dim
        self.axis_sizes = (*self.levels, self.offsets.codebook_size)
        self.codebook_size = self.grid.codebook_size * self.offsets.codebook_size
        self.has_flat_index = self.codebook_size < 2**63

    def forward(self, z, mask=None):
        """z (..., d) -> Quantized(z_q (..., d), indices (...) or, beyond int64, (..., d + 1), loss ())."""
        with torch.autocast(z.device.type, enabled=False):
            x = self.grid.bound(z.float())
            points = self.grid.snap(x)
            out = self.offsets((x - points) * self.grid.per_unit, mask)
            indices = self._join(self.grid.get_indices(points), out.indices)
            return Quantized(points + out.z_q / self.grid.per_unit, indices, out.loss)

    def _join(self, points, offsets):
        """Indices of grid points and of offsets -> one index, or digits."""
        if self.has_flat_index:
            return points * self.offsets.codebook_size + offsets
        return torch.cat([self.grid.to_digits(points), offsets[..., None]], -1)

    def _split(self, x):
        """Points (..., d) -> grid points (..., d), and the offsets from them (..., d) in steps."""
        points = self.grid.snap(x)
        return points, (x.detach().float() - points) * self.grid.per_unit

    def snap(self, x):
        """The nearest grid point of x (..., d), plus the nearest offset."""
        with torch.autocast(x.device.type, enabled=False):
            points, left = self._split(x)
            return points + self.offsets.snap(left) / self.grid.per_unit

    def get_indices(self, z_q):
        points, left = self._split(z_q)
        return self._join(self.grid.get_indices(points), self.offsets.get_indices(left))

    def to_digits(self, indices):
        """Indices -> (..., d + 1): the grid's digits and the offset's index."""
        if self.has_flat_index:
            check_range(indices, self.codebook_size, "FSQ + VQ")
        return self.unpack(indices)

    def unpack(self, indices):
        """``to_digits`` without the check, which waits for a GPU."""
        if not self.has_flat_index:
            return indices
        size = self.offsets.codebook_size
        return torch.cat([self.grid.unpack(indices // size), (indices % size)[..., None]], -1)

    def decode_indices(self, indices):
        """Inverse of ``get_indices``. UserError for an index outside the codebook."""
        digits = self.to_digits(indices)
        points = self.grid.decode_indices(self.grid.from_digits(digits[..., :-1]))
        return points + self.offsets.decode_indices(digits[..., -1]) / self.grid.per_unit

    def codes_to_latent(self, z_q):
        return z_q

    def neighbour(self, z_q, axis):
        """One level along a dimension with the same offset; on the last axis the nearest other offset."""
        points, left = self._split(z_q)
        if axis < self.dim:
            return self.grid.neighbour(points, axis) + left / self.grid.per_unit
        return points + self.offsets.neighbour(self.offsets.snap(left), 0) / self.grid.per_unit
