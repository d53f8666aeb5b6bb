"""Make a skeleton file from a BVH file, for scripts.prepare_dataset.

    python -m scripts.make_skeleton capture/bvh/walk_01.bvh --out studio.json

Says what it guessed: sides by the names of the joints; hips, shoulders, feet, unit and up axis by the
geometry. Look it over and correct the file (docs/data.md). A joint may be left out of it: the lines of its
children then name the next joint above as their parent.
"""
import json
from pathlib import Path

from utils.errors import UserError, run
from utils.files import write_text
from utils.motion.bvh import read_bvh
from utils.motion.guessing import guess_skeleton
from utils.motion.skeleton_files import get_skeleton
from utils.options import make_parser


def parse_args():
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("bvh", type=Path, help="a file with the hierarchy of all clips, and with some motion")
    add("--out", type=Path, required=True, help="the skeleton file to write (.json)")
    add("--name", default=None, help="name of the skeleton; default: that of --out")
    add("--up", choices=["y", "z"], default=None, help="axis of the file that points up; default: guessed")
    add("--no_fingers", action="store_true", help="leave out the joints beyond the wrists")
    return parser.parse_args()


def write_skeleton(description, path):
    """Write a description as JSON, a line for each joint."""
    rows = ",\n".join(f"  {json.dumps(joint)}" for joint in description["joints"])
    others = {key: value for key, value in description.items() if key != "joints"}
    rest = ",\n ".join(f'"{key}": {json.dumps(value)}' for key, value in others.items())
    write_text(path, f'{{"joints": [\n{rows}],\n {rest}}}\n')


def main():
    args = parse_args()
    if args.out.suffix != ".json":
        raise UserError(f"--out {args.out}: the name of a skeleton file ends in .json")
    if args.out.exists():
        raise UserError(f"{args.out} exists already; remove it, or pass another --out")
    bvh = read_bvh(args.bvh)
    try:
        description, notes = guess_skeleton(bvh, args.name or args.out.stem, args.up, not args.no_fingers)
    except UserError as error:
        raise UserError(f"{args.bvh}: {error}") from error
    get_skeleton(description, str(args.out))
    write_skeleton(description, args.out)
    print(f"{args.out}: please look it over", *notes, sep="\n  ")


if __name__ == "__main__":
    run(main)
