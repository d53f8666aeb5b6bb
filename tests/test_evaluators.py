"""Evaluators: the reference's numbers, no influence of padding, training, files."""
import importlib.util
import json
import pickle
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import golden, name_fill, relative_error

from utils.errors import UserError
from utils.evaluation import evaluators
from utils.evaluation.word_vectors import POS_ENUMERATOR, WordVectorizer

Caption = namedtuple("Caption", "text tokens")
DIMS = {"t2m": 67, "kit": 64}
TOLERANCE = 3e-6


def shapes(network):
    return {name: list(value.shape) for name, value in network.state_dict().items()}


def clip_tokens(texts):
    """OpenAI's byte-pair tokens, from the package's own file; importing the package would need
    torchvision."""
    pytest.importorskip("regex", reason="CLIP's tokenizer needs the packages regex and ftfy")
    spec = importlib.util.find_spec("clip")
    if spec is None:
        pytest.skip("CLIP's vocabulary is absent (pip install openai-clip)")
    file = Path(list(spec.submodule_search_locations)[0]) / "simple_tokenizer.py"
    spec = importlib.util.spec_from_file_location("tokenizer_of_clip", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tokenizer = module.SimpleTokenizer()
    return [[49406, *tokenizer.encode(text), 49407] for text in texts]


@pytest.mark.parametrize("name", DIMS)
def test_matching_networks_of_the_reference(name):
    data, dim = golden(f"evaluator_{name}.npz"), DIMS[name]
    keys = json.loads(golden("state_dict_keys.json").read_text())
    movement = name_fill(evaluators.MovementConvEncoder(dim, 512, 512))
    text = name_fill(evaluators.TextEncoderBiGRUCo(300, 15, 512, 512))
    motion = name_fill(evaluators.MotionEncoderBiGRUCo(512, 1024, 512))
    for network, part in ((movement, "movement"), (text, "text"), (motion, "motion")):
        assert shapes(network) == keys[f"evaluator_{name}_{part}_encoder"]
    inputs = {key: torch.from_numpy(data[key])
              for key in ("motion", "m_lens", "word_emb", "pos_onehot", "cap_lens")}
    with torch.no_grad():
        movements = movement(inputs["motion"])
        assert relative_error(movements, data["movement"]) < TOLERANCE
        assert relative_error(motion(movements, inputs["m_lens"] // 4), data["motion_emb"]) < TOLERANCE
        assert relative_error(text(inputs["word_emb"], inputs["pos_onehot"], inputs["cap_lens"]),
                              data["text_emb"]) < TOLERANCE


@pytest.fixture(scope="module")
def contrast_model():
    """MotionCLIP for t2m; filled once, since its token embedding has 25 million numbers."""
    golden("evaluator_t2m.npz")
    return name_fill(evaluators.MotionCLIP(DIMS["t2m"]))


@pytest.mark.parametrize("name", DIMS)
def test_contrast_network_of_the_reference(name, contrast_model):
    data, model = golden(f"evaluator_{name}.npz"), contrast_model
    if name == "kit":  # differs on the motion side only
        model.motion_encoder = evaluators.QueryMotionEncoder(DIMS[name], 512, 8, 1024)
        name_fill(torch.nn.ModuleDict({"motion_encoder": model.motion_encoder}))
    keys = json.loads(golden("state_dict_keys.json").read_text())
    assert shapes(model) == keys[f"evaluator_{name}_contrast_model"]
    with torch.no_grad():
        motion = model.encode_motion(torch.from_numpy(data["motion"]), torch.from_numpy(data["m_lens"]))
        assert relative_error(motion, data["clip_motion_emb"]) < TOLERANCE


@pytest.mark.parametrize("name", DIMS)
def test_contrast_text_of_the_reference(name, contrast_model):
    data = golden(f"evaluator_{name}.npz")
    token_lists = clip_tokens(map(str, data["captions"]))
    tokens = torch.zeros(3, 77, dtype=torch.long)
    for row, numbers in zip(tokens, token_lists):
        row[: len(numbers)] = torch.tensor(numbers)
    with torch.no_grad():
        assert relative_error(contrast_model.encode_text(tokens), data["clip_text_emb"]) < TOLERANCE
    dim = contrast_model.motion_encoder.embed_motion.in_features
    evaluator = evaluators.ContrastEvaluator(contrast_model, torch.zeros(dim),
                                             torch.ones(dim), lambda texts: token_lists)
    captions = [Caption(str(text), ()) for text in data["captions"]]
    expected = torch.nn.functional.normalize(torch.from_numpy(data["clip_text_emb"]), dim=-1)
    assert relative_error(evaluator.embed_text(captions), expected) < TOLERANCE


class Words:
    """A vectorizer of random words."""

    def sentence(self, tokens):
        rng = np.random.default_rng(len(tokens))
        return rng.standard_normal((22, 300)), np.eye(15)[rng.integers(0, 15, 22)], len(tokens) + 2


def matching_evaluator(dim=67, extra=0):
    torch.manual_seed(0)
    networks = (evaluators.MovementConvEncoder(dim, 32, 32), evaluators.MotionEncoderBiGRUCo(32, 32, 16),
                evaluators.TextEncoderBiGRUCo(300, 15, 32, 16))
    return evaluators.MatchingEvaluator(*networks, torch.full((dim + extra,), 0.3),
                                        torch.full((dim + extra,), 2.0), Words())


def contrast_evaluator():
    torch.manual_seed(0)
    model = evaluators.MotionCLIP(67, width=32, layers=2, feedforward=64)
    return evaluators.ContrastEvaluator(model, torch.full((67,), 0.3), torch.full((67,), 2.0), lambda texts: [
        [49406, *map(ord, text), 49407] for text in texts])


def text_features(texts):
    return torch.stack([torch.randn(48, generator=torch.Generator().manual_seed(sum(map(ord, text))))
                        for text in texts])


def trained_evaluator():
    torch.manual_seed(0)
    model = evaluators.ContrastiveEvaluator(67, 48, embed_dim=16, width=32)
    return evaluators.TrainedEvaluator(model, torch.full((67,), 0.3), torch.full((67,), 2.0), text_features)


@pytest.mark.parametrize("make", (matching_evaluator, contrast_evaluator, trained_evaluator))
def test_padding_and_batch_mates_change_nothing(make):
    evaluator = make()
    rng = torch.Generator().manual_seed(1)
    # of 263 features the first 67 count
    clips = [torch.randn(length, 263, generator=rng) for length in (196, 40, 61, 100)]
    lengths = torch.tensor([len(clip) for clip in clips])
    batch = torch.full((4, 196, 263), 7.0)  # the padding is not even zero
    for row, clip in zip(batch, clips):
        row[: len(clip)] = clip
    together = evaluator.embed_motion(batch, lengths)
    alone = torch.cat([evaluator.embed_motion(clip[None], [len(clip)]) for clip in clips])
    assert relative_error(together, alone) < 2e-6
    changed = batch.clone()
    changed[1, 39] += 1  # but the last real frame counts
    difference = (evaluator.embed_motion(changed, lengths) - together).abs().amax(-1)
    assert difference[1] > (1e-6 if make is matching_evaluator else 1e-4)
    assert difference[[0, 2, 3]].max() == 0
    captions = [Caption("a person walks", ("a/DET", "person/NOUN", "walk/VERB")),
                Caption("jump", ("jump/VERB",))]
    texts = evaluator.embed_text(captions)
    assert texts.shape == (2, together.shape[1])
    assert relative_error(texts[1:], evaluator.embed_text(captions[1:])) < 2e-6


def test_the_standard_evaluator_leaves_the_contacts_out():
    evaluator = matching_evaluator(dim=259, extra=4)
    motion = torch.randn(1, 60, 263)
    before = evaluator.embed_motion(motion, [60])
    motion[..., 259:] += 1
    assert torch.equal(before, evaluator.embed_motion(motion, [60]))
    motion[..., 258] += 1
    assert not torch.equal(before, evaluator.embed_motion(motion, [60]))


def test_embeddings_have_length_one_and_long_captions_keep_their_end():
    evaluator = contrast_evaluator()
    captions = [Caption("walk", ()), Caption("w" * 200, ())]
    motion = torch.randn(2, 60, 67)
    for embeddings in (evaluator.embed_text(captions), evaluator.embed_motion(motion, [60, 40])):
        assert torch.allclose(embeddings.norm(dim=-1), torch.ones(2))
    seen = []
    evaluator.model.encode_text = lambda tokens: seen.append(tokens) or torch.ones(2, 32)
    evaluator.embed_text(captions)
    assert seen[0][1, -1] == 49407 and seen[0][0, 6:].sum() == 0


def test_wrong_inputs_are_named():
    evaluator = trained_evaluator()
    with pytest.raises(ValueError, match="at least 67"):
        evaluator.embed_motion(torch.zeros(1, 60, 64), [60])
    with pytest.raises(ValueError, match="lengths"):
        evaluator.embed_motion(torch.zeros(2, 60, 67), [60, 64])
    with pytest.raises(ValueError, match="196"):
        matching_evaluator().embed_motion(torch.zeros(1, 200, 67), [200])
    with pytest.raises(UserError, match="std"):
        evaluators.TrainedEvaluator(evaluator.model, torch.zeros(67), torch.zeros(67), text_features)


def test_trained_evaluator_survives_its_file(tmp_path):
    evaluator = trained_evaluator()
    torch.save({"evaluator": evaluator.model.state_dict(), "model_kwargs": evaluator.model.config,
                "mean": evaluator.mean, "std": evaluator.std}, tmp_path / "latest.tar")
    again = evaluators.TrainedEvaluator.load(tmp_path / "latest.tar", text_features)
    motion = torch.randn(2, 60, 67)
    assert torch.equal(evaluator.embed_motion(motion, [60, 44]), again.embed_motion(motion, [60, 44]))
    captions = [Caption("walk", ()), Caption("jump", ())]
    assert torch.equal(evaluator.embed_text(captions), again.embed_text(captions))


def test_released_files_load_and_broken_ones_are_named(tmp_path):
    source = matching_evaluator()
    networks = {name: getattr(source, name).state_dict()
                for name in ("movement_encoder", "motion_encoder", "text_encoder")}
    torch.save(networks | {"epoch": 3}, tmp_path / "finest.tar")
    loaded = evaluators.MatchingEvaluator.load(tmp_path / "finest.tar", source.mean, source.std, Words())
    motion = torch.randn(2, 60, 67)
    assert torch.equal(source.embed_motion(motion, [60, 44]), loaded.embed_motion(motion, [60, 44]))
    with pytest.raises(UserError, match="no checkpoint at .*train_evaluator"):
        evaluators.TrainedEvaluator.load(tmp_path / "absent.tar", text_features)
    with pytest.raises(UserError, match="contrast_model"):
        evaluators.ContrastEvaluator.load(tmp_path / "finest.tar", source.mean, source.std, None)
    (tmp_path / "damaged.tar").write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(UserError, match="not a checkpoint, or is damaged"):
        evaluators.TrainedEvaluator.load(tmp_path / "damaged.tar", text_features)
    networks["motion_encoder"].pop("hidden")
    torch.save(networks, tmp_path / "finest.tar")
    with pytest.raises(UserError, match="hidden"):
        evaluators.MatchingEvaluator.load(tmp_path / "finest.tar", source.mean, source.std, Words())


def test_same_captions_are_not_negatives():
    model = trained_evaluator().model.eval()
    motion, lengths, text = torch.randn(4, 40, 67), torch.full((4,), 40), torch.randn(4, 48)
    plain = model.loss(motion, lengths, text)
    assert torch.equal(plain, model.loss(motion, lengths, text, torch.eye(4, dtype=torch.bool)))
    same = torch.zeros(4, 4, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    assert model.loss(motion, lengths, text, same) < plain
    assert model.loss(motion, lengths, text, torch.ones(4, 4, dtype=torch.bool)) == 0


def test_it_learns_a_small_set():
    torch.manual_seed(0)
    model = evaluators.ContrastiveEvaluator(67, 48, embed_dim=32, width=32)
    kinds, text = torch.randn(8, 67), torch.randn(8, 48)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(40):
        motion = kinds[:, None] * torch.linspace(0, 1, 40)[:, None] + 0.3 * torch.randn(8, 40, 67)
        loss = model.loss(motion, torch.full((8,), 40), text)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.2  # log(8) = 2.08 at the start


def write_glove(folder, words=("sos", "eos", "unk", "walk", "a", "left")):
    folder.mkdir(exist_ok=True)
    np.save(folder / "our_vab_data.npy", np.random.default_rng(0).standard_normal((len(words), 300)))
    (folder / "our_vab_words.pkl").write_bytes(pickle.dumps(list(words)))
    (folder / "our_vab_idx.pkl").write_bytes(pickle.dumps({word: i for i, word in enumerate(words)}))
    return folder


def test_part_of_speech_numbers_are_the_reference_s():
    assert POS_ENUMERATOR == json.loads(golden("pos_enumerator.json").read_text())["pos_enumerator"]


def test_sentences_become_vectors(tmp_path):
    vectorizer = WordVectorizer(write_glove(tmp_path / "glove"))
    words, tags, length = vectorizer.sentence(["a/DET", "walk/VERB", "left/ADJ", "zigzag/NOUN", "a/X"])
    assert words.shape == (22, 300) and tags.shape == (22, 15) and length == 7 and (tags.sum(1) == 1).all()
    names = list(POS_ENUMERATOR)
    expected = ["OTHER", "DET", "Act_VIP", "Loc_VIP", "OTHER", "OTHER", "OTHER"] + ["OTHER"] * 15
    assert [names[i] for i in tags.argmax(1)] == expected
    rows = [int(np.flatnonzero((vectorizer.vectors == word).all(1))[0]) for word in words]
    assert rows == [0, 4, 3, 5, 2, 4, 1] + [2] * 15
    words, tags, length = vectorizer.sentence(["walk/VERB"] * 50)
    assert words.shape == (22, 300) and length == 22 and (words[21] == vectorizer["eos/OTHER"][0]).all()


class Malicious:
    def __reduce__(self):
        return print, ("this must not run",)


def test_bad_glove_folders_are_named(tmp_path, capsys):
    with pytest.raises(UserError, match="our_vab_words.pkl.*glove.zip"):
        WordVectorizer(tmp_path)
    folder = write_glove(tmp_path / "glove")
    (folder / "our_vab_words.pkl").write_bytes(pickle.dumps([Malicious()]))
    with pytest.raises(UserError, match="print"):
        WordVectorizer(folder)
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="'unk'"):
        WordVectorizer(write_glove(folder, words=("sos", "eos", "walk")))
    write_glove(folder)
    np.save(folder / "our_vab_data.npy", np.zeros((3, 50)))
    with pytest.raises(UserError, match="300"):
        WordVectorizer(folder)
