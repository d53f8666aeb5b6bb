"""Ways in which a file can be damaged, for the corpus of scripts/soak_inputs.py.

A way is a function (path, dice) that puts something else in the place of the file ``path``; dice: a seeded
``random.Random``. Files are replaced, never written into, since those of a corpus are links to one copy.
``Way.outcome`` says what a command must do with the result:

    refused    exit code 2 and one line that names the file
    left out   go on, and name what is left out
    same       the result of the undamaged file
    any        one line, or a result that the check of the command finds right
"""
import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

MARKER = "CODE_WAS_RUN"  # in the working folder, if a pickle of the corpus was run
LINE = 2 ** 20


class Way(NamedTuple):
    """name: in words; apply(path, dice); outcome: see above; says: what must be named, if not the file."""

    name: str
    apply: object
    outcome: str
    says: str = ""


class Hostile:
    """Its pickle makes the file MARKER when it is loaded."""

    def __reduce__(self):
        return os.mkdir, (MARKER,)


def put(path, content):
    """Bytes, or text in UTF-8, as a new file."""
    remove(path)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()


def content_way(name, change, outcome, says=""):
    """A Way that replaces the content; change: bytes, or a function (bytes, dice) -> bytes."""
    def apply(path, dice):
        put(path, change(path.read_bytes(), dice) if callable(change) else change)

    return Way(name, apply, outcome, says)


def cut(content, dice):
    return content[: dice.randrange(1, len(content))]


def cut_early(content, dice):
    return content[: dice.randrange(1, min(128, len(content)))]


def flipped(content, dice, times=1, first=None):
    """Bits turned over, in the ``first`` bytes (None: anywhere)."""
    content = bytearray(content)
    for _ in range(times):
        content[dice.randrange(min(first or len(content), len(content)))] ^= 1 << dice.randrange(8)
    return bytes(content)


def scrambled(content, dice):
    """A run of random bytes within."""
    start = dice.randrange(len(content))
    return content[:start] + dice.randbytes(min(64, len(content) - start)) + content[start + 64:]


def swapped(content, dice):
    """Two parts of 16 bytes have changed places."""
    a, b = sorted(dice.randrange(len(content)) for _ in range(2))
    return content[:a] + content[b:b + 16] + content[a + 16:b] + content[a:a + 16] + content[b + 16:]


def as_folder(path, _dice):
    remove(path)
    path.mkdir()


def as_link(target):
    def apply(path, _dice):
        remove(path)
        path.symlink_to(target(path) if callable(target) else target)

    return apply


def moved_out(path, _dice):
    """A link to the file, which is outside of the folder now."""
    outside = Path("elsewhere").absolute()
    outside.mkdir(exist_ok=True)
    (outside / path.name).write_bytes(path.read_bytes())
    remove(path)
    path.symlink_to(outside / path.name)


def as_pipe(path, _dice):
    remove(path)
    os.mkfifo(path)


def unreadable(path, _dice):
    put(path, path.read_bytes())
    path.chmod(0)


RANDOM = (
    content_way("cut off", cut, "any"),
    content_way("cut off near its start", cut_early, "any"),
    content_way("one bit flipped", flipped, "any"),
    content_way("eight bits flipped", lambda content, dice: flipped(content, dice, 8), "any"),
    content_way("a bit of its start flipped", lambda content, dice: flipped(content, dice, 1, 160), "any"),
    content_way("64 bytes scrambled", scrambled, "any"),
    content_way("two parts swapped", swapped, "any"),
)


def places(missing="refused"):
    """Something else in the place of a file; missing: what a command does without it."""
    return (
        content_way("empty", b"", missing),
        Way("a folder", as_folder, missing),
        Way("a link to nothing", as_link("nowhere"), missing),
        Way("a link to itself", as_link(lambda path: path.name), missing),
        Way("a link out of the folder", moved_out, "same"),
        Way("a pipe that nobody writes to", as_pipe, missing),
        Way("no permission to read", unreadable, missing),
        Way("missing", lambda path, _dice: remove(path), missing),
    )


def binary(refused="refused"):
    """Contents that are no binary file of any kind."""
    return (
        content_way("zeros", lambda content, _: bytes(len(content)), refused),
        content_way("random bytes", lambda content, dice: dice.randbytes(len(content)), refused),
        content_way("text", b"a person walks\n", refused),
    )


def texts(outcome="refused"):
    """Encodings; outcome: for those that are not UTF-8."""
    return (
        content_way("in UTF-16", lambda content, _: content.decode().encode("utf-16"), outcome),
        content_way("in UTF-16 without a mark", lambda content, _: content.decode().encode("utf-16-le"),
                    outcome),
        content_way("in latin-1", lambda content, _: content + "\u00e9\u00fc".encode("latin-1"), outcome),
        content_way("with NUL bytes", lambda content, _: content[:10] + b"\0\0" + content[10:], outcome),
        content_way("random bytes", lambda content, dice: b"\xff\xfe\xfd" + dice.randbytes(500), outcome),
        content_way("with a byte order mark", lambda content, _: b"\xef\xbb\xbf" + content, "same"),
        content_way("with Windows' line ends", lambda content, _: content.replace(b"\n", b"\r\n"), "same"),
    )


# Arrays.

def saved(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def array_way(name, change, outcome):
    """A Way for a .npy file; change: function (array, dice) -> array."""
    return content_way(name, lambda content, dice: saved(change(np.load(io.BytesIO(content)), dice)), outcome)


def huge(shape):
    """The array's bytes under a header that promises another shape."""
    def change(content, _dice):
        array = np.load(io.BytesIO(content))
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        return (b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
                + array.astype("<f4").tobytes())

    return change


def long_header(content, _dice):
    """A header of 64 MB, nearly all of it spaces."""
    header = (b"{'descr': '<f4', 'fortran_order': False, 'shape': (60, 22, 3), }".ljust(2 ** 26 - 1) + b"\n")
    return b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header + content[128:]


def with_value(value):
    def change(array, dice):
        array = array.astype(np.float32)
        array.reshape(-1)[dice.randrange(array.size)] = value
        return array

    return change


def objects(_content, _dice):
    return saved(np.array([Hostile(), Hostile()], object), allow_pickle=True)


def archive(content, _dice):
    """The array as AMASS and others hold arrays: in a .npz."""
    stream = io.BytesIO()
    np.savez(stream, poses=np.load(io.BytesIO(content)))
    return stream.getvalue()


def bomb(_content, _dice):
    """A .npz of 1.25 GB of zeros, a few MB packed."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("poses.npy", "w", force_zip64=True) as entry:
            entry.write(huge("(335544320,)")(saved(np.zeros(1, np.float32)), None))
            write_zeros(entry)
    return stream.getvalue()


def write_zeros(file):
    """1.25 GB, more than a command may take beyond its need."""
    for _ in range(80):
        file.write(bytes(2 ** 24))


def arrays(refused="refused", in_part=None):
    """Ways for any .npy file of float32; refused: what becomes of one that is of no use; in_part: of one that
    may be, as a command does not need all columns (default: the same)."""
    in_part = in_part or refused
    return (
        content_way("a pickle that runs code", lambda _c, _d: pickle.dumps(Hostile()), refused),
        content_way("objects whose pickle runs code", objects, refused),
        content_way("header of a terabyte", huge("(250000000000,)"), refused),
        content_way("header of many terabytes", huge("(9999999, 9999999, 9)"), refused),
        content_way("header of four gigabytes", huge("(1000000000,)"), refused),
        content_way("header with a negative size", huge("(-5, 22, 3)"), "any"),
        content_way("header of 64 MB", long_header, refused),
        content_way("an archive of arrays (npz)", archive, refused),
        content_way("a zip bomb", bomb, refused),
        array_way("NaN", with_value(np.nan), in_part),
        array_way("infinite", with_value(-np.inf), in_part),
        array_way("text", lambda array, _: array.astype("U8"), refused),
        array_way("complex numbers", lambda array, _: array.astype(complex), refused),
        array_way("dates", lambda array, _: array.astype("M8[s]"), refused),
        array_way("no rows", lambda array, _: array[:0], refused),
        array_way("a single number", lambda array, _: array.reshape(-1)[0], refused),
        array_way("one dimension more", lambda array, _: array[None], refused),
        array_way("flat", lambda array, _: array.reshape(1, -1)[:, : array.size - 1], in_part),
        array_way("big-endian", lambda array, _: array.astype(">f4"), "same"),
        array_way("in Fortran's order", lambda array, _: np.asfortranarray(array), "same"),
        *binary(refused),
    )


# JSON.

def at(value, way):
    """(the container of the place ``way``, its last key)."""
    for key in way[:-1]:
        value = value[key]
    return value, way[-1]


def places_in(value, way=()):
    """Every key in nested dicts and lists, as tuples."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(
        value, list) else ()
    for key, child in children:
        yield (*way, key)
        yield from places_in(child, (*way, key))


def json_way(name, change, outcome):
    """A Way for JSON; change: function (value, dice) -> value or None (changed in place)."""
    def changed(content, dice):
        value = json.loads(content)
        out = change(value, dice)
        return json.dumps(value if out is None else out).encode()

    return content_way(name, changed, outcome)


def without_key(value, dice):
    container, key = at(value, dice.choice(list(places_in(value))))
    del container[key]


OTHERS = (None, True, -1, 0, 1e300, 10 ** 400, "", "x", [], {}, [[]], {"a": {}}, [None] * 3, "\u0000", 0.5,
          float("nan"), float("inf"), "../..", 2 ** 62)


def with_another(value, dice):
    container, key = at(value, dice.choice(list(places_in(value))))
    container[key] = dice.choice(OTHERS)


def repeated_key(content, dice):
    """The first key stands a second time at the end, with another value."""
    value = json.loads(content)
    key = next(iter(value))
    return content.rstrip()[:-1] + f", {json.dumps(key)}: {json.dumps(dice.choice(OTHERS[:12]))}}}".encode()


def objects_of(outcome="refused", unknown="same"):
    """Ways for any file of one JSON object; unknown: what becomes of one with a key more."""
    return (
        content_way("no JSON", b"{'name': walk}", outcome),
        content_way("deep nesting", b"[" * 200_000 + b"]" * 200_000, outcome),
        content_way("deep nesting within", b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, outcome),
        content_way("a list", b"[]", outcome),
        content_way("a text", b'"walk"', outcome),
        content_way("null", b"null", outcome),
        content_way("a number of 5,000 digits", b'{"name": ' + b"9" * 5000 + b"}", outcome),
        content_way("a key twice", repeated_key, outcome),
        content_way("a key 50,000 times", b"{" + b'"a": 1,' * 50_000 + b'"a": 1}', outcome),
        json_way("an unknown key", lambda value, _: {**value, "remark_of_mine": {"a": [1]}}, unknown),
        content_way("spaces of 1 MB", lambda content, _: b" " * LINE + content, "same"),
        json_way("without one of its keys", without_key, "any"),
        json_way("another value under a key", with_another, "any"),
        json_way("other values under two keys",
                 lambda value, dice: [with_another(value, dice) for _ in range(2)] and None, "any"),
    )
