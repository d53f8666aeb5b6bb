"""Temporal in-betweening and replacement: sections of a clip made anew from a text, everything else exactly
as it was.

    python edit.py --name FSQ_MARDM --dataset_name t2m --source_motion clip.npy -msec 0.3,0.6 \\
        --text_prompt "a person jumps over a puddle"
    python edit.py ... -msec 0,20 100,1.0         # several sections; with a dot fractions of the clip, without frames

The source holds joints (T, J, 3) in metres, as sample.py writes them, or features (T, D) that are not
normalised, as data sets hold them, of 4 to 196 frames. Section a,b is frames a .. b - 1. Tokens (4 frames)
that touch a section are generated; the others are given to the generator as they are. In
generation/<name>_<dataset>/ one .npy (joints) and one .mp4 a prompt and repeat: outside the sections the
source's joints, bit for bit; inside, the generated motion, led to the kept frames on both sides in pose,
heading and position (utils/motion/inbetweening.py). Lengths behind a # in --text_path have no meaning here:
the source decides. A generator trained with --cond_mode action takes --action instead of a prompt; one
trained with uncond takes neither.
"""
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from models.AE import UNIT, AE_models
from models.loading import load_pipeline
from models.MARDM import MARDM_models
from models.pipeline import clip_seed
from models.TextEncoder import load_text_encoder
from utils import options
from utils.arrays import load_array
from utils.clips import SHORTEST, checkpoint_paths, read_wanted, write_clips
from utils.data.datasets import MAX_LENGTH, load_statistics
from utils.data.specs import get_spec, spec_of_checkpoint
from utils.errors import UserError, run
from utils.motion.features import LARGEST, essential, features_to_joints, joints_to_features
from utils.motion.inbetweening import sections_of, stitch
from utils.motion.skeletons import SKELETONS
from utils.training.settings import pick_device
from utils.visualize import safe_filename

BATCH = 32  # clips generated together


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="MARDM")
    options.add_generator(parser, AE_models, MARDM_models)
    parser.add_argument("--source_motion", required=True, help=".npy file: joints (frames, J, 3) or features "
                                                               "(frames, D)")
    parser.add_argument("-msec", "--mask_edit_section", nargs="+", required=True, metavar="START,END",
                        help="sections to make anew: fractions of the clip with a dot, frames without; END "
                             "is not part of it")
    options.add_sampler(parser)
    return parser.parse_args()


def read_source(path, spec):
    """Joints (T, J, 3) of a .npy file, unchanged, and their essential features (T, D) in the data set's unit
    of length. UserError when it cannot be used."""
    skeleton, unit = SKELETONS[spec.skeleton], spec.metres_per_unit
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--source_motion: no file {path}")
    try:
        source = load_array(path)
    except UserError as error:
        raise UserError(f"--source_motion is no .npy file of numbers, or is damaged: {error}") from error
    check_source(source, path, skeleton)
    # whole numbers and halves keep their values
    source = source.astype(np.result_type(source, np.float32), copy=False)
    if source.ndim == 2:
        return features_to_joints(source, skeleton.num_joints) * unit, essential(source,
                                                                                 skeleton).astype(np.float32)
    # Features lose the last frame, as they hold velocities: one frame more, the last pose carried on along
    # the floor.
    ahead = source[-1:] + (source[-1:, :1] - source[-2:-1, :1]) * [1, 0, 1]
    return source, essential(joints_to_features(np.concatenate([source, ahead]) / unit, skeleton), skeleton)


def check_source(source, path, skeleton):
    """UserError unless this is a clip of joints or features of the skeleton."""
    other = {dim for row in SKELETONS.values() if row is not skeleton
             for dim in (row.essential_dim, row.feature_dim)}
    shape = source.shape
    joints = len(shape) == 3 and shape[1:] == (skeleton.num_joints, 3)
    if not joints and (len(shape) != 2 or shape[1] < skeleton.essential_dim or shape[1] in other):
        raise UserError(f"--source_motion: {path} has shape {shape}; the generator's skeleton "
                        f"({skeleton.name}) needs joints "
                        f"(frames, {skeleton.num_joints}, 3) or features (frames, {skeleton.essential_dim} "
                        "or "
                        f"{skeleton.feature_dim})")
    if not SHORTEST <= len(source) <= MAX_LENGTH:
        raise UserError(f"--source_motion: {path} has {len(source)} frames, outside {SHORTEST}..{MAX_LENGTH}")
    if source.dtype.kind not in "fiu" or not (np.abs(source) < LARGEST).all():
        raise UserError(f"--source_motion: {path} holds NaN, infinite values, values above {LARGEST:.0e}, or "
                        "no numbers")


def parse_sections(words, frames):
    """Which frames are edited, (frames,) bool, from START,END texts; sections may overlap. UserError for a
    bad one."""
    edited = np.zeros(frames, bool)
    for word in words:
        where = f"--mask_edit_section {word}"
        try:
            start, stop = (float(end) * frames if "." in end else int(end) for end in word.split(","))
        except ValueError as error:
            raise UserError(f"{where}: write START,END, as fractions (0.3,0.6) or frames (20,40)") from error
        if not (0 <= start <= frames and 0 <= stop <= frames):
            raise UserError(f"{where}: outside the clip, which has {frames} frames (fractions: 0.0 to 1.0)")
        if start > stop:
            raise UserError(f"{where}: ends before it starts")
        start, stop = round(start), round(stop)
        if start == stop:
            raise UserError(f"{where}: covers no frame of the clip's {frames}")
        edited[start:stop] = True
    return edited


def held(rows, count):
    """The first ``count`` rows; the last one is held where there are fewer."""
    return rows[np.minimum(np.arange(count), len(rows) - 1)]


@torch.no_grad()
def regenerate(pipeline, features, edited, cond, seeds, **settings):
    """Un-normalised features (T, D) a seed, as a list of arrays, of a clip (T, D) whose tokens that touch
    ``edited`` (T,) are generated. Frames behind the last whole token take part only when they are edited.
    cond: (len(seeds), C) or None."""
    frames, device = len(features), pipeline.device
    tokens = max(frames // UNIT, -(-sections_of(edited)[-1][1] // UNIT))
    motion = torch.from_numpy(held(features, tokens * UNIT)).to(device)
    _, targets = pipeline.ae.encode_targets(((motion - pipeline.mean) / pipeline.std)[None])
    targets = pipeline.ae.snap(targets)
    keep = torch.from_numpy(~held(edited, tokens * UNIT).reshape(1, tokens, UNIT).any(-1)).to(device)
    out = []
    for first in tqdm(range(0, len(seeds), BATCH), desc="generating", unit="batch"):
        part = seeds[first : first + BATCH]
        lengths = torch.full((len(part),), tokens)
        known = targets.expand(len(part), -1, -1), keep.expand(len(part), -1)
        text = None if cond is None else cond[first : first + BATCH].to(device)
        new = pipeline.generator.generate(pipeline.ae, text, lengths, part, known=known, **settings)
        out += [held(clip.numpy(), frames) for clip in pipeline.decode(new, lengths * UNIT)]
    return out


def replace_frames(joints, features, motion, edited, spec):
    """Joints (T, J, 3), metres, with the frames in ``edited`` (T,) from the generated features ``motion`` (T,
    D)."""
    out = joints.copy()
    made = stitch(joints / spec.metres_per_unit, features, motion, edited,
                  SKELETONS[spec.skeleton]) * spec.metres_per_unit
    out[edited] = made[edited]
    return out


def main():
    args = parse_args()
    pipeline, checkpoint = load_pipeline(
        *checkpoint_paths(args), args.model, args.ae_model, device=pick_device(args.device, args.precision),
        statistics=lambda: load_statistics(get_spec(args.dataset_name, args.dataset_dir)))
    spec = spec_of_checkpoint(checkpoint, args.dataset_name)
    joints, features = read_source(args.source_motion, spec)
    edited = parse_sections(args.mask_edit_section, len(joints))
    mode = pipeline.generator.cond_mode
    wanted, cond = read_wanted(args, mode, checkpoint, lambda texts: load_text_encoder(
        spec.text_encoder).encode(texts))
    settings = options.sampler_settings(args, spec, mode)
    jobs = [(row, prompt, repeat) for row, (prompt, _) in enumerate(wanted)
            for repeat in range(args.repeat_times)]
    seeds = [clip_seed(args.seed, prompt, repeat) for _, prompt, repeat in jobs]
    cond = None if cond is None else cond[[row for row, *_ in jobs]]
    motions = regenerate(pipeline, features, edited, cond, seeds, **settings)
    shown = " ".join(f"{start}-{stop - 1}" for start, stop in sections_of(edited))
    source = safe_filename(Path(args.source_motion).stem, 30)
    clips = [(f"{row:03d}_{safe_filename(prompt)}_{source}_edit_{safe_filename(shown, 30)}_r{repeat}",
              replace_frames(joints, features, motion, edited, spec), f"{prompt} (new: frames {shown})")
             for (row, prompt, repeat), motion in zip(jobs, motions)]
    write_clips(clips, spec, Path(args.output_dir) / f"{args.name}_{args.dataset_name}", args.no_video)


if __name__ == "__main__":
    run(main)
