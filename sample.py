"""Generate clips from text: one .mp4, one .npy (joints (frames, J, 3) in metres) and one .json (what is
known of the clip) per prompt and repeat, in generation/<name>_<dataset>/. --view also writes a page that
plays them.

    python sample.py --name FSQ_MARDM --dataset_name t2m --text_prompt "a person walks" --motion_length 120
    python sample.py ... --text_path prompts.txt    # one per line: `prompt`, `prompt#frames` or `prompt#NA`
    python sample.py --name BY_ACTION --action jump wave_left           # trained with --cond_mode action
    python sample.py --name FREE --repeat_times 8                       # trained with --cond_mode uncond

Lengths that are not given are drawn: by the length estimator (train_length_estimator.py) for text, otherwise
from the lengths of the generator's training clips. Checkpoints trained with this code need no data set.
"""
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from models.AE import AE_models
from models.generation import check_settings
from models.LengthEstimator import LengthTable
from models.loading import load_length_estimator, load_pipeline
from models.MARDM import MARDM_models
from models.pipeline import clip_seed, estimate_lengths
from models.TextEncoder import load_text_encoder
from utils import options
from utils.clips import checkpoint_paths, read_wanted, write_clips
from utils.data.datasets import load_statistics
from utils.data.specs import get_spec, joints_in_metres, spec_of_checkpoint
from utils.errors import MissingFile, run
from utils.files import RunFolder
from utils.lengths import MAX_LENGTH
from utils.training.settings import pick_device
from utils.viewer.page import check_count, read_clip, write_page
from utils.visualize import safe_filename


def make_parser(doc):
    """A parser with the flags that sample.py and edit.py share."""
    parser = options.make_parser(doc)
    options.add_common(parser, name="MARDM")
    options.add_generator(parser, AE_models, MARDM_models)
    options.add_sampler(parser)
    return parser


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("--motion_length", type=options.non_negative_int, default=0,
                        help="frames, rounded down to a multiple of 4; 0 = estimated")
    parser.add_argument("--length_estimator", default="length_estimator", help="its --name")
    return parser.parse_args()


def load(args, precision="fp32"):
    """(Pipeline, the generator's checkpoint, DatasetSpec of its training) of a command line."""
    pipeline, checkpoint = load_pipeline(
        *checkpoint_paths(args), args.model, args.ae_model, device=pick_device(args.device, precision),
        statistics=lambda: load_statistics(get_spec(args.dataset_name, args.dataset_dir)))
    return pipeline, checkpoint, spec_of_checkpoint(checkpoint, args.dataset_name)


class Job(NamedTuple):
    """One clip; ``row``: number of its prompt; ``frames``: 0 = not given."""

    row: int
    prompt: str
    repeat: int
    frames: int


def plan(args, generator, checkpoint, spec, motion_length=0):
    """What a command line asks for: [Job], their conditions (N, C) or None, their seeds, sampler settings."""
    def encode(texts):  # words too, for the generator or the length estimator
        return load_text_encoder(spec.text_encoder).encode_words(texts)

    wanted, cond = read_wanted(args, generator.cond_mode, checkpoint, encode, motion_length)
    settings = options.sampler_settings(args, spec, generator)
    check_settings(generator, settings)
    jobs = [Job(row, prompt, repeat, frames) for row, (prompt, frames) in enumerate(wanted)
            for repeat in range(args.repeat_times)]
    if args.view:
        check_count(len(jobs))
    cond = None if cond is None else cond[[job.row for job in jobs]]
    return jobs, cond, [clip_seed(args.seed, job.prompt, job.repeat) for job in jobs], settings


def write(clips, args, spec):
    """Write [(file name without suffix, joints (T, J, 3), caption, facts)] to the run's folder in
    --output_dir, with --view their page too."""
    folder = Path(args.output_dir) / f"{args.name}_{args.dataset_name}"
    paths = write_clips(clips, spec, folder, args.no_video)
    if args.view:
        print(write_page(folder / "view.html", folder.name, [read_clip(path) for path in paths]))


def facts_of(job, codes, args):
    """What is known of a clip beside its joints: see utils/facts.py."""
    return {"prompt": job.prompt, "run": args.name, "dataset": args.dataset_name, "seed": args.seed,
            "repeat": job.repeat, "codes": codes}


def choose_lengths(jobs, cond, checkpoint, args, spec):
    """Frames per job, multiples of 4; those not given are drawn for the job's condition, a row of (N, C)."""
    lengths = [job.frames // 4 * 4 for job in jobs]
    missing = [i for i, length in enumerate(lengths) if not length]
    if missing:
        cond = torch.ones(len(jobs), 1) if cond is None else cond
        seeds = [clip_seed(args.seed, "length", jobs[i].prompt, jobs[i].repeat) for i in missing]
        estimator = length_estimator(checkpoint, args)
        drawn = estimate_lengths(estimator, cond[missing], seeds, spec.min_frames, MAX_LENGTH)
        for i, length in zip(missing, drawn):
            lengths[i] = length
    return lengths


def length_estimator(checkpoint, args):
    """The lengths that a generator without text keeps in its checkpoint, or the length estimator."""
    if "length_counts" in checkpoint:
        return LengthTable(checkpoint["length_counts"])
    path = RunFolder(args.checkpoints_dir, args.dataset_name, args.length_estimator).checkpoint()
    if not path.is_file():
        raise MissingFile(f"no length estimator at {path}; train one with train_length_estimator.py "
                          f"--dataset_name {args.dataset_name}, or pass --motion_length")
    return load_length_estimator(path)[0]


def main():
    args = parse_args()
    pipeline, checkpoint, spec = load(args, args.precision)
    jobs, cond, seeds, settings = plan(args, pipeline.generator, checkpoint, spec, args.motion_length)
    lengths = choose_lengths(jobs, cond, checkpoint, args, spec)
    if options.checked():
        return
    with tqdm(total=len(jobs), desc="generating", unit="clip") as progress:
        motions = pipeline.sample(cond, lengths, seeds, progress=progress, decode=pipeline.decode_with_codes,
                                  **settings)
    clips = []
    for job, (motion, codes) in zip(jobs, motions):
        joints = joints_in_metres(motion, spec)
        name = f"{job.row:03d}_{safe_filename(job.prompt)}_{len(joints)}f_r{job.repeat}"
        clips.append((name, joints, job.prompt, facts_of(job, codes, args)))
    write(clips, args, spec)


if __name__ == "__main__":
    run(main)
