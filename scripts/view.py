"""Clips side by side in a browser: a page to play, turn and compare them, in one .html file that needs no
network.

    python -m scripts.view generation/FSQ_MARDM_t2m
    python -m scripts.view generation/A_demo generation/B_demo        # a row per prompt, a column per folder
    python -m scripts.view walk.npy jump.npy --output two.html

Clips are .npy files of joints, (frames, J, 3), as sample.py and edit.py write them, or of features as data
sets hold them. Prompt, frame rate and codes come from the .json file beside a clip; without one the prompt is
read from the file name.
"""
from pathlib import Path

from tqdm import tqdm

from utils.errors import MissingFile, UserError, run
from utils.motion.skeleton_files import read_description
from utils.options import add_skeleton, make_parser, positive_float, positive_int
from utils.viewer.page import MOST_CLIPS, check_count, compare, read_clip, write_page


def parse_args():
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("clips", nargs="+", metavar="PATH", help="folders, of which all .npy files are shown, or .npy files")
    add("--grid", action="store_true",
        help="all clips in one grid; otherwise clips of several folders get a column per folder")
    add("--names", nargs="+", default=None, metavar="NAME",
        help="of the columns; default: the folders' names")
    add("--output", default=None,
        help="the page, an .html file; default: view.html in the folder, or here if there are several, with "
             "a number where that exists")
    add("--title", default=None, help="of the page; default: the folders' names")
    add("--fps", type=positive_float, default=None,
        help="frames per second of all clips; default: as their .json files say, else 20 (22 joints) or 12.5 "
             "(21 joints)")
    add("--metres_per_unit", type=positive_float, default=1.0,
        help="unit of the files' joints in metres; 0.001 for KIT-ML's own, which are in millimetres")
    add_skeleton(parser)
    add("--most", type=positive_int, default=MOST_CLIPS, help="most clips of the page; each has about 40 kB")
    return parser.parse_args()


def find_clips(paths):
    """{folder: its chosen .npy files}, in the order of ``paths``. UserError for a folder without any."""
    folders, spelled = {}, {}  # a folder or file counts once, however it is spelled
    for path in map(Path, paths):
        if not path.exists():
            raise MissingFile(f"no file or folder {path}")
        files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{path} holds no .npy file; sample.py writes some")
        folder = path if path.is_dir() else path.parent
        chosen = folders.setdefault(spelled.setdefault(folder.resolve(), folder), {})
        for file in files:
            chosen.setdefault(file.resolve(), file)
    return {folder: list(chosen.values()) for folder, chosen in folders.items()}


def names_of(folders):
    """The shortest ends of the folders' paths that differ from each other, without what all end in."""
    parts = [folder.resolve().parts for folder in folders]
    while len(parts) > 1 and len({part[-1] for part in parts}) == 1 and all(len(part) > 1 for part in parts):
        parts = [part[:-1] for part in parts]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def column_names(args, folders):
    """Names of the columns; none for a grid. UserError where --names does not fit."""
    wanted = len(folders) if len(folders) > 1 and not args.grid else 0
    if args.names is not None and len(args.names) != wanted:
        raise UserError(f"--names: {len(args.names)} for {wanted or 'no'} columns; pass one per folder")
    return (args.names or names_of(folders)) if wanted else []


def output_path(args, folders):
    """Where the page goes. UserError for a name that is no .html file."""
    if args.output is None:
        return (next(iter(folders)) if len(folders) == 1 else Path()) / "view.html"
    path = Path(args.output)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output: {path} must end in .html")
    return path


def main():
    args = parse_args()
    folders = find_clips(args.clips)
    names, path = column_names(args, folders), output_path(args, folders)
    files = [file for chosen in folders.values() for file in chosen]
    check_count(len(files), args.most)
    described = args.skeleton and read_description(args.skeleton)
    clips = {file: read_clip(file, args.fps, args.metres_per_unit, described)
             for file in tqdm(files, desc="reading", unit="clip", delay=1)}
    groups = [[clips[file] for file in chosen] for chosen in folders.values()]
    page = {"columns": names, "rows": compare(groups)} if names else {"clips": list(clips.values())}
    title = args.title or ", ".join(names or names_of(folders))
    path = write_page(path, title, **page, exact=args.output is not None)
    print(f"{path}: {len(files)} clips, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    run(main)
