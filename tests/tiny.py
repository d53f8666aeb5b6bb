"""What many tests begin with: a walking figure, tiny untrained generators, scripts called as by the shell."""
import importlib
import sys

import numpy as np
import torch
from conftest import FakeEncoder

from models.AE import AE_models
from models.loading import weights_hash
from models.MARDM import MARDM_models
from utils.data.specs import DatasetSpec
from utils.errors import run
from utils.motion.features import joints_to_features, rotate_y

FAST = ["--time_steps", "2", "--ode_steps", "1", "--cfg", "2", "--device", "cpu"]


def call(script, *args):
    """Run a script's main as the shell would; returns its exit code."""
    before, sys.argv = sys.argv, [f"{script.replace('.', '/')}.py", *map(str, args)]
    try:
        run(importlib.import_module(script).main)
    except SystemExit as stop:
        return stop.code or 0
    finally:
        sys.argv = before
    return 0


def enter(runs, folder, monkeypatch):
    """Work in ``folder``, where checkpoints/ is that of ``runs``, with text features without meaning."""
    (folder / "checkpoints").symlink_to(runs / "checkpoints")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sample.load_text_encoder", lambda name: FakeEncoder(fake_features))
    return folder


def walk(skeleton, frames, curve=0.02, speed=0.04, seed=0):
    """Joints (frames, J, 3) float32 of a figure that glides along an arc and swings its limbs, placed away
    from the origin."""
    offsets = np.array(skeleton.target_offsets or np.asarray(skeleton.raw_offsets) * 0.25)
    # narrow hips: the heading of features subtracts them from the shoulders
    if skeleton.target_offsets is None:
        offsets[list(skeleton.face_joints[:2])] *= 0.4
    swing = 0.2 * np.sin(0.3 * np.arange(frames)[:, None]
                         + np.random.default_rng(seed).uniform(0, 6, len(offsets)))
    body = np.zeros((frames, len(offsets), 3))
    for parent, child in skeleton.bones:
        x, y, z = offsets[child]
        angle = swing[:, child]
        bone = np.stack([x + 0 * angle, y * np.cos(angle) - z * np.sin(angle),
                         y * np.sin(angle) + z * np.cos(angle)], -1)
        body[:, child] = body[:, parent] + bone
    heading = 0.7 + curve * np.arange(frames)
    body = rotate_y(body, heading[:, None])
    step = rotate_y(np.tile([0, 0, speed], (frames, 1)), heading)
    return (body + np.cumsum(step, axis=0)[:, None] + [3.0, 1.2, -2.0]).astype(np.float32)


def features_of(joints, skeleton):
    return joints_to_features(np.concatenate([joints, joints[-1:]]), skeleton)[:, : skeleton.essential_dim]


def write_checkpoints(root, name, skeleton, cond_mode="text", ae_model="FSQ_AE_High", unit=1.0):
    """A tiny untrained autoencoder and generator, with the statistics of a walk, as training writes them."""
    torch.manual_seed(0)
    spec = DatasetSpec(name=name, root="", skeleton=skeleton.name, fps=20.0, min_frames=40, max_frames=196,
                       text_encoder="minilm", metres_per_unit=unit)
    kwargs = {"input_width": skeleton.essential_dim, "width": 32, "latent_dim": 32}
    ae = AE_models[ae_model](**kwargs).eval()
    features = features_of(walk(skeleton, 100) / unit, skeleton)
    ae_file = {"ae": ae.state_dict(), "model_name": ae_model, "model_kwargs": kwargs,
               "dataset": spec.describe(), "mean": torch.tensor(features.mean(0)),
               "std": torch.tensor(features.std(0) + 0.01 / unit)}
    kind = {"FSQ_AE_High": "FSQ-MARDM-SiT-S", "AE_Model": "MARDM-SiT-S"}[ae_model]
    kwargs = {"ae_dim": 32, "target_dim": ae.target_dim, "cond_mode": cond_mode, "cond_dim": 16,
              "num_actions": 2, "width": 32, "ff": 32, "layers": 1, "heads": 2, "head_width": 32,
              "head_depth": 1}
    mardm = MARDM_models[kind](**kwargs)
    with torch.no_grad():  # adaLN-zero starts with dead branches
        for parameter in mardm.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    mardm_file = {"mardm": mardm.state_dict(), "model_name": kind, "model_kwargs": kwargs,
                  "dataset": spec.describe(), "actions": ["bow", "jump"],
                  "trained_on": {"name": "ae", "model_name": ae_model, "hash": weights_hash(ae)}}
    for run_name, content in [("ae", ae_file), ("mardm", mardm_file)]:
        folder = root / "checkpoints" / name / run_name / "model"
        folder.mkdir(parents=True)
        torch.save(content, folder / "latest.tar")


def fake_features(captions):
    return torch.stack([torch.randn(16, generator=torch.Generator().manual_seed(len(c))) for c in captions])
