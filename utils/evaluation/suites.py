"""The evaluators of a data set, by one of three protocols. Metrics of two protocols cannot be compared.

    essential   67 (KIT 64) features; the evaluators released with MARDM: matching networks, and MotionCLIP
                for the CLIP-score
    standard    263 (KIT 251) features, rebuilt from the generated joints; Guo et al.'s evaluator (CVPR 2022)
    trained     our own evaluator, from train_evaluator.py

Names of metrics, of result files and their ``kind`` end with the protocol, except that of ``trained``.
Shapes: N clips, T frames, D features, E embedding.
"""
import argparse
from pathlib import Path

import numpy as np

from utils.arrays import load_array
from utils.data.specs import PROTOCOLS
from utils.errors import MissingFile, UserError
from utils.evaluation import evaluators
from utils.evaluation.evaluators import embed_all
from utils.evaluation.word_vectors import FILES, WordVectorizer
from utils.files import RunFolder, file_hash, read_checkpoint
from utils.motion.features import features_to_standard

TAIL = 4  # frames after a clip's end that reach the published evaluator's last token (it sees 3)
SOURCE = {"essential": "the README of MARDM says where to download it",
          "standard": "it is in the downloads of HumanML3D's text-to-motion code (Guo et al.) and of MoMask"}
# Folders in checkpoints/<dataset>/ that hold released evaluators, not runs.
RELEASED_FOLDERS = ("text_mot_match", "text_mot_match_standard", "text_mot_match_clip", "Comp_v6_KLD005",
                    "Comp_v6_KLD01")
FLAGS = {"matching": "--matching_evaluator", "contrast": "--contrast_evaluator",
         "statistics": "--eval_statistics"}
OWN = "or use an evaluator of your own: train_evaluator.py, then --protocol trained"


def add_suite(parser):
    """The flags that ``load_suite`` reads."""
    parser.add_argument("--protocol", choices=PROTOCOLS, default=None,
                        help="features and evaluators; default: essential for t2m and kit, else trained")
    parser.add_argument("--evaluator", default="evaluator", help="--name of the evaluator's run (trained)")
    parser.add_argument("--matching_evaluator", default=None, metavar="FILE",
                        help="released matching networks; default: "
                             "<checkpoints>/<dataset>/text_mot_match/model/finest.tar (for standard "
                             "text_mot_match_standard first)")
    parser.add_argument("--contrast_evaluator", default=None, metavar="FILE",
                        help="released MotionCLIP (essential); default: "
                             "<checkpoints>/<dataset>/text_mot_match_clip/model/finest.tar")
    parser.add_argument("--eval_statistics", default=None, metavar="DIR",
                        help="mean and std of the released evaluator; default: utils/eval_mean_std/<dataset> "
                             "(essential), meta beside the evaluator's model folder or in Comp_v6_KLD005 "
                             "(standard)")
    parser.add_argument("--glove_dir", default="./glove", help="word vectors of the released evaluators")


def suite_flags(checkpoints_dir, **changes):
    """The parsed flags of ``add_suite`` at their defaults, but for ``changes``, and --checkpoints_dir."""
    parser = argparse.ArgumentParser()
    add_suite(parser)
    flags = vars(parser.parse_args([])) | {"checkpoints_dir": checkpoints_dir} | changes
    return argparse.Namespace(**flags)


class EvaluatorSuite:
    """The evaluators of a protocol. ``contrast``: for the CLIP-score, or None; ``files``: where they come
    from; ``columns``: features of a real clip."""

    def __init__(self, protocol, skeleton, matching, contrast=None, files=()):
        self.protocol, self.skeleton, self.matching, self.contrast = protocol, skeleton, matching, contrast
        self.files = {str(path): file_hash(path) for path in files}
        self.columns = features_of(protocol, skeleton)

    @property
    def released(self):
        return self.protocol != "trained"

    def tag(self, name):
        """A name of a metric or file with the protocol, so that no table mixes two protocols by accident."""
        return f"{name}_{self.protocol}" if self.released else name

    def check_captions(self, captions):
        """The captions. UserError where the released networks need word classes that one lacks."""
        bare = [caption.text for caption in captions if not caption.tokens]
        if self.released and bare:
            raise UserError(f"the caption '{bare[0][:60]}' has no word/POS tokens after its first #, which "
                            f"the released evaluators read; {OWN}")
        return captions

    def text(self, captions):
        """Embeddings (N, E) of captions."""
        return self.matching.embed_text(self.check_captions(captions)).double().cpu().numpy()

    def embed(self, motions):
        """Embeddings (N, E) of clips (T, essential or more), real and generated ones treated alike."""
        return embed_all(self.matching, self.rebuilt(motions))

    def real(self, motions):
        """Two embeddings (N, E) of real clips (T, columns): as published, which is of the clips as they are,
        and treated like generated ones."""
        embeddings = embed_all(self.matching, motions)
        return embeddings, self.embed(motions) if self.protocol == "standard" else embeddings

    @property
    def published_tail(self):
        """Whether generated clips come with what the published decoder leaves after their end, which the
        evaluator's convolutions see. Nothing is published for the standard protocol: it sees clips alone."""
        return self.protocol == "essential"

    def clips_of(self, made):
        """Only the clips (T, essential) of what ``generate`` of ``scoring.evaluate`` returns."""
        return [clip for clip, _ in made] if self.published_tail else list(made)

    def made(self, made):
        """Two embeddings (N, E) of generated clips: as published, and with zeros after their end."""
        embeddings = self.embed(self.clips_of(made))
        if not self.published_tail:
            return embeddings, embeddings
        return embed_all(self.matching, [long_clip for _, long_clip in made], tail=TAIL), embeddings

    def rebuilt(self, motions):
        """Clips (T, essential or more) in the features of the protocol."""
        if self.protocol != "standard":
            return motions
        return [rebuild(motion, self.skeleton) for motion in motions]

    def clip_scores(self, captions, motions):
        """Cosines (N,) of captions and clips (T, essential or more)."""
        text = self.contrast.embed_text(captions).double().cpu().numpy()
        return (text * embed_all(self.contrast, motions)).sum(1)

    def describe(self):
        """The "evaluators" of a result."""
        return {"protocol": self.protocol, "features": self.columns, "files": self.files}


def features_of(protocol, skeleton):
    """Features per frame in a protocol."""
    return skeleton.feature_dim if protocol == "standard" else skeleton.essential_dim


def rebuild(motion, skeleton):
    """Features (T, essential or more) -> standard features (T, D) of their joints, on the clip's own bones.
    The last row is repeated, since its velocities would need a next frame."""
    features = features_to_standard(np.asarray(motion)[:, : skeleton.essential_dim], skeleton)
    return np.concatenate([features, features[-1:]])


def load_suite(args, spec, text_features, make_tokenizer=None, device="cpu"):
    """The EvaluatorSuite of a data set, from the flags of ``add_suite`` and ``--checkpoints_dir``.

    text_features: list of str -> (B, C), frozen sentence features. make_tokenizer: () -> CLIP's tokenizer;
    None omits the CLIP-score. UserError names what is missing and its source.
    """
    protocol, skeleton = args.protocol or spec.protocol, spec.layout
    if protocol == "trained":
        path = RunFolder(args.checkpoints_dir, spec.name, args.evaluator).checkpoint()
        matching = evaluators.TrainedEvaluator.load(path, text_features, device)
        return EvaluatorSuite(protocol, skeleton, matching, files=[path])
    files = {what: find_released(args, protocol, spec.name, what) for what in ("matching", "statistics")}
    path, contrast = files["matching"][0], None
    state = read_checkpoint(path, ("movement_encoder",))["movement_encoder"]
    movement_encoder = evaluators.build(evaluators.make_movement_encoder, state, path)
    check_features(movement_encoder.main[0].in_channels, path, protocol, skeleton)
    mean, std = (read_statistics(file, protocol, skeleton) for file in files["statistics"])
    vectorizer = WordVectorizer(args.glove_dir)
    matching = evaluators.MatchingEvaluator.load(path, mean, std, vectorizer, device)
    if protocol == "essential" and make_tokenizer is not None:
        path, = files["contrast"] = find_released(args, protocol, spec.name, "contrast")
        contrast = evaluators.ContrastEvaluator.load(path, mean, std, make_tokenizer(), device)
        check_features(contrast.model.motion_encoder.embed_motion.in_features, path, protocol, skeleton)
    files["words"] = [Path(args.glove_dir) / name for name in FILES]
    return EvaluatorSuite(protocol, skeleton, matching, contrast,
                          [file for group in files.values() for file in group])


def released_places(args, protocol, dataset):
    """{"matching", "contrast" (essential only), "statistics": [(file, ...)]}: where the files of a released
    protocol are looked for. The first place with all its files counts (``first_place``)."""
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
        found = [beside, *(statistics(folder / f"Comp_v6_{name}/meta") for name in ("KLD005", "KLD01"))]
    else:
        places["contrast"] = networks(args.contrast_evaluator, "text_mot_match_clip")
        found = [statistics(Path("utils/eval_mean_std") / dataset, "eval_{}.npy"), beside]
    given = args.eval_statistics
    return places | {"statistics": [statistics(given, "eval_{}.npy"), statistics(given)] if given else found}


def first_place(places):
    """The first tuple of files that all exist, or None."""
    return next((files for files in places if all(file.is_file() for file in files)), None)


def find_released(args, protocol, dataset, what):
    """The files of one part of a released protocol. UserError names their source."""
    places = released_places(args, protocol, dataset)[what]
    files = first_place(places)
    if files is None:
        shown = " or ".join(" and ".join(map(str, files)) for files in places)
        raise MissingFile(f"no {shown} ({what} of the {protocol} protocol's evaluator): {SOURCE[protocol]}; "
                          f"put it there, or pass {FLAGS[what]}; {OWN}")
    return files


class OtherFeatures(UserError):
    """An intact file, of another protocol or skeleton: the one that is needed is missing."""

    missing = True


def read_statistics(path, protocol, skeleton):
    """A vector with one value per feature of the protocol. Raises UserError."""
    wanted = features_of(protocol, skeleton)
    try:
        value = load_array(path)
    except UserError as error:
        raise UserError(f"{error}; {SOURCE[protocol]}") from error
    if value.shape != (wanted,) or not np.isfinite(value).all():
        error = OtherFeatures if value.ndim == 1 and np.isfinite(value).all() else UserError
        raise error(f"{path} must hold {wanted} finite numbers for the {protocol} protocol, it has shape "
                    f"{value.shape}")
    return value


def check_features(found, path, protocol, skeleton):
    """UserError unless an evaluator reads the features of its protocol (standard: without the 4 contacts)."""
    wanted = features_of(protocol, skeleton) - (4 if protocol == "standard" else 0)
    if found != wanted:
        raise OtherFeatures(f"{path} reads {found} features, the {protocol} protocol needs an evaluator of "
                            f"{wanted}; {SOURCE[protocol]}; pass its file with --matching_evaluator or "
                            "--contrast_evaluator")
