"""The corpus of damaged inputs that scripts/soak_inputs.py runs: which file, damaged how, for which command.

Input number n of a seed is always the same, and the kinds take turns, so the first hundred hold all of them.
"""
import random
from typing import NamedTuple

from scripts.corpus import checks, damage, ways

FAST = ("--device", "cpu", "--time_steps", "2", "--ode_steps", "1", "--no_video")
TINY = ("--dataset_name", "tiny", "--dataset_dir", "datasets")
TRAIN = ("--num_workers", "0", "--device", "cpu", "--check", *TINY)


class Command(NamedTuple):
    """module, words: of the command line. check: function (target) -> what is wrong with the result of a file
    that was damaged in "any" way, or None; target: the damaged file."""

    module: str
    words: tuple
    check: object = lambda _target: None


class Kind(NamedTuple):
    """A kind of file. weight: how many of each hundred; target: the file; says: what a message must name."""

    name: str
    weight: int
    target: str
    ways: tuple
    commands: tuple
    says: str = ""


class Case(NamedTuple):
    number: int
    kind: Kind
    way: damage.Way
    command: Command
    dice: random.Random

    def __str__(self):
        return f"{self.kind.name}, {self.way.name}: {self.command.module} {' '.join(self.command.words)}"


SAMPLE = ("--name", "by_text", "--dataset_name", "tiny", *FAST)
BY_ACTION = Command("sample", ("--name", "by_action", "--dataset_name", "tiny", "--action", "walk",
                               "--motion_length", "40", *FAST), checks.check_finite)
SHARED = Command("sample", ("--checkpoints_dir", "weights", *BY_ACTION.words), checks.check_finite)
ESTIMATED = Command("sample", (*SAMPLE, "--text_prompt", "he walks"), checks.check_finite)
JOINTS = (
    Command("scripts.export", ("clips/walk.npy", "--formats", "csv"), checks.check_csv),
    Command("scripts.export", ("clips/walk.npy", "--formats", "bvh", "glb", "npz"),
            checks.needs_joints(lambda _joints, _target: None)),
    Command("scripts.view", ("clips/walk.npy", "--output", "clips/view.html"), checks.check_page),
    Command("scripts.clean_feet", ("clips/walk.npy",), checks.check_feet),
    Command("scripts.retarget", ("clips/walk.npy", "--from", "t2m", "--to", "t2m", "--out", "out"),
            checks.check_retargeted),
    Command("edit", (*SAMPLE, "--source_motion", "clips/walk.npy", "-msec", "20,40", "--text_prompt",
                     "he waves"),
            checks.check_edit),
    Command("sample", (*SAMPLE, "--text_prompt", "he waves", "--motion_length", "40", "--start_pose",
                       "clips/walk.npy"), checks.check_start),
    Command("scripts.gallery", ("--clips", "clips/walk.npy", "--output", "gallery.webp", "--seconds", "0.5"),
            checks.needs_joints(lambda _joints, _target: None)),
)
NEW = ("--name", "new", *TRAIN)
TRAINERS = (
    Command("train_AE", ("--width", "16", "--window_size", "40", *NEW), checks.check_features),
    Command("train_length_estimator", NEW, checks.check_features),
    Command("train_evaluator", ("--width", "16", *NEW), checks.check_features),
    Command("train_MARDM", ("--ae_name", "ae", "--ae_model", "FSQ_AE_High", "--model", "FSQ-MARDM-SiT-S",
                            "--layers", "1", "--head_depth", "1", *NEW), checks.check_features),
)
WITH_TEXT = tuple(command._replace(check=checks.check_captions) for command in TRAINERS[1:])
PREPARE = ("--out", "datasets/new", "--workers", "0")
PREPARE_JOINTS = Command("scripts.prepare_dataset", ("--source", "source", *PREPARE), checks.check_prepared)
EVALUATE_AE = Command("evaluation_AE", ("--name", "ae", "--split", "train", *TRAIN))
RELEASED = Command("evaluation_AE", ("--name", "ae", "--dataset_name", "t2m", "--dataset_dir", "datasets",
                                     "--num_workers", "0", "--check", "--protocol", "essential",
                                     "--eval_statistics", "checkpoints/t2m/text_mot_match/meta"))
BY_LABEL = Command("train_MARDM", ("--cond_mode", "action", *TRAINERS[3].words))
DOCTOR = Command("scripts.doctor", ("--quick", "--dataset_dir", "datasets", "--checkpoints_dir", "none"))
ALL_JSON = (*damage.objects_of(), *damage.texts(), *damage.places(), *damage.RANDOM)
LOOSE_JSON = (*damage.objects_of(unknown="any"), *damage.texts(), *damage.places("any"), *damage.RANDOM)
SEALED_JSON = (*damage.objects_of(unknown="refused"), *damage.texts(), *damage.places(), *damage.RANDOM)
ARRAYS = (*damage.arrays(), *damage.places(), *damage.RANDOM)
PLAIN_TRAINERS = tuple(command._replace(check=lambda _target: None) for command in TRAINERS)
SPLIT_TRAINERS = tuple(command._replace(check=checks.check_split) for command in TRAINERS)
IN_PART = (*damage.arrays(in_part="any"), *damage.places(), *damage.RANDOM)
FEATURES = (*damage.arrays("left out", "any"), *damage.places("left out"), *damage.RANDOM)
LEFT_OUT = (*damage.arrays("left out"), *damage.places("left out"), *damage.RANDOM)

KINDS = (
    Kind("joints (npy)", 11, "clips/walk.npy", ARRAYS, JOINTS, "walk"),
    Kind("features (npy)", 7, "datasets/tiny/new_joint_vecs/walk_1.npy", FEATURES, TRAINERS, "walk_1"),
    Kind("joints of a source (npy)", 5, "source/joints/walk_1.npy", LEFT_OUT, (PREPARE_JOINTS,), "walk_1"),
    Kind("statistics (npy)", 4, "datasets/tiny/Std.npy", IN_PART, PLAIN_TRAINERS[:3], "Std.npy"),
    Kind("captions", 7, "datasets/tiny/texts/walk_1.txt", ways.CAPTION_WAYS, WITH_TEXT, "walk_1"),
    Kind("captions of a source", 3, "source/texts/walk_1.txt", ways.CAPTION_WAYS, (
        PREPARE_JOINTS._replace(check=lambda target: None),), "walk_1"),
    Kind("split lists", 6, "datasets/tiny/train.txt", ways.split_ways(), SPLIT_TRAINERS, "train.txt"),
    Kind("split lists of a source", 3, "source/train.txt", ways.split_ways(), (
        PREPARE_JOINTS._replace(check=lambda target: None),), "train.txt"),
    Kind("dataset.json", 4, "datasets/tiny/dataset.json", (*ALL_JSON, *ways.DATASETS), (*PLAIN_TRAINERS,
                                                                                        EVALUATE_AE),
         "dataset.json"),
    Kind("labels.json", 3, "datasets/tiny/labels.json", (*SEALED_JSON, *ways.LABELS), (
        BY_LABEL._replace(check=lambda _target: None),), "labels.json"),
    Kind("skeleton files", 4, "studio.json", (*ALL_JSON, *ways.SKELETONS_OF_MINE), (
        Command("scripts.export", ("studio/walk.npy", "--skeleton", "studio.json", "--formats", "csv")),
        Command("scripts.view", ("studio/walk.npy", "--skeleton", "studio.json", "--output", "view.html")),
        Command("scripts.retarget", ("clips/walk.npy", "--from", "t2m", "--to", "studio.json", "--out",
                                     "out"),
                checks.check_finite),
        Command("scripts.prepare_dataset", ("--source", "source_bvh", "--skeleton", "studio.json",
                                            *PREPARE))),
         "studio"),
    Kind("maps of joints", 2, "map.json", (*damage.objects_of(unknown="refused"), *damage.texts(),
                                          *damage.places(), *damage.RANDOM), (
        Command("scripts.retarget", ("clips/walk.npy", "--from", "t2m", "--to", "t2m", "--out", "out",
                                     "--map",
                                     "map.json"), checks.check_finite),), "map.json"),
    Kind("facts beside clips", 4, "clips/walk.json", (*LOOSE_JSON, *ways.FACTS), JOINTS[:1] + JOINTS[2:4],
         "walk"),
    Kind("recipes of a study", 2, "study.json", (*damage.objects_of(unknown="refused"), *ways.STUDIES,
                                                *damage.texts(), *damage.places()), (
        Command("scripts.study", ("study.json", *TINY, "--num_workers", "0", "--device", "cpu")),), ""),
    Kind("results", 3, "results/two.json", (*damage.objects_of(), *ways.RESULTS, *damage.texts(),
                                            *damage.places(),
                                           *damage.RANDOM), (
        Command("scripts.compare_evaluations", ("results/one.json", "results/two.json")),), "two.json"),
    Kind("checkpoints of autoencoders", 5, "checkpoints/tiny/ae/model/latest.tar", (
        *ways.OWN_CHECKPOINTS, *ways.STATISTICS_OF_CHECKPOINTS), (
        BY_ACTION, EVALUATE_AE, PLAIN_TRAINERS[3]), "/ae/"),
    Kind("checkpoints of generators", 4, "checkpoints/tiny/by_action/model/latest.tar", ways.GENERATORS,
         (BY_ACTION,),
         "by_action|action"),
    Kind("checkpoints of length estimators", 2, "checkpoints/tiny/length_estimator/model/latest.tar",
         ways.CHECKPOINTS,
         (ESTIMATED,), "length_estimator"),
    Kind("released evaluators", 2, "checkpoints/t2m/text_mot_match/model/finest.tar", ways.CHECKPOINTS,
         (RELEASED,),
         "finest.tar"),
    Kind("shared weights (safetensors)", 3, "weights/tiny/by_action/model/weights.safetensors", ways.TENSORS,
         (SHARED,), "weights"),
    Kind("shared weights (json)", 3, "weights/tiny/ae/model/weights.json", SEALED_JSON, (SHARED,), "weights"),
    Kind("prompts", 5, "prompts.txt", ways.PROMPT_WAYS, (
        Command("sample", (*SAMPLE, "--text_path", "prompts.txt", "--view"), checks.check_prompts),),
         "prompts.txt"),
    Kind("GloVe (npy)", 2, "glove/our_vab_data.npy", ARRAYS, (RELEASED,), "our_vab_data.npy"),
    Kind("GloVe (pickles)", 2, "glove/our_vab_words.pkl", ways.WORDS, (RELEASED,), "glove"),
    Kind("BVH", 4, "walk.bvh", ways.BVH_WAYS, (
        Command("scripts.make_skeleton", ("walk.bvh", "--out", "made.json"), checks.check_bvh),), "walk.bvh"),
    Kind("BVH of a source", 3, "source_bvh/bvh/turn_1.bvh", tuple(
        way._replace(outcome="left out") if way.outcome == "refused" else way for way in ways.BVH_WAYS), (
        Command("scripts.prepare_dataset", ("--source", "source_bvh", *PREPARE)),), "turn_1"),
    Kind("trajectories (csv)", 4, "path.csv", ways.TRAJECTORIES, (
        Command("sample", (*SAMPLE, "--text_prompt", "he walks", "--trajectory", "path.csv"),
                checks.check_finite),),
         "path.csv"),
    Kind("AMASS (npz)", 1, "source_amass/walk.npz", tuple(
        way._replace(outcome="refused") for way in (*damage.binary(), *damage.RANDOM)), (
        Command("scripts.prepare_dataset", ("--source", "source_amass", *PREPARE)),), "source_amass"),
    Kind("packed clips and text features", 2, "datasets/tiny/packed/train_67.bin", tuple(
        way._replace(outcome="any") for way in (*damage.binary(), *damage.places(), *damage.RANDOM)),
         PLAIN_TRAINERS[:2]),
    Kind("training curves (events)", 2, "log/model/events.out.tfevents.0.tiny", ways.EVENTS, (
        Command("plot_loss", ("--log_dir", "log", "--output", "curve.png")),
        Command("analyze_training", ("--log_dirs", "log", "--output_dir", "out"))), "log"),
    Kind("strays in datasets/", 1, "datasets/tiny/dataset.json", ways.FOLDERS, (
        Command("evaluation_AE", ("--name", "ae", "--dataset_name", "demo", "--dataset_dir", "datasets")),
        Command("train_AE", ("--name", "new", "--dataset_name", "demo", "--dataset_dir", "datasets"))),
         "demo"),
    Kind("all of these, by the doctor", 2, "datasets/tiny/new_joint_vecs/walk_1.npy", FEATURES, (DOCTOR,),
         "walk_1"),
)


def in_turn():
    """Yields kinds without end, each as often as its weight, evenly spread; the first round has each once."""
    yield from KINDS
    owed = {kind.name: kind.weight - 1.0 for kind in KINDS}
    total = sum(kind.weight for kind in KINDS)
    while True:
        kind = max(KINDS, key=lambda kind: owed[kind.name])
        yield kind
        for other in KINDS:
            owed[other.name] += other.weight / total
        owed[kind.name] -= 1


def corpus(seed):
    """Yields the Cases of a seed, without end: each kind's ways in a shuffled order, again and again, and its
    commands in turn."""
    counts = dict.fromkeys((kind.name for kind in KINDS), 0)
    for number, kind in enumerate(in_turn()):
        turn, place = divmod(counts[kind.name], len(kind.ways))
        order = list(kind.ways)
        random.Random(f"{seed} {kind.name} {turn}").shuffle(order)
        command = kind.commands[(counts[kind.name] + turn) % len(kind.commands)]
        counts[kind.name] += 1
        yield Case(number, kind, order[place], command, random.Random(f"{seed} {number}"))
