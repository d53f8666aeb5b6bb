"""Train behaviour codes: windows of an inertial sensor -> one code -> the behaviour, and back to the signals.

    python train_behavior.py --name codes --dataset_name demo          # virtual sensors: needs no data
    python train_behavior.py --name codes --dataset_name imu_har       # made by scripts.prepare_imu
    python train_behavior.py --name ema --quantizer ema --dataset_name imu_har

A set of recordings has its own sensor, rate and windows. On a motion data set with labels.json, sensors are
put on the bones (--places), and a clip's behaviour is its label. Splits are the data set's: people, takes or
clips, never windows. Writes checkpoints/<dataset>/<name>/model/{latest.tar, best.tar}; evaluation_behavior.py
reports.
"""
import math

import torch
import torch.nn.functional as F

from models.Conv2dFSQ import NORMS, Conv2dFSQ
from models.quantizers import QUANTIZERS
from train_AE import parse_settings, settings_help
from utils import options
from utils.arrays import upload
from utils.data.datasets import make_loader
from utils.data.inertial import RATE, VIRTUAL, WINDOW, collate_windows, open_asked
from utils.data.recordings import LOWEST_RATE
from utils.errors import UserError, run
from utils.files import RunFolder
from utils.motion.inertial import PLACES
from utils.options import non_negative_float, number, positive_int
from utils.training import distributed
from utils.training.codes import CodeUse
from utils.training.settings import seed_everything, start_training
from utils.training.trainer import make_trainer

AT_ONCE = 256  # windows that validation computes together


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="behavior")
    options.add_training(parser, batch_size=64, epoch=40, lr=1e-3, weight_decay=1e-2, warm_up_iter=50,
                         milestones=[100_000], log_every=10)
    add = parser.add_argument
    add("--quantizer", choices=[*QUANTIZERS, "none"], default="fsq",
        help="of models/quantizers.py (ema: VQ whose codes follow running means), or none: the control, "
             "whose classifier reads numbers. Codebooks get the grid's dimensions and number of codes")
    add("--quantizer_settings", nargs="+", default=[], metavar="NAME=VALUE",
        help="its hyper-parameters: " + "; ".join(filter(None, map(settings_help, QUANTIZERS))))
    add("--fsq_levels", type=positive_int, nargs="+", default=[8, 6, 5, 5, 4],
        help="values per dimension of the grid")
    add("--codes_per_window", type=positive_int, default=1, help="codes that share a window's time")
    add("--norm", choices=list(NORMS), default="whiten",
        help="of the numbers that are quantized, by running statistics: whiten takes their correlation away, "
             "scale only gives each the same spread")
    add("--hidden_dim", type=positive_int, default=128, help="channels of the last convolution")
    add("--recons_weight", type=non_negative_float, default=0.1,
        help="weight of the loss on the signals that the decoder makes of the code")
    add("--rotate", type=number(float, 0, 180), default=0.0,
        help="degrees by which the sensor is turned in training at most, for sensors that are worn in any "
             "orientation")
    options.add_virtual_sensors(parser, VIRTUAL, PLACES)
    add("--rate", type=number(float, LOWEST_RATE), default=None,
        help=f"virtual sensors: samples per second; default: {RATE:g}")
    add("--window", type=number(int, 2), default=None,
        help=f"virtual sensors: samples per window; default: {WINDOW}")
    add("--eval_every", type=positive_int, default=1, help="epochs between validations")
    args = parser.parse_args()
    if args.places and len({*args.places}) < len(args.places):
        parser.error("--places names a place twice")
    return args


def make_model(args, spec):
    """The network with fresh weights, and its arguments."""
    settings = {} if args.quantizer == "none" else parse_settings(args.quantizer, args.quantizer_settings)
    if args.quantizer == "none" and args.quantizer_settings:
        raise UserError("--quantizer_settings belongs to a quantizer, and --quantizer is none")
    kwargs = {"input_channels": len(spec.channels), "hidden_dim": args.hidden_dim,
              "num_classes": len(spec.behaviors), "fsq_levels": args.fsq_levels, "quantizer": args.quantizer,
              "settings": settings, "window": spec.window, "tokens": args.codes_per_window, "norm": args.norm}
    seed_everything(args.seed)
    return Conv2dFSQ(**kwargs), kwargs


@torch.no_grad()
def validation(model, data, device):
    """{tag: value} of the windows of a split."""
    windows, labels = data.normalised(), torch.as_tensor(data.labels)
    outs = [model(upload(part, device)) for part in windows.split(AT_ONCE)]
    logits, decoded = (torch.cat([getattr(out, key).cpu() for out in outs]) for key in ("logits", "windows"))
    return {"Val/behavior": F.cross_entropy(logits, labels),
            "Val/accuracy": (logits.argmax(1) == labels).float().mean(),
            "Val/recons": F.smooth_l1_loss(decoded, windows)}


def main():
    args = parse_args()
    device = start_training(args.device)
    with distributed.first_goes_ahead():
        sensors = open_asked(args)
        folder = RunFolder(args.checkpoints_dir, sensors.name, args.name)
        began = folder.read_latest() if args.is_continue and folder.states() else {}
        model, kwargs = make_model(args, sensors.spec)
        folder.prepare(args.is_continue)
        data = sensors.split("train", rotate=args.rotate)
        val_data = sensors.split("val", (data.mean, data.std))
    model.to(device)
    describe = {"kind": "behavior", "model_name": "Conv2dFSQ", "model_kwargs": kwargs,
                "dataset": sensors.described, "sensors": sensors.spec.describe(),
                "mean": torch.as_tensor(data.mean), "std": torch.as_tensor(data.std)}
    trainer = make_trainer(args, folder, "behavior", model, describe, "Val/behavior", root=sensors.root)
    if args.quantizer != "none":
        trainer.codes = CodeUse(model.quantizer, device)
    loader = make_loader(data, args.batch_size, args.seed, args.num_workers, collate_fn=collate_windows)
    model.plan(min(args.max_iter or math.inf, args.epoch * len(loader)))
    if args.is_continue:
        trainer.resume(began)
    if options.checked():
        return

    def loss_fn(model, batch):
        windows, labels = (upload(batch[key], device) for key in ("windows", "labels"))
        out = model(windows)
        if trainer.codes:
            trainer.codes.add(out.indices)
        values = {"behavior": F.cross_entropy(out.logits, labels),
                  "recons": F.smooth_l1_loss(out.windows, windows), "quantizer": out.loss}
        values["loss"] = values["behavior"] + args.recons_weight * values["recons"] + out.loss
        return values

    def validate(epoch, now):
        return {} if not now and (epoch + 1) % args.eval_every else validation(model, val_data, device)

    trainer.fit(loader, loss_fn, args.epoch, validate)


if __name__ == "__main__":
    run(main)
