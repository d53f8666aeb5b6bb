"""A checkpoint for sharing: NAME.safetensors with its tensors and NAME.json with everything else.

Networks are stored in half precision: half the size of a .tar, and readable without torch. Tensors of the
network KEY are named KEY/NAME. Files are written and read in utils/files.py.
"""
import torch

from utils.errors import UserError

NETWORKS = ("ae", "mardm", "ema_mardm", "estimator")  # checkpoint keys of state dicts
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
