"""Linear-path flow matching with a velocity target ("SiT", Ma et al. 2024, arXiv 2401.08740).

x_t = t x_1 + (1 - t) x_0 with x_1 the data and x_0 noise; the net learns velocity = x_1 - x_0. Sampling integrates
dx/dt = velocity from t = 0 to t = 1. Shapes: x (N, d), t (N,).
"""
import torch
from torchdiffeq import odeint

SOLVERS = ("euler", "midpoint", "heun", "dopri5")


def draw_time(count, device, generator=None):
    """Training times (count,), uniform in [0, 1)."""
    return torch.rand(count, device=device, generator=generator)


def training_loss(velocity_net, x_1, t, noise):
    """Mean squared error of the velocity. ``velocity_net(x_t (N, d), t (N,)) -> (N, d)``; returns ()."""
    along = t[:, None]
    x_t = along * x_1 + (1 - along) * noise
    return (velocity_net(x_t, t) - (x_1 - noise)).square().mean()


def integrate(velocity_net, noise, solver="euler", steps=20, rtol=1e-3, atol=1e-6):
    """The sample reached from ``noise`` (N, d). ``steps`` counts the intervals of a fixed-step solver;
    rtol and atol belong to dopri5, whose step size couples the rows of a batch (a fixed step does not)."""
    if solver == "dopri5":
        ends = torch.tensor([0.0, 1.0], device=noise.device, dtype=noise.dtype)
        return odeint(lambda t, x: velocity_net(x, t), noise, ends, method="dopri5", rtol=rtol, atol=atol)[-1]
    step = {"euler": euler_step, "midpoint": midpoint_step, "heun": heun_step}[solver]
    times = torch.linspace(0, 1, steps + 1).tolist()
    x = noise
    for t, t_next in zip(times[:-1], times[1:]):
        x = step(velocity_net, x, t, t_next - t)
    return x


def euler_step(net, x, t, h):
    return x + h * net(x, t)


def midpoint_step(net, x, t, h):
    return x + h * net(x + h / 2 * net(x, t), t + h / 2)


def heun_step(net, x, t, h):
    here = net(x, t)
    return x + h / 2 * (here + net(x + h * here, t + h))
