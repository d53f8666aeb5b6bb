"""What the scripts that make clips share: prompts in, files out."""
import itertools
import os
from pathlib import Path

import numpy as np

from utils.arrays import load_array
from utils.data.conditions import Conditions
from utils.data.datasets import MAX_LENGTH
from utils.errors import UserError
from utils.files import RunFolder, atomic_write, read_checkpoint
from utils.motion.skeletons import SKELETONS
from utils.visualize import render_many

SHORTEST = 4  # frames: one token
CLIPS_A_PROCESS = 4  # of those that draw videos side by side


def read_prompts(text_prompt, text_path, motion_length=0):
    """[(prompt, frames or 0)] of --text_prompt or of the file --text_path; ``motion_length`` where a prompt
    names no length. UserError for an empty prompt or an unusable length."""
    if (text_prompt is None) == (text_path is None):
        raise UserError("pass either --text_prompt or --text_path")
    if text_prompt is not None:
        prompts = [(text_prompt.strip(), motion_length)]
        where = ["--text_prompt"]
    else:
        lines = read_lines(Path(text_path))
        where = [f"{text_path} line {i}" for i, line in lines]
        prompts = [parse_line(line, motion_length, place) for (_, line), place in zip(lines, where)]
    for (prompt, frames), place in zip(prompts, where):
        if not prompt:
            raise UserError(f"{place}: the prompt is empty; describe a motion, for example 'a person walks "
                            "forward'")
        check_length(frames, place)
    return prompts


def check_length(frames, place):
    """UserError unless it is 0 (to be estimated) or a length that can be made."""
    if frames and not SHORTEST <= frames <= MAX_LENGTH:
        raise UserError(f"{place}: a length of {frames} frames is outside {SHORTEST}..{MAX_LENGTH}")


def read_wanted(args, mode, checkpoint, encode, motion_length=0):
    """What a command line asks a generator for: [(what to show, frames or 0)], and their conditions (N, C),
    None without any.

    mode: the generator's cond_mode; checkpoint: its dict, which names its actions; encode: list of str -> (N,
    C). UserError where the flags do not fit the generator.
    """
    trained = {"text": "on texts", "action": "on actions", "uncond": "without conditions"}[mode]
    if mode != "text" and (args.text_prompt is not None or args.text_path is not None):
        raise UserError(f"--text_prompt, --text_path: this generator was trained {trained}"
                        + ("; pass --action NAME ..., or --action all" if mode == "action" else ""))
    if mode != "action" and args.action:
        raise UserError(f"--action: this generator was trained {trained}")
    if mode == "text":
        prompts = read_prompts(args.text_prompt, args.text_path, motion_length)
        return prompts, encode([prompt for prompt, _ in prompts])
    check_length(motion_length, "--motion_length")
    if mode == "uncond":
        return [("unconditional", motion_length)], None
    actions = checkpoint.get("actions") or []
    names = actions if args.action == ["all"] else args.action or []
    unknown = [name for name in names if name not in actions]
    if unknown or not names:
        problem = f"--action {unknown[0]}: unknown" if unknown else "pass --action NAME ..., or --action all"
        raise UserError(f"{problem}; the generator's actions are {', '.join(actions)}")
    return [(name, motion_length) for name in names], Conditions("action", actions=actions).of_actions(names)


def read_lines(path):
    """[(number from 1, line)] of the lines that are not blank."""
    if not path.exists() or path.is_dir():
        raise UserError(f"--text_path: no file {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows' editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise UserError(f"--text_path: {path} is not a text in UTF-8") from error
    lines = [(i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if not lines:
        raise UserError(f"--text_path: {path} holds no prompt")
    return lines


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


def checkpoint_paths(args, which="best"):
    """(generator's, autoencoder's) checkpoint; without --ae_name the generator's record of its autoencoder
    decides."""
    generator = RunFolder(args.checkpoints_dir, args.dataset_name, args.name).checkpoint(which)
    ae_name = args.ae_name or read_checkpoint(generator).get("trained_on", {}).get("name")
    if ae_name is None:
        raise UserError(f"{generator} does not say which autoencoder it belongs to; pass --ae_name and "
                        "--ae_model")
    return generator, RunFolder(args.checkpoints_dir, args.dataset_name, ae_name).checkpoint()


def free_path(folder, stem, joints):
    """FOLDER/STEM.npy, or STEM-2.npy, -3 ...: the first that is not there, or that holds these very
    joints."""
    for number in itertools.count(1):
        path = folder / (f"{stem}.npy" if number == 1 else f"{stem}-{number}.npy")
        if not path.exists() or holds(path, joints):
            return path


def holds(path, joints):
    try:
        return np.array_equal(load_array(path), joints)
    except UserError:
        return False  # something else, which is left alone


def write_clips(clips, spec, folder, no_video):
    """The .npy of every clip (file name without suffix, joints (T, J, 3), caption), then the videos, unless
    ``no_video``. A file of another clip (another seed, other settings) keeps its name, and the new one gets a
    number. UserError where joints are not finite."""
    folder.mkdir(parents=True, exist_ok=True)
    drawings = []
    for stem, joints, caption in clips:
        if not np.isfinite(joints).all():
            raise UserError(f"'{caption}' came out with joints that are not finite numbers; lower --cfg or "
                            "--temperature")
        path = free_path(folder, stem, joints)
        with atomic_write(path) as temporary:
            np.save(temporary, joints)
        print(path)
        drawings.append({"joints": joints, "path": path.with_suffix(".mp4"),
                         "skeleton": SKELETONS[spec.skeleton], "fps": spec.fps, "caption": caption})
    if not no_video:  # drawing keeps one core busy and ffmpeg another; a process takes seconds to start
        render_many(drawings, workers=min((os.cpu_count() or 2) // 2, len(drawings) // CLIPS_A_PROCESS))
