"""Which codes the batches of a training choose: for its curves, and a line where codes are dead.

Codes are counted one by one where there are few, else per axis (dimension of a grid, layer of a residual
codebook): used and dead are then sums over the axes, the perplexity is their mean.
"""
import torch

from utils.training import distributed

MOST = 2**16  # codes that are counted one by one


class CodeUse:
    """Counts of a quantizer's codes since the last curves' values (``recent``) and in this epoch."""

    def __init__(self, quantizer, device):
        self.quantizer, axes = quantizer, tuple(quantizer.axis_sizes)
        flat = len(axes) == 1 or getattr(quantizer, "has_flat_index", False)
        self.whole = flat and quantizer.codebook_size <= MOST
        self.sizes = (quantizer.codebook_size,) if self.whole else axes
        self.starts = torch.tensor([sum(self.sizes[:i]) for i in range(len(self.sizes))], device=device)
        # the last place counts what a training step left out
        self.recent = torch.zeros(sum(self.sizes) + 1, dtype=torch.int64, device=device)
        self.epoch, self.reported = self.recent.clone(), 0

    @torch.no_grad()
    def add(self, indices):
        """Count indices (...) or (..., axes) of a batch, on the device, without waiting for it."""
        digits = indices.reshape(-1, 1) if self.whole else self.quantizer.unpack(indices).flatten(0, -2)
        digits = digits[:, : len(self.sizes)]
        places = torch.where(digits < 0, len(self.recent) - 1, digits + self.starts).flatten()
        self.recent.index_add_(0, places, torch.ones_like(places))

    def tags(self):
        """{tag: number} of all processes' batches since the last call."""
        counts = distributed.sum_of(self.recent)[:-1].double().cpu()
        self.epoch += self.recent
        self.recent.zero_()
        axes = [axis / axis.sum() for axis in counts.split(self.sizes) if axis.sum() > 0]
        if not axes:
            return {}
        perplexities = [float((-axis * axis.clamp(min=1e-300).log()).sum().exp()) for axis in axes]
        found = {"Codes/used": float((counts > 0).sum()),
                 "Codes/perplexity": sum(perplexities) / len(perplexities)}
        tau = getattr(self.quantizer, "tau", None)
        if tau is None:
            return found
        return found | {"Codes/temperature": tau.item() if torch.is_tensor(tau) else tau}

    def end_epoch(self):
        """({tag: number}, line for the log or None) of the epoch that ends; the line comes when the number of
        dead codes has changed."""
        counts = distributed.sum_of(self.epoch + self.recent)[:-1]
        self.epoch.zero_()
        dead, line = int((counts == 0).sum()), None
        if dead != self.reported:
            what = "codes" if len(self.sizes) == 1 else f"codes of {len(self.sizes)} axes"
            line = f"{dead:,} of {len(counts):,} {what} were chosen by no batch of this epoch"
        self.reported = dead
        return {"Codes/dead": float(dead)}, line

    def state(self):
        """What a checkpoint keeps, of all processes."""
        recent, epoch = (distributed.sum_of(counts).cpu() for counts in (self.recent, self.epoch))
        return {"recent": recent, "epoch": epoch, "reported": self.reported}

    def load(self, state):
        self.reported = state["reported"]
        for own, saved in ((self.recent, state["recent"]), (self.epoch, state["epoch"])):
            own.copy_(saved if distributed.rank() == 0 else torch.zeros_like(saved))
