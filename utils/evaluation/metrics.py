"""Metrics of text-to-motion evaluation in numpy float64, with the names and definitions of Guo et al.,
"Generating Diverse and Natural 3D Human Motions from Text" (CVPR 2022).

As there, diversity and multimodality draw from numpy's global state (``numpy.random.seed``).
Shapes: N clips or sentences, E embedding, T frames, J joints.
"""
import math
from collections import Counter

import numpy as np

from utils.motion.feet import foot_contacts


def euclidean_distance_matrix(matrix1, matrix2):
    """(..., N, E), (..., M, E) -> distances (..., N, M) between every two rows."""
    a, b = np.asarray(matrix1, np.float64), np.asarray(matrix2, np.float64)
    if a.ndim < 2 or a.ndim != b.ndim or a.shape[-1] != b.shape[-1]:
        raise ValueError(f"embeddings must be (N, E) and (M, E), got {a.shape} and {b.shape}")
    squares = (a**2).sum(-1)[..., :, None] + (b**2).sum(-1)[..., None, :] - 2 * a @ b.swapaxes(-1, -2)
    return np.sqrt(np.maximum(squares, 0))  # rounding can leave a tiny negative square


def top_k_hits(distances, top_k):
    """Distances (..., N, N) from rows to candidates, i being right for row i -> hits (..., N, top_k), bool:
    whether i is among the nearest 1, 2 ... top_k. Of candidates at equal distance the first ranks first."""
    right = np.diagonal(distances, axis1=-2, axis2=-1)[..., None]
    ahead = (distances < right).sum(-1) + np.tril(distances == right, -1).sum(-1)
    return ahead[..., None] < np.arange(1, top_k + 1)


def retrieval_batches(groups, batch_size, rng):
    """Random full batches of row numbers, a list of int arrays (batch_size,), with no group twice: rows of
    one of the ``groups`` (N,) share a caption, so they are equally right and must not compete."""
    groups = np.asarray(groups)
    full, open_batches = [], []  # an open batch is {group: row}
    for row in rng.permutation(len(groups)):
        group = groups[row].item()
        batch = next((b for b in open_batches if group not in b), None)
        if batch is None:
            open_batches.append(batch := {})
        batch[group] = int(row)
        if len(batch) == batch_size:
            full.append(np.array(list(batch.values())))
            open_batches = [b for b in open_batches if b is not batch]
    return full


def calculate_activation_statistics(activations):
    """(N, E) -> mean (E,), covariance (E, E)."""
    activations = np.asarray(activations, np.float64)
    if activations.ndim != 2 or len(activations) < 2:
        raise ValueError(f"statistics need at least 2 embeddings (N, E), got {activations.shape}")
    return activations.mean(0), np.atleast_2d(np.cov(activations, rowvar=False))


def calculate_frechet_distance(mu1, sigma1, mu2, sigma2, eps=1e-6):
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two Gaussians (FID, Heusel et al. 2017).

    The trace of the root is that of (R S2 R)^(1/2), R = S1^(1/2), which is symmetric: it stays real and
    finite for the singular covariances of small sets, where a general matrix square root fails. If it is not
    finite all the same, ``eps`` is added to both diagonals. Statistics that are not finite give nan.
    """
    mu1, sigma1, mu2, sigma2 = (np.asarray(a, np.float64) for a in (mu1, sigma1, mu2, sigma2))
    if mu1.shape != mu2.shape or sigma1.shape != sigma2.shape:
        raise ValueError(f"statistics of different widths: {mu1.shape} and {mu2.shape}")
    covariance = _trace_of_root(sigma1, sigma2)
    if not np.isfinite(covariance):
        offset = eps * np.eye(len(sigma1))
        covariance = _trace_of_root(sigma1 + offset, sigma2 + offset)
    difference = mu1 - mu2
    return float(difference @ difference + np.trace(sigma1) + np.trace(sigma2) - 2 * covariance)


def _trace_of_root(sigma1, sigma2):
    """tr((S1 S2)^(1/2)) of covariances (E, E); nan where the decomposition fails."""
    try:
        values, vectors = np.linalg.eigh(sigma1)
        root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        return np.sqrt(np.maximum(np.linalg.eigvalsh(root @ sigma2 @ root), 0)).sum()
    except np.linalg.LinAlgError:
        return np.nan


def calculate_diversity(activation, diversity_times):
    """Mean distance of random pairs of rows of (..., N, E), the same pairs for all leading axes."""
    activation = np.asarray(activation, np.float64)
    if activation.ndim < 2 or activation.shape[-2] < diversity_times:
        raise ValueError(f"{diversity_times} random pairs need as many embeddings, got {activation.shape}")
    first, second = (np.random.choice(activation.shape[-2], diversity_times, replace=False) for _ in range(2))
    return float(np.linalg.norm(activation[..., first, :] - activation[..., second, :], axis=-1).mean())


def calculate_multimodality(activation, multimodality_times):
    """Mean distance of random pairs of samples of one text: (texts, samples, E)."""
    return calculate_diversity(activation, multimodality_times)


def confidence_interval(values):
    """Half-width of the 95% interval of the mean of repeats: 1.96 std / sqrt(n), along the first axis."""
    values = np.asarray(values, np.float64)
    return 1.96 * values.std(axis=0) / np.sqrt(len(values))


def calculate_mpjpe(gt_joints, pred_joints):
    """Mean joint distance with each pose's root (joint 0) aligned: (..., T, J, 3) twice -> (..., T)."""
    gt, pred = same_joints(gt_joints, pred_joints)
    return np.linalg.norm((gt - gt[..., :1, :]) - (pred - pred[..., :1, :]), axis=-1).mean(-1)


def acceleration_error(gt_joints, pred_joints):
    """Mean difference of the joints' accelerations, not aligned: (..., T, J, 3) twice -> (..., T - 2), per
    frame^2. It shows jitter that MPJPE hides."""
    gt, pred = same_joints(gt_joints, pred_joints)
    return np.linalg.norm(np.diff(gt, 2, axis=-3) - np.diff(pred, 2, axis=-3), axis=-1).mean(-1)


def same_joints(gt_joints, pred_joints):
    """Both as float64 (..., T, J, 3). ValueError where their shapes differ."""
    gt, pred = np.asarray(gt_joints, np.float64), np.asarray(pred_joints, np.float64)
    if gt.shape != pred.shape or gt.ndim < 3 or gt.shape[-1] != 3:
        raise ValueError(f"joints must both be (T, J, 3), got {gt.shape} and {pred.shape}")
    return gt, pred


def foot_skating(joints, fps, skeleton):
    """Mean horizontal speed (...) of feet in contact, in m/s; 0 is ideal, nan without any contact.

    joints: (..., T, J, 3), Y up, in metres. skeleton: its ``left_feet`` and ``right_feet`` are the ankles and
    toes.
    """
    contact, velocity = foot_contacts(joints, fps, skeleton)
    speed = np.linalg.norm(velocity[..., [0, 2]], axis=-1) * contact
    with np.errstate(invalid="ignore"):  # 0 / 0
        return speed.sum((-1, -2)) / contact.sum((-1, -2))


def acceleration(joints, fps):
    """Mean norm (...) of the joints' accelerations, in m/s^2. joints: (..., T, J, 3) in metres, T >= 3."""
    return np.linalg.norm(differences(joints, fps, 2), axis=-1).mean((-1, -2))


def peak_jerk(joints, fps):
    """Largest norm (...) of any joint's jerk at any time, in m/s^3: the "peak jerk" of Barquero et al.,
    "FlowMDM" (CVPR 2024), which shows jumps that means hide. joints: (..., T, J, 3) in metres, T >= 4."""
    return np.linalg.norm(differences(joints, fps, 3), axis=-1).max((-1, -2))


def mean_jerk(joints, fps):
    """Mean norm (...) of the joints' jerks, in m/s^3. joints: (..., T, J, 3) in metres, T >= 4."""
    return np.linalg.norm(differences(joints, fps, 3), axis=-1).mean((-1, -2))


def spectral_arc_length(speed, fps, highest=10.0, least=0.05):
    """Smoothness (...) of speed profiles (..., T): SPARC of Balasubramanian et al., "On the analysis of
    movement smoothness" (Journal of NeuroEngineering and Rehabilitation 12:112, 2015). Minus the length of
    the curve that the amplitude spectrum, 1 at frequency 0, draws up to the last frequency, at most
    ``highest`` Hz, at which it is ``least`` or more; frequencies are scaled to end at 1. Nearer to 0 is
    smoother; it depends neither on the scale of a movement nor, unlike jerk, on that of time, but on how many
    sub-movements there are. nan where nothing moves. ValueError for fewer than 2 frames.
    """
    speed = np.asarray(speed, np.float64)
    if speed.ndim < 1 or speed.shape[-1] < 2:
        raise ValueError(f"speeds must be (..., T) with 2 frames or more, got {speed.shape}")
    size = 2 ** (math.ceil(math.log2(speed.shape[-1])) + 4)  # padded 16-fold, as in the paper
    amplitude = np.abs(np.fft.rfft(speed, size))
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0
        amplitude = (amplitude / amplitude[..., :1])[..., : int(highest * size / fps) + 1]
        bins = np.arange(amplitude.shape[-1])
        last = np.where(amplitude >= least, bins, 0).max(-1, keepdims=True)
        steps = np.sqrt((1 / last) ** 2 + np.diff(amplitude) ** 2)
        return -np.where(bins[1:] <= last, steps, 0).sum(-1) + 0 * amplitude[..., 0]


def differences(joints, fps, order):
    """The derivative (..., T - order, J, 3), per second^order, of joints (..., T, J, 3). ValueError where
    there are too few frames."""
    joints = np.asarray(joints, np.float64)
    if joints.ndim < 3 or joints.shape[-3] <= order:
        raise ValueError(f"joints must be (T, J, 3) with more than {order} frames, got {joints.shape}")
    return np.diff(joints, order, axis=-3) * float(fps) ** order


def vote(embeddings, known, labels, k=5):
    """Labels (N) by majority of the ``k`` nearest of the ``known`` (M, E) embeddings, whose labels (M) are
    given, to each of ``embeddings`` (N, E); of labels with equally many votes the nearest one wins."""
    nearest = np.argsort(euclidean_distance_matrix(embeddings, known), axis=1, kind="stable")[:, :k]
    # Counter keeps the order of first appearance among equals
    return [Counter(labels[i] for i in row).most_common(1)[0][0] for row in nearest]


def of_one_length(motions, most=256):
    """Row numbers of motions (T_i, D) in groups of equal length, of at most ``most`` rows."""
    lengths = np.array([len(motion) for motion in motions])
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        yield from np.split(rows, range(most, len(rows), most))
