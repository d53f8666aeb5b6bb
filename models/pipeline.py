"""From conditions to motion features: a generator, its autoencoder and the feature statistics, as one thing.

Shapes: B clips, T frames (a multiple of 4), D features.
"""
import hashlib

import torch

from models.AE import UNIT
from models.LengthEstimator import sample_length
from utils.errors import UserError


def clip_seed(seed, *what):
    """The seed of one clip from the run's seed and what the clip is (prompt, repeat ...): not from its place
    in a batch."""
    text = "\0".join(map(str, (seed, *what)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


@torch.no_grad()
def estimate_lengths(estimator, text, seeds, min_frames, max_frames):
    """Frames, multiples of 4, drawn by the length estimator for text features (B, C); each from its own
    seed."""
    logits = estimator(text)
    draws = [sample_length(row[None], torch.Generator().manual_seed(seed), min_frames)
             for row, seed in zip(logits, seeds)]
    return [min(int(draw[0]), max_frames // UNIT * UNIT) for draw in draws]


class Pipeline:
    """``mean`` and ``std`` (D,) belong to the features that the autoencoder was trained on."""

    def __init__(self, generator, ae, mean, std, device="cpu"):
        if (generator.ae_dim, generator.target_dim) != (ae.latent_dim, ae.target_dim):
            raise UserError(f"the generator works on latents of {generator.ae_dim} and targets of "
                            f"{generator.target_dim} "
                             f"dimensions, the autoencoder on {ae.latent_dim} and {ae.target_dim}: they do "
                             "not belong together")
        self.device = torch.device(device)
        self.generator, self.ae = generator.to(self.device).eval(), ae.to(self.device).eval()
        self.mean, self.std = (torch.as_tensor(value, device=self.device) for value in (mean, std))

    @torch.no_grad()
    def sample(self, cond, frames, seeds, batch_size=32, progress=None, decode=None, turns=list, **settings):
        """Un-normalised features, a list of (T_i, D) CPU tensors, for conditions (B, C), ``frames`` (ints,
        rounded down to a multiple of 4) and ``seeds`` (ints). Clips of similar length run together; a clip
        does not depend on its batch. ``decode``: function (targets, frames) -> what is made of each clip;
        None = ``self.decode``. ``turns``: function that picks the batches to make (each named by its first
        place in the order of lengths); the clips of others are None."""
        lengths = torch.tensor([int(count) // UNIT for count in frames])
        order = lengths.argsort(stable=True).tolist()
        out, weight_cache = [None] * len(order), {}
        for first in turns(range(0, len(order), batch_size)):
            rows = order[first : first + batch_size]
            part = None if cond is None else cond[rows].to(self.device)
            targets = self.generator.generate(self.ae, part, lengths[rows], [seeds[row] for row in rows],
                                              weight_cache=weight_cache,
                                              **settings)
            for row, motion in zip(rows, (decode or self.decode)(targets, lengths[rows] * UNIT)):
                out[row] = motion
            if progress is not None:
                progress.update(len(rows))
        return out

    @torch.no_grad()
    def decode(self, targets, frames):
        """Targets (B, L, d) and frames (B,) -> un-normalised features, a list of (T_i, D) CPU tensors."""
        motion = (self.ae.decode_targets(targets, frames.to(self.device)) * self.std + self.mean).cpu()
        return [clip[:count] for clip, count in zip(motion, frames.tolist())]

    @torch.no_grad()
    def decode_with_tail(self, targets, frames):
        """[(clip (T_i, D) as ``decode`` makes it, clip (T_i + 4, D) as the published evaluation does)]: there
        the latents after a clip's end are empty (``AE.decode_with_tail``)."""
        # (B, L)
        inside = torch.arange(targets.shape[1]) < torch.div(frames, UNIT, rounding_mode="floor")[:, None]
        latents = self.ae.embed_targets(targets) * inside.to(self.device)[..., None]
        return list(zip(self.decode(targets, frames),
                        self.ae.decode_with_tail(latents, frames, self.mean, self.std)))
