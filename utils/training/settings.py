"""Seeds, learning rate, device, precision; and what results say about code and machine."""
import os
import platform
import random
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from utils.errors import UserError
from utils.training import distributed
from utils.training.stopping import before_training


def seed_everything(seed):
    """Seed python, numpy and torch (CPU and CUDA)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def step_seed(seed, step, attempt=0):
    """The seed of a training step, so that its random numbers do not depend on the steps before. ``attempt``:
    how often the run went back (--on_nan rollback)."""
    return (seed * 1_000_003 + step * 7_919 + 17 + attempt * 982_451_653_000_003) % 2**63


def learning_rate(step, base, warm_up=0, milestones=(), decay=0.1):
    """Learning rate of ``step`` (from 0): linear warm-up, then ``base``, times ``decay`` at each
    milestone."""
    if step < warm_up:
        return base * (step + 1) / warm_up
    return base * decay ** sum(step >= milestone for milestone in milestones)


def peak_memory_mb():
    """Peak resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def code_version():
    """Short git hash of the code, with + after local changes; "unknown" outside a repository."""
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True,
                              check=True, cwd=Path(__file__).resolve().parent)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine():
    """A description of the machine, for results."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return f"{device}, {platform.system()} {platform.machine()}, torch {torch.__version__}"


def allow_tf32(allowed):
    """Whether float32 matrix products on CUDA may use TF32 from now on."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")


def pick_device(name="auto", precision="fp32"):
    """The device of a --device flag. From now on, CUDA may use TF32 if, and only if, precision is "tf32"."""
    allow_tf32(precision == "tf32")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: no CUDA GPU is usable here; pass --device cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"--device {name}: not a supported device; use cpu, cuda or cuda:N")
    return torch.device(name)


def start(name="auto", precision="fp32"):
    """``pick_device``; under torchrun also joins the process group (utils/training/distributed.py)."""
    return distributed.join(pick_device(name, precision))


def start_training(name="auto"):
    """``start``, for the scripts that train."""
    before_training()
    return start(name)


def resolve_precision(precision, device):
    """A --precision flag with "auto" replaced: bf16 where the device computes it natively, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def autocast(precision, device):
    """The context of a training step: bf16 autocast, or none. Sets whether CUDA may use TF32 from now on."""
    allow_tf32(precision == "tf32")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
