"""Train the length estimator, which predicts from a sentence how many frames its motion lasts.

    python train_length_estimator.py --dataset_name t2m
    python train_length_estimator.py --dataset_name demo --epoch 30 --num_workers 0        # laptop

Writes checkpoints/<dataset>/<name>/model/{latest.tar, best.tar}, for sample.py's prompts without a length.
"""
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from models.LengthEstimator import LengthEstimator
from models.TextEncoder import text_reader
from utils import options
from utils.arrays import upload
from utils.data.conditions import LENGTH_CLASSES
from utils.data.datasets import MotionStore, all_captions, make_loader, report_skipped, text_clips
from utils.data.specs import get_spec
from utils.errors import run
from utils.files import RunFolder
from utils.text_condition import TextCondition, stack_conditions
from utils.training import distributed
from utils.training.finetuning import check_beginning, find_parent
from utils.training.settings import seed_everything, start_training
from utils.training.trainer import make_trainer


class LengthDataset(Dataset):
    """(what is read of the text: (C,), or a row of a WordTable; length class ()) of every caption."""

    def __init__(self, spec, split, num_workers, text_cond="pooled"):
        store = MotionStore(spec, split, num_workers)
        entries, dropped = text_clips(store)
        report_skipped(dropped, f"{spec.name}/{split} (text-to-motion)")
        self.features = text_reader(text_cond)(spec.text_encoder, [c.text for c in all_captions(entries)],
                                               spec.root)
        classes = [(entry.end - entry.start) // spec.unit_length for entry in entries for _ in entry.captions]
        self.ids = [store.ids[entry.clip] for entry in entries for _ in entry.captions]
        self.classes = torch.tensor(classes).clamp(max=LENGTH_CLASSES - 1)

    def __len__(self):
        return len(self.classes)

    def clip_id(self, index):
        return self.ids[index]

    def __getitem__(self, key):
        return self.features[key[0]], self.classes[key[0]]


def parse_args():
    parser = options.make_parser(__doc__)
    options.add_common(parser, name="length_estimator")
    options.add_training(parser, batch_size=64, epoch=50, lr=1e-4, weight_decay=1e-5, warm_up_iter=0,
                         milestones=[50_000], log_every=50)
    options.add_finetune(parser)
    add = parser.add_argument
    add("--text_cond", choices=["pooled", "tokens"], default="pooled",
        help="how a text is read: as one feature of the whole, or word by word too")
    add("--soft_lengths", type=options.non_negative_float, default=0.0,
        help="standard deviation of label smoothing over lengths, in tokens; 0 = none, as published")
    add("--text_noise", type=options.non_negative_float, default=0.0,
        help="noise on the text features in training, relative to their RMS; for small data sets")
    return parser.parse_args()


def collate(samples):
    """Conditions of a batch, and length classes (B,)."""
    text, classes = zip(*samples)
    return stack_conditions(list(text)), torch.stack(classes)


def length_loss(logits, classes, soft):
    """Cross entropy () of logits (B, C) and length classes (B,), smoothed over ``soft`` classes."""
    if not soft:
        return F.cross_entropy(logits, classes)
    distance = torch.arange(logits.shape[1], device=logits.device) - classes[:, None]  # (B, C)
    return F.cross_entropy(logits, (-0.5 * (distance / soft) ** 2).softmax(-1))


def main():
    args = parse_args()
    device = start_training(args.device)
    with distributed.first_goes_ahead():
        spec = get_spec(args.dataset_name, args.dataset_dir)
        folder = RunFolder(args.checkpoints_dir, spec.name, args.name)
        parent = find_parent(args, "estimator", spec.name)
        folder.prepare(args.is_continue)
        data, val_data = (LengthDataset(spec, split, args.num_workers, args.text_cond)
                          for split in ("train", "val"))
    began = folder.read_latest() if args.is_continue else {}
    check_beginning(args, began, folder.latest)
    seed_everything(args.seed)
    words = {"word_dim": data.features.word_dim} if args.text_cond == "tokens" else {}
    model = LengthEstimator(data.features.shape[1], LENGTH_CLASSES, **words).to(device)
    if parent:
        parent.hand_over(model, {})
    describe = {"kind": "length_estimator", "dataset": spec.describe(), **(parent.record if parent else {})}
    trainer = make_trainer(args, folder, "estimator", model, describe, root=spec.root)
    if args.is_continue:
        trainer.resume(began)
    loader = make_loader(data, args.batch_size, args.seed, args.num_workers, collate_fn=collate)
    val_loader = DataLoader(val_data, args.batch_size, sampler=[(row,) for row in range(len(val_data))],
                            collate_fn=collate)
    if options.checked():
        return

    def disturb(features):
        return features + args.text_noise * features.square().mean().sqrt() * torch.randn_like(features)

    def loss_fn(model, batch):
        text, classes = (upload(part, device) for part in batch)
        if args.text_noise:
            if args.text_cond == "tokens":  # states of words have unit size
                words = text.words + args.text_noise * torch.randn_like(text.words)
                text = TextCondition(disturb(text.pooled), words, text.mask)
            else:
                text = disturb(text)
        return {"loss": length_loss(model(text), classes, args.soft_lengths)}

    @torch.no_grad()
    def validate(_epoch, _last):
        logits = torch.cat([model(upload(text, device)).cpu() for text, _ in val_loader])
        off = (logits.argmax(1) - val_data.classes).abs().float().mean() * spec.unit_length
        return {"Val/loss": float(F.cross_entropy(logits, val_data.classes)), "Val/frames_off": float(off)}

    trainer.fit(loader, loss_fn, args.epoch, validate)


if __name__ == "__main__":
    run(main)
