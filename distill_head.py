"""Distil the diffusion head of a trained generator into one that needs 1, 2 or 4 calls of its network per
token, guidance included, in place of the solver's 16 steps with two branches each.

    python distill_head.py --teacher FSQ_MARDM --name FSQ_MARDM_fast --dataset_name t2m
    python distill_head.py --teacher demo_MARDM --name demo_fast --dataset_name demo --num_workers 0
    python sample.py --name demo_fast --dataset_name demo --ode_steps 1 --text_prompt "a person jumps"

The transformer stays as it is; the new head learns to jump along the paths of the old one's solver
(models/DistilledHead.py). Writes checkpoints/<dataset>/<name>/model/{latest.tar, best.tar}.
"""
from functools import partial

import torch

from models.DiffMLPs import SiTHead
from models.DistilledHead import DistilledHead, teacher_path
from models.generation import at_places, guidance_branches, padding_mask_of
from models.loading import check_same_autoencoder, load_autoencoder, load_generator, weights_hash
from models.MARDM import MARDM_models
from models.SiT1D import SiT1DHead
from models.TextEncoder import text_reader
from train_MARDM import TargetCache, validation_loss
from utils import options
from utils.arrays import upload
from utils.data.conditions import load_conditions
from utils.data.datasets import collate_clips, load_text_motion, make_loader, statistics_of
from utils.data.specs import get_spec
from utils.errors import UserError, run
from utils.files import RunFolder
from utils.options import positive_int
from utils.training import distributed
from utils.training.settings import seed_everything, start_training
from utils.training.trainer import EMA, make_trainer

# What a checkpoint says about its generator; the rest is the state of its training.
KEPT = ("kind", "model_name", "dataset", "mean", "std", "levels", "trained_on", "actions", "length_counts")


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="distilled")
    options.add_training(parser, batch_size=16, epoch=1000, lr=1e-3, weight_decay=0.0, warm_up_iter=100,
                         milestones=[1500], log_every=10)
    add = parser.add_argument
    add("--teacher", required=True, help="--name of the trained generator")
    add("--which", choices=["best", "latest"], default="best", help="its best.tar or its latest.tar")
    add("--ae_name", default=None, help="the autoencoder's --name; default: the teacher's")
    add("--cfg", type=options.non_negative_float, default=None,
        help="guidance scale that becomes part of the head; default: the data set's")
    add("--teacher_steps", type=positive_int, default=16, help="solver steps of the teacher, a multiple of 4")
    add("--tokens", type=positive_int, default=512, help="masked tokens per step and process")
    add("--eval_every", type=positive_int, default=10, help="epochs between validations")
    add("--ema_decay", type=options.fraction, default=0.995, help="decay of the averaged weights")
    return parser.parse_args()


def make_student(teacher, kwargs, name, cfg):
    """A MARDM with the teacher's weights and a DistilledHead that begins as the teacher's head."""
    head = teacher.DiffMLPs
    if not isinstance(head, SiTHead) or isinstance(head, (DistilledHead, SiT1DHead)):
        raise UserError(f"only a SiT head can be distilled; the teacher has a {type(head).__name__}")
    kwargs = kwargs | {"head": "Distilled", "distilled_cfg": cfg, "prediction": head.prediction}
    student = MARDM_models[name](**kwargs)
    student.load_state_dict(teacher.state_dict(), strict=False)  # all but the embedding of the interval
    student.requires_grad_(False)
    student.DiffMLPs.requires_grad_(True)
    return student, kwargs


def make_loss(teacher, ae, cfg, args, device):
    """The loss of the student on a batch: the contexts are those of the teacher's training."""
    cache = TargetCache(ae, device)

    @torch.no_grad()
    def paths(batch):
        """The teacher's paths (5, N, d) of N masked tokens, and their conditions (N, Z)."""
        targets, lengths = cache(batch), upload(batch["lengths"], device) // 4
        latents, padding = ae.embed_targets(targets), padding_mask_of(lengths, targets.shape[1])
        mask = teacher.draw_mask(padding)
        cond = upload(batch["cond"], device)
        branches = guidance_branches(teacher, teacher.corrupt(latents, mask), cond, padding, cfg, None)
        places = mask.flatten().nonzero()[:, 0]
        places = places[torch.randint(len(places), (args.tokens,), device=device)]
        z, z_uncond = (at_places(branch, places) for branch in branches)
        noise = torch.randn(args.tokens, targets.shape[2], device=device)
        return teacher_path(teacher.DiffMLPs, z, z_uncond, noise, cfg, args.teacher_steps), z

    def loss_fn(model, batch, whole=False):
        with torch.autocast(device.type, enabled=False):  # float32 paths, in any training precision
            states, z = paths(batch)
        return {"loss": model.DiffMLPs.path_loss(states, z, torch.rand(len(z), device=device))}

    return loss_fn


def load_teacher(args, spec):
    """(teacher, its checkpoint, its autoencoder)."""
    path = RunFolder(args.checkpoints_dir, spec.name, args.teacher).checkpoint(args.which)
    teacher, checkpoint = load_generator(path)
    if "model_kwargs" not in checkpoint or "trained_on" not in checkpoint:
        raise UserError(f"{path} does not describe its model and autoencoder, as released files do not; "
                        "distil a generator that was trained with this code")
    ae_name = args.ae_name or checkpoint["trained_on"]["name"]
    ae, ae_checkpoint = load_autoencoder(RunFolder(args.checkpoints_dir, spec.name, ae_name).checkpoint())
    check_same_autoencoder(checkpoint, ae, ae_checkpoint, path)
    return teacher, checkpoint, ae


def main():
    args = parse_args()
    device = start_training(args.device)
    if args.teacher_steps % 4:
        raise UserError(f"--teacher_steps {args.teacher_steps} must be a multiple of 4")
    with distributed.first_goes_ahead():
        spec = get_spec(args.dataset_name, args.dataset_dir)
        teacher, checkpoint, ae = load_teacher(args, spec)
        if args.cfg not in (None, 1) and teacher.cond_mode == "uncond":
            raise UserError("--cfg: guidance needs conditions, but the teacher was trained without")
        read = partial(text_reader(teacher.text_cond), spec.text_encoder, folder=spec.root)
        conditions = load_conditions(teacher.cond_mode, spec, read, checkpoint.get("actions", []))
        folder = RunFolder(args.checkpoints_dir, spec.name, args.name)
        folder.prepare(args.is_continue)
        data, val_data = (load_text_motion(spec, split, conditions, args.num_workers,
                                           statistics=statistics_of(checkpoint))
                          for split in ("train", "val"))
    cfg = 1.0 if teacher.cond_mode == "uncond" else spec.cfg if args.cfg is None else args.cfg
    seed_everything(args.seed)
    teacher, ae = teacher.to(device).requires_grad_(False), ae.to(device).requires_grad_(False)
    student, kwargs = make_student(teacher, checkpoint["model_kwargs"], checkpoint["model_name"], cfg)
    student = student.to(device)
    describe = {key: checkpoint[key] for key in KEPT if key in checkpoint} | {
        "model_kwargs": kwargs, "teacher": {"name": args.teacher, "hash": weights_hash(teacher)}}
    trainer = make_trainer(args, folder, "mardm", student, describe, ema=EMA(student, args.ema_decay),
                           root=spec.root)
    if args.is_continue:
        trainer.resume(folder.read_latest())
    loader = make_loader(data, args.batch_size, args.seed, args.num_workers, data.lengths, collate_clips)
    val_loader = make_loader(val_data, min(args.batch_size, len(val_data)), 0, 0, val_data.lengths,
                             collate_clips, whole=True)
    if options.checked():
        return
    loss_fn = make_loss(teacher, ae, cfg, args, device)

    def validate(epoch, now):
        if not now and (epoch + 1) % args.eval_every:
            return {}
        return {"Val/loss": validation_loss(trainer.ema.model, loss_fn, val_loader)}

    trainer.fit(loader, loss_fn, args.epoch, validate)


if __name__ == "__main__":
    run(main)
