"""How near clips are to those of the training split: in space (memorisation), and in an evaluator's embedding
(labels).

The distance of two clips is the root mean square distance of their joints in the facing frame, so heading and
path do not count and nothing accumulates. The shorter clip is slid along the longer one frame by frame, every
STRIDE-th of its frames is compared, and the best match counts. A training clip shorter than half of a clip is
no match for it: nearly every long clip has some pose that a short one holds.
Shapes: N clips, T frames, D features, P coordinates of a pose, L poses of a clip.
"""
from collections import defaultdict

import numpy as np
import torch
import torch.nn.functional as F

from utils.evaluation import metrics
from utils.motion.features import facing_joints
from utils.training import distributed

STRIDE = 4  # frames from a pose to the next that is compared
QUANTILE = 0.05  # of the real clips' distances: what is nearer than this is suspiciously near
MOST = 64  # clips of one length that are compared at once; bounds the memory


def poses(motion, spec):
    """Un-normalised features (T, D) -> poses (P, L = T) in metres, in the facing frame."""
    joints = facing_joints(torch.as_tensor(motion).float(), spec.joints)
    return joints.flatten(1).T * spec.metres_per_unit


def by_length(clips):
    """Poses (P, L) of clips -> {L: [tensors (at most MOST, P, L)]}."""
    groups = defaultdict(list)
    for rows in metrics.of_one_length([clip.T for clip in clips], MOST):
        groups[clips[rows[0]].shape[1]].append(torch.stack([clips[row] for row in rows]))
    return groups


def best_match(short, long):
    """Mean square distance (m, n) of poses in the best place of ``short`` (n, P, l) in ``long`` (m, P, L)."""
    span, short = short.shape[2], short[:, :, ::STRIDE].contiguous()
    places = long.shape[2] - span + 1
    products = F.conv1d(long, short, dilation=STRIDE)[:, :, :places]  # (m, n, places)
    squares = long.square().sum(1).unfold(1, span, 1)[:, :, ::STRIDE].sum(2)[:, None]
    squares = squares - 2 * products + short.square().sum((1, 2))[:, None]
    return squares.amin(2).clamp(min=0) / short.shape[2]  # rounding can leave a tiny negative square


@torch.no_grad()
def nearest_distances(motions, training, spec, device="cpu"):
    """Distance (N,) in metres per joint of each motion (T, D) to the nearest of the ``training`` motions, all
    un-normalised; exact to about 0.3 mm. Several processes divide the work."""
    known, clips = ([poses(motion, spec) for motion in side] for side in (training, motions))
    centre = torch.cat(known, 1).mean(1, keepdim=True)  # small numbers lose less to rounding
    groups = {length: [group.to(device) for group in found]
              for length, found in by_length([clip - centre for clip in known]).items()}
    nearest = [None] * len(clips)
    for rows in distributed.turns(list(metrics.of_one_length([clip.T for clip in clips], MOST))):
        batch = torch.stack([clips[row] - centre for row in rows]).to(device)
        length = batch.shape[2]
        least = min(length, max(groups)) / 2
        squares = [best_match(batch, group).amin(0) if other >= length else best_match(group, batch).amin(1)
                   for other, found in groups.items() if other >= least for group in found]
        for row, distance in zip(rows, (torch.stack(squares).amin(0) / spec.joints).sqrt().tolist()):
            nearest[row] = distance
    return np.array(distributed.gather_turns(nearest))


def nearest_train(made, real, training, spec, device="cpu"):
    """Distances of generated and real test clips to the nearest training clip: {"generated", "real" (means,
    in metres), "real_quantile": the 5% quantile of the real clips' distances, "generated_below": share of the
    generated clips nearer than that}. All are lists of un-normalised features (T, D)."""
    found = nearest_distances([*made, *real], training, spec, device)
    generated, test = found[: len(made)], found[len(made) :]
    quantile = float(np.quantile(test, QUANTILE))
    return {"generated": float(generated.mean()), "real": float(test.mean()), "real_quantile": quantile,
            "generated_below": float((generated < quantile).mean())}


def label_accuracy(labels, test, training, embed):
    """Whether the nearest labelled training clips, in the evaluator's embedding, have the label of the clip
    that a test clip is, or was generated for: {"generated", "real": share, "clips": how many count}, or None
    where no clip counts.

    labels: {id: [action]}; the list as a whole is the label. test: (ids (N), generated, real clips).
    training: (ids (M), clips). embed: clips (T, D) -> embeddings. Clips without a label, and test clips whose
    label no training clip has, do not count.
    """
    ids, *sides = test
    known = [row for row, name in enumerate(training[0]) if labels.get(name)]
    seen = {tuple(labels[training[0][row]]) for row in known}
    rows = [row for row, name in enumerate(ids) if tuple(labels.get(name, ())) in seen]
    if not rows:
        return None
    embeddings = embed([training[1][row] for row in known])
    names = [tuple(labels[training[0][row]]) for row in known]
    shares = [np.mean([found == tuple(labels[ids[row]]) for row, found in
                       zip(rows, metrics.vote(embed([side[row] for row in rows]), embeddings, names))])
              for side in sides]
    return {"generated": float(shares[0]), "real": float(shares[1]), "clips": len(rows)}
