"""What a page asks for: plain values in, checked ones out. A mistake is a sentence in the page's words."""
import unicodedata
from argparse import ArgumentTypeError
from dataclasses import dataclass
from typing import NamedTuple

from utils.data.specs import DatasetSpec
from utils.errors import UserError
from utils.lengths import MAX_LENGTH, SHORTEST
from utils.options import number

MOST_ROWS, MOST_VARIANTS, MOST_LETTERS = 50, 16, 1000
MOST_SECONDS = 300          # of a motion
LARGEST_SEED = 2**53 - 1    # JavaScript's largest whole number
MARGIN = 2 * SHORTEST       # frames of a longer clip that a section leaves as they are, to be led from and to


class Trained(NamedTuple):
    """A generator that can be asked. runs: folder of <dataset>/<name>/; condition: text, action or uncond;
    actions: their names; guidance: the scale that is part of its weights, or None."""

    runs: str
    dataset: str
    name: str
    spec: DatasetSpec
    condition: str
    actions: list
    guidance: float | None

    def about(self):
        """What a page shows of it, as plain values."""
        fixed = {"action": None, "text": None, "uncond": 1.0}[self.condition]
        return {"dataset": self.dataset, "name": self.name, "condition": self.condition, "fps": self.spec.fps,
                "actions": self.actions, "fixed": fixed if self.guidance is None else self.guidance,
                "guidance": self.spec.cfg, "shortest": SHORTEST / self.spec.fps}


@dataclass(frozen=True)
class Settings:
    """guidance: None = the generator's own."""

    seed: int
    guidance: float | None
    clean_feet: bool


@dataclass(frozen=True)
class Motion:
    """Parts that follow each other, ``variants`` times. prompts: sentences, or names of actions; frames: of
    each part, 0 = estimated."""

    prompts: list
    frames: list
    variants: int
    settings: Settings

    @property
    def chained(self):
        """Whether it is more than a generator makes in one go."""
        return len(self.frames) > 1 or self.frames[0] > MAX_LENGTH


@dataclass(frozen=True)
class Edit:
    """A section of a clip, frames ``start`` to ``stop`` - 1, for which there are new words."""

    prompt: str
    start: int
    stop: int
    settings: Settings


def read_number(what, value, kind, low, high):
    """The number that a page gave for ``what``. UserError for any other value."""
    try:
        return number(kind, low, high)(str(value).strip()[:40])
    except ArgumentTypeError as error:
        raise UserError(f"{what} {error}") from error


def read_settings(data, trained):
    """The Settings of a page. UserError for values that nothing can be made with."""
    seed = read_number("the seed", data.get("seed"), int, 0, LARGEST_SEED)
    guidance = data.get("guidance")
    if guidance in (None, "") or trained.about()["fixed"] is not None:
        guidance = None
    else:
        guidance = read_number("guidance", guidance, float, 0, 100)
    return Settings(seed, guidance, data.get("clean_feet") is True)


def read_motion(data, trained):
    """The Motion that a page asks of a Trained generator. Rows without anything in them are left out.
    UserError, which names the row, for what cannot be made."""
    rows = data.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError("the page sent no rows; load it again")
    rows = [(f"row {i}", tidy(row.get("prompt")), row.get("seconds")) for i, row in enumerate(rows, 1)]
    if trained.condition == "uncond":
        rows = [(place, "unconditional", seconds) for place, _, seconds in rows[:1]]
    rows = [row for row in rows if row[1] or row[2] not in (None, "")]
    if not rows:
        raise UserError("write what the body does, for example 'a person walks forward'")
    if len(rows) > MOST_ROWS:
        raise UserError(f"{len(rows)} rows are more than the studio takes ({MOST_ROWS}); sample.py --chain "
                        "has no such limit")
    prompts = [read_prompt(place, prompt, trained) for place, prompt, _ in rows]
    frames = [read_frames(place, seconds, trained.spec.fps) for place, _, seconds in rows]
    if sum(frames) > MOST_SECONDS * trained.spec.fps:
        raise UserError(f"{sum(frames) / trained.spec.fps:g} seconds are more than the studio makes in one "
                        f"motion ({MOST_SECONDS}); sample.py --chain has no such limit")
    variants = read_number("the number of variants", data.get("variants"), int, 1, MOST_VARIANTS)
    return Motion(prompts, frames, variants, read_settings(data, trained))


def tidy(prompt):
    """A prompt in one line, without control characters and halves of characters."""
    kept = [letter for letter in prompt if unicodedata.category(letter) != "Cs"] if prompt else []
    line = "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in kept)
    return " ".join(line.split())


def read_prompt(place, prompt, trained):
    """The prompt, tidied. UserError for one that a Trained generator cannot follow."""
    if trained.condition == "uncond":
        return prompt
    if not prompt:
        raise UserError(f"{place}: the prompt is empty; describe a motion, for example 'a person walks "
                        "forward'")
    if len(prompt) > MOST_LETTERS:
        raise UserError(f"{place}: the prompt has {len(prompt):,} letters; at most {MOST_LETTERS:,}")
    if trained.condition == "action" and prompt not in trained.actions:
        raise UserError(f"{place}: '{prompt[:60]}' is no action of this generator; it knows "
                        f"{', '.join(trained.actions)}")
    return prompt


def read_frames(place, seconds, fps):
    """Frames of a row, a multiple of 4; 0 where the length is to be estimated."""
    if seconds in (None, ""):
        return 0
    seconds = read_number(f"{place}: seconds", seconds, float, SHORTEST / fps, MOST_SECONDS)
    return round(seconds * fps) // SHORTEST * SHORTEST


def read_edit(data, trained, frames):
    """The Edit that a page asks for, of a clip of so many frames. UserError for what cannot be made."""
    prompt = read_prompt("the new section", tidy(data.get("prompt")), trained)
    fps = trained.spec.fps
    start, stop = (round(read_number(f"'{end}'", data.get(end), float, 0, round(frames / fps, 3)) * fps)
                   for end in ("from", "to"))
    start, stop = min(start, frames), min(stop, frames)
    if start >= stop:
        raise UserError("the new section is empty; it ends where 'to' is, which must come after 'from'")
    if frames > MAX_LENGTH and stop - start > MAX_LENGTH - MARGIN:
        raise UserError(f"a section of {(stop - start) / fps:g} seconds is too long to be replaced at once; "
                        f"at most {(MAX_LENGTH - MARGIN) / fps:g}")
    return Edit(prompt, start, stop, read_settings(data, trained))


def window_of(start, stop, frames):
    """(first, end) of the at most 196 frames around a section that a generator sees while it fills it in."""
    first = min(max((start + stop - MAX_LENGTH) // 2, 0), max(frames - MAX_LENGTH, 0))
    return first, min(first + MAX_LENGTH, frames)
