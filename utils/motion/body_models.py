"""Body models of the SMPL family, as far as their joints need them: where the joints are in the body at rest.

A folder of models has smplh/male/model.npz and the like, or SMPLX_MALE.npz as the package smplx names them.
The joints are a linear function of the shape, joints = J_regressor (v_template + shapedirs betas), so neither
skin nor network is needed to pose them. Shapes: K joints of the model, V vertices, B shape parameters.
"""
from functools import cache
from typing import NamedTuple

import numpy as np

from utils.arrays import load_arrays
from utils.errors import MissingFile, UnreadableFile, UserError
from utils.motion.features import MotionError
from utils.motion.skeletons import SKELETONS

LAYOUT = SKELETONS["t2m"]  # HumanML3D's joints are the first 22 of all these models
FAMILIES = {"smplh": 52, "smplx": 55, "smpl": 24}  # joints K
GENDERS = ("male", "female", "neutral")
ARRAYS = ("J_regressor", "v_template", "shapedirs", "kintree_table")
MOST_BETAS = 10  # that HumanML3D uses of a file's 16
PLACES = ("{family}/{gender}/model", "{family}/{name}", "{name}", "{gender}/model")  # name: SMPLX_MALE
WHERE = ("the models are free for research after registration: SMPL-H (smplh/male/model.npz ...) at "
         "mano.is.tue.mpg.de, SMPL-X (smplx/SMPLX_MALE.npz ...) at smpl-x.is.tue.mpg.de")


class BodyModel(NamedTuple):
    """joints (22, 3): at rest, in metres, of the mean shape; shapes (22, 3, B): how they move with each shape
    parameter."""

    joints: np.ndarray
    shapes: np.ndarray

    def rest(self, betas):
        """Joints (22, 3) at rest of a body with the shape ``betas``, any number."""
        count = min(len(betas), self.shapes.shape[-1])
        return self.joints + self.shapes[..., :count] @ betas[:count]


def check_models(folder):
    """UserError unless there is a folder with a model in it."""
    if not folder.is_dir():
        raise MissingFile(f"--body_models: no folder {folder}; {WHERE}")
    paths = [path for family in FAMILIES for gender in GENDERS for path in _places(folder, family, gender)]
    if not any(path.is_file() for path in paths):
        pickled = next(iter(sorted(folder.glob("**/*.pkl"))), None)
        found = f"; {pickled.relative_to(folder)} is not read, {_pickled()}" if pickled else ""
        raise UserError(f"--body_models {folder} has no model as .npz{found}; {WHERE}")


def find_model(folder, family, gender):
    """The BodyModel of a family and gender. MotionError where the folder lacks it, UserError where it is
    damaged or another one."""
    if gender not in GENDERS:
        raise MotionError(f"says that the body's gender is '{gender}'; there are {', '.join(GENDERS)}")
    paths = _places(folder, family, gender)
    path = next((path for path in paths if path.is_file()), None)
    if path is not None:
        return read_model(path, family)
    pickled = any(path.with_suffix(".pkl").is_file() for path in paths)
    has = f"it as .pkl only, {_pickled()}" if pickled else "neither"
    raise MotionError(f"needs the model {paths[0].relative_to(folder)} or {paths[1].relative_to(folder)} in "
                      f"--body_models, which has {has}")


@cache
def read_model(path, family):
    """The BodyModel in a .npz file. UserError where it is damaged or of another family."""
    try:
        content = load_arrays(path, ARRAYS)
    except UnreadableFile as error:  # what is unreadable is the model, not the clip that needs it
        raise UserError(str(error)) from error
    for name in ARRAYS:
        if name not in content or content[name].dtype.kind not in "fiu":
            raise UserError(f"{path} has no numbers '{name}', so it is no body model of the SMPL family")
    regressor, vertices, shapes, tree = content.values()
    parents, joints = LAYOUT.parents[1:], FAMILIES[family]
    if tree.shape != (2, joints):
        raise UserError(f"{path} has a kintree_table of shape {tree.shape}; a model of {family} has "
                        f"(2, {joints})")
    if tuple(tree[0, 1 : len(parents) + 1].tolist()) != parents:
        raise UserError(f"{path} has another tree of joints than SMPL")
    if (vertices.ndim != 2 or regressor.shape != (joints, len(vertices)) or shapes.ndim != 3
            or vertices.shape[1:] != (3,) or shapes.shape[:2] != vertices.shape):
        raise UserError(f"{path} has arrays that do not belong together: J_regressor {regressor.shape}, "
                        f"v_template {vertices.shape}, shapedirs {shapes.shape}")
    regressor = regressor[: LAYOUT.num_joints].astype(np.float64)
    model = BodyModel(regressor @ vertices, np.einsum("jv,vcb->jcb", regressor, shapes[..., :MOST_BETAS]))
    if not all(np.isfinite(array).all() for array in model):
        raise UserError(f"{path} holds NaN or infinite values")
    return model


def _places(folder, family, gender):
    """Where the model may be: paths."""
    name = f"{family}_{gender}".upper()
    return [folder / f"{place.format(family=family, gender=gender, name=name)}.npz" for place in PLACES]


def _pickled():
    return "as reading a pickle runs the code in it; use the .npz of the same model"
