"""Feet on the ground: when they are in contact, and clips in which planted feet do not slide.

The clean-up finds, for each leg, the smallest smooth shift of its foot that stops planted joints, by least
squares over the whole clip, and bends the knee so that the ankle gets there. Hips and all above stay bit for
bit; bones keep the lengths that they have in each frame.

Shapes: T frames, J joints, F joints of feet, n joints of one foot in contact with the ground.
"""
import numpy as np
from scipy.linalg import solveh_banded
from scipy.ndimage import gaussian_filter1d, maximum_filter1d

from utils.motion.features import TINY
from utils.motion.inbetweening import sections_of

# A foot is in contact while it is near the lowest height that it reaches and hardly moves up or down.
CONTACT_HEIGHT = 0.04  # metres above that lowest height
CONTACT_SPEED = 0.2  # metres per second, vertical
# What is held still must also be slow: a foot may swing forward this close to the ground.
SLIDING_SPEED = 0.5  # metres per second, horizontal
SHORTEST_CONTACT = 0.15  # seconds
# Weights of the least squares; a planted joint's squared step has 1. All are per frame.
SMOOTH = 0.05  # third differences of the shift: contacts begin and end without a jerk
SMALL = 3e-4  # the shift: it fades within about a second, and a foot that is pulled too far creeps
RIGID = 0.02  # differences between the shifts of one foot's joints
PINNED = 1e9  # the shift where the clip must stay
LIFT = 3  # frames by which a lift out of the floor begins before it is needed
ROUNDS, NEAR = 16, 4  # how often a foot that jumps is held less firmly; frames nearby, more each time
# A leg gets longer by at most this part of what it lacks to be straight: a knee that straightens fully snaps.
ROOM = 0.5
STRETCH = 4  # how sharply it stops there: the exponent of a p-norm


def foot_contacts(joints, fps, skeleton):
    """Whether feet are in contact between one frame and the next (..., T - 1, F) bool, and their velocities
    (..., T - 1, F, 3) in m/s.

    joints: (..., T, J, 3), Y up, in metres. skeleton: its ``left_feet`` and ``right_feet`` are the joints of
    feet, F in all. Each is measured from its own lowest height, since an ankle is higher than a toe.
    """
    feet = np.asarray(joints, np.float64)[..., [*skeleton.left_feet, *skeleton.right_feet], :]
    velocity = np.diff(feet, axis=-3) * fps
    height = (feet[..., 1:, :, 1] + feet[..., :-1, :, 1]) / 2 - feet[..., 1].min(-2)[..., None, :]
    return (height < CONTACT_HEIGHT) & (np.abs(velocity[..., 1]) < CONTACT_SPEED), velocity


def clean_feet(joints, fps, skeleton, floor=None, free=None):
    """Joints (T, J, 3) in metres like ``joints``, but feet that stand stay where they are.

    floor: height under which no joint of a foot may be, in metres; None = heights stay. free: (T,) bool, the
    frames that may change; None = all. A leg that would have to be longer than it is moves its plant point,
    not the hips.
    """
    old, free = joints.astype(np.float64), np.ones(len(joints), bool) if free is None else free
    feet = [*skeleton.left_feet, *skeleton.right_feet]
    sides = [[feet.index(joint) for joint in side] for side in (skeleton.left_feet, skeleton.right_feet)]
    shift = np.zeros((len(old), len(feet), 3))
    if floor is not None:
        for side in sides:
            shift[:, side, 1] = lift(old[:, feet][:, side, 1].min(1), floor, free)[:, None]
    lifted = old.copy()
    lifted[:, feet] += shift
    firm = firmness(*foot_contacts(lifted, fps, skeleton), fps)
    across = old[:, skeleton.face_joints[1]] - old[:, skeleton.face_joints[0]]
    out = joints.copy()
    for side, leg in zip(sides, skeleton.legs):
        foot = [leg.index(feet[column]) for column in side]
        new = settle(old[:, leg], foot, shift[:, side], (firm[:, side], free), across)
        changed = free & (new != old[:, leg]).any((1, 2))
        out[np.ix_(changed, leg[1:])] = new[changed, 1:]
    return out


def lift(lowest, floor, free):
    """How far (T,) to lift a foot whose lowest joint is at heights ``lowest`` (T,) above the floor."""
    need = np.where(free, np.maximum(floor - lowest, 0), 0)
    # an average over LIFT frames each way of the largest need within them is never below the need
    return gaussian_filter1d(maximum_filter1d(need, 2 * LIFT + 1), LIFT / 2, truncate=2)


def firmness(contact, velocity, fps):
    """How firmly (T - 1, F), from 0 to 1, to hold joints with the contacts (T - 1, F) and velocities
    (T - 1, F, 3): less the faster they slide, and not where they only touch the ground."""
    speed = np.hypot(velocity[..., 0], velocity[..., 2])
    contact = contact & (speed < SLIDING_SPEED)
    long = np.zeros_like(contact)
    for column, kept in zip(contact.T, long.T):
        for start, stop in sections_of(column):
            kept[start:stop] = stop - start >= SHORTEST_CONTACT * fps
    return long * (1 - np.minimum(speed / SLIDING_SPEED, 1) ** 2) ** 2  # Tukey's biweight


def settle(leg, foot, shift, firm_free, across):
    """Joints (T, m, 3) of a leg, from the hip to the toe, with its foot held, as far as that leaves no larger
    jerk than the leg had.

    foot: places of the foot's n joints in the leg; shift: (T, n, 3), the lift alone; firm_free: see ``hold``;
    across: see ``bend``."""
    firm, free = firm_free
    most = jerk_of(leg).max(initial=0)
    for attempt in range(1, ROUNDS + 1):
        shift[..., ::2] = hold(leg[:, foot][..., ::2], firm, free)
        new = place(leg, foot, shift, across)
        jumps = jerk_of(new) > most
        if not jumps.any():
            break
        # the jerk of 4 frames from t on belongs to the middle one of their 3 steps
        near = maximum_filter1d(np.pad(jumps, 1).astype(int), 2 * NEAR * attempt + 1) > 0
        firm = np.where(near[:, None], firm / 4, firm)
    return new


def jerk_of(joints):
    """The largest jerk (T - 3,) of any of the joints (T, m, 3), per frame^3."""
    return np.linalg.norm(np.diff(joints, 3, axis=0), axis=-1).max(-1)


def hold(feet, firm, free):
    """The shift (T, n, 2) that stops joints (T, n, 2) as far as ``firm`` (T - 1, n), from 0 to 1, says, from
    one frame to the next, and is 0 except in the frames ``free`` (T,). It is the smallest of a sum of
    squares, whose matrix is banded: time grows with T."""
    count, n = feet.shape[:2]
    bands = np.zeros((3 * n + 1, count * n))  # bands[k, i]: the matrix at row i + k, column i
    right = np.zeros((count * n, 2))
    every = np.arange(count * n)

    def add(first, terms, weight):
        """``weight`` times the squares of sums over ``terms`` {place after ``first`` (m,): factor}."""
        for place, factor in terms.items():
            for other, coefficient in terms.items():
                if other >= place:
                    bands[other - place, first + place] += weight * factor * coefficient

    still = firm.ravel()
    add(every[:-n], {0: -1, n: 1}, still)
    step = still[:, None] * np.diff(feet, axis=0).reshape(-1, 2)
    right[:-n] += step
    right[n:] -= step
    add(every[: max(count - 3, 0) * n], {0: -1, n: 3, 2 * n: -3, 3 * n: 1}, SMOOTH)
    add(every, {0: 1}, np.where(np.repeat(free, n), SMALL, PINNED))
    for joint in range(n - 1):
        add(every[joint::n], {0: 1, 1: -1}, RIGID)
    return solveh_banded(bands, right, lower=True).reshape(count, n, 2)


def place(leg, foot, shift, across):
    """Joints (T, m, 3) of a leg whose joints ``foot`` (places in the leg) have the ``shift`` (T, n, 3); those
    between knee and foot are shifted like the foot's first. across: see ``bend``."""
    columns = [foot.index(place) if place in foot else 0 for place in range(2, leg.shape[1])]
    wanted = leg[:, 2:] + shift[:, columns]
    new = leg.copy()
    new[:, 1], new[:, 2] = bend(leg[:, :3], wanted[:, 0], across)
    for place in range(3, leg.shape[1]):
        length = np.linalg.norm(leg[:, place] - leg[:, place - 1], axis=-1, keepdims=True)
        new[:, place] = new[:, place - 1] + unit(wanted[:, place - 2] - new[:, place - 1]) * length
    return np.where(shift.any((1, 2))[:, None, None], new, leg)


def bend(leg, wanted, across):
    """Knees and ankles (T, 3) of legs (T, 3, 3: hip, knee, ankle) whose ankles go to ``wanted`` (T, 3), as
    far as they reach; thigh and shin keep their lengths. across (T, 3): from the right hip to the left one.

    The knee keeps its side of the leg; the more it has to bend than before, the more it bends forward, so
    that a leg that was all but straight does not flip."""
    hip, knee, ankle = leg.swapaxes(0, 1)
    thigh, shin = (np.linalg.norm(bone, axis=-1) for bone in (knee - hip, ankle - knee))
    reach, want = (np.linalg.norm(end - hip, axis=-1) for end in (ankle, wanted))
    room = np.maximum(ROOM * (thigh + shin - reach), TINY)
    further = np.maximum(want - reach, 0)
    further = further / (1 + (further / room) ** STRETCH) ** (1 / STRETCH)  # less than the room
    far = np.maximum(np.minimum(want, reach) + further, np.abs(thigh - shin))
    axis, old_axis = unit(wanted - hip), unit(ankle - hip)
    along = (thigh ** 2 - shin ** 2 + far ** 2) / (2 * np.maximum(far, TINY))
    height = np.sqrt(np.maximum(thigh ** 2 - along ** 2, 0))  # of the knee over the line from hip to ankle
    side = turned(knee - hip, old_axis, axis)
    side = side - (side * axis).sum(-1, keepdims=True) * axis
    before = np.linalg.norm(side, axis=-1)
    share = np.maximum(1 - before / np.maximum(height, TINY), 0)[:, None] ** 2  # of the bend that is new
    side = unit((1 - share) * unit(side) + share * unit(np.cross(axis, across))) * height[:, None]
    return hip + along[:, None] * axis + side, hip + far[:, None] * axis


def turned(vectors, start, end):
    """Vectors (T, 3), turned by the shortest rotation from unit vectors ``start`` to ``end`` (T, 3)."""
    normal = np.cross(start, end)
    cosine = (start * end).sum(-1, keepdims=True)
    return (vectors * cosine + np.cross(normal, vectors)
            + normal * (normal * vectors).sum(-1, keepdims=True) / np.maximum(1 + cosine, TINY))


def unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), TINY)
