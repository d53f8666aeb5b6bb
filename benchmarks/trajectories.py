"""How well do clips follow a path on the floor (sample.py --trajectory), and what does it cost the feet?

    python -m benchmarks.trajectories --name demo_MARDM --dataset_name demo

For each prompt and path: "free" clips, made without the path; "forced" ones, the free clips shifted and
turned onto it; "guided" ones, as sample.py makes them. Forced and guided clips have their feet cleaned.
Prints a table and writes trajectories.json into the run's eval/. Needs HumanML3D's skeleton and a generator
that reads text.
"""
import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from models.guidance import generate_towards
from models.pipeline import clip_seed
from models.TextEncoder import load_text_encoder
from sample import load
from utils import options
from utils.data.specs import joints_in_metres
from utils.errors import UserError, run
from utils.evaluation.metrics import foot_skating, peak_jerk
from utils.evaluation.probes import check
from utils.files import RunFolder
from utils.motion.features import recover_root
from utils.motion.feet import clean_feet
from utils.motion.trajectory import Course, Trajectory
from utils.report import format_table, write_results
from utils.training.settings import code_version, machine

HEADER = ("prompt, path", "from the path before, in the clip: mean, largest (cm)",
          "skating: free, forced, guided (m/s)", "peak jerk: free, forced, guided (m/s^3)",
          "pass the probe: free, guided", "s per clip")


def straight(speed):
    return lambda t: (0 * t, speed * t)


def arc(radius, speed):
    return lambda t: (radius * (1 - np.cos(speed * t / radius)), radius * np.sin(speed * t / radius))


PATHS = (  # prompt, action of its probe, the path in words, seconds -> x, z in metres, heading if given
    ("a person walks forward", "walk_forward", "straight, 0.9 m/s", straight(0.9), None),
    ("a person walks forward", "walk_forward", "an S, 0.8 m/s",
     lambda t: (0.5 * np.sin(np.pi * t / 2), 0.75 * t), None),
    ("a person walks in a curve to the left", "walk_curve_left", "arc of 1.5 m, 0.8 m/s", arc(1.5, 0.8),
     None),
    ("a person walks backward", "walk_backward", "straight, 0.6 m/s", straight(0.6), None),
    ("a person runs forward", "run_forward", "straight, 2.3 m/s", straight(2.3), None),
    ("a person steps sideways to the left", "walk_left", "0.5 m/s, heading given", straight(0.5), -np.pi / 2),
    ("a person waves with the right hand", "wave_right", "standing", straight(0.0), None),
)


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="MARDM")
    options.add_sampler(parser)
    add = parser.add_argument
    add("--motion_length", type=options.number(int, 40, 196), default=80, help="frames per clip")
    add("--clips", type=options.positive_int, default=2, help="clips of each prompt")
    parser.set_defaults(model=None, ae_name=None, ae_model=None)
    return parser.parse_args()


def forced(trajectory, features, spec):
    """Joints of a free clip's features (T, D), shifted and turned onto a Trajectory."""
    heading = Course(trajectory, spec, features[None]).heading[0]
    return Course(replace(trajectory, heading=heading), spec, features[None]).place(features, 0)


def away(path, root):
    """Distances (T,) in cm of a root (T, 3) from a path (T, 3), on the floor."""
    return 100 * np.hypot(*(np.asarray(root) - path)[:, [0, 2]].T)


def measure(pipeline, spec, settings, row, cond, seeds, frames):
    """A row of the table, as a dict, of clips with conditions (B, C) and seeds."""
    prompt, action, words, path, heading = row
    t = np.arange(frames) / spec.fps
    trajectory = Trajectory(np.stack(np.broadcast_arrays(*path(t)), -1),
                            None if heading is None else np.full(frames, heading), spec.fps)
    free = pipeline.sample(cond, [frames] * len(seeds), seeds, **settings)
    start = time.perf_counter()
    course, motions = generate_towards(pipeline, partial(Course, trajectory, spec), cond, frames, seeds,
                                       **settings)
    seconds = (time.perf_counter() - start) / len(seeds)
    clean = partial(clean_feet, fps=spec.fps, skeleton=spec.layout, floor=0)
    clips = {"free": [joints_in_metres(clip, spec) for clip in free],
             "forced": [clean(forced(trajectory, clip, spec)) for clip in free],
             "guided": [clean(course.place(motion, clip)) for clip, motion in enumerate(motions)]}
    goal = np.insert(trajectory.positions, 1, 0, axis=-1)
    before = [away(course.path[clip], recover_root(motion.double())[1] * spec.metres_per_unit)
              for clip, motion in enumerate(motions)]
    after = [away(goal, joints[:, 0]) for joints in clips["guided"]]
    return {"prompt": prompt, "path": words, "clips": len(seeds), "seconds_per_clip": seconds,
            "before": [float(np.mean(before)), float(np.max(before))],
            "after": [float(np.mean(after)), float(np.max(after))],
            "skating": {kind: float(np.mean([foot_skating(clip, spec.fps, spec.layout) for clip in made]))
                        for kind, made in clips.items()},
            "jerk": {kind: max(float(peak_jerk(clip, spec.fps)) for clip in made)
                     for kind, made in clips.items()},
            "passed": {kind: sum(check(action, clip, spec.fps) for clip in clips[kind])
                       for kind in ("free", "guided")}}


def table(rows):
    def listed(values, form):
        return ", ".join(form.format(value) for value in values)

    return format_table([(
        f"{row['prompt']}, {row['path']}",
        f"{listed(row['before'], '{:.0f}')}; {listed(row['after'], '{:.0f}')}",
        listed(row["skating"].values(), "{:.2f}"), listed(row["jerk"].values(), "{:.0f}"),
        listed(row["passed"].values(), "{}") + f" of {row['clips']}", f"{row['seconds_per_clip']:.1f}")
        for row in rows], HEADER)


def main():
    args = parse_args()
    pipeline, _, spec = load(args, args.precision)
    if spec.layout.name != "t2m" or pipeline.generator.cond_mode != "text":
        raise UserError(f"--name {args.name}: the paths are for text and the 22 joints of t2m")
    settings = options.sampler_settings(args, spec, pipeline.generator)
    text = load_text_encoder(spec.text_encoder).encode_words([prompt for prompt, *_ in PATHS])
    if options.checked():
        return
    rows = []
    for number, row in enumerate(tqdm(PATHS, desc="paths", unit="path")):
        seeds = [clip_seed(args.seed, row[0], repeat) for repeat in range(args.clips)]
        rows.append(measure(pipeline, spec, settings, row, text[[number] * args.clips], seeds,
                            args.motion_length // 4 * 4))
    folder = RunFolder(args.checkpoints_dir, args.dataset_name, args.name)
    write_results(folder.root / "eval", "trajectories", {
        "kind": "trajectories", "frames": args.motion_length, "seed": args.seed, "cfg": settings["cfg"],
        "threads": torch.get_num_threads(), "machine": machine(), "code_version": code_version(),
        "rows": rows}, table(rows))


if __name__ == "__main__":
    run(main)
