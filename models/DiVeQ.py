"""DiVeQ and SF-DiVeQ: differentiable vector quantization without auxiliary losses (arXiv 2509.26469).

Shapes: (..., d) vectors, K codes. Not to be mixed up with Gumbel-softmax VQ (models/GumbelVQ.py).
"""
import torch
import torch.nn.functional as F

from models.FSQ import Quantized, check_range
from models.VQ import VQ, all_reduce_, broadcast_, jittered, nearest_codes, rows_at_a_time
from utils.errors import UserError


def step_towards(z, codes, noise_variance):
    """||codes - z|| x a fixed unit vector, which points at the codes up to a little noise: its length passes
    the gradient to both. (..., d)"""
    with torch.no_grad():
        direction = codes - z
        direction = F.normalize(direction + noise_variance**0.5 * torch.randn_like(direction), dim=-1)
    return (codes - z).norm(dim=-1, keepdim=True) * direction


class DiVeQ(VQ):
    """In training z is moved by its distance to the code, in a slightly noisy direction. Codes that nothing
    has chosen for ``replace_every`` steps are replaced with used ones.

    Args:
        noise_variance: of the noise on the direction (0.001). replace_every: steps, 0 = never.
    """

    def __init__(self, codebook_size=512, dim=512, noise_variance=1e-3, replace_every=100):
        super().__init__(codebook_size, dim, beta=0.0)
        if noise_variance < 0 or replace_every < 0:
            raise UserError(f"DiVeQ needs a variance and steps of 0 or more; got {noise_variance} and "
                            f"{replace_every}")
        self.noise_variance, self.replace_every = noise_variance, replace_every
        self.register_buffer("uses", torch.zeros(self.codebook_size, dtype=torch.long))
        self.register_buffer("steps", torch.tensor(0))

    def pass_gradient(self, z, codes):
        return z + step_towards(z, codes, self.noise_variance) if self.training else codes

    def loss(self, z, codes, mask):
        return z.new_zeros(())

    def before_step(self, vectors):
        super().before_step(vectors)
        if self.replace_every and self.steps > 0 and self.steps % self.replace_every == 0:
            self.replace_unused()
        self.steps += 1

    @torch.no_grad()
    def replace_unused(self):
        """Codes without a use since the last call become copies of used ones, drawn by their use, each moved
        a little."""
        unused = (self.uses == 0).nonzero()[:, 0]
        if 0 < len(unused) < self.codebook_size:
            picks = torch.multinomial(self.uses.double(), len(unused), replacement=True)
            self.codebook[unused] = jittered(self.codebook, picks)
            broadcast_(self.codebook)
        self.uses.zero_()

    @torch.no_grad()
    def after_search(self, z, indices, mask):
        chosen = (indices if mask is None else indices[mask]).reshape(-1)
        uses = torch.zeros_like(self.uses).index_add_(0, chosen, torch.ones_like(chosen))
        all_reduce_(uses)
        self.uses += uses


class SFDiVeQ(VQ):
    """Space-filling DiVeQ: z is quantized onto the polyline through consecutive codes, so every code is in
    use.

    In training each segment offers one random point, and z is moved to the nearest of them by its distances
    to the segment's two ends. Otherwise z goes to the nearest of ``segment_points`` evenly spaced points a
    segment (the paper takes any point of the segment, which has no rate in bits). Index = segment x
    segment_points + point.
    """

    def __init__(self, codebook_size=512, dim=512, noise_variance=1e-3, segment_points=16):
        super().__init__(codebook_size, dim, beta=0.0)
        if self.codebook_size < 2 or segment_points < 1 or noise_variance < 0:
            raise UserError("SF-DiVeQ needs 2 codes, 1 point a segment and a variance of 0 or more; got "
                             f"{codebook_size}, {segment_points} and {noise_variance}")
        self.num_codes, self.noise_variance, self.segment_points = self.codebook_size, noise_variance, int(segment_points)
        self.codebook_size = (self.num_codes - 1) * self.segment_points + 1
        self.axis_sizes = (self.codebook_size,)

    @torch.no_grad()
    def seed(self, vectors):
        # In the order of time: consecutive codes, which a segment joins, then lie close together.
        picks = torch.linspace(0, len(vectors) - 1, self.num_codes, device=vectors.device).long()
        self.codebook.copy_(jittered(vectors, picks))

    def quantize(self, z, mask):
        if not self.training:
            indices = self.get_indices(z)
            return Quantized(self.decode_indices(indices), indices, z.new_zeros(()))
        share = torch.rand(self.num_codes - 1, 1, device=z.device)
        with torch.no_grad():
            points = self.codebook[:-1].lerp(self.codebook[1:], share)
            segment = nearest_codes(z.detach().reshape(-1, self.dim), points).reshape(z.shape[:-1])
        share = share[segment]
        first, second = (F.embedding(segment + i, self.codebook) for i in (0, 1))
        z_q = (z + (1 - share) * step_towards(z, first, self.noise_variance)
               + share * step_towards(z, second, self.noise_variance))
        indices = (segment + share[..., 0]).mul(self.segment_points).round().long()
        return Quantized(z_q, indices, z.new_zeros(()))

    @torch.no_grad()
    def get_indices(self, z_q):
        """Index (...) of the nearest point of the polyline to each vector (..., d), among all segments."""
        flat = z_q.detach().reshape(-1, self.dim).float()
        found = [self._nearest_points(part) for part in flat.split(rows_at_a_time(4 * self.num_codes))]
        return torch.cat(found).reshape(z_q.shape[:-1]) if found else flat.new_zeros(z_q.shape[:-1]).long()

    def _nearest_points(self, flat):
        starts, along = self.codebook[:-1], self.codebook[1:] - self.codebook[:-1]
        squares = along.square().sum(1).clamp(min=1e-12)
        ahead = flat @ along.T - (starts * along).sum(1)  # (N, segments): how far z lies along each segment
        point = (ahead / squares).clamp(0, 1).mul_(self.segment_points).round_()
        share = point / self.segment_points
        distances = starts.square().sum(1) - 2 * flat @ starts.T + share * (share * squares - 2 * ahead)
        segment = distances.argmin(1)
        return segment * self.segment_points + point.gather(1, segment[:, None])[:, 0].long()

    def decode_indices(self, indices):
        """Points (..., d) of indices (...). UserError for an index outside the polyline."""
        check_range(indices, self.codebook_size, "SF-DiVeQ")
        return self.lookup(indices)

    def lookup(self, indices):
        segment = torch.div(indices, self.segment_points, rounding_mode="floor")
        share = (indices % self.segment_points / self.segment_points)[..., None]
        first = F.embedding(segment, self.codebook)
        return first.lerp(F.embedding((segment + 1).clamp(max=self.num_codes - 1), self.codebook), share)

    def neighbour(self, z_q, axis):
        """The next point along the polyline, or the previous one at its end."""
        indices = self.get_indices(z_q)
        return self.decode_indices(torch.where(indices < self.codebook_size - 1, indices + 1, indices - 1))
