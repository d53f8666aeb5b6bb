"""Clips whose planted feet do not slide, beside the clips that they are made from.

    python -m scripts.clean_feet generation/demo_MARDM_demo/*.npy
    python -m scripts.clean_feet walk.npy --output_dir cleaned --fps 30

Clips are .npy files of joints, (frames, J, 3) in metres, Y up, as sample.py and edit.py write them; 22 joints
are HumanML3D's, 21 KIT's, unless the .json file beside a clip says otherwise. Legs below the hips change, all
else stays bit for bit. Prints foot skating before and after, and writes NAME_clean.npy, with what is known of
the clip beside it; never over another file.
"""
from pathlib import Path

import numpy as np

from utils.arrays import load_array
from utils.clips import write_joints
from utils.drawing import check_joints
from utils.errors import UserError, run
from utils.evaluation.metrics import foot_skating
from utils.facts import read_facts, write_facts
from utils.motion.feet import clean_feet
from utils.motion.skeleton_files import read_description, skeleton_of_file
from utils.options import add_skeleton, make_parser, number, positive_float
from utils.report import format_table

DEEPEST = 0.15  # metres: feet that stand further below the floor stand on another one


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("clips", nargs="+", metavar="CLIP", help=".npy files of joints")
    parser.add_argument("--output_dir", default=None, help="folder of the results; default: beside each clip")
    add_skeleton(parser)
    parser.add_argument("--fps", type=positive_float, default=None,
                        help="frames per second; default: as their .json files say, else the skeleton's (t2m "
                             "20, kit 12.5)")
    parser.add_argument("--floor", type=number(float, -100, 100), default=0.0,
                        help="height of the floor in metres; feet below it are lifted")
    return parser.parse_args()


def read_clip(path, floor, described):
    """Joints (T, J, 3) of a file, at least float32, and their Skeleton. UserError for anything else."""
    joints, skeleton = load_array(path), skeleton_of_file(path, described)
    try:
        check_joints(joints, skeleton)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    feet = joints[:, [*skeleton.left_feet, *skeleton.right_feet], 1].min(1)
    if (standing := np.percentile(feet, 10)) < floor - DEEPEST:
        raise UserError(f"{path}: the feet stand {floor - standing:.2f} m below the floor; pass its height, "
                        f"for example --floor {standing:.2f}")
    return joints.astype(np.result_type(joints, np.float32)), skeleton


def main():
    args = parse_args()
    described = args.skeleton and read_description(args.skeleton)
    clips = [(Path(path), *read_clip(path, args.floor, described)) for path in args.clips]
    rows = []
    for path, joints, skeleton in clips:
        facts = read_facts(path)
        fps = args.fps or facts.get("fps", skeleton.fps)
        clean = clean_feet(joints, fps, skeleton, args.floor)
        skating = [f"{foot_skating(clip, fps, skeleton):.4f}" for clip in (joints, clean)]
        moved = np.linalg.norm(clean - joints, axis=-1).max()
        folder = path.parent if args.output_dir is None else Path(args.output_dir)
        written = write_joints(folder, f"{path.stem}_clean", clean)
        write_facts(written, facts | {"fps": fps})
        rows.append((written, *skating, f"{100 * moved:.1f}"))
    print(format_table(rows, ("clip", "foot skating m/s", "after", "largest shift cm"), left=1))


if __name__ == "__main__":
    run(main)
