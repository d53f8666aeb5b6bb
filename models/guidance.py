"""Generation towards a goal that a function of the motion measures, such as a path on the floor.

A clip is generated freely, and its targets then go down the gradient of the goal's loss, through the
decoder. That alone bends the motion; so every other token is generated again between its neighbours, which
makes steps of what was bent, and the rest of the way is gone down again.

Shapes: B clips of one length, T frames, L = T / 4 tokens, D features, d width of a target.
"""
import torch

from models.AE import UNIT
from models.pipeline import clip_seed

STEPS = (25, 25, 50)  # of descent in each round; between two rounds tokens are generated again
STEP = 0.08  # learning rate of Adam, in standard deviations of a clip's targets
BETAS = (0.9, 0.999)  # of Adam
NEAR = 0.007  # weight of the mean squared distance from what was sampled, in variances
AGAIN = 3  # generation between known neighbours takes this part of the iterations


@torch.no_grad()
def generate_towards(pipeline, goal, cond, frames, seeds, **settings):
    """The goal, and un-normalised features, a list of (T, D) CPU tensors, of one clip per seed with
    conditions (B, C), a TextCondition or None. frames: of each clip, a multiple of 4. settings:
    SamplerSettings.

    goal: class or function of the un-normalised features (B, T, D) of the free clips, which gives an object
    whose ``loss``, (features (B, T, D)) -> (B,), is differentiable and small against 1 where the goal is met.
    The last descent leaves the grid, since snapped targets miss the goal, so there are no codes."""
    ae, generator, cache = pipeline.ae, pipeline.generator, {}
    lengths = torch.full((len(seeds),), frames // UNIT)

    def features(targets):
        return ae.decode_targets(targets) * pipeline.std + pipeline.mean

    def generate(seeds, **more):
        return generator.generate(ae, cond, lengths, seeds, weight_cache=cache, **settings | more)

    cond = None if cond is None else cond.to(pipeline.device)
    targets = generate(seeds)
    goal = goal(features(targets))
    fewer = max(settings.get("time_steps", 18) // AGAIN, 1)
    for round_, steps in enumerate(STEPS):
        if round_:
            keep = (torch.arange(frames // UNIT, device=pipeline.device) + round_) % 2 == 0
            targets = generate([clip_seed(seed, "again", round_) for seed in seeds], time_steps=fewer,
                               known=(ae.snap(targets), keep.expand(len(seeds), -1)))
        targets = descend(lambda points: goal.loss(features(points)), targets, steps)
    return goal, pipeline.decode(targets, lengths * UNIT)


def descend(loss, targets, steps):
    """Targets (B, L, d), moved down the gradient of ``loss``: (B, L, d) -> (B,), by Adam (written out:
    the import of torch's takes seconds). A clip does not depend on the others."""
    spread = targets.std((1, 2), keepdim=True).clamp(min=1e-6)
    moved, mean, square = (torch.zeros_like(targets) for _ in range(3))
    for i in range(1, steps + 1):
        with torch.enable_grad():
            moved.requires_grad_()
            total = (loss(targets + spread * moved) + NEAR * moved.square().mean((1, 2))).sum()
            gradient, = torch.autograd.grad(total, [moved])
        mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
        square = BETAS[1] * square + (1 - BETAS[1]) * gradient.square()
        step = mean / (1 - BETAS[0] ** i) / ((square / (1 - BETAS[1] ** i)).sqrt() + 1e-8)
        moved = moved.detach() - STEP * step
    return targets + spread * moved
