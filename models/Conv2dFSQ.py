"""Behaviour codes: a window of inertial signals becomes one code (or a few), the code a behaviour, and the
code a window again.

Two-dimensional convolutions over time and channel, whose first kernel spans one triad (x, y, z) of channels,
pool the window into ``tokens`` vectors of d numbers. A quantizer turns each into a code; classifier and
decoder see nothing else. The grid is finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505).

Shapes: B windows, T samples, C channels, L tokens, d dimensions of a code, K behaviours.
"""
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from models.AE import RunningNorm, RunningWhitening
from models.FSQ import Quantized, check_levels
from models.quantizers import QUANTIZERS, make_quantizer, plan
from utils.errors import UserError

TRIAD = 3  # channels of one kind at one place
HALVINGS = 3  # of the time axis
DROPOUT = 0.2  # before the classifier's last layer
NORMS = {"whiten": RunningWhitening, "scale": RunningNorm}  # of what the quantizer sees


class BehaviorOutput(NamedTuple):
    """logits (B, K); windows (B, T, C), decoded; the quantizer's auxiliary loss (); indices (B, L), or None
    without a quantizer."""

    logits: torch.Tensor
    windows: torch.Tensor
    loss: torch.Tensor
    indices: torch.Tensor | None


class Unquantized(nn.Module):
    """The control for all quantizers: vectors of ``dim`` numbers stay as they are, and there are no codes."""

    codebook_size, axis_sizes = None, ()

    def __init__(self, dim):
        super().__init__()
        self.dim = self.target_dim = dim

    def forward(self, z, mask=None):
        return Quantized(z, None, z.new_zeros(()))

    def codes_to_latent(self, z_q):
        return z_q


def quantizer_of(name, levels, settings=None):
    """A quantizer by its name in models/quantizers.py, or "none". All have the grid's dimensions, and
    codebooks its number of codes (in each layer, where there are several)."""
    levels = check_levels(levels)
    if name == "none":
        return Unquantized(len(levels))
    family = QUANTIZERS[name].family if name in QUANTIZERS else "FSQ"
    sizes = {"levels": levels} if family == "FSQ" else {"codebook_size": math.prod(levels),
                                                        "dim": len(levels)}
    return make_quantizer(family, name, settings, **sizes)


class Conv2dFSQ(nn.Module):
    """Args:
        input_channels: C, a multiple of 3: nine per sensor.
        hidden_dim: channels of the last convolution, a multiple of 4.
        num_classes: K.
        fsq_levels: values per dimension of the grid; other quantizers take d and the number of codes from it.
        quantizer, settings: a name of models/quantizers.py, or "none", and its hyper-parameters.
        window: T, a multiple of 8 L.
        tokens: L, codes per window.
        norm: a name of NORMS.

    UserError for sizes that do not go together. Normalised windows go in and come out.
    """

    def __init__(self, input_channels=9, hidden_dim=128, num_classes=10, fsq_levels=(8, 6, 5, 5, 4),
                 quantizer="fsq", settings=None, window=128, tokens=1, norm="whiten"):
        super().__init__()
        if input_channels < TRIAD or input_channels % TRIAD:
            raise UserError(f"inertial channels come in triads x y z; {input_channels} are no multiple of 3")
        if hidden_dim < 4 or hidden_dim % 4:
            raise UserError(f"hidden_dim must be a multiple of 4; got {hidden_dim}")
        unit = tokens * 2**HALVINGS
        if window < unit or window % unit:
            raise UserError(f"a window of {window} samples cannot become {tokens} code(s): it must be a "
                            f"multiple of {unit} samples")
        self.window, self.tokens, self.input_channels = window, tokens, input_channels
        self.quantizer = quantizer_of(quantizer, fsq_levels, settings)
        widths = (1, hidden_dim // 4, hidden_dim // 2, hidden_dim)
        self.encoder = nn.ModuleList(
            nn.Conv2d(before, after, (5, TRIAD), stride=(2, 1 if number else TRIAD),
                      padding=(2, 1 if number else 0))
            for number, (before, after) in enumerate(zip(widths, widths[1:])))
        self.pre_quant = nn.Linear(hidden_dim, self.quantizer.dim)
        # else all windows begin on the grid's middle levels
        self.norm = NORMS[norm](self.quantizer.dim)
        self.post_quant = nn.Linear(self.quantizer.dim, hidden_dim)
        self.classifier = nn.Sequential(nn.Linear(tokens * hidden_dim, hidden_dim), nn.ReLU(),
                                        nn.Dropout(DROPOUT), nn.Linear(hidden_dim, num_classes))
        self.unfold = nn.Linear(hidden_dim, hidden_dim * (window // unit))
        back = (*widths[:0:-1], input_channels)
        self.decoder = nn.ModuleList(nn.Conv1d(before, after, 5, padding=2)
                                     for before, after in zip(back, back[1:]))

    def encode(self, windows):
        """Windows (B, T, C) -> z (B, L, d), not quantized, of mean 0 and spread 1 in training. UserError for
        windows of another shape."""
        if windows.shape[1:] != (self.window, self.input_channels):
            raise UserError(f"the network reads windows of {self.window} samples x {self.input_channels} "
                            f"channels, not of {windows.shape[1]} x {windows.shape[2]}")
        x = windows[:, None]
        for layer in self.encoder:
            x = F.relu(layer(x))
        x = x.mean(3).unflatten(2, (self.tokens, -1)).mean(3)  # over triads, and each token's share of time
        return self.norm(self.pre_quant(x.transpose(1, 2)))

    def plan(self, steps):
        plan(self.quantizer, steps)

    def quantize(self, windows):
        """Windows (B, T, C) -> Quantized with z_q (B, L, d) and indices (B, L) or (B, L, axes)."""
        return self.quantizer(self.encode(windows))

    def latents(self, z_q):
        """Codes (B, L, d) -> (B, L, hidden), which classifier and decoder read."""
        return F.relu(self.post_quant(self.quantizer.codes_to_latent(z_q)))

    def classify(self, z_q):
        """Codes (B, L, d) -> logits (B, K)."""
        return self.classifier(self.latents(z_q).flatten(1))

    def decode(self, z_q):
        """Codes (B, L, d) -> windows (B, T, C)."""
        x = self.unfold(self.latents(z_q))  # each token becomes its share of the time steps
        x = x.unflatten(2, (-1, self.post_quant.out_features)).flatten(1, 2).transpose(1, 2)
        for number, layer in enumerate(self.decoder):
            x = layer(F.interpolate(x if number == 0 else F.relu(x), scale_factor=2.0))
        return x.transpose(1, 2)

    def forward(self, windows):
        """Normalised windows (B, T, C) -> BehaviorOutput."""
        out = self.quantize(windows)
        return BehaviorOutput(self.classify(out.z_q), self.decode(out.z_q), out.loss, out.indices)


class Deployed(nn.Module):
    """A trained Conv2dFSQ for use without this code: windows (B, T, C) as sensors give them -> probabilities
    (B, K), and indices (B, L) where there are codes. mean, std: (C,)."""

    def __init__(self, model, mean, std):
        super().__init__()
        self.model = model.eval()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, windows):
        out = self.model.quantize((windows - self.mean) / self.std)
        probabilities = self.model.classify(out.z_q).softmax(1)
        return (probabilities,) if out.indices is None else (probabilities, out.indices)
