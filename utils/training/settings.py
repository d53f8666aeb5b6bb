"""What a training or an evaluation runs on and with: seeds, the learning rate, the device, precision; and
what results say about the machine and the code that made them."""
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


def seed_everything(seed):
    """Seed python, numpy and torch (CPU and CUDA)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def step_seed(seed, step):
    """The seed of a training step: what the step draws depends on nothing that came before."""
    return (seed * 1_000_003 + step * 7_919 + 17) % 2**63


def learning_rate(step, base, warm_up=0, milestones=(), decay=0.1):
    """lr of ``step`` (from 0): linear warm-up over ``warm_up`` steps, then ``decay`` more at every milestone
    passed."""
    if step < warm_up:
        return base * (step + 1) / warm_up
    return base * decay ** sum(step >= milestone for milestone in milestones)


def peak_memory_mb():
    """Largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def code_version():
    """Short git hash of the code, with + when it is changed; "unknown" outside a repository."""
    here = Path(__file__).resolve().parent
    try:
        text = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=here, capture_output=True,
                              text=True, check=True)
        return text.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine():
    """The machine in words, for results."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return f"{device}, {platform.system()} {platform.machine()}, torch {torch.__version__}"


def allow_tf32(allowed):
    """Whether float32 products on CUDA may run in TF32 from now on."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")


def pick_device(name="auto", precision="fp32"):
    """torch.device of a --device flag; "auto" is CUDA where there is one. A --precision of "tf32" lets
    float32 products on CUDA run in TF32 from now on."""
    allow_tf32(precision == "tf32")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: no CUDA GPU is usable here; pass --device cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"--device {name}: not a device that this code runs on; use cpu, cuda or cuda:N")
    return torch.device(name)


def start(name="auto", precision="fp32"):
    """The torch.device of this process for a --device and a --precision flag, see ``pick_device``. Under
    torchrun the process joins the others (utils/distributed.py)."""
    return distributed.join(pick_device(name, precision))


def resolve_precision(precision, device):
    """A --precision flag with "auto" replaced: bf16 where the device computes it natively, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def autocast(precision, device):
    """The context of a training step. "tf32" also lets float32 products on CUDA run in TF32."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
