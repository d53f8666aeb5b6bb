"""Vector quantization (van den Oord et al. 2017, arXiv 1711.00937): the control for FSQ, behind the same interface."""
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from models.errors import ModelError
from models.FSQ import Quantized

DISTANCE_BYTES = 64 * 2**20  # of the (vectors x codes) matrix that is alive at a time


class VQ(nn.Module):
    """Nearest code of a learned codebook, straight-through gradient, codebook loss + ``beta`` x commitment loss.

    The codebook starts from vectors of the first training batch: codes that start far from the data are never used.

    Args:
        codebook_size: number of codes K (1 or more).
        dim: length d of a code.
        beta: weight of the commitment loss.
    """

    def __init__(self, codebook_size=512, dim=512, beta=0.25):
        super().__init__()
        if codebook_size < 1 or dim < 1:
            raise ModelError(f"VQ needs a codebook of 1 code and 1 dimension at least; got {codebook_size} x {dim}")
        self.codebook_size, self.dim, self.beta = int(codebook_size), int(dim), beta
        self.codebook = nn.Parameter(torch.empty(codebook_size, dim).uniform_(-1, 1) / codebook_size)
        self.register_buffer("seeded", torch.tensor(False))

    def forward(self, z):
        """z (..., d) -> Quantized(z_q (..., d), indices (...), loss ())."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            if self.training and not self.seeded:
                self._seed(z.detach().reshape(-1, self.dim))
            indices = self.get_indices(z)
            codes = self.decode_indices(indices)
            loss = F.mse_loss(codes, z.detach()) + self.beta * F.mse_loss(z, codes.detach())
            return Quantized(z + (codes - z).detach(), indices, loss)

    @torch.no_grad()
    def _seed(self, vectors):
        if dist.is_initialized():  # every process trains the same codebook: that of the first, from the vectors of all
            parts = [torch.empty_like(vectors) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, vectors.contiguous())
            vectors = torch.cat(parts)
        picks = torch.randint(len(vectors), (self.codebook_size,), device=vectors.device)
        spread = vectors.std(0, unbiased=False) * 0.01  # two picks of one vector must not stay the same code
        self.codebook.copy_(vectors[picks] + spread * torch.randn_like(vectors[picks]))
        if dist.is_initialized():
            dist.broadcast(self.codebook.data, 0)
        self.seeded.fill_(True)

    @torch.no_grad()
    def get_indices(self, z_q):
        """Index (...) of the code nearest to each vector (..., d), in slices so that memory stays bounded."""
        flat = z_q.detach().reshape(-1, self.dim).float()
        rows = max(1, DISTANCE_BYTES // (4 * self.codebook_size))
        norms = self.codebook.square().sum(1)
        nearest = [(norms - 2 * part @ self.codebook.T).argmin(1) for part in flat.split(rows)]
        return torch.cat(nearest).reshape(z_q.shape[:-1]) if nearest else flat.new_zeros(z_q.shape[:-1]).long()

    def decode_indices(self, indices):
        """Codes (..., d) of int64 indices (...). ModelError for an index outside the codebook."""
        if indices.numel() and (indices.min() < 0 or indices.max() >= self.codebook_size):
            raise ModelError(f"VQ index outside 0..{self.codebook_size - 1}")
        return F.embedding(indices, self.codebook)

    def snap(self, x):
        """The nearest code of x (..., d)."""
        return self.decode_indices(self.get_indices(x))
