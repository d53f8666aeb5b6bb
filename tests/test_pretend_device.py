"""Everything that users run on a GPU, on a pretend one (tests/pretend_device.py): no tensor is left on the
host, no device is hard-coded, and the host waits for the device where it must, and nowhere else."""
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import FakeEncoder
from pretend_device import Marked, PretendDevice, PretendDeviceError
from test_evaluators import contrast_evaluator, matching_evaluator
from test_generation import make_pair
from test_gpt import make_pair as make_gpt
from tiny import call, walk

from models import generation
from models.AE import AE_models
from utils.data.datasets import Caption
from utils.demo.dataset import build_demo
from utils.evaluation.reconstruction import reconstruct_with_tail
from utils.motion.skeletons import SKELETONS
from utils.training import trainer

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true",
                                        "ignore:PyTorch was compiled without cuDNN")
HERE = "cuda:1"  # a hard-coded "cuda", or a forgotten index, is cuda:0


@pytest.fixture
def device():
    with PretendDevice(HERE) as pretend:
        yield pretend


def test_tensors_say_where_they_are(device):
    x = torch.ones(2, 3).to(HERE)
    for made in (x, x + 1, x[0], x.new_zeros(2), x.new_tensor(3), torch.zeros_like(x), x.float().double(),
                 torch.arange(3, device=x.device), torch.tensor([1, 2], device=HERE),
                 torch.as_tensor(np.ones(2), device=HERE), torch.ones(2).to(x), torch.ones(2).type_as(x),
                 F.one_hot(x[0].long(), 4)):
        assert isinstance(made, Marked) and made.is_cuda and str(made.device) == HERE
    for made in (x.cpu(), x.to("cpu"), torch.ones(2), torch.tensor(x.tolist())):
        assert not isinstance(made, Marked) and made.device.type == "cpu"
    assert x.squeeze_(0).shape == (2, 3) and x[:1].squeeze_(0).shape == (3,)
    x[0] += 1
    assert torch.equal(x.cpu(), torch.tensor([[2.0, 2, 2], [1, 1, 1]]))


def test_training_has_the_numbers_of_the_cpu():
    found = []
    for name in ("cpu", HERE):
        with PretendDevice(HERE):
            torch.manual_seed(0)
            net = torch.nn.Sequential(torch.nn.Conv1d(3, 8, 3, padding=1), torch.nn.GELU(),
                                      torch.nn.TransformerEncoderLayer(8, 2, 8, 0.0, batch_first=True))
            first = net[0].weight
            optimizer = torch.optim.AdamW(net.to(name).parameters(), fused=True)
            assert net[0].weight is first and isinstance(first, torch.nn.Parameter)
            x = torch.randn(4, 3, 8).to(name)
            for _ in range(3):
                optimizer.zero_grad()
                net(x).square().mean().backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
                optimizer.step()
            found.append([value.detach().cpu() for value in net.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found))


MIXED = {
    "sum": lambda x: x + torch.ones(2, 3), "product": lambda x: x @ torch.ones(3, 2),
    "cat": lambda x: torch.cat([x, torch.ones(1, 3)]),
    "where": lambda x: torch.where(torch.ones(3) > 0, x, x),
    "layer": lambda x: torch.nn.Linear(3, 2)(x),
    "embedding": lambda x: F.embedding(x.long(), torch.ones(5, 2)),
    "in place": lambda x: torch.ones(2, 3).add_(x), "assignment": lambda x: x[0].add_(torch.ones(3)),
    "index": lambda x: torch.ones(5)[x[0].long()], "mask": lambda x: torch.ones(2, 3)[x > 0],
    "stacked number": lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
}
HIDDEN = {
    "tensor": lambda x: torch.ones(2).cuda(), "its own": lambda x: x.cuda(),
    "module": lambda x: torch.nn.Linear(2, 2).cuda(), "factory": lambda x: torch.zeros(2, device="cuda"),
    "to": lambda x: torch.ones(2).to("cuda"), "index": lambda x: x.to("cuda:0"),
    "generator": lambda x: torch.Generator("cuda:0"), "new": lambda x: x.new_zeros(2, device="cuda:0"),
}
OTHER_FAULTS = {
    "generator of the host": lambda x: torch.rand(2, device=HERE, generator=torch.Generator()),
    "generator of the device": lambda x: torch.rand(2, generator=torch.Generator(HERE)),
    "numpy": lambda x: x.numpy(), "asarray": lambda x: np.asarray(x),
}


@pytest.mark.parametrize("fault, message", [
    *((fault, "mixes tensors of host and device") for fault in MIXED.values()),
    *((fault, "hidden|hard-coded") for fault in HIDDEN.values()),
    *((fault, "a generator of|numpy") for fault in OTHER_FAULTS.values()),
], ids=[*MIXED, *HIDDEN, *OTHER_FAULTS])
def test_faults_are_found(device, fault, message):
    x = torch.ones(2, 3, device=HERE)
    with pytest.raises(PretendDeviceError, match=message) as error:
        fault(x)
    assert "tests/test_pretend_device.py:" in str(error.value)  # it says where


READS = {
    "item": lambda x: x.sum().item(), "any().item": lambda x: (x > 0).any().item(),
    "float": lambda x: float(x[0, 0]), "int": lambda x: int(x[0, 0]), "bool": lambda x: bool((x > 0).all()),
    "if": lambda x: 1 if x[0, 0] > 0 else 2, "tolist": lambda x: x.tolist(), "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"), "copy_": lambda x: torch.zeros(2, 3).copy_(x), "nonzero": torch.nonzero,
    "one-sided where": lambda x: torch.where(x > 0), "mask": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "assigned mask": lambda x: x.__setitem__(x > 0, x[0, 0]), "unique": torch.unique,
    "bincount": lambda x: x[0].long().bincount(), "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x), "synchronize": lambda x: torch.cuda.synchronize(),
}
UPLOADS = {
    "to": lambda x: torch.ones(2).to(HERE), "tensor": lambda x: torch.tensor(1.0, device=HERE),
    "pageable": lambda x: torch.ones(2).to(HERE, non_blocking=True),
    "indices": lambda x: x[torch.tensor([1])],
    "blocking": lambda x: torch.ones(2).pin_memory().to(HERE), "copy_": lambda x: x.copy_(torch.ones(2, 3)),
}
FREE = {
    "pinned": lambda x: torch.ones(2).pin_memory().to(HERE, non_blocking=True),
    "index": lambda x: x[x[0].long() - 1],
    "where": lambda x: torch.where(x > 0, x, 0.0), "masked_fill": lambda x: x.masked_fill(x > 0, 1.0),
    "filled mask": lambda x: x.__setitem__(x > 0, 1.0), "number": lambda x: x * torch.tensor(2.0),
    "made there": lambda x: torch.rand(3, device=HERE), "shape": lambda x: len(x), "to": lambda x: x.to(HERE),
    "generator": lambda x: torch.rand(2, device=HERE, generator=torch.Generator(HERE)),
}


@pytest.mark.parametrize("action, kind", [*((action, "read") for action in READS.values()),
                                          *((action, "upload") for action in UPLOADS.values()),
                                          *((action, None) for action in FREE.values())],
                         ids=[*READS, *(f"upload {name}" for name in UPLOADS),
                              *(f"free {name}" for name in FREE)])
def test_waits_are_counted(device, action, kind):
    x = torch.ones(2, 3, device=HERE)
    with device.watch() as waits:
        action(x)
    assert {wait.kind for wait in waits} == ({kind} if kind else set())
    assert all(wait.place.startswith("tests/test_pretend_device.py:") for wait in waits)
    if kind:
        with device.no_waits(), pytest.raises(PretendDeviceError, match="the host waits"):
            action(x)


def test_masks_cost_one_more_wait_in_the_backward_pass(device):
    x = torch.ones(4, device=HERE, requires_grad=True)
    x[x > 0].sum().backward()
    assert device.count("read") == 2 and str(x.grad.device) == HERE


def generate(model, ae, where, progress=None, lengths=(5, 8), **settings):
    cond = torch.randn(len(lengths), 16, generator=torch.Generator().manual_seed(0)).to(where)
    settings = dict(time_steps=4, ode_steps=3, cfg=2.0) | settings
    return model.generate(ae, cond, torch.tensor(lengths), [1, 2], progress=progress, **settings)


def moved_pair(*args, **kwargs):
    model, ae = make_pair(*args, **kwargs)
    return model.to(HERE), ae.to(HERE)


@pytest.mark.parametrize("ae_name, head, settings", [
    *((name, "SiT", {}) for name in ("AE_Model", "FSQ_AE_High", "FSQ_AE_Learned", "FSQ_AE_Hybrid",
                                     "VQ_AE_Model", "VQ_AE_RVQ", "VQ_AE_SF_DiVeQ", "VQ_AE_Gumbel_Soft")),
    *(("FSQ_AE_High", "SiT", {"solver": solver}) for solver in ("euler", "midpoint", "heun")),
    ("FSQ_AE_High", "SiT", {"precision": "bf16"}), ("FSQ_AE_High", "SiT", {"hard_pseudo_reorder": True}),
    ("FSQ_AE_High", "SiT", {"cfg": 1.0}), ("FSQ_AE_High", "DDPM", {}),
    ("FSQ_AE_High", "SiT", {"cfg_interval": (0.2, 0.8), "cfg_schedule": "linear", "snap": "end"}),
    ("FSQ_AE_High", "Cat", {}), ("FSQ_AE_High", "CatAR", {}), ("FSQ_AE_High", "SiT1D", {}),
    ("FSQ_AE_High", "Distilled", {"cfg": 1.0, "ode_steps": 2}),
])
def test_the_generation_loop_never_waits(device, ae_name, head, settings):
    model, ae = moved_pair(ae_name, head)
    with device.watch() as before_the_loop:
        targets = generate(model, ae, HERE, device.each_without_waits, **settings)
    assert targets.shape == (2, 8, ae.target_dim) and str(targets.device) == HERE
    # the conditions, the padding and the solver's times, of which a head across frames keeps no table
    assert [wait.kind for wait in before_the_loop] == ["upload"] * (2 if head == "SiT1D" else 3)
    ae.decode_targets(targets, torch.tensor([20, 32]).to(HERE))


@pytest.mark.parametrize("head", ["CatAR", "Index"])
@pytest.mark.parametrize("settings", [{}, {"precision": "bf16"}])
def test_tokens_in_order_never_wait(device, head, settings):
    model, ae = (part.to(HERE) for part in make_gpt(head))
    cond = torch.randn(2, 8).to(HERE)
    lengths, here = torch.tensor([5, 8]), torch.tensor([5, 8]).to(HERE)
    targets = model.generate(ae, cond, lengths, [1, 2], progress=device.each_without_waits, cfg=2.0,
                             **settings)
    assert targets.shape == (2, 8, 3) and str(targets.device) == HERE
    with device.watch() as waits:
        model.train().loss(ae.embed_targets(targets), targets, cond, here).backward()
    assert [wait.kind for wait in waits] == ["read"]  # the places of the tokens, as in masked training


def test_editing_reads_once_which_tokens_are_known(device):
    model, ae = moved_pair()
    known = torch.zeros(2, 8, ae.target_dim, device=HERE), torch.arange(8, device=HERE).expand(2, 8) < 3
    with device.watch() as waits:
        generate(model, ae, HERE, device.each_without_waits, known=known)
    assert Counter(wait.kind for wait in waits) == {"upload": 3, "read": 1}


def test_generation_has_the_numbers_of_the_cpu(device):
    model, ae = make_pair("AE_Model")
    expected = generate(model, ae, "cpu")
    found = generate(model.to(HERE), ae.to(HERE), HERE).cpu()
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def reads(value):
    return value.any().item()


def takes_a_mask(value):
    return value[value != 0]


@pytest.mark.parametrize("place, name, change", [
    ("autoencoder", "snap", reads), ("autoencoder", "snap", torch.nonzero),
    ("autoencoder", "embed_targets", takes_a_mask), ("transformer", "forward", reads),
    ("transformer", "forward", takes_a_mask),
])
def test_a_wait_in_the_loop_is_found(device, place, name, change):
    model, ae = moved_pair()
    changed = {"autoencoder": ae, "transformer": model}[place]
    before = getattr(changed, name)
    setattr(changed, name, lambda x, *args, **kwargs: (change(x), before(x, *args, **kwargs))[1])
    generate(model, ae, HERE)  # no fault but that it is slow ...
    with pytest.raises(PretendDeviceError, match="the host waits for the device .read"):
        generate(model, ae, HERE, device.each_without_waits)


def test_an_upload_that_waits_in_the_loop_is_found(device, monkeypatch):
    monkeypatch.setattr(generation, "upload", lambda x, device: x.to(device))
    with pytest.raises(PretendDeviceError, match=r"upload: to\(device\)"):
        generate(*moved_pair(), HERE, device.each_without_waits)


@pytest.mark.parametrize("left_behind", ["uploads", "autoencoder", "mask token", "noise"])
def test_what_is_not_moved_is_found(device, monkeypatch, left_behind):
    model, ae = moved_pair()
    if left_behind == "uploads":
        monkeypatch.setattr(generation, "upload", lambda x, device: x)
    elif left_behind == "autoencoder":
        ae = make_pair()[1]
    elif left_behind == "mask token":
        model.mask_latent = torch.nn.Parameter(torch.zeros(1, 1, 32))
    else:
        source, cpu = generation.UnmaskingPlan.noise_source, torch.device("cpu")
        monkeypatch.setattr(generation.UnmaskingPlan, "noise_source",
                            lambda plan, sampled, dim, device: source(plan, sampled, dim, cpu))
    with pytest.raises(PretendDeviceError, match="mixes tensors of host and device"):
        generate(model, ae, HERE)


def test_an_adaptive_solver_waits(device):
    """dopri5 chooses its steps by what it finds: the one sampler that has to read."""
    with pytest.raises(PretendDeviceError, match="the host waits"):
        generate(*moved_pair(), HERE, device.each_without_waits, solver="dopri5")


# Reads of a step, by autoencoder, after the first: counters of steps that are part of the checkpoint.
STEP_READS = {"AE_Model": 0, "FSQ_AE_High": 0, "FSQ_AE_NoiseDropout": 0, "FSQ_AE_Learned": 0,
              "FSQ_AE_Hybrid": 0, "FSQ_AE_iFSQ_64x17_Norm": 0, "VQ_AE_Model": 0, "VQ_AE_SimVQ": 0,
              "VQ_AE_SF_DiVeQ": 0, "VQ_AE_EMA": 1, "VQ_AE_DiVeQ": 2, "VQ_AE_Gumbel_Diverse": 1}


@pytest.mark.parametrize("name, count", STEP_READS.items())
def test_a_step_of_an_autoencoder(device, name, count):
    ae = AE_models[name](width=16, latent_dim=16).to(HERE).train()
    motion = torch.randn(2, 40, 67, device=HERE)
    for _ in range(2):
        with device.watch() as waits:
            out = ae(motion)
            (F.smooth_l1_loss(out.motion, motion) + out.loss).backward()
    assert [wait.kind for wait in waits] == ["read"] * count, waits
    ae.eval()
    _, targets = ae.encode_targets(motion, torch.tensor([40, 20]).to(HERE))
    assert ae.snap(targets).isfinite().all()


@pytest.mark.parametrize("several", [False, True], ids=["one process", "one of two processes"])
@pytest.mark.parametrize("head", ["SiT", "DDPM", "Cat", "CatAR"])
def test_a_step_of_a_generator_reads_the_places_of_masked_tokens(device, head, several):
    model, ae = moved_pair(head=head)
    model.train()
    rows, generator = (slice(0, 2), torch.Generator(HERE)) if several else (slice(None), None)
    latents, targets = ae.encode_targets(torch.randn(2, 40, 67, device=HERE))
    lengths = torch.tensor([10, 8, 9, 10] if several else [10, 8]).to(HERE)
    cond = torch.randn(2, 16, device=HERE)
    with device.watch() as waits:
        model.loss(latents.detach(), targets.detach(), cond, lengths, rows, generator).backward()
    # of one of several processes also: which of all masked tokens are its own, their times, and their noise
    assert sum(wait.kind == "read" for wait in waits) == (4 - head.startswith("Cat") if several else 1)
    # the schedule of the diffusion
    assert sum(wait.kind == "upload" for wait in waits) == (head == "DDPM")


@pytest.mark.parametrize("make", [matching_evaluator, contrast_evaluator])
def test_released_evaluators(device, make):
    evaluator = move_evaluator(make())
    captions = [Caption("walk", ("walk/VERB",)), Caption("jump far", ("jump/VERB", "far/ADV"))]
    motion, lengths = torch.randn(2, 64, 67), torch.tensor([64, 40])
    for embedding in (evaluator.embed_text(captions), evaluator.embed_motion(motion, lengths),
                      evaluator.embed_motion(motion.to(HERE), lengths.to(HERE))):
        assert str(embedding.device) == HERE and len(embedding) == 2


def move_evaluator(evaluator):
    """The same evaluator, as its constructor would have put it on the device."""
    for network in evaluator.networks:
        network.to(HERE)
    evaluator.device = torch.device(HERE)
    evaluator.mean, evaluator.std = evaluator.mean.to(HERE), evaluator.std.to(HERE)
    return evaluator


def test_clips_with_the_published_tail(device):
    ae = AE_models["FSQ_AE_High"](width=16, latent_dim=16).to(HERE).eval()
    motions = [torch.randn(40, 67), torch.randn(60, 67)]
    with torch.no_grad():
        pairs = reconstruct_with_tail(ae, motions, np.zeros(67, np.float32), np.ones(67, np.float32), HERE)
    assert [(len(clip), len(long_clip)) for clip, long_clip in pairs] == [(40, 44), (60, 64)]


ON_DEMO = ["--dataset_name", "demo", "--device", HERE]
TRAIN = [*ON_DEMO, "--num_workers", "0", "--batch_size", "16", "--max_iter", "3", "--log_every", "100",
         "--clip_grad", "1"]
GENERATOR = ["--ae_name", "ae", "--ae_model", "FSQ_AE_High", "--model", "FSQ-MARDM-SiT-S", "--scale_targets",
             "--diffmlps_batch_mul", "1", "--precision", "auto"]
FAST = ["--time_steps", "2", "--ode_steps", "1"]


def fake_features(texts):
    """Features as wide as MiniLM's."""
    return torch.stack([torch.randn(384, generator=torch.Generator().manual_seed(sum(map(ord, text))))
                        for text in texts])


class Machine:
    """A folder with a demo set, in which scripts run on the pretend device."""

    def __init__(self, patch):
        self.steps = []  # waits of each training step, by the latest script
        step = trainer.Trainer._step

        def watched(*args):
            with self.device.watch() as waits:
                self.steps.append(waits)
                return step(*args)

        patch.setattr(trainer.Trainer, "_step", watched)

    def run(self, script, *flags, name=HERE):
        self.steps.clear()
        with PretendDevice(name) as self.device:
            assert call(script, *flags) == 0
        return self.device

    def waits_of_steps(self):
        """Of every training step but the first: {file of the place: how many}."""
        assert len(self.steps) > 1
        return [Counter(wait.place.split(":")[0] for wait in waits) for waits in self.steps[1:]]


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    root = tmp_path_factory.mktemp("machine")
    build_demo(root / "datasets" / "demo", num_clips=240)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for module in ("models.TextEncoder", "sample"):
            patch.setattr(f"{module}.load_text_encoder", lambda *_args: FakeEncoder(fake_features))
        yield Machine(patch)


@pytest.fixture(scope="module")
def trained(machine):
    """A run of every training script; {script: waits of its training steps}."""
    waits = {}
    for script, *flags in [
            ("train_AE", "--name", "ae", "--model", "FSQ_AE_High", "--width", "16", "--aux_loss_root", "1"),
            ("train_evaluator", "--name", "evaluator", "--width", "32"),
            ("train_length_estimator", "--name", "length_estimator"),
            ("train_MARDM", "--name", "mardm", *GENERATOR)]:
        machine.run(script, *flags, *TRAIN)
        waits[script] = machine.waits_of_steps()
    return waits


@pytest.mark.parametrize("script", ["train_AE", "train_evaluator", "train_length_estimator"])
def test_training_steps_do_not_wait(trained, script):
    assert trained[script] == [{}, {}]


def test_training_steps_of_the_generator(trained):
    for waits in trained["train_MARDM"]:  # masked tokens; targets of new crops, which are kept on the host
        assert set(waits) <= {"models/DiffMLPs.py", "train_MARDM.py"}
        assert waits["models/DiffMLPs.py"] == 1 and waits["train_MARDM.py"] <= 1


def test_checkpoints_of_the_device_load_on_the_host(trained):
    content = torch.load("checkpoints/demo/mardm/model/latest.tar", weights_only=True)
    assert all(value.device.type == "cpu" for value in content["mardm"].values())
    assert content["total_it"] == 3 and content["args"]["device"] == HERE


def test_training_resumes(machine, trained):
    machine.run("train_evaluator", "--name", "evaluator", "--width", "32", *TRAIN, "--max_iter", "5",
                "--is_continue")
    assert machine.waits_of_steps() == [{}]
    assert torch.load("checkpoints/demo/evaluator/model/latest.tar", weights_only=True)["total_it"] == 5


@pytest.mark.parametrize("name", [HERE, "cuda"])
def test_sampling(machine, trained, name):
    folder = name.replace(":", "")
    device = machine.run("sample", "--name", "mardm", *ON_DEMO, "--device", name, "--text_prompt", "walk",
                         "--repeat_times", "3", "--no_video", "--output_dir", folder, *FAST, name=name)
    assert len(list(Path(folder).rglob("*.npy"))) == 3
    assert device.count("read") < 9  # mean and std; the finished clips, and their codes, of all at once


def test_editing(machine, trained):
    np.save("clip.npy", walk(SKELETONS["t2m"], 60))
    device = machine.run("edit", "--name", "mardm", *ON_DEMO, "--source_motion", "clip.npy", "-msec", "20,40",
                         "--text_prompt", "jump", "--no_video", "--output_dir", "edited", *FAST)
    clip, = Path("edited").rglob("*.npy")
    assert np.array_equal(np.load(clip)[:20], np.load("clip.npy")[:20])
    assert device.count("read") < 9  # which tokens are known, the finished clips, and their codes


def test_evaluation_of_the_autoencoder(machine, trained):
    machine.run("evaluation_AE", "--name", "ae", *ON_DEMO, "--num_workers", "0")
    results = json.loads(Path("checkpoints/demo/ae/eval/evaluation_AE.json").read_text())
    assert results["metrics"]["FID"] > 0 and results["codes"]["codes_used"] > 0


def test_analysis_of_the_codes(machine, trained):
    machine.run("scripts.analyze_codes", "--name", "ae", *ON_DEMO, "--samples", "8", "--num_workers", "0")
    results = json.loads(Path("checkpoints/demo/ae/eval/analyze_codes.json").read_text())
    assert len(results["axes"]) == len(results["topology"]["axes"]) == 6


def test_evaluation_of_the_generator(machine, trained):
    device = machine.run("evaluation_MARDM", "--name", "mardm", *ON_DEMO, "--num_workers", "0", "--repeats",
                         "1", "--time_steps", "1", "--ode_steps", "1", "--probe_repeats", "1")
    results = json.loads(Path("checkpoints/demo/mardm/eval/evaluation_MARDM.json").read_text())
    assert results["scores"]["generated"]["FID"]["mean"] > 0 and results["probes"]["rate"] >= 0
    assert results["machine"].startswith("pretend accelerator")
    assert device.count("read", "models/generation.py") == 0
