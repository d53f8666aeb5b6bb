"""Stage one: train a motion autoencoder.

    python train_AE.py --name FSQ_AE_High --model FSQ_AE_High --dataset_name t2m --batch_size 256 --epoch 50
    python train_AE.py --name AE --model FSQ_AE_High --dataset_name demo --width 192 --batch_size 64 --num_workers 0   # laptop
    python train_AE.py --name iFSQ --model FSQ_AE_Model --quantizer ifsq --fsq_levels 9 9 9 9 9 9 9 9
    python train_AE.py --name RVQ --model VQ_AE_Model --quantizer rvq --code_dim 64 --quantizer_settings num_layers=4 decay=0.95

Writes checkpoints/<dataset>/<name>/model/{latest.tar, net_best_fid.tar, events.out.tfevents.*} and train.log
beside.
"""
import math

import torch
import torch.nn.functional as F

from models.AE import FSQ_REACH, AE_models, has_grid
from models.loading import reach_of
from models.quantizers import QUANTIZERS, settings_of
from utils import options
from utils.arrays import upload
from utils.data.datasets import MotionStore, WindowDataset, make_loader
from utils.data.specs import get_spec
from utils.errors import UserError, run
from utils.evaluation.reconstruction import heading_error, reconstruct, reconstruction_errors
from utils.files import RunFolder, read_checkpoint
from utils.training import distributed
from utils.training.settings import seed_everything, start
from utils.training.trainer import make_trainer


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="AE")
    options.add_training(parser, batch_size=256, epoch=50, lr=2e-4, weight_decay=0.0, warm_up_iter=2000,
                         milestones=[150_000, 250_000], log_every=10)
    options.add_large_models(parser)
    parser.add_argument("--model", choices=list(AE_models), default="AE_Model", help="autoencoder of the zoo")
    parser.add_argument("--fsq_levels", type=options.positive_int, nargs="+", default=None,
                        help="levels a dimension of FSQ_AE_Model (8 5 5 5 5 unless given)")
    parser.add_argument("--fsq_normalise", action="store_true", default=None,
                        help="for FSQ_AE_Model: bring z to mean 0 and spread 1 before the grid")
    parser.add_argument("--fsq_reach", type=options.positive_float, default=None,
                        help="for FSQ_AE_*: half the width of the grid "
                        f"as encoder and decoder see it (with --fsq_normalise the decoder alone); "
                        f"{FSQ_REACH:g} unless given, "
                        "1 = as published. Targets keep their range")
    parser.add_argument("--num_codes", type=options.positive_int, default=None,
                        help="codes of VQ_AE_Model (512 unless given)")
    parser.add_argument("--code_dim", type=options.positive_int, default=None,
                        help="dimensions of a code of VQ_AE_Model (as many as --width unless given)")
    parser.add_argument("--direct", action="store_true", default=None,
                        help="for FSQ_AE_Model or VQ_AE_Model: no linear layers "
                        "before and behind the quantizer; the latent is as wide as what is quantized")
    parser.add_argument("--quantizer", choices=list(QUANTIZERS), default=None,
                        help="quantizer of FSQ_AE_Model (fsq unless given) or VQ_AE_Model (vq unless given)")
    parser.add_argument("--quantizer_settings", nargs="+", default=[], metavar="NAME=VALUE",
                        help="its hyper-parameters: "
                        + "; ".join(filter(None, map(settings_help, QUANTIZERS))))
    parser.add_argument("--width", type=options.positive_int, default=512,
                        help="channels of the convolutions and the latent")
    parser.add_argument("--dropout", type=options.fraction, default=0.2,
                        help="dropout of the residual blocks")
    parser.add_argument("--window_size", type=options.positive_int, default=64,
                        help="frames of a training window")
    parser.add_argument("--recons_loss", choices=["l1_smooth", "mse"], default="l1_smooth",
                        help="reconstruction loss")
    parser.add_argument("--aux_loss_joints", type=options.non_negative_float, default=1.0,
                        help="weight of the loss on joint positions")
    parser.add_argument("--aux_loss_root", type=options.non_negative_float, default=0.0,
                        help="weight of the loss on the accumulated heading and root path (the published "
                             "model has none)")
    parser.add_argument("--eval_every", type=options.positive_int, default=5,
                        help="epochs between two validations")
    return parser.parse_args()


def settings_help(name):
    settings = " ".join(f"{key}={value}" for key, value in settings_of(name).items())
    return settings and f"{name}: {settings}"


# Flags of the rows that fix nothing, and what the models call them.
FREE = {"FSQ_AE_Model": {"fsq_levels": "levels", "fsq_normalise": "normalise", "direct": "direct"},
        "VQ_AE_Model": {"num_codes": "num_codes", "code_dim": "code_dim", "direct": "direct"}}


def model_kwargs(args, feature_dim):
    kwargs = {"input_width": feature_dim, "width": args.width, "latent_dim": args.width,
              "dropout": args.dropout}
    own = FREE.get(args.model, {})
    for flag in dict.fromkeys(flag for flags in FREE.values() for flag in flags):
        if getattr(args, flag) is not None:
            if flag not in own:
                owners = " or ".join(model for model, flags in FREE.items() if flag in flags)
                raise UserError(f"--{flag} belongs to --model {owners}; {args.model} fixes its own")
            kwargs[own[flag]] = getattr(args, flag)
    if args.quantizer is not None:
        if args.model not in FREE:
            raise UserError(f"--quantizer belongs to --model {' or '.join(FREE)}; {args.model} fixes its own")
        kwargs |= {"quantizer": args.quantizer,
                   "settings": parse_settings(args.quantizer, args.quantizer_settings)}
    elif args.quantizer_settings:
        raise UserError("--quantizer_settings belongs to --quantizer, which is not given")
    return kwargs


def reach_kwargs(args, began):
    """The reach of a grid; nothing for 1, like checkpoints from before it could be chosen. ``began``: the
    checkpoint of the run that is gone on with, or {}; unless told otherwise it keeps its own."""
    if not has_grid(args.model):
        if args.fsq_reach is not None:
            raise UserError(f"--fsq_reach belongs to --model FSQ_AE_*, not to {args.model}")
        return {}
    reach = args.fsq_reach or reach_of(began) or FSQ_REACH
    return {} if reach == 1 else {"reach": reach}


def parse_settings(name, pairs):
    """{setting: value} of NAME=VALUE texts, each of the type of the setting's default."""
    known, settings = settings_of(name), {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        if key not in known:
            raise UserError(f"--quantizer_settings {pair}: {name} has no setting '{key}'; it has "
                            f"{', '.join(known) or 'none'}")
        try:
            read = {"true": True, "false": False}.__getitem__ if isinstance(known[key],
                                                                            bool) else type(known[key])
            settings[key] = read(text.lower())
            if not math.isfinite(settings[key]):
                raise ValueError
        except (ValueError, KeyError) as error:
            raise UserError(
                f"--quantizer_settings {pair}: '{text}' is no usable {type(known[key]).__name__}") from error
    return settings


def make_loss(args, store, device):
    """The loss function: all features, joint positions once more, and, if asked for, heading and root
    path."""
    compare = {"l1_smooth": F.smooth_l1_loss, "mse": F.mse_loss}[args.recons_loss]
    joints = slice(4, store.spec.feature_dim)
    mean, std = (torch.as_tensor(value, device=device) for value in (store.mean, store.std))

    def loss_fn(model, motion):
        motion = upload(motion, device)
        out = model(motion)
        values = {"recons": compare(out.motion, motion),
                  "joints": compare(out.motion[..., joints], motion[..., joints]), "quantizer": out.loss}
        values["loss"] = values["recons"] + args.aux_loss_joints * values["joints"] + out.loss
        if args.aux_loss_root:
            values["root"] = heading_error(out.motion * std + mean, motion * std + mean,
                                           store.spec.metres_per_unit)
            values["loss"] = values["loss"] + args.aux_loss_root * values["root"]
        return values

    return loss_fn


def main():
    args = parse_args()
    device = start(args.device)
    if args.window_size % 4:
        raise UserError(f"--window_size {args.window_size} must be a multiple of 4")
    with distributed.first_goes_ahead():
        spec = get_spec(args.dataset_name, args.dataset_dir)
        kwargs = model_kwargs(args, spec.feature_dim)
        folder = RunFolder(args.checkpoints_dir, spec.name, args.name)
        began = read_checkpoint(folder.latest) if args.is_continue and folder.latest.is_file() else {}
        kwargs |= reach_kwargs(args, began)
        seed_everything(args.seed)
        model = AE_models[args.model](**kwargs).to(device)
        folder.prepare(args.is_continue)
        store, val_store = (MotionStore(spec, split, args.num_workers) for split in ("train", "val"))
    loader = make_loader(WindowDataset(store, args.window_size), args.batch_size, args.seed, args.num_workers)
    describe = {"kind": "ae", "model_name": args.model, "model_kwargs": kwargs, "dataset": spec.describe(),
                "mean": torch.as_tensor(store.mean), "std": torch.as_tensor(store.std)}
    trainer = make_trainer(args, folder, "ae", model, describe, metric="Val/MPJPE")
    if args.compile:
        model.compile()
    if args.is_continue:
        trainer.resume(began)

    def validate(epoch, last):
        if not last and (epoch + 1) % args.eval_every:
            return {}
        errors = reconstruction_errors(reconstruct(model, val_store, device), spec)
        return {"Val/MPJPE": errors["MPJPE"], "Val/MPJPE_facing": errors["MPJPE_facing"]}

    trainer.fit(loader, make_loss(args, store, device), args.epoch, validate)


if __name__ == "__main__":
    run(main)
