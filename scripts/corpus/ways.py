"""Ways in which files of single kinds can be damaged, besides those of scripts/corpus/damage.py."""
import io
import json
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import torch

from scripts.corpus import damage
from scripts.corpus.damage import Way, content_way, json_way


def torch_way(name, change, outcome):
    """A Way for a checkpoint; change: function (dict, dice), in place, or returns another value."""
    def changed(content, dice):
        value = torch.load(io.BytesIO(content), weights_only=True)
        out = change(value, dice)
        stream = io.BytesIO()
        torch.save(value if out is None else out, stream)
        return stream.getvalue()

    return content_way(name, changed, outcome)


def some_network(value, dice):
    """The state dict of one of a checkpoint's networks, and the name of one of its float tensors."""
    state = next(value[key] for key in ("ae", "mardm", "estimator", "movement_encoder") if key in value)
    return state, dice.choice([name for name, tensor in state.items() if tensor.is_floating_point()])


def weight_way(name, change, outcome="refused"):
    def changed(value, dice):
        state, key = some_network(value, dice)
        state[key] = change(state[key])

    return torch_way(name, changed, outcome)


def setting_way(name, key, value, outcome="refused"):
    def changed(content, _dice):
        content["model_kwargs"][key] = value

    return torch_way(name, changed, outcome)


def zip_bomb(content, _dice):
    """The checkpoint with a data.pkl of 1.25 GB, packed."""
    out = io.BytesIO()
    with (zipfile.ZipFile(io.BytesIO(content)) as old,
          zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new):
        for entry in old.infolist():
            if entry.filename.endswith("data.pkl"):
                with new.open(entry.filename, "w", force_zip64=True) as file:
                    damage.write_zeros(file)
            else:
                new.writestr(entry, old.read(entry))
    return out.getvalue()


def hostile_archive(content, _dice):
    """The checkpoint with another pickle in its archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            hostile = entry.filename.endswith("data.pkl")
            new.writestr(entry.filename, pickle.dumps(damage.Hostile(), 2) if hostile else old.read(entry))
    return out.getvalue()


def legacy(content, _dice):
    stream = io.BytesIO()
    torch.save({"ae": damage.Hostile()}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def drop(value, dice):
    del value[dice.choice(list(value))]


def replaced(value, dice):
    value[dice.choice(list(value))] = dice.choice((None, 3, "x", [], {}, torch.ones(2), {"a": 1}, -1.5))


CHECKPOINTS = (
    *damage.binary(), *damage.places(),
    content_way("a pickle that runs code", lambda _c, _d: pickle.dumps(damage.Hostile(), 2), "refused"),
    content_way("a pickle in its archive that runs code", hostile_archive, "refused"),
    content_way("an old file whose pickle runs code", legacy, "refused"),
    content_way("a zip bomb", zip_bomb, "refused"),
    content_way("an archive of arrays (npz)", lambda _c, _d: damage.archive(damage.saved(np.ones(3)), None),
                "refused"),
    torch_way("a list", lambda _v, _d: [1, 2], "refused"),
    torch_way("a tensor", lambda _v, _d: torch.ones(3), "refused"),
    torch_way("no entries", lambda _v, _d: {}, "refused"),
    torch_way("a network is a list", lambda value, _d: {**value, "ae": [1], "mardm": [1]}, "refused"),
    weight_way("NaN among the weights", lambda tensor: tensor.fill_(float("nan"))),
    weight_way("infinite weights", lambda tensor: tensor.fill_(float("inf"))),
    weight_way("weights of another shape", lambda tensor: torch.ones(7, 5, 3)),
    weight_way("a weight is a number", lambda _tensor: 3.0),
    weight_way("a weight is text", lambda _tensor: "x"),
    weight_way("complex weights", lambda tensor: tensor.to(torch.complex64)),
    torch_way("without one of its entries", drop, "any"),
    torch_way("another value of an entry", replaced, "any"),
    torch_way("an unknown entry", lambda value, _d: {**value, "remark_of_mine": [1]}, "same"),
    *damage.RANDOM,
)

OWN_CHECKPOINTS = (
    *CHECKPOINTS,
    setting_way("a width of a billion", "width", 10 ** 9),
    setting_way("a width of 60,000", "width", 60_000),
    setting_way("a negative width", "width", -16),
    setting_way("a width that is text", "width", "wide"),
    setting_way("a setting of its own", "depth_of_mine", 3),
    torch_way("settings that are a list", lambda value, _d: {**value, "model_kwargs": [1]}, "refused"),
    torch_way("a model that is not known", lambda value, _d: {**value, "model_name": "AE_9"}, "refused"),
    torch_way("a model that is a list", lambda value, _d: {**value, "model_name": ["AE"]}, "refused"),
)

STATISTICS_OF_CHECKPOINTS = (
    torch_way("a mean that is a list", lambda value, _d: {**value, "mean": [1.0]}, "refused"),
    torch_way("a mean of other size", lambda value, _d: {**value, "mean": torch.zeros(5)}, "refused"),
    torch_way("a mean of NaN", lambda value, _d: {**value, "mean": value["mean"] * float("nan")}, "refused"),
    torch_way("a std of zeros", lambda value, _d: {**value, "std": value["std"] * 0}, "refused"),
    torch_way("no std", lambda value, _d: {key: item for key, item in value.items() if key != "std"},
              "refused"),
    torch_way("a data set that is text", lambda value, _d: {**value, "dataset": "tiny"}, "refused"),
)


def dataset_way(name, key, value):
    def changed(content, _dice):
        content["dataset"][key] = value

    return torch_way(name, changed, "refused")


GENERATORS = (
    *OWN_CHECKPOINTS,
    setting_way("ten million layers", "layers", 10 ** 7),
    setting_way("no heads", "heads", 0),
    torch_way("a data set that is text", lambda value, _d: {**value, "dataset": "tiny"}, "refused"),
    dataset_way("a skeleton that is a list", "skeleton", [1]),
    dataset_way("a frame rate of text", "fps", "fast"),
    torch_way("an autoencoder that is text", lambda value, _d: {**value, "trained_on": "ae"}, "refused"),
    torch_way("an autoencoder in another folder",
              lambda value, _d: {**value, "trained_on": {**value["trained_on"], "name": "../../etc"}},
              "refused"),
    torch_way("an autoencoder without a hash", lambda value, _d: {**value, "trained_on": {"name": "ae"}},
              "refused"),
)


def tensor_header(change):
    """A Way's change of the JSON header of a .safetensors file."""
    def changed(content, dice):
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        change(header, dice)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + size :]

    return changed


def header_of_first(key, value):
    def change(header, _dice):
        first = next(name for name in header if name != "__metadata__")
        header[first][key] = value

    return tensor_header(change)


TENSORS = (
    *damage.binary(), *damage.places(), *damage.RANDOM,
    content_way("a pickle that runs code", lambda _c, _d: pickle.dumps(damage.Hostile()), "refused"),
    content_way("header of exabytes", lambda content, _d: (2 ** 62).to_bytes(8, "little") + content[8:],
                "refused"),
    content_way("a tensor of terabytes", header_of_first("shape", [10 ** 6, 10 ** 6]), "refused"),
    content_way("a tensor beyond the end", header_of_first("data_offsets", [0, 10 ** 12]), "refused"),
    content_way("a kind of number that is not known", header_of_first("dtype", "F7"), "refused"),
    content_way("another order of its tensors", lambda content, _d: content[:-64] + content[-32:]
                + content[-64:-32], "refused"),
)

TEXT_LINES = (
    content_way("a line of 1 MB", lambda content, _d: content + b"he " * (damage.LINE // 3) + b"\n", "any"),
    content_way("100,000 lines", lambda content, _d: content * 50_000, "any"),
)


def split_ways():
    """Ways for split lists, whose first id is walk_1."""
    def more(name, line, outcome="refused"):
        return content_way(name, lambda content, _d: content + line, outcome)

    return (
        more("an id with ../", b"../../elsewhere/walk_1\n"), more("an id of ..", b"..\n"),
        more("an absolute id", b"/etc/passwd\n"), more("an id with a NUL byte", b"wa\0lk\n"),
        more("an id of 5,000 letters", b"a" * 5000 + b"\n", "any"),
        more("an id of 1 MB", b"a" * damage.LINE + b"\n", "any"),
        content_way("ids that are not there", lambda content, _d: content + b"nobody\n", "left out",
                    "nobody"),
        more("an id of another alphabet", "\u8d70\u308b\n".encode(), "any"),
        more("blank lines", b"\n\n  \n", "same"),
        *damage.texts(), *damage.places(), *damage.RANDOM,
    )


CAPTION_WAYS = (
    content_way("only blanks", b" \n\n  \n", "left out"),
    content_way("only tags", b"#a/DET#0#0\n", "left out"),
    content_way("an infinite tag", b"a person walks#a/DET#0.0#inf\n", "left out"),
    content_way("an infinite tag below zero", b"a person walks#a/DET#-inf#2.0\n", "left out"),
    content_way("a tag of 1e300", b"a person walks#a/DET#0.0#1e300\n", "any"),
    content_way("a tag of 400 digits", b"a person walks#a/DET#" + b"9" * 400 + b"#0\n", "left out"),
    content_way("tags that are words", b"a person walks#a/DET#soon#later\n", "left out"),
    content_way("tags before the start", b"a person walks#a/DET#-5.0#-1.0\n", "left out"),
    content_way("tags that end before they begin", b"a person walks#a/DET#2.0#1.0\n", "left out"),
    content_way("NaN tags", lambda content, _d: content.replace(b"0.0#0.0", b"nan#nan"), "same"),
    content_way("more fields", lambda content, _d: content.replace(b"\n", b"#1#2#3\n"), "same"),
    content_way("thousands of #", b"#" * 50_000 + b"\n", "left out"),
    *damage.texts("left out"), *damage.places("left out"), *damage.RANDOM, *TEXT_LINES,
)

PROMPT_WAYS = (
    content_way("only blanks", b"  \n\n", "refused"), content_way("only a length", b"#40\n", "refused"),
    content_way("a length of 400 digits", b"he walks#" + b"9" * 400 + b"\n", "refused"),
    content_way("a length of 5,000 digits", b"he walks#" + b"9" * 5000 + b"\n", "refused"),
    content_way("a length below zero", b"he walks#-40\n", "refused"),
    content_way("a length of NaN", b"he walks#nan\n", "refused"),
    content_way("a length of 1e9", b"he walks#1000000000\n", "refused"),
    content_way("names of devices", b"CON#40\nnul#40\ncom1.txt#40\n", "any"),
    content_way("paths", b"../../etc/passwd#40\n/root/x#40\nC:\\\\x#40\n", "any"),
    content_way("other alphabets", "\u8d70\u308b#40\n\u0645\u0634\u064a#40\n\U0001f6b6#40\n".encode(), "any"),
    content_way("two spellings of a letter", "caf\u00e9#40\ncafe\u0301#40\nCAFE#40\n".encode(), "any"),
    content_way("control characters", b"he \x1b[31mwalks\x07#40\n", "any"),
    content_way("a script", b"</script><script>alert(1)</script>#40\n", "any"),
    content_way("a line of 1 MB", b"he walks " * (damage.LINE // 9) + b"#40\n", "any"),
    *damage.texts(), *damage.RANDOM,
    *(way for way in damage.places() if "pipe" not in way.name),  # sample.py waits, as users pass <(command)
)


def line_ways(pairs):
    """Ways that replace a file by others: [(name, content)], all refused."""
    return tuple(content_way(name, content, "refused") for name, content in pairs)


TRAJECTORIES = (
    *line_ways([
        ("no header", b"0,0,0\n1,0,1\n2,0,2\n"), ("one row", b"seconds,x,z\n0,0,0\n"),
        ("a header alone", b"seconds,x,z\n"), ("a column less", b"seconds,x\n0,0\n4,1\n"),
        ("NaN", b"seconds,x,z\n0,0,0\n2,nan,1\n4,0,2\n"), ("infinite", b"seconds,x,z\n0,0,0\n4,inf,2\n"),
        ("infinite time", b"seconds,x,z\n0,0,0\ninf,1,2\n"), ("times that fall",
                                                              b"seconds,x,z\n4,0,0\n0,1,1\n"),
        ("a time twice", b"seconds,x,z\n0,0,0\n0,0,1\n4,0,2\n"),
        ("huge numbers", b"seconds,x,z\n0,0,0\n4,1e300,2\n"), ("a year", b"seconds,x,z\n0,0,0\n3e7,1,2\n"),
        ("a short row", b"seconds,x,z\n0,0,0\n4\n"), ("too fast", b"seconds,x,z\n0,0,0\n4,1000,2\n"),
        ("a field of 1 MB", b"seconds,x,z\n0,0,0\n" + b"1" * damage.LINE + b",1,2\n"),
        ("a quotation mark that stays open", b'seconds,x,z\n0,0,0\n"4,1,2\n' + b"x" * 200_000),
        ("a heading of 400 digits", b"seconds,x,z,heading\n0,0,0,0\n4,0,2," + b"9" * 400 + b"\n")]),
    content_way("a column that is not known", lambda content, _d: content.replace(b"\n", b",7\n").replace(
        b"heading,7", b"heading,mine"), "same"),
    *damage.texts(), *damage.places(), *damage.RANDOM,
)


def in_bvh(pattern, by):
    return lambda content, _dice: re.sub(pattern, by, content, count=1)


BVH_WAYS = (
    content_way("frames of a trillion", in_bvh(rb"Frames: \d+", b"Frames: 1000000000000"), "refused"),
    content_way("frames below zero", in_bvh(rb"Frames: \d+", b"Frames: -5"), "refused"),
    content_way("frames of 5,000 digits", in_bvh(rb"Frames: \d+", b"Frames: " + b"9" * 5000), "refused"),
    content_way("a frame time of 0", in_bvh(rb"Frame Time: \S+", b"Frame Time: 0"), "refused"),
    content_way("a frame time of NaN", in_bvh(rb"Frame Time: \S+", b"Frame Time: nan"), "refused"),
    content_way("channels of a billion", in_bvh(rb"CHANNELS \d+", b"CHANNELS 1000000000"), "refused"),
    content_way("an offset of NaN", in_bvh(rb"OFFSET \S+", b"OFFSET nan"), "refused"),
    content_way("an offset of 1e300", in_bvh(rb"OFFSET \S+", b"OFFSET 1e300"), "any"),
    content_way("NaN in a frame", lambda content, _d: content.rstrip().rsplit(b" ", 1)[0] + b" nan\n",
                "refused"),
    content_way("huge numbers in a frame", lambda content, _d: content.rstrip().rsplit(b" ",
                                                                                       1)[0] + b" 1e300\n",
                "any"),
    content_way("words in a frame", lambda content, _d: content.rstrip() + b" and so on\n", "refused"),
    content_way("joints nested 100,000 deep", b"HIERARCHY\nROOT a\n{\n" + b"JOINT b\n{\n" * 100_000
                + b"MOTION\nFrames: 1\nFrame Time: 0.05\n", "refused"),
    content_way("a megabyte of blank lines", lambda content, _d: content.replace(b"\n", b"\n" * damage.LINE,
                                                                                 1),
                "same"),
    content_way("two roots", lambda content, _d: content.replace(b"HIERARCHY", b"HIERARCHY\n" + b"ROOT a\n{\n"
                b"OFFSET 0 0 0\nCHANNELS 3 Xposition Yposition Zposition\n}\n", 1), "refused"),
    content_way("a joint of 1 MB", in_bvh(rb"JOINT \S+", b"JOINT " + b"a" * damage.LINE), "any"),
    content_way("no motion", lambda content, _d: content[: content.index(b"MOTION")], "refused"),
    content_way("no hierarchy", lambda content, _d: content[content.index(b"MOTION") :], "refused"),
    content_way("a repeated joint", lambda content, _d: content.replace(b"RightUpLeg", b"LeftUpLeg"),
                "refused"),
    content_way("a bracket more", lambda content, _d: content.replace(b"MOTION", b"}\nMOTION"), "refused"),
    content_way("in UTF-16", lambda content, _d: content.decode().encode("utf-16"), "refused"),
    content_way("with a byte order mark", lambda content, _d: b"\xef\xbb\xbf" + content, "same"),
    content_way("with Windows' line ends", lambda content, _d: content.replace(b"\n", b"\r\n"), "same"),
    content_way("with NUL bytes", lambda content, _d: content[:200] + b"\0\0" + content[200:], "refused"),
    *damage.binary(), *damage.places(), *damage.RANDOM,
)

WORDS = (
    *damage.binary(), *damage.places(), *damage.RANDOM,
    content_way("a pickle that runs code", lambda _c, _d: pickle.dumps(damage.Hostile(), 2), "refused"),
    content_way("a number", lambda _c, _d: pickle.dumps(3), "refused"),
    content_way("no words", lambda _c, _d: pickle.dumps([]), "refused"),
    content_way("a string of terabytes", b"\x80\x04\x8d" + (2 ** 42).to_bytes(8, "little") + b"a.",
                "refused"),
    content_way("a list within itself", b"\x80\x02]q\x00h\x00a.", "refused"),
    content_way("deep nesting", b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".", "refused"),
    content_way("lists in place of words", lambda _c, _d: pickle.dumps([["unk"], ["sos"], ["eos"]]),
                "refused"),
    content_way("a reference to nothing", b"\x80\x02h\x09.", "refused"),
)


def result_way(name, *path, value):
    def change(content, _dice):
        container, key = damage.at(content, path)
        container[key] = value

    return json_way(name, change, "refused")


RESULTS = (
    result_way("a score that is a list", "scores", "generated", "FID", "mean", value=[1]),
    result_way("a score that is text", "scores", "generated", "FID", "mean", value="low"),
    result_way("another protocol", "protocol", value="standard"),
    result_way("another number of clips", "clips", value=31),
    result_way("another evaluator", "evaluators", "files", value={"a/latest.tar": "f" * 16}),
    result_way("evaluators without files", "evaluators", value={}),
)


def spec_way(name, key, value, outcome="refused"):
    return json_way(name, lambda content, _d: {**content, key: value}, outcome)


DATASETS = (
    spec_way("a frame rate of 0", "fps", 0), spec_way("a frame rate of text", "fps", "fast"),
    spec_way("a frame rate of 1e308", "fps", 1e308, "any"), spec_way("frames of text", "min_frames", "some"),
    spec_way("fewest frames above the most", "min_frames", 10 ** 6), spec_way("no unit", "unit_length", 0),
    spec_way("an encoder that is not known", "text_encoder", "mine", "any")._replace(says="text encoder"),
    spec_way("an encoder that is a list", "text_encoder", ["minilm"]),
    spec_way("a skeleton that is not known", "skeleton", "horse"),
    spec_way("a skeleton that is a list", "skeleton", [1]), spec_way("an empty skeleton", "skeleton", {}),
    spec_way("a protocol that is not known", "protocol", "mine"),
    spec_way("metres below zero", "metres_per_unit", -1),
)


def joint_way(name, key, value):
    def change(content, dice):
        content["joints"][dice.randrange(1, len(content["joints"]))][key] = value

    return json_way(name, change, "refused")


SKELETONS_OF_MINE = (
    joint_way("a parent that is not there", "parent", "Tail"), joint_way("a parent of its own", "parent",
                                                                         None),
    joint_way("a parent that is a list", "parent", ["Hips"]), joint_way("an axis of its own", "axis", "up"),
    joint_way("an axis that is a list", "axis", [0, 1, 0]), joint_way("a name twice", "name", "Hips"),
    joint_way("an offset of NaN", "offset", [float("nan")] * 3), joint_way("an offset of text", "offset",
                                                                           "x"),
    joint_way("an offset of 1e300", "offset", [1e300, 0, 0]),
    json_way("no joints", lambda content, _d: {**content, "joints": []}, "refused"),
    json_way("100,000 joints", lambda content, _d: {**content, "joints": content["joints"] + [
        {"name": f"j{i}", "parent": "Hips"} for i in range(100_000)]}, "refused"),
    json_way("feet of others", lambda content, _d: {**content, "feet": {"left": [1], "right": ["x"]}},
             "refused"),
    json_way("a name of a built-in one", lambda content, _d: {**content, "name": "t2m"}, "refused"),
)


def labels_way(name, value, outcome="refused"):
    return json_way(name, lambda content, _d: {**content, "walk_1": value}, outcome)


LABELS = (
    labels_way("a label that is text", "walk"), labels_way("a label that is null", None),
    labels_way("actions of text", {"actions": "walk"}), labels_way("actions of null", {"actions": None}),
    labels_way("actions of numbers", {"actions": [1, 2]}, "any"), labels_way("no actions", {"actions": []},
                                                                             "any"),
)

FACTS = (
    json_way("a prompt of a number", lambda content, _d: {**content, "prompt": 3}, "refused"),
    json_way("a frame rate of 0", lambda content, _d: {**content, "fps": 0}, "refused"),
    json_way("a frame rate of 400 digits", lambda content, _d: {**content, "fps": 10 ** 400}, "refused"),
    json_way("a frame rate of 1e300", lambda content, _d: {**content, "fps": 1e300}, "refused"),
    json_way("sections of text", lambda content, _d: {**content, "edited": "all"}, "refused"),
    json_way("sections that end before they begin", lambda content, _d: {**content, "edited": [[9, 2]]},
             "refused"),
    json_way("a skeleton of a number", lambda content, _d: {**content, "skeleton": 22}, "refused"),
    json_way("a skeleton that is not known", lambda content, _d: {**content, "skeleton": "horse"}, "refused"),
    json_way("a script as a prompt", lambda content, _d: {**content, "prompt": "</script><b>"}, "any"),
    json_way("codes of others", lambda content, _d: {**content, "codes": {"sizes": [5]}}, "refused"),
)

STUDIES = (
    json_way("a script elsewhere", lambda content, _d: {**content, "rows": {"a": {"of": "a",
                                                                                  "script": "../x.py"}}},
             "refused"),
    json_way("a row of itself", lambda content, _d: {**content, "rows": {"a": {"of": "a"}}}, "refused"),
    json_way("a row with ../", lambda content, _d: {**content, "rows": {"../a": {"train": ""}}}, "refused"),
    json_way("flags that cannot be split", lambda content, _d: {**content, "rows": {"a": {"train": "'"}}},
             "refused"),
    json_way("flags of numbers", lambda content, _d: {**content, "rows": {"a": {"train": 3}}}, "refused"),
)


def stray(name, make, where):
    return Way(name, lambda _path, _dice: make(Path("datasets", where)), "refused")


def folder_of_others(path):
    path.mkdir()
    (path / "notes.txt").write_text("mine")


FOLDERS = (
    stray("a folder of that name with other files", folder_of_others, "demo.partial"),
    stray("a file of that name", lambda path: path.write_text("mine"), "demo.partial"),
    stray("a link of that name to nothing", lambda path: path.symlink_to("nowhere"), "demo.partial"),
    stray("the data set is a file", lambda path: path.write_text("mine"), "demo"),
    stray("the data set is an empty folder", lambda path: path.mkdir(), "demo"),
    stray("the data set is a link to nothing", lambda path: path.symlink_to("nowhere"), "demo"),
    stray("the data set is a link to itself", lambda path: path.symlink_to("demo"), "demo"),
)

EVENTS = (*damage.binary(), *damage.places(), *damage.RANDOM, *damage.RANDOM)
