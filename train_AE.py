"""Stage one: train a motion autoencoder.

    python train_AE.py --name FSQ_AE_High --model FSQ_AE_High --dataset_name t2m --batch_size 256 --epoch 50
    python train_AE.py --name AE --model FSQ_AE_High --dataset_name demo --width 192    # laptop
    python train_AE.py ... --need_evaluation     # keeps the model of the lowest FID, not of the lowest MPJPE
    python train_AE.py --name iFSQ --model FSQ_AE_Model --quantizer ifsq --fsq_levels 9 9 9 9 9 9 9 9
    python train_AE.py --name RVQ --model VQ_AE_Model --quantizer rvq --quantizer_settings num_layers=4
    python train_AE.py --name AE_tolerant --finetune_decoder AE --latent_noise 0.3 --dataset_name demo
    python train_AE.py --name AE_mine --finetune checkpoints/demo/demo_AE --dataset_name mine

Writes checkpoints/<dataset>/<name>/model/{latest.tar, best.tar, events.out.tfevents.*} and train.log.
best.tar, also called net_best_fid.tar, is the model of the lowest MPJPE on the validation split; with
--need_evaluation that of the lowest FID.
"""
import math
from functools import partial

import torch
import torch.nn.functional as F

from models.AE import FSQ_REACH, AE_models, has_grid
from models.loading import autoencoder_settings, load_autoencoder, reach_of, target_hashes
from models.quantizers import QUANTIZERS, settings_of
from models.TextEncoder import cached_text_features
from utils import options
from utils.arrays import upload
from utils.data.datasets import MotionStore, WindowDataset, make_loader, statistics_of
from utils.data.specs import get_spec
from utils.errors import UserError, run
from utils.evaluation.protocols import TextClips
from utils.evaluation.reconstruction import (
    heading_error,
    reconstruct,
    reconstruction_errors,
    reconstruction_scores,
)
from utils.evaluation.scoring import check_evaluation
from utils.evaluation.suites import add_suite, load_suite
from utils.files import RunFolder
from utils.options import fraction, non_negative_float, non_negative_int, positive_float, positive_int
from utils.training import distributed
from utils.training.codes import CodeUse
from utils.training.finetuning import Parent, check_beginning
from utils.training.settings import seed_everything, start_training
from utils.training.trainer import make_trainer

# Flags that begin with another run, and what a checkpoint calls it.
BEGINNINGS = {"finetune": "finetuned_from", "finetune_decoder": "decoder_of"}
# Flags that say what the model is, with defaults. With one of BEGINNINGS its run says it.
OF_MODEL = {"model": "AE_Model", "width": 512, "dropout": 0.2, "fsq_levels": None, "fsq_normalise": None,
            "fsq_reach": None, "num_codes": None, "code_dim": None, "direct": None, "quantizer": None,
            "quantizer_settings": []}


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="AE")
    options.add_training(parser, batch_size=256, epoch=50, lr=2e-4, weight_decay=0.0, warm_up_iter=2000,
                         milestones=[150_000, 250_000], log_every=10)
    options.add_large_models(parser)
    add_suite(parser)
    add = parser.add_argument
    add("--model", type=options.row_of(AE_models), default=None,
        help=f"autoencoder of the model zoo (docs/zoo.md); default: AE_Model. {', '.join(AE_models)}")
    add("--fsq_levels", type=positive_int, nargs="+", default=None,
        help="FSQ_AE_Model: levels per dimension; default: 8 5 5 5 5")
    add("--fsq_normalise", action="store_true", default=None,
        help="FSQ_AE_Model: normalise z to mean 0 and standard deviation 1 before quantizing")
    add("--fsq_reach", type=positive_float, default=None,
        help="FSQ_AE_*: half the width of the grid as encoder and decoder see it (with --fsq_normalise the "
             f"decoder only); targets keep their range; default: {FSQ_REACH:g}; 1 = as published")
    add("--num_codes", type=positive_int, default=None, help="VQ_AE_Model: codebook size; default: 512")
    add("--code_dim", type=positive_int, default=None, help="VQ_AE_Model: width of a code; default: --width")
    add("--direct", action="store_true", default=None,
        help="FSQ_AE_Model, VQ_AE_Model: no linear layers around the quantizer, whose input is the latent")
    add("--quantizer", choices=list(QUANTIZERS), default=None,
        help="quantizer of FSQ_AE_Model (default: fsq) or VQ_AE_Model (default: vq). gumbel is "
             "Gumbel-softmax VQ, which some documents call DiVeQ; diveq and sf_diveq are the DiVeQ of "
             "arXiv 2509.26469, another method")
    add("--quantizer_settings", nargs="+", default=None, metavar="NAME=VALUE",
        help="its hyper-parameters: " + "; ".join(filter(None, map(settings_help, QUANTIZERS))))
    add("--width", type=positive_int, default=None,
        help="channels of the convolutions and the latent; default: 512")
    add("--dropout", type=fraction, default=None, help="dropout of the residual blocks; default: 0.2")
    add("--window_size", type=positive_int, default=64, help="frames per training window")
    add("--recons_loss", choices=["l1_smooth", "mse"], default="l1_smooth", help="reconstruction loss")
    add("--aux_loss_joints", type=non_negative_float, default=1.0, help="weight of the joint position loss")
    add("--aux_loss_root", type=non_negative_float, default=0.0,
        help="weight of the loss on the accumulated heading and root path (not in the published model)")
    add("--latent_noise", type=non_negative_float, default=0.0,
        help="Gaussian noise on the targets that the decoder reads in training, in standard deviations of "
             "each of their dimensions")
    options.add_finetune(parser)
    add("--finetune_decoder", default=None, metavar="RUN",
        help="as --finetune, but train the decoder alone, so that generators that were trained on RUN go "
             "with the new one too")
    add("--need_evaluation", action="store_true",
        help="compute FID, R-precision, matching score and diversity of reconstructions on the validation "
             "split (Val/FID ...), and keep the lowest FID as best.tar and net_best_fid.tar, in place of the "
             "lowest MPJPE (Val/MPJPE)")
    add("--eval_every", type=positive_int, default=5, help="epochs between validations")
    add("--eval_steps", type=non_negative_int, default=0,
        help="also validate every so many steps, for data whose epochs are long; 0 = after epochs only")
    args = parser.parse_args()
    given = [name for name in OF_MODEL if getattr(args, name) is not None]
    parents = [flag for flag in BEGINNINGS if getattr(args, flag) is not None]
    if len(parents) == 2:
        parser.error("--finetune and --finetune_decoder: pass one")
    if not parents:
        vars(args).update({name: value for name, value in OF_MODEL.items() if name not in given})
    elif given:
        parser.error(f"--{given[0]}: the model is that of --{parents[0]} {getattr(args, parents[0])}; leave "
                     "the flag out")
    return args


def settings_help(name):
    settings = " ".join(f"{key}={value}" for key, value in settings_of(name).items())
    return settings and f"{name}: {settings}"


# Flags of the models whose quantizer is free: {flag: constructor's argument}.
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
        settings = parse_settings(args.quantizer, args.quantizer_settings)
        kwargs |= {"quantizer": args.quantizer, "settings": settings}
    elif args.quantizer_settings:
        raise UserError("--quantizer_settings belongs to --quantizer, which is not given")
    return kwargs


def reach_kwargs(args, began):
    """{"reach"} of a grid, {} for 1, as in checkpoints from before the flag. ``began``: the checkpoint of the
    run to be resumed, which keeps its own reach unless --fsq_reach is given; {} for a new run."""
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
        kind = type(known[key])
        try:
            settings[key] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
            if kind is not str and not math.isfinite(settings[key]):
                raise ValueError
        except (ValueError, KeyError) as error:
            where = f"--quantizer_settings {pair}"
            raise UserError(f"{where}: '{text}' is not a usable {kind.__name__}") from error
    return settings


def new_model(args, spec, began):
    """An autoencoder (fresh weights), and what checkpoints say of it. ``began``: see ``reach_kwargs``."""
    kwargs = model_kwargs(args, spec.feature_dim) | reach_kwargs(args, began)
    seed_everything(args.seed)
    return AE_models[args.model](**kwargs), {"model_name": args.model, "model_kwargs": kwargs}


def model_to_finetune(args, spec):
    """The autoencoder of the run to begin with, what checkpoints say of it, and its statistics (None in
    released files). With --finetune_decoder only the decoder trains. UserError if the data set's features are
    not those that it reads."""
    parent = Parent(args.finetune or args.finetune_decoder, "ae", args, spec.name)
    model, content = load_autoencoder(parent.path)
    name, kwargs = autoencoder_settings(content, parent.path)
    if kwargs["input_width"] != spec.feature_dim:
        raise UserError(f"{parent.path} reads {kwargs['input_width']} features, {spec.name} has "
                        f"{spec.feature_dim}: it is of another skeleton")
    seed_everything(args.seed)
    described = {"model_name": name, "model_kwargs": kwargs}
    if args.finetune:
        return model, described | parent.record, statistics_of(content)
    beginning = {"name": args.finetune_decoder, "hashes": target_hashes(model, content)}
    return model.train_decoder_only(), described | {"decoder_of": beginning}, statistics_of(content)


def make_loss(args, store, device, codes=None):
    """The loss function: all features, joint positions again, and, if weighted, heading and root path. Counts
    what the quantizer chooses in ``codes``, a CodeUse."""
    compare = {"l1_smooth": F.smooth_l1_loss, "mse": F.mse_loss}[args.recons_loss]
    joints = slice(4, store.spec.feature_dim)
    mean, std = (torch.as_tensor(value, device=device) for value in (store.mean, store.std))

    def loss_fn(model, motion):
        motion = upload(motion, device)
        out = model(motion, args.latent_noise)
        if codes:
            codes.add(out.indices)
        values = {"recons": compare(out.motion, motion),
                  "joints": compare(out.motion[..., joints], motion[..., joints]), "quantizer": out.loss}
        values["loss"] = values["recons"] + args.aux_loss_joints * values["joints"] + out.loss
        if args.aux_loss_root:
            motions = out.motion * std + mean, motion * std + mean
            values["root"] = heading_error(*motions, store.spec.metres_per_unit)
            values["loss"] = values["loss"] + args.aux_loss_root * values["root"]
        return values

    return loss_fn


def load_judges(args, spec, statistics, device):
    """The EvaluatorSuite and the validation split's TextClips of --need_evaluation, None without it.
    UserError, with the way out, where there is no evaluator or there are too few clips."""
    if not args.need_evaluation:
        return None, None
    try:
        suite = load_suite(args, spec, partial(cached_text_features, spec.text_encoder, folder=spec.root),
                           device=device)
        clips = TextClips(spec, "val", args.num_workers, suite.columns, statistics=statistics)
        check_evaluation(suite, clips.captions, retrieval_groups(suite, clips), len(clips))
    except UserError as error:
        raise UserError(f"--need_evaluation: {error}; without this flag the lowest MPJPE is kept") from error
    return suite, clips


def retrieval_groups(suite, clips):
    """Which validation clips share captions, where that matters to retrieval."""
    return clips.groups if clips.store.spec.distinct_retrieval and not suite.released else None


def make_score_check(model, suite, clips, seed):
    """A function that scores the model's reconstructions: {"Val/FID", "Val/R1" ...}."""
    drawn = clips.whole(seed)

    def check():
        scores = reconstruction_scores(suite, model, clips, lambda _repeat: drawn, (1, seed),
                                       retrieval_groups(suite, clips))
        return {f"Val/{key}": value["mean"] for key, value in scores["generated"].items()}

    return check


def main():
    args = parse_args()
    device = start_training(args.device)
    if args.window_size % 4:
        raise UserError(f"--window_size {args.window_size} must be a multiple of 4")
    with distributed.first_goes_ahead():
        spec = get_spec(args.dataset_name, args.dataset_dir)
        folder = RunFolder(args.checkpoints_dir, spec.name, args.name)
        began = folder.read_latest() if args.is_continue and folder.states() else {}
        check_beginning(args, began, folder.latest, BEGINNINGS)
        finetunes = args.finetune or args.finetune_decoder
        model, described, statistics = (model_to_finetune(args, spec) if finetunes
                                        else (*new_model(args, spec, began), None))
        model.to(device)
        suite, clips = load_judges(args, spec, statistics, device)
        folder.prepare(args.is_continue)
        store, val_store = (MotionStore(spec, split, args.num_workers, statistics=statistics)
                            for split in ("train", "val"))
    loader = make_loader(WindowDataset(store, args.window_size), args.batch_size, args.seed, args.num_workers)
    describe = {"kind": "ae", **described, "dataset": spec.describe(),
                "mean": torch.as_tensor(store.mean), "std": torch.as_tensor(store.std)}
    metric = suite.tag("Val/FID") if suite else "Val/MPJPE"
    trainer = make_trainer(args, folder, "ae", model, describe, metric, root=spec.root,
                           parents={"evaluators": suite.describe()} if suite else {})
    if model.codebook_size and not args.finetune_decoder:
        trainer.codes = CodeUse(model.quantizer, device)
    if not args.finetune_decoder:
        model.plan(min(args.max_iter or math.inf, args.epoch * len(loader)) * args.accumulate)
    if args.compile:
        model.compile()
    if args.is_continue:
        trainer.resume(began)
    if options.checked():
        return
    folder.log(f"best.tar, which is net_best_fid.tar too, is the model of the lowest {metric}")
    check = make_score_check(model, suite, clips, args.seed) if suite else dict

    def validate(epoch, now):
        if not now and (epoch + 1) % args.eval_every:
            return {}
        errors = reconstruction_errors(reconstruct(model, val_store, device), spec)
        return {"Val/MPJPE": errors["MPJPE"], "Val/MPJPE_facing": errors["MPJPE_facing"], **check()}

    trainer.fit(loader, make_loss(args, store, device, trainer.codes), args.epoch, validate)


if __name__ == "__main__":
    run(main)
