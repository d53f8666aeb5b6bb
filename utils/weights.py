"""A checkpoint for sharing: NAME.safetensors with its tensors and NAME.json with everything else.

Networks are stored in half precision: half the size of a .tar, and readable without torch. Tensors of the
network KEY are named KEY/NAME. Files are written and read in utils/files.py.
"""
import torch

from utils.errors import UserError

NETWORKS = ("ae", "mardm", "ema_mardm", "estimator", "behavior")  # checkpoint keys of state dicts
RELEASED = ("movement_encoder", "motion_encoder", "text_encoder", "contrast_model", "evaluator")  # likewise
SINUSOIDS = "position_enc.pe"  # in the state dicts of generators, but computed: left out here


def split(checkpoint):
    """({name: tensor}, {key: plain value}) of a checkpoint's dict. UserError for weights that are not finite
    in half precision."""
    tensors, plain = {}, {}
    for key, value in checkpoint.items():
        if key in NETWORKS:
            tensors |= {f"{key}/{name}": halved(tensor, name) for name, tensor in value.items()
                        if name != SINUSOIDS}
        elif torch.is_tensor(value):
            tensors[key] = value.contiguous()
        else:
            plain[key] = value
    return tensors, plain


def halved(tensor, name):
    """A float32 tensor in float16, and any other as it is."""
    half = tensor.half() if tensor.dtype == torch.float32 else tensor
    if half.is_floating_point() and not torch.isfinite(half).all():
        raise UserError(f"{name} is not finite in half precision, so it cannot be exported")
    return half.contiguous()


def join(tensors, plain):
    """The dict that was ``split``, networks in float32."""
    networks, others = {}, {}
    for name, tensor in tensors.items():
        key, _, inner = name.partition("/")
        if inner:
            networks.setdefault(key, {})[inner] = tensor.float() if tensor.dtype == torch.float16 else tensor
        else:
            others[key] = tensor
    return plain | others | networks


def complete(state, own):
    """A state dict with what exports leave out, as in the model's ``own``."""
    return {name: own[name] for name in (SINUSOIDS,) if name in own} | state


def _vector(value):
    return torch.is_tensor(value) and value.ndim == 1 and bool(torch.isfinite(value).all())


def _texts(value):
    return isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value)


def _autoencoder(value):
    return (isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("name", "hash"))
            and "/" not in value["name"] and value["name"] not in ("", ".", ".."))


# Entries of checkpoints, besides networks, whose value is used without a further look: {key: (whether it can
# be used, in words)}. Released files lack most.
ENTRIES = {
    "mean": (_vector, "a vector of finite numbers"),
    "std": (lambda value: _vector(value) and bool((value > 0).all()), "a vector of numbers above 0"),
    "model_name": (lambda value: isinstance(value, str), "a name"),
    "model_kwargs": (lambda value: isinstance(value, dict) and _texts(list(value)), "settings by name"),
    "dataset": (lambda value: isinstance(value, dict), "the description of a data set"),
    "args": (lambda value: isinstance(value, dict), "flags by name"),
    "trained_on": (_autoencoder, "the name and hash of an autoencoder"),
    "decoder_of": (lambda value: isinstance(value, dict) and _texts(value.get("hashes", [])),
                   "the name and hashes of an autoencoder"),
    "actions": (_texts, "a list of names"),
    "sensors": (lambda value: isinstance(value, dict), "the description of sensors"),
    "length_counts": (lambda value: torch.is_tensor(value) and value.ndim == 2
                      and bool(torch.isfinite(value).all()), "a table of counts"),
}


def check_entries(checkpoint, path):
    """A checkpoint's dict, without those of ENTRIES that are None. UserError for entries of another kind than
    training writes."""
    checkpoint = {key: value for key, value in checkpoint.items() if value is not None or key not in ENTRIES}
    for key in (*NETWORKS, *RELEASED):
        if not is_state(checkpoint.get(key, {})):
            raise UserError(f"{path} holds something else than a network's weights under '{key}'")
    for key, (usable, words) in ENTRIES.items():
        if key in checkpoint and not usable(checkpoint[key]):
            raise UserError(f"{path} is damaged, or of another program: its '{key}' is not {words}")
    mean, std = checkpoint.get("mean"), checkpoint.get("std")
    if (mean is None) != (std is None) or (mean is not None and mean.shape != std.shape):
        raise UserError(f"{path} is damaged, or of another program: its mean and std do not fit each other")
    return checkpoint


def is_state(value):
    """Whether this is a network's state dict."""
    return isinstance(value, dict) and all(isinstance(name, str) and torch.is_tensor(tensor)
                                           and not tensor.is_complex() for name, tensor in value.items())


def check_finite(state, path):
    """UserError for a state dict with weights that are not finite."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{path} holds NaN or infinite weights ({name}), so its network is of no use; "
                            "take an earlier checkpoint, or train it again")
