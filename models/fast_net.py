"""The denoising net for sampling: the results of ``DenoisingMLP`` up to rounding, in less time.

While a token is sampled its condition is fixed, only x and the time change, and a solver's times are known in
advance. So the modulations, which hold 60% of the weights, are projected for many times in one product, and
their weights are read once instead of at every step. Both guidance branches share one call. On a CPU the
weights are reordered for oneDNN, which then reads them faster when a call has few rows (docs/performance.md).

Shapes: N tokens, M = N or 2 N rows (guidance), d target dimensions, W width of the net, Z width of the
transformer's output.
"""
import torch
import torch.nn.functional as F

TABLE_BYTES = 2**28  # of the modulations that are kept at a time
REORDERED_FROM = 2**18  # weights per layer: smaller layers stay in the cache, where MKL's calls cost less


def fast_linear(layer, dtype=None, cache=None):
    """A function x (..., in) -> ``layer(x)`` (..., out) of x's dtype, for inference. ``dtype`` of the
    product; None = the weights'. ``cache``: a dict that keeps converted weights by layer; it must not outlive
    a change of the weights, which cannot be detected (a fused optimiser leaves no trace)."""
    weight, bias = layer.weight, layer.bias
    dtype = dtype or weight.dtype
    reordered = (weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
                 and weight.numel() >= REORDERED_FROM and dtype in (torch.float32, torch.bfloat16))
    if not reordered and dtype == weight.dtype:
        return layer
    cache = {} if cache is None else cache
    if (layer, dtype) not in cache:
        lower = weight.detach().to(dtype)
        lower = torch.ops.mkldnn._reorder_linear_weight(lower) if reordered else lower
        cache[layer, dtype] = lower, bias.detach().to(dtype)
    weight, bias = cache[layer, dtype]
    if not reordered:
        return lambda x: F.linear(x.to(dtype), weight, bias).to(x.dtype)
    linear = torch.ops.mkldnn._linear_pointwise
    return lambda x: linear(x.to(dtype), weight, bias, "none", [], "").to(x.dtype)


class FastNet:
    """The denoising net for one solver. ``times``: those of the solver's calls, in order; empty when it
    chooses them itself (dopri5). ``dtype``, ``cache``: see ``fast_linear``; bfloat16 halves what is read."""

    def __init__(self, net, times, dtype=None, cache=None):
        self.net, self.times = net, list(times)
        cache = {} if cache is None else cache

        def fast(layer):
            return fast_linear(layer, dtype, cache)

        layers = [*net.res_blocks, net.final_layer]
        self.cond_embed, self.input_proj = fast(net.cond_embed), fast(net.input_proj)
        self.output = fast(net.final_layer.linear)
        self.projections = [fast(layer.adaLN_modulation[1]) for layer in layers]
        self.mlps = [(fast(block.mlp[0]), fast(block.mlp[2])) for block in net.res_blocks]
        self.row_bytes = 4 * sum(layer.adaLN_modulation[1].out_features for layer in layers)
        self.embedded = self.embed(self.times) if self.times else {}

    def embed(self, times):
        """Time embeddings {t: (W,)}."""
        device = self.net.cond_embed.weight.device
        return dict(zip(times, self.net.embed_time(torch.tensor(times, device=device))))

    def guided(self, z, z_uncond, cfg, interval, guided_at):
        """x (N, d), t () -> (N, d) as in ``DiffHead.guided``, for these conditions (N, Z); ``guided_at``: its
        method."""
        def inside(t):
            return guided_at(t, interval)

        if z_uncond is None or cfg == 1:
            return _Conditioned(self, self.cond_embed(z), self.times)
        base = self.cond_embed(torch.cat([z, z_uncond]))
        net = _Conditioned(self, base, [t for t in self.times if inside(t)])
        alone = _Conditioned(self, base[: len(z)], [t for t in self.times if not inside(t)])

        def guide(x, t):
            if not inside(t):
                return alone(x, t)
            cond, uncond = net(x, t).chunk(2)
            return uncond + cfg * (cond - uncond)

        return guide


class _Conditioned:
    """A FastNet under fixed, embedded conditions (M, W), as a function of x (N, d) and one time -> (M, d).
    ``times``: those of the solver's calls of this function, in order."""

    def __init__(self, fast, base, times):
        self.fast, self.base, self.times = fast, base, times
        self.group = max(1, TABLE_BYTES // (fast.row_bytes * len(base)))
        self.known = {}  # t -> modulations of every layer

    def modulations(self, t):
        """Those of every layer (M, 3 W), the last (M, 2 W), at time t; the next times' are computed with
        it."""
        if t not in self.known:
            self.known = {}  # freed before the next ones are allocated
            times, embedded = self.times, self.fast.embedded
            if t in embedded:
                place = times.index(t)
                ahead = times[place : place + self.group]
            else:
                ahead, embedded = [t], self.fast.embed([t])
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
