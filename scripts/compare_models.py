"""Several generators on the same prompts: their clips side by side, and how smooth they are.

    python -m scripts.compare_models --models FSQ_MARDM VQ_MARDM MARDM --dataset_name t2m \\
        --text_prompt "a person turns around and walks back" "a man jumps twice"
    python -m scripts.compare_models --models A B --dataset_name demo --text_path prompts.txt --format gif

Every generator of --models makes the clips that sample.py makes of these flags: the same prompts, lengths and
noise seeds. (Targets of different widths get different noise, from the same seed.) The clips go where
sample.py puts them, <output_dir>/<model>_<dataset>/, and a picture of each prompt and repeat, with a column
for each model, to <output_dir>/<name>_<dataset>/, beside compare_models.json: foot skating, acceleration,
jerk and spectral arc length of each model's clips, overall, where they turn, and around the change of action
in prompts of two actions that the semantic probes know. After a kill the same command goes on where it
stopped.
"""
import argparse

import numpy as np
from tqdm import tqdm

import sample
from models.AE import AE_models
from models.MARDM import MARDM_models
from utils import options
from utils.errors import UserError, run
from utils.evaluation.metrics import foot_skating
from utils.evaluation.probes import action_change
from utils.evaluation.prompts import OUTSIDERS, PROMPTS
from utils.evaluation.smoothness import MEASURES, SEGMENTS, smoothness
from utils.files import digest
from utils.report import format_table, write_json
from utils.training.settings import code_version, machine
from utils.visualize import gallery

CELL = (300, 360)  # pixels of a clip with its caption
MOST = 8  # models side by side
SEQUENCES = {prompt: actions for prompt, actions in (*PROMPTS, *OUTSIDERS) if len(actions) == 2}


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="compare")
    options.add_generator(parser, AE_models, MARDM_models)
    options.add_sampler(parser)
    add = parser.add_argument
    add("--models", nargs="+", required=True, metavar="RUN",
        help="--name of each generator's run, in the order of the columns")
    add("--motion_length", type=options.non_negative_int, default=0,
        help="frames, rounded down to a multiple of 4; 0 = estimated")
    add("--length_estimator", default="length_estimator", help="its --name")
    add("--format", choices=["mp4", "gif", "webp"], default="mp4", help="of the pictures")
    parser.set_defaults(export=None, start_pose=None, trajectory=None)
    args = parser.parse_args()
    twice = {name for name in args.models if args.models.count(name) > 1}
    if twice or not 2 <= len(args.models) <= MOST:
        raise UserError(f"--models: '{min(twice)}' is named twice" if twice else
                        f"--models: {len(args.models)} given; from 2 to {MOST} fit side by side")
    if args.no_video:
        raise UserError("--no_video: pictures are what this script makes; sample.py makes clips without them")
    given = [f"--{name}" for name in ("ae_name", "ae_model", "model") if getattr(args, name) is not None]
    if given:
        raise UserError(f"{given[0]}: each generator comes as it was trained; leave it out")
    return args


def of_run(args, name):
    """The arguments that sample.py would have for the generator ``name``."""
    return argparse.Namespace(**vars(args) | {"name": name, "no_video": True})


def load_all(args):
    """[(name, arguments, Pipeline, checkpoint, DatasetSpec)]. UserError for generators that differ in what
    they read or draw."""
    loaded = [(name, of_run(args, name), *sample.load(of_run(args, name), args.precision))
              for name in args.models]
    (first, _, pipeline, checkpoint, spec), *others = loaded
    for name, _, other, their_checkpoint, their_spec in others:
        for what, one, two in (("reads", pipeline.generator.cond_mode, other.generator.cond_mode),
                               ("has the skeleton", spec.layout.name, their_spec.layout.name),
                               ("has frames per second:", spec.fps, their_spec.fps),
                               ("knows the actions", checkpoint.get("actions"),
                                their_checkpoint.get("actions"))):
            if one != two:
                raise UserError(f"--models: {name} {what} {two}, {first} {one}; they cannot be compared")
    return loaded


def make_clips(loaded):
    """{name: [(file name without suffix, joints (T, J, 3), prompt)]}, written as sample.py writes them.
    UserError where two generators draw other lengths."""
    planned = {name: sample.single_clips(args, pipeline, checkpoint, spec, sample.folder_of(args))
               for name, args, pipeline, checkpoint, spec in loaded}  # mistakes come before the first clip
    if options.checked():
        return {}
    made = {}
    for name, args, *_, spec in loaded:
        clips = list(planned[name])
        sample.write(clips, args, spec)
        made[name] = [(stem, joints, prompt) for stem, joints, prompt, _ in clips]
    first = loaded[0][0]
    for name, clips in made.items():
        for (_, joints, prompt), (_, theirs, _) in zip(made[first], clips):
            if len(joints) != len(theirs):
                raise UserError(f"'{prompt}': {name} drew {len(theirs)} frames and {first} {len(joints)}, "
                                "from the lengths of their training clips; give --motion_length")
    return made


def draw_all(made, args, spec, folder):
    """A picture for each prompt and repeat; one that is there is kept. Returns their paths."""
    paths = []
    for row in tqdm(list(zip(*made.values())), desc="pictures", unit="picture"):
        stem, joints, prompt = row[0]
        key = digest([[clip.tolist() for _, clip, _ in row], list(made)])[:8]
        path = folder / f"{stem}_{key}.{args.format}"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            cells = [(clip, f"{name}: {prompt}") for name, (_, clip, _) in zip(made, row)]
            gallery(cells, path, spec.layout, spec.fps, len(cells), CELL, len(joints) / spec.fps,
                    min(spec.fps, 20))
        paths.append(path)
    return paths


def measure(clips, spec):
    """Foot skating and ``smoothness`` of clips [(stem, joints, prompt)], and how many were asked for two
    actions and perform both."""
    known = SEQUENCES if spec.layout.name == "t2m" else {}
    changes = [action_change(known[prompt], joints, spec.fps) if prompt in known else None
               for _, joints, prompt in clips]
    joints = [clip for _, clip, _ in clips]
    skating = np.array([foot_skating(clip, spec.fps, spec.layout) for clip in joints])
    asked = sum(prompt in known for *_, prompt in clips)
    return {"clips": len(clips), "sequences": asked,
            "sequences_performed": sum(change is not None for change in changes),
            "foot_skating": float(np.nanmean(skating)) if np.isfinite(skating).any() else None,
            "smoothness": smoothness(joints, spec.fps, spec.layout,
                                     [[] if change is None else [change] for change in changes])}


def make_table(found):
    rows = [("foot skating m/s", *(shown(one["foot_skating"], 4) for one in found.values()))]
    for segment in SEGMENTS:
        parts = [one["smoothness"][segment] for one in found.values()]
        if any(part["stretches"] for part in parts):
            rows.append((f"{segment}: stretches", *(part["stretches"] for part in parts)))
            rows += [(f"{segment}: {name} {unit}", *(shown(part[name], digits) for part in parts))
                     for name, (unit, digits) in MEASURES.items()]
    if any(one["sequences"] for one in found.values()):
        rows.append(("both actions performed", *(f"{one['sequences_performed']} of {one['sequences']}"
                                                 for one in found.values())))
    return format_table(rows, ("metric", *found))


def shown(value, digits):
    return "-" if value is None else f"{value:.{digits}f}"


def main():
    args = parse_args()
    loaded = load_all(args)
    spec, folder = loaded[0][4], sample.folder_of(args)
    made = make_clips(loaded)
    if not made:
        return
    paths = draw_all(made, args, spec, folder)
    found = {name: measure(clips, spec) for name, clips in made.items()}
    print("\n".join(map(str, paths)), make_table(found), sep="\n\n")
    write_json(folder / "compare_models.json", {
        "kind": "comparison of generators", "dataset": args.dataset_name, "seed": args.seed, "models": found,
        "settings": {key: value if isinstance(value, (int, float, list, type(None))) else str(value)
                     for key, value in vars(args).items()},
        "clips": [{"prompt": prompt, "frames": len(joints)} for _, joints, prompt in made[loaded[0][0]]],
        "weights": {name: pipeline.hashes for name, _, pipeline, *_ in loaded},
        "pictures": [path.name for path in paths], "machine": machine(), "code_version": code_version()})


if __name__ == "__main__":
    run(main)
