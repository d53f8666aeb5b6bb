"""Reconstructions of a split's clips by an autoencoder, and their errors.

MPJPE values are in millimetres: "MPJPE" by the published protocol (joints recovered with the accumulated
heading, root aligned per frame), "MPJPE_facing" in each frame's own facing frame, without heading drift.
Shapes: T frames, D features.
"""
import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from utils.errors import UserError
from utils.evaluation.evaluators import embed_all, padded_batches, padding_mask
from utils.evaluation.metrics import acceleration_error, calculate_mpjpe, of_one_length
from utils.evaluation.scoring import evaluate, fid_score
from utils.motion.features import facing_joints, features_to_joints, recover_root
from utils.training import distributed


def heading_error(motion, target, metres_per_unit=1.0):
    """Mean absolute error () of the accumulated heading (radians, half yaw) plus that of the root path
    (metres), of un-normalised features (B, T, D). Differentiable."""
    heading = (motion[..., 0].cumsum(1) - target[..., 0].cumsum(1)).abs().mean()
    path = (recover_root(motion)[1] - recover_root(target)[1])[..., ::2].abs().mean()
    return heading + path * metres_per_unit


def store_batches(store, batch_size, device, max_frames=np.inf):
    """A store's clips of at least 4 frames, cut to a multiple of 4 and to ``max_frames``: their lengths (N,),
    and their ``padded_batches``."""
    frames = (np.minimum(store.lengths, max_frames) // 4 * 4).astype(int)
    clips = np.flatnonzero(frames)
    return frames[clips], padded_batches(lambda row: store.frames(clips[row], 0, frames[clips[row]]),
                                         frames[clips], batch_size, device)


@torch.no_grad()
def reconstruct(ae, store, device="cpu", batch_size=32, max_frames=400):
    """[(original, reconstruction)], un-normalised (T, D), of ``store_batches``, in the store's order."""
    mean, std = (torch.as_tensor(value, device=device) for value in (store.mean, store.std))
    lengths, batches = store_batches(store, batch_size, device, max_frames)
    pairs = [None] * len(lengths)
    for rows, batch, frames in batches:
        _, targets = ae.encode_targets((batch - mean) / std, frames)
        made = (ae.decode_targets(targets, frames) * std + mean).cpu()
        for row, real, motion in zip(rows, batch.cpu(), made):
            pairs[row] = real[: lengths[row]], motion[: lengths[row]]
    return distributed.gather_turns(pairs)


@torch.no_grad()
def reconstruct_with_tail(ae, motions, mean, std, device="cpu", batch_size=32, frames=196):
    """[(reconstruction (T, D) of the clip alone, and (T + 4, D) as in the published evaluation: encoded and
    decoded with zeros after the clip's end, up to ``frames``)] of un-normalised motions (T, D or more), T a
    multiple of 4."""
    mean, std = (torch.as_tensor(value, device=device) for value in (mean, std))
    pairs = [None] * len(motions)
    for first in distributed.turns(range(0, len(motions), batch_size)):
        part = motions[first : first + batch_size]
        lengths = torch.tensor([len(motion) for motion in part])
        ends = lengths.to(device)
        x = pad_sequence(part, batch_first=True)[..., : len(mean)].to(device)
        x = ((x - mean) / std).masked_fill(padding_mask(ends, x.shape[1])[..., None], 0)
        x = F.pad(x, (0, 0, 0, frames - x.shape[1]))
        alone = (ae.decode_targets(ae.encode_targets(x, ends)[1], ends) * std + mean).cpu()
        long_clips = ae.decode_with_tail(ae.encode_targets(x)[0], lengths, mean, std)
        pairs[first : first + len(part)] = [
            (clip[:count], long_clip) for clip, long_clip, count in zip(alone, long_clips, lengths.tolist())]
    return distributed.gather_turns(pairs)


def reconstruction_scores(suite, ae, clips, draw, rule, groups=None):
    """Scores of ``scoring.evaluate`` of reconstructions, under the captions of their clips.

    suite: EvaluatorSuite. clips: TextClips; draw, groups: of ``evaluate``; rule: its (repeats, seed)."""
    device = next(ae.parameters()).device

    def generate(_repeat, drawn):
        pairs = reconstruct_with_tail(ae, drawn.real, clips.store.mean, clips.store.std, device)
        return pairs if suite.published_tail else [clip for clip, _ in pairs]

    scores = evaluate(suite, draw, generate, *rule, groups)
    scores.pop("clips")
    return scores


def reconstruction_errors(pairs, spec):
    """{"MPJPE", "MPJPE_facing" (mm), "acceleration_error" (mm / frame^2)}, weighted by frames, of the pairs
    of ``reconstruct``."""
    totals, frames, num_joints = np.zeros(3), 0, spec.joints
    originals, made = zip(*pairs)
    for rows in of_one_length(originals):
        both = [torch.stack([motions[row] for row in rows]) for motions in (originals, made)]  # (B, T, D)
        real, fake = (features_to_joints(x, num_joints).numpy() for x in both)
        real_facing, fake_facing = (facing_joints(x, num_joints).numpy() for x in both)
        count, length = real.shape[:2]
        totals += count * length * np.array([
            calculate_mpjpe(real, fake).mean(), calculate_mpjpe(real_facing, fake_facing).mean(),
            acceleration_error(real, fake).mean() if length > 2 else 0.0])
        frames += count * length
    means = (totals / frames * 1000 * spec.metres_per_unit).tolist()
    return dict(zip(("MPJPE", "MPJPE_facing", "acceleration_error"), means))


def reconstruction_fid(evaluator, pairs):
    """FID of the reconstructions against the originals. UserError for fewer than two."""
    if len(pairs) < 2:
        raise UserError(f"FID needs at least 2 usable clips, the split has {len(pairs)}")
    real, made = (embed_all(evaluator, motions) for motions in zip(*pairs))
    return fid_score(real, made)
