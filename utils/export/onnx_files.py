"""ONNX: a network for devices without Python, checked with onnxruntime.

Shapes: B windows, T samples, C channels.
"""
import warnings

import numpy as np
import torch

from utils.errors import UserError
from utils.files import atomic_write

OPSET = 17
SAME_CODES = 0.99  # of the windows: a value on the border of two codes may fall on either side
CLOSE = 1e-3  # probabilities, where the codes are the same


def check_packages():
    """onnxruntime. UserError where it, or onnx, is not installed."""
    try:
        import onnx  # noqa: F401, torch's export needs it
        import onnxruntime
    except ImportError as error:
        raise UserError(f"--onnx needs the package {error.name}, which is not installed here; install it as "
                        "pinned: pip install -r requirements.txt") from error
    return onnxruntime


def write_onnx(network, windows, path):
    """Write a network that reads a window (1, T, C) and gives (probabilities,) or (probabilities, codes).

    ``windows`` (B, T, C): on each of which the file's outputs, computed by onnxruntime, are compared with the
    network's. Returns {"windows", "same_codes", "largest_difference", "bytes"}. UserError, and no file, where
    more than 1 of 100 codes differ, or probabilities do."""
    runtime = check_packages()
    with torch.no_grad():
        wanted = [value.cpu().numpy() for value in network(windows)]
    names = ["probabilities", "code"][: len(wanted)]
    with atomic_write(path) as temporary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter without onnxscript, which is the older one
            torch.onnx.export(network, (windows[:1],), str(temporary), input_names=["window"],
                              output_names=names, opset_version=OPSET, dynamo=False)
        session = runtime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        single = [session.run(None, {"window": window[None]}) for window in windows.numpy()]
        made = [np.concatenate(values) for values in zip(*single)]
        same = np.ones(len(windows), bool)
        if len(wanted) > 1:
            same = (made[1] == wanted[1]).reshape(len(windows), -1).all(1)
        differs = float(np.abs(made[0] - wanted[0])[same].max(initial=0))
        if same.mean() < SAME_CODES or differs > CLOSE:
            raise UserError(f"{path} would not compute what the network does: {same.mean():.1%} of the codes "
                            f"are the same, and probabilities differ by up to {differs:.2g}; nothing is "
                            "written")
        return {"windows": len(windows), "same_codes": float(same.mean()), "largest_difference": differs,
                "bytes": temporary.stat().st_size}
