"""The corpus of damaged inputs, in part; that its runner notices what goes wrong; and a test for every class
of fault that the corpus has found."""
import csv
import json
import os
import random
import time
import unicodedata
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import misbehaving  # noqa: F401  so that it is imported once, before forks
import numpy as np
import pytest
import torch

from models.AE import AE_models
from models.loading import load_autoencoder
from scripts import soak_inputs
from scripts.corpus import damage
from scripts.corpus.inputs import KINDS, Case, Command, Kind
from scripts.export import check_names
from scripts.soaking import Results
from utils.arrays import UnreadableArray, load_array, load_arrays
from utils.clips import write_clips
from utils.curves import read_runs
from utils.data.datasets import parse_captions, read_split, text_clips
from utils.data.packing import open_packed
from utils.data.specs import DatasetSpec, get_spec, spec_from_description
from utils.errors import UnreadableFile, UserError, one_line, run
from utils.files import (
    UnreadableText,
    read_checkpoint,
    read_json,
    read_text,
    read_weights,
    write_checkpoint,
    write_weights,
)
from utils.motion.bvh import BvhError, read_bvh
from utils.motion.c3d_files import read_c3d
from utils.visualize import safe_filename

SIZES = {"input_width": 67, "width": 16, "latent_dim": 16}
SPEC = {"name": "mine", "skeleton": "t2m", "fps": 20, "min_frames": 40, "max_frames": 199,
        "text_encoder": "minilm"}


@pytest.fixture(scope="module")
def soaking(tmp_path_factory):
    soak_inputs.import_commands()
    return soak_inputs.Soak(tmp_path_factory.mktemp("soak"))


def test_a_hundred_damaged_inputs(soaking):
    results = soak_inputs.soak(soak_inputs.first_cases(100, 3407), soaking)
    verdicts = [(case, verdict) for case, _, verdict in results]
    rows = soak_inputs.table(verdicts)
    assert [row[0] for row in rows] == [*(kind.name for kind in KINDS), "all"]
    assert not soak_inputs.failures(verdicts, 3407) and rows[-1][1] == 100 == rows[-1][2] + rows[-1][3]
    assert rows[-1][2] > 40 and rows[-1][3] > 15


def test_a_soak_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    path, cases, ran = tmp_path / "inputs.json", soak_inputs.first_cases(6, 3407), []

    def soak(some, _soaking, _jobs, done):
        for case in some:
            if len(ran) == 4:
                raise KeyboardInterrupt
            ran.append(case.number)
            verdict = "wrong" if len(ran) == 2 else "clear line"
            done(case, soak_inputs.Ran(0, 1.0, 50.0, "", "", {}, ""), verdict)

    monkeypatch.setattr(soak_inputs, "soak", soak)
    monkeypatch.setattr(soak_inputs, "Soak", lambda folder: SimpleNamespace(stop=lambda: None))
    with pytest.raises(KeyboardInterrupt):
        soak_inputs.soak_rest(cases, Results(path, "inputs", 3407))
    assert ran == [0, 1, 2, 3]
    ran.clear()
    results = Results(path, "inputs", 3407)
    verdicts = soak_inputs.soak_rest(cases, results)
    assert ran == [1, 4, 5]  # what failed is tried again
    results.publish(soak_inputs.COLUMNS, soak_inputs.table(verdicts), results.found)
    assert "| all | 6 | 5 | 0 | 1 |" in path.with_suffix(".md").read_text()


@pytest.mark.parametrize("word, outcome, verdict", [
    ("hangs", "any", "killed after"), ("raises", "any", "a traceback: KeyError"),
    ("allocates", "any", "MB more than"), ("unpickles", "any", "ran the code of a pickle"),
    ("leaves", "refused", "left .partial.walk.csv behind"), ("mumbles", "refused", "does not name"),
    ("writes", "refused", "was taken as if it were whole"), ("writes", "same", "another result"),
    ("writes", "left out", "without a word"), ("writes", "any", "wrong result"), ("dies", "any",
                                                                                  "killed after"),
    ("refuses", "same", "refused, though"), ("refuses", "refused", "clear line"),
    ("allocates in time", "any", "clear line"),
])
def test_what_goes_wrong_is_noticed(soaking, monkeypatch, word, outcome, verdict):
    monkeypatch.setattr(soaking, "seconds", 2 if word == "hangs" else 120)
    monkeypatch.setattr(soaking, "megabytes", 100)
    hostile = damage.content_way("hostile", lambda _c, _d: damage.pickle.dumps(damage.Hostile()), outcome)
    command = Command("misbehaving", (word,), lambda target: "wrong result" if word == "writes" and len(
        target.read_bytes()) < 1000 else None)
    other = hostile._replace(outcome="any")  # so that there is a reference
    kind = Kind("a clip", 1, "clips/walk.npy", (hostile, other), (command,))
    case = Case(0, kind, hostile, command, random.Random(0))
    (_, _, said), = soak_inputs.soak([case], soaking)
    assert verdict in said


def test_an_interrupted_soak_leaves_nothing_running(soaking):
    soaking.start("stopped", Command("misbehaving", ("hangs",)),
                  lambda: Path("clips/walk.npy").write_text("x"),
                  lambda: None, lambda ran: None)
    process, = soaking.running
    soaking.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_the_corpus_is_the_same_each_time():
    one, two, other = (list(map(str, soak_inputs.first_cases(200, seed))) for seed in (1, 1, 2))
    assert one == two != other and len(set(one)) > 180


# Text and JSON.

@pytest.mark.parametrize("content, reason", [
    ("a b".encode("utf-16"), "not text in UTF-8"), ("a b".encode("utf-16-le"), "NUL bytes"),
    ("\u00e9".encode("latin-1"), "not text in UTF-8")])
def test_text_of_other_encodings(tmp_path, content, reason):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UnreadableText, match=f"a.txt cannot be read .*{reason}"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize("read, error", [(read_text, UnreadableText), (read_json, UnreadableText),
                                         (load_array, UnreadableArray), (read_bvh, BvhError),
                                         (partial(load_arrays, names=["a"]), UnreadableArray),
                                         (partial(read_c3d, wanted=["a"]), UnreadableFile)])
def test_nothing_waits_for_a_pipe(tmp_path, read, error):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(error, match="not a file"):
        read(tmp_path / "pipe")


@pytest.mark.parametrize("content, reason", [
    ('{"fps": 20, "fps": 30}', "'fps' is named twice"), ('{"a": NaN}', "NaN"), ('{"a": 1e999}', "1e999"),
    ('{"a": ' + "9" * 400 + "}", "400 digits"), ("[" * 100_000, "recursion"), ("[]", "no JSON object")])
def test_json_that_would_mislead(tmp_path, content, reason):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=reason):
        read_json(tmp_path / "a.json")


def test_many_names_take_no_time(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({str(i): i for i in range(50_000)})[:-1] + ', "7": 1}')
    begun = time.process_time()
    with pytest.raises(UserError, match="'7' is named twice"):
        read_json(tmp_path / "a.json")
    assert time.process_time() - begun < 5  # it was quadratic: minutes


def test_an_error_is_one_line_that_can_be_shown(capsys):
    def main():
        raise UserError("the id 'a\x1b[31m\nb' " + "x" * 5000)

    with pytest.raises(SystemExit):
        run(main)
    line, = capsys.readouterr().err.splitlines()
    assert line.isprintable() and len(line) < 1100 and "\\x1b[31m\\nb" in line
    assert one_line("short") == "short"


# Data sets.

def data_set(folder, ids, text="a person walks#a/DET#0#0\n"):
    """A DatasetSpec of three clips, whose features are the clip's number."""
    for part in ("new_joint_vecs", "texts"):
        (folder / part).mkdir()
    for number, name in enumerate("abc"):
        np.save(folder / f"new_joint_vecs/{name}.npy", np.full((60, 263), number, np.float32))
        (folder / f"texts/{name}.txt").write_text(text)
    (folder / "train.txt").write_bytes(ids)
    np.save(folder / "Mean.npy", np.zeros(263, np.float32))
    np.save(folder / "Std.npy", np.ones(263, np.float32))
    return DatasetSpec(root=str(folder), **SPEC)


@pytest.mark.parametrize("ids", [b"a\n../../b\n", b"/etc/passwd\n", b"..\n", b"a" * 300, b"a\n\x1bb\n",
                                 b"a\\b\n", b"a//b\n"])
def test_ids_that_are_no_names(tmp_path, ids):
    with pytest.raises(UserError, match=r"train.txt: '.*' cannot be the id of a clip"):
        read_split(data_set(tmp_path, ids), "train")


def test_ids_may_name_subfolders(tmp_path):
    assert read_split(data_set(tmp_path, b"subject_1/a\nb\n"), "train") == ["subject_1/a", "b"]


@pytest.mark.parametrize("tags", ["0.0#inf", "-inf#2", "0#" + "9" * 400])
def test_infinite_times_of_captions(tags):
    captions, reason = parse_captions(f"a person walks#a/DET#{tags}\n")
    assert not captions and "infinite times" in reason


def test_times_before_the_start_are_not_those_of_another_clip(tmp_path):
    """Frames -100 to -20 of a clip are in the clip that is stored before it."""
    from utils.data.datasets import MotionStore
    spec = data_set(tmp_path, b"a\nb\n", "he walks#a/DET#-5#-1\nhe stands#a/DET#0#0\n")
    entries, _ = text_clips(MotionStore(spec, "train"))
    assert [(entry.start, entry.end) for entry in entries] == [(0, 60), (0, 60)]


def test_a_flipped_bit_in_the_index_of_packed_clips(tmp_path):
    spec, names = data_set(tmp_path, b"a\nb\n"), ["a", "b"]
    whole = open_packed(spec.root, "train", names, 67)
    path, = tmp_path.glob("packed/*.bin")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"a person walks", b"a parson walks", 1))
    assert open_packed(spec.root, "train", names, 67).texts == whole.texts
    assert path.read_bytes() == content


def test_a_stray_folder_beside_the_demo_set(tmp_path, capsys):
    (tmp_path / "demo.partial").mkdir()
    (tmp_path / "demo.partial" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="demo.partial exists and is not an unfinished data set"):
        get_spec("demo", tmp_path)
    assert (tmp_path / "demo.partial" / "notes.txt").is_file() and not (tmp_path / "demo").exists()


@pytest.mark.parametrize("key, value", [
    ("fps", 0), ("fps", "fast"), ("fps", 1e300), ("fps", True), ("min_frames", 300), ("max_frames", 2.5),
    ("unit_length", 0), ("text_encoder", ["minilm"]), ("protocol", []), ("metres_per_unit", -1),
    ("skeleton", [1]), ("name", None)])
def test_descriptions_of_data_sets(key, value):
    with pytest.raises(UserError, match="mine.json: .*"):
        spec_from_description(SPEC | {key: value}, path="mine.json")


# Checkpoints.

@pytest.fixture
def checkpoint():
    torch.manual_seed(0)
    network = AE_models["FSQ_AE_High"](**SIZES)
    return {"ae": network.state_dict(), "model_name": "FSQ_AE_High", "model_kwargs": dict(SIZES),
            "mean": torch.zeros(67), "std": torch.ones(67), "dataset": dict(SPEC)}


def test_a_flipped_bit_among_the_weights(tmp_path, checkpoint):
    path, dice = tmp_path / "latest.tar", random.Random(0)
    write_checkpoint(path, checkpoint)
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
    for _ in range(20):
        place = entry.header_offset + 1000 + dice.randrange(entry.file_size - 1000)
        path.write_bytes(good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :])
        with pytest.raises(UserError, match="is damaged .*checksum"):
            read_checkpoint(path)


def test_a_mapped_archive_is_looked_at_too(tmp_path):
    with zipfile.ZipFile(tmp_path / "latest.tar", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("latest/data.pkl", bytes(2 ** 20))
    with pytest.raises(UserError, match="torch.save makes no such archive"):
        read_checkpoint(tmp_path / "latest.tar", mapped=True)


def test_a_bomb_is_not_unpacked(tmp_path):
    with (zipfile.ZipFile(tmp_path / "latest.tar", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
          archive.open("latest/data.pkl", "w") as file):
        for _ in range(20):
            file.write(bytes(2 ** 24))
    with pytest.raises(UserError, match="torch.save makes no such archive"):
        read_checkpoint(tmp_path / "latest.tar")


@pytest.mark.parametrize("key, value", [("width", 10 ** 9), ("width", 4000), ("depth", 10 ** 7), ("depth",
                                                                                                  2000),
                                        ("width", -1), ("width", "wide"), ("width", None)])
def test_networks_of_absurd_size_are_not_built(tmp_path, checkpoint, key, value):
    checkpoint["model_kwargs"][key] = value
    write_checkpoint(tmp_path / "latest.tar", checkpoint)
    begun = time.process_time()
    with pytest.raises(UserError, match="latest.tar is damaged: a FSQ_AE_High cannot be built"):
        load_autoencoder(tmp_path / "latest.tar")
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("key, value", [
    ("ae", [1]), ("ae", {"a": 3.0}), ("ae", {"a": torch.ones(2, dtype=torch.complex64)}), ("mean", [0.0]),
    ("mean", torch.full((67,), torch.nan)), ("std", torch.zeros(67)), ("std", torch.ones(5)), ("std", None),
    ("model_name", ["AE"]), ("model_kwargs", [1]), ("dataset", "mine"), ("trained_on", "ae"),
    ("trained_on", {"name": "ae"}), ("trained_on", {"name": "../ae", "hash": "0"}), ("actions", "walk"),
    ("length_counts", torch.ones(3)), ("args", 3), ("decoder_of", {"hashes": [1]})])
def test_entries_of_another_kind(tmp_path, checkpoint, key, value):
    write_checkpoint(tmp_path / "latest.tar", checkpoint | {key: value})
    with pytest.raises(UserError, match=f"latest.tar .*({key}|mean and std)"):
        read_checkpoint(tmp_path / "latest.tar")


def test_weights_that_are_not_finite(tmp_path, checkpoint):
    next(iter(checkpoint["ae"].values()))[0] = torch.nan
    write_checkpoint(tmp_path / "latest.tar", checkpoint)
    with pytest.raises(UserError, match="latest.tar holds NaN or infinite weights"):
        load_autoencoder(tmp_path / "latest.tar")


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_flipped_bit_in_shared_weights(tmp_path, checkpoint, suffix):
    path = tmp_path / "weights.safetensors"
    write_weights(path, checkpoint)
    assert read_weights(path)["model_name"] == "FSQ_AE_High"
    damaged = path.with_suffix(suffix)
    content = bytearray(damaged.read_bytes())
    place = -100 if suffix == ".safetensors" else content.index(b"minilm")
    content[place] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(UserError, match="is damaged or changed, or .*: their checksum"):
        read_weights(path)


def test_shared_weights_without_a_checksum(tmp_path, checkpoint):
    path = tmp_path / "weights.safetensors"
    write_weights(path, checkpoint)
    about = json.loads(path.with_suffix(".json").read_text())
    assert about.pop("sha256")
    path.with_suffix(".json").write_text(json.dumps(about))
    assert "sha256" not in read_weights(path)


# Motion.

def test_bvh_of_blank_lines_takes_no_time(tmp_path):
    (tmp_path / "a.bvh").write_text("HIERARCHY\n" + "\n" * 2 ** 20)
    begun = time.process_time()
    with pytest.raises(BvhError, match="has no MOTION"):
        read_bvh(tmp_path / "a.bvh")
    assert time.process_time() - begun < 5  # it was quadratic


@pytest.mark.parametrize("old, new, reason", [
    ("OFFSET 1", "OFFSET 1e300", "not three numbers"), ("2 2 2", "2 2 1e300", "values above"),
    ("2 2 2", "2 2 nan", "NaN"), ("hips", "h" * 300, "name of 300 characters"), ("hips", "h\0", "NUL bytes"),
    ("Frames: 1", "Frames: " + "9" * 5000, "which are not numbers of use")])
def test_numbers_and_names_of_bvh(tmp_path, old, new, reason):
    good = ("HIERARCHY\nROOT hips\n{\nOFFSET 1 0 0\nCHANNELS 3 Xposition Yposition Zposition\n}\nMOTION\n"
            "Frames: 1\nFrame Time: 0.05\n2 2 2\n")
    path = tmp_path / "a.bvh"
    path.write_text(good)
    assert read_bvh(path).values.tolist() == [[2, 2, 2]]
    path.write_text(good.replace(old, new))
    with pytest.raises(BvhError, match=reason) as error:
        read_bvh(path)
    assert len(str(error.value)) < 400


def test_curves_of_a_link_to_nothing(tmp_path):
    (tmp_path / "events.out.tfevents.1").symlink_to("nowhere")
    with pytest.raises(UserError, match="no TensorBoard events"):
        read_runs([tmp_path])


# Names of files.

PROMPTS = ["walk", "Walk", "WALK.", "walk ", "caf\u00e9", "cafe\u0301", "CON", "nul.txt", "com\u00b9", "AUX ",
           "../../etc/passwd", "C:\\x", "a/b", "a:b|c?d*e\"<f>", "...", "", " ", "\u8d70\u308b", "\U0001f6b6",
           "a\0b", "a\x1b[31m\nb", "\ud800", "w" * 5000, "\u00fc" * 300, "%s $HOME ~", "-rf", "\u202eklaw",
           "\u0130"]
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}


def portable(name):
    """Whether Linux, macOS and Windows all take a name, and none for that of another file in this test."""
    return (0 < len(name.encode()) <= 255 and name.isascii() and name.isprintable()
            and not set(name) & set('<>:"/\\|?* ')
            and not name.endswith((".", " ")) and name.split(".")[0].lower() not in RESERVED
            and name == name.lower() and unicodedata.is_normalized("NFD", name) and not name.startswith("-"))


@pytest.mark.parametrize("length", [60, 30, 4])
def test_names_of_files_from_prompts(length):
    for prompt in PROMPTS:
        name = safe_filename(prompt, length)
        assert portable(name) and len(name) <= length, (prompt, name)


def test_clips_of_prompts_that_look_alike_are_all_kept(tmp_path):
    spec = DatasetSpec(root="", **SPEC)
    written = []
    for number, prompt in enumerate(PROMPTS):  # one command after another: all are number 000
        joints = np.full((8, 22, 3), number, np.float32)
        clip = f"000_{safe_filename(prompt)}_8f_r0", joints, prompt, {"prompt": prompt}
        written += write_clips([clip], spec, tmp_path, no_video=True)
    assert len({path.name.lower() for path in written}) == len(PROMPTS)
    for number, (prompt, path) in enumerate(zip(PROMPTS, written)):
        assert all(map(portable, (path.name, f".0123456789ab.{path.with_suffix('.json').name}")))
        assert (np.load(path) == number).all()
        assert json.loads(path.with_suffix(".json").read_text())["prompt"] == prompt


@pytest.mark.parametrize("names", [("Walk", "walk"), ("caf\u00e9", "cafe\u0301")])
def test_exports_that_would_replace_each_other_elsewhere(tmp_path, names):
    files = [tmp_path / str(number) / f"{name}.npy" for number, name in enumerate(names)]
    with pytest.raises(UserError, match="would both be"):
        check_names(files, tmp_path)
    check_names(files, None)


def test_a_table_that_csv_cannot_read(tmp_path):
    from utils.motion.trajectory import read_table
    (tmp_path / "path.csv").write_text("seconds,x,z\n0,0,0\n" + "1" * (csv.field_size_limit() + 1) + ",1,2\n")
    with pytest.raises(UserError, match="path.csv is not a .csv file .*field larger"):
        read_table(tmp_path / "path.csv")
