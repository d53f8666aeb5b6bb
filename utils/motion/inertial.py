"""Virtual inertial sensors: what a small sensor on a bone would measure in a clip.

An accelerometer measures the specific force, which is acceleration less gravity, along its own axes: 1 g
upwards at rest, nothing in free fall. A gyroscope measures the angular velocity about the same axes. Nine
channels a sensor, in the order of "Human Activity Recognition Using Smartphones" (Anguita et al. 2013):

    body acceleration x y z (g, without gravity), angular velocity x y z (rad/s), total acceleration x y z (g)

The axes go with the bone; in the T-pose they are the world's: x to the left, y up, z ahead. Positions are
followed by cubic splines and rotations by splines of continuous angular acceleration, so what is faster than
half the clip's frame rate (impacts, at 20 fps) is not in the signals.

Shapes: T frames, N samples, J joints, C channels, nine per place.
"""
import numpy as np
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, RotationSpline

from utils.motion.features import MotionError
from utils.motion.resampling import sample_times
from utils.motion.rotations import limbs_of, orientations

GRAVITY = 9.80665  # m/s^2 in 1 g
TRIADS = ("body", "gyro", "acc")
CHANNELS = tuple(f"{triad}_{axis}" for triad in TRIADS for axis in "xyz")
# The limb of each place, as a number in ``Skeleton.face_joints``; the hip's is the root.
PLACES = {"left_wrist": 3, "right_wrist": 2, "hip": None, "left_ankle": 1, "right_ankle": 0}
FEWEST = 4  # frames that a cubic spline needs


def channel_names(places):
    """Names of the channels of sensors at the ``places``: "acc_x", or "hip_acc_x" where there are several."""
    return [name if len(places) == 1 else f"{place}_{name}" for place in places for name in CHANNELS]


def sense(positions, turns, fps, rate):
    """What a sensor measures: (N, 9) float32 at ``rate`` samples per second.

    positions: (T, 3) in metres, Y up; turns: (T, 3, 3), which take the sensor's axes to the world's; fps:
    frames per second. MotionError for fewer than 4 frames."""
    if len(positions) < FEWEST:
        raise MotionError(f"{len(positions)} frames are too few for accelerations; {FEWEST} or more are "
                          "needed")
    times, wanted = sample_times(len(positions), fps, rate)
    turning = RotationSpline(times, Rotation.from_matrix(turns))
    axes, acceleration = turning(wanted), CubicSpline(times, positions)(wanted, 2)
    body, total = (axes.apply(vectors, inverse=True) / GRAVITY
                   for vectors in (acceleration, acceleration + [0, GRAVITY, 0]))
    return np.concatenate([body, turning(wanted, 1), total], axis=1).astype(np.float32)


def sensor_joint(skeleton, place):
    """The joint at which a place of PLACES is; the bone that ends there carries the sensor. MotionError
    where the skeleton has no such limb."""
    if PLACES[place] is None:
        return 0
    start = skeleton.face_joints[PLACES[place]]
    found = [limb[2] for limb in limbs_of(skeleton) if limb[0] == start]
    if not found:
        raise MotionError(f"the {skeleton.name} skeleton has no {place.replace('_', ' ')}")
    return found[0]


def virtual_sensors(joints, skeleton, fps, places, rate):
    """Joints (T, J, 3) in metres of a clip -> signals (N, 9 per place) float32 of sensors at the ``places``,
    at ``rate`` samples per second. MotionError as ``sense`` and ``sensor_joint``."""
    joints = np.asarray(joints, np.float64)
    bodies, bones = orientations(joints, skeleton, skeleton.t_pose)
    found = [sensor_joint(skeleton, place) for place in places]
    return np.concatenate([sense(joints[:, joint], bones[:, joint] if joint else bodies[:, 0], fps, rate)
                           for joint in found], axis=1)


def turn_sensor(signals, rotations):
    """Signals (..., N, C) of sensors that are mounted differently: every triad of channels is turned by
    ``rotations`` (..., 3, 3)."""
    triads = signals.reshape(*signals.shape[:-1], -1, 3)
    turned = np.einsum("...ij,...ntj->...nti", rotations, triads)
    return turned.reshape(signals.shape).astype(signals.dtype)


def random_rotations(degrees, count, rng):
    """Rotations (count, 3, 3) by an angle about axes of any direction."""
    axes = rng.standard_normal((count, 3))
    axes *= np.radians(degrees) / np.linalg.norm(axes, axis=1, keepdims=True)
    return Rotation.from_rotvec(axes).as_matrix()
