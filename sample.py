"""Clips from text: one .mp4 and one .npy (joints, (frames, J, 3), metres) a prompt and repeat, in generation/<name>_<dataset>/.

    python sample.py --name FSQ_MARDM --ae_name FSQ_AE_High --ae_model FSQ_AE_High --model FSQ-MARDM-SiT-XL --dataset_name t2m \\
        --text_prompt "a person walks in a circle" --motion_length 120
    python sample.py ... --text_path prompts.txt        # a prompt a line: `prompt`, `prompt#frames` or `prompt#NA`

Without a length the length estimator decides (train_length_estimator.py). No data set is needed for checkpoints of our own.
"""
from pathlib import Path

import numpy as np
from tqdm import tqdm

from models.AE import AE_models
from models.loading import load_length_estimator, load_pipeline, read_checkpoint
from models.MARDM import MARDM_models
from models.pipeline import clip_seed, estimate_lengths
from models.TextEncoder import load_text_encoder
from utils import options
from utils.datasets import MAX_LENGTH, get_spec, load_statistics, spec_of_checkpoint
from utils.errors import UserError, run
from utils.motion_process import SKELETONS, features_to_joints
from utils.train_utils import RunFolder, pick_device
from utils.visualize import render_many, safe_filename

SHORTEST = 4  # frames: one token


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="MARDM")
    parser.add_argument("--ae_name", default=None, help="the autoencoder's --name; default: the one the generator was trained on")
    parser.add_argument("--ae_model", choices=list(AE_models), default=None, help="its zoo name; default: as trained")
    parser.add_argument("--model", choices=list(MARDM_models), default=None, help="the generator's zoo name; default: as trained")
    parser.add_argument("--text_prompt", default=None, help="one prompt")
    parser.add_argument("--text_path", default=None, help="file with a prompt a line, optionally prompt#frames or prompt#NA")
    parser.add_argument("--motion_length", type=options.non_negative_int, default=0, help="frames; 0 = estimate from the text")
    parser.add_argument("--length_estimator", default="length_estimator", help="--name of the length estimator's run")
    parser.add_argument("--repeat_times", type=options.positive_int, default=1, help="clips a prompt")
    parser.add_argument("--output_dir", default="./generation", help="folder of the results")
    parser.add_argument("--no_video", action="store_true", help="write the .npy files only")
    options.add_sampler(parser)
    return parser.parse_args()


def read_prompts(args):
    """[(prompt, frames or 0)] of the command line. UserError for an empty prompt or an unusable length."""
    if (args.text_prompt is None) == (args.text_path is None):
        raise UserError("pass either --text_prompt or --text_path")
    if args.text_prompt is not None:
        prompts = [(args.text_prompt.strip(), args.motion_length)]
        where = ["--text_prompt"]
    else:
        path = Path(args.text_path)
        if not path.is_file():
            raise UserError(f"--text_path: no file {path}")
        lines = path.read_text(encoding="utf-8").splitlines()
        where = [f"{path} line {i}" for i, line in enumerate(lines, 1) if line.strip()]
        prompts = [parse_line(line, args.motion_length, f"{path} line {i}") for i, line in enumerate(lines, 1) if line.strip()]
        if not prompts:
            raise UserError(f"--text_path: {path} holds no prompt")
    for (prompt, frames), place in zip(prompts, where):
        if not prompt:
            raise UserError(f"{place}: the prompt is empty; describe a motion, for example 'a person walks forward'")
        if frames and not SHORTEST <= frames <= MAX_LENGTH:
            raise UserError(f"{place}: a length of {frames} frames is outside {SHORTEST}..{MAX_LENGTH}")
    return prompts


def parse_line(line, default, where):
    """``prompt``, ``prompt#frames`` or ``prompt#NA`` -> (prompt, frames or 0 = estimate)."""
    prompt, mark, length = line.strip().rpartition("#")
    if not mark:
        return line.strip(), default
    if length.strip().upper() == "NA":
        return prompt.strip(), 0
    try:
        frames = int(length)
    except ValueError as error:
        raise UserError(f"{where}: '{length}' behind # is neither a number of frames nor NA") from error
    if frames < 1:
        raise UserError(f"{where}: a length of {frames} frames is outside {SHORTEST}..{MAX_LENGTH}")
    return prompt.strip(), frames


def choose_lengths(jobs, text, args, spec):
    """Frames a job (row, prompt, repeat, frames or 0), multiples of 4; missing ones are drawn by the length estimator."""
    lengths = [frames // 4 * 4 for *_, frames in jobs]
    missing = [i for i, length in enumerate(lengths) if not length]
    if missing:
        path = RunFolder(args.checkpoints_dir, args.dataset_name, args.length_estimator).checkpoint()
        if not path.is_file():
            raise UserError(f"no length estimator at {path}; train one with train_length_estimator.py --dataset_name "
                            f"{args.dataset_name}, or pass --motion_length")
        seeds = [clip_seed(args.seed, "length", jobs[i][1], jobs[i][2]) for i in missing]
        drawn = estimate_lengths(load_length_estimator(path)[0], text[missing], seeds, spec.min_frames, MAX_LENGTH)
        for i, length in zip(missing, drawn):
            lengths[i] = length
    return lengths


def main():
    args = parse_args()
    prompts = read_prompts(args)
    device = pick_device(args.device)
    pipeline, checkpoint = load_pipeline(
        *checkpoint_paths(args), args.model, args.ae_model, device=device,
        statistics=lambda: load_statistics(get_spec(args.dataset_name, args.dataset_dir)))
    spec = spec_of_checkpoint(checkpoint, args.dataset_name)
    jobs = [(row, prompt, repeat, frames) for row, (prompt, frames) in enumerate(prompts)
            for repeat in range(args.repeat_times)]
    text = load_text_encoder(spec.text_encoder).encode([prompt for prompt, _ in prompts])[[row for row, *_ in jobs]]
    lengths = choose_lengths(jobs, text, args, spec)
    seeds = [clip_seed(args.seed, prompt, repeat) for _, prompt, repeat, _ in jobs]
    with tqdm(total=len(jobs), desc="generating", unit="clip") as progress:
        motions = pipeline.sample(text, lengths, seeds, progress=progress, **options.sampler_settings(args))
    write_clips(jobs, motions, spec, Path(args.output_dir) / f"{args.name}_{args.dataset_name}", args.no_video)


def checkpoint_paths(args):
    """(generator's, autoencoder's) checkpoint; without --ae_name the generator's record of its autoencoder decides."""
    generator = RunFolder(args.checkpoints_dir, args.dataset_name, args.name).checkpoint()
    ae_name = args.ae_name or read_checkpoint(generator).get("trained_on", {}).get("name")
    if ae_name is None:
        raise UserError(f"{generator} does not say which autoencoder it belongs to; pass --ae_name and --ae_model")
    return generator, RunFolder(args.checkpoints_dir, args.dataset_name, ae_name).checkpoint()


def write_clips(jobs, motions, spec, folder, no_video):
    """The .npy of every clip, then the videos, in parallel. An existing file is replaced: same prompt, same name."""
    folder.mkdir(parents=True, exist_ok=True)
    drawings = []
    for (row, prompt, repeat, _), motion in zip(jobs, motions):
        joints = features_to_joints(motion, spec.joints).numpy()
        path = folder / f"{row:03d}_{safe_filename(prompt)}_{len(joints)}f_r{repeat}.npy"
        np.save(path, joints)
        print(path)
        drawings.append({"joints": joints, "path": path.with_suffix(".mp4"), "skeleton": SKELETONS[spec.skeleton],
                         "fps": spec.fps, "caption": prompt})
    if not no_video:
        render_many(drawings)


if __name__ == "__main__":
    run(main)
