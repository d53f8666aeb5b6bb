"""Files of arrays, weights and words, damaged by seeded mutation: always an error of one line."""
import io
import pickle
import random
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import edit
from models import TextEncoder
from models.AE import AE_models
from models.loading import load_autoencoder
from scripts import prepare_dataset
from utils.arrays import UnreadableArray, load_array
from utils.data import datasets, packing
from utils.data.sources import Source
from utils.errors import UserError
from utils.evaluation import evaluators, suites, word_vectors
from utils.files import read_checkpoint
from utils.motion.skeletons import SKELETONS

SIZES = {"input_width": 67, "width": 8, "latent_dim": 8}


def saved(save, content, **options):
    stream = io.BytesIO()
    save(stream, content, **options) if save is np.save else save(content, stream, **options)
    return stream.getvalue()


def fails_in_one_line(read):
    """Whether ``read()`` raises; it must be a UserError of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's parser and torch warn of some damage before they fail
            read()
    except Exception as error:
        if not isinstance(error, UserError):
            raise
        assert "\n" not in str(error)
        return True
    return False


def mutated(content, dice, ends, letters=range(256)):
    """The bytes with some of the first or last ``ends`` changed, or cut short."""
    content = bytearray(content)
    if dice.random() < 0.1:
        return content[: dice.randrange(len(content))]
    for _ in range(dice.choice((1, 1, 2, 5))):
        place = dice.randrange(min(ends, len(content)))
        content[dice.choice((place, place, -1 - place))] = dice.choice(letters)
    return content


def one_clip(folder):
    """The Source that has clip.npy of a folder."""
    if not (folder / "joints").exists():
        (folder / "joints").symlink_to(folder)
    return Source(folder, "joints", SKELETONS["t2m"], 1.0, "y", 20.0)


def array_readers(folder):
    """{file: its readers}: every function that reads a .npy file of the user's."""
    spec = SimpleNamespace(layout=SKELETONS["t2m"], metres_per_unit=1.0, root=str(folder), feature_dim=67)
    clip, statistics = folder / "clip.npy", folder / "Mean.npy"
    return {
        clip: (lambda: load_array(clip), lambda: packing.read_features(clip, 263),
               lambda: edit.read_source(clip, spec),
               lambda: prepare_dataset.read_features_of(one_clip(folder), "clip", "none")),
        statistics: (lambda: datasets.load_statistics(spec),
                     lambda: suites.read_statistics(statistics, "standard", SKELETONS["t2m"])),
        folder / "our_vab_data.npy": (lambda: word_vectors.read_vectors(folder / "our_vab_data.npy"),),
    }


def test_damaged_arrays(tmp_path):
    dice, failed = random.Random(0), 0
    np.save(tmp_path / "Std.npy", np.ones(263, np.float32))
    good = [saved(np.save, np.ones(shape, np.float32))
            for shape in ((20, 263), (20, 22, 3), (263,), (5, 300))]
    huge = [good[0].replace(b"(20, 263), }" + b" " * 6, shape)
            for shape in (b"(20000000000, 263)", b"(9999999, 9999999)")]
    turned = [content.replace(b"}", b"{", 1) for content in good]
    random_ones = [mutated(dice.choice(good), dice, 128, b"0123456789(),{}' :<>|fiuObcmMSUV48\0\xff\n")
                   for _ in range(300)]
    for content in [*huge, *turned, *random_ones]:
        for path, readers in array_readers(tmp_path).items():
            path.write_bytes(content)
            failed += sum([fails_in_one_line(read) for read in readers])
    assert failed > 300
    for content in [*huge, *turned]:
        path.write_bytes(content)
        with pytest.raises(UnreadableArray, match="our_vab_data.npy cannot be read"):
            load_array(path)


def test_a_damaged_clip_is_left_out_with_its_reason(tmp_path):
    path = tmp_path / "clip.npy"
    for content in (saved(np.save, np.ones((20, 263))).replace(b"}", b"{", 1), b"PK"):
        path.write_bytes(content)
        for features, reason, *_ in (packing.read_features(path, 263),
                                     prepare_dataset.read_features_of(one_clip(tmp_path), "clip", "none")):
            assert features is None and "cannot be read (" in reason and str(tmp_path) not in reason
    assert packing.read_features(tmp_path / "absent.npy", 263) == (None, "file is missing")


@pytest.mark.parametrize("content, reason", [
    (np.array(["walk"]), "not numbers"), (np.ones(3, complex), "not numbers"),
    (np.zeros(2, "M8[s]"), "not numbers"),
])
def test_arrays_of_something_else_than_numbers(tmp_path, content, reason):
    np.save(tmp_path / "a.npy", content)
    with pytest.raises(UnreadableArray, match=reason):
        load_array(tmp_path / "a.npy")


def test_an_archive_is_not_an_array(tmp_path):
    np.savez(tmp_path / "a.npz", np.ones(3))
    with pytest.raises(UnreadableArray, match="it is an archive"):
        load_array(tmp_path / "a.npz")


@pytest.mark.parametrize("as_zip", [True, False])
def test_damaged_checkpoints(tmp_path, as_zip, capsys):
    torch.manual_seed(0)
    dice, path, failed = random.Random(0), tmp_path / "latest.tar", 0
    network = AE_models["FSQ_AE_High"](**SIZES)
    content = {"ae": network.state_dict(), "model_name": "FSQ_AE_High", "model_kwargs": SIZES,
               "captions": ["walk", "jump"], "features": torch.ones(2, 384),
               "opt": {"state": {0: {"step": torch.ones(())}}, "lr": [0.1, 2]}}
    good = saved(torch.save, content, _use_new_zipfile_serialization=as_zip)
    readers = (lambda: read_checkpoint(path), lambda: load_autoencoder(path),
               lambda: evaluators.read_checkpoint(path, ("ae",)),
               lambda: TextEncoder.read_clip_weights(path), lambda: TextEncoder.read_feature_file(path, 384))
    path.write_bytes(good)
    # the fourth fails: these are not CLIP's weights
    assert [fails_in_one_line(read) for read in readers] == [False, False, False, True, False]
    for _ in range(150):
        path.write_bytes(mutated(good, dice, 4000))
        failed += sum([fails_in_one_line(read) for read in readers])
    assert failed > 150
    assert all(line.startswith("warning: ") for line in capsys.readouterr().err.splitlines())


@pytest.mark.parametrize("content", [b"text", b"", b"PK\x03\x04 not an archive", b"\x80\x02}q\x00."])
def test_files_that_are_not_checkpoints(tmp_path, content):
    path = tmp_path / "latest.tar"
    path.write_bytes(content)
    with pytest.raises(UserError, match="latest.tar (is not a checkpoint, or is damaged|holds more than)"):
        read_checkpoint(path)
    with pytest.raises(UserError, match="is not a checkpoint, or is damaged|holds more than"):
        evaluators.read_checkpoint(path, ())


@pytest.mark.filterwarnings("ignore")  # torch deprecates TorchScript
def test_damaged_torchscript(tmp_path):
    torch.manual_seed(0)
    dice, path, failed = random.Random(0), tmp_path / "archive.pt", 0
    torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))).save(path)
    good = path.read_bytes()
    start = good.index(b"data.pkl")
    for _ in range(150):
        path.write_bytes(good[:start] + mutated(good[start:], dice, 2000))
        failed += fails_in_one_line(lambda: TextEncoder.read_torchscript(path))
    assert failed > 75


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_damaged_words(tmp_path, protocol):
    dice, failed, words = random.Random(0), 0, ["unk", "sos", "eos", *(f"word{i}" for i in range(20))]
    np.save(tmp_path / "our_vab_data.npy", np.ones((len(words), 300), np.float32))
    good = {"our_vab_words.pkl": words, "our_vab_idx.pkl": {word: i for i, word in enumerate(words)}}
    for name, content in good.items():
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol))
    for _ in range(100):
        for name, content in good.items():
            (tmp_path / name).write_bytes(mutated(pickle.dumps(content, protocol), dice, 1000))
            failed += fails_in_one_line(lambda: word_vectors.WordVectorizer(tmp_path))
            (tmp_path / name).write_bytes(pickle.dumps(content, protocol))
    assert failed > 50
