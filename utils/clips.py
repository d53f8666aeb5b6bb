"""What the scripts that make clips share: prompts in, files out."""
import itertools
import json
import os
import re
import sys
import unicodedata
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.arrays import load_array, one_hot
from utils.errors import MissingFile, UserError, say
from utils.facts import read_facts, write_facts
from utils.files import RunFolder, UnreadableText, atomic_write, digest, file_hash, read_checkpoint, read_text
from utils.lengths import MAX_LENGTH, SHORTEST
from utils.options import CHECKPOINTS
from utils.visualize import render_many

DATASET = "realmotion"  # whose pretrained weights are used where none is named
PRETRAINED = Path(__file__).parents[1] / "pretrained"  # weights that come with the code
CLIPS_PER_PROCESS = 4  # at least, when several processes draw videos: each takes seconds to start


def read_wanted(args, mode, checkpoint, motion_length=0, longest=MAX_LENGTH):
    """What a command line asks for: [(prompt or action, frames or 0)]. mode, checkpoint: the generator's
    cond_mode, and dict with its actions; longest: most frames that may be asked for. UserError if the flags
    do not fit the generator."""
    trained = {"text": "on texts", "action": "on actions", "uncond": "without conditions"}[mode]
    if mode != "text" and (args.text_prompt is not None or args.text_path is not None):
        raise UserError(f"--text_prompt, --text_path: this generator was trained {trained}"
                        + ("; pass --action NAME ..., or --action all" if mode == "action" else ""))
    if mode != "action" and args.action:
        raise UserError(f"--action: this generator was trained {trained}")
    if mode == "text":
        return read_prompts(args.text_prompt, args.text_path, motion_length, longest)
    if motion_length:
        check_length(motion_length, "--motion_length", longest)
    if mode == "uncond":
        return [("unconditional", motion_length)]
    actions = checkpoint.get("actions") or []
    names = actions if args.action == ["all"] else args.action or []
    unknown = [name for name in names if name not in actions]
    if unknown or not names:
        problem = f"--action {unknown[0]}: unknown" if unknown else "pass --action NAME ..., or --action all"
        raise UserError(f"{problem}; the generator's actions are {', '.join(actions)}")
    return [(name, motion_length) for name in names]


def conditions_of(names, mode, checkpoint, encode):
    """Conditions (N, C), or None, of prompts or actions of ``read_wanted``; encode: list of str -> (N, C)."""
    if mode == "uncond":
        return None
    return encode(names) if mode == "text" else one_hot(names, checkpoint["actions"])


def read_prompts(text_prompt, text_path, motion_length=0, longest=MAX_LENGTH):
    """[(prompt, frames or 0)] of --text_prompt, a list of str, or of the file --text_path;
    ``motion_length``: frames of prompts without a length. UserError for an empty prompt or an unusable
    length."""
    if (text_prompt is None) == (text_path is None):
        raise UserError("pass either --text_prompt or --text_path")
    if text_prompt is not None:
        rows = [("--text_prompt", prompt.strip(), motion_length) for prompt in text_prompt]
    else:
        lines = read_lines(Path(text_path))
        rows = [(place, *parse_line(line, motion_length, place, longest)) for place, line in lines]
    for place, prompt, frames in rows:
        if not prompt:
            raise UserError(f"{place}: the prompt is empty; describe a motion, for example 'a person walks "
                            "forward'")
        if frames:
            check_length(frames, place if text_path else "--motion_length", longest)
    prompts = [prompt for _, prompt, _ in rows]
    hint_at_mistakes(prompts, text_path is None)
    return [(prompt, frames) for _, prompt, frames in rows]


def hint_at_mistakes(prompts, typed):
    """Say what prompts hardly mean as they are written; ``typed``: on the command line."""
    foreign = [prompt for prompt in prompts if not all(map(is_latin, prompt))]
    if foreign:
        say(f"warning: '{foreign[0][:40]}' is not in Latin letters, and the text encoders know English: the "
            "motion will have nothing to do with it")
    if typed and len(prompts) > 2 and not any(" " in prompt for prompt in prompts):
        say(f"note: {len(prompts)} prompts of one word each; several words of one prompt go in quotation "
            "marks")
    if typed and any(re.search(r"#\d+$", prompt) for prompt in prompts):
        say("note: '#' and a length are read in --text_path only; --motion_length sets it here")


def is_latin(letter):
    """Whether a character is a Latin letter, or none at all."""
    return not letter.isalpha() or unicodedata.name(letter, "").startswith("LATIN")


def read_lines(path):
    """[("PATH line N", line)] of the lines that are not blank."""
    if not path.exists() or path.is_dir():
        raise UserError(f"--text_path: no file {path}")
    try:
        lines = read_text(path, pipes=True).splitlines()
    except UnreadableText as error:
        raise UserError(f"--text_path: {error}") from error
    lines = [(f"{path} line {i}", line) for i, line in enumerate(lines, 1) if line.strip()]
    if not lines:
        raise UserError(f"--text_path: {path} has no prompts")
    return lines


def parse_line(line, default, place, longest):
    """``prompt``, ``prompt#frames`` or ``prompt#NA`` -> prompt, frames (0: to be estimated)."""
    prompt, mark, length = line.strip().rpartition("#")
    if not mark:
        return line.strip(), default
    if length.strip().upper() == "NA":
        return prompt.strip(), 0
    try:
        frames = int(length) if len(length) < 20 else int("too long")
    except ValueError as error:
        raise UserError(f"{place}: '{length[:20]}' after # is neither a number of frames nor NA") from error
    check_length(frames, place, longest)
    return prompt.strip(), frames


def check_length(frames, place, longest=MAX_LENGTH):
    """UserError unless a clip, or a part of a chain, can have so many frames."""
    if not SHORTEST <= frames <= longest:
        raise UserError(f"{place}: a length of {frames} frames is outside {SHORTEST}..{longest}"
                        + "; --chain makes longer motions" * (frames > longest))


def choose_run(args):
    """Fill in the run of a command line that names none: the pretrained weights of --dataset_name, or of
    realmotion. UserError where there are none."""
    if args.name is not None:
        args.dataset_name = args.dataset_name or "t2m"
        return
    if args.checkpoints_dir != CHECKPOINTS:
        raise UserError("--checkpoints_dir: pass --name too, the run to use there")
    args.name, args.checkpoints_dir = PRETRAINED.name, str(PRETRAINED)
    args.dataset_name = args.dataset_name or DATASET
    if not RunFolder(args.checkpoints_dir, args.dataset_name, args.name).weights.is_file():
        there = ", ".join(sorted(path.name for path in PRETRAINED.glob("*/"))) or "none"
        raise MissingFile(f"no pretrained weights for the data set '{args.dataset_name}' (there are: "
                          f"{there}); pass --name, a run that you trained")


def checkpoint_paths(args, which="best"):
    """Paths of the checkpoints of the generator and of its autoencoder (--ae_name, or as it was trained)."""
    generator = RunFolder(args.checkpoints_dir, args.dataset_name, args.name).checkpoint(which)
    ae_name = args.ae_name or read_checkpoint(generator).get("trained_on", {}).get("name")
    if ae_name is None:
        raise UserError(f"{generator} does not name its autoencoder; pass --ae_name and --ae_model")
    return generator, RunFolder(args.checkpoints_dir, args.dataset_name, ae_name).checkpoint()


def free_path(path, same=lambda path: False):
    """The first of STEM.npy, STEM-2.npy, STEM-3.npy ... (or another suffix) that does not exist or holds the
    ``same`` already."""
    for number in itertools.count(1):
        numbered = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        if not numbered.exists() or same(numbered):
            return numbered


@cache
def code_hash():
    """A digest of the code that makes clips."""
    root = Path(__file__).parents[1]
    files = [root / "sample.py", *(file for room in ("models", "diffusions", "utils")
                                   for file in sorted((root / room).rglob("*.py")))]
    return digest([[str(file.relative_to(root)), file_hash(file)] for file in files])


def is_of(request, path):
    """Whether the facts of the clip ``path`` name this request."""
    with suppress(UserError):
        return read_facts(path).get("request") == request
    return False


def earlier_clips(folder, names, request):
    """The clips with these file names, without suffix, as ``write_clips`` takes them, if ``folder`` has all
    of them, made for the ``request`` (a digest; None: there is none); else None."""
    paths = [free_path(folder / f"{name}.npy", partial(is_of, request)) for name in names if request]
    if not paths or not all(path.is_file() for path in paths):
        return None
    try:
        facts = [read_facts(path) for path in paths]
        return [(name, load_array(path), known["prompt"], known)
                for name, path, known in zip(names, paths, facts)]
    except (UserError, KeyError):  # damaged: they are made again
        return None


def has_joints(path, joints):
    """Whether a file is a clip of exactly these joints."""
    with suppress(UserError):
        return np.array_equal(load_array(path), joints)
    return False


def write_joints(folder, stem, joints):
    """Write joints (T, J, 3) to the ``free_path`` in a folder, and return it."""
    path = free_path(folder / f"{stem}.npy", partial(has_joints, joints=joints))
    with atomic_write(path) as temporary:
        np.save(temporary, joints)
    return path


def check_finite(joints, caption):
    """UserError for a generated clip with joints that are not finite."""
    if not np.isfinite(joints).all():
        raise UserError(f"'{caption}' has joints that are not finite; lower --cfg or --temperature")


@contextmanager
def open_stream(name):
    """Yields a text file that ``write_frames`` writes to: a new one of this name, or stdout for "-". A reader
    of stdout that stops ends the block. UserError where the file exists or cannot be written."""
    if name != "-":
        try:
            with open(name, "x", encoding="utf-8") as file:
                yield file
        except FileExistsError as error:
            raise UserError(f"--stream: {name} exists; choose another name") from error
        return
    try:
        yield sys.stdout
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end


def write_frames(file, joints, first, fps, prompts):
    """Write joints (n, J, 3) of frames ``first``, first + 1 ... to a text file, a line of JSON for each:
    {"frame", "seconds", "part", "prompt", "joints"}; prompts: per frame, (number, prompt) of its part."""
    for frame, (pose, (part, prompt)) in enumerate(zip(joints, prompts), first):
        row = {"frame": frame, "seconds": round(frame / fps, 4), "part": part, "prompt": prompt,
               "joints": pose.astype(np.float64).round(4).tolist()}
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    file.flush()


def write_clips(clips, spec, folder, no_video):
    """Write the .npy of every clip (file stem, joints (T, J, 3), caption, facts) of an iterable with its
    facts beside it (``write_facts``), then, unless ``no_video``, the videos; never over a file of another
    clip. Clips that are there with these facts and their video are left as they are. Returns the paths of the
    .npy files. UserError for joints that are not finite."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, drawings = [], []
    for stem, joints, caption, facts in clips:
        check_finite(joints, caption)
        path = write_joints(folder, stem, joints)
        facts = facts | {"fps": spec.fps, "skeleton": spec.skeleton}
        video = path.with_suffix(".mp4")
        if not ("request" in facts and is_of(facts["request"], path) and video.is_file()):
            drawings.append({"joints": joints, "path": video, "skeleton": spec.layout, "fps": spec.fps,
                             "caption": caption})
        write_facts(path, facts)
        tqdm.write(str(path))  # over the bar of those who make the clips
        paths.append(path)
    # one worker per two cores: each draws on one while its ffmpeg encodes on another
    if drawings and not no_video:
        render_many(drawings, workers=min((os.cpu_count() or 2) // 2, len(drawings) // CLIPS_PER_PROCESS))
        for drawing in drawings:
            tqdm.write(str(drawing["path"]))
    return paths


def remove_leftovers(paths, began):
    """Remove the temporary files of ``atomic_write`` that a killed run left beside the clips ``paths``, .npy
    files: those from before ``began``, in seconds since 1970."""
    stems = {path.stem for path in paths}
    for folder in {path.parent for path in paths}:
        for file in folder.glob(".*"):
            match = re.fullmatch(r"\.[0-9a-f]{12}\.(.+)\.\w+", file.name)
            if match and match[1] in stems and file.stat().st_mtime < began:
                file.unlink(missing_ok=True)


def caption_of(path):
    """What sample.py's file names say: 000_a_person_walks_80f_r0.npy -> a person walks."""
    words = re.sub(r"^\d{3,}_|(_\d+f)?_r\d+(-\d+)?$", "", path.stem)
    return words.replace("_", " ").strip()
