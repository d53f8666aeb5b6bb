"""A person of the demo data set who acts: the state between two actions, and tools to draw curves.

Times are in frames, 20 per second; n is the number of frames of the part that is being made.
"""
import numpy as np
from scipy.interpolate import CubicHermiteSpline

from utils.demo.body import CHANNELS, FOOT_LENGTH, SIDES, random_body, solve

FPS = 20
OTHER = {"l": "r", "r": "l"}
SIGN = dict(SIDES)


def smooth(u):
    """0 -> 1 with no speed and no acceleration at either end."""
    u = np.clip(u, 0, 1)
    return u ** 3 * (10 - 15 * u + 6 * u * u)


def ramp(n, start, stop):
    """(n,) 0 before ``start``, 1 after ``stop``."""
    return smooth((np.arange(n) - start) / max(stop - start, 1e-6))


def pulse(n, start, top, end_of_top, stop):
    return ramp(n, start, top) - ramp(n, end_of_top, stop)


def curve(n, *keys):
    """(n,) through keys (frame, value[, slope per frame]); slope 0 where it is not given."""
    at, value, slope = np.array([(*key, 0.0)[:3] for key in keys], dtype=np.float64).T
    return CubicHermiteSpline(at, value, slope)(np.clip(np.arange(n), at[0], at[-1]))


class Performer:
    """A person somewhere on the floor. An action changes the curves of ``neutral(n)``, which stand at ease,
    and appends them; the next action starts where it ended. ``followed``: another action comes after this
    one; ``brief``: the clip has two actions."""

    def __init__(self, rng):
        self.rng, self.body = rng, random_body(rng)
        self.position, self.yaw = rng.uniform(-1, 1, 2), rng.uniform(-180, 180)
        self.lead = rng.choice(["l", "r"])
        self.parts = []
        self.stance = rng.uniform(0.085, 0.115)
        self.ahead = 0.11 * self.body.length[10] / FOOT_LENGTH
        self.toe_out = rng.uniform(3, 12)
        self.ease = {"bend": rng.uniform(0, 7), "head_pitch": rng.uniform(-6, 5),
                     "height": rng.uniform(-0.008, 0)}
        for side, _ in SIDES:
            self.ease.update({f"{side}_swing": rng.uniform(-2, 9), f"{side}_spread": rng.uniform(7, 14),
                              f"{side}_roll": rng.uniform(5, 40), f"{side}_elbow": rng.uniform(10, 26),
                              f"{side}_splay": rng.uniform(2, 8)})
        self.seat, self.followed, self.brief = None, False, False
        self.feet = {side: self.footprint(side) + np.append(rng.normal(0, 0.012, 2), rng.normal(0, 2))
                     for side, _ in SIDES}

    def uniform(self, low, high):
        return float(self.rng.uniform(low, high))

    def pick(self, *items):
        return items[int(self.rng.integers(len(items)))]

    def count(self, *choices):
        """One of the choices; of their lower half when another action shares the clip."""
        choices = sorted(choices)
        return self.pick(*choices[: (len(choices) + 1) // 2] if self.brief else choices)

    def footprint(self, side, position=None, yaw=None, width=None):
        """x, z and yaw of the ball of this foot for a pelvis at ``position``; by default as it stands."""
        position, yaw = (self.position if position is None else position), (self.yaw if yaw is None else yaw)
        sideways = SIGN[side] * (self.stance if width is None else width)
        return np.append(position + planar(yaw, sideways, self.ahead), yaw + SIGN[side] * self.toe_out)

    def neutral(self, n):
        c = {name: np.full(n, float(self.ease.get(name, 0.0))) for name in CHANNELS}
        add(c, x=self.position[0], z=self.position[1], yaw=self.yaw)
        for side, (x, z, yaw) in self.feet.items():
            add(c, side, foot_x=x, foot_z=z, foot_yaw=yaw)
        return c

    def append(self, c):
        self.parts.append(c)
        self.position, self.yaw = np.array([c["x"][-1], c["z"][-1]]), float(c["yaw"][-1])
        self.feet = {side: np.array([c[f"{side}_foot_{name}"][-1] for name in ("x", "z", "yaw")])
                     for side in self.feet}

    def rest(self, low, high):
        n = int(self.rng.integers(low, high + 1))
        if n:
            self.append(self.neutral(n))

    def hold(self, low, high):
        """Stay as the last action ended (seated, kneeling, an arm up)."""
        n = int(self.rng.integers(low, high + 1))
        self.parts.append({name: np.full(n, values[-1]) for name, values in self.parts[-1].items()})

    def shift(self, c, ahead=0.0, sideways=0.0):
        """Move the pelvis by curves given in the body's own directions (left is positive)."""
        move = planar(c["yaw"], sideways, ahead)
        add(c, x=move[..., 0], z=move[..., 1])

    def shift_foot(self, c, side, ahead=0.0, sideways=0.0):
        move = planar(c["yaw"], sideways, ahead)
        add(c, side, foot_x=move[..., 0], foot_z=move[..., 1])

    def arm(self, c, side, weight, **angles):
        """Blend one arm from where it is towards the given angles by ``weight`` (n,)."""
        for name, angle in angles.items():
            add(c, side, **{name: weight * (angle - c[f"{side}_{name}"])})

    def finish(self):
        """Joints (T, 22, 3) of all parts, with the small movements of somebody who is alive."""
        c = {name: np.concatenate([part[name] for part in self.parts]) for name in CHANNELS}
        n = len(c["x"])
        size = {"bend": 0.8, "side": 0.7, "twist": 1.0, "head_pitch": 1.5, "head_yaw": 2.5, "head_roll": 1.0,
                "x": 0.004, "z": 0.004, "pelvis_roll": 0.4, "pelvis_pitch": 0.4}
        size.update({f"{side}_{name}": amount for side, _ in SIDES for name, amount in
                     (("swing", 1.5), ("spread", 1.0), ("elbow", 2.0), ("roll", 2.0))})
        add(c, **{name: amount * drift(n, self.rng) for name, amount in size.items()})
        return solve(self.body, c)


def add(c, limb="", /, **changes):
    """Add to curves by name; where ``limb`` ("l", "r") is given, to those of this arm and leg."""
    for name, change in changes.items():
        key = f"{limb}_{name}" if limb else name
        c[key] = c[key] + change


def planar(yaw, sideways, ahead):
    """World (x, z) of a vector given in the body's directions."""
    s, k = np.sin(np.radians(yaw)), np.cos(np.radians(yaw))
    return np.stack([sideways * k + ahead * s, ahead * k - sideways * s], -1)


def drift(n, rng):
    """(n,) slow random movement of about unit size: breathing, shifting weight."""
    period = rng.uniform([18, 35, 60], [35, 60, 140])
    phase = rng.uniform(0, 2 * np.pi, 3)
    return (np.sin(2 * np.pi * np.arange(n)[:, None] / period + phase) * [0.35, 0.6, 0.8]).sum(-1)


def tempo_of(value, slow, fast):
    """"slow" below, "fast" above, None in between; for a period, slow > fast and the other way round."""
    if slow > fast:
        value, slow, fast = -value, -slow, -fast
    return "slow" if value < slow else "fast" if value > fast else None


def size_of(value, small, big):
    return "small" if value < small else "big" if value > big else None
