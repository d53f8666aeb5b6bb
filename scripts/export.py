"""Clips in the formats of other software: BVH, GLB (a mannequin that moves), npz (rotations of SMPL's joints,
as in AMASS) and CSV. docs/formats.md has the conventions.

    python -m scripts.export generation/demo_MARDM_demo --formats bvh glb
    python -m scripts.export walk.npy jump.npy --formats npz csv --output_dir exported

Clips are .npy files of joints, (frames, J, 3) in metres, as sample.py and edit.py write them; of a folder all
are taken. Files get the clip's name and lie beside it, or in --output_dir. For every clip the script says how
far the rig's joints are from the clip's: a rig has bones of constant length, and generated ones vary.
"""
from pathlib import Path

from scripts.gallery import find_clips, read_clip
from utils.errors import MissingFile, UserError, run
from utils.export.formats import Clip, add_formats, check_formats, export_clip
from utils.motion.skeletons import SKELETONS
from utils.options import make_parser, positive_float


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("clips", nargs="+", metavar="CLIP", help=".npy files, or folders of them")
    add_formats(parser, "--formats", default=["bvh", "glb"], help="formats to write")
    parser.add_argument("--skeleton", choices=list(SKELETONS), default="t2m", help="skeleton of the clips")
    parser.add_argument("--fps", type=positive_float, default=None,
                        help="frames per second of the clips; default: the skeleton's (t2m 20, kit 12.5)")
    parser.add_argument("--output_dir", default=None, help="folder of the results; default: beside each clip")
    return parser.parse_args()


def find_files(places):
    """The .npy files of the command line's files and folders, each once."""
    files = []
    for place in map(Path, places):
        if place.is_dir():
            files += find_clips(None, place)
        elif place.is_file():
            files.append(place)
        else:
            raise MissingFile(f"no file or folder {place}")
    return list(dict.fromkeys(files))


def check_names(files, folder):
    """UserError if two clips would get the same name in --output_dir."""
    known = {}
    for file in files:
        other = known.setdefault(file.stem if folder else file, file)
        if other != file:
            raise UserError(f"{other} and {file} would both be {file.stem} in {folder}; export them to "
                            "different folders")


def main():
    args = parse_args()
    skeleton = SKELETONS[args.skeleton]
    check_formats(args.formats, skeleton)
    files = find_files(args.clips)
    check_names(files, args.output_dir)
    for file in files:
        clip = Clip(file.stem, read_clip(file, skeleton), skeleton, args.fps or skeleton.fps)
        paths = export_clip(clip, args.output_dir or file.parent, args.formats)
        mean, most = (1000 * distance for distance in clip.deviation())
        print(*paths, sep="\n")
        print(f"  the rig is {mean:.1f} mm from the clip on average, {most:.1f} mm at most")


if __name__ == "__main__":
    run(main)
