"""Clips from text: one .mp4 and one .npy (joints, (frames, J, 3), metres) a prompt and repeat, in
generation/<name>_<dataset>/.

    python sample.py --name FSQ_MARDM --ae_name FSQ_AE_High --ae_model FSQ_AE_High --model FSQ-MARDM-SiT-XL --dataset_name t2m \\
        --text_prompt "a person walks in a circle" --motion_length 120
    python sample.py ... --text_path prompts.txt        # a prompt a line: `prompt`, `prompt#frames` or `prompt#NA`
    python sample.py --name BY_ACTION --dataset_name demo --action jump wave_left   # trained with --cond_mode action; or all
    python sample.py --name FREE --dataset_name demo --repeat_times 8               # trained with --cond_mode uncond

Without a length the length estimator decides (train_length_estimator.py), or, for generators that read no
text, the lengths of their training clips. No data set is needed for checkpoints of our own.
"""
from pathlib import Path

import torch
from tqdm import tqdm

from models.AE import AE_models
from models.LengthEstimator import LengthTable
from models.loading import load_length_estimator, load_pipeline
from models.MARDM import MARDM_models
from models.pipeline import clip_seed, estimate_lengths
from models.TextEncoder import load_text_encoder
from utils import options
from utils.clips import checkpoint_paths, read_wanted, write_clips
from utils.data.datasets import MAX_LENGTH, load_statistics
from utils.data.specs import get_spec, joints_in_metres, spec_of_checkpoint
from utils.errors import UserError, run
from utils.files import RunFolder
from utils.training.settings import pick_device
from utils.visualize import safe_filename


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="MARDM")
    options.add_generator(parser, AE_models, MARDM_models)
    parser.add_argument("--motion_length", type=options.non_negative_int, default=0,
                        help="frames, rounded down to a multiple of 4; 0 = to be estimated")
    parser.add_argument("--length_estimator", default="length_estimator",
                        help="--name of the length estimator's run")
    options.add_sampler(parser)
    return parser.parse_args()


def choose_lengths(jobs, cond, checkpoint, args, spec):
    """Frames a job (row, prompt, repeat, frames or 0), multiples of 4; missing ones are drawn for the
    conditions (N, C)."""
    lengths = [frames // 4 * 4 for *_, frames in jobs]
    missing = [i for i, length in enumerate(lengths) if not length]
    if missing:
        estimator = length_estimator(checkpoint, args)
        cond = torch.ones(len(jobs), 1) if cond is None else cond
        seeds = [clip_seed(args.seed, "length", jobs[i][1], jobs[i][2]) for i in missing]
        drawn = estimate_lengths(estimator, cond[missing], seeds, spec.min_frames, MAX_LENGTH)
        for i, length in zip(missing, drawn):
            lengths[i] = length
    return lengths


def length_estimator(checkpoint, args):
    """What draws lengths: the generator's own record where it reads no text, else the length estimator's
    run."""
    if "length_counts" in checkpoint:
        return LengthTable(checkpoint["length_counts"])
    path = RunFolder(args.checkpoints_dir, args.dataset_name, args.length_estimator).checkpoint()
    if not path.is_file():
        raise UserError(f"no length estimator at {path}; train one with train_length_estimator.py "
                        "--dataset_name "
                        f"{args.dataset_name}, or pass --motion_length")
    return load_length_estimator(path)[0]


def main():
    args = parse_args()
    device = pick_device(args.device, args.precision)
    pipeline, checkpoint = load_pipeline(
        *checkpoint_paths(args), args.model, args.ae_model, device=device,
        statistics=lambda: load_statistics(get_spec(args.dataset_name, args.dataset_dir)))
    spec = spec_of_checkpoint(checkpoint, args.dataset_name)
    mode = pipeline.generator.cond_mode
    wanted, cond = read_wanted(args, mode, checkpoint, lambda texts: load_text_encoder(
        spec.text_encoder).encode(texts),
                               args.motion_length)
    settings = options.sampler_settings(args, spec, mode)
    jobs = [(row, prompt, repeat, frames) for row, (prompt, frames) in enumerate(wanted)
            for repeat in range(args.repeat_times)]
    cond = None if cond is None else cond[[row for row, *_ in jobs]]
    lengths = choose_lengths(jobs, cond, checkpoint, args, spec)
    seeds = [clip_seed(args.seed, prompt, repeat) for _, prompt, repeat, _ in jobs]
    with tqdm(total=len(jobs), desc="generating", unit="clip") as progress:
        motions = pipeline.sample(cond, lengths, seeds, progress=progress, **settings)
    clips = []
    for (row, prompt, repeat, _), motion in zip(jobs, motions):
        joints = joints_in_metres(motion, spec)
        clips.append((f"{row:03d}_{safe_filename(prompt)}_{len(joints)}f_r{repeat}", joints, prompt))
    write_clips(clips, spec, Path(args.output_dir) / f"{args.name}_{args.dataset_name}", args.no_video)


if __name__ == "__main__":
    run(main)
