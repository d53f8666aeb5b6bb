"""Train the evaluator of a data set without a released one: text and motion in one space, by contrast.

    python train_evaluator.py --dataset_name demo --num_workers 0

Writes checkpoints/<dataset>/<name>/model/{latest.tar, best.tar}; evaluation_AE.py, evaluation_MARDM.py and
train_MARDM.py --need_evaluation use it. It never sees a generated clip.
"""
import copy
from functools import partial

import numpy as np
import torch

from models.TextEncoder import cached_text_features
from utils import options
from utils.arrays import upload
from utils.data.conditions import Conditions
from utils.data.datasets import caption_groups, collate_clips, load_text_motion, make_loader, statistics_of
from utils.data.specs import get_spec
from utils.errors import run
from utils.evaluation.evaluators import ContrastiveEvaluator, TrainedEvaluator, embed_all
from utils.evaluation.scoring import draw_batches, retrieval_scores
from utils.files import RunFolder
from utils.training import distributed
from utils.training.finetuning import check_beginning, find_parent
from utils.training.settings import seed_everything, start_training
from utils.training.trainer import make_trainer


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="evaluator")
    options.add_training(parser, batch_size=64, epoch=60, lr=5e-4, weight_decay=1e-2, warm_up_iter=100,
                         milestones=[50_000], log_every=20)
    options.add_finetune(parser)
    parser.add_argument("--width", type=options.positive_int, default=192,
                        help="channels of the motion encoder")
    parser.add_argument("--eval_every", type=options.positive_int, default=5,
                        help="epochs between validations")
    return parser.parse_args()


def retrieval_check(evaluator, data, seed):
    """``retrieval_scores`` of a split's real clips, over 10 draws of batches; {} if they fill no batch."""
    captions = [entry.captions[0] for entry in data.entries]
    motions = [data.store.frames(e.clip, e.start, e.end) for e in data.entries]
    text, motion = evaluator.embed_text(captions).double().cpu().numpy(), embed_all(evaluator, motions)
    groups = caption_groups(data.entries) if data.store.spec.distinct_retrieval else None
    rng = np.random.default_rng(seed)
    batches = [rows for _ in range(10) for rows in draw_batches(len(captions), rng, groups)]
    return retrieval_scores(text, motion, batches) if batches else {}


def main():
    args = parse_args()
    device = start_training(args.device)
    with distributed.first_goes_ahead():
        spec = get_spec(args.dataset_name, args.dataset_dir)
        folder = RunFolder(args.checkpoints_dir, spec.name, args.name)
        parent = find_parent(args, "evaluator", spec.name)
        folder.prepare(args.is_continue)
        encode = partial(cached_text_features, spec.text_encoder, folder=spec.root)
        conditions = Conditions("text", encode)
        statistics = statistics_of(parent.content) if parent else None
        data, val_data = (load_text_motion(spec, split, conditions, args.num_workers, statistics=statistics)
                          for split in ("train", "val"))
    began = folder.read_latest() if args.is_continue else {}
    check_beginning(args, began, folder.latest)
    seed_everything(args.seed)
    kwargs = {"feature_dim": spec.feature_dim, "text_dim": data.features.shape[1], "width": args.width}
    model = ContrastiveEvaluator(**kwargs).to(device)
    if parent:
        parent.hand_over(model, {"model_kwargs": kwargs})
    describe = {"kind": "evaluator", "model_kwargs": kwargs, "dataset": spec.describe(),
                "mean": torch.as_tensor(data.store.mean), "std": torch.as_tensor(data.store.std),
                **(parent.record if parent else {})}
    trainer = make_trainer(args, folder, "evaluator", model, describe, metric="Val/1-R3", root=spec.root)
    if args.is_continue:
        trainer.resume(began)
    loader = make_loader(data, args.batch_size, args.seed, args.num_workers, data.lengths, collate_clips)
    if options.checked():
        return
    groups = torch.as_tensor(caption_groups(data.entries))

    def loss_fn(model, batch):
        rows = upload(groups[distributed.all_gather(batch["index"])], device)
        motion, lengths, text = (upload(batch[key], device) for key in ("motion", "lengths", "cond"))
        loss = model.loss(motion, lengths, text, rows[:, None] == rows)
        return {"loss": loss}

    def validate(epoch, now):
        if not now and (epoch + 1) % args.eval_every:
            return {}
        frozen = copy.deepcopy(model)
        evaluator = TrainedEvaluator(frozen, data.store.mean, data.store.std, encode, device)
        scores = retrieval_check(evaluator, val_data, args.seed)
        if not scores:
            folder.log("no validation: the split's clips do not fill a retrieval batch of 32")
            return {}
        return {f"Val/{key}": value for key, value in scores.items()} | {"Val/1-R3": 1 - scores["R3"]}

    trainer.fit(loader, loss_fn, args.epoch, validate)


if __name__ == "__main__":
    run(main)
