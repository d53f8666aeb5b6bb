"""What an autoencoder makes of the clips of a split, and how far that is from them.

MPJPE values are in millimetres: "MPJPE" by the published protocol (joints recovered with the accumulated
heading, root aligned per frame), "MPJPE_facing" in each frame's own facing frame (no heading drift). Shapes:
T frames, D features, J joints.
"""
import numpy as np
import torch
import torch.nn.functional as F

from utils.errors import UserError
from utils.evaluation.evaluators import embed_all
from utils.evaluation.metrics import (
    acceleration_error,
    calculate_mpjpe,
    of_one_length,
)
from utils.evaluation.scoring import fid_score
from utils.motion.features import facing_joints, features_to_joints, recover_root
from utils.training import distributed


def heading_error(motion, target, metres_per_unit=1.0):
    """Mean absolute error () of the accumulated heading (radians, half yaw) plus that of the root path
    (metres), of un-normalised features (B, T, D). Differentiable."""
    heading = (motion[..., 0].cumsum(1) - target[..., 0].cumsum(1)).abs().mean()
    path = (recover_root(motion)[1] - recover_root(target)[1])[..., ::2].abs().mean()
    return heading + path * metres_per_unit


def padded_batches(store, lengths, device, batch_size):
    """Batches of a store's clips, from their first frame on, in the order of their ``lengths`` (frames; 0
    leaves a clip out).

    Returns how many clips that is, and this process' turns of the batches: (first place in that order, clip
    numbers, un-normalised motion (B, T, D) with zeros behind each end, frames (B,)), the latter two on
    ``device``."""
    usable = [clip for clip in np.argsort(lengths, kind="stable") if lengths[clip] > 0]

    def batches():
        for first in distributed.turns(range(0, len(usable), batch_size)):
            clips = usable[first : first + batch_size]
            motions = [torch.from_numpy(store.frames(clip, 0, lengths[clip])) for clip in clips]
            batch = torch.nn.utils.rnn.pad_sequence(motions, batch_first=True).to(device)
            yield first, clips, batch, torch.as_tensor(lengths[clips], device=device)

    return len(usable), batches()


@torch.no_grad()
def reconstruct(ae, store, device="cpu", batch_size=32, max_frames=400):
    """[(original (T, D), reconstruction (T, D))] un-normalised, for every clip of a store, cut to a multiple
    of 4 frames (and to ``max_frames``), in the store's order; a clip of less than 4 frames has none. Clips of
    similar length run together; padding does not leak."""
    mean, std = (torch.as_tensor(value, device=device) for value in (store.mean, store.std))
    lengths = np.minimum(store.lengths, max_frames) // 4 * 4
    count, batches = padded_batches(store, lengths, device, batch_size)
    pairs, places = [None] * count, np.cumsum(lengths > 0) - 1
    for _, clips, batch, frames in batches:
        _, targets = ae.encode_targets((batch - mean) / std, frames)
        made = (ae.decode_targets(targets, frames) * std + mean).cpu()
        for clip, real, motion in zip(clips, batch.cpu(), made):
            pairs[places[clip]] = (real[: lengths[clip]], motion[: lengths[clip]])
    return distributed.gather_turns(pairs)


@torch.no_grad()
def reconstruct_with_tail(ae, motions, mean, std, device="cpu", batch_size=32, frames=196):
    """[(reconstruction (T, D) of the clip alone, and (T + 4, D) as the published evaluation makes it: encoded
    and decoded with zeros after the clip's end, up to ``frames``)] of un-normalised motions (T, D or more),
    each a multiple of 4 frames."""
    mean, std = (torch.as_tensor(value, device=device) for value in (mean, std))
    pairs = [None] * len(motions)
    for first in distributed.turns(range(0, len(motions), batch_size)):
        part = motions[first : first + batch_size]
        lengths = torch.tensor([len(motion) for motion in part])
        ends = lengths.to(device)
        x = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)[..., : len(mean)].to(device)
        after = torch.arange(x.shape[1], device=device) >= ends[:, None]
        x = F.pad(((x - mean) / std).masked_fill(after[..., None], 0), (0, 0, 0, frames - x.shape[1]))
        alone = (ae.decode_targets(ae.encode_targets(x, ends)[1], ends) * std + mean).cpu()
        long_clips = ae.decode_with_tail(ae.encode_targets(x)[0], lengths, mean, std)
        pairs[first : first + len(part)] = [(clip[:count], long_clip)
                                            for clip, long_clip, count in zip(alone, long_clips,
                                                                              lengths.tolist())]
    return distributed.gather_turns(pairs)


def reconstruction_errors(pairs, spec):
    """{"MPJPE", "MPJPE_facing" (mm, mean over frames), "acceleration_error" (mm / frame^2)} of reconstruct's
    pairs."""
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
    protocol, facing, acceleration = (totals / frames * 1000 * spec.metres_per_unit).tolist()
    return {"MPJPE": protocol, "MPJPE_facing": facing, "acceleration_error": acceleration}


def reconstruction_fid(evaluator, pairs):
    """FID of the reconstructions against the originals. UserError for fewer than two."""
    if len(pairs) < 2:
        raise UserError(f"FID needs 2 clips or more, the split has {len(pairs)} that can be used")
    real, made = (embed_all(evaluator, motions) for motions in zip(*pairs))
    return fid_score(real, made)
