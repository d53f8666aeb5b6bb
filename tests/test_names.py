"""Names that users of MARDM's published code and of the earlier FSQ fork type, and what becomes of the fork's
checkpoints."""
import inspect

import numpy as np
import pytest
import torch
from conftest import ROOT, FakeEncoder
from tiny import FAST, call, enter, fake_features, walk, write_checkpoints

from models.AE import AE, FSQ_AE, AE_models, fsq_ae
from models.DiffMLPs import DDPMHead, DiffMLPs_models, SiTHead
from models.loading import load_autoencoder, load_pipeline
from models.MARDM import FSQ_MARDM, MARDM, SIZES, MARDM_models
from utils.errors import UserError
from utils.motion.features import features_to_joints
from utils.motion.skeletons import SKELETONS

SMALL = {"width": 32, "ff": 32, "layers": 1, "heads": 2, "head_width": 32, "head_depth": 1}
PROMPTS = ["he waves", "somebody walks in a circle", "he waves"]


def test_fsq_mardm_is_what_the_zoo_calls_so():
    sizes = {"ae_dim": 32, "target_dim": 6, "cond_dim": 16, **SMALL}
    ours, zoo = FSQ_MARDM(head="SiT", **sizes).eval(), MARDM_models["FSQ-MARDM-SiT-S"](**sizes).eval()
    assert isinstance(ours, MARDM) and ours.target_dim == 6
    ours.load_state_dict(zoo.state_dict())
    torch.manual_seed(0)
    padding = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]).bool()
    inputs = torch.randn(2, 5, 32), torch.randn(2, 16), padding
    for model in (ours, zoo):  # adaLN-zero starts with dead branches
        with torch.no_grad():
            model.input_process[0].weight.fill_(0.1)
    assert torch.equal(ours(*inputs), zoo(*inputs))
    plain = MARDM(head="SiT", **sizes).eval()
    plain.load_state_dict(ours.state_dict())
    assert not torch.allclose(ours(*inputs), plain(*inputs))  # positions from both ends


@pytest.mark.parametrize("name", DiffMLPs_models)
def test_heads_by_their_published_names(name):
    """Every published head is the one that the zoo's generator of that name has."""
    kind, size = name.split("-", 1)
    assert size in SIZES
    with torch.device("meta"):
        head = DiffMLPs_models[name](target_channels=7, z_channels=SIZES[size]["width"])
        zoo = MARDM_models[f"MARDM-{name}"](ae_dim=7, cond_dim=4).DiffMLPs
    assert type(head) is type(zoo) is {"SiT": SiTHead, "DDPM": DDPMHead}[kind]
    shapes = [{key: value.shape for key, value in one.state_dict().items()} for one in (head, zoo)]
    assert shapes[0] == shapes[1] and head.target_dim == 7


def test_the_published_head_has_its_published_size():
    with torch.device("meta"):
        head = DiffMLPs_models["SiT-XL"](target_channels=512, z_channels=1024)
    assert sum(value.numel() for value in head.parameters()) / 1e6 == pytest.approx(271, abs=2)


def test_fsq_ae():
    ae = fsq_ae(width=32, latent_dim=32)
    assert type(ae) is FSQ_AE and ae.levels == (8, 5, 5, 5, 5) and ae.codebook_size == 5000
    assert fsq_ae(levels=(5, 5), width=32, latent_dim=32).codebook_size == 25
    latents, out = ae.eval().encode_with_fsq_output(torch.randn(1, 16, 67))
    assert torch.equal(ae.decode(latents), ae.decode_from_fsq(out.z_q))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("names")
    write_checkpoints(root, "body22", SKELETONS["t2m"])
    return root


@pytest.fixture
def pipeline(runs, monkeypatch):
    monkeypatch.setattr("models.pipeline.load_text_encoder", lambda name: FakeEncoder(fake_features))
    places = (runs / f"checkpoints/body22/{name}/model/latest.tar" for name in ("mardm", "ae"))
    return load_pipeline(*places)[0]


QUICK = {"timesteps": 2, "cond_scale": 2.0, "ode_steps": 1}


def test_generate_with_strings_makes_what_sample_makes(runs, pipeline, tmp_path, monkeypatch):
    enter(runs, tmp_path, monkeypatch)
    flags = ["--name", "mardm", "--dataset_name", "body22", "--no_video", *FAST, "--seed", "5"]
    (tmp_path / "prompts.txt").write_text("he waves#40\nsomebody walks in a circle#48\n")
    assert call("sample", *flags, "--text_path", "prompts.txt") == 0
    latents = pipeline.generate(PROMPTS[:2], [10, 12], seed=5, **QUICK)
    assert latents.shape == (2, 32, 12) and (latents[0, :, 10:] == 0).all()
    motion = pipeline.ae.decode(latents, torch.tensor([10, 12])) * pipeline.std + pipeline.mean
    paths = sorted((tmp_path / "generation/mardm_body22").glob("*.npy"))
    for clip, frames, path in zip(motion, (40, 48), paths, strict=True):
        joints = features_to_joints(clip[:frames].detach(), 22).numpy()
        assert np.abs(joints - np.load(path)).max() < 1e-4  # metres


def test_generate_takes_features_and_tensors_and_repeats(pipeline):
    features = fake_features(PROMPTS)
    by_text = pipeline.generate(PROMPTS, torch.tensor([10, 12, 10]), **QUICK)
    assert not torch.equal(by_text[0], by_text[2])  # the same prompt again is another clip
    assert torch.equal(by_text, pipeline.generate(PROMPTS, [10, 12, 10], 2, 2.0, ode_steps=1))
    assert not torch.equal(by_text, pipeline.generate(PROMPTS, [10, 12, 10], seed=1, **QUICK))
    assert pipeline.generate(features, [10, 12, 10], **QUICK).shape == by_text.shape
    assert list(inspect.signature(pipeline.generate).parameters)[:4] == ["conds", "m_lens", "timesteps",
                                                                          "cond_scale"]


def test_generate_says_what_is_wrong(pipeline):
    with pytest.raises(UserError, match="got 2 and 3"):
        pipeline.generate(PROMPTS, [10, 12], **QUICK)
    pipeline.text_encoder = None
    with pytest.raises(UserError, match="name of its text encoder"):
        pipeline.generate(PROMPTS, [10, 12, 10], **QUICK)


def test_a_pipeline_knows_its_text_encoder(pipeline):
    assert pipeline.text_encoder == "minilm"


def test_the_conda_environment_has_the_published_name():
    assert "name: MARDM\n" in (ROOT / "environment.yml").read_text()
    assert "conda activate MARDM" in (ROOT / "docs/install.md").read_text()


def fork_file(path):
    """An autoencoder's checkpoint with the layers' names of the earlier fork, and nothing that describes
    it."""
    state = AE_models["FSQ_AE_High"](width=32, latent_dim=32).state_dict()
    for old, new in (("pre_quant", "pre_fsq"), ("post_quant", "post_fsq")):
        state = {key.replace(old, new): value for key, value in state.items()}
    path.parent.mkdir(parents=True)
    torch.save({"ae": state, "ep": 3, "total_it": 7}, path)
    return path


@pytest.mark.parametrize("model_name", [None, "AE_Model", "FSQ_AE_High"])
def test_the_forks_autoencoders_are_refused_with_the_way_out(tmp_path, model_name):
    path = fork_file(tmp_path / "old/model/latest.tar")
    with pytest.raises(UserError, match=r"earlier FSQ fork.*train_AE.py --model FSQ_AE_High") as error:
        load_autoencoder(path, model_name)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_the_forks_generators_are_refused_too(runs, tmp_path, capsys, monkeypatch):
    """They predict coordinates of the fork's grid; released ones, without a description as well, predict
    latents."""
    enter(runs, tmp_path, monkeypatch)
    before = (tmp_path / "checkpoints").resolve()
    (tmp_path / "checkpoints").unlink()
    folder = tmp_path / "checkpoints/body22/old/model"
    folder.mkdir(parents=True)
    content = torch.load(before / "body22/mardm/model/latest.tar", weights_only=True)
    torch.save({"ema_mardm": content["mardm"], "mardm": content["mardm"], "ep": 1}, folder / "latest.tar")
    (tmp_path / "checkpoints/body22/ae").symlink_to(before / "body22/ae")
    flags = ["--name", "old", "--ae_name", "ae", "--model", "FSQ-MARDM-SiT-S", "--dataset_name", "body22"]
    assert call("sample", *flags, "--text_prompt", "he waves", "--no_video", *FAST) == 2
    error = capsys.readouterr().err
    assert "earlier FSQ fork" in error and len(error.strip().splitlines()) == 1


def test_released_autoencoders_still_load(tmp_path):
    torch.manual_seed(0)
    ae, path = AE(67, width=32, latent_dim=24), tmp_path / "latest.tar"
    torch.save({"ae": ae.state_dict(), "ep": 3}, path)
    loaded, _ = load_autoencoder(path)
    motion = torch.as_tensor(walk(SKELETONS["t2m"], 16).reshape(1, 16, -1).repeat(2, -1)[..., :67])
    assert torch.equal(loaded(motion).motion, ae.eval()(motion).motion)
