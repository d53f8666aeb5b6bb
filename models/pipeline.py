"""From conditions to motion features: a generator, its autoencoder and the feature statistics.

Shapes: B clips, T frames (a multiple of 4), D features.
"""
import hashlib
from functools import cached_property

import torch

from models.AE import UNIT, valid_mask
from models.LengthEstimator import sample_length
from models.TextEncoder import load_text_encoder
from utils.errors import UserError
from utils.text_condition import pooled

ON_GRID = 1e-4  # targets closer than this to their code are that code, rounded


def clip_seed(seed, *what):
    """A clip's seed, from the run's seed and what the clip is (prompt, repeat ...), not from its place in a
    batch."""
    text = "\0".join(map(str, (seed, *what)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


@torch.no_grad()
def estimate_lengths(estimator, text, seeds, min_frames, max_frames):
    """Frames, multiples of 4, drawn by the length estimator for text features (B, C), or a TextCondition,
    each from its own seed."""
    text = text if getattr(estimator, "text_cond", "pooled") == "tokens" else pooled(text)
    draws = [sample_length(row[None], torch.Generator().manual_seed(seed), min_frames)
             for row, seed in zip(estimator(text), seeds)]
    return [min(int(draw[0]), max_frames // UNIT * UNIT) for draw in draws]


@torch.no_grad()
def codes_of(ae, targets, lengths):
    """The codes that clips' targets (B, L, d) are, of ``lengths`` (B,) in tokens: B dicts of plain values;
    None where they are none: continuous latents, mixed codes, targets that were not snapped.

    "frames" per code; "sizes": values of each axis; "ordered": whether neighbouring values are alike, as on a
    grid; "digits": a row per code with a value per axis; "indices": numbers of the codes, absent where a code
    has one per axis only."""
    if not ae.finite_targets:
        return [None] * len(targets)
    snapped = ae.snap(targets)
    inside = valid_mask(lengths, targets.shape[1]).to(targets.device)[..., None]
    exact = (((snapped - targets).abs() * inside).amax((1, 2)) < ON_GRID).tolist()
    indices = ae.quantizer.get_indices(snapped)
    digits, flat = ae.quantizer.to_digits(indices).tolist(), indices.ndim == 2
    indices = indices.tolist() if flat else digits
    about = {"frames": UNIT, "sizes": list(ae.quantizer.axis_sizes), "ordered": ae.levels is not None}
    return [about | {"digits": digits[row][:length]} | ({"indices": indices[row][:length]} if flat else {})
            if exact[row] else None for row, length in enumerate(lengths.tolist())]


class Pipeline:
    """``mean`` and ``std`` (D,) are those of the features that the autoencoder was trained on.
    ``iterations``: function that wraps the range of every generation's iterations, to follow it or to end it
    by an error. ``hashes``: of the weights of generator and autoencoder, where they come from files.
    ``text_encoder``: name of the one that the generator was trained with, where it reads text."""

    iterations = hashes = text_encoder = None

    def __init__(self, generator, ae, mean, std, device="cpu"):
        if (generator.ae_dim, generator.target_dim) != (ae.latent_dim, ae.target_dim):
            raise UserError(f"the generator has latents of {generator.ae_dim} and targets of "
                            f"{generator.target_dim} dimensions, the autoencoder of {ae.latent_dim} and "
                            f"{ae.target_dim}: they do not belong together")
        self.device = torch.device(device)
        self.generator, self.ae = generator.to(self.device).eval(), ae.to(self.device).eval()
        self.mean, self.std = (torch.as_tensor(value, device=self.device) for value in (mean, std))

    @torch.no_grad()
    def sample(self, cond, frames, seeds, batch_size=32, progress=None, decode=None, turns=list, **settings):
        """Un-normalised features, a list of (T_i, D) CPU tensors, for conditions (B, C) or a TextCondition,
        ``frames`` (ints, rounded down to multiples of 4) and ``seeds`` (ints). Clips of similar length share
        a batch, which does not change them.

        decode: function (targets, frames) -> the result for each clip; None = ``self.decode``.
        turns: function that selects the batches to make, each named by its first place in the order of
            lengths; the other clips are None.
        """
        lengths = torch.tensor([int(count) // UNIT for count in frames])
        order = lengths.argsort(stable=True).tolist()
        out, weight_cache = [None] * len(order), {}
        for first in turns(range(0, len(order), batch_size)):
            rows = order[first : first + batch_size]
            part = None if cond is None else cond[rows].to(self.device)
            targets = self.generator.generate(self.ae, part, lengths[rows], [seeds[row] for row in rows],
                                              progress=self.iterations, weight_cache=weight_cache, **settings)
            for row, motion in zip(rows, (decode or self.decode)(targets, lengths[rows] * UNIT)):
                out[row] = motion
            if progress is not None:
                progress.update(len(rows))
        return out

    @cached_property
    def encoder(self):
        """The text encoder. UserError for a generator that reads no text, or without its name."""
        if self.generator.cond_mode != "text" or not self.text_encoder:
            raise UserError('prompts need a generator with cond_mode "text" and the name of its text encoder '
                            f'(Pipeline.text_encoder); here they are "{self.generator.cond_mode}" and '
                            f"{self.text_encoder}")
        return load_text_encoder(self.text_encoder)

    def generate(self, conds, m_lens, timesteps=18, cond_scale=4.5, seed=3407, **settings):
        """As MARDM's published ``generate``: latents (B, C, L) for ``ae.decode``, 0 after each clip's end.

        conds: prompts (B strings), or conditions as ``sample`` takes them. m_lens: B ints, or (B,), in tokens
        of 4 frames. settings: others of SamplerSettings. Clips of different prompts are those that sample.py
        makes with the same ``seed``. UserError where there is not a length for each condition."""
        lengths = torch.as_tensor(m_lens).tolist()
        names = list(range(len(lengths)))
        if conds is not None and len(conds) != len(lengths):
            raise UserError("generate takes a length for each condition; got "
                            f"{len(lengths)} and {len(conds)}")
        if conds is not None and all(isinstance(cond, str) for cond in conds):
            conds, names = self.encoder.encode_words(list(conds)), list(conds)
        repeats = [names[:i].count(name) for i, name in enumerate(names)]
        seeds = [clip_seed(seed, name, repeat) for name, repeat in zip(names, repeats)]
        clips = self.sample(conds, [UNIT * length for length in lengths], seeds, time_steps=timesteps,
                            cfg=cond_scale, decode=self.latents, **settings)
        return torch.nn.utils.rnn.pad_sequence(clips, batch_first=True).transpose(1, 2)

    def latents(self, targets, frames):
        """Targets (B, L, d) and frames (B,) -> their latents, a list of (L_i, C)."""
        latents = self.ae.embed_targets(targets)
        return [clip[:count] for clip, count in zip(latents, (frames // UNIT).tolist())]

    @torch.no_grad()
    def decode(self, targets, frames):
        """Targets (B, L, d) and frames (B,) -> un-normalised features, a list of (T_i, D) CPU tensors."""
        motion = (self.ae.decode_targets(targets, frames.to(self.device)) * self.std + self.mean).cpu()
        return [clip[:count] for clip, count in zip(motion, frames.tolist())]

    def decode_with_codes(self, targets, frames):
        """[(clip (T_i, D) of ``decode``, its ``codes_of`` or None)]."""
        return list(zip(self.decode(targets, frames), codes_of(self.ae, targets, frames // UNIT)))

    @torch.no_grad()
    def decode_with_tail(self, targets, frames):
        """[(clip (T_i, D) of ``decode``, clip (T_i + 4, D) of the published evaluation)]: in the latter the
        latents after a clip's end are 0 (``AE.decode_with_tail``)."""
        inside = valid_mask(frames // UNIT, targets.shape[1]).to(self.device)[..., None]
        tails = self.ae.decode_with_tail(self.ae.embed_targets(targets) * inside, frames, self.mean, self.std)
        return list(zip(self.decode(targets, frames), tails))
