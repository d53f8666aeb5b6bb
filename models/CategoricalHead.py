"""The controls of "denoising to the grid": heads that classify on the same grid, without diffusion.

A target is a point of the grid, one of up to K values in each of d dimensions. Shapes: N tokens, Z width of
the transformer's output.
"""
import math

import torch
import torch.nn.functional as F

from models.DiffMLPs import DenoisingMLP, DiffHead
from models.FSQ import Grid
from utils.errors import UserError

MOST_CODES = 2**17  # of one softmax: as large as the vocabularies of language models are


class CategoricalHead(DiffHead):
    """A softmax over the values of every dimension, all dimensions at once and independent of each other.

    It has the network of a diffusion head, which here reads ones and the condition, in one call per token.
    Guidance combines logits. ``grid``: for each dimension its values in ascending order.
    """

    settings, predictions, guided_in_part = ("grid",), ("logits",), False

    def __init__(self, target_dim, cond_dim, width, depth, prediction=None, target_scale=1.0, grid=None):
        if not grid or len(grid) != target_dim:
            raise UserError("a categorical head needs the grid of an FSQ autoencoder, whose targets are its "
                            "points")
        if target_scale != 1:
            raise UserError("--scale_targets: a categorical head predicts classes, which have no scale")
        self.sizes = [len(values) for values in grid]
        self.most = max(self.sizes)
        super().__init__(target_dim, cond_dim, width, depth, prediction, target_scale)
        table = torch.full((target_dim, self.most), torch.inf)
        for row, values in zip(table, grid):
            row[: len(values)] = torch.tensor(values)
        self.register_buffer("table", table, persistent=False)

    def make_net(self, target_dim, cond_dim, width, depth):
        return DenoisingMLP(target_dim * self.most, cond_dim, width, depth)

    def blank(self, count, like):
        """What the net reads (N, d K) in place of a noisy target. Not zeros: a net that begins with zero
        gates and a zero last layer would stay there, for no gradient would reach the condition."""
        return like.new_ones(count, self.table.numel())

    def digits(self, target):
        """Targets (N, d) -> the ranks (N, d) of the nearest values."""
        return (target[..., None] - self.table).abs().argmin(-1)

    def logits(self, out):
        """The net's output (N, d K) -> logits (N, d, K), -inf where a dimension has no such value."""
        return out.unflatten(-1, self.table.shape).float().masked_fill(self.table.isinf(), -torch.inf)

    def masked_loss(self, targets, z, mask, rows, pairs, generator=None):
        """As ``DiffHead.masked_loss``; without noise one pair per token says all."""
        return super().masked_loss(targets, z, mask, rows, 1, generator)

    def loss(self, target, z, t=None, noise=None, generator=None, own=None):
        """Mean cross entropy () of a dimension, in nats. t (N,): the dimensions that are trained, if they
        are trained one at a time; drawn unless given, for all M rows as in ``DiffHead.loss``."""
        count = len(target) if own is None else len(own)
        t = self.draw_dimension(count, target.device, generator) if t is None else t
        t = t if own is None else t[own]
        if not len(target):
            return self.net(self.blank(0, z), t, z).sum()
        loss = self.cross_entropy(self.digits(target), z, t)
        return loss if own is None else loss * (len(target) / count)

    def draw_dimension(self, count, device, _generator):
        return torch.zeros(count, device=device)

    def cross_entropy(self, digits, z, t):
        logits = self.logits(self.net(self.blank(len(z), z), t, z))
        return F.cross_entropy(logits.flatten(0, 1), digits.flatten())

    def process_sampler(self, temperature, **_solver_settings):
        """As in ``DiffHead``; ``temperature`` divides the logits, and 0 takes the most likely value."""
        def run(net, draw_noise):
            draw = draw_noise()
            logits = self.logits(net(self.blank(len(draw), draw), 0.0))
            return self.values(self.pick(logits, draw, temperature))

        return run, [0.0]

    def pick(self, logits, draw, temperature):
        """Digits (..., d) of logits (..., d, K), by standard normal numbers (..., d)."""
        if temperature == 0:
            return logits.argmax(-1)
        below = (logits / temperature).softmax(-1).cumsum(-1)
        uniform = torch.special.ndtr(draw)[..., None] * below[..., -1:]
        return torch.minimum((below < uniform).sum(-1), logits.isfinite().sum(-1) - 1)

    def values(self, digits):
        """Digits (N, d) -> points of the grid (N, d)."""
        return self.table.gather(1, digits.T).T


class IndexHead(CategoricalHead):
    """One softmax over all codes of the grid, as in ScaMo (Lu et al. 2025, arXiv 2412.14559): dimensions are
    drawn together, in one call. UserError for a grid of more than MOST_CODES codes."""

    def make_net(self, target_dim, cond_dim, width, depth):
        codes = math.prod(self.sizes)
        if codes > MOST_CODES:
            raise UserError(f"one index per token: this grid of {target_dim} axes has {codes:,} codes, too "
                            f"many for a softmax (at most {MOST_CODES:,}); take FSQ-GPT-S, -B or -L, which "
                            "predict one axis after the other")
        return DenoisingMLP(1, cond_dim, width, depth, codes)

    def blank(self, count, like):
        return like.new_ones(count, 1)

    def cross_entropy(self, digits, z, t):
        index = sum(digit * math.prod(self.sizes[:axis]) for axis, digit in enumerate(digits.unbind(-1)))
        return F.cross_entropy(self.net(self.blank(len(z), z), t, z).float(), index)

    def process_sampler(self, temperature, **_solver_settings):
        def run(net, draw_noise):
            draw = draw_noise()
            index = self.pick(net(self.blank(len(draw), draw), 0.0), draw[:, 0], temperature)
            return self.values(torch.stack([index // math.prod(self.sizes[:axis]) % size
                                            for axis, size in enumerate(self.sizes)], -1))

        return run, [0.0]


class AutoregressiveHead(CategoricalHead):
    """A softmax over the values of one dimension after the other, each given the values of those before it: d
    calls of the net per token. Training trains one dimension per token and pair, drawn at random."""

    masked_loss = DiffHead.masked_loss

    def draw_dimension(self, count, device, generator):
        return torch.randint(self.target_dim, (count,), device=device, generator=generator)

    def read(self, digits, t):
        """What the net reads (N, d K) for dimensions t (N,): the digits (N, d) of those before, one-hot."""
        before = torch.arange(self.target_dim, device=digits.device) < t[:, None]
        return (F.one_hot(digits, self.most) * before[..., None]).flatten(1).float()

    def cross_entropy(self, digits, z, t):
        logits = self.logits(self.net(self.read(digits, t), t, z))
        row = torch.arange(len(z), device=z.device)
        return F.cross_entropy(logits[row, t], digits[row, t])

    def process_sampler(self, temperature, **_solver_settings):
        def run(net, draw_noise):
            draw = draw_noise()
            digits = torch.zeros_like(draw, dtype=torch.long)
            for axis in range(self.target_dim):
                at = torch.full((len(draw),), axis, device=draw.device)
                logits = self.logits(net(self.read(digits, at), axis))[:, axis]
                digits[:, axis] = self.pick(logits, draw[:, axis], temperature)
            return self.values(digits)

        return run, range(self.target_dim)


def grid_of(quantizer):
    """The ``grid`` of a Grid quantizer, as plain lists. UserError for a quantizer without one."""
    if not isinstance(quantizer, Grid):
        raise UserError("a categorical head needs an autoencoder with a grid (FSQ_AE_*)")
    top = torch.tensor(quantizer.levels) - 1
    digits = torch.minimum(torch.arange(int(top.max()) + 1)[:, None], top)
    values = quantizer.values(digits.to(quantizer.top.device)).T.tolist()
    return [row[:count] for row, count in zip(values, quantizer.levels)]
