"""A head that needs 1, 2 or 4 calls of its net in place of a solver's 16 steps and two branches.

It is distilled from a trained SiT head (distill_head.py): on the solver's path it learns the average velocity
between two times, as in mean flows (Geng et al. 2025, arXiv 2505.13447), but from the teacher's own path, and
guidance is part of what it learns. Shapes: N tokens, d target dimensions, W width of the net.
"""
import torch
from torch import nn

from diffusions import flow
from models.DiffMLPs import DenoisingMLP, SiTHead, TimeEmbedding
from utils.errors import UserError

CALLS = (1, 2, 4)


class IntervalNet(DenoisingMLP):
    """A DenoisingMLP whose times are intervals (N, 2), from where x is to where it goes."""

    def __init__(self, target_dim, cond_dim, width, depth):
        super().__init__(target_dim, cond_dim, width, depth)
        self.span_embed = TimeEmbedding(width)
        nn.init.zeros_(self.span_embed.mlp[2].weight)  # before training it is the teacher
        nn.init.zeros_(self.span_embed.mlp[2].bias)

    def embed_time(self, t):
        return self.time_embed(t[:, 0]) + self.span_embed(t[:, 1] - t[:, 0])


class DistilledHead(SiTHead):
    """``distilled_cfg``: the guidance scale with which the teacher was sampled."""

    settings, guided_in_part = ("distilled_cfg",), False

    def __init__(self, target_dim, cond_dim, width, depth, prediction=None, target_scale=1.0,
                 distilled_cfg=1.0):
        super().__init__(target_dim, cond_dim, width, depth, prediction, target_scale)
        self.own_cfg = distilled_cfg

    def make_net(self, target_dim, cond_dim, width, depth):
        return IntervalNet(target_dim, cond_dim, width, depth)

    def loss(self, *_args, **_kwargs):
        raise UserError("a distilled head has no training of its own: distill_head.py trains it")

    def process_sampler(self, temperature, solver=None, ode_steps=None):
        """``ode_steps``: calls of the net, default the most that it was distilled for."""
        calls = ode_steps or max(CALLS)
        if solver is not None or calls not in CALLS:
            raise UserError("a distilled head has no solver; it takes 1, 2 or 4 steps (--ode_steps)")
        grid = flow.time_grid(calls)

        def run(net, draw_noise):
            x = draw_noise() * temperature
            for span in grid:
                x = self.step(net, x, span)
            return x

        return run, grid

    def step(self, net, x, span):
        """x (N, d) at the end of ``span`` (its start and end), from x at its start."""
        return x + (span[1] - span[0]) * flow.velocity_of(net, self.prediction, start=span[0])(x, span)

    def path_loss(self, states, z, draw):
        """How far the head's steps are from those of its teacher, mean square of the average velocity ().

        states (5, N, d): the teacher's path at the times of ``flow.time_grid(4)``, from noise to target; z
        (N, Z): conditions. ``draw`` (N,) in [0, 1) chooses each token's step among those of 1, 2 and 4
        calls, the numbers of calls equally often.
        """
        times = torch.tensor([0.0, *(end for _, end in flow.time_grid(4))], device=z.device)
        spans = torch.tensor([[0, 4]] * 4 + [[0, 2]] * 2 + [[2, 4]] * 2 + [[i, i + 1] for i in range(4)],
                             device=z.device)
        first, last = spans[(draw * len(spans)).long()].T
        token = torch.arange(len(z), device=z.device)
        x, end, t = states[first, token], states[last, token], torch.stack([times[first], times[last]], 1)
        span = (t[:, 1] - t[:, 0])[:, None]
        velocity = flow.velocity_of(lambda x, t: self.net(x, t, z), self.prediction, start=t[:, :1])(x, t)
        return (velocity - (end - x) / span).square().mean()


def teacher_path(head, z, z_uncond, noise, cfg, steps=16):
    """States (5, N, d) of a SiT head's solver from ``noise`` (N, d) at the times of ``flow.time_grid(4)``, on
    the net's scale. ``steps``: of the solver, a multiple of 4."""
    if steps % 4:
        raise UserError(f"the teacher's steps must be a multiple of 4; got {steps}")
    velocity = flow.velocity_of(head.guided(z, z_uncond, cfg), head.prediction)
    states = [noise]
    flow.adams(velocity, noise, flow.time_grid(steps), head.prediction == "x", states.append)
    return torch.stack(states[:: steps // 4])
