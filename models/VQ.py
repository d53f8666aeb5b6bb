"""Vector quantization (van den Oord et al. 2017, arXiv 1711.00937) and its relatives, behind the interface of
models/FSQ.py.

Shapes: (..., d) vectors, K codes. No search and no softmax builds a (vectors x codes) matrix larger than
DISTANCE_BYTES. ``mask`` (...; true = a token) keeps padding out of losses and of the codebook's statistics.
"""
import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import reduce
from torch import nn

from models.FSQ import Quantized, check_range
from utils.errors import UserError

DISTANCE_BYTES = 64 * 2**20  # of a (vectors x codes) matrix that is alive at a time
MOST_WEIGHTS = 2**30  # of a codebook: 4 GB
JITTER = 0.01  # of the spread: two codes that start from one vector must not stay the same code
EMA_FLOOR = 1e-5  # keeps a code that nothing chooses from being divided by zero


# Of several processes that train together each must keep the same codebook, so what moves one is gathered
# from all.


def all_gather(vectors):
    """The vectors (N, d) of every process, one after the other."""
    if not dist.is_initialized():
        return vectors
    parts = [torch.empty_like(vectors) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, vectors.contiguous())
    return torch.cat(parts)


def all_reduce_(*tensors):
    """Sum each over the processes, in place."""
    for x in tensors if dist.is_initialized() else ():
        dist.all_reduce(x)


def broadcast_(*tensors):
    """Give each the first process' values: what was drawn at random differs between them."""
    for x in tensors if dist.is_initialized() else ():
        dist.broadcast(x.data, 0)


def rows_at_a_time(floats_per_row):
    return max(1, DISTANCE_BYTES // (4 * floats_per_row))


@torch.no_grad()
def nearest_codes(flat, table, count=1):
    """Indices (N,) of the nearest codes of flat (N, d) in table (K, d), in slices; (N, count) of the nearest
    ``count``."""
    norms = table.square().sum(1)
    found = []
    for part in flat.split(rows_at_a_time(len(table))):
        distances = norms - 2 * part @ table.T
        found.append(distances.argmin(1) if count == 1 else distances.topk(count, largest=False).indices)
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.long, device=flat.device)


def masked_mse(a, b, mask):
    """Mean squared difference of (..., d) over the vectors of the mask (...), or over all."""
    if mask is None:
        return F.mse_loss(a, b)
    return ((a - b).square().mean(-1) * mask).sum() / mask.sum().clamp(min=1)


def jittered(vectors, picks):
    """vectors[picks], each moved a little."""
    chosen = vectors[picks]
    return chosen + JITTER * vectors.std(0, unbiased=False) * torch.randn_like(chosen)


def check_share(name, value):
    if not 0 <= value <= 1:
        raise UserError(f"{name} must lie in 0..1; got {value}")


class VQ(nn.Module):
    """Nearest code of a learned codebook, straight-through gradient, codebook loss + ``beta`` x commitment
    loss.

    The codebook starts from vectors of the first training batch: codes that start far from the data are never
    used.

    Args:
        codebook_size: number of codes K (1 or more).
        dim: length d of a code.
        beta: weight of the commitment loss.
    """

    def __init__(self, codebook_size=512, dim=512, beta=0.25):
        super().__init__()
        if codebook_size < 1 or dim < 1 or codebook_size * dim > MOST_WEIGHTS:
            raise UserError(f"VQ needs a codebook of 1 code and 1 dimension at least, and {MOST_WEIGHTS} "
                            "numbers at most; "
                             f"got {codebook_size} x {dim}")
        if not 0 <= beta < math.inf:
            raise UserError(f"beta weighs a loss: 0 or more; got {beta}")
        self.codebook_size, self.beta = int(codebook_size), beta
        self.dim = self.target_dim = int(dim)
        self.axis_sizes = (self.codebook_size,)
        self.codebook = nn.Parameter(torch.empty(self.codebook_size, self.dim).uniform_(-1,
                                                                                        1) / self.codebook_size)
        self.register_buffer("seeded", torch.tensor(False))
        self.started = False  # whether ``seeded`` is known to be true: reading it in each step would wait for a GPU

    def codes(self):
        """The codebook (K, d)."""
        return self.codebook

    def forward(self, z, mask=None):
        """z (..., d) -> Quantized(z_q (..., d), indices (...), loss ())."""
        if z.shape[-1] != self.dim:
            raise UserError(f"VQ of {self.dim} dimensions got vectors of {z.shape[-1]}")
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            if self.training:
                self.before_step(self.tokens(z.detach(), mask))
            return self.quantize(z, mask)

    def tokens(self, z, mask):
        """The vectors (N, d) that are no padding."""
        return (z if mask is None else z[mask]).reshape(-1, self.dim)

    def before_step(self, vectors):
        """What a training step does to the codebook before it searches: start it from the data."""
        if self.started or not len(vectors):
            return
        if not self.seeded:
            self.seed(all_gather(vectors))
            broadcast_(self.codebook)
            self.seeded.fill_(True)
        self.started = True

    @torch.no_grad()
    def seed(self, vectors):
        """Start the codes from vectors (N, d)."""
        self.codebook.copy_(jittered(vectors, torch.randint(len(vectors), (self.codebook_size,),
                                                            device=vectors.device)))

    def quantize(self, z, mask):
        table = self.codes()
        indices = nearest_codes(z.detach().reshape(-1, self.dim), table).reshape(z.shape[:-1])
        codes = F.embedding(indices, table)
        out = Quantized(self.pass_gradient(z, codes), indices, self.loss(z, codes, mask))
        if self.training:
            self.after_search(z.detach(), indices, mask)
        return out

    def pass_gradient(self, z, codes):
        """z_q for the decoder: the codes, with the gradient of z."""
        return codes.detach() + (z - z.detach())

    def loss(self, z, codes, mask):
        return masked_mse(codes, z.detach(), mask) + self.beta * masked_mse(z, codes.detach(), mask)

    def after_search(self, z, indices, mask):
        """What a training step notes about the codes that it chose."""

    def get_indices(self, z_q):
        """Index (...) of the code nearest to each vector (..., d)."""
        return nearest_codes(z_q.detach().reshape(-1, self.dim).float(), self.codes()).reshape(z_q.shape[:-1])

    def decode_indices(self, indices):
        """Codes (..., d) of int64 indices (...). UserError for an index outside the codebook."""
        check_range(indices, self.codebook_size, "VQ")
        return self.lookup(indices)

    def lookup(self, indices):
        """``decode_indices`` without the check, which waits for a GPU."""
        return F.embedding(indices, self.codes())

    def snap(self, x):
        """The nearest code of x (..., d)."""
        with torch.autocast(x.device.type, enabled=False):
            return self.lookup(self.get_indices(x))

    def codes_to_latent(self, z_q):
        """Codes (..., target_dim) -> what the decoder reads (..., dim)."""
        return z_q

    def to_digits(self, indices):
        """Indices -> (..., axes); here the one axis is the codebook."""
        return indices.unsqueeze(-1)

    def neighbour(self, z_q, axis):
        """Codes (..., d) -> the code nearest to each but itself (itself, where the codebook has one only)."""
        table, own = self.codes(), self.get_indices(z_q).reshape(-1, 1)
        if len(table) == 1:
            return z_q
        two = nearest_codes(F.embedding(own[:, 0], table), table, count=2)
        return F.embedding(torch.where(two[:, :1] == own, two[:, 1:], two[:, :1])[:, 0],
                           table).reshape(z_q.shape)


class RotationVQ(VQ):
    """The rotation trick (Fifty et al. 2024, arXiv 2410.06424): the gradient of z is that of the rotation and
    scaling which takes z to its code, so that it keeps its angle to the code."""

    def pass_gradient(self, z, codes):
        codes = codes.detach()
        with torch.no_grad():
            z_norm, code_norm = (x.norm(dim=-1, keepdim=True).clamp(min=1e-6) for x in (z, codes))
            from_dir, to_dir = z / z_norm, codes / code_norm
            w = F.normalize(from_dir + to_dir, dim=-1)
        rotated = z - 2 * (z * w).sum(-1, keepdim=True) * w + 2 * (z * from_dir).sum(-1,
                                                                                     keepdim=True) * to_dir
        moved = rotated * (code_norm / z_norm)
        return codes + (moved - moved.detach())  # exactly the code, where the product only rounds to it


class SimVQ(VQ):
    """SimVQ (Zhu et al. 2024, arXiv 2411.02038): codes are a learned linear map of frozen random vectors, so
    that one step moves all of them, the unused ones too."""

    def __init__(self, codebook_size=512, dim=512, beta=0.25):
        super().__init__(codebook_size, dim, beta)
        del self.codebook
        self.register_buffer("codebook", torch.randn(self.codebook_size, self.dim) * self.dim**-0.5)
        self.transform = nn.Linear(self.dim, self.dim, bias=False)
        self.seeded.fill_(True)  # by the map's own initialisation

    def codes(self):
        return self.transform(self.codebook)


class EMAVQ(VQ):
    """The codebook follows the mean of the vectors that choose each code (VQ-VAE-2, arXiv 1906.00446), and
    codes that are hardly chosen start again from vectors of the batch (Jukebox, arXiv 2005.00341). Only the
    commitment loss has a gradient.

    Args:
        decay: of the running means. reseed_every: steps between two looks for dead codes, 0 = none.
        dead_below: a code is dead when its running count is below this share of the codes' mean count.
    """

    def __init__(self, codebook_size=512, dim=512, beta=0.25, decay=0.99, reseed_every=20, dead_below=0.1):
        super().__init__(codebook_size, dim, beta)
        check_share("EMA decay", decay)
        if reseed_every < 0 or not dead_below >= 0:
            raise UserError(f"re-seeding needs steps and a share of 0 or more; got {reseed_every} and "
                            f"{dead_below}")
        self.decay, self.reseed_every, self.dead_below = decay, reseed_every, dead_below
        start = self.codebook.detach().clone()
        del self.codebook
        self.register_buffer("codebook", start)
        self.register_buffer("counts", torch.ones(self.codebook_size))
        self.register_buffer("sums", start.clone())
        self.register_buffer("steps", torch.tensor(0))

    def seed(self, vectors):
        super().seed(vectors)
        broadcast_(self.codebook)
        self.counts.fill_(1.0)
        self.sums.copy_(self.codebook)

    def loss(self, z, codes, mask):
        return self.beta * masked_mse(z, codes, mask)

    @torch.no_grad()
    def before_step(self, vectors):
        super().before_step(vectors)
        self.steps += 1
        if self.reseed_every and len(vectors) and self.steps % self.reseed_every == 0:
            self.reseed(all_gather(vectors))
            broadcast_(self.codebook, self.counts, self.sums)

    @torch.no_grad()
    def reseed(self, vectors):
        """Dead codes become vectors of the batch, at most one a vector, with the mean count to live on."""
        mean = self.counts.mean()
        dead = (self.counts < self.dead_below * mean).nonzero()[:, 0]
        dead = dead[torch.randperm(len(dead), device=dead.device)[: len(vectors)]]
        self.codebook[dead] = jittered(vectors, torch.randperm(len(vectors), device=dead.device)[: len(dead)])
        self.counts[dead] = mean
        self.sums[dead] = self.codebook[dead] * mean

    @torch.no_grad()
    def after_search(self, z, indices, mask):
        vectors, chosen = self.tokens(z, mask), (indices if mask is None else indices[mask]).reshape(-1)
        # not bincount, which waits for a GPU
        counts = torch.zeros_like(self.counts).index_add_(0, chosen, vectors.new_ones(len(chosen)))
        sums = torch.zeros_like(self.sums).index_add_(0, chosen, vectors)
        all_reduce_(counts, sums)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + EMA_FLOOR) / (total + self.codebook_size * EMA_FLOOR) * total
        self.codebook.copy_(self.sums / smoothed[:, None])


class RVQ(nn.Module):
    """Residual VQ (SoundStream, arXiv 2107.03312; MoMask, arXiv 2312.00063): layer after layer quantizes what
    is left, each by EMA with re-seeding.

    A sum of codes does not tell its codes (searching it layer by layer is no inverse), so ``z_q`` holds the
    codes of all layers side by side, (..., layers x d), and ``codes_to_latent`` adds them up for the decoder. Stage two
    predicts them side by side, and snapping is exact, layer by layer. Indices are (..., layers).

    Args:
        num_layers: layers that are trained. use_layers: of these, those used outside training; 0 = all.
        layer_dropout: share of the training steps that use a random number of layers, so that the first ones
            do alone too.
    """

    def __init__(self, codebook_size=512, dim=64, beta=0.25, num_layers=6, use_layers=0, layer_dropout=0.2,
                 decay=0.99, reseed_every=20, dead_below=0.1):
        super().__init__()
        if num_layers < 1 or not 0 <= use_layers <= num_layers:
            raise UserError(f"RVQ needs 1 layer or more, and cannot use {use_layers} of {num_layers}")
        check_share("layer_dropout", layer_dropout)
        self.layers = nn.ModuleList(EMAVQ(codebook_size, dim, beta, decay, reseed_every, dead_below)
                                    for _ in range(num_layers))
        self.use_layers, self.layer_dropout = use_layers or num_layers, layer_dropout
        self.dim, self.target_dim = int(dim), int(dim) * self.use_layers
        self.axis_sizes = (int(codebook_size),) * self.use_layers
        self.codebook_size = math.prod(self.axis_sizes)

    def forward(self, z, mask=None):
        """z (..., d) -> Quantized(z_q (..., layers x d), indices (..., layers), loss ()). In training all
        layers are there; those that a step left out have index -1 and code 0."""
        z = z.float()
        parts, indices, losses = [], [], []
        left = z
        for layer in self.layers[: self.draw_count()]:
            out = layer(left, mask)
            codes = out.z_q.detach()
            # The decoder adds the parts, so one of them alone carries the gradient of z.
            parts.append(codes if parts else codes + (z - z.detach()))
            indices.append(out.indices)
            losses.append(out.loss)
            left = left - codes
        for _ in range(len(parts), len(self.layers) if self.training else 0):
            parts.append(torch.zeros_like(z))
            indices.append(torch.full_like(indices[0], -1))
        return Quantized(torch.cat(parts, -1), torch.stack(indices, -1), torch.stack(losses).mean())

    def draw_count(self):
        """How many layers this call uses."""
        if not self.training:
            return self.use_layers
        count = torch.tensor(len(self.layers))
        if torch.rand(()) < self.layer_dropout:
            count = torch.randint(1, len(self.layers) + 1, ())
        broadcast_(count)
        return int(count)

    def codes_to_latent(self, z_q):
        """Codes side by side (..., layers x d) -> their sum (..., d)."""
        return reduce(z_q, "... (layers d) -> ... d", "sum", d=self.dim)

    def _by_layer(self, verb, x):
        """``verb`` of each layer on its part of x (..., layers x d)."""
        return [getattr(layer, verb)(part) for layer, part in zip(self.layers, x.split(self.dim, -1))]

    def get_indices(self, z_q):
        """Codes side by side (..., layers x d) -> indices (..., layers)."""
        return torch.stack(self._by_layer("get_indices", z_q), -1)

    def decode_indices(self, indices):
        """Indices (..., layers) -> codes side by side (..., layers x d). UserError for an index outside a
        codebook."""
        return torch.cat([layer.decode_indices(part) for layer, part in zip(self.layers, indices.unbind(-1))],
                         -1)

    def snap(self, x):
        """The nearest codes of x (..., layers x d), layer by layer."""
        return torch.cat(self._by_layer("snap", x), -1)

    def to_digits(self, indices):
        return indices

    def neighbour(self, z_q, axis):
        """Codes whose layer ``axis`` is replaced with its nearest other code."""
        parts = list(z_q.split(self.dim, -1))
        parts[axis] = self.layers[axis].neighbour(parts[axis], 0)
        return torch.cat(parts, -1)
