"""Gaussian diffusion with the cosine schedule and a noise target (Ho et al. 2020; Nichol & Dhariwal 2021,
arXiv 2102.09672). Ancestral sampling with the fixed small variance; x_0 is not clipped. Shapes: x (N, d), t
(N,) int64."""
import math

import numpy as np
import torch


def cosine_betas(num_steps, offset=0.008, largest=0.999):
    """betas (num_steps,) float64 of the squared-cosine alpha-bar."""
    kept = [math.cos((i / num_steps + offset) / (1 + offset) * math.pi / 2) ** 2
            for i in range(num_steps + 1)]
    return np.array([min(1 - after / before, largest) for before, after in zip(kept[:-1], kept[1:])])


class GaussianDiffusion:
    """Noising, training loss and ancestral sampling over ``num_steps`` steps. Tables are float64 numpy
    arrays."""

    def __init__(self, num_steps=50):
        self.num_steps = num_steps
        self.betas = cosine_betas(num_steps)
        alphas = 1 - self.betas
        self.alphas_cumprod = np.cumprod(alphas)
        before = np.append(1.0, self.alphas_cumprod[:-1])
        self.posterior_variance = self.betas * (1 - before) / (1 - self.alphas_cumprod)
        # the variance of step 0 is 0: its logarithm is that of step 1 (no noise is added there anyway)
        clipped = np.append(self.posterior_variance[1], self.posterior_variance[1:])
        self.posterior_log_variance_clipped = np.log(clipped)
        self.posterior_mean_coef1 = self.betas * np.sqrt(before) / (1 - self.alphas_cumprod)
        self.posterior_mean_coef2 = (1 - before) * np.sqrt(alphas) / (1 - self.alphas_cumprod)

    def draw_time(self, count, device, generator=None):
        """Training steps (count,), uniform in 0 .. num_steps - 1."""
        return torch.randint(self.num_steps, (count,), device=device, generator=generator)

    def training_loss(self, noise_net, x_0, t, noise):
        """Mean squared error () of the noise. ``noise_net(x_t (N, d), t (N,)) -> (N, d)``."""
        kept = torch.as_tensor(self.alphas_cumprod, device=x_0.device)[t].to(x_0.dtype)[:, None]
        return (noise_net(kept.sqrt() * x_0 + (1 - kept).sqrt() * noise, t) - noise).square().mean()

    def ancestral_step(self, noise_net, x, t, noise, temperature=1.0):
        """x_{t-1} from x_t, t an int that ``noise_net(x, t)`` gets as it is; ``noise`` (N, d) is scaled by
        ``temperature`` and left out at t = 0."""
        kept = float(self.alphas_cumprod[t])
        x_0 = math.sqrt(1 / kept) * x - math.sqrt(1 / kept - 1) * noise_net(x, t)
        mean = float(self.posterior_mean_coef1[t]) * x_0 + float(self.posterior_mean_coef2[t]) * x
        if t == 0:
            return mean
        return mean + math.exp(0.5 * float(self.posterior_log_variance_clipped[t])) * temperature * noise

    def sample(self, noise_net, noise, draw_noise, temperature=1.0):
        """The sample reached from ``noise`` (N, d); ``draw_noise() -> (N, d)`` is called once per step."""
        x = noise
        for t in reversed(range(self.num_steps)):
            x = self.ancestral_step(noise_net, x, t, draw_noise(), temperature)
        return x
