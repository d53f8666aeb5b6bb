"""Attention, of the transformer and of the head across frames."""
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class Attention(nn.Module):
    """Multi-head attention of x (B, L, Z) to itself, or to ``source`` (B, W, Z). padding_mask (B, L or W;
    true = padding) is of what is attended to; (B, L, L or W) says it for each token of x."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.key, self.query, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.proj_dropout = nn.Dropout(dropout)

    def forward(self, x, padding_mask, source=None):
        source = x if source is None else source
        query, key, value = (rearrange(y, "b l (heads c) -> b heads l c", heads=self.heads)
                             for y in (self.query(x), self.key(source), self.value(source)))
        allowed = ~(padding_mask[:, None] if padding_mask.ndim == 2 else padding_mask)[:, None]
        # fused attention on a CPU in bfloat16: its backward pass is several times slower than matrix products
        plain = query.requires_grad and query.dtype == torch.bfloat16 and query.device.type == "cpu"
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            y = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed,
                                               dropout_p=self.dropout if self.training else 0.0)
        return self.proj_dropout(self.proj(rearrange(y, "b heads l c -> b l (heads c)")))
