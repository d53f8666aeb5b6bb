"""Linear-path flow matching ("SiT", Ma et al. 2024, arXiv 2401.08740).

x_t = t x_1 + (1 - t) x_0 with x_1 the data and x_0 noise. The net predicts the velocity x_1 - x_0, or x_1,
from which the velocity is (x_1 - x_t) / (1 - t) (Li and He 2025, arXiv 2511.13720). Sampling integrates dx/dt
= velocity from t = 0 to t = 1. Shapes: x (N, d), t (N,).
"""
import torch
from torchdiffeq import odeint

SOLVERS = ("adams", "euler", "midpoint", "heun", "dopri5")
# fixed steps get shorter towards the data, where a target on a grid bends the path: 1 - (1 - i / steps)^1.5
SPACING = 1.5
# smallest 1 - t by which training divides the error of a predicted x_1, and where dopri5 hands over
LEAST_LEFT = 0.05


def draw_time(count, device, generator=None):
    """Training times (count,), uniform in [0, 1)."""
    return torch.rand(count, device=device, generator=generator)


def training_loss(net, x_1, t, noise, prediction="velocity"):
    """Mean squared error () of the velocity, also where ``net(x_t (N, d), t (N,)) -> (N, d)`` predicts
    x_1."""
    return errors(net, x_1, t, noise, prediction).mean()


def errors(net, x_1, t, noise, prediction="velocity"):
    """Squared errors (..., d) of the velocity, of x_1 (..., d) at times t (...)."""
    along = t[..., None]
    x_t = along * x_1 + (1 - along) * noise
    if prediction == "x":
        return ((net(x_t, t) - x_1) / (1 - along).clamp(min=LEAST_LEFT)).square()
    return (net(x_t, t) - (x_1 - noise)).square()


def velocity_of(net, prediction="velocity", start=None):
    """The velocity as a function of x (N, d) and one time t below 1, from a net that predicts it or x_1.
    ``start``: where x is, if t is more than this time."""
    if prediction == "velocity":
        return net
    return lambda x, t: (net(x, t) - x) / (1 - (t if start is None else start))


def integrate(velocity_net, noise, solver="adams", steps=20, rtol=1e-3, atol=1e-6, jump=False):
    """The sample reached from ``noise`` (N, d). ``steps``: intervals of a fixed-step solver. rtol, atol: of
    dopri5, whose step size couples the rows of a batch (a fixed step does not). ``jump``: the last step is an
    Euler step, so the velocity is never evaluated at t = 1, where that of a predicted x_1 is 0 / 0."""
    if solver == "dopri5":
        last = 1 - LEAST_LEFT if jump else 1.0
        ends = torch.tensor([0.0, last], device=noise.device, dtype=noise.dtype)
        options = {"step_t": ends[1:]} if jump else None  # else it steps beyond the end and interpolates
        x = odeint(lambda t, x: velocity_net(x, t), noise, ends, method="dopri5", rtol=rtol, atol=atol,
                   options=options)[-1]
        return euler_step(velocity_net, x, last, 1.0) if jump else x
    if solver == "adams":
        return adams(velocity_net, noise, time_grid(steps), jump)
    step = {"euler": euler_step, "midpoint": midpoint_step, "heun": heun_step}[solver]
    x = noise
    for t, t_next in time_grid(steps):
        x = (euler_step if jump and t_next == 1 else step)(velocity_net, x, t, t_next)
    return x


def time_grid(steps):
    """[(t, next t)] of a fixed-step solver, from 0 to 1."""
    times = [1 - (1 - i / steps) ** SPACING for i in range(steps + 1)]
    return list(zip(times[:-1], times[1:]))


def adams(net, x, grid, jump=False, visit=lambda x: None):
    """The two-step Adams-Bashforth method: second order with one call per step. The first step, and the last
    one of a ``jump``, is an Euler step. ``visit`` is called with x after every step."""
    before = None
    for t, t_next in grid:
        here, h = net(x, t), t_next - t
        slope = here
        if before is not None and not (jump and t_next == 1):
            slope = here + h / (2 * before[1]) * (here - before[0])
        x, before = x + h * slope, (here, h)
        visit(x)
    return x


def times_of(solver, steps, jump=False):
    """The distinct times at which ``integrate`` evaluates the velocity, in order; [] for dopri5, which
    adapts."""
    asked = {}
    if solver != "dopri5":
        integrate(lambda x, t: asked.setdefault(t) or x, torch.zeros(1, 1), solver, steps, jump=jump)
    return list(asked)


def euler_step(net, x, t, t_next):
    return x + (t_next - t) * net(x, t)


def midpoint_step(net, x, t, t_next):
    middle = (t + t_next) / 2
    return x + (t_next - t) * net(x + (middle - t) * net(x, t), middle)


def heun_step(net, x, t, t_next):
    here = net(x, t)
    return x + (t_next - t) / 2 * (here + net(x + (t_next - t) * here, t_next))
