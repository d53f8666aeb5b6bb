"""The denoising net as sampling runs it: the numbers of ``DenoisingMLP`` up to rounding, in less time.

While a token is sampled its condition stands still and only x and the time change, and a solver's times are known
beforehand. So the modulations, which hold 60% of the weights, are projected for many times in one product, and weights are
read once where the plain net reads them at every step. Both guidance branches share one call. On a CPU the weights are
packed for oneDNN, which reads them at two to three times the speed when a call has few rows.

Shapes: N tokens, M = N or 2 N rows (guidance), d target dimensions, W width of the net, Z width of the transformer's output.
"""
import weakref

import torch
import torch.nn.functional as F

TABLE_BYTES = 2**28  # of the modulations that are kept at a time
PACKED_FROM = 2**18  # weights in a layer: smaller layers lie in the cache anyway, and oneDNN's calls cost more than MKL's

_packed_weights = weakref.WeakKeyDictionary()  # layer -> (state of its weight, packed weight): no part of the model


def fast_linear(layer, dtype=None):
    """A function x (..., in) -> ``layer(x)`` (..., out) of x's dtype, for inference. ``dtype`` of the product; None = the
    weights'. The weights are packed again when they have changed."""
    weight, bias = layer.weight, layer.bias
    dtype = dtype or weight.dtype
    packable = (weight.device.type == "cpu" and torch.backends.mkldnn.is_available() and weight.numel() >= PACKED_FROM
                and dtype in (torch.float32, torch.bfloat16))
    if not packable and dtype == weight.dtype:
        return layer
    state = (weight.data_ptr(), weight._version, bias.data_ptr(), bias._version, dtype)
    if _packed_weights.get(layer, (None,))[0] != state:
        lower = weight.detach().to(dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(lower) if packable else lower
        _packed_weights[layer] = state, packed, bias.detach().to(dtype)
    _, packed, bias = _packed_weights[layer]
    if packable:
        return lambda x: torch.ops.mkldnn._linear_pointwise(x.to(dtype), packed, bias, "none", [], "").to(x.dtype)
    return lambda x: F.linear(x.to(dtype), packed, bias).to(x.dtype)


class FastNet:
    """The denoising net for one solver.

    Args:
        net: DenoisingMLP.
        times: the times at which the solver will ask, in order; empty when it chooses them itself (dopri5).
        dtype: of the products, None = the weights'; bfloat16 halves what is read.
    """

    def __init__(self, net, times, dtype=None):
        self.net, self.times = net, list(times)
        self.cond_embed, self.input_proj = fast_linear(net.cond_embed, dtype), fast_linear(net.input_proj, dtype)
        layers = [*net.res_blocks, net.final_layer]
        self.projections = [fast_linear(layer.adaLN_modulation[1], dtype) for layer in layers]
        self.mlps = [(fast_linear(block.mlp[0], dtype), fast_linear(block.mlp[2], dtype)) for block in net.res_blocks]
        self.output = fast_linear(net.final_layer.linear, dtype)
        self.row_bytes = 4 * sum(layer.adaLN_modulation[1].out_features for layer in layers)
        self.embedded = self._embed(self.times)

    def _embed(self, times):
        """Time embeddings {t: (W,)}."""
        if not times:
            return {}
        device = self.net.cond_embed.weight.device
        return dict(zip(times, self.net.time_embed(torch.tensor(times, device=device))))

    def guided(self, z, z_uncond, cfg):
        """x (N, d), t () -> (N, d) as ``DiffHead.guided`` gives it, for these conditions (N, Z)."""
        if z_uncond is None or cfg == 1:
            return _Conditioned(self, z)
        net = _Conditioned(self, torch.cat([z, z_uncond]))

        def guide(x, t):
            cond, uncond = net(x, t).chunk(2)
            return uncond + cfg * (cond - uncond)

        return guide


class _Conditioned:
    """A FastNet under fixed conditions (M, Z), as a function of x (N, d) and one time -> (M, d)."""

    def __init__(self, fast, conditions):
        self.fast, self.base = fast, fast.cond_embed(conditions)
        self.group = max(1, TABLE_BYTES // (fast.row_bytes * len(conditions)))
        self.known = {}  # t -> modulations of every layer

    def modulations(self, t):
        """Of every layer (M, 3 W), the last (M, 2 W), at time t; those of the times that follow are made with it."""
        if t not in self.known:
            self.known = {}  # freed before the next ones are made
            times, embedded = self.fast.times, self.fast.embedded
            if t in embedded:
                place = times.index(t)
                ahead = times[place : place + self.group]
            else:
                ahead, embedded = [t], self.fast._embed([t])
            y = F.silu(self.base + torch.stack([embedded[time] for time in ahead])[:, None])  # (times, M, W)
            parts = [project(y) for project in self.fast.projections]
            self.known = {time: [part[k] for part in parts] for k, time in enumerate(ahead)}
        return self.known[t]

    def __call__(self, x, t):
        fast, net = self.fast, self.fast.net
        *blocks, final = self.modulations(float(t) if isinstance(t, torch.Tensor) else t)
        x = fast.input_proj(x)
        x = x.repeat(len(self.base) // len(x), 1)  # both guidance branches start from the same x
        for block, (first, second), modulation in zip(net.res_blocks, fast.mlps, blocks):
            shift, scale, gate = modulation.chunk(3, dim=-1)
            hidden = torch.addcmul(shift, block.in_ln(x), 1 + scale)
            x = torch.addcmul(x, gate, second(F.silu(first(hidden))))
        shift, scale = final.chunk(2, dim=-1)
        return fast.output(torch.addcmul(shift, net.final_layer.norm_final(x), 1 + scale))
