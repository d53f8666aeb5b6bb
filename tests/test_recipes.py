"""The recipes in docs/results/recipes: every row is one that scripts.study takes, on an autoencoder that the
quantizer bench makes, and what the rows of codebooks.json are trained on can be generated."""
import shlex

import pytest
import torch
from conftest import ROOT

from models.AE import AE_models
from models.MARDM import MARDM_models, check_pair
from models.quantizers import QUANTIZERS
from scripts.study import TRAIN, parse, read_study

FOLDER = ROOT / "docs/results/recipes"
FILES = sorted(FOLDER.glob("*.json"))
CODEBOOKS = FOLDER / "codebooks.json"
ROWS = read_study(CODEBOOKS)[1]
TRAINED = {name: row for name, row in ROWS.items() if row.script == TRAIN}


def flags_of(row):
    """{flag: value} of a row's own training flags."""
    words = list(row.flags)
    return dict(zip(words[::2], words[1::2]))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recipe_parses(path):
    common, rows = read_study(path)
    for name, row in rows.items():
        args = parse(name, ["evaluation_MARDM.py", *common["evaluate"], *row.evaluate, "--name", "x"])
        assert args.name == "x"
        if row.script == TRAIN:
            args = parse(name, [TRAIN, *common["train"], *row.flags, "--name", "x"])
            check_pair(args.model, args.ae_model)


def test_codebooks_has_every_kind_that_some_document_calls_diveq():
    quantizers = {AE_models[flags_of(row)["--ae_model"]].keywords.get("quantizer") for row in TRAINED.values()
                  if "VQ" in flags_of(row)["--ae_model"]}
    assert {"diveq", "sf_diveq", "gumbel", "pq", "rvq", "ema"} <= quantizers <= set(QUANTIZERS)


@pytest.mark.parametrize("name", TRAINED)
def test_a_generator_of_each_codebook(name):
    """A step of training and a generation, tiny; targets come out as the autoencoder snaps them, and its
    autoencoder is the run that the bench names so."""
    flags = flags_of(TRAINED[name])
    ae_model = flags["--ae_model"]
    assert flags["--ae_name"] == f"bench_{ae_model}_3407"
    torch.manual_seed(0)
    ae = AE_models[ae_model](width=32, latent_dim=32).train()
    motion = torch.randn(4, 32, 67)
    ae(motion)  # codebooks start from the first batch
    latents, targets = ae.eval().encode_targets(motion)
    model = MARDM_models[flags["--model"]](ae_dim=32, target_dim=ae.target_dim, cond_dim=8, width=32, ff=32,
                                           layers=1, heads=2, head_width=32, head_depth=1)
    loss = model.loss(latents, targets, torch.randn(4, 8), torch.tensor([8, 8, 8, 8]))
    loss.backward()
    assert torch.isfinite(loss) and model.DiffMLPs.net.input_proj.weight.grad is not None
    made = model.eval().generate(ae, torch.randn(2, 8), torch.tensor([8, 6]), [0, 1], time_steps=2,
                                 ode_steps=1, cfg=2.0)
    assert made.shape == (2, 8, ae.target_dim) and torch.allclose(ae.snap(made[:1]), made[:1], atol=1e-5)


def test_the_page_gives_the_command_of_the_recipes():
    page = (ROOT / "docs/quantizers.md").read_text(encoding="utf-8")
    command = next(line for line in page.splitlines() if "study docs/results/recipes/codebooks.json" in line)
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "scripts.study"] and "--dataset_name" in words
