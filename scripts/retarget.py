"""Put clips of one skeleton on the bones of another.

    python -m scripts.retarget clips/ --map map.json --from t2m --to studio.json --out retargeted/

Clips are .npy files of joints (frames, J, 3) in metres, Y up, as sample.py writes them, or folders of them;
OUT receives files of the same names. The map is JSON, {joint of --to: joint of --from}, by names; without
--map, joints of equal names belong together. Bones point where those of the source do and have the lengths of
--to; what the source lacks follows the rest pose (utils/motion/retargeting.py). Feet may slide a little, as
hips are as wide as those of --to.
"""
from pathlib import Path

import numpy as np

from scripts.export import check_names, find_files
from utils.arrays import load_array
from utils.drawing import check_joints
from utils.errors import MissingFile, UserError, run
from utils.files import atomic_write, read_json
from utils.motion.retargeting import transfer
from utils.motion.skeleton_files import read_skeleton
from utils.options import make_parser


def parse_args():
    parser = make_parser(__doc__)
    add = parser.add_argument
    known = "t2m, kit, or the skeleton file, dataset.json or checkpoint that has it"
    add("clips", type=Path, nargs="+", help=".npy files, or folders of them")
    add("--map", type=Path, default=None, help="JSON of names; default: equal names")
    add("--from", dest="source", required=True, metavar="SKELETON", help=f"skeleton of the clips: {known}")
    add("--to", dest="target", required=True, metavar="SKELETON", help="skeleton to make: likewise")
    add("--out", type=Path, required=True, help="folder of the results")
    return parser.parse_args()


def read_map(path, source, target):
    """{joint of target: joint of source} of a file, or of equal names. UserError for unknown names."""
    numbers = [{name: joint for joint, name in enumerate(skeleton.joint_names)}
               for skeleton in (source, target)]
    if path is None:
        return {joint: numbers[0][name] for name, joint in numbers[1].items() if name in numbers[0]}
    if not path.is_file():
        raise MissingFile(f"--map: no file {path}")
    names = read_json(path, "--map")
    for pair in names.items():
        for name, known, skeleton in zip(pair, numbers[::-1], (target, source)):
            if not isinstance(name, str) or name not in known:
                raise UserError(f"--map: {path} names '{name}', which is no joint of {skeleton.name}; it has "
                                f"{', '.join(known)}")
    return {numbers[1][to]: numbers[0][of] for to, of in names.items()}


def main():
    args = parse_args()
    source, target = read_skeleton(args.source), read_skeleton(args.target)
    mapping, files = read_map(args.map, source, target), find_files(args.clips)
    check_names(files, args.out)
    for path in files:
        if (args.out / path.name).exists():
            raise UserError(f"{args.out / path.name} exists already; pass another --out")
    for path in files:
        try:
            joints, _ = transfer(check_joints(load_array(path), source), source, target, mapping)
        except UserError as error:
            raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
        with atomic_write(args.out / path.name) as temporary, open(temporary, "wb") as file:
            np.save(file, joints.astype(np.float32))
        print(args.out / path.name)


if __name__ == "__main__":
    run(main)
