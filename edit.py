"""Temporal in-betweening and replacement: sections of a clip are regenerated from a text, and every other
frame stays exactly as it was.

    python edit.py --name FSQ_MARDM --dataset_name t2m --source_motion clip.npy -msec 0.3,0.6 \\
        --text_prompt "a person jumps over a puddle"
    python edit.py ... -msec 0,20 100,1.0     # several sections; numbers with a dot are fractions of the clip
    python edit.py ... -msec 0.0,1.0 --keep_joints left_arm head     # the rest of the body follows the text

The source holds joints (T, J, 3) in metres, as sample.py writes them, or un-normalised features (T, D), as
data sets hold them, of 4 to 196 frames. Section a,b is frames a to b - 1. Tokens (4 frames) that touch a
section are generated, given all others. Writes one .npy (joints) and one .mp4 per prompt and repeat to
generation/<name>_<dataset>/: outside the sections the source's joints, bit for bit; inside, the generated
motion, whose pose, heading and position meet the kept frames on both sides (utils/motion/inbetweening.py).
--keep_joints: these joints move as in the source inside the sections too (utils/motion/layering.py).
--view also writes a page that plays the clips.
Lengths after a # in --text_path are ignored. A generator trained with --cond_mode action takes --action
instead of a prompt, one trained with uncond neither.
"""
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from models.AE import UNIT
from models.generation import check_fills_in
from sample import CHUNK, clean, facts_of, load, make_parser, plan, write
from utils import options
from utils.clips import choose_run
from utils.errors import UserError, run
from utils.motion.inbetweening import sections_of, stitch
from utils.motion.layering import joints_named, layer
from utils.motion.sources import read_source
from utils.visualize import safe_filename

BATCH = 32  # clips generated together


def parse_args():
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--source_motion", required=True, help=".npy file of joints (frames, J, 3) or features (frames, D)")
    add("-msec", "--mask_edit_section", nargs="+", required=True, metavar="START,END",
        help="sections to regenerate: fractions of the clip (with a dot) or frames; END is excluded")
    add("--keep_joints", nargs="+", default=(), metavar="PART",
        help="parts of the body or joints that keep the source's motion: left_arm, right_arm, left_leg, "
             "right_leg, head, upper_body, lower_body (with the path on the floor), or names like LeftHand")
    args = parser.parse_args()
    choose_run(args)
    return args


def parse_sections(words, frames):
    """Mask (frames,) of the edited frames, from START,END texts; sections may overlap. UserError for a bad
    one."""
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
            raise UserError(f"{where}: covers none of the clip's {frames} frames")
        edited[start:stop] = True
    return edited


def padded(rows, count):
    """The first ``count`` rows; if there are fewer, the last one is repeated."""
    return rows[np.minimum(np.arange(count), len(rows) - 1)]


@torch.no_grad()
def regenerate(pipeline, features, edited, cond, seeds, **settings):
    """One clip of un-normalised features (T, D) per seed: ``features`` (T, D), of which the tokens that touch
    ``edited`` (T,) are generated, each with its codes or None. Frames after the last whole token take part
    only if they are edited. cond: (len(seeds), C) or None."""
    frames, device = len(features), pipeline.device
    tokens = max(frames // UNIT, -(-sections_of(edited)[-1][1] // UNIT))
    motion = torch.from_numpy(padded(features, tokens * UNIT)).to(device)
    _, targets = pipeline.ae.encode_targets(((motion - pipeline.mean) / pipeline.std)[None])
    targets = pipeline.ae.snap(targets)
    keep = torch.from_numpy(~padded(edited, tokens * UNIT).reshape(1, tokens, UNIT).any(-1)).to(device)
    out = []
    for first in tqdm(range(0, len(seeds), BATCH), desc="generating", unit="batch"):
        part = seeds[first : first + BATCH]
        lengths = torch.full((len(part),), tokens)
        known = targets.expand(len(part), -1, -1), keep.expand(len(part), -1)
        text = None if cond is None else cond[first : first + BATCH].to(device)
        new = pipeline.generator.generate(pipeline.ae, text, lengths, part, known=known,
                                          progress=pipeline.iterations, **settings)
        made = pipeline.decode_with_codes(new, lengths * UNIT)
        out += [(padded(clip.numpy(), frames), codes) for clip, codes in made]
    return out


def replace_frames(joints, features, motion, edited, spec):
    """Joints (T, J, 3) in metres, with the ``edited`` (T,) frames from the features ``motion`` (T, D)."""
    out, unit = joints.copy(), spec.metres_per_unit
    stitched = stitch(joints / unit, features, motion, edited, spec.layout) * unit
    out[edited] = stitched[edited]
    return out


def keep(joints, new, edited, kept, spec):
    """The clip ``new`` (T, J, 3), whose ``kept`` (J,) joints move as in ``joints`` in the ``edited`` (T,)
    frames. Joints that are not finite are left to ``write_clips``."""
    if not kept.any() or not np.isfinite(new).all():
        return new
    out = new.copy()
    out[edited] = layer(joints, new, kept, spec.layout)[edited]
    return out


def clean_all_but(kept, joints, spec, name, edited):
    """``clean``, but legs with ``kept`` (J,) joints stay as they are."""
    out = clean(joints, spec, name, free=edited)
    for leg in map(list, spec.layout.legs):
        if kept[leg].any():
            out[:, leg] = joints[:, leg]
    return out


def edited_clips(args, source, edited, pipeline, checkpoint, spec):
    """An iterator over the clips that a command line asks for, as ``sample.write`` takes them. source: joints
    and features as ``read_source`` gives them; edited: (T,). UserError for a mistake, at the call."""
    check_fills_in(pipeline.generator, "editing")
    kept = joints_named(args.keep_joints, spec.layout, "--keep_joints")
    jobs, condition, seeds, settings = plan(args, pipeline.generator, checkpoint, spec)
    joints, features = source
    sections = sections_of(edited)
    frames = " ".join(f"{start}-{stop - 1}" for start, stop in sections)
    stem = f"{safe_filename(Path(args.source_motion).stem, 30)}_edit_{safe_filename(frames, 30)}"
    stem += f"_keep_{safe_filename(' '.join(args.keep_joints), 30)}" if args.keep_joints else ""

    def motions():
        for first in range(0, len(jobs), CHUNK):  # written before the next ones are made
            rows = slice(first, first + CHUNK)
            yield from regenerate(pipeline, features, edited, condition(jobs[rows]), seeds[rows], **settings)

    def make():
        for job, (motion, codes) in zip(jobs, motions()):
            name = f"{job.row:03d}_{safe_filename(job.prompt)}_{stem}_r{job.repeat}"
            new = replace_frames(joints, features, motion, edited, spec)
            new = keep(joints, new, edited, kept, spec)
            new = clean_all_but(kept, new, spec, name, edited) if args.clean_feet else new
            facts = facts_of(job, codes, args) | {"edited": sections, "source": Path(args.source_motion).name}
            facts |= {"kept": args.keep_joints} if args.keep_joints else {}
            yield name, new, f"{job.prompt} (new: frames {frames})", facts

    return make()


def main():
    args = parse_args()
    pipeline, checkpoint, spec = load(args, args.precision)
    source = read_source(args.source_motion, spec)
    edited = parse_sections(args.mask_edit_section, len(source[0]))
    clips = edited_clips(args, source, edited, pipeline, checkpoint, spec)
    if not options.checked():
        write(clips, args, spec)


if __name__ == "__main__":
    run(main)
