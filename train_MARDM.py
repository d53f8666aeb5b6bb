"""Stage two: train the masked transformer and its diffusion head on the targets of a trained autoencoder.

    python train_MARDM.py --name FSQ_MARDM --ae_name FSQ_AE_High --ae_model FSQ_AE_High \\
        --model FSQ-MARDM-SiT-XL --dataset_name t2m --batch_size 64 --epoch 500 --need_evaluation
    python train_MARDM.py --name small --ae_name AE --ae_model FSQ_AE_High --model FSQ-MARDM-SiT-S \\
        --dataset_name demo --num_workers 0                                            # laptop
    python train_MARDM.py ... --cond_mode action    # or uncond
    python train_MARDM.py ... --model FSQ-GPT-S     # tokens in order: the autoregressive control

Writes checkpoints/<dataset>/<name>/model/{latest.tar, best.tar, events.out.tfevents.*} and train.log.
"""
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F

from models.AE import AE_models
from models.CategoricalHead import grid_of
from models.heads import HEADS
from models.loading import load_autoencoder, target_hashes, trained_as, weights_hash
from models.MARDM import MARDM_models, check_pair
from models.pipeline import Pipeline, clip_seed
from models.TextEncoder import cached_text_features, text_reader
from utils import options
from utils.arrays import upload
from utils.data.conditions import COND_MODES, load_conditions
from utils.data.datasets import caption_groups, collate_clips, load_text_motion, make_loader, statistics_of
from utils.data.specs import get_spec
from utils.errors import UserError, only_check, run, say
from utils.evaluation.protocols import Drawn
from utils.evaluation.scoring import check_evaluation, evaluate, without_text
from utils.evaluation.suites import add_suite, load_suite
from utils.files import RunFolder
from utils.lengths import MAX_LENGTH
from utils.options import fraction, positive_int
from utils.training import distributed
from utils.training.finetuning import check_beginning, find_parent
from utils.training.settings import seed_everything, start_training
from utils.training.trainer import EMA, make_trainer

CACHE_BYTES = 2**30
SCALE_BATCHES = 32  # that --scale_targets measures


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="MARDM")
    options.add_training(parser, batch_size=64, epoch=500, lr=2e-4, weight_decay=1e-5, warm_up_iter=2000,
                         milestones=[50_000], log_every=50)
    options.add_large_models(parser)
    options.add_finetune(parser)
    add_suite(parser)
    add = parser.add_argument
    add("--model", type=options.row_of(MARDM_models), default="MARDM-SiT-XL",
        help=f"generator of the model zoo (docs/zoo.md). {', '.join(MARDM_models)}")
    add("--ae_name", default="AE", help="--name of the autoencoder's run")
    add("--ae_model", type=options.row_of(AE_models), default=None,
        help="autoencoder of the model zoo; default: as trained")
    add("--cond_mode", choices=COND_MODES, default="text",
        help="condition: a clip's text, its action (labels.json), or none")
    add("--need_evaluation", action="store_true",
        help="compute FID and R-precision on the validation split during training, and keep the best FID")
    add("--eval_every", type=positive_int, default=10, help="epochs between validations")
    add("--max_motion_length", type=options.number(int, 4), default=196, help="most frames per training clip")
    add("--unit_length", type=positive_int, default=4, help="frames per token (fixed by the autoencoder)")
    add("--diffmlps_batch_mul", type=positive_int, default=4,
        help="(noise, time) pairs per masked token and step")
    add("--prediction", choices=["velocity", "x", "noise"], default=None,
        help="what the head predicts: velocity (default of SiT) or x, the clean target (default of SiT1D); "
             "noise of DDPM")
    for flag, what in (("layers", "blocks of the transformer"), ("head_depth", "blocks of the head"),
                       ("head_width", "width of the head")):
        add(f"--{flag}", type=positive_int, default=None, help=f"{what}; default: those of --model")
    add("--text_cond", choices=["pooled", "tokens"], default="pooled",
        help="how a text is read: as one feature of the whole, or word by word too, by cross-attention")
    add("--word_drop_prob", type=fraction, default=0.0,
        help="--text_cond tokens: probability to leave out a word in training")
    add("--cond_drop_prob", type=fraction, default=0.1, help="probability to drop a condition, for guidance")
    add("--dropout", type=fraction, default=0.2, help="dropout of the transformer")
    add("--count_from_end", action="store_true",
        help="count positions from a clip's end for MARDM-* too; all others always do")
    add("--scale_targets", action="store_true",
        help="divide the targets by their standard deviation over all tokens and dimensions, to match the "
             "scale of the head's noise (the published models do not)")
    add("--ema_decay", type=fraction, default=0.9999, help="decay of the averaged weights")
    args = parser.parse_args()
    if args.unit_length != 4:
        parser.error("--unit_length must be 4: the autoencoders make one token of 4 frames")
    return args


class TargetCache:
    """The autoencoder's targets of training crops, computed once: crops start at few places, so after some
    epochs nearly all are cached, and a crop's targets do not depend on its batch."""

    def __init__(self, ae, device, capacity=CACHE_BYTES):
        self.ae, self.device, self.room, self.known = ae, device, capacity, {}

    @torch.no_grad()
    def __call__(self, batch):
        """Targets (B, L, d) of a collated batch, zeros after each clip's end."""
        new = [row for row, key in enumerate(batch["keys"]) if key not in self.known]
        found = {}
        if new:
            frames = batch["lengths"][new]
            motion = upload(batch["motion"][new][:, : int(frames.max())], self.device)
            with torch.autocast(self.device.type, enabled=False):  # float32 codes, in any training precision
                encoded = self.ae.encode_targets(motion, upload(frames, self.device))[1].cpu()
            for row, targets in zip(new, encoded):
                found[row] = targets[: int(batch["lengths"][row]) // 4].clone()
                self._remember(batch["keys"][row], found[row])
        rows = [found[row] if row in found else self.known[key] for row, key in enumerate(batch["keys"])]
        return upload(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), self.device)

    def _remember(self, key, targets):
        size = targets.numel() * targets.element_size() + 500  # and Python's overhead
        if self.room >= size:
            self.known[key] = targets
            self.room -= size


def std_of_targets(ae, data, device):
    """Standard deviation of the targets of some training clips, over all tokens and dimensions; the same in
    all processes."""
    cache = TargetCache(ae, device, capacity=0)
    loader = make_loader(data, min(32, len(data)), 0, 0, data.lengths, collate_clips, whole=True)
    found = torch.cat([targets[:length] for batch in islice(loader, SCALE_BATCHES)
                       for targets, length in zip(cache(batch).cpu(), batch["lengths"] // 4)])
    if not float(found.std(0).max()) > 0:
        raise UserError("--scale_targets: the autoencoder has the same target for every token; train it "
                        "further")
    return distributed.mean_of({"std": float(found.std())})["std"]


def make_loss(ae, device):
    """The loss function of a batch, or of this process' rows of one; ``whole``: all processes hold the same
    batch."""
    cache = TargetCache(ae, device)

    def loss_fn(model, batch, whole=False):
        rows, generator = (distributed.LocalBatch() if whole
                           else distributed.local_batch(len(batch["lengths"]), device))
        # of all processes' clips
        lengths = (batch["lengths"] if whole else distributed.all_gather(batch["lengths"])) // 4
        targets = cache(batch)
        targets = F.pad(targets, (0, 0, 0, int(lengths.max()) - targets.shape[1]))
        latents = ae.embed_targets(targets)
        return {"loss": model.loss(latents, targets, upload(batch["cond"], device), upload(lengths, device),
                                   rows, generator)}

    return loss_fn


@torch.no_grad()
def validation_loss(model, loss_fn, loader):
    """Mean loss over a loader, with the same masks, noise and times at every call."""
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        values = [float(loss_fn(model, batch, whole=True)["loss"]) for batch in loader]
    return sum(values) / len(values)


def make_generation_check(suite, data, groups, ae, ema, args, device):
    """A function that scores the averaged model's clips, one for the first caption (or the action) of each
    validation clip. groups: (N,) numbers of which a retrieval batch holds each once, or None."""
    captions = [entry.captions[0] for entry in data.entries]
    conditional = args.cond_mode != "uncond"
    cond = data.features[[rows[0] for rows in data.caption_rows]] if conditional else None
    cfg = data.store.spec.cfg if conditional else 1.0
    frames = [min(int(length), args.max_motion_length, MAX_LENGTH) // 4 * 4 for length in data.lengths]
    real = suite.rebuilt([data.store.frames(e.clip, e.start, e.start + count)
                          for e, count in zip(data.entries, frames)])
    drawn = Drawn(captions, frames, real)
    seeds = [clip_seed(args.seed, caption.text, index) for index, caption in enumerate(captions)]
    pipeline = Pipeline(ema.model, ae, data.store.mean, data.store.std, device)
    decode = pipeline.decode_with_tail if suite.published_tail else None

    def generate(_repeat, _drawn):
        clips = pipeline.sample(cond, frames, seeds, decode=decode, turns=distributed.turns, cfg=cfg)
        return distributed.gather_turns(clips)

    def check():
        scores = evaluate(suite, lambda _repeat: drawn, generate, 1, args.seed, groups)["generated"]
        scores = scores if conditional else without_text(scores)
        return {f"Val/{key}": value["mean"] for key, value in scores.items()}

    return check


def main():
    args = parse_args()
    device = start_training(args.device)
    if args.ae_model:
        check_pair(args.model, args.ae_model)
    needs_grid = "grid" in HEADS[MARDM_models[args.model].keywords["head"]].settings
    with distributed.first_goes_ahead():
        spec = get_spec(args.dataset_name, args.dataset_dir)
        encode = partial(cached_text_features, spec.text_encoder, folder=spec.root)
        if args.word_drop_prob and args.text_cond != "tokens":
            raise UserError("--word_drop_prob: words are read with --text_cond tokens only")
        if args.scale_targets and needs_grid:
            raise UserError("--scale_targets: a categorical head predicts classes, which have no scale")
        if args.text_cond == "tokens" and args.cond_mode != "text":
            raise UserError("--text_cond tokens: the generator reads no text; it goes with --cond_mode text")
        read = partial(text_reader(args.text_cond), spec.text_encoder, folder=spec.root)
        conditions = load_conditions(args.cond_mode, spec, read)
        suite = load_suite(args, spec, encode, device=device) if args.need_evaluation else None
        ae_path = RunFolder(args.checkpoints_dir, spec.name, args.ae_name).checkpoint()
        ae, ae_checkpoint = load_autoencoder(ae_path, args.ae_model)
        args.ae_model = trained_as(ae_checkpoint)
        check_pair(args.model, args.ae_model)
        ae = ae.to(device).requires_grad_(False)
        parent = find_parent(args, "mardm", spec.name)
        folder = RunFolder(args.checkpoints_dir, spec.name, args.name)
        folder.prepare(args.is_continue)
        data, val_data = (load_text_motion(spec, split, conditions, args.num_workers, args.max_motion_length,
                                           statistics_of(ae_checkpoint)) for split in ("train", "val"))
    began = folder.read_latest() if args.is_continue else {}
    check_beginning(args, began, folder.latest)
    if args.scale_targets:  # once per run, as devices round differently; before seeding, so as not to draw
        scale = began.get("model_kwargs", {}).get("target_scale") or (
            1.0 if only_check() else std_of_targets(ae, data, device))
    seed_everything(args.seed)
    kwargs = {"ae_dim": ae.latent_dim, "target_dim": ae.target_dim, "cond_mode": args.cond_mode,
              "cond_dim": data.features.shape[1], "num_actions": len(conditions.actions),
              **({"word_dim": data.features.word_dim, "word_drop_prob": args.word_drop_prob,
                  "word_positions": True}
                 if args.text_cond == "tokens" else {}),
              "dropout": args.dropout, "cond_drop_prob": args.cond_drop_prob,
              "diffmlps_batch_mul": args.diffmlps_batch_mul, "prediction": args.prediction,
              **{name: getattr(args, name) for name in ("layers", "head_depth", "head_width")
                 if getattr(args, name)},
              **({"grid": grid_of(ae.quantizer)} if needs_grid else {}),
              **({"count_from_end": True} if args.count_from_end else {}),
              **({"target_scale": scale} if args.scale_targets else {})}
    model = MARDM_models[args.model](**kwargs).to(device)
    if parent:
        parent.hand_over(model, {"model_name": args.model, "model_kwargs": kwargs})
        if parent.content.get("trained_on", {}).get("hash") not in target_hashes(ae, ae_checkpoint):
            say(f"note: {parent.path} was trained on another autoencoder than {ae_path}; its targets differ")
    ema = EMA(model, args.ema_decay)
    if args.compile:
        model.DiffMLPs.net.compile(dynamic=True)  # the number of masked tokens changes from step to step
    describe = {"kind": "mardm", "model_name": args.model, "model_kwargs": kwargs, "dataset": spec.describe(),
                "mean": torch.as_tensor(data.store.mean), "std": torch.as_tensor(data.store.std),
                "levels": list(ae.levels) if ae.levels else None,
                "trained_on": {"name": args.ae_name, "model_name": args.ae_model, "hash": weights_hash(ae)},
                **(parent.record if parent else {}),
                **conditions.describe(data.store, data.entries, args.max_motion_length)}
    metric = suite.tag("Val/FID") if suite else "Val/loss"
    trainer = make_trainer(args, folder, "mardm", model, describe, metric, ema, spec.root,
                           {"evaluators": suite.describe()} if suite else {})
    if args.is_continue:
        trainer.resume(began)
    loader = make_loader(data, args.batch_size, args.seed, args.num_workers, data.lengths, collate_clips)
    val_loader = make_loader(val_data, min(args.batch_size, len(val_data)), 0, 0, val_data.lengths,
                             collate_clips, whole=True)
    groups = caption_groups(val_data.entries) if spec.distinct_retrieval else None
    if suite:
        check_evaluation(suite, [entry.captions[0] for entry in val_data.entries], groups)
    if options.checked():
        return
    loss_fn = make_loss(ae, device)
    check = make_generation_check(suite, val_data, groups, ae, ema, args, device) if suite else dict

    def validate(epoch, now):
        if not now and (epoch + 1) % args.eval_every:
            return {}
        return {"Val/loss": validation_loss(ema.model, loss_fn, val_loader), **check()}

    trainer.fit(loader, loss_fn, args.epoch, validate)


if __name__ == "__main__":
    run(main)
