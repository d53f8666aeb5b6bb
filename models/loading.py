"""From a checkpoint to a model. Our checkpoints describe their model; released MARDM files do not, and are
recognised by their keys. Loading never runs code from the file (``weights_only=True``)."""
import hashlib
from contextlib import contextmanager
from threading import get_ident

import torch
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from models.AE import AE_models, has_grid
from models.Conv2dFSQ import Conv2dFSQ
from models.LengthEstimator import LengthEstimator
from models.MARDM import SIZES, MARDM_models
from models.pipeline import Pipeline
from utils.errors import UserError
from utils.files import first_line, read_checkpoint
from utils.weights import check_finite, complete

FORK = ("pre_fsq.", "post_fsq.")  # names of weights that only the earlier FSQ fork has
SLACK = 2**22  # numbers that a network may compute, beside as many as it has weights


def weights_hash(module):
    """Short SHA-256 of a module's weights: identifies the autoencoder that a generator was trained on."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class TooLarge(Exception):
    """A network that is being built has more weights than there are for it."""


@contextmanager
def at_most(size):
    """Within the block, a module that registers more than ``size`` numbers is TooLarge. Memory of a parameter
    is not used before it is registered, so a network of absurd size costs nothing."""
    left, here = [size], get_ident()

    def count(_module, _name, tensor):
        if tensor is not None and get_ident() == here and not torch.nn.parameter.is_lazy(tensor):
            left[0] -= tensor.numel()
            if left[0] < 0:
                raise TooLarge("it would be far larger than the weights in the file")

    handles = [register(count) for register in (register_module_parameter_registration_hook,
                                                register_module_buffer_registration_hook)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def build(zoo, name, kwargs, state, path):
    """``zoo[name](**kwargs)``, for the weights ``state`` in a file. UserError for an unknown name, and for
    settings with which it cannot be built, or gets far larger than its weights."""
    if name not in zoo:
        raise UserError(f"{path} is of the unknown model '{name}'; known are {', '.join(list(zoo)[:5])} ...")
    size = sum(tensor.numel() for tensor in state.values())
    absurd = [key for key, value in kwargs.items() if type(value) is int and value > max(size, 1000)]
    try:
        if absurd:
            raise TooLarge(f"{absurd[0]} {kwargs[absurd[0]]:.3g} is more than the file has weights")
        with at_most(2 * size + SLACK):
            return zoo[name](**kwargs)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # a damaged setting can end in any exception of torch
        raise UserError(f"{path} is damaged: a {name} cannot be built by its settings "
                        f"({type(error).__name__}: {first_line(error)})") from error


def load_state(model, state, path):
    """Strict load of a state dict, then eval mode; UserError names the first key that differs."""
    check_finite(state, path)
    try:
        model.load_state_dict(complete(state, model.state_dict()), strict=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise UserError(f"the weights in {path} are those of another model: {detail}") from error
    return model.eval()


def sizes_of(read, state, path):
    """``read(state)``: a released file's sizes, from the shapes of its weights. UserError where they lack."""
    try:
        return read(state)
    except (KeyError, AttributeError, TypeError, IndexError, ValueError) as error:
        raise UserError(f"{path} does not hold the weights of a released model ({first_line(error)} is "
                        "missing)") from error


def autoencoder_sizes(state):
    first = state["encoder.model.0.weight"].shape  # (width, features, 3)
    return {"input_width": first[1], "width": first[0],
            "latent_dim": state["encoder.model.4.weight"].shape[0],
            "depth": count_blocks(state, "encoder.model.2.1.model.")}


def generator_sizes(state):
    width = state["input_process.poseEmbedding.weight"].shape[0]
    heads = {size["width"]: size["heads"] for size in SIZES.values()}  # no weight has their number
    return {"ae_dim": state["mask_latent"].shape[-1], "cond_mode": "text",
            "cond_dim": state["cond_emb.weight"].shape[1],
            "target_dim": state["DiffMLPs.net.final_layer.linear.weight"].shape[0], "width": width,
            "heads": heads.get(width, max(1, width // 64)),
            "ff": state["MARTransformer.0.mlp.fc1.weight"].shape[0],
            "layers": count_blocks(state, "MARTransformer."),
            "head_width": state["DiffMLPs.net.input_proj.weight"].shape[0],
            "head_depth": count_blocks(state, "DiffMLPs.net.res_blocks.")}


def estimator_sizes(state):
    width, inputs = state["output.0.weight"].shape
    means, words = state["attend.weight"].shape if "attend.weight" in state else (0, 0)
    return {"input_size": inputs - means * words, "output_size": state["output.11.weight"].shape[0],
            "width": width, "word_dim": words}


def count_blocks(state, prefix):
    """The number of numbered blocks under a prefix of names."""
    return len({name[len(prefix):].split(".")[0] for name in state if name.startswith(prefix)})


def weights_in(checkpoint, key, what, path):
    """The state dict under ``key``. UserError where there is none."""
    if key not in checkpoint:
        raise UserError(f"{path} holds no {what} (keys: {', '.join(map(str, checkpoint))})")
    return checkpoint[key]


def agreed_name(checkpoint, model_name, path, flag):
    """The name that a checkpoint was trained as, else ``model_name``. UserError when the two differ."""
    trained_as = checkpoint.get("model_name")
    if trained_as and model_name and trained_as.replace("_", "-") != model_name.replace("_", "-"):
        raise UserError(f"{path} was trained as {trained_as}, not as {model_name}; pass {flag} {trained_as}")
    return trained_as or model_name


def refuse_fork(found, path):
    """UserError for a checkpoint that is ``found`` to be the earlier FSQ fork's: its rounding had no half
    step, so that 8 levels reached 7 values, and the file does not say which grid it was trained on."""
    if found:
        raise UserError(f"{path} is a checkpoint of the earlier FSQ fork (pre_fsq, post_fsq), whose rounding "
                        "reached other grid points: read as this project's it would make other motion. Train "
                        "both stages again (python train_AE.py --model FSQ_AE_High ..., then "
                        "train_MARDM.py), or use that file with the fork's own code; "
                        "docs/from-the-earlier-fork.md says more")


def trained_as(checkpoint):
    """The name in the zoo of a checkpoint's autoencoder; released files, which do not say, are AE_Model."""
    return checkpoint.get("model_name") or "AE_Model"


def autoencoder_settings(checkpoint, path, model_name=None):
    """The name in the zoo and the arguments of a checkpoint's autoencoder. ``model_name``: AE_Model by
    default for released files; our files have their own, with which it must agree (else UserError)."""
    state = weights_in(checkpoint, "ae", "autoencoder", path)
    refuse_fork(any(prefix in key for key in state for prefix in FORK), path)
    name = agreed_name(checkpoint, model_name, path, "--ae_model/--model") or "AE_Model"
    return name, checkpoint.get("model_kwargs") or sizes_of(autoencoder_sizes, state, path)


def load_autoencoder(path, model_name=None):
    """The autoencoder of a checkpoint, in eval mode, and the checkpoint's dict. ``model_name``: see
    ``autoencoder_settings``."""
    checkpoint = read_checkpoint(path)
    name, kwargs = autoencoder_settings(checkpoint, path, model_name)
    return load_state(build(AE_models, name, kwargs, checkpoint["ae"], path), checkpoint["ae"],
                      path), checkpoint


def load_generator(path, model_name=None):
    """The generator of a checkpoint (its EMA weights, if any), in eval mode, and the checkpoint's dict.
    ``model_name``: needed for released files, which do not name their head; our files have their own, with
    which it must agree (else UserError)."""
    checkpoint = read_checkpoint(path)
    key = "ema_mardm" if "ema_mardm" in checkpoint else "mardm"
    weights = weights_in(checkpoint, key, "generator", path)
    name = agreed_name(checkpoint, model_name, path, "--model")
    if not name:
        raise UserError(f"{path} does not say which head it has (released files do not, and their weights "
                        "look the same); pass --model MARDM-SiT-XL or MARDM-DDPM-XL, as it was published")
    # released files may include a frozen CLIP under this prefix, which is not part of the model
    state = {name: value for name, value in weights.items() if not name.startswith("clip_model.")}
    kwargs = checkpoint.get("model_kwargs")
    if not kwargs:
        kwargs = sizes_of(generator_sizes, state, path)
        refuse_fork(kwargs["target_dim"] != kwargs["ae_dim"], path)  # released ones predict the latents
    return load_state(build(MARDM_models, name, kwargs, state, path), state, path), checkpoint


def reach_of(checkpoint):
    """The reach of the grid in an autoencoder's checkpoint; None without a grid."""
    if not has_grid(checkpoint.get("model_name") or ""):
        return None
    return (checkpoint.get("model_kwargs") or {}).get("reach", 1.0)


def target_hashes(ae, checkpoint):
    """Hashes of an autoencoder and, if only its decoder was trained, of those that it began as (their targets
    are the same), from the last to the first."""
    return [weights_hash(ae), *(checkpoint.get("decoder_of") or {}).get("hashes", [])]


def check_same_autoencoder(checkpoint, ae, ae_checkpoint, path):
    """UserError unless the generator was trained on this very autoencoder, or one with another decoder (by
    hash, when recorded)."""
    trained_on = checkpoint.get("trained_on")
    if trained_on and trained_on["hash"] not in target_hashes(ae, ae_checkpoint):
        raise UserError(f"{path} was trained on autoencoder '{trained_on['name']}' "
                        f"({trained_on.get('model_name')}, weights {trained_on['hash']}), and the one given "
                        "has other weights; pass the right --ae_name")


def load_length_estimator(path):
    """The length estimator of a checkpoint, in eval mode, and the checkpoint's dict."""
    checkpoint = read_checkpoint(path)
    state = weights_in(checkpoint, "estimator", "length estimator", path)
    model = build({"LengthEstimator": LengthEstimator}, "LengthEstimator", sizes_of(estimator_sizes, state,
                                                                                    path),
                  state, path)
    return load_state(model, state, path), checkpoint


def load_behavior(path):
    """The Conv2dFSQ of a checkpoint of train_behavior.py, in eval mode, and the checkpoint's dict."""
    checkpoint = read_checkpoint(path)
    state = weights_in(checkpoint, "behavior", "behaviour codes", path)
    kwargs = {"norm": "scale"} | (checkpoint.get("model_kwargs") or {})  # scale: before there was a choice
    model = build({"Conv2dFSQ": Conv2dFSQ}, "Conv2dFSQ", kwargs, state, path)
    return load_state(model, state, path), checkpoint


def load_pipeline(generator_path, ae_path, model_name=None, ae_model=None, statistics=None, device="cpu"):
    """The Pipeline of a generator's and an autoencoder's checkpoint, and the generator's dict. UserError when
    the two do not belong together. ``statistics``: function that returns (mean, std), called only when
    neither checkpoint has them (released files)."""
    ae, ae_checkpoint = load_autoencoder(ae_path, ae_model)
    generator, checkpoint = load_generator(generator_path, model_name)
    check_same_autoencoder(checkpoint, ae, ae_checkpoint, generator_path)
    holder = ae_checkpoint if "mean" in ae_checkpoint else checkpoint
    mean, std = (holder["mean"], holder["std"]) if "mean" in holder else statistics()
    hashes = weights_hash(generator), weights_hash(ae)  # before the weights are on a device
    pipeline = Pipeline(generator, ae, mean, std, device)
    pipeline.hashes = hashes
    pipeline.text_encoder = (checkpoint.get("dataset") or {}).get("text_encoder", "clip")  # as published
    return pipeline, checkpoint
