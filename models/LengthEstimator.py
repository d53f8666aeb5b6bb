"""Motion lengths from text: a classifier over lengths in tokens, after Guo et al., "Generating Diverse and
Natural 3D Human Motions from Text" (CVPR 2022). Shapes: B batch, C classes."""
import math

import torch
from torch import nn

FRAMES_PER_CLASS = 4  # class c stands for c tokens of the autoencoder, 4 frames each
WORD_MEANS = 4


class LengthEstimator(nn.Module):
    """Text feature (B, input_size) -> logits (B, output_size); class c means a motion of 4 c frames.
    Parameter names are those of the released MARDM files (``output.N``). ``word_dim``: width E of the states
    of words that it reads too, from a TextCondition, in a few weighted means; 0 = none, as published."""

    def __init__(self, input_size=512, output_size=50, width=512, word_dim=0):
        super().__init__()
        self.text_cond = "tokens" if word_dim else "pooled"
        if word_dim:
            self.attend = nn.Linear(word_dim, WORD_MEANS)
        self.output = nn.Sequential(
            nn.Linear(input_size + WORD_MEANS * word_dim, width),
            nn.LayerNorm(width), nn.LeakyReLU(0.2), nn.Dropout(0.2),
            nn.Linear(width, width // 2), nn.LayerNorm(width // 2), nn.LeakyReLU(0.2), nn.Dropout(0.2),
            nn.Linear(width // 2, width // 4), nn.LayerNorm(width // 4), nn.LeakyReLU(0.2),
            nn.Linear(width // 4, output_size),
        )
        for layer in self.output:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, text):
        """text: (B, input_size), or a TextCondition for ``word_dim``."""
        if self.text_cond == "pooled":
            return self.output(text)
        weights = self.attend(text.words).masked_fill(~text.mask[..., None], -math.inf).softmax(1)
        means = torch.einsum("bwm,bwe->bme", weights, text.words).flatten(1)
        return self.output(torch.cat([text.pooled, means], 1))


class LengthTable:
    """A LengthEstimator for generators without text: logits (B, C) from the frequencies ``counts`` (A, C) of
    the training lengths, one row per action or one row in all, for one-hot actions (B, A) or ones (B, 1)."""

    def __init__(self, counts):
        self.counts = counts.float()

    def __call__(self, one_hot):
        return (one_hot @ self.counts).log()  # -inf where a length never occurred


def sample_length(logits, generator=None, min_frames=40):
    """Logits (B, C) -> lengths in frames (B,), int64 on the CPU, multiples of 4 and at least ``min_frames``.

    Draws, with a CPU ``generator``, from the middle fifth of the predicted distribution without the classes
    below ``min_frames``: that keeps some variety but leaves out lengths of motions other than the one meant.
    ValueError where every class is too short.
    """
    shortest = max(0, math.ceil(min_frames / FRAMES_PER_CLASS))
    if shortest >= logits.shape[-1]:
        longest = FRAMES_PER_CLASS * (logits.shape[-1] - 1)
        raise ValueError(f"min_frames is {min_frames}, but the estimator's longest class is {longest} frames")
    cumulative = logits.detach().float().cpu()[:, shortest:].softmax(dim=-1).cumsum(dim=-1)
    quantile = 0.4 + 0.2 * torch.rand(len(logits), 1, generator=generator)
    classes = (cumulative < quantile).sum(dim=-1).clamp(max=cumulative.shape[-1] - 1)
    return FRAMES_PER_CLASS * (classes + shortest)
