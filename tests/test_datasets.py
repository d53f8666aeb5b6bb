"""Which clips a data set yields, that the others are named, and the packed clip file."""
import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import golden

from utils.data import datasets, packing
from utils.data.datasets import MotionStore, TextMotionDataset, WindowDataset, text_clips
from utils.data.specs import DatasetSpec, get_spec
from utils.errors import UserError
from utils.evaluation.protocols import TextClips

RULES = dict(fps=20.0, text_encoder="clip")


def write_clip(root, name, motion, text="a person walks#a/DET person/NOUN walk/VERB#0.0#0.0"):
    for folder in ("new_joint_vecs", "texts"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    np.save(root / "new_joint_vecs" / f"{name}.npy", motion)
    if text is not None:
        (root / "texts" / f"{name}.txt").write_text(text + "\n")


def write_statistics(root, dim=67):
    np.save(root / "Mean.npy", np.zeros(dim, np.float32))
    np.save(root / "Std.npy", np.ones(dim, np.float32))


@pytest.fixture
def rules(tmp_path):
    """The golden rule clips, widened to 263 columns (they have 8), in a folder of their own."""
    source = golden("dataset_rules/split.txt").parent
    (tmp_path / "texts").symlink_to(source / "texts")
    (tmp_path / "new_joint_vecs").mkdir()
    for path in (source / "new_joint_vecs").iterdir():
        motion = np.load(path)
        np.save(tmp_path / "new_joint_vecs" / path.name, np.pad(motion, ((0, 0), (0, 263 - motion.shape[1]))))
    write_statistics(tmp_path, 263)
    (tmp_path / "train.txt").write_text((source / "split.txt").read_text())
    return tmp_path, json.loads((source / "expected.json").read_text())


@pytest.mark.parametrize("which, shortest", [("t2m", 40), ("kit", 24)])
def test_text_to_motion_rules(rules, which, shortest):
    root, expected = rules
    spec = DatasetSpec("rules", str(root), which, min_frames=shortest, max_frames=199, **RULES)
    store = MotionStore(spec, "train")
    entries, dropped = text_clips(store)
    evaluated = TextClips(spec, "train")  # the same clips, as an evaluation reads them
    for split, clips in (("train", entries), ("eval", evaluated.entries)):
        found = [(store.ids[e.clip], e.start, e.end, tuple(c.text for c in e.captions)) for e in clips]
        assert found == [(e["clip"], e["start"], e["end"], tuple(e["captions"]))
                         for e in expected[f"{which}_{split}"]]
    assert entries != evaluated.entries and "missing_file" in store.skipped
    assert [c.text for c in evaluated.captions] == [text for e in expected[f"{which}_eval"]
                                                    for text in e["captions"]]
    assert all(reason for reason in dropped.values())


def test_windows(rules):
    """Every window of every clip, once. The reference yields 614: one of them twice (613 distinct), and
    misses the last window of each of the 9 clips that are long enough."""
    root, expected = rules
    store = MotionStore(DatasetSpec("rules", str(root), "t2m", min_frames=40, max_frames=199, **RULES),
                        "train")
    windows = WindowDataset(store, 64)
    places = {windows.locate(i) for i in range(len(windows))}
    numbers = {(int(store.ids[clip][1:]), start) for clip, start in places}
    missed = numbers - {tuple(place) for place in expected["ae_window64_set"]}
    assert numbers >= {tuple(place) for place in expected["ae_window64_set"]}
    assert len(windows) == len(places) == expected["ae_distinct"] + 9 and len(missed) == 9
    # the one that the reference counts twice
    assert expected["ae_window64_count"] == expected["ae_distinct"] + 1
    assert len(windows) == expected["ae_window64_count"] - 1 + len(missed)
    for clip, length in enumerate(store.lengths):
        starts = sorted(start for c, start in places if c == clip)
        assert starts == list(range(max(0, length - 63)))
    clip, start = windows.locate(len(windows) - 1)
    assert torch.equal(windows[len(windows) - 1, 0], torch.from_numpy(store.frames(clip, start, start + 64)))


def test_nothing_vanishes_silently(tmp_path, capsys):
    good = np.random.default_rng(0).standard_normal((60, 263)).astype(np.float32)
    write_clip(tmp_path, "good", good)
    write_clip(tmp_path, "nan", np.where(np.arange(263) == 5, np.nan, good))
    write_clip(tmp_path, "narrow", good[:, :50])
    write_clip(tmp_path, "untold", good, text=None)
    write_clip(tmp_path, "short", good[:39])
    write_clip(tmp_path, "damaged", good)
    path = tmp_path / "new_joint_vecs" / "damaged.npy"
    path.write_bytes(path.read_bytes()[:500])
    write_statistics(tmp_path, 263)
    (tmp_path / "train.txt").write_text("good\nnan\nnarrow\nuntold\nshort\ndamaged\nabsent\n")
    store = MotionStore(DatasetSpec("own", str(tmp_path), "t2m", min_frames=40, max_frames=199, **RULES),
                        "train", num_workers=2)
    assert set(store.skipped) == {"nan", "narrow", "damaged", "absent"}
    assert store.ids == ["good", "untold", "short"]
    assert "NaN" in store.skipped["nan"] and "shape" in store.skipped["narrow"]
    assert "4 clips" in capsys.readouterr().err
    entries, dropped = text_clips(store)
    assert [store.ids[e.clip] for e in entries] == ["good"]
    assert set(dropped) == {"untold", "short"}
    assert "no text" in dropped["untold"] and "39 frames" in dropped["short"]


@pytest.fixture
def own(tmp_path):
    """A data set of clips of 50, 51 and 52 frames, one of them with NaN, and a function that opens it."""
    for place, name in enumerate(("one", "two", "three")):
        motion = np.random.default_rng(place).standard_normal((50 + place, 263)).astype(np.float32)
        motion[3] = np.nan if name == "two" else motion[3]
        write_clip(tmp_path, name, motion)
    write_statistics(tmp_path)
    (tmp_path / "train.txt").write_text("one\ntwo\nthree\n")
    spec = DatasetSpec("own", str(tmp_path), "t2m", min_frames=40, max_frames=199, **RULES)
    return tmp_path, lambda **options: MotionStore(spec, "train", **options)


def content(store):
    """Everything in a store."""
    return (store.ids, store.skipped, store.lengths.tolist(), store.data.tolist(),
            [store.captions(clip) for clip in range(len(store.ids))])


def test_a_second_opening_reads_the_packed_file_alone(own, monkeypatch, capsys):
    root, open_store = own
    first, told = open_store(), capsys.readouterr().err
    expected = np.concatenate([np.load(root / "new_joint_vecs" / f"{name}.npy")[:, :67]
                               for name in first.ids])
    assert np.array_equal(first.data, expected) and first.ids == ["one", "three"]
    assert "two.npy holds NaN" in told
    assert open_store(columns=263).data.shape == (102, 263)  # a file of its own
    monkeypatch.setattr(packing, "read_clip", None)  # reading a source would fail now
    assert content(open_store()) == content(first) and "two.npy holds NaN" in capsys.readouterr().err
    copy = pickle.dumps(first)
    assert len(copy) < 2000 and content(pickle.loads(copy)) == content(first)


def damage(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 1  # the size of the index
    path.write_bytes(content)


@pytest.mark.parametrize("change", [
    # of the same size
    lambda root, packed: np.save(root / "new_joint_vecs" / "one.npy", np.ones((50, 263), np.float32)),
    lambda root, packed: write_clip(root, "two", np.zeros((45, 263), np.float32)),
    lambda root, packed: (root / "new_joint_vecs" / "one.npy").unlink(),
    lambda root, packed: (root / "texts" / "one.txt").write_text("someone runs#run/VERB#0.0#0.0"),
    lambda root, packed: (root / "texts" / "one.txt").unlink(),
    lambda root, packed: (root / "train.txt").write_text("three\none\n"),
    lambda root, packed: damage(packed),
    lambda root, packed: packed.write_bytes(packed.read_bytes()[:1000]),
    lambda root, packed: packed.write_bytes(b""),
])
def test_the_packed_file_follows_its_sources(own, change):
    root, open_store = own
    open_store()
    (packed,) = (root / "packed").iterdir()
    for path in root.glob("*/*.*"):  # a clock of coarse ticks must not hide the change
        os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9))
    open_store()
    change(root, packed)
    found = content(open_store())
    packed.unlink(missing_ok=True)
    assert found == content(open_store())


def test_a_folder_that_cannot_be_written_to(own, capsys):
    root, open_store = own
    expected = content(open_store())
    (root / "packed" / "train_67.bin").unlink()
    (root / "packed").rmdir()
    (root / "packed").write_text("in the way")
    capsys.readouterr()
    assert content(open_store()) == expected
    assert "read anew at every start" in capsys.readouterr().err and (root / "packed").is_file()


def test_packing_at_once_and_packing_that_is_cut_off(own, monkeypatch):
    root, open_store = own
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: content(open_store()), range(4)))
    assert all(store == stores[0] for store in stores)
    (packed,) = (root / "packed").iterdir()
    before = packed.read_bytes()
    (root / "texts" / "one.txt").write_text("something else")

    def cut_off(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packing.json, "dumps", cut_off)
        open_store()
    assert list((root / "packed").iterdir()) == [packed] and packed.read_bytes() == before
    assert open_store().captions(0)[0][0][0].text == "something else"


def test_draws_follow_the_published_rule(tmp_path):
    motion = np.arange(97)[:, None] * np.ones((97, 67), np.float32)
    write_clip(tmp_path, "clip", motion, "one#one/NUM#0.0#0.0\ntwo#two/NUM#0.0#0.0")
    write_statistics(tmp_path)
    (tmp_path / "train.txt").write_text("clip\n")
    store = MotionStore(DatasetSpec("own", str(tmp_path), "t2m", min_frames=40, max_frames=199, **RULES),
                        "train")
    data = TextMotionDataset(store, text_clips(store)[0], torch.arange(2.0)[:, None])
    draws = [data[0, seed] for seed in range(600)]
    lengths = np.array([draw["length"] for draw in draws])
    assert set(lengths) == {96, 92} and abs(np.mean(lengths == 92) - 1 / 3) < 0.06
    assert {int(draw["motion"][0, 0]) for draw in draws if draw["length"] == 96} == {0, 1}
    assert {int(draw["motion"][0, 0]) for draw in draws if draw["length"] == 92} == set(range(6))
    assert {float(draw["cond"]) for draw in draws} == {0.0, 1.0}
    assert torch.equal(data[0, 7]["motion"], data[0, 7]["motion"])


def test_captions():
    caption, tags = datasets.parse_caption("a man walks#a/DET man/NOUN walk/VERB#1.5#nan\n")
    assert caption == ("a man walks", ("a/DET", "man/NOUN", "walk/VERB")) and tags == (1.5, 0.0)
    assert datasets.parse_caption("only words")[0] == ("only words", ())


def test_groups_join_clips_that_share_a_caption():
    def entry(*texts):
        return datasets.TextClip(0, 0, 40, tuple(datasets.Caption(text, ()) for text in texts))

    groups = datasets.caption_groups([entry("a", "b"), entry("c"), entry("B", "d"), entry("d"), entry("e")])
    assert groups[0] == groups[2] == groups[3] and len(set(groups)) == 3


def test_batches_are_a_function_of_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(40, 196, 100)
    one, two = (datasets.SeededBatches(100, 8, seed=3, lengths=lengths) for _ in range(2))
    assert list(one) == list(two) and len(list(one)) == 12
    two.epoch = 1
    assert list(one) != list(two)
    two.epoch, two.start = 0, 5
    assert list(two) == list(one)[5:] and len(two) == 7
    rows = [index for batch in one for index, _ in batch]
    assert len(rows) == len(set(rows)) == 96
    spread = np.mean([np.ptp(lengths[[index for index, _ in batch]]) for batch in one])
    assert spread < 0.6 * np.ptp(lengths)


@pytest.mark.parametrize("change, message", [
    (lambda root: (root / "Mean.npy").unlink(), "Mean.npy is missing"),
    (lambda root: np.save(root / "Std.npy", np.zeros(67)), "0 or less"),
    (lambda root: np.save(root / "Mean.npy", np.full(67, np.nan)), "finite"),
    (lambda root: (root / "Std.npy").write_bytes(b"rubbish"), "cannot be read"),
    (lambda root: (root / "train.txt").unlink(), "train.txt is missing"),
    (lambda root: (root / "train.txt").write_text(""), "is empty"),
    (lambda root: (root / "new_joint_vecs" / "clip.npy").unlink(), "no clip of"),
    (lambda root: (root / "dataset.json").unlink(), "no dataset.json"),
    (lambda root: (root / "dataset.json").write_text("{}"), "lacks"),
    (lambda root: (root / "dataset.json").write_text("{"), "not JSON"),
])
def test_a_broken_data_set_is_named(tmp_path, change, message):
    root = tmp_path / "own"
    write_clip(root, "clip", np.zeros((60, 67), np.float32))
    write_statistics(root)
    (root / "train.txt").write_text("clip\n")
    description = dict(skeleton="t2m", fps=20.0, min_frames=40, max_frames=199, text_encoder="minilm")
    (root / "dataset.json").write_text(json.dumps(description))
    MotionStore(get_spec("own", tmp_path), "train")
    change(root)
    with pytest.raises(UserError, match=message):
        MotionStore(get_spec("own", tmp_path), "train")


def test_an_unknown_data_set_is_named(tmp_path):
    with pytest.raises(UserError, match="no data set 'nothing'"):
        get_spec("nothing", tmp_path)
