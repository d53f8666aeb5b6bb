"""Generate clips from text: one .mp4, one .npy (joints (frames, J, 3) in metres) and one .json (what is
known of the clip) per prompt and repeat, in generation/<name>_<dataset>/. --view also writes a page that
plays them, --export files for Blender and other software.

    python sample.py --text_prompt "a person walks"     # with the weights in pretrained/, where there are any
    python sample.py --name FSQ_MARDM --dataset_name t2m --text_prompt "a person walks" --motion_length 120
    python sample.py ... --text_path prompts.txt    # one per line: `prompt`, `prompt#frames` or `prompt#NA`
    python sample.py --name BY_ACTION --action jump wave_left           # trained with --cond_mode action
    python sample.py --name FREE --repeat_times 8                       # trained with --cond_mode uncond
    python sample.py ... --text_prompt "he walks" "he waves" --chain    # one motion, a part for each prompt
    python sample.py ... --text_path prompts.txt --chain --stream -     # its frames on stdout, line by line
    python sample.py ... --text_prompt "he sits down" --start_pose walk.npy    # goes on where a clip ends
    python sample.py ... --text_prompt "he walks" --trajectory path.csv        # along a path on the floor

Lengths that are not given are drawn: by the length estimator (train_length_estimator.py) for text, otherwise
from the lengths of the generator's training clips. Checkpoints trained with this code need no data set.
Clips are made and written 128 at a time; after a kill the same command goes on where it stopped.
"""
import itertools
import time
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from models.AE import UNIT, AE_models
from models.chaining import CONTEXT, WINDOW, Part, chain, continue_from
from models.generation import check_fills_in, check_settings
from models.guidance import generate_towards
from models.LengthEstimator import LengthTable
from models.loading import load_length_estimator, load_pipeline
from models.MARDM import MARDM_models
from models.pipeline import clip_seed, estimate_lengths
from models.TextEncoder import load_text_encoder
from utils import options
from utils.arrays import load_array
from utils.clips import (
    check_length,
    checkpoint_paths,
    choose_run,
    code_hash,
    conditions_of,
    earlier_clips,
    open_stream,
    read_wanted,
    remove_leftovers,
    write_clips,
    write_frames,
)
from utils.data.datasets import load_statistics
from utils.data.specs import get_spec, joints_in_metres, spec_of_checkpoint
from utils.errors import MissingFile, UserError, run, say
from utils.evaluation.metrics import foot_skating
from utils.export.formats import Clip, add_formats, check_formats, export_clip
from utils.files import RunFolder, digest
from utils.lengths import MAX_LENGTH, SHORTEST
from utils.motion.features import joints_of_pieces
from utils.motion.feet import clean_feet
from utils.motion.sources import read_pose, start_in, whole_tokens
from utils.motion.trajectory import Course, read_trajectory
from utils.training.settings import pick_device
from utils.viewer.page import check_count, read_clip, write_page
from utils.visualize import safe_filename

LONGEST_PART = 10_000_000  # frames of a part of a chain: days
BATCH = 32  # clips generated together
CHUNK = 4 * BATCH  # clips held in memory; a batch has clips of similar length among these


def make_parser(doc):
    """A parser with the flags that sample.py and edit.py share."""
    parser = options.make_parser(doc)
    options.add_common(parser, name=None, pretrained=True)
    options.add_generator(parser, AE_models, MARDM_models)
    options.add_sampler(parser)
    add_formats(parser, "--export", default=None,
                help="other formats to write beside each .npy (docs/formats.md); default: none")
    return parser


def parse_args(words=None):
    """The command line, or another list of ``words``."""
    parser = make_parser(__doc__)
    parser.add_argument("--motion_length", type=options.non_negative_int, default=0,
                        help="frames, rounded down to a multiple of 4; 0 = estimated")
    parser.add_argument("--length_estimator", default="length_estimator", help="its --name")
    add = parser.add_argument
    add("--chain", action="store_true",
        help="one motion of any length in which the prompts or actions follow each other")
    add("--part_lengths", type=options.non_negative_int, nargs="+", default=None, metavar="FRAMES",
        help="of --chain: frames of each part, or of every part, 0 = estimated; default: as for clips of "
             "their own")
    add("--context", type=options.number(int, 1, WINDOW - 1), default=CONTEXT, metavar="TOKENS",
        help="of --chain: tokens (4 frames) of the motion so far that each new window sees")
    add("--stream", default=None, metavar="FILE",
        help="of --chain: write frames to FILE (- = stdout) as soon as they are ready, a line of JSON for "
             "each, instead of a .npy and a video")
    add("--start_pose", default=None, metavar="CLIP[@FRAME]",
        help="a .npy clip: the new one begins in its last pose, or that of FRAME, and goes on from there")
    add("--trajectory", default=None, metavar="FILE",
        help="a .csv file with columns seconds (or frame), x, z (metres) and, if wanted, heading (degrees): "
             "the path of the body on the floor, which also sets the clip's length")
    args = parser.parse_args(words)
    choose_run(args)
    check_chain(args)
    check_constraints(args)
    return args


def check_chain(args):
    """UserError for flags that do not go together."""
    for name in ("part_lengths", "stream"):
        if getattr(args, name) is not None and not args.chain:
            raise UserError(f"--{name} belongs to --chain")
    if args.part_lengths is not None and args.motion_length:
        raise UserError("pass --part_lengths or --motion_length, not both")
    if args.stream is not None and args.repeat_times > 1:
        raise UserError("--stream writes one motion; leave out --repeat_times")
    if args.stream is not None and (args.export or args.view):
        raise UserError("--stream writes no clip that --export or --view could take; leave them out")
    if args.stream is not None and args.clean_feet:
        raise UserError("--clean_feet needs the whole clip; leave out --stream")


def check_constraints(args):
    """UserError for --start_pose or --trajectory with flags that they do not go with."""
    given = [name for name in ("start_pose", "trajectory") if getattr(args, name) is not None]
    if given and args.chain:
        raise UserError(f"--{given[0]} is for single clips; leave out --chain")
    if len(given) > 1:
        raise UserError("pass --start_pose or --trajectory, not both; a trajectory says where a clip starts")
    if args.trajectory is not None and args.motion_length:
        raise UserError("--trajectory sets the clip's length; leave out --motion_length")


def load(args, precision="fp32"):
    """(Pipeline, the generator's checkpoint, DatasetSpec of its training) of a command line."""
    paths = checkpoint_paths(args)
    pipeline, checkpoint = load_pipeline(
        *paths, args.model, args.ae_model, device=pick_device(args.device, precision),
        statistics=lambda: load_statistics(get_spec(args.dataset_name, args.dataset_dir)))
    if "licence" in checkpoint:
        say(f"weights: {checkpoint['licence']}")
    return pipeline, checkpoint, spec_of_checkpoint(checkpoint, args.dataset_name, paths[0])


@cache
def kept(load_encoder, name):
    """A text encoder, loaded once for all calls of this process."""
    return load_encoder(name)


class Job(NamedTuple):
    """One clip; ``row``: number of its prompt; ``frames``: 0 = not given."""

    row: int
    prompt: str
    repeat: int
    frames: int


def plan(args, generator, checkpoint, spec, motion_length=0, longest=MAX_LENGTH):
    """What a command line asks for: [Job], the function from Jobs to their conditions (N, C) or None, the
    Jobs' seeds, sampler settings. longest: most frames of a clip."""
    wanted = read_wanted(args, generator.cond_mode, checkpoint, motion_length, longest)
    encode = None
    if generator.cond_mode == "text":  # words too, for the generator or the length estimator
        encode = kept(load_text_encoder, spec.text_encoder).encode_words
    settings = options.sampler_settings(args, spec, generator)
    check_settings(generator, settings)
    check_formats(args.export or (), spec.layout)
    jobs = [Job(row, prompt, repeat, frames) for row, (prompt, frames) in enumerate(wanted)
            for repeat in range(args.repeat_times)]
    if args.view:
        check_count(len(jobs))

    def condition(some):
        rows = {job.row: job.prompt for job in some}  # repeats of a prompt are encoded once
        cond = conditions_of([*rows.values()], generator.cond_mode, checkpoint, encode)
        places = {row: place for place, row in enumerate(rows)}
        return None if cond is None else cond[[places[job.row] for job in some]]

    return jobs, condition, [clip_seed(args.seed, job.prompt, job.repeat) for job in jobs], settings


def folder_of(args):
    """Where the clips of a command line go."""
    return Path(args.output_dir) / f"{args.name}_{args.dataset_name}"


def write(clips, args, spec):
    """Write (file name without suffix, joints (T, J, 3), caption, facts) of an iterable to the run's folder
    in --output_dir, and in the formats of --export, CHUNK clips at a time; with --view their page too."""
    folder, paths, began, clips = folder_of(args), [], time.time(), iter(clips)
    while made := write_clips(itertools.islice(clips, CHUNK), spec, folder, args.no_video):
        for path in made if args.export else ():
            clip = Clip(path.stem, load_array(path), spec.layout, spec.fps)
            for file in export_clip(clip, folder, args.export):
                tqdm.write(str(file))
        paths += made
    remove_leftovers(paths, began)
    if args.view:
        print(write_page(folder / "view.html", folder.name, clips=[read_clip(path) for path in paths]))


def facts_of(job, codes, args):
    """What is known of a clip beside its joints: see utils/facts.py."""
    return {"prompt": job.prompt, "run": args.name, "dataset": args.dataset_name, "seed": args.seed,
            "repeat": job.repeat, "codes": codes}


def choose_lengths(jobs, cond, estimator, args, spec, longest=MAX_LENGTH):
    """Frames per job, multiples of 4; those not given are drawn by what ``find_estimator`` found, for the
    job's condition, a row of (N, C), and at most ``longest``."""
    lengths = [job.frames // 4 * 4 for job in jobs]
    missing = [i for i, length in enumerate(lengths) if not length]
    if missing:
        cond = torch.ones(len(jobs), 1) if cond is None else cond
        seeds = [clip_seed(args.seed, "length", jobs[i].prompt, jobs[i].repeat) for i in missing]
        drawn = estimate_lengths(estimator, cond[missing], seeds, spec.min_frames, longest)
        for i, length in zip(missing, drawn):
            lengths[i] = length
    return lengths


def find_estimator(jobs, checkpoint, args):
    """The lengths that a generator without text keeps in its checkpoint, or the length estimator; None where
    every Job says its length."""
    if all(job.frames // 4 for job in jobs):
        return None
    if "length_counts" in checkpoint:
        return LengthTable(checkpoint["length_counts"])
    path = RunFolder(args.checkpoints_dir, args.dataset_name, args.length_estimator).checkpoint()
    if not path.is_file():
        raise MissingFile(f"no length estimator at {path}; train one with train_length_estimator.py "
                          f"--dataset_name {args.dataset_name}, or give lengths (--motion_length)")
    return load_length_estimator(path)[0]


def clean(joints, spec, name, free=None, floor=None):
    """Joints (T, J, 3) in metres whose planted feet stay, except in frames that are not ``free`` (T,); says
    what that did to foot skating. Joints that are not finite are left to ``write_clips``."""
    if not np.isfinite(joints).all():
        return joints
    out = clean_feet(joints, spec.fps, spec.layout, floor, free)
    before, after = (foot_skating(clip, spec.fps, spec.layout) for clip in (joints, out))
    say(f"{name}: foot skating {before:.4f} -> {after:.4f} m/s")
    return out


def with_part_lengths(jobs, part_lengths):
    """Jobs with the frames of --part_lengths, 0 = not given: one for all parts, or one for each. UserError
    otherwise."""
    parts = max(job.row for job in jobs) + 1
    if len(part_lengths) not in (1, parts):
        raise UserError(f"--part_lengths: {len(part_lengths)} lengths for {parts} parts; pass one for each, "
                        "or one for all")
    for frames in filter(None, part_lengths):
        check_length(frames, "--part_lengths", LONGEST_PART)
    each = part_lengths * parts if len(part_lengths) == 1 else part_lengths
    return [job._replace(frames=each[job.row]) for job in jobs]


class Chain(NamedTuple):
    """One motion: its Jobs, their frames, and an iterator over its joints (n, J, 3) in metres."""

    jobs: list
    frames: list
    joints: object

    def parts(self):
        """Yields (number, prompt) of the part to which each frame belongs."""
        for number, (job, count) in enumerate(zip(self.jobs, self.frames)):
            yield from itertools.repeat((number, job.prompt), count)


def chains(args, pipeline, checkpoint, spec):
    """A Chain for each repeat that a command line asks for."""
    check_fills_in(pipeline.generator, "--chain")
    jobs, condition, seeds, settings = plan(args, pipeline.generator, checkpoint, spec, args.motion_length,
                                            LONGEST_PART)
    cond = condition(jobs)
    jobs = jobs if args.part_lengths is None else with_part_lengths(jobs, args.part_lengths)
    # estimated parts fit into one window
    frames = choose_lengths(jobs, cond, find_estimator(jobs, checkpoint, args), args, spec,
                            (WINDOW - args.context) * UNIT)
    for repeat in range(args.repeat_times):
        mine = [i for i, job in enumerate(jobs) if job.repeat == repeat]
        parts = [Part(None if cond is None else cond[[i]], frames[i], clip_seed(seeds[i], jobs[i].row))
                 for i in mine]
        yield Chain([jobs[i] for i in mine], [frames[i] for i in mine],
                    chain_joints(pipeline, parts, args.context, spec, settings))


def chain_joints(pipeline, parts, context, spec, settings):
    """Yields joints (n, J, 3) float32, in metres, of one motion with the Parts; settings: of the sampler."""
    with tqdm(parts, desc="generating", unit="part") as progress:
        for piece in joints_of_pieces(chain(pipeline, progress, context, **settings), spec.joints):
            yield (piece * spec.metres_per_unit).astype(np.float32)


def chained_clips(args, made, spec):
    """Yields the clips of Chains, as ``write`` takes them, and says which frames belong to which part."""
    for repeat, one in enumerate(made):
        joints = np.concatenate(list(one.joints))
        caption = " / ".join(job.prompt for job in one.jobs)
        name = f"chain_{safe_filename(caption)}_{len(joints)}f_r{repeat}"
        ends = np.cumsum(one.frames)
        for job, count, end in zip(one.jobs, one.frames, ends):
            say(f"{name}: frames {end - count}-{end - 1}: {job.prompt}")
        joints = clean(joints, spec, name, floor=0) if args.clean_feet else joints
        parts = [[int(end - count), int(end), job.prompt]
                 for job, count, end in zip(one.jobs, one.frames, ends)]
        facts = facts_of(Job(0, caption, repeat, len(joints)), None, args) | {"parts": parts}
        yield name, joints, caption, facts


def stream(name, one, fps):
    """Write a Chain's frames to a file, or stdout, as they become ready."""
    parts, first = one.parts(), 0
    with open_stream(name) as file:
        for joints in one.joints:
            if not np.isfinite(joints).all():
                raise UserError("the motion has joints that are not finite; lower --cfg or --temperature")
            write_frames(file, joints, first, fps, parts)
            first += len(joints)


def make_chains(args, pipeline, checkpoint, spec):
    made = chains(args, pipeline, checkpoint, spec)
    first = next(made)  # all mistakes of the command line are found before the first frame is made
    if options.checked():
        return
    if args.stream is not None:
        stream(args.stream, first, spec.fps)
    else:
        write(chained_clips(args, itertools.chain([first], made), spec), args, spec)


def freely(pipeline, cond, lengths, seeds, settings, spec):
    """[(joints (T, J, 3) in metres, codes or None)] of clips without constraints."""
    motions = pipeline.sample(cond, lengths, seeds, BATCH, decode=pipeline.decode_with_codes, **settings)
    return [(joints_in_metres(motion, spec), codes) for motion, codes in motions]


def in_batches(count):
    """Yields slices of at most BATCH of ``count`` clips."""
    for first in range(0, count, BATCH):
        yield slice(first, first + BATCH)


def from_pose(pipeline, pose, cond, lengths, seeds, settings, spec):
    """[(joints (T, J, 3) in metres, None)] of ``lengths``, which begin in the pose in which ``pose`` ends:
    joints (n, J, 3) and features (n, D)."""
    joints, features = pose
    before, out = whole_tokens(features, UNIT), []
    for rows in in_batches(len(seeds)):
        motions = continue_from(pipeline, before, None if cond is None else cond[rows], lengths[rows],
                                seeds[rows], **settings)
        # the token that stays ends with the pose
        out += [(start_in(joints, features, motion[UNIT - 1 : -1].numpy(), spec), None)
                for motion in motions]
    return out


def along(pipeline, trajectory, cond, seeds, settings, spec):
    """[(joints (T, J, 3) in metres, None)], one for each of ``seeds``, which follow a Trajectory."""
    out, goal = [], partial(Course, trajectory, spec)
    for rows in in_batches(len(seeds)):
        course, motions = generate_towards(pipeline, goal, None if cond is None else cond[rows],
                                           len(trajectory), seeds[rows], **settings)
        out += [(course.place(motion, clip), None) for clip, motion in enumerate(motions)]
    return out


def read_constraints(args, spec):
    """What --start_pose (see ``read_pose``) and --trajectory name, or None; the most frames of a clip."""
    pose = None if args.start_pose is None else read_pose(args.start_pose, spec)
    trajectory = None if args.trajectory is None else read_trajectory(args.trajectory, spec.fps, SHORTEST,
                                                                      MAX_LENGTH)
    return pose, trajectory, MAX_LENGTH if pose is None else MAX_LENGTH - UNIT


def clip_name(job, frames):
    """A clip's file name, without suffix."""
    return f"{job.row:03d}_{safe_filename(job.prompt)}_{frames}f_r{job.repeat}"


def clips_of(args, jobs, motions, spec, request=None):
    """Yields what ``write`` takes for Jobs and their (joints, codes); request: a digest of what was asked
    for."""
    for job, (joints, codes) in zip(jobs, motions):
        name = clip_name(job, len(joints))
        facts = facts_of(job, codes, args)
        if args.trajectory is not None:
            facts["trajectory"] = Path(args.trajectory).name
            joints = clean(joints, spec, name, floor=0)  # feet slide where a path is forced on a body
        elif args.start_pose is not None:
            facts["start_pose"] = Path(args.start_pose).name
            free = np.arange(len(joints)) > 0
            joints = clean(joints, spec, name, free) if args.clean_feet else joints
        elif args.clean_feet:
            joints = clean(joints, spec, name, floor=0)
        yield name, joints, job.prompt, facts if request is None else facts | {"request": request}


def single_clips(args, pipeline, checkpoint, spec, folder=None):
    """An iterator over the clips that a command line asks for, as ``write`` takes them, made CHUNK by CHUNK.
    folder: chunks that an earlier run of the same request left there are read, not made. UserError for a
    mistake, at the call."""
    for name in ("start_pose", "trajectory"):
        if getattr(args, name) is not None:
            check_fills_in(pipeline.generator, f"--{name}")
    pose, trajectory, longest = read_constraints(args, spec)
    jobs, condition, seeds, settings = plan(args, pipeline.generator, checkpoint, spec, args.motion_length,
                                            longest)
    estimator = find_estimator(jobs, checkpoint, args) if trajectory is None else None
    if trajectory is not None and any(job.frames for job in jobs):
        raise UserError("--trajectory sets the clip's length; leave out the #frames of --text_path")

    def lengths_of(some, cond):
        if trajectory is not None:
            return [len(trajectory) // UNIT * UNIT] * len(some)
        return choose_lengths(some, cond, estimator, args, spec, longest)

    def generate(cond, lengths, seeds):
        if trajectory is not None:
            return along(pipeline, trajectory, cond, seeds, settings, spec)
        if pose is not None:
            return from_pose(pipeline, pose, cond, lengths, seeds, settings, spec)
        return freely(pipeline, cond, lengths, seeds, settings, spec)

    def make():
        how, there = None if folder is None else how_made(args, pipeline, settings, spec, pose, trajectory), 0
        with tqdm(total=len(jobs), desc="generating", unit="clip") as progress:
            for first in range(0, len(jobs), CHUNK):
                some = jobs[first : first + CHUNK]
                cond = condition(some)
                lengths = lengths_of(some, cond)
                request = how and digest([how, some, lengths])
                names = [clip_name(job, frames) for job, frames in zip(some, lengths)]
                clips = earlier_clips(folder, names, request)
                there += len(clips or ())
                if clips is None:
                    motions = generate(cond, lengths, seeds[first : first + CHUNK])
                    clips = clips_of(args, some, motions, spec, request)
                progress.update(len(some))
                yield from clips
        if there:
            say(f"{there} of {len(jobs)} clips were there, made by the same request")

    return make()


def how_made(args, pipeline, settings, spec, pose, trajectory):
    """All that decides how clips come out, but for prompts and lengths: settings, weights, code. Plain
    values."""
    names = [given and Path(given).name for given in (args.start_pose, args.trajectory)]
    arrays = [pose[0]] if pose else [trajectory.positions, trajectory.heading] if trajectory else []
    arrays = [None if array is None else array.tolist() for array in (*arrays, pipeline.mean, pipeline.std)]
    return [settings, args.seed, args.clean_feet, spec.describe(), names, arrays, pipeline.hashes,
            pipeline.device.type, torch.__version__, code_hash()]


def main():
    args = parse_args()
    pipeline, checkpoint, spec = load(args, args.precision)
    if args.chain:
        make_chains(args, pipeline, checkpoint, spec)
        return
    clips = single_clips(args, pipeline, checkpoint, spec, folder_of(args))
    if not options.checked():
        write(clips, args, spec)


if __name__ == "__main__":
    run(main)
