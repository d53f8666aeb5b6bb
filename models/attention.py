"""Attention, of the transformer and of the head across frames, and the packing of tokens around it."""
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


class Attention(nn.Module):
    """Multi-head attention of x (B, L, Z), or its tokens in a Packing, to itself or to ``source`` (B, W, Z).
    padding_mask (B, L or W; true = padding) is of what is attended to; (B, L, L or W) says it for each token
    of x."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.key, self.query, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.proj_dropout = nn.Dropout(dropout)

    def forward(self, x, padding_mask, source=None, packing=None):
        query, key, value = (self.query(x), self.key(x if source is None else source),
                             self.value(x if source is None else source))
        if packing is not None:
            query = packing.unpack(query)
            key, value = (packing.unpack(y) if source is None else y for y in (key, value))
        query, key, value = (rearrange(y, "b l (heads c) -> b heads l c", heads=self.heads)
                             for y in (query, key, value))
        allowed = ~(padding_mask[:, None] if padding_mask.ndim == 2 else padding_mask)[:, None]
        y = self.attend(query, key, value, allowed, self.dropout if self.training else 0.0)
        y = rearrange(y, "b heads l c -> b l (heads c)")
        return self.proj_dropout(self.proj(y if packing is None else packing.pack(y)))

    @staticmethod
    def attend(query, key, value, allowed, dropout):
        """Attention (B, heads, L, C) of query to key and value, where ``allowed`` (B, 1, L or 1, W)."""
        # fused attention on a CPU in bfloat16: its backward pass is several times slower than matrix products
        if query.requires_grad and query.dtype == torch.bfloat16 and query.device.type == "cpu":
            bias = torch.zeros(allowed.shape, dtype=query.dtype).masked_fill(~allowed, -torch.inf)
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + bias
            return F.dropout(scores.float().softmax(-1), dropout).to(value.dtype) @ value
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
