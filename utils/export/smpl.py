"""npz: rotations of SMPL's joints in the layout of AMASS. Conventions: docs/formats.md."""
import numpy as np

from utils.errors import UserError
from utils.motion.rotations import local_quaternions, orientations, to_axis_angles
from utils.motion.skeletons import SKELETONS, rest_directions

LAYOUT = SKELETONS["t2m"]   # HumanML3D's joints are the first 22 of SMPL
HANDS, BETAS = 30, 16       # joints of SMPL-H's fingers; shape parameters in AMASS's files
Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])   # a quarter turn about x: +y to +z, +z to -y
# Of the neutral SMPL body (betas 0): its pelvis, from the model's origin, and the directions of its bones.
PELVIS = np.array([-0.0018, -0.2233, 0.0282])
REST = rest_directions(LAYOUT.joint_names, {
    "LeftUpLeg": (0.60, -0.79, -0.05), "LeftLeg": (0.095, -0.995, -0.018),
    "LeftFoot": (-0.037, -0.994, -0.107), "LeftToeBase": (0.19, -0.39, 0.90),
    "Spine": (0, 0.97, -0.24), "Spine1": (0, 1, 0.02), "Spine2": (0, 0.92, 0.40), "Neck": (0, 0.98, -0.18),
    "Head": (0, 0.80, 0.60), "LeftShoulder": (0.52, 0.83, -0.22), "LeftArm": (0.95, 0.30, -0.10),
    "LeftForeArm": (0.994, -0.050, -0.095), "LeftHand": (0.999, 0.033, -0.013)})


def check_layout(skeleton):
    """UserError unless the clip's joints are SMPL's."""
    if skeleton != LAYOUT:
        raise UserError(f"npz holds rotations of SMPL's joints, and the {skeleton.name} skeleton has others; "
                        "choose bvh, glb or csv")


def write_npz(clip, path):
    """Write a Clip: poses (T, 156) axis-angle, trans (T, 3), betas (16,), gender, mocap_framerate."""
    bodies, _ = orientations(clip.joints, clip.skeleton, REST)
    bodies = Z_UP @ bodies
    poses = to_axis_angles(local_quaternions(bodies, clip.skeleton.parents))
    frames = len(poses)
    poses = np.concatenate([poses, np.zeros((frames, HANDS, 3))], axis=1)
    np.savez(path, poses=poses.reshape(frames, -1), trans=clip.joints[:, 0] @ Z_UP.T - PELVIS,
             betas=np.zeros(BETAS), gender=np.array("neutral"), mocap_framerate=np.array(float(clip.fps)))
