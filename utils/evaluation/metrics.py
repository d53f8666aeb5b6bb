"""Metrics of text-to-motion evaluation, all in numpy float64. Names and definitions are those of Guo et al.,
"Generating Diverse and Natural 3D Human Motions from Text" (CVPR 2022), whose published figures are measured
with them.

``calculate_diversity`` and ``calculate_multimodality`` draw from numpy's global state
(``numpy.random.seed``), as there.
Shapes: N clips or sentences, E embedding, T frames, J joints.
"""
import numpy as np

# A foot stands where it is close to the lowest place that it reaches and hardly moves up or down.
CONTACT_HEIGHT = 0.04  # metres above that lowest place
CONTACT_SPEED = 0.2  # metres per second, vertical


# ---- retrieval ---------------------------------------------------------------------------------------------


def euclidean_distance_matrix(matrix1, matrix2):
    """(..., N, E), (..., M, E) -> distances (..., N, M) between every two rows."""
    a, b = np.asarray(matrix1, np.float64), np.asarray(matrix2, np.float64)
    if a.ndim < 2 or a.ndim != b.ndim or a.shape[-1] != b.shape[-1]:
        raise ValueError(f"embeddings must be (N, E) and (M, E), got {a.shape} and {b.shape}")
    squares = (a**2).sum(-1)[..., :, None] + (b**2).sum(-1)[..., None, :] - 2 * a @ b.swapaxes(-1, -2)
    return np.sqrt(np.maximum(squares, 0))  # rounding can leave a tiny negative square


def top_k_hits(distances, top_k):
    """``calculate_top_k`` of many tables at once, without sorting: distances (..., N, N) of each row to the
    candidates, i being right for row i -> hits (..., N, top_k), bool: whether i is among the nearest 1, 2 ...
    top_k. Of equally near candidates the first comes first."""
    right = np.diagonal(distances, axis1=-2, axis2=-1)[..., None]
    ahead = (distances < right).sum(-1) + np.tril(distances == right, -1).sum(-1)
    return ahead[..., None] < np.arange(1, top_k + 1)


def calculate_top_k(mat, top_k):
    """Rankings (N, N), each row's candidates from the nearest on (argsort of distances), i being right for
    row i -> hits (N, top_k), bool: whether i is among the first 1, 2 ... top_k."""
    mat = np.asarray(mat)
    if mat.ndim != 2 or mat.shape[0] != mat.shape[1] or not 1 <= top_k <= len(mat):
        raise ValueError(f"the top {top_k} need rankings (N, N) of as many candidates, got {mat.shape}")
    return np.maximum.accumulate(mat[:, :top_k] == np.arange(len(mat))[:, None], axis=1)


def calculate_R_precision(embedding1, embedding2, top_k, sum_all=False):
    """Hits (N, top_k) when each row of ``embedding1`` (N, E) looks for its partner among the N rows of
    ``embedding2``; ``sum_all``: the counts (top_k,)."""
    hits = calculate_top_k(np.argsort(euclidean_distance_matrix(embedding1, embedding2), axis=1,
                                      kind="stable"), top_k)
    return hits.sum(0) if sum_all else hits


def calculate_matching_score(embedding1, embedding2, sum_all=False):
    """Distances (N,) between partners of (N, E) and (N, E); ``sum_all``: their sum."""
    a, b = np.asarray(embedding1, np.float64), np.asarray(embedding2, np.float64)
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"embeddings must both be (N, E), got {a.shape} and {b.shape}")
    distances = np.linalg.norm(a - b, axis=1)
    return distances.sum() if sum_all else distances


def retrieval_batches(groups, batch_size, rng):
    """Batches of row numbers, drawn at random, in which no group appears twice; incomplete batches are
    dropped.

    groups: (N,), rows of one group are equally right answers to each other (they share a caption), so that
    they must not compete. rng: ``numpy.random.Generator``. Returns a list of int arrays (batch_size,).
    """
    groups = np.asarray(groups)
    full, open_batches = [], []
    for row in rng.permutation(len(groups)):
        group = groups[row].item()
        # {group: row}, the first that lacks the group
        batch = next((b for b in open_batches if group not in b), None)
        if batch is None:
            batch = {}
            open_batches.append(batch)
        batch[group] = int(row)
        if len(batch) == batch_size:
            full.append(np.array(list(batch.values())))
            open_batches = [b for b in open_batches if b is not batch]
    return full


# ---- distributions -----------------------------------------------------------------------------------------


def calculate_activation_statistics(activations):
    """(N, E) -> mean (E,), covariance (E, E)."""
    activations = np.asarray(activations, np.float64)
    if activations.ndim != 2 or len(activations) < 2:
        raise ValueError(f"statistics need at least 2 embeddings (N, E), got {activations.shape}")
    return activations.mean(0), np.atleast_2d(np.cov(activations, rowvar=False))


def calculate_frechet_distance(mu1, sigma1, mu2, sigma2, eps=1e-6):
    """Frechet distance between two Gaussians: |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (FID, Heusel et
    al. 2017).

    The trace of the root is that of (R S2 R)^(1/2), R = S1^(1/2): symmetric, so that it stays real and finite
    for the singular covariances of small sets, where a general matrix square root breaks down. Where it is
    not finite all the same, ``eps`` is added to both diagonals before the root. Statistics that are not
    finite themselves give nan.
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
    """Mean distance of ``diversity_times`` random pairs of (N, E). Needs N >= diversity_times."""
    activation = np.asarray(activation, np.float64)
    if activation.ndim != 2 or len(activation) < diversity_times:
        raise ValueError(f"diversity over {diversity_times} pairs needs as many embeddings (N, E), got "
                         f"{activation.shape}")
    first = np.random.choice(len(activation), diversity_times, replace=False)
    second = np.random.choice(len(activation), diversity_times, replace=False)
    return float(np.linalg.norm(activation[first] - activation[second], axis=1).mean())


def calculate_multimodality(activation, multimodality_times):
    """Mean distance of ``multimodality_times`` random pairs of samples of one text: (texts, samples, E)."""
    activation = np.asarray(activation, np.float64)
    if activation.ndim != 3 or activation.shape[1] < multimodality_times:
        raise ValueError(f"multimodality over {multimodality_times} pairs needs (texts, samples, E) with as "
                         "many samples, "
                         f"got {activation.shape}")
    first = np.random.choice(activation.shape[1], multimodality_times, replace=False)
    second = np.random.choice(activation.shape[1], multimodality_times, replace=False)
    return float(np.linalg.norm(activation[:, first] - activation[:, second], axis=2).mean())


def confidence_interval(values):
    """Half-width of the 95% interval of the mean of repeats: 1.96 std / sqrt(n), along the first axis."""
    values = np.asarray(values, np.float64)
    return 1.96 * values.std(axis=0) / np.sqrt(len(values))


# ---- joints ------------------------------------------------------------------------------------------------


def calculate_mpjpe(gt_joints, pred_joints):
    """Mean distance of joints after aligning the root (joint 0) of each pose: (..., T, J, 3) twice -> (...,
    T), in their unit."""
    gt, pred = same_joints(gt_joints, pred_joints)
    return np.linalg.norm((gt - gt[..., :1, :]) - (pred - pred[..., :1, :]), axis=-1).mean(-1)


def acceleration_error(gt_joints, pred_joints):
    """Mean difference of the joints' accelerations, not aligned: (..., T, J, 3) twice -> (..., T-2), in units
    per frame^2. Jitter shows here that MPJPE hides."""
    gt, pred = same_joints(gt_joints, pred_joints)
    return np.linalg.norm(np.diff(gt, 2, axis=-3) - np.diff(pred, 2, axis=-3), axis=-1).mean(-1)


def foot_skating(joints, fps, skeleton):
    """Mean horizontal speed () or (...) of feet while they stand, metres per second; 0 is ideal, nan if no
    foot ever stands.

    joints: (..., T, J, 3), Y up, in metres. skeleton: has
    ``left_feet`` and ``right_feet``, joint numbers of ankles and toes. Each is measured against the lowest
    place it reaches itself, since an ankle stands higher than a toe.
    """
    # (..., T, 4, 3)
    feet = np.asarray(joints, np.float64)[..., [*skeleton.left_feet, *skeleton.right_feet], :]
    velocity = np.diff(feet, axis=-3) * fps  # (..., T-1, 4, 3)
    height = (feet[..., 1:, :, 1] + feet[..., :-1, :, 1]) / 2 - feet[..., 1].min(-2)[..., None, :]
    contact = (height < CONTACT_HEIGHT) & (np.abs(velocity[..., 1]) < CONTACT_SPEED)
    speed = np.linalg.norm(velocity[..., [0, 2]], axis=-1) * contact
    with np.errstate(invalid="ignore"):  # 0 / 0
        return speed.sum((-1, -2)) / contact.sum((-1, -2))


def same_joints(gt_joints, pred_joints):
    """Both as float64 (..., T, J, 3); raises ValueError where their shapes differ."""
    gt, pred = np.asarray(gt_joints, np.float64), np.asarray(pred_joints, np.float64)
    if gt.shape != pred.shape or gt.ndim < 3 or gt.shape[-1] != 3:
        raise ValueError(f"joints must both be (T, J, 3), got {gt.shape} and {pred.shape}")
    return gt, pred


def of_one_length(motions, most=256):
    """Row numbers of motions (T_i, D) in groups of equal length, of ``most`` rows at most."""
    lengths = np.array([len(motion) for motion in motions])
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        yield from np.split(rows, range(most, len(rows), most))
