"""How smooth motions are, overall, where they turn, and where one action follows another.

A motion is looked at in stretches of one second, each half a second after the one before, so that all have
the same length, which the spectral arc length depends on. A stretch is "turning" where the body's heading at
its end differs from that at its beginning by TURN or more (a yaw rate of 45 degrees per second, averaged over
the stretch), and a "transition" is the stretch around a change from one action to the next. Where a clip
changes is known of seams, or found by the semantic probes (``probes.action_change``).

Shapes: T frames, J joints, S stretches, n frames of a stretch; metres.
"""
import numpy as np

from utils.evaluation import metrics
from utils.motion.skeleton_files import heading_of

SECONDS = 1.0
TURN = np.pi / 4  # radians
STILL = 0.05  # metres per second: of joints slower than this on average the spectrum is that of noise
SEGMENTS = ("all", "turning", "transition")
MEASURES = {"acceleration": ("m/s^2", 2), "jerk": ("m/s^3", 1), "sparc": ("spectral arc length", 3)}
# Of tables, as ``flat`` names them: {column: (unit, digits)}.
SMOOTHNESS = {f"{name}_{segment}": column for segment in SEGMENTS for name, column in MEASURES.items()}


def stretches(joints, fps, changes=()):
    """The stretches (S, n, J, 3) of joints (T, J, 3), and those around the frames ``changes``, which a clip's
    beginning or end does not cut off; S may be 0."""
    size = round(SECONDS * fps)
    starts = np.arange(0, len(joints) - size + 1, max(size // 2, 1))
    around = np.array([change - size // 2 for change in changes], int)
    around = around[(around >= 0) & (around + size <= len(joints))]
    return [np.asarray(joints, np.float64)[places[:, None] + np.arange(size)] for places in (starts, around)]


def turning(pieces, skeleton):
    """Whether stretches (S, n, J, 3) turn (S,)."""
    headings = [np.unwrap(heading_of(piece, skeleton.face_joints)) for piece in pieces]
    return np.array([abs(heading[-1] - heading[0]) >= TURN for heading in headings], bool)


def measure(pieces, fps):
    """{measure: (S,)} of stretches (S, n, J, 3): mean norms of acceleration and jerk, and the spectral arc
    length of the joints' speeds, mean over the joints that move (nan where none does)."""
    speed = np.linalg.norm(metrics.differences(pieces, fps, 1), axis=-1).swapaxes(-1, -2)  # (S, J, n - 1)
    arcs = np.where(speed.mean(-1) < STILL, np.nan, metrics.spectral_arc_length(speed, fps))
    moving = np.isfinite(arcs)
    sparc = np.where(moving, arcs, 0).sum(-1) / np.where(moving.any(-1), moving.sum(-1), np.nan)
    return {"acceleration": metrics.acceleration(pieces, fps), "jerk": metrics.mean_jerk(pieces, fps),
            "sparc": sparc}


def smoothness(clips, fps, skeleton, changes=None):
    """{segment: {"stretches": how many, measure: mean over them}} of clips, joints (T, J, 3) in metres;
    measures are None in a segment that has no stretch. changes: for each clip the frames at which its action
    changes; None: nowhere."""
    found = {segment: [] for segment in SEGMENTS}
    for clip, frames in zip(clips, changes or [()] * len(clips)):
        whole, around = stretches(clip, fps, frames)
        for segment, pieces in (("all", whole), ("turning", whole[turning(whole, skeleton)]),
                                ("transition", around)):
            if len(pieces):
                found[segment].append(measure(pieces, fps))
    return {segment: summary(rows) for segment, rows in found.items()}


def summary(rows):
    """Means over the stretches of ``measure`` dicts."""
    values = {name: np.concatenate([row[name] for row in rows]) if rows else np.zeros(0) for name in MEASURES}
    return {"stretches": len(values["jerk"])} | {
        name: float(np.nanmean(value)) if np.isfinite(value).any() else None
        for name, value in values.items()}


def flat(found):
    """{"jerk_all": ..., "jerk_turning": ...} of ``smoothness``, None for what it lacks; {} for None."""
    return {f"{name}_{segment}": values[name] for segment, values in (found or {}).items()
            for name in MEASURES}
