"""Vector quantization (van den Oord et al. 2017, arXiv 1711.00937) and its variants, with the interface of
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
JITTER = 0.01  # of the spread, between codes that start from one vector: equal codes would stay equal
EMA_FLOOR = 1e-5  # keeps unused codes from division by zero


# Processes that train together must keep the same codebook: they gather, sum or copy what changes it.


def all_gather(vectors):
    """The vectors (N, d) of every process, concatenated."""
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
    """Overwrite each with the first process's values (random draws differ between processes)."""
    for x in tensors if dist.is_initialized() else ():
        dist.broadcast(x.data, 0)


def rows_at_a_time(floats_per_row):
    return max(1, DISTANCE_BYTES // (4 * floats_per_row))


@torch.no_grad()
def nearest_codes(flat, table, count=1):
    """Indices of the codes of table (K, d) nearest to flat (N, d): (N,) or, for ``count`` > 1, (N, count)."""
    norms, found = table.square().sum(1), []
    for part in flat.split(rows_at_a_time(len(table))):
        distances = norms - 2 * part @ table.T
        found.append(distances.argmin(1) if count == 1 else distances.topk(count, largest=False).indices)
    return torch.cat(found)


def masked_mse(a, b, mask):
    """Mean squared difference of (..., d) over the vectors of the mask (...), or over all."""
    if mask is None:
        return F.mse_loss(a, b)
    return ((a - b).square().mean(-1) * mask).sum() / mask.sum().clamp(min=1)


def jittered(vectors, picks):
    """vectors[picks], each moved a little."""
    chosen = vectors[picks]
    return chosen + JITTER * vectors.std(0, unbiased=False) * torch.randn_like(chosen)


def check_fraction(name, value):
    if not 0 <= value <= 1:
        raise UserError(f"{name} must be in 0..1; got {value}")


class VQ(nn.Module):
    """Nearest of ``codebook_size`` learned codes of ``dim`` numbers, straight-through gradient, codebook loss
    + ``beta`` x commitment loss. The codebook starts from vectors of the first training batch: codes that
    start far from the data stay unused."""

    def __init__(self, codebook_size=512, dim=512, beta=0.25):
        super().__init__()
        if codebook_size < 1 or dim < 1 or codebook_size * dim > MOST_WEIGHTS:
            raise UserError("a VQ codebook has at least 1 code and 1 dimension, and at most "
                            f"{MOST_WEIGHTS} numbers; got {codebook_size} x {dim}")
        if not 0 <= beta < math.inf:
            raise UserError(f"beta is the weight of a loss, 0 or more; got {beta}")
        self.codebook_size, self.beta = int(codebook_size), beta
        self.dim = self.target_dim = int(dim)
        self.axis_sizes = (self.codebook_size,)
        start = torch.empty(self.codebook_size, self.dim).uniform_(-1, 1) / self.codebook_size
        self.codebook = nn.Parameter(start)
        self.register_buffer("seeded", torch.tensor(False))
        self.started = False  # ``seeded`` is known to be true: reading it in each step would wait for a GPU

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self.started = False  # ``seeded`` may say otherwise now

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
        """The vectors (N, d) that are not padding."""
        return (z if mask is None else z[mask]).reshape(-1, self.dim)

    def before_step(self, vectors):
        """What a training step does to the codebook before the search: here, start it from the data."""
        if self.started or not len(vectors):
            return
        if not self.seeded:
            vectors = all_gather(vectors)
            if not vectors.isfinite().all():  # a step that training leaves out (--on_nan skip)
                return
            self.seed(vectors)
            broadcast_(self.codebook)
            self.seeded.fill_(True)
        self.started = True

    @torch.no_grad()
    def seed(self, vectors):
        """Start the codes from vectors (N, d)."""
        picks = torch.randint(len(vectors), (self.codebook_size,), device=vectors.device)
        self.codebook.copy_(jittered(vectors, picks))

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
        """What a training step records about the codes that it chose."""

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
        """Codes (..., target_dim) -> the decoder's input (..., dim)."""
        return z_q

    def to_digits(self, indices):
        """Indices -> (..., axes); here the only axis is the codebook."""
        return indices[..., None]

    unpack = to_digits

    def neighbour(self, z_q, axis):
        """Codes (..., d) -> the nearest other code of each (the same, if there is no other)."""
        table, own = self.codes(), self.get_indices(z_q).flatten()
        if len(table) == 1:
            return z_q
        first, second = nearest_codes(F.embedding(own, table), table, count=2).unbind(1)
        return F.embedding(torch.where(first == own, second, first), table).reshape(z_q.shape)


class RotationVQ(VQ):
    """The rotation trick (Fifty et al. 2024, arXiv 2410.06424): z gets the gradient of the rotation and
    scaling that take it to its code, so the gradient keeps its angle to the code."""

    def pass_gradient(self, z, codes):
        codes = codes.detach()
        with torch.no_grad():
            z_norm, code_norm = (x.norm(dim=-1, keepdim=True).clamp(min=1e-6) for x in (z, codes))
            from_dir, to_dir = z / z_norm, codes / code_norm
            w = F.normalize(from_dir + to_dir, dim=-1)
        reflected = z - 2 * (z * w).sum(-1, keepdim=True) * w
        rotated = reflected + 2 * (z * from_dir).sum(-1, keepdim=True) * to_dir
        moved = rotated * (code_norm / z_norm)
        return codes + (moved - moved.detach())  # exactly the code; ``moved`` equals it up to rounding


class SimVQ(VQ):
    """SimVQ (Zhu et al. 2024, arXiv 2411.02038): codes are a learned linear map of frozen random vectors, so
    each step moves all of them, unused ones too."""

    def __init__(self, codebook_size=512, dim=512, beta=0.25):
        super().__init__(codebook_size, dim, beta)
        del self.codebook
        self.register_buffer("codebook", torch.randn(self.codebook_size, self.dim) * self.dim**-0.5)
        self.transform = nn.Linear(self.dim, self.dim, bias=False)
        self.seeded.fill_(True)  # by the map's own initialisation

    def codes(self):
        return self.transform(self.codebook)


class EMAVQ(VQ):
    """Each code follows the mean, with ``decay``, of the vectors that choose it (VQ-VAE-2, arXiv 1906.00446);
    only the commitment loss has a gradient. Every ``reseed_every`` steps (0 = never) dead codes, whose
    running count is under ``dead_below`` of the mean, restart from the batch (Jukebox, arXiv 2005.00341)."""

    def __init__(self, codebook_size=512, dim=512, beta=0.25, decay=0.99, reseed_every=20, dead_below=0.1):
        super().__init__(codebook_size, dim, beta)
        check_fraction("EMA decay", decay)
        if reseed_every < 0 or not dead_below >= 0:
            raise UserError("reseed_every and dead_below must be 0 or more; "
                            f"got {reseed_every} and {dead_below}")
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
        """Replace dead codes with different vectors of the batch, and give them the mean count."""
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
    """Residual VQ (SoundStream, arXiv 2107.03312; MoMask, arXiv 2312.00063): each layer, an EMAVQ, quantizes
    the residual of the layers before it.

    A sum of codes does not identify its codes, so ``z_q`` is the codes of all layers side by side, (...,
    layers x d), and ``codes_to_latent`` adds them for the decoder. Stage two predicts them side by side, and
    snapping is exact, layer by layer. Indices are (..., layers).

    ``num_layers`` are trained; outside training ``use_layers`` of them are used (0 = all). ``layer_dropout``:
    fraction of training steps with a random number of layers, so that the first ones also work alone.
    """

    def __init__(self, codebook_size=512, dim=64, beta=0.25, num_layers=6, use_layers=0, layer_dropout=0.2,
                 decay=0.99, reseed_every=20, dead_below=0.1):
        super().__init__()
        if num_layers < 1 or not 0 <= use_layers <= num_layers:
            raise UserError(f"RVQ needs at least 1 layer, and cannot use {use_layers} of {num_layers}")
        check_fraction("layer_dropout", layer_dropout)
        self.layers = nn.ModuleList(EMAVQ(codebook_size, dim, beta, decay, reseed_every, dead_below)
                                    for _ in range(num_layers))
        self.use_layers, self.layer_dropout = use_layers or num_layers, layer_dropout
        self.part = int(dim)  # numbers of z_q that belong to a layer
        self.dim, self.target_dim = int(dim), int(dim) * self.use_layers
        self.axis_sizes = (int(codebook_size),) * self.use_layers
        self.codebook_size = math.prod(self.axis_sizes)

    def forward(self, z, mask=None):
        """z (..., d) -> Quantized(z_q (..., layers x d), indices (..., layers), loss ()). Layers that a
        training step leaves out have index -1 and code 0."""
        left = z = z.float()
        codes, indices, losses = [], [], []
        for layer in self.layers[: self.draw_count()]:
            out = layer(left, mask)
            codes.append(out.z_q.detach())
            indices.append(out.indices)
            losses.append(out.loss)
            left = left - codes[-1]
        codes[0] = codes[0] + (z - z.detach())  # the decoder adds the codes, so one carries the gradient of z
        absent = len(self.layers) - len(codes) if self.training else 0
        codes += [torch.zeros_like(z)] * absent
        indices += [torch.full_like(indices[0], -1)] * absent
        return Quantized(torch.cat(codes, -1), torch.stack(indices, -1), torch.stack(losses).mean())

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
        return reduce(z_q, "... (layers d) -> ... d", "sum", d=self.dim)

    def _by_layer(self, verb, x):
        """``verb`` of each layer on its part of x (..., layers x d)."""
        return [getattr(layer, verb)(part) for layer, part in zip(self.layers, x.split(self.part, -1))]

    def get_indices(self, z_q):
        return torch.stack(self._by_layer("get_indices", z_q), -1)

    def decode_indices(self, indices):
        """Indices (..., layers) -> codes (..., layers x d). UserError for an index outside a codebook."""
        pairs = zip(self.layers, indices.unbind(-1))
        return torch.cat([layer.decode_indices(part) for layer, part in pairs], -1)

    def snap(self, x):
        return torch.cat(self._by_layer("snap", x), -1)

    def to_digits(self, indices):
        return indices

    unpack = to_digits

    def neighbour(self, z_q, axis):
        """Codes with that of layer ``axis`` replaced with its nearest other code."""
        parts = list(z_q.split(self.part, -1))
        parts[axis] = self.layers[axis].neighbour(parts[axis], 0)
        return torch.cat(parts, -1)


class ProductVQ(RVQ):
    """Product quantization (Jegou et al. 2011, IEEE TPAMI 33): z is cut into ``groups`` parts of equally many
    dimensions, and each part has a codebook of its own, an EMAVQ. Indices are (..., groups)."""

    def __init__(self, codebook_size=512, dim=512, beta=0.25, groups=4, decay=0.99, reseed_every=20,
                 dead_below=0.1):
        if groups < 1 or dim % groups:
            raise UserError("pq cuts codes into groups of equally many dimensions; "
                            f"{dim} dimensions are no multiple of groups={groups}")
        super().__init__(codebook_size, dim // groups, beta, groups, 0, 0.0, decay, reseed_every, dead_below)
        self.dim = self.target_dim = int(dim)

    def forward(self, z, mask=None):
        """z (..., d) -> Quantized(z_q (..., d), indices (..., groups), loss ())."""
        if z.shape[-1] != self.dim:
            raise UserError(f"VQ of {self.dim} dimensions got vectors of {z.shape[-1]}")
        parts = zip(self.layers, z.float().split(self.part, -1))
        z_q, indices, losses = zip(*(layer(part, mask) for layer, part in parts))
        return Quantized(torch.cat(z_q, -1), torch.stack(indices, -1), torch.stack(losses).mean())

    def codes_to_latent(self, z_q):
        return z_q
