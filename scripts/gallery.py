"""Several clips side by side in one animated picture, each under its caption: for a README or a talk.

    python -m scripts.gallery --folder generation/demo_MARDM_demo
    python -m scripts.gallery --clips walk.npy jump.npy --captions "a walk" "a jump" --output gallery.mp4

Clips are .npy files of joints, (frames, J, 3), as sample.py and edit.py write them. The picture lasts about
as long as the longest clip; shorter ones are repeated.
"""
from pathlib import Path

from utils.arrays import load_array
from utils.clips import caption_of
from utils.drawing import check_joints
from utils.errors import UserError, run
from utils.motion.skeleton_files import read_skeleton
from utils.options import add_skeleton, make_parser, positive_float, positive_int
from utils.visualize import gallery


def parse_args():
    parser = make_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--clips", nargs="+", default=None, metavar="FILE", help=".npy files, in this order")
    source.add_argument("--folder", default=None, help="all .npy files of this folder, sorted by name")
    parser.add_argument("--captions", nargs="+", default=None, metavar="TEXT",
                        help="one per clip; default: from the file names")
    parser.add_argument("--output", default="docs/pictures/gallery.gif", help="a .gif, .webp or .mp4 file")
    parser.add_argument("--columns", type=positive_int, default=3, help="clips per row")
    parser.add_argument("--fps", type=positive_float, default=20.0, help="frames per second of the clips")
    add_skeleton(parser, "t2m")
    parser.add_argument("--seconds", type=positive_float, default=8.0, help="longest part of a clip to show")
    return parser.parse_args()


def find_clips(clips, folder):
    """The files of --clips or --folder, as paths."""
    if clips is not None:
        return [Path(clip) for clip in clips]
    if not Path(folder).is_dir():
        raise UserError(f"--folder: no folder {folder}")
    files = sorted(Path(folder).glob("*.npy"))
    if not files:
        raise UserError(f"--folder: {folder} holds no .npy file")
    return files


def read_clip(path, skeleton):
    """Joints (T, J, 3) of a file; a UserError names it."""
    joints = load_array(path)
    try:
        return check_joints(joints, skeleton)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def main():
    args = parse_args()
    files = find_clips(args.clips, args.folder)
    if args.captions is not None and len(args.captions) != len(files):
        raise UserError(f"--captions: {len(args.captions)} for {len(files)} clips; pass one per clip")
    skeleton = read_skeleton(args.skeleton)
    captions = args.captions or [caption_of(path) for path in files]
    clips = [(read_clip(path, skeleton), caption) for path, caption in zip(files, captions)]
    path = gallery(clips, args.output, skeleton, args.fps, args.columns, seconds=args.seconds)
    print(f"{path}: {len(clips)} clips, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    run(main)
