"""A page that plays clips side by side in a browser: one HTML file, which needs no network and no other file.

page.html, page.css and page.js lie beside this module and go into every page. Shapes: T frames, J joints, P
points of the drawn figure (utils/drawing.py: the joints and five extras), L codes.
"""
import base64
import html
import json
import string
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.arrays import load_array
from utils.clips import caption_of, free_path
from utils.drawing import AZIMUTH, DISTANCE, ELEVATION, MIDDLE, TILE, Body, check_joints, normalise
from utils.errors import UserError
from utils.evaluation.metrics import foot_skating
from utils.facts import read_facts
from utils.files import write_text
from utils.motion.features import LARGEST, features_to_joints
from utils.motion.feet import foot_contacts
from utils.motion.skeleton_files import skeleton_of_file
from utils.motion.skeletons import Skeleton
from utils.report import finite_or_none
from utils.visualize import safe_filename

MOST_CLIPS = 500  # of a page: about 20 MB, which phones still open
STEPS = 65535  # of a coordinate: 16 bits
TALLEST = 100  # metres: above, the joints are in another unit


class Clip(NamedTuple):
    """path: the clip's file; joints (T, J, 3) in metres, Y up; facts: see utils/facts.py."""

    path: Path
    title: str
    joints: np.ndarray
    skeleton: Skeleton
    fps: float
    facts: dict


def read_clip(path, fps=None, metres_per_unit=1.0, described=None):
    """The Clip in a .npy file of joints (T, J, 3) or un-normalised features (T, D). fps: frames per second;
    described: its skeleton, for ``get_skeleton``; None = those of its facts, else as ``skeleton_of`` and the
    skeleton say. UserError, which names the file, where it is no motion."""
    path = Path(path)
    array = load_array(path)
    facts = read_facts(path)
    skeleton = skeleton_of_file(path, described)
    try:
        joints = (array if array.ndim == 3
                  else features_to_joints(array.astype(np.float64), skeleton.num_joints))
        joints = check_joints(joints, skeleton) * metres_per_unit
        if np.abs(joints).max() > LARGEST:
            raise UserError(f"joints hold values above {LARGEST:.0e}")
        height = Body(skeleton).height(joints)
        if height > TALLEST:
            raise UserError(f"its body is {height:,.0f} metres high; if the file is in millimetres, pass "
                            "--metres_per_unit 0.001")
        normalise(joints, Body(skeleton))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    title = facts.get("prompt") or caption_of(path) or path.stem
    return Clip(path, title, joints, skeleton, fps or facts.get("fps", skeleton.fps), facts)


def check_count(count, most=MOST_CLIPS):
    """UserError for more clips than a page shows."""
    if count > most:
        raise UserError(f"{count:,} clips are more than a page shows ({most}); name fewer, or allow more "
                        "with --most of python -m scripts.view")


def compare(groups):
    """Clips of several models -> a row per prompt, in order of first appearance: [(title, [a clip of each
    group, or None])]. groups: a list of Clips of each model. The k-th clip of a prompt stands beside the k-th
    ones of the other groups. Where a file name is all that is known of a prompt, prompts are told apart by
    what a file name keeps of them."""
    known = all("prompt" in clip.facts for clips in groups for clip in clips)
    rows = {}
    for column, clips in enumerate(groups):
        seen = {}
        for clip in clips:
            key = clip.title if known else safe_filename(clip.title)
            seen[key] = seen.get(key, 0) + 1
            rows.setdefault((key, seen[key]), [None] * len(groups))[column] = clip
    return [(max(filter(None, row), key=lambda clip: "prompt" in clip.facts).title, row)
            for row in rows.values()]


def page_text(title, clips=(), columns=(), rows=()):
    """The page: ``clips`` in a grid, or ``rows`` as ``compare`` makes them, whose clips are named by
    ``columns``."""
    if columns:
        clips = [clip for _, row in rows for clip in row if clip is not None]
    number = {id(clip): i for i, clip in enumerate(clips)}
    return _fill(title, {
        "title": title, "columns": list(columns),
        "rows": [{"title": name, "clips": [None if clip is None else number[id(clip)] for clip in row]}
                 for name, row in rows],
        "bodies": {clip.skeleton.name: _body(clip.skeleton) for clip in clips},
        "camera": {"azimuth": AZIMUTH, "elevation": ELEVATION, "distance": DISTANCE, "height": MIDDLE},
        "tile": TILE, "clips": [encode(clip) for clip in clips]})


def write_page(path, title, exact=False, **page):
    """Write the ``page_text`` and return its path. Another file of that name is never overwritten: the page
    gets a number, or, where the name is wanted ``exact``, this is a UserError."""
    text = page_text(title, **page)

    def same(other):
        return other.is_file() and other.read_bytes() == text.encode()

    if exact and path.exists() and not same(path):
        raise UserError(f"--output: {path} exists; remove it, or choose another name")
    path = free_path(path, same)
    write_text(path, text)
    return path


def _fill(title, data):
    """The page's text. Prompts are data, which the script shows as text; in the data no < is left, so nothing
    in them can end the element that holds them."""
    parts = {name: Path(__file__).with_name(f"page.{name}").read_text(encoding="utf-8")
             for name in ("html", "css", "js")}
    plain = json.dumps(finite_or_none(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    title = html.escape(title).encode("ascii", "xmlcharrefreplace").decode()
    return string.Template(parts["html"]).substitute(title=title, style=parts["css"], data=plain,
                                                     script=parts["js"])


def encode(clip):
    """A Clip as plain values. The figure's points (T, P, 3), the joints first, are whole steps of 16 bits
    from their lowest coordinates, so each is off by at most 1 / 131,070 of the largest extent of the clip.
    They are scaled and moved as ``utils.drawing.normalise`` does: the joints in metres are
    (points - [0, shift, 0]) / scale."""
    body = Body(clip.skeleton)
    joints, scale = normalise(clip.joints, body)
    points = body.points(joints)
    low = points.min((0, 1))
    step = float((points.max((0, 1)) - low).max()) / STEPS
    left_x, _, left_z = body.across(joints[:1])[0]
    return {
        "title": clip.title, "file": clip.path.name, "body": clip.skeleton.name, "fps": clip.fps,
        "frames": len(joints), "scale": scale, "shift": joints[0, 0, 1] - clip.joints[0, 0, 1] * scale,
        "facing": float(np.degrees(np.arctan2(-left_z, left_x))), "low": low.tolist(), "step": step,
        "points": _pack(np.rint((points - low) / step), "<u2"), **_contacts(clip),
        "codes": _codes(clip.facts.get("codes")), "edited": clip.facts.get("edited", []),
        "about": [f"{name} {clip.facts[name]}" for name in ("run", "dataset", "seed", "repeat", "source")
                  if name in clip.facts]}


def _contacts(clip):
    """contacts: per frame a byte, whose lowest four bits say which foot joints stand until the next frame;
    the last frame has those of the one before."""
    if len(clip.joints) < 2:
        return {"contacts": _pack(np.zeros(len(clip.joints)), "u1"), "skating": None}
    standing = foot_contacts(clip.joints, clip.fps, clip.skeleton)[0] @ (1 << np.arange(4))
    return {"contacts": _pack(standing[[*range(len(standing)), -1]], "u1"),
            "skating": float(foot_skating(clip.joints, clip.fps, clip.skeleton))}


def _codes(codes):
    """Codes of ``models.pipeline.codes_of`` with packed digits; indices as text, since those of a large grid
    are beyond the whole numbers of JavaScript."""
    if not codes or not codes["digits"]:
        return None
    width = 1 if max(codes["sizes"]) <= 256 else 4
    indices = [str(index) for index in codes["indices"]] if "indices" in codes else None
    return {**codes, "indices": indices, "width": width, "digits": _pack(codes["digits"], f"<u{width}")}


def _pack(numbers, kind):
    return base64.b64encode(np.asarray(numbers).astype(kind).tobytes()).decode()


def _body(skeleton):
    """How the figure of a skeleton is drawn: see ``Body``."""
    body = Body(skeleton)
    return {"joints": skeleton.num_joints, "points": len(body.radius), "radius": body.radius.tolist(),
            "capsules": body.capsules, "hulls": body.hulls,
            "feet": [*skeleton.left_feet, *skeleton.right_feet]}
