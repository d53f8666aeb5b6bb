"""Clips in the formats of other software: BVH, GLB (a mannequin that moves), npz (rotations of SMPL's joints,
as in AMASS) and CSV. docs/formats.md has the conventions.

    python -m scripts.export generation/demo_MARDM_demo --formats bvh glb
    python -m scripts.export walk.npy jump.npy --formats npz csv --output_dir exported

Clips are .npy files of joints, (frames, J, 3) in metres, as sample.py and edit.py write them; of a folder all
are taken. Files get the clip's name and lie beside it, or in --output_dir. For every clip the script says how
far the rig's joints are from the clip's: a rig has bones of constant length, and generated ones vary.
"""
import unicodedata
from pathlib import Path

from scripts.gallery import find_clips, read_clip
from utils.errors import MissingFile, UserError, run
from utils.export.formats import Clip, add_formats, check_formats, export_clip
from utils.facts import read_facts
from utils.motion.skeleton_files import read_description, skeleton_of_file
from utils.options import add_skeleton, make_parser, positive_float


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("clips", nargs="+", metavar="CLIP", help=".npy files, or folders of them")
    add_formats(parser, "--formats", default=["bvh", "glb"], help="formats to write")
    add_skeleton(parser)
    parser.add_argument("--fps", type=positive_float, default=None,
                        help="frames per second of the clips; default: as their .json files say, else the "
                             "skeleton's (t2m 20, kit 12.5)")
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
        # some file systems take names for the same that differ in case, or in how a letter is composed
        name = unicodedata.normalize("NFC", file.stem).casefold()
        other = known.setdefault(name if folder else file, file)
        if other != file:
            raise UserError(f"{other} and {file} would both be {file.stem} in {folder}; write them to "
                            "different folders")


def main():
    args = parse_args()
    described = args.skeleton and read_description(args.skeleton)
    files = find_files(args.clips)
    check_names(files, args.output_dir)
    skeletons = [skeleton_of_file(file, described) for file in files]
    for skeleton in skeletons:
        check_formats(args.formats, skeleton)
    for file, skeleton in zip(files, skeletons):
        fps = args.fps or read_facts(file).get("fps", skeleton.fps)
        clip = Clip(file.stem, read_clip(file, skeleton), skeleton, fps)
        paths = export_clip(clip, args.output_dir or file.parent, args.formats)
        mean, most = (1000 * distance for distance in clip.deviation())
        print(*paths, sep="\n")
        print(f"  the rig is {mean:.1f} mm from the clip on average, {most:.1f} mm at most")


if __name__ == "__main__":
    run(main)
