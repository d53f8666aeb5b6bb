"""Motions of any length: parts under conditions of their own, each continued from the end of the one before.

A window of at most 49 tokens holds the last tokens so far, which stay, and new ones, generated under the
part's condition. Tokens say how the body moves, not where it stands or looks (features hold velocities of the
root), so nothing has to be aligned. The decoder sees only so far, so that decoding in overlapping pieces
gives what decoding all at once gives, in memory that does not grow.

Shapes: L tokens, d width of a target, D features, n frames.
"""
import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import nn

from models.AE import UNIT
from models.pipeline import clip_seed
from utils.errors import UserError
from utils.lengths import MAX_LENGTH

WINDOW = MAX_LENGTH // UNIT  # tokens: the longest clip that generators are trained on
CONTEXT = 1  # tokens; with more, the parts follow their sentences less (docs/tools.md)


class Part(NamedTuple):
    """cond: (1, C), a TextCondition of one sentence, or None; frames: rounded down to a multiple of 4, one
    token at least; seed: int."""

    cond: Any
    frames: int
    seed: int


def chain(pipeline, parts, context=CONTEXT, **settings):
    """Yields un-normalised features (n, D), CPU tensors, of one motion whose ``parts`` follow each other.

    parts: iterable of Part, read as far as is needed, so it may be endless. A part that does not fit into a
    window is made by several. context: tokens before a window's new ones that it sees. settings:
    SamplerSettings. Frames are yielded as soon as nothing that is still to come can change them: 22 tokens
    behind the last window, 4.4 s at 20 frames per second. UserError for a context that leaves no room."""
    if not 1 <= context < WINDOW:
        raise UserError(f"a window of {WINDOW} tokens needs a context of 1 to {WINDOW - 1}; got {context}")
    for motion in decode(pipeline.ae, targets_of(pipeline, parts, context, settings)):
        yield (motion * pipeline.std + pipeline.mean).cpu()


def targets_of(pipeline, parts, context, settings):
    """Yields the targets (L, d) of one window after the other, without their context."""
    tail, weight_cache = torch.zeros(0, pipeline.ae.target_dim, device=pipeline.device), {}
    for part in parts:
        cond = None if part.cond is None else part.cond.to(pipeline.device)
        for number, count in enumerate(windows(max(part.frames // UNIT, 1), WINDOW - context)):
            known = torch.cat([tail, tail.new_zeros(count, tail.shape[1])])[None]
            keep = torch.arange(known.shape[1], device=tail.device)[None] < len(tail)
            targets = pipeline.generator.generate(
                pipeline.ae, cond, torch.tensor([known.shape[1]]), [clip_seed(part.seed, number)],
                known=(known, keep), progress=pipeline.iterations, weight_cache=weight_cache, **settings)[0]
            yield targets[len(tail) :]
            tail = targets[-context:]


def count_windows(frames, context=CONTEXT):
    """How many windows a part of so many frames takes."""
    return len(windows(max(frames // UNIT, 1), WINDOW - context))


@torch.no_grad()
def continue_from(pipeline, before, cond, frames, seeds, **settings):
    """Un-normalised features, a list of (4 + T_i, D) CPU tensors, of clips that go on after ``before``
    (n, D), whose n is a multiple of 4: first its last token, then ``frames`` (B ints, multiples of 4), under
    conditions (B, C), a TextCondition or None. settings: SamplerSettings."""
    ae = pipeline.ae
    motion = (torch.from_numpy(before).to(pipeline.device) - pipeline.mean) / pipeline.std
    past = ae.snap(ae.encode_targets(motion[None])[1])[:, -decoder_reach(ae.decoder) - 1 :]
    past = past.expand(len(seeds), -1, -1)
    lengths = torch.tensor(frames) // UNIT + 1
    keep = (torch.arange(int(lengths.max()), device=pipeline.device) < 1).expand(len(seeds), -1)
    known = past[:, -1:].expand(-1, keep.shape[1], -1), keep
    cond = None if cond is None else cond.to(pipeline.device)
    targets = pipeline.generator.generate(ae, cond, lengths, seeds, known=known, **settings)
    # the decoder, unlike the generator, sees all that came before: at a clip's beginning bodies stand still
    seen = past.shape[1] - 1
    made = pipeline.decode(torch.cat([past[:, :-1], targets], 1), (lengths + seen) * UNIT)
    return [clip[seen * UNIT :] for clip in made]


def windows(tokens, most):
    """Sizes of as few windows of at most ``most`` new tokens as hold ``tokens``, as equal as can be."""
    count = -(-tokens // most)
    return [tokens * (i + 1) // count - tokens * i // count for i in range(count)]


def decode(ae, blocks):
    """Yields the motion (n, D) of targets that come in ``blocks`` (L, d), as decoding all of them at once
    gives it; each frame once the tokens that it depends on are there."""
    reach = decoder_reach(ae.decoder)
    held, done = torch.zeros(0, ae.target_dim), 0  # targets that are still needed; how many are decoded
    for block in itertools.chain(blocks, [None]):
        if block is not None:
            held = torch.cat([held.to(block.device), block])
        ready = len(held) - (0 if block is None else reach)
        if ready > done:
            with torch.no_grad():
                motion = ae.decode_targets(held[None])[0, done * UNIT : ready * UNIT]
            yield motion
            first = max(ready - reach, 0)
            held, done = held[first:], ready - first


def decoder_reach(decoder):
    """How many tokens on either side of its own a decoded frame depends on."""
    reach, rate = 0, 1
    for layer in decoder.modules():
        if isinstance(layer, nn.Conv1d):
            reach += layer.dilation[0] * (layer.kernel_size[0] - 1) / 2 / rate
        elif isinstance(layer, nn.Upsample):
            rate *= layer.scale_factor
    return math.ceil(reach)
