"""What is known of a clip: the .json file beside its .npy, which sample.py and edit.py write and the viewer
reads.

"prompt"; "fps": frames per second; "skeleton": see ``skeleton_files.get_skeleton``; "codes": see
``models.pipeline.codes_of``; "edited": [[start, stop]], the frames that edit.py made; "source": the clip that
it edited; "kept": what it kept of the body there; "parts": [[start, stop, prompt]] of a chain; "start_pose",
"trajectory": files that sample.py was given; "run", "dataset", "seed", "repeat": how the clip was made;
"request": a digest of all that sample.py was asked for, by which a run that was killed goes on.
"""
import json

import numpy as np

from utils.errors import UserError
from utils.files import read_json, write_text

MOST_FPS = 1e4


def write_facts(path, facts):
    """Write the facts of the clip ``path``, a .npy file."""
    write_text(path.with_suffix(".json"), json.dumps(facts, allow_nan=False) + "\n")


def read_facts(path):
    """The facts of the clip ``path``; {} where nobody wrote them. UserError where they cannot be used."""
    path = path.with_suffix(".json")
    if not path.is_file():
        return {}
    facts = read_json(path)
    for name, check in _CHECKS.items():
        if name in facts and not _holds(check, facts[name]):
            raise UserError(f"{path}: its '{name}' cannot be used; remove the file, or make the clip again")
    return facts


def _holds(check, value):
    try:
        return bool(check(value))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):  # it has another shape
        return False


def _codes(codes):
    if codes is None:  # the clip has none
        return True
    sizes, digits = np.array(codes["sizes"]), np.array(codes["digits"])
    indices = codes.get("indices", codes["digits"])
    return (type(codes["frames"]) is int and codes["frames"] > 0 and type(codes["ordered"]) is bool
            and sizes.dtype.kind == digits.dtype.kind == "i" and digits.shape == (len(indices), len(sizes))
            and (digits >= 0).all() and (digits < sizes).all() and sizes.max() <= 2**32
            and ("indices" not in codes or all(type(index) is int for index in indices)))


_CHECKS = {
    "prompt": lambda prompt: isinstance(prompt, str),
    "skeleton": lambda skeleton: isinstance(skeleton, (str, dict)),
    "fps": lambda fps: type(fps) in (int, float) and 0 < fps < MOST_FPS,
    "edited": lambda pairs: isinstance(pairs,
                                       list) and all(type(end) is int for pair in pairs for end in pair)
    and all(0 <= start < stop for start, stop in pairs),
    "codes": _codes,
}
