"""The table of quantizers: a row per class, whose keyword arguments are the hyper-parameters.

Every quantizer has, for z (..., d): ``q(z, mask) -> Quantized(z_q (..., target_dim), indices, loss ())``,
``decode_indices``, ``get_indices``, ``snap``, ``codes_to_latent`` (z_q -> the decoder's input, (..., d)),
``neighbour`` (the code one step away along an axis), ``to_digits``, and ``dim``, ``target_dim``,
``codebook_size``, ``axis_sizes``.
"""
import inspect
from typing import NamedTuple

from models.DiVeQ import DiVeQ, SFDiVeQ
from models.FSQ import FSQ, IFSQ, LearnedFSQ, NoiseDropoutFSQ, ResidualFSQ, SymmetricFSQ
from models.GumbelVQ import GumbelVQ
from models.HybridFSQ import HybridFSQ
from models.VQ import EMAVQ, RVQ, VQ, ProductVQ, RotationVQ, SimVQ
from utils.errors import UserError


class Row(NamedTuple):
    """family: "FSQ" (built from levels) or "VQ" (built from codebook_size and dim)."""

    family: str
    build: type


QUANTIZERS = {
    "fsq": Row("FSQ", FSQ), "symmetric": Row("FSQ", SymmetricFSQ), "ifsq": Row("FSQ", IFSQ),
    "noise_dropout": Row("FSQ", NoiseDropoutFSQ), "residual": Row("FSQ", ResidualFSQ),
    "learned": Row("FSQ", LearnedFSQ), "hybrid": Row("FSQ", HybridFSQ),
    "vq": Row("VQ", VQ), "ema": Row("VQ", EMAVQ), "rvq": Row("VQ", RVQ), "simvq": Row("VQ", SimVQ),
    "rotation": Row("VQ", RotationVQ), "diveq": Row("VQ", DiVeQ), "sf_diveq": Row("VQ", SFDiVeQ),
    "gumbel": Row("VQ", GumbelVQ), "pq": Row("VQ", ProductVQ),
}
SIZES = {"FSQ": ("levels",), "VQ": ("codebook_size", "dim")}  # passed by the family's autoencoder


def settings_of(name):
    """{hyper-parameter: default} of a quantizer, without the sizes."""
    row = QUANTIZERS[name]
    parameters = inspect.signature(getattr(row.build, "Settings", row.build)).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in SIZES[row.family]}


def plan(quantizer, steps):
    """Tell a quantizer that follows a schedule how many training steps there will be."""
    if hasattr(quantizer, "plan"):
        quantizer.plan(steps)


def make_quantizer(family, name, settings, **sizes):
    """A quantizer by name. UserError for an unknown name or setting, or one of the other family."""
    if name not in QUANTIZERS:
        raise UserError(f"unknown quantizer '{name}'; one of {', '.join(QUANTIZERS)}")
    row, known = QUANTIZERS[name], settings_of(name)
    if row.family != family:
        raise UserError(f"quantizer '{name}' belongs to --model {row.family}_AE_Model, not to {family}_AE_*")
    for setting in settings or {}:
        if setting not in known:
            raise UserError(f"quantizer '{name}' has no setting '{setting}'; its settings: "
                            f"{', '.join(known) or 'none'}")
    return row.build(**sizes, **(settings or {}))
