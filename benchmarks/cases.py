"""The cases of benchmarks.run: each times the plain and the fast variant of the same code. A case is a
function of the Bench that returns rows: dicts with what, plain, fast, unit, ratio, aim and note."""
import tempfile
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch

from benchmarks.meter import HeadMeter, product_speed, seconds
from benchmarks.plain import PlainEMA, plain_loss, plain_video
from models.AE import AE_models
from models.DiffMLPs import ODE_STEPS, SOLVER
from models.generation import mask_schedule
from models.MARDM import MARDM_models
from train_MARDM import make_loss
from utils.demo.dataset import make_clip
from utils.motion.skeletons import SKELETONS
from utils.training.settings import allow_tf32, autocast
from utils.training.trainer import EMA
from utils.visualize import render_many, render_video


class Bench:
    """The settings, models with random weights, and the speed of matrix products."""

    def __init__(self, args, device):
        self.args, self.device, self._made, self._speeds = args, device, {}, {}

    def speed(self, precision="fp32"):
        """GFLOP/s of a matrix product, measured once."""
        if precision not in self._speeds:
            allow_tf32(precision == "tf32")
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            self._speeds[precision] = product_speed(self.device, self.args.product_size, dtype)
        return self._speeds[precision]

    def pair(self, family, head="SiT"):
        """(generator, autoencoder) of a family, the only one kept: XL weights take 1 GB, packed 1 GB more."""
        if (family, head) not in self._made:
            self.release()
            torch.manual_seed(0)
            ae = AE_models["FSQ_AE_High" if family == "FSQ-MARDM" else "AE_Model"]().to(self.device).eval()
            model = MARDM_models[f"{family}-SiT-{self.args.size}"](
                ae_dim=ae.latent_dim, target_dim=ae.target_dim, head=head,
                distilled_cfg=self.args.cfg if head == "Distilled" else None)
            self._made[family, head] = randomize(model).to(self.device).eval(), ae.requires_grad_(False)
        return self._made[family, head]

    def release(self):
        self._made.clear()


@torch.no_grad()
def randomize(model):
    """Random weights in every matrix: an untrained model's adaLN-zero layers make its output 0, and every
    solver's work easy."""
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model


def row(what, plain, fast, unit="s", aim=None, note=""):
    return {"what": what, "plain": plain, "fast": fast, "unit": unit, "ratio": plain / fast, "aim": aim,
            "note": note}


def generate(bench, family, clips, meter=None, head="SiT", **settings):
    """Seconds to generate ``clips`` clips together."""
    (model, ae), args = bench.pair(family, head), bench.args
    cond = torch.randn(clips, model.cond_dim, generator=torch.Generator().manual_seed(0)).to(bench.device)
    lengths = torch.full((clips,), args.frames // 4)
    settings = {"time_steps": args.time_steps, "cfg": args.cfg} | settings
    with meter() if meter else nullcontext():
        return seconds(partial(model.generate, ae, cond, lengths, range(clips), **settings), bench.device)


def generate_plain(bench, family, clips, **settings):
    """Seconds of the reference sampler, its HeadMeter, and a note. With --plain_iterations only that many
    iterations, evenly spread, are run, and the seconds scaled up by the tokens of all iterations."""
    args, meter = bench.args, HeadMeter(bench.pair(family)[0], bench.device)
    chosen = np.linspace(0, args.time_steps - 1, args.plain_iterations or args.time_steps).round()
    chosen = sorted(set(chosen.astype(int).tolist()))
    took = generate(bench, family, clips, meter, sampler="reference", progress=lambda _: chosen, **settings)
    if len(chosen) == args.time_steps:
        return took, meter, ""
    counts = mask_schedule(args.frames // 4, args.time_steps)
    scale = sum(counts) / sum(counts[i] for i in chosen)
    meter.calls = round(meter.calls * args.time_steps / len(chosen))
    note = f"plain: {len(chosen)} of {args.time_steps} iterations measured, scaled by {scale:.2f}; "
    return took * scale, meter, note


def sampling(bench, family, clips, aim):
    """Rows of one batch: seconds of both samplers for each of --precisions. The continuous family has the
    same solver in both, FSQ the published solver against the default one."""
    args, rows = bench.args, []
    if family == "MARDM":
        plain_settings = fast_settings = {"solver": args.solver, "ode_steps": args.ode_steps}
        solvers = args.solver if args.solver == "dopri5" else f"{args.solver} {args.ode_steps} in both"
    else:
        plain_settings, fast_settings, solvers = {"solver": "dopri5"}, {}, f"dopri5 -> {SOLVER} {ODE_STEPS}"
    what = f"{'one clip' if clips == 1 else f'{clips} clips together'}, {family}-SiT-{args.size}, {solvers}"
    allow_tf32(False)
    plain, plain_meter, note = generate_plain(bench, family, clips, **plain_settings)
    for precision in args.precisions:
        allow_tf32(precision == "tf32")
        settings = fast_settings | {"precision": precision}
        generate(bench, family, clips, time_steps=2, **settings)  # warms up
        meter = HeadMeter(bench.pair(family)[0], bench.device)
        fast = generate(bench, family, clips, meter, **settings)
        share = meter.operations / meter.seconds / 1e9 / bench.speed(precision)
        made = row(f"{what}, {precision}", plain, fast, "s", aim if precision == "fp32" else None,
                   f"{note}{plain_meter.calls} -> {meter.calls} network calls, "
                   f"{1e-12 * meter.operations:.3g} TFLOP in the head, {meter.seconds:.3g} s of it")
        rows.append(made | {"share": share, "seconds_per_clip": fast / clips})
    return rows


def work(bench):
    """Token evaluations of the head per clip, counted."""
    counts = []
    for sampler in ("reference", "fast"):
        meter = HeadMeter(bench.pair("MARDM")[0], bench.device)
        generate(bench, "MARDM", 1, meter, sampler=sampler, ode_steps=1)
        counts.append(meter.tokens)
    return [row("head token evaluations per clip, same solver", *counts, "evaluations per solver step", 11)]


def batch(bench):
    """A batch of clips with the continuous model, same solver, and the head's share of the product speed."""
    clips, rows = bench.args.clips, sampling(bench, "MARDM", bench.args.clips, 9)
    for precision, made in zip(bench.args.precisions, list(rows)):
        speed = bench.speed(precision)
        rows.append({"what": f"head's share of the product speed, {clips} clips, {precision}", "plain": speed,
                     "fast": made["share"] * speed, "unit": "GFLOP/s", "ratio": made["share"],
                     "aim": 0.6 if precision == "fp32" else None,
                     "note": "plain: the measured matrix product"})
    return rows


def single(bench):
    """One clip with the continuous model, same solver."""
    return sampling(bench, "MARDM", 1, 4)


def fsq_batch(bench):
    """A batch of clips with the FSQ model: published solver against the default one."""
    return sampling(bench, "FSQ-MARDM", bench.args.clips, 30)


def fsq_single(bench):
    """One clip with the FSQ model: published solver against the default one."""
    return sampling(bench, "FSQ-MARDM", 1, 15)


def distilled(bench):
    """One clip with the FSQ model: the default solver against a distilled head of 4, 2 and 1 calls."""
    rows = []
    for precision in bench.args.precisions:
        allow_tf32(precision == "tf32")
        times = {}
        for head, calls in (("SiT", ODE_STEPS), ("Distilled", 4), ("Distilled", 2), ("Distilled", 1)):
            settings = {"head": head, "ode_steps": calls, "precision": precision}
            generate(bench, "FSQ-MARDM", 1, time_steps=2, **settings)  # warms up
            times[head, calls] = generate(bench, "FSQ-MARDM", 1, **settings)
        slow, *others = times.items()
        rows += [row(f"one clip, FSQ-MARDM-SiT-{bench.args.size}, {precision}: {SOLVER} {ODE_STEPS} -> "
                     f"distilled, {calls} call{'s' * (calls > 1)}", slow[1], took)
                 for (_, calls), took in others]
    return rows


def training_step(bench, variant, precision="fp32", compiled=False):
    """A function that does a training step; variant: "fast", or plain on "all tokens" or "masked tokens"."""
    args, device = bench.args, bench.device
    bench.release()  # another generator is trained
    torch.manual_seed(0)
    ae = AE_models["AE_Model"]().to(device).eval().requires_grad_(False)
    model = MARDM_models[f"MARDM-SiT-{args.size}"](ae_dim=ae.latent_dim, target_dim=ae.target_dim)
    model = model.to(device).train()
    count, fast = args.train_batch, variant == "fast"
    clips = {"motion": torch.randn(count, args.frames, 67), "lengths": torch.full((count,), args.frames),
             "cond": torch.randn(count, model.cond_dim), "keys": list(range(count))}
    # as large as CLIP ViT-B/32's text tower, with random weights
    layer = torch.nn.TransformerEncoderLayer(512, 8, 2048, 0.0, "gelu", batch_first=True, norm_first=True)
    tower = torch.nn.TransformerEncoder(layer, 12, enable_nested_tensor=False).to(device).eval()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-4, betas=(0.9, 0.99), fused=fast,
                                  foreach=None if fast else False)
    ema = EMA(model) if fast else PlainEMA(model)
    if compiled:
        model.DiffMLPs.net.compile(dynamic=True)
    loss_fn = make_loss(ae, device) if fast else partial(plain_values, ae, tower, device, variant)

    def step():
        torch.manual_seed(1)  # the same masks in every step, so that their times can be compared
        with autocast(precision, device):
            loss = loss_fn(model, clips)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        ema.update(model)

    return step


def plain_values(ae, tower, device, variant, model, batch):
    """The loss without caches: captions and motion are encoded in every step."""
    lengths = batch["lengths"].to(device)
    with torch.no_grad():
        cond = tower(torch.zeros(len(lengths), 77, 512, device=device))[:, -1, : model.cond_dim]
        latents, targets = ae.encode_targets(batch["motion"].to(device), lengths)
    loss = partial(plain_loss, model) if variant == "all tokens" else model.loss
    return {"loss": loss(latents, targets, cond, lengths // 4)}


def time_steps(bench, variant, precision="fp32", compiled=False):
    """Seconds per training step: the best of --train_steps, after one that fills caches."""
    allow_tf32(precision == "tf32")
    step = training_step(bench, variant, precision, compiled)
    step()
    return min(seconds(step, bench.device) for _ in range(bench.args.train_steps))


def train(bench):
    """A training step of the continuous model, without and with all that saves time."""
    every, masked = (time_steps(bench, variant) for variant in ("all tokens", "masked tokens"))
    rows = []
    for precision, compiled in product(bench.args.precisions, [False, True][: 1 + bench.args.compile]):
        fast = time_steps(bench, "fast", precision, compiled)
        what = f"MARDM-SiT-{bench.args.size} training step, batch {bench.args.train_batch}, {precision}"
        what += ", compiled" * compiled
        rows.append(row(what, every, fast, "s", 1.5 if precision == "fp32" and not compiled else None,
                        "plain: head on all tokens, captions and motion encoded in every step, loops for "
                        "AdamW and EMA"))
        rows.append(row(what + " (masked tokens in both)", masked, fast, "s", None,
                        "plain: as above, but the head on masked tokens only, as published"))
    return rows


def demo_clip(frames):
    """Joints (frames, 22, 3) of a walk forward and back, as often as needed."""
    clip = make_clip(["walk_forward"], np.random.default_rng(0))
    while len(clip) < frames:
        clip = np.concatenate([clip, clip[::-1]])
    return clip[:frames]


def drawing(bench):
    """An mp4 against matplotlib, and a batch of them in one process and in two."""
    joints, skeleton = demo_clip(bench.args.frames), SKELETONS["t2m"]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        job = {"joints": joints, "skeleton": skeleton, "fps": 20, "caption": "a person walks ahead"}
        render_video(path=folder / "warm.mp4", **job)
        fast, plain = (seconds(partial(draw, path=folder / "clip.mp4", **job), bench.device)
                       for draw in (render_video, plain_video))
        rows = [row(f"mp4 of {bench.args.frames} frames", plain, fast, "s", 10,
                    "plain: matplotlib, 1000 x 1000 pixels, as this field's code draws; fast: 480 x 540")]
        jobs = [job | {"path": folder / f"{i}.mp4"} for i in range(bench.args.videos)]
        if len(jobs) > 1:
            one, two = (seconds(lambda n=n: render_many(jobs, workers=n), bench.device) for n in (1, 2))
            rows.append(row(f"{len(jobs)} mp4 of {bench.args.frames} frames, 1 -> 2 processes", one, two))
    return rows


CASES = {case.__name__: case
         for case in (work, batch, single, fsq_batch, fsq_single, distilled, train, drawing)}
