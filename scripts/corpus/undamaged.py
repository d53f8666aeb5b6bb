"""The files that the corpus damages: a tiny one of every kind that a command reads.

``make_inputs`` writes them to the current folder, in a few seconds and always the same: clips, a source
folder with captions and split lists, the data set made of it, untrained networks of a few channels, and so
on. Commands run in a copy of the folder.
"""
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from models import TextEncoder
from models.AE import AE_models
from models.LengthEstimator import LengthEstimator
from models.loading import weights_hash
from models.MARDM import MARDM_models
from scripts import export, make_skeleton, prepare_dataset
from utils.data.conditions import LENGTH_CLASSES
from utils.data.datasets import MotionStore, load_statistics
from utils.data.specs import get_spec
from utils.evaluation import evaluators, word_vectors
from utils.files import write_checkpoint, write_weights
from utils.motion.features import rotate_y
from utils.motion.skeletons import SKELETONS
from utils.report import write_json
from utils.text_condition import WordTable

CLIPS = ("walk_1", "walk_2", "turn_1", "turn_2", "wave_1", "wave_2")
SPLITS = {"train": CLIPS[:4], "val": CLIPS[4:5], "test": CLIPS[5:]}
FRAMES, WIDTH, DIM = 60, 16, 384  # of a clip; channels of the networks; of a sentence's feature
ENOUGH = 34  # test clips of the set for released evaluators, whose retrieval batches have 32
CAPTIONS = ("a person walks#a/DET person/NOUN walk/VERB#0.0#0.0\n"
            "someone walks forward#someone/PRON walk/VERB forward/ADV#0.0#0.0\n")
PATH = [(0.0, 0.0, 0.0, 0.0), (1.0, 0.1, 0.6, 0.0), (2.5, 0.3, 1.5, 10.0), (4.0, 0.8, 2.4, 20.0)]


class StandIn:
    """In place of a text encoder, which takes seconds to load: features from the letters of a text."""

    dim = DIM

    def encode(self, texts):
        features = torch.zeros(len(texts), DIM)
        for row, text in zip(features, texts):
            for letter in text.encode("utf-8", "replace"):
                row[letter] += 1 / len(text)
        return features

    def word_states(self, texts):
        return [torch.zeros(1, DIM).half() for _ in texts]

    def encode_words(self, texts):
        return WordTable(self.encode(texts), torch.cat(self.word_states(texts)), range(1, len(texts) + 1))


def use_stand_in():
    """Text encoders of this process are StandIns from now on."""
    encoder = StandIn()
    TextEncoder.load_text_encoder = lambda *_args, **_settings: encoder
    for name in ("sample", "evaluation_MARDM"):
        if name in sys.modules and hasattr(sys.modules[name], "load_text_encoder"):
            sys.modules[name].load_text_encoder = TextEncoder.load_text_encoder


def body(number):
    """Joints (FRAMES, 22, 3) float32 in metres of a figure that glides along an arc and swings its limbs."""
    skeleton, rng = SKELETONS["t2m"], np.random.default_rng(number)
    swing = 0.3 * np.sin(0.3 * np.arange(FRAMES)[:, None] + rng.uniform(0, 6, skeleton.num_joints))
    joints = np.zeros((FRAMES, skeleton.num_joints, 3))
    for parent, child in skeleton.bones:
        x, y, z = skeleton.target_offsets[child]
        angle = swing[:, child]
        bone = [x + 0 * angle, y * np.cos(angle) - z * np.sin(angle), y * np.sin(angle) + z * np.cos(angle)]
        joints[:, child] = joints[:, parent] + np.stack(bone, -1)
    heading = rng.uniform(-1, 1) * np.arange(FRAMES) / FRAMES
    steps = rotate_y(np.tile([0, 0, 0.04], (FRAMES, 1)), heading)
    joints = rotate_y(joints, heading[:, None]) + np.cumsum(steps, axis=0)[:, None]
    return (joints - [0, joints[..., 1].min(), 0]).astype(np.float32)


def call(module, *words):
    """Run a command in this process; it must not fail."""
    before, sys.argv = sys.argv, [module.__name__, *map(str, words)]
    try:
        module.main()
    finally:
        sys.argv = before


def make_inputs():
    """Write all files to the current folder."""
    use_stand_in()
    make_clips()
    make_sources()
    call(prepare_dataset, "--source", "source", "--out", "datasets/tiny", "--workers", 0)
    make_released_data()
    for split in SPLITS:  # packs the clips
        MotionStore(get_spec("tiny", "datasets"), split)
    for name, mode in (("by_text", "text"), ("by_action", "action")):
        make_generator("tiny", name, mode)
    make_released_evaluator()
    make_results()


def make_clips():
    Path("clips").mkdir()
    np.save("clips/walk.npy", body(1))
    codes = {"frames": 4, "sizes": [5, 5], "ordered": True, "digits": [[0, 4]] * (FRAMES // 4),
             "indices": [4] * (FRAMES // 4)}
    write_json(Path("clips/walk.json"), {
        "prompt": "a person walks", "fps": 20.0, "skeleton": "t2m", "codes": codes, "edited": [[8, 20]],
        "run": "by_text", "dataset": "tiny", "seed": 1, "repeat": 0})
    call(export, "clips/walk.npy", "--formats", "bvh", "--output_dir", ".")
    call(make_skeleton, "walk.bvh", "--out", "studio.json")
    joints = [joint["name"] for joint in json.loads(Path("studio.json").read_text())["joints"]]
    Path("studio").mkdir()
    np.save("studio/walk.npy", np.stack([body(1)[:, min(i, 21)] for i in range(len(joints))], 1)
            + 1e-3 * np.arange(len(joints))[:, None])
    write_json(Path("map.json"), {name: name for name in SKELETONS["t2m"].joint_names})
    rows = "".join(f"{','.join(map(str, row))}\n" for row in PATH)
    Path("path.csv").write_text(f"seconds,x,z,heading\n{rows}")
    Path("prompts.txt").write_text("a person walks#40\nhe waves#44\n")


def make_sources():
    """source/ with joints and source_bvh/ with BVH files: captions, split lists, labels."""
    for folder, kind in (("source", "joints"), ("source_bvh", "bvh")):
        for part in (kind, "texts"):
            Path(folder, part).mkdir(parents=True)
        for number, name in enumerate(CLIPS):
            Path(folder, "texts", f"{name}.txt").write_text(CAPTIONS)
            if kind == "joints":
                np.save(f"source/joints/{name}.npy", body(number))
            else:
                shutil.copy("walk.bvh", f"source_bvh/bvh/{name}.bvh")
        for split, names in SPLITS.items():
            Path(folder, f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        write_json(Path(folder, "labels.json"), {name: {"actions": [name[:-2]]} for name in CLIPS})
    Path("source_amass").mkdir()
    np.savez("source_amass/walk.npz", poses=np.zeros((FRAMES, 156)), trans=np.zeros((FRAMES, 3)))


def make_released_data():
    """datasets/HumanML3D: many test clips, for released evaluators."""
    folder, tiny = Path("datasets/HumanML3D"), Path("datasets/tiny")
    shutil.copytree(tiny, folder)
    for number in range(ENOUGH):
        for part, suffix in (("new_joint_vecs", ".npy"), ("texts", ".txt")):
            (folder / part / f"{number:06d}{suffix}").hardlink_to(tiny / part / f"walk_1{suffix}")
    (folder / "test.txt").write_text("".join(f"{number:06d}\n" for number in range(ENOUGH)))


def make_generator(dataset, name, mode):
    """checkpoints/ and weights/: a generator, its autoencoder and length estimator, hardly begun."""
    torch.manual_seed(0)
    spec = get_spec(dataset, "datasets")
    mean, std = map(torch.as_tensor, load_statistics(spec))
    about = {"dataset": spec.describe(), "mean": mean, "std": std}
    sizes = {"input_width": len(mean), "width": WIDTH, "latent_dim": WIDTH}
    ae = AE_models["FSQ_AE_High"](**sizes).eval()
    runs = {"ae": {"ae": ae.state_dict(), "kind": "ae", "model_name": "FSQ_AE_High", "model_kwargs": sizes,
                   **about}}
    sizes = {"ae_dim": WIDTH, "target_dim": ae.target_dim, "cond_mode": mode, "cond_dim": DIM,
             "num_actions": 3, "width": WIDTH, "ff": WIDTH, "layers": 1, "heads": 2, "head_width": WIDTH,
             "head_depth": 1}
    generator = MARDM_models["FSQ-MARDM-SiT-S"](**sizes)
    trained_on = {"name": "ae", "model_name": "FSQ_AE_High", "hash": weights_hash(ae)}
    runs[name] = {"mardm": generator.state_dict(), "kind": "mardm", "model_name": "FSQ-MARDM-SiT-S",
                  "model_kwargs": sizes, **about, "actions": ["turn", "walk", "wave"],
                  "trained_on": trained_on}
    if mode == "action":
        runs[name]["length_counts"] = torch.ones(3, LENGTH_CLASSES)
    estimator = LengthEstimator(DIM, LENGTH_CLASSES, 32)
    runs["length_estimator"] = {"estimator": estimator.state_dict(), "kind": "length_estimator", **about}
    for run, content in runs.items():
        write_checkpoint(Path("checkpoints", dataset, run, "model/latest.tar"), content)
        folder = Path("weights", dataset, run, "model")
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(folder / "weights.safetensors", content)
    write_checkpoint(Path("checkpoints/t2m/ae/model/latest.tar"), runs["ae"])


def make_released_evaluator():
    """checkpoints/t2m/text_mot_match, and glove/: as released, with networks of a few channels."""
    torch.manual_seed(0)
    words = [*"unk sos eos a person walk someone forward".split()]
    networks = {"movement_encoder": evaluators.MovementConvEncoder(67, WIDTH, WIDTH),
                "motion_encoder": evaluators.MotionEncoderBiGRUCo(WIDTH, WIDTH, WIDTH),
                "text_encoder": evaluators.TextEncoderBiGRUCo(300, 15, WIDTH, WIDTH)}
    folder = Path("checkpoints/t2m/text_mot_match")
    write_checkpoint(folder / "model/finest.tar", {key: net.state_dict() for key, net in networks.items()})
    (folder / "meta").mkdir()
    for name in ("mean", "std"):
        np.save(folder / f"meta/{name}.npy", np.ones(67, np.float32))
    Path("glove").mkdir()
    rng = np.random.default_rng(0)
    np.save(Path("glove", word_vectors.FILES[0]), rng.standard_normal((len(words), 300)).astype(np.float32))
    for file, content in zip(word_vectors.FILES[1:], (words, {word: i for i, word in enumerate(words)})):
        Path("glove", file).write_bytes(pickle.dumps(content, 2))


def make_results():
    """Results of evaluations, a study, and the curves of a training."""
    score = {"mean": 0.5, "interval": 0.01}
    result = {"kind": "generation", "protocol": "trained", "dataset": "tiny", "split": "test", "clips": 30,
              "evaluators": {"files": {"a/latest.tar": "0123456789abcdef"}},
              "scores": {"generated": {"FID": score, "R1": score}, "real": {"R1": score}}}
    for name in ("one", "two"):
        write_json(Path("results", f"{name}.json"), result)
    write_json(Path("study.json"), {"common": {"train": "--ae_name ae --max_iter 2"},
                                    "rows": {"base": {"train": "--model FSQ-MARDM-SiT-S"},
                                             "euler": {"of": "base", "evaluate": "--solver euler"}}})
    writer = SummaryWriter("log/model", filename_suffix=".tiny")
    for step in range(60):
        writer.add_scalar("Train/loss", 1 / (step + 1), step, walltime=step)
    writer.close()
    events, = Path("log/model").glob("events*")
    events.rename("log/model/events.out.tfevents.0.tiny")
