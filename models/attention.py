"""Attention, of the transformer and of the head across frames, and the packing of tokens around it."""
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class Packing:
    """Leaves padding out of what is computed token by token: (B, L, C) tokens become (N, C), those of clips.

    padding_mask (B, L; true = padding). Without padding, and on CUDA, where counting the tokens would wait
    for the device, tokens stay (B, L, C).
    """

    def __init__(self, padding_mask):
        self.shape, self.places = padding_mask.shape, None
        if padding_mask.device.type == "cpu" and padding_mask.any():
            self.places = (~padding_mask).flatten().nonzero()[:, 0]

    def pack(self, x):
        """(B, L, C) -> (N, C)."""
        return x if self.places is None else x.flatten(0, 1).index_select(0, self.places)

    def unpack(self, x):
        """(N, C) -> (B, L, C), 0 where padding is."""
        if self.places is None:
            return x
        padded = x.new_zeros(self.shape.numel(), x.shape[1]).index_copy(0, self.places, x)
        return padded.view(*self.shape, -1)

    def spread(self, x):
        """What each clip has, (B, C), for each of its tokens: (N, C), or (B, 1, C) if nothing is packed."""
        return x[:, None] if self.places is None else x.index_select(0, self.places // self.shape[1])


@dataclass
class Cache:
    """What a transformer keeps of the ``tokens`` that it has read when it is called for the next ones:
    ``known``, key and value of each Attention, and what the condition came to."""

    tokens: int = 0
    known: dict = field(default_factory=dict)
    condition: tuple | None = None


class Attention(nn.Module):
    """Multi-head attention of x (B, L, Z), or its tokens in a Packing, to itself or to ``source`` (B, W, Z).
    padding_mask (B, L or W; true = padding) is of what is attended to; (B, L, L or W) says it for each token
    of x. With a Cache, x attends to the tokens before it too, and the source of the first call stays."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.key, self.query, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.proj_dropout = nn.Dropout(dropout)

    def forward(self, x, padding_mask, source=None, packing=None, cache=None):
        query = self.split(self.query(x), packing)
        key, value = self.key_and_value(x, source, packing, {} if cache is None else cache.known)
        allowed = ~(padding_mask[:, None] if padding_mask.ndim == 2 else padding_mask)[:, None]
        y = self.attend(query, key, value, allowed, self.dropout if self.training else 0.0)
        y = rearrange(y, "b heads l c -> b l (heads c)")
        return self.proj_dropout(self.proj(y if packing is None else packing.pack(y)))

    def split(self, y, packing):
        """(B, L, Z), or what a Packing made of it -> (B, heads, L, C)."""
        y = y if packing is None else packing.unpack(y)
        return rearrange(y, "b l (heads c) -> b heads l c", heads=self.heads)

    def key_and_value(self, x, source, packing, known):
        """Of what is attended to, each (B, heads, L or W, C); ``known``: see Cache."""
        if source is not None:
            if self not in known:
                known[self] = self.split(self.key(source), None), self.split(self.value(source), None)
            return known[self]
        new = self.split(self.key(x), packing), self.split(self.value(x), packing)
        known[self] = tuple(torch.cat(pair, 2) for pair in zip(known[self], new)) if self in known else new
        return known[self]

    @staticmethod
    def attend(query, key, value, allowed, dropout):
        """Attention (B, heads, L, C) of query to key and value, where ``allowed`` (B, 1, L or 1, W)."""
        # fused attention on a CPU in bfloat16: its backward pass is several times slower than matrix products
        if query.requires_grad and query.dtype == torch.bfloat16 and query.device.type == "cpu":
            bias = torch.zeros(allowed.shape, dtype=query.dtype).masked_fill(~allowed, -torch.inf)
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + bias
            return F.dropout(scores.float().softmax(-1), dropout).to(value.dtype) @ value
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
