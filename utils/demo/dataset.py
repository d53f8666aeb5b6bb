"""The data set `demo`: people who walk, turn, jump, wave and so on, made by pure kinematics on first use.

It is laid out like HumanML3D (22 joints, 20 fps, 40 to 196 frames, three captions per clip) and needs no
download. `labels.json` names the actions of every clip, so that a trained model can be checked against what
it was asked for. The same seed makes the same data.
"""
import json
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.data.writing import make_data_folder, write_statistics
from utils.demo.actions import ACTIONS
from utils.demo.captions import caption_line, captions_of
from utils.demo.performer import Performer
from utils.errors import UserError
from utils.motion.features import joints_to_features
from utils.motion.skeletons import SKELETONS

MIN_FRAMES, MAX_FRAMES = 40, 196  # of the features, which have one frame less than the joints
SEQUENCE_FRAMES = 120  # two actions in a row are drawn again when they take longer
SEQUENCES = 0.25  # fraction of the clips
MORE_SEQUENCES = 0.8  # of the clips that are added for training
VAL, TEST = (8,), (3, 10, 16)  # of every 20 clips; the others are for training
CROPPED = ("walk_forward", "walk_slow", "walk_fast", "walk_backward", "run_forward")  # perhaps in mid-stride
NOT_IN_SEQUENCES = ("walk_circle_left", "walk_circle_right")  # too long
LONG = ("turn_left_360", "turn_right_360", "sway", "jumping_jacks")  # not two of these in one clip


def perform(action_ids, rng):
    """Act out one or two actions: joints (T, 22, 3), T from 41 to 197, and the facts of each action."""
    for action in action_ids:
        if action not in ACTIONS:
            raise ValueError(f"unknown action '{action}'; one of {', '.join(ACTIONS)}")
    for first, second in zip(action_ids[:-1], action_ids[1:]):
        if (first == "sit_down") != (second == "stand_up"):
            raise ValueError(f"'{second}' cannot follow '{first}': who sits can only stand up next")
    longest = SEQUENCE_FRAMES if len(action_ids) > 1 else MAX_FRAMES + 1
    tries = [_perform_once(action_ids, rng)]
    while len(tries[-1][0]) > longest and len(tries) < 8:
        tries.append(_perform_once(action_ids, rng))
    while all(len(joints) > MAX_FRAMES + 1 for joints, _ in tries) and len(tries) < 64:
        tries.append(_perform_once(action_ids, rng))
    joints, facts = min(tries, key=lambda item: len(item[0]))
    if len(joints) > MAX_FRAMES + 1:
        raise ValueError(f"{' and '.join(action_ids)} take more than {MAX_FRAMES} frames")
    return joints, facts


def _perform_once(action_ids, rng):
    performer, facts = Performer(rng), []
    performer.brief = len(action_ids) > 1
    if action_ids[0] != "stand_up":
        performer.rest(0, 4)
    for number, action in enumerate(action_ids):
        performer.followed = number + 1 < len(action_ids)
        facts.append(ACTIONS[action](performer))
    performer.hold(1, 6)
    frames = sum(len(part["x"]) for part in performer.parts)
    if frames < MIN_FRAMES + 1:
        performer.hold(MIN_FRAMES + 1 - frames, MIN_FRAMES + 6 - frames)
    joints = performer.finish()
    if action_ids[0] in CROPPED and len(action_ids) == 1 and rng.random() < 0.25:
        first, last = rng.integers(0, 16, 2)
        if len(joints) - first - last > MIN_FRAMES + 16:
            joints = joints[first : len(joints) - last]
    return joints, facts


def make_clip(action_ids, rng):
    """Joints (T, 22, 3) in metres, Y up, 20 fps, T from 41 to 197, of a random person somewhere on the floor,
    facing anywhere, who performs the actions (a list of one or two ids). ValueError for an unknown action."""
    return perform(action_ids, rng)[0]


def plan(num_clips, rng, sequences=SEQUENCES, never_first=("stand_up",)):
    """The actions of every clip: all of them equally often, a fraction ``sequences`` of the clips with two;
    those of ``never_first`` do not begin a sequence."""
    names = list(ACTIONS)
    firsts = [name for name in names if name not in (*NOT_IN_SEQUENCES, *never_first)]
    sequences = round(sequences * num_clips)
    clips = [[names[i % len(names)]] for i in range(num_clips - sequences)]
    seconds = {}
    for first in firsts:  # every action begins equally many sequences, and each time another one follows
        others = [name for name in firsts if name not in (first, "stand_up")
                  and not (first in LONG and name in LONG)]
        seconds[first] = (["stand_up"] if first == "sit_down" else
                          [others[i] for i in rng.permutation(len(others))])
    for i in range(sequences):
        turn, first = i // len(firsts), firsts[i % len(firsts)]
        clips.append([first, seconds[first][turn % len(seconds[first])]])
    return [clips[i] for i in rng.permutation(num_clips)]


def split_clips(clips, rng):
    """{split: sorted indices}; clips are dealt out action by action, so that every split has all actions."""
    order = sorted(rng.permutation(len(clips)), key=lambda i: (len(clips[i]), clips[i]))
    chosen = {"train": [], "val": [], "test": []}
    for rank, index in enumerate(order):
        split = "test" if rank % 20 in TEST else "val" if rank % 20 in VAL else "train"
        chosen[split].append(int(index))
    return {split: sorted(indices) for split, indices in chosen.items()}


def write_clip(folder, name, actions, rng):
    """Write features and captions of one clip; return the features (T, 263)."""
    joints, facts = perform(actions, rng)
    features = joints_to_features(joints, SKELETONS["t2m"], target_offsets=None)
    np.save(folder / "new_joint_vecs" / f"{name}.npy", features)
    lines = [caption_line(text) for text in captions_of(actions, facts, rng)]
    (folder / "texts" / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return features


def build_demo(root, num_clips=2000, seed=0, more=0):
    """Write the data set to the folder ``root``; UserError when that exists. It takes this name when it
    is complete, so an interrupted build leaves nothing half made. 1,000 clips take about 17 seconds.

    ``more`` clips, most of them two actions in a row, are added to the training split: a sentence about two
    actions is only understood by a model that has seen many of them. They do not change the other clips.
    """
    root = Path(root)
    if os.path.lexists(root):  # a link to nothing exists too
        raise UserError(f"{root} exists already; remove it to build the data set again")
    folder = root.with_name(root.name + ".partial")
    make_data_folder(folder)
    rng = np.random.default_rng(seed)
    clips = plan(num_clips, rng)
    splits = split_clips(clips, rng)
    clips += plan(more, rng, MORE_SEQUENCES, never_first=())
    splits["train"] += range(num_clips, len(clips))
    names, train = [f"{i:06d}" for i in range(len(clips))], set(splits["train"])
    total, squares, frames = 0.0, 0.0, 0
    for index, actions in enumerate(tqdm(clips, desc="making the demo data set", unit="clip")):
        features = write_clip(folder, names[index], actions, np.random.default_rng([seed, index]))
        if index in train:
            exact = features.astype(np.float64)
            total, squares, frames = total + exact.sum(0), squares + (exact**2).sum(0), frames + len(exact)
    write_statistics(folder, total, squares, frames, SKELETONS["t2m"])
    for split, indices in splits.items():
        (folder / f"{split}.txt").write_text("".join(names[i] + "\n" for i in indices))
    description = {"name": "demo", "skeleton": "t2m", "fps": 20.0, "min_frames": MIN_FRAMES,
                   "max_frames": 199, "unit_length": 4, "text_encoder": "minilm", "cfg": 2.0,
                   "num_clips": len(clips)}
    (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n")
    labels = {name: {"actions": actions} for name, actions in zip(names, clips)}
    (folder / "labels.json").write_text(json.dumps(labels, indent=0) + "\n")
    os.replace(folder, root)
