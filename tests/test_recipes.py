"""The recipes in docs/results/recipes: every row is one that scripts.study takes. And what generators are
trained on in scripts.ablation, every kind of codebook, can be generated."""
import pytest
import torch
from conftest import ROOT

from models.AE import AE_models
from models.MARDM import MARDM_models, check_pair
from scripts.study import TRAIN, parse, read_study

FILES = sorted((ROOT / "docs/results/recipes").glob("*.json"))
CODEBOOKS = ("VQ_AE_EMA", "VQ_AE_DiVeQ", "VQ_AE_SF_DiVeQ", "VQ_AE_Gumbel", "VQ_AE_Gumbel_Annealed_Soft",
             "VQ_AE_PQ", "VQ_AE_RVQ")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recipe_parses(path):
    common, rows = read_study(path)
    for name, row in rows.items():
        args = parse(name, ["evaluation_MARDM.py", *common["evaluate"], *row.evaluate, "--name", "x"])
        assert args.name == "x"
        if row.script == TRAIN:
            args = parse(name, [TRAIN, *common["train"], *row.flags, "--name", "x"])
            check_pair(args.model, args.ae_model)


@pytest.mark.parametrize("ae_model", CODEBOOKS)
def test_a_generator_of_each_codebook(ae_model):
    """A step of training and a generation, tiny; targets come out as the autoencoder snaps them."""
    torch.manual_seed(0)
    ae = AE_models[ae_model](width=32, latent_dim=32).train()
    motion = torch.randn(4, 32, 67)
    ae(motion)  # codebooks start from the first batch
    latents, targets = ae.eval().encode_targets(motion)
    model = MARDM_models["VQ-MARDM-SiT-S"](ae_dim=32, target_dim=ae.target_dim, cond_dim=8, width=32, ff=32,
                                           layers=1, heads=2, head_width=32, head_depth=1)
    loss = model.loss(latents, targets, torch.randn(4, 8), torch.tensor([8, 8, 8, 8]))
    loss.backward()
    assert torch.isfinite(loss) and model.DiffMLPs.net.input_proj.weight.grad is not None
    made = model.eval().generate(ae, torch.randn(2, 8), torch.tensor([8, 6]), [0, 1], time_steps=2,
                                 ode_steps=1, cfg=2.0)
    assert made.shape == (2, 8, ae.target_dim) and torch.allclose(ae.snap(made[:1]), made[:1], atol=1e-5)
