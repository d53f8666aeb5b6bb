"""Who judges the clips of a data set. Three protocols, whose figures cannot be compared with each other:

    essential   67 (KIT 64) features; the evaluators released with MARDM: matching networks, and MotionCLIP
    for the CLIP-score standard    263 (KIT 251) features, rebuilt from the generated joints; Guo et al.'s
    evaluator (CVPR 2022) trained     our own evaluator, from train_evaluator.py

Names of metrics, of result files and their ``kind`` carry the protocol, except that of ``trained``.
Shapes: N clips, T frames, D features, E embedding.
"""
import argparse
from pathlib import Path

import numpy as np

from utils.arrays import load_array
from utils.errors import MissingFile, UserError
from utils.evaluation.evaluators import (
    ContrastEvaluator,
    MatchingEvaluator,
    TrainedEvaluator,
    build,
    embed_all,
    make_movement_encoder,
)
from utils.evaluation.word_vectors import FILES, WordVectorizer
from utils.files import RunFolder, file_hash, read_checkpoint
from utils.motion.features import features_to_standard
from utils.motion.skeletons import SKELETONS

PROTOCOLS = ("essential", "standard", "trained")
TAIL = 4  # frames behind a clip's end that reach the published evaluator's last token (it sees 3)
SOURCE = {"essential": "it is among the evaluators that the README of MARDM tells how to download",
          "standard": "it is among the downloads of HumanML3D's text-to-motion code (Guo et al.), and of "
                      "MoMask"}
# Folders in checkpoints/<dataset>/ that hold released evaluators, and no runs.
RELEASED_FOLDERS = ("text_mot_match", "text_mot_match_standard", "text_mot_match_clip", "Comp_v6_KLD005",
                    "Comp_v6_KLD01")
FLAGS = {"matching": "--matching_evaluator", "contrast": "--contrast_evaluator",
         "statistics": "--eval_statistics"}
OWN = "or judge by an evaluator of your own: train_evaluator.py, then --protocol trained"


def add_suite(parser):
    """The flags that ``load_suite`` reads."""
    parser.add_argument("--protocol", choices=PROTOCOLS, default=None,
                        help="features and evaluators to judge by; default: essential for t2m and kit, "
                             "trained for others")
    parser.add_argument("--evaluator", default="evaluator", help="--name of the evaluator's run (trained)")
    parser.add_argument("--matching_evaluator", default=None, metavar="FILE",
                        help="released matching networks; default: "
                             "<checkpoints>/<dataset>/text_mot_match/model/finest.tar "
                        "(standard: that in text_mot_match_standard comes first)")
    parser.add_argument("--contrast_evaluator", default=None, metavar="FILE",
                        help="released MotionCLIP (essential); default: "
                        "<checkpoints>/<dataset>/text_mot_match_clip/model/finest.tar")
    parser.add_argument("--eval_statistics", default=None, metavar="DIR",
                        help="mean and std of the released evaluator; default: utils/eval_mean_std/<dataset> "
                             "(essential), meta "
                        "beside the evaluator's model folder or in Comp_v6_KLD005 (standard)")
    parser.add_argument("--glove_dir", default="./glove", help="word vectors of the released evaluators")


def suite_flags(checkpoints_dir, **changes):
    """What ``load_suite`` reads of a command line that has none of the flags of ``add_suite`` but the
    ``changes``."""
    parser = argparse.ArgumentParser()
    add_suite(parser)
    return argparse.Namespace(**(vars(parser.parse_args([])) | {"checkpoints_dir": checkpoints_dir}
                                 | changes))


class EvaluatorSuite:
    """A protocol with its evaluators. ``contrast``: for the CLIP-score, or None; ``files``: what they were
    read from."""

    def __init__(self, protocol, skeleton, matching, contrast=None, files=()):
        self.protocol, self.skeleton, self.matching, self.contrast = protocol, skeleton, matching, contrast
        self.files = {str(path): file_hash(path) for path in files}
        # of real clips
        self.columns = skeleton.feature_dim if protocol == "standard" else skeleton.essential_dim

    @property
    def released(self):
        return self.protocol != "trained"

    def tag(self, name):
        """A metric's or a file's name with the protocol: no table can mix two of them by accident."""
        return f"{name}_{self.protocol}" if self.released else name

    def check_captions(self, captions):
        """The captions. UserError where the released networks need word classes that they lack."""
        bare = [caption.text for caption in captions if not caption.tokens]
        if self.released and bare:
            raise UserError(f"the caption '{bare[0][:60]}' has no word/POS tokens behind its first #, which "
                            "the released "
                            f"evaluators read; {OWN}")
        return captions

    def text(self, captions):
        """Embeddings (N, E) of captions."""
        return self.matching.embed_text(self.check_captions(captions)).double().cpu().numpy()

    def real(self, motions):
        """Embeddings (N, E) of real clips, a list of (T, columns): as published, that is as the data set
        holds them, and treated like generated ones."""
        embeddings = embed_all(self.matching, motions)
        return embeddings, embed_all(self.matching,
                                     self.rebuilt(motions)) if self.protocol == "standard" else embeddings

    @property
    def published_tail(self):
        """Whether generated clips come with what the published decoder leaves after their end, which the
        evaluator's convolutions see. The standard protocol, for which nothing is published, always looks at
        the clip alone."""
        return self.protocol == "essential"

    def clips_of(self, made):
        """The clips (T, essential) alone, of what ``evaluate``'s ``generate`` returns."""
        return [clip for clip, _ in made] if self.published_tail else list(made)

    def made(self, made):
        """Embeddings (N, E) of generated clips, as published, and with zeros after their end, as real ones
        have them."""
        embeddings = embed_all(self.matching, self.rebuilt(self.clips_of(made)))
        if not self.published_tail:
            return embeddings, embeddings
        return embed_all(self.matching, [long_clip for _, long_clip in made], tail=TAIL), embeddings

    def rebuilt(self, motions):
        """Clips (T, essential or more) in the features of the protocol."""
        return [rebuild(motion, self.skeleton)
                for motion in motions] if self.protocol == "standard" else motions

    def clip_scores(self, captions, motions):
        """Cosines (N,) of captions and clips (T, essential or more)."""
        text = self.contrast.embed_text(captions).double().cpu().numpy()
        return (text * embed_all(self.contrast, motions)).sum(1)

    def describe(self):
        """What results say about the judges."""
        return {"protocol": self.protocol, "features": self.columns, "files": self.files}


def rebuild(motion, skeleton):
    """Features (T, essential or more) -> standard features (T, D) of their joints, on the figure's own bones.
    The last row is repeated: velocities need a next frame, of which there is none."""
    features = features_to_standard(np.asarray(motion)[:, : skeleton.essential_dim], skeleton)
    return np.concatenate([features, features[-1:]])


def load_suite(args, spec, text_features, make_tokenizer=None, device="cpu"):
    """The EvaluatorSuite of a data set, from the flags of ``add_suite`` and ``--checkpoints_dir``.

    text_features: list of str -> (B, C), frozen sentence features. make_tokenizer: () -> CLIP's tokenizer;
    None leaves the CLIP-score out. Raises UserError, which says what is missing and where it comes from.
    """
    protocol, skeleton = args.protocol or spec.protocol, SKELETONS[spec.skeleton]
    if protocol == "trained":
        path = RunFolder(args.checkpoints_dir, spec.name, args.evaluator).checkpoint()
        return EvaluatorSuite(protocol, skeleton, TrainedEvaluator.load(path, text_features, device),
                              files=[path])
    files = {what: find_released(args, protocol, spec.name, what) for what in ("matching", "statistics")}
    path = files["matching"][0]
    check_features(matching_features(path), path, protocol, skeleton)
    mean, std = (read_statistics(file, protocol, skeleton) for file in files["statistics"])
    matching, contrast = MatchingEvaluator.load(path, mean, std, WordVectorizer(args.glove_dir), device), None
    if protocol == "essential" and make_tokenizer is not None:
        path, = files["contrast"] = find_released(args, protocol, spec.name, "contrast")
        contrast = ContrastEvaluator.load(path, mean, std, make_tokenizer(), device)
        check_features(contrast.model.motion_encoder.embed_motion.in_features, path, protocol, skeleton)
    files["words"] = [Path(args.glove_dir) / name for name in FILES]
    return EvaluatorSuite(protocol, skeleton, matching, contrast,
                          [file for group in files.values() for file in group])


def released_places(args, protocol, dataset):
    """{"matching", "contrast" (essential only), "statistics": [(file, ...)]}: where the files of a released
    protocol are looked for, from the current folder. The first place that has all its files counts
    (``first_place``)."""
    folder = Path(args.checkpoints_dir) / dataset

    def networks(flag, *names):
        return [(Path(flag),)] if flag else [(folder / name / "model" / "finest.tar",) for name in names]

    def statistics(where, name="{}.npy"):
        return tuple(Path(where) / name.format(part) for part in ("mean", "std"))

    # Both releases call their folder text_mot_match, so the standard one may be kept apart.
    names = ("text_mot_match_standard", "text_mot_match") if protocol == "standard" else ("text_mot_match",)
    places = {"matching": networks(args.matching_evaluator, *names)}
    beside = statistics((first_place(places["matching"]) or places["matching"][0])[0].parent.parent / "meta")
    if protocol == "standard":
        found = [beside, *(statistics(folder / name / "meta")
                           for name in ("Comp_v6_KLD005", "Comp_v6_KLD01"))]
    else:
        places["contrast"] = networks(args.contrast_evaluator, "text_mot_match_clip")
        found = [statistics(Path("utils/eval_mean_std") / dataset, "eval_{}.npy"), beside]
    given = args.eval_statistics
    return places | {"statistics": [statistics(given, "eval_{}.npy"), statistics(given)] if given else found}


def first_place(places):
    """The first tuple of files that all exist, or None."""
    return next((files for files in places if all(file.is_file() for file in files)), None)


def find_released(args, protocol, dataset, what):
    """The files of one part of a released protocol. Raises UserError, which says where they come from."""
    places = released_places(args, protocol, dataset)[what]
    files = first_place(places)
    if files is None:
        shown = " or ".join(" and ".join(map(str, files)) for files in places)
        raise MissingFile(f"no {shown} ({what} of the {protocol} protocol's evaluator): {SOURCE[protocol]}; "
                        "put it there, or pass "
                        f"{FLAGS[what]}; {OWN}")
    return files


class OtherFeatures(UserError):
    """An intact file, of another protocol or skeleton: the one that is needed is missing."""

    missing = True


def read_statistics(path, protocol, skeleton):
    """A vector of as many features as the protocol has. Raises UserError."""
    wanted = skeleton.feature_dim if protocol == "standard" else skeleton.essential_dim
    try:
        value = load_array(path)
    except UserError as error:
        raise UserError(f"{error}; {SOURCE[protocol]}") from error
    if value.shape != (wanted,) or not np.isfinite(value).all():
        raise (OtherFeatures if value.ndim == 1 and np.isfinite(value).all() else UserError)(f"{path} must hold {wanted} finite numbers for the {protocol} protocol, it has shape "
                        f"{value.shape}")
    return value


def matching_features(path):
    """Features that the matching networks of a file read."""
    state = read_checkpoint(path, ("movement_encoder",))["movement_encoder"]
    return build(make_movement_encoder, state, path).main[0].in_channels


def check_features(found, path, protocol, skeleton):
    """UserError unless an evaluator reads as many features as its protocol has (standard: all but the 4 foot
    contacts)."""
    wanted = skeleton.feature_dim - 4 if protocol == "standard" else skeleton.essential_dim
    if found != wanted:
        raise OtherFeatures(f"{path} reads {found} features, the {protocol} protocol needs an evaluator of "
                        f"{wanted}: "
                        f"{SOURCE[protocol]}; pass its place with --matching_evaluator or "
                        "--contrast_evaluator")
