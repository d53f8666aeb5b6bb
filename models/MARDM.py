"""Stage two: the masked transformer with a per-token diffusion head (MARDM, Meng et al., CVPR 2025, arXiv
2411.16575), over latents of a continuous autoencoder or codes of a quantized one ("denoising to the grid"),
and its autoregressive control, the same transformer with tokens in order (GPT).

Shapes: B clips, L tokens, C latent width of the autoencoder, d width of a target, Z width of the transformer.
"""
import math
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from models.attention import Attention, Cache, Packing
from models.DiffMLPs import HEAD_SIZES, modulate
from models.generation import (
    SamplerSettings,
    check_fills_in,
    generate,
    generate_in_order,
    padding_mask_of,
)
from models.heads import HEADS, HEADS_IN_ORDER, HEADS_OF_ALL, HEADS_OF_GRIDS
from utils.errors import UserError
from utils.text_condition import drop

MOST_WORDS = 256  # tokens of a text that any encoder reads
NOISED, MASKED = 0.10, 0.88  # fraction of masked tokens replaced by noise; of the rest, by the mask token


class PositionalEncoding(nn.Module):
    """Sinusoidal positions, even sine and odd cosine, added unscaled to (B, L, Z)."""

    def __init__(self, width, dropout, max_len=5000):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        position = torch.arange(max_len, dtype=torch.float32)[:, None]
        rates = torch.exp(torch.arange(0, width, 2).float() * (-math.log(10000.0) / width))
        pe = torch.zeros(max_len, 1, width)
        pe[:, 0, 0::2], pe[:, 0, 1::2] = torch.sin(position * rates), torch.cos(position * rates)
        self.register_buffer("pe", pe)

    def forward(self, x, padding_mask=None, first=0):
        """With a ``padding_mask`` (B, L; true = padding) positions from each clip's end are added too, their
        channels in reverse order: a motion depends on what remains as much as on what came before.
        ``first``: the place of x's first token in the clips, if x is a part of them."""
        places = slice(first, first + x.shape[1])
        x = x + self.pe[places, 0]
        if padding_mask is not None:
            left = (~padding_mask).flip(1).long().cumsum(1).flip(1) - 1  # tokens that follow; -1: padding
            x = x + self.pe[left[:, places].clamp(min=0), 0].flip(-1)
        return self.dropout(x)


class MLP(nn.Module):
    def __init__(self, width, hidden, dropout):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x), approximate="tanh"))))


class MARTransBlock(nn.Module):
    """Transformer block whose norms and residuals are modulated by the condition (adaLN-zero, as in DiT).
    ``words``: whether it reads the words of a sentence too, between attention and MLP."""

    def __init__(self, width, heads, hidden, dropout, words=False):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(width, heads, dropout)
        self.mlp = MLP(width, hidden, dropout)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.norm_words = nn.LayerNorm(width, eps=1e-6) if words else None
        self.attn_words = Attention(width, heads, dropout) if words else None

    def forward(self, x, condition, hidden, packing, cache=None):
        """x: tokens (B, L, Z) in a ``packing``. condition: of ``MARDM.read_condition``. hidden (B, L), or
        (B, L, L) for each token of x: the tokens that it does not attend to."""
        cond, words, words_mask = condition
        modulations = packing.spread(self.adaLN_modulation(cond)).chunk(6, dim=-1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulations
        normed = modulate(self.norm1(x), shift_a, scale_a)
        x = x + gate_a * self.attn(normed, hidden, packing=packing, cache=cache)
        if self.attn_words is not None:
            x = x + self.attn_words(self.norm_words(x), ~words_mask, words, packing, cache)
        return x + gate_m * self.mlp(modulate(self.norm2(x), shift_m, scale_m))


@dataclass(frozen=True)
class MARDMSettings:
    """What a MARDM is built from; checkpoints keep them as ``model_kwargs``."""

    ae_dim: int = 512  # C, width of the autoencoder's latents, the transformer's input
    cond_mode: str = "text"  # features (B, cond_dim); or "action", one-hot (B, num_actions); or "uncond"
    target_dim: int | None = None  # d, width of the head's output; None = ae_dim (continuous autoencoder)
    head: str = "SiT"  # a name of HEADS
    cond_dim: int = 512  # width of the text features (CLIP 512, MiniLM 384)
    num_actions: int = 1
    width: int = 1024  # of the transformer, as are ff, layers, heads and dropout
    ff: int = 4096
    layers: int = 1
    heads: int = 16
    dropout: float = 0.2
    head_width: int = 1792
    head_depth: int = 16
    cond_drop_prob: float = 0.1  # probability with which training drops a condition, for guidance
    diffmlps_batch_mul: int = 4  # (noise, time) pairs per masked token and training step
    count_from_end: bool = False  # add positions from the clip's end; the published models have none
    prediction: str | None = None  # "velocity" or "x" (SiT), "noise" (DDPM); None = the first of the head's
    target_scale: float = 1.0  # see DiffHead
    # E, width of the states of a sentence's words; 0 = the pooled text feature alone is read
    word_dim: int = 0
    word_drop_prob: float = 0.0  # probability with which training leaves out a word
    word_positions: bool = False  # tell the words' order, which the text encoder's states hardly do
    grid: tuple | None = None  # of a categorical head: the values of every dimension of the grid, ascending
    distilled_cfg: float | None = None  # of a distilled head: the guidance scale that it has learned


class MARDM(nn.Module):
    """Masked transformer + diffusion head. ``settings``: those of MARDMSettings. ``fills_in``: whether it can
    generate tokens around given ones."""

    fills_in = True

    def __init__(self, **settings):
        super().__init__()
        s = MARDMSettings(**settings)
        if s.cond_mode not in ("text", "action", "uncond"):
            raise UserError(f"unknown cond_mode '{s.cond_mode}'; one of text, action, uncond")
        self.ae_dim, self.width, self.cond_mode = s.ae_dim, s.width, s.cond_mode
        self.target_dim = s.target_dim or s.ae_dim
        self.count_from_end = s.count_from_end
        self.cond_drop_prob, self.diffmlps_batch_mul = s.cond_drop_prob, s.diffmlps_batch_mul
        self.cond_dim = {"text": s.cond_dim, "action": s.num_actions, "uncond": s.width}[s.cond_mode]
        self.mask_latent = nn.Parameter(torch.zeros(1, 1, s.ae_dim))
        self.input_process = nn.Sequential(OrderedDict(poseEmbedding=nn.Linear(s.ae_dim, s.width)))
        self.position_enc = PositionalEncoding(s.width, s.dropout)
        self.text_cond = "tokens" if s.word_dim else "pooled"
        self.word_drop_prob, self.word_positions = s.word_drop_prob, s.word_positions
        self.MARTransformer = nn.ModuleList(MARTransBlock(s.width, s.heads, s.ff, s.dropout, s.word_dim > 0)
                                            for _ in range(s.layers))
        self.cond_emb = nn.Identity() if s.cond_mode == "uncond" else nn.Linear(self.cond_dim, s.width)
        if s.word_dim:
            self.word_emb = nn.Linear(s.word_dim, s.width)
            # all that is left when words are dropped
            self.no_words = nn.Parameter(torch.zeros(1, 1, s.width))
        self._init_weights()
        head = HEADS[s.head]
        self.DiffMLPs = head(self.target_dim, s.width, s.head_width, s.head_depth, s.prediction,
                             s.target_scale, **{name: getattr(s, name) for name in head.settings})

    def _init_weights(self):
        # 1 / sqrt(inputs): unscaled positions must not drown the tokens of narrow models
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.mask_latent, std=0.02)
        for block in self.MARTransformer:  # adaLN-zero
            nn.init.zeros_(block.adaLN_modulation[1].weight)
            if block.attn_words is not None:  # so that training begins as with the pooled feature alone
                nn.init.zeros_(block.attn_words.proj.weight)

    def forward(self, latents, cond, padding_mask, force_mask=False, mask=None):
        """latents (B, L, C), cond (B, cond_dim; a TextCondition for ``text_cond`` "tokens"; ignored when
        unconditional), padding_mask (B, L; true = padding) -> (B, L, Z). ``force_mask`` drops the condition.
        ``mask`` (B, L) moves known tokens before masked ones inside ("hard pseudo reorder"); attention does
        not depend on the order, so only rounding changes."""
        condition = self.read_condition(cond, latents, force_mask)
        x = self.position_enc(self.input_process(latents), padding_mask if self.count_from_end else None)
        if mask is not None:
            order = mask.long().argsort(dim=1, stable=True)
            x, padding_mask = _reorder(x, order), padding_mask.gather(1, order)
        x = self.transform(x, condition, padding_mask, padding_mask)
        return x if mask is None else _reorder(x, order.argsort(dim=1))

    def read_condition(self, cond, latents, force_mask=False):
        """What the blocks read of a condition: (B, Z), and words (B, W, Z) and their mask (B, W; true = a
        word), or None. ``latents`` (B, ...); ``force_mask``: see ``forward``."""
        words = words_mask = None
        if self.text_cond == "tokens":
            cond = drop(cond, cond.mask.new_zeros(len(cond), 1)) if force_mask else cond
            words = self.word_emb(cond.words)
            words = words + self.position_enc.pe[: words.shape[1], 0] if self.word_positions else words
            words = torch.cat([self.no_words.expand(len(cond), -1, -1), words], 1)
            words_mask, cond = F.pad(cond.mask, (1, 0), value=True), cond.pooled
        elif force_mask or self.cond_mode == "uncond":
            cond = latents.new_zeros(len(latents), self.cond_dim)
        return self.cond_emb(cond), words, words_mask

    def transform(self, x, condition, padding_mask, hidden, cache=None):
        """x (B, L, Z) through all blocks, which leave out padding (B, L). hidden: see MARTransBlock."""
        packing = Packing(padding_mask)
        x = packing.pack(x)
        for block in self.MARTransformer:
            x = block(x, condition, hidden, packing, cache)
        return packing.unpack(x)

    def loss(self, latents, targets, cond, lengths, rows=slice(None), generator=None):
        """Mean head loss () over the tokens to predict (``hide``). latents (B, L, C), targets (B, L, d), cond
        (B, cond_dim), lengths (B,) in tokens.

        A process that holds some ``rows`` of a larger batch passes the larger batch's ``lengths``, its own
        rows of all else, and a ``generator`` in the same state as the other processes': everything is drawn
        for the whole batch. The mean of the processes' losses is then the loss of the whole batch, however
        many such tokens each has.
        """
        padding = padding_mask_of(lengths, latents.shape[1])
        mask, latents = self.hide(latents, padding, rows, generator)
        cond = self.drop_cond(cond, len(mask), rows, generator)
        z = self(latents, cond, padding[rows])
        loss = self.DiffMLPs.masked_loss(targets, z, mask, rows, self.diffmlps_batch_mul, generator)
        return loss * (len(lengths) / len(latents))

    def hide(self, latents, padding, rows=slice(None), generator=None):
        """The tokens that training predicts, (B, L) bool of the whole batch, and what the transformer reads
        in place of the latents (b, L, C) of ``rows``."""
        mask = self.draw_mask(padding, generator)
        return mask, self.corrupt(latents, mask, rows, generator)

    def drop_cond(self, cond, batch, rows=slice(None), generator=None):
        """The condition of ``rows`` of a batch; in training words are left out and conditions zeroed, with
        their probabilities."""
        if self.training and self.word_drop_prob and self.text_cond == "tokens":
            # for the longest text of any process, so that all draw alike
            draw = torch.rand(batch, MOST_WORDS, device=cond.device, generator=generator)
            cond = cond.where(draw[rows, : cond.mask.shape[1]] >= self.word_drop_prob)
        if self.cond_mode == "uncond" or not self.training or self.cond_drop_prob == 0:
            return cond
        keep = torch.rand(batch, 1, device=cond.device, generator=generator) >= self.cond_drop_prob
        return drop(cond, keep[rows])

    def draw_mask(self, padding, generator=None):
        """Training mask (B, L) bool: per clip the cosine of a uniform draw of the padded length, without
        padding; never empty for the batch as a whole."""
        batch, num_tokens = padding.shape
        ratio = torch.cos(torch.rand(batch, 1, device=padding.device, generator=generator) * math.pi * 0.5)
        count = (ratio * num_tokens).round().clamp(min=1)
        ranks = torch.rand(padding.shape, device=padding.device, generator=generator).argsort(dim=1)
        mask = (ranks < count) & ~padding
        mask[0, 0] |= ~mask.any()
        return mask

    def corrupt(self, latents, mask, rows=slice(None), generator=None):
        """Of the masked tokens of ``rows`` (latents (b, L, C); mask (B, L) of the whole batch) some become
        noise, most the mask token, and a few stay as they are."""
        draw = torch.rand(2, *mask.shape, device=mask.device, generator=generator)
        noised = mask & (draw[0] < NOISED)
        hidden = mask & ~noised & (draw[1] < MASKED)
        noise = torch.randn(*mask.shape, latents.shape[2], dtype=latents.dtype, device=mask.device,
                            generator=generator)
        latents = torch.where(noised[rows, :, None], noise[rows], latents)
        return torch.where(hidden[rows, :, None], self.mask_latent.to(latents.dtype), latents)

    def generate(self, ae, cond, lengths, seeds, known=None, progress=None, weight_cache=None, **settings):
        """Targets (B, L, d) for ``lengths`` (B,) in tokens: models/generation.py. ``settings``:
        SamplerSettings."""
        return generate(self, ae, cond, lengths, seeds, SamplerSettings(**settings), known, progress,
                        weight_cache)


class GPT(MARDM):
    """The autoregressive control: the same transformer and conditions, but tokens come in order, and each is
    predicted from those before it, as in T2M-GPT (Zhang et al. 2023, arXiv 2301.06052) and, on FSQ codes,
    ScaMo (arXiv 2412.14559). It knows a clip's length by the positions that count from the end. The head
    predicts one dimension of the grid after the other ("CatAR"), or the code's index ("Index").

    What it reads at a token's place is the latent of the token before; at the first, ``mask_latent``."""

    fills_in = False

    def forward(self, latents, cond, padding_mask, force_mask=False, cache=None):
        """As MARDM's, with latents (B, L, C) of the tokens before each. With a Cache: of the next L tokens
        only; padding_mask is that of whole clips in any case."""
        cache = Cache() if cache is None else cache
        here = slice(cache.tokens, cache.tokens + latents.shape[1])
        if cache.condition is None:
            cache.condition = self.read_condition(cond, latents, force_mask)
        x = self.position_enc(self.input_process(latents), padding_mask if self.count_from_end else None,
                              here.start)
        later = torch.ones(1, latents.shape[1], here.stop, dtype=torch.bool, device=x.device)
        cache.tokens = here.stop
        return self.transform(x, cache.condition, padding_mask[:, here], later.triu(here.start + 1), cache)

    def hide(self, latents, padding, rows=slice(None), generator=None):
        """Every token of a clip is predicted, and the one before it is read."""
        begin = self.mask_latent.to(latents.dtype).expand(len(latents), -1, -1)
        return ~padding, torch.cat([begin, latents[:, :-1]], 1)

    def generate(self, ae, cond, lengths, seeds, known=None, progress=None, weight_cache=None, **settings):
        """As MARDM's, token by token; UserError for ``known`` ones."""
        if known is not None:
            check_fills_in(self, "keeping tokens")
        return generate_in_order(self, ae, cond, lengths, seeds, SamplerSettings(**settings), progress,
                                 weight_cache)


def _reorder(x, order):
    return x.gather(1, order[..., None].expand_as(x))


# Width and number of layers of the transformer, then of the head. XL is the published model; a deep size has
# as many parameters as its namesake, but more of them in the transformer.
SIZES = {
    "S": dict(width=256, ff=1024, layers=5, heads=8, **HEAD_SIZES["S"]),
    "B": dict(width=512, ff=2048, layers=2, heads=8, **HEAD_SIZES["B"]),
    "L": dict(width=768, ff=3072, layers=2, heads=12, **HEAD_SIZES["L"]),
    "XL": dict(width=1024, ff=4096, layers=1, heads=16, **HEAD_SIZES["XL"]),
    "B-deep": dict(width=512, ff=2048, layers=5, heads=8, **HEAD_SIZES["B-deep"]),
    "L-deep": dict(width=768, ff=3072, layers=8, heads=12, **HEAD_SIZES["L-deep"]),
    "XL-deep": dict(width=1024, ff=4096, layers=11, heads=16, **HEAD_SIZES["XL-deep"]),
}
# families of generators, and the beginning of the names of the autoencoders that each is trained on
MASKED_FAMILIES = {"MARDM": "AE_Model", "FSQ-MARDM": "FSQ_AE", "VQ-MARDM": "VQ_AE"}
FAMILIES = MASKED_FAMILIES | dict.fromkeys(HEADS_IN_ORDER, "FSQ_AE")

MARDM_models = {
    f"{family}-{head}-{size}": partial(MARDM, head=head, count_from_end=family != "MARDM", **settings)
    for family in MASKED_FAMILIES
    for head in (*HEADS_OF_ALL, *(HEADS_OF_GRIDS if family == "FSQ-MARDM" else ()))
    for size, settings in SIZES.items()
}
MARDM_models |= {name.replace("VQ-", "VQ_", 1): build for name, build in MARDM_models.items()
                 if name.startswith("VQ-")}
MARDM_models |= {f"{family}-{size}": partial(GPT, head=head, count_from_end=True, **SIZES[size])
                 for family, head in HEADS_IN_ORDER.items() for size in ("S", "B", "L")}


# the earlier fork's name: as the zoo's FSQ-MARDM-*; target_dim: dimensions of the grid
FSQ_MARDM = partial(MARDM, count_from_end=True)


def family_of(ae_name):
    """The family of generators that is trained on an autoencoder of the zoo."""
    return next(family for family, kind in FAMILIES.items() if ae_name.startswith(kind))


def check_pair(model_name, ae_name):
    """UserError unless the generator's family fits the kind of autoencoder (both names of the zoo)."""
    name = model_name.replace("VQ_", "VQ-", 1)
    wanted = next(kind for family, kind in FAMILIES.items() if name.startswith(f"{family}-"))
    if not ae_name.startswith(wanted):
        raise UserError(f"{model_name} needs an autoencoder of the kind {wanted}*, not {ae_name}")
