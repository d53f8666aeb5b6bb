"""What is known about each data set."""
import atexit
import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path

import torch

from utils.errors import MissingFile, UserError, only_check, say
from utils.files import read_json
from utils.motion.features import features_to_joints
from utils.motion.skeleton_files import get_skeleton


@dataclass(frozen=True)
class DatasetSpec:
    """One data set. skeleton: as dataset.json has it, the name of a built-in one or the description of
    another (``layout`` is the Skeleton itself). fps: frames per second. min_frames, max_frames: clips outside
    take no part in text-to-motion. distinct_retrieval: many clips share a caption, so each retrieval batch
    has a caption at most once. protocol: how it is evaluated without --protocol. metres_per_unit: the unit of
    its joints (KIT: millimetres)."""

    name: str
    root: str
    skeleton: str | dict
    fps: float
    min_frames: int
    max_frames: int
    text_encoder: str
    cfg: float = 4.5
    unit_length: int = 4
    distinct_retrieval: bool = False
    protocol: str = "trained"
    metres_per_unit: float = 1.0

    @cached_property
    def layout(self):
        """The Skeleton of the data set's joints."""
        return get_skeleton(self.skeleton)

    def __getstate__(self):  # what goes to workers is small: they make the layout again
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @property
    def joints(self):
        return self.layout.num_joints

    @property
    def feature_dim(self):
        return self.layout.essential_dim

    def describe(self):
        """What a checkpoint keeps of it (plain values, no paths)."""
        return {key: value for key, value in asdict(self).items() if key != "root"}


# Data sets whose folders do not describe themselves; all others have a dataset.json.
KNOWN = {
    "t2m": dict(folder="HumanML3D", skeleton="t2m", fps=20.0, min_frames=40, max_frames=199,
                text_encoder="clip", protocol="essential"),
    "kit": dict(folder="KIT-ML", skeleton="kit", fps=12.5, min_frames=24, max_frames=199, text_encoder="clip",
                cfg=2.5, protocol="essential", metres_per_unit=0.001),
}


def make_demo(root, more=4000):
    from utils.demo.dataset import build_demo

    say(f"making the data set 'demo' in {root} (once)")
    build_demo(root, more=more)
    return root


@cache
def temporary_demo():
    """The demo set in a temporary folder, which is removed with the process."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_demo(Path(folder) / "demo", more=0)


def get_spec(name, dataset_dir="./datasets"):
    """The DatasetSpec of ``name``; makes ``demo`` on first use. UserError if missing or not described."""
    known = dict(KNOWN.get(name, {}))
    root = Path(dataset_dir) / known.pop("folder", name)
    if name == "demo" and not root.exists():
        root = temporary_demo() if only_check() and not Path(dataset_dir).is_file() else make_demo(root)
    if not root.is_dir():
        raise MissingFile(f"no data set '{name}' at {root}; put it there, or make one with "
                          "python -m scripts.prepare_dataset")
    if known:
        return DatasetSpec(name=name, root=str(root), **known)
    path = root / "dataset.json"
    if not path.is_file():
        raise MissingFile(f"{root} has no dataset.json; make it with python -m scripts.prepare_dataset")
    return spec_from_description(read_json(path) | {"name": name}, root, path)


def _number(value):
    return type(value) in (int, float) and 0 < value < 1e4


def _count(value):
    return type(value) is int and 0 < value < 1e7


PROTOCOLS = ("essential", "standard", "trained")
CHECKS = {  # of a description's values: (whether it can be used, in words)
    "name": (lambda name: isinstance(name, str), "a name"),
    "fps": (_number, "frames per second"), "cfg": (lambda value: value == 0 or _number(value), "a number"),
    "min_frames": (_count, "a number of frames"), "max_frames": (_count, "a number of frames"),
    "text_encoder": (lambda name: isinstance(name, str), "a name"),
    "unit_length": (lambda value: type(value) is int and value == 4, "4, the frames of a token"),
    "distinct_retrieval": (lambda value: type(value) is bool, "true or false"),
    "protocol": (lambda value: value in PROTOCOLS, f"one of {', '.join(PROTOCOLS)}"),
    "metres_per_unit": (_number, "a length in metres")}


def spec_from_description(description, root="", path="the checkpoint"):
    """A DatasetSpec from the dict in a dataset.json or a checkpoint; unknown keys are ignored. UserError for
    missing ones and for values of no use."""
    fields = {key: description[key] for key in DatasetSpec.__dataclass_fields__ if key in description}
    missing = {"name", "skeleton", "fps", "min_frames", "max_frames", "text_encoder"} - set(fields)
    if missing:
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}")
    for key, (usable, words) in CHECKS.items():
        if key in fields and not usable(fields[key]):
            raise UserError(f"{path}: its {key} must be {words}, not {str(fields[key])[:60]!r}")
    if fields["min_frames"] > fields["max_frames"]:
        raise UserError(f"{path}: its min_frames {fields['min_frames']} are more than its max_frames "
                        f"{fields['max_frames']}")
    get_skeleton(fields["skeleton"], path)
    return DatasetSpec(**(fields | {"root": str(root)}))


def spec_of_checkpoint(checkpoint, dataset_name, path="the checkpoint"):
    """The DatasetSpec in a checkpoint; for released files, which have none, that of the known data set."""
    if "dataset" in checkpoint:
        return spec_from_description(checkpoint["dataset"], path=path)
    if dataset_name not in KNOWN:
        raise UserError(f"{path} does not describe its data set, and '{dataset_name}' is not one of "
                        f"{', '.join(KNOWN)}")
    known = {key: value for key, value in KNOWN[dataset_name].items() if key != "folder"}
    return DatasetSpec(name=dataset_name, root="", **known)


def joints_in_metres(features, spec):
    """Joints (T, J, 3) numpy, metres, of un-normalised features (T, D) of a data set."""
    return features_to_joints(torch.as_tensor(features), spec.joints).numpy() * spec.metres_per_unit
