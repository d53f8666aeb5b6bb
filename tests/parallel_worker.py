"""What tests/test_parallel.py runs in one or several processes: ``torchrun ... parallel_worker.py FOLDER
WHAT``."""
import importlib
import os
import signal
import sys
from pathlib import Path

import torch
from torch.utils.data import Dataset

import train_MARDM
from models.AE import AE, FSQ_AE, VQ_AE
from models.MARDM import MARDM
from utils import errors
from utils.data.datasets import collate_clips, make_loader
from utils.errors import UserError, is_first, run
from utils.evaluation.evaluators import ContrastiveEvaluator
from utils.files import RunFolder, read_checkpoint
from utils.training import distributed
from utils.training.settings import start
from utils.training.trainer import EMA, Trainer, TrainerSettings

GLOBAL_BATCH, DIM, TEXT, STEPS = 6, 7, 5, 5  # 3 batches per epoch, so the steps reach into the second


class Clips(Dataset):
    """20 clips of 4 to 40 frames. Some batches have clips with a single token, so that at times only one
    process has a masked token."""

    lengths = torch.tensor([8, 40, 12, 4, 16, 4, 4, 36, 20, 4] * 2)

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, key):
        index, seed = key
        generator, length = torch.Generator().manual_seed(seed % 2**31), int(self.lengths[index])
        return {"motion": torch.randn(length, DIM, generator=generator), "length": length, "index": index,
                "cond": torch.randn(TEXT, generator=generator), "key": (index, seed)}


def masked_transformer():
    torch.manual_seed(0)
    ae = AE(DIM, width=8, latent_dim=8, depth=1, dropout=0.0).eval().requires_grad_(False)
    torch.manual_seed(1)
    model = MARDM(ae_dim=8, target_dim=8, cond_dim=TEXT, width=16, ff=16, heads=2, dropout=0.0, head_width=16,
                  head_depth=1, cond_drop_prob=0.3, diffmlps_batch_mul=2)
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.2)  # adaLN-zero would leave most gradients at zero for some steps
    return model, train_MARDM.make_loss(ae, torch.device("cpu"))


def quantized_autoencoder(quantizer="vq", **settings):
    torch.manual_seed(1)
    return reconstructing(VQ_AE(DIM, num_codes=8, code_dim=4, width=8, latent_dim=8, depth=1, dropout=0.0,
                                quantizer=quantizer, settings=settings))


def normalised_grid():
    """Running means and standard deviations of z, which are not trained by gradients."""
    torch.manual_seed(1)
    return reconstructing(FSQ_AE(DIM, levels=(5, 5), quantizer="noise_dropout",
                                 settings={"keep": 1.0, "dither": 0.0}, normalise=True, width=8, latent_dim=8,
                                 depth=1, dropout=0.0))


def reconstructing(model):
    def loss_fn(model, batch):
        motion = batch["motion"][:, :4]  # windows: every clip has a token
        out = model(motion)
        return {"loss": (out.motion - motion).square().mean() + out.loss}

    return model, loss_fn


def contrastive_evaluator():
    torch.manual_seed(1)
    model = ContrastiveEvaluator(DIM, TEXT, embed_dim=8, width=8, layers=1, heads=2, dropout=0.0)

    def loss_fn(model, batch):
        groups = distributed.all_gather(batch["index"]) % 9
        return {"loss": model.loss(batch["motion"], batch["lengths"], batch["cond"],
                                   groups[:, None] == groups)}

    return model, loss_fn


def residual_autoencoder():
    """A codebook with everything but gradients: EMA, re-seeding, a random number of layers."""
    return quantized_autoencoder("rvq", num_layers=2, layer_dropout=0.5, reseed_every=2, dead_below=0.9)


def replacing_autoencoder():
    return quantized_autoencoder("diveq", noise_variance=0.0, replace_every=1)


MODELS = {"mardm": masked_transformer, "ae": quantized_autoencoder, "evaluator": contrastive_evaluator,
          "rvq": residual_autoencoder, "diveq": replacing_autoencoder, "norm": normalised_grid}


def train(folder, key, at_step=None):
    """Train STEPS steps, or resume the run in ``folder``. ``at_step``: function (step), called in each."""
    # in float64, rounding is far below the effect of a wrong gradient; quantizers always compute in float32
    torch.set_default_dtype(torch.float64 if key in ("mardm", "evaluator") else torch.float32)
    model, loss_fn = MODELS[key]()
    run_folder = RunFolder(folder, "numbers", key)
    resume = run_folder.latest.is_file()
    run_folder.prepare(resume)
    # AdamW would not notice a loss of the wrong scale
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9)
    settings = TrainerSettings(lambda step: 1e-2, seed=3, log_every=2, max_iter=STEPS)
    trainer = Trainer(run_folder, key, model, optimizer, settings, {}, EMA(model, 0.9))
    if resume:
        trainer.resume(read_checkpoint(run_folder.latest))

    def watched(model, batch):
        if at_step is not None:
            at_step(trainer.total_it)
        return loss_fn(model, batch)

    loader = make_loader(Clips(), GLOBAL_BATCH // distributed.size(), 3, 0, Clips.lengths.numpy(),
                         collate_clips)
    try:
        trainer.fit(loader, watched, 9, lambda epoch, last: {"Val/loss": 1.0 / (epoch + 1)})
    finally:
        torch.set_default_dtype(torch.float32)
    return trainer


def interrupt(step):
    """Ctrl-C that reaches only one process, or reaches it first."""
    if step == 1 and distributed.rank() == 1:
        signal.raise_signal(signal.SIGINT)


def crash(step):
    if step == 1 and distributed.rank() == 1:
        raise OSError("this process crashes")


def die(step):
    if step == 1 and distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def mistake(step):
    # one of the two processes is the first to claim it
    assert distributed.mean_of({"claims": float(errors.processes.claim(f"step {step}"))}) == {"claims": 0.5}
    if step == 1 and is_first():
        raise UserError("a mistake that the first process meets")


def call_scripts(lines):
    for line in lines:
        script, *arguments = line.split()
        sys.argv = [script, *arguments]
        importlib.import_module(script).main()


def main():
    folder, what = Path(sys.argv[1]), sys.argv[2]
    start("cpu")
    if what == "fit":
        for key in MODELS:
            try:
                train(folder, key, interrupt)
            except KeyboardInterrupt:
                train(folder, key)
    elif what == "scripts":
        call_scripts(sys.argv[3:])
    else:
        train(folder, "mardm", {"crash": crash, "die": die, "mistake": mistake}[what])


if __name__ == "__main__":
    run(main)
