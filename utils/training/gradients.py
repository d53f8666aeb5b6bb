"""How much the gradients of a network vary: from batch to batch, and from draw to draw.

Variances are relative: the mean squared distance of a gradient from the true mean gradient, over the squared
length of the latter, all parameters together. At 1 the noise is as large as the mean gradient.
"""
from copy import deepcopy

import torch


class Spread:
    """Collects vectors of any length, without keeping them."""

    def __init__(self):
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, vector):
        vector = vector.double()
        self.count, self.total = self.count + 1, self.total + vector
        self.squares += float(vector.square().sum())

    def relative_variance(self):
        """Variance, summed over the numbers, over the squared length of the true mean, both estimated without
        bias: the squared length of the mean of n vectors is too large by its noise, the n-th part of the
        variance. None where the true mean is not longer than that noise, and for fewer than two vectors."""
        if self.count < 2:
            return None
        length = float((self.total / self.count).square().sum())
        variance = max(0.0, self.squares - self.count * length) / (self.count - 1)
        noise = variance / self.count
        length -= noise
        return variance / length if length > noise else None


def gradient_variance(model, loss_fn, batches, parameters):
    """Relative variances of the gradient of ``loss_fn(model, batch)`` -> () with respect to ``parameters`` of
    the model, in training mode without dropout: {"batches": from batch to batch, "draws": for the first
    batch, between as many repeats, which differ in what the model draws}. The model's weights and statistics
    are left as they were."""
    kept, training, found = deepcopy(model.state_dict()), model.training, {}
    model.train()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.eval()
    for name, chosen in (("batches", batches), ("draws", batches[:1] * len(batches))):
        spread = Spread()
        for batch in chosen:
            gradients = torch.autograd.grad(loss_fn(model, batch), parameters, allow_unused=True)
            spread.add(torch.cat([gradient.flatten() for gradient in gradients if gradient is not None]))
            model.load_state_dict(kept)  # codebooks that follow their codes, counters
        found[name] = spread.relative_variance()
    model.train(training)
    return found
