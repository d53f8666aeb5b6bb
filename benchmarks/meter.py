"""How the benchmarks measure: seconds, the machine's matrix-product speed, and the work of a head."""
import time
from contextlib import contextmanager

import torch

from models import fast_net


def wait_for(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work, device):
    """Seconds until the device has finished ``work()``."""
    wait_for(device)
    start = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - start


@torch.no_grad()
def product_speed(device, size, dtype=torch.float32, rounds=5):
    """GFLOP/s of a square matrix product: the best of ``rounds``, and on a CPU of two libraries (torch's own
    choice, and packed weights)."""
    a, layer = torch.randn(size, size, device=device), torch.nn.Linear(size, size, device=device)
    products = [fast_net.fast_linear(layer, dtype)]
    if dtype == torch.float32:
        products.append(lambda x: x @ a)
    best = min(seconds(lambda product=product: product(a), device) for product in products
               for _ in range(rounds + 1))
    return 2 * size**3 / best / 1e9


class HeadMeter:
    """Work of a generator's head: network calls, token evaluations (with and without the condition count as
    one), floating-point operations of the matrix products that were computed, and seconds."""

    def __init__(self, model, device):
        self.model, self.device = model, device
        self.calls = self.tokens = self.operations = 0
        self.seconds = 0.0

    @contextmanager
    def __call__(self):
        """Measures what happens inside the block."""
        head, fast_guided = self.model.DiffMLPs, fast_net.FastNet.guided
        sampler, guided = head.sampler, head.guided
        head.sampler = self._timed(sampler)
        head.guided = self._counted(lambda *inputs, **_: (guided(*inputs), None))
        fast_net.FastNet.guided = self._counted(
            lambda net, *inputs, **rule: (fast_guided(net, *inputs, **rule), len(net.times)))
        try:
            yield self
        finally:
            del head.sampler, head.guided
            fast_net.FastNet.guided = fast_guided

    def _timed(self, sampler):
        def make(*args, **kwargs):
            sample = sampler(*args, **kwargs)

            def timed(*inputs):
                out = []
                self.seconds += seconds(lambda: out.append(sample(*inputs)), self.device)
                return out[0]

            return timed

        return make

    def _counted(self, make):
        net = self.model.DiffMLPs.net
        width, depth = net.cond_embed.out_features, len(net.res_blocks)
        target, cond = net.input_proj.in_features, net.cond_embed.in_features
        modulation, rest = (3 * depth + 2) * width**2, 2 * depth * width**2 + width * target

        def counted(*args, **kwargs):
            function, times = make(*args, **kwargs)
            *_, z, z_uncond, cfg, _interval = args
            rows = len(z) * (1 if z_uncond is None or cfg == 1 else 2)
            # the fast net projects modulations once per time of its solver, the plain net at every call
            self.operations += 2 * rows * (cond * width + (times or 0) * modulation)
            per_row = rest if times else rest + modulation

            def call(x, t):
                self.calls += 1
                self.tokens += len(x)
                self.operations += 2 * rows * per_row + 2 * len(x) * target * width
                return function(x, t)

            return call

        return counted
