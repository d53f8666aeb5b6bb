"""Files in the published formats, with random weights: they load at any size, and both published protocols
run on them."""
import json
import pickle
import shlex
import shutil
from argparse import Namespace

import cv2
import numpy as np
import pytest
import torch
from conftest import FakeEncoder
from tiny import call

import sample
from models import TextEncoder
from models.AE import AE
from models.LengthEstimator import LengthEstimator
from models.loading import generator_sizes, load_generator
from models.MARDM import MARDM, SIZES, MARDM_models
from models.pipeline import Pipeline
from models.TextEncoder import clip_tokenizer
from utils.data.specs import KNOWN, get_spec
from utils.data.writing import write_statistics
from utils.errors import UserError
from utils.evaluation import evaluators, scoring
from utils.evaluation.protocols import TextClips, compare_results
from utils.evaluation.suites import EvaluatorSuite, load_suite, rebuild
from utils.motion.features import joints_to_features
from utils.motion.skeletons import SKELETONS

CAPTIONS = ("a person walks forward#a/DET person/NOUN walk/VERB forward/ADV#0.0#0.0",
            "someone waves the left arm#someone/PRON wave/VERB the/DET left/ADJ arm/NOUN#0.0#0.0",
            "he jumps#he/PRON jump/VERB#0.0#0.0")
WORDS = ("unk", "sos", "eos", "a", "person", "walk", "forward", "wave", "left", "arm", "jump")
FAST = ["--time_steps", "2", "--ode_steps", "1", "--cfg", "2", "--repeats", "2", "--num_workers", "0",
        "--device", "cpu"]
MODEL = ["--name", "MARDM", "--ae_name", "AE", "--ae_model", "AE_Model", "--model", "MARDM-SiT-XL"]
ON = {name: ["--dataset_name", name] for name in KNOWN}


def fill(module):
    """Random weights that leave nothing at zero (adaLN-zero would)."""
    for value in module.parameters():
        torch.nn.init.normal_(value, std=0.1)
    return module.eval()


def walk(skeleton, frames, rng):
    """A figure in a swaying rest pose that moves forward: joints (T, J, 3)."""
    joints = np.zeros((frames, skeleton.num_joints, 3))
    time = np.arange(frames)[:, None] / 20
    for parent, child in skeleton.bones:
        sway = 0.05 * np.sin(rng.uniform(1, 4) * time + rng.uniform(0, 6, 3))
        joints[:, child] = joints[:, parent] + 0.3 * np.asarray(skeleton.raw_offsets[child]) + sway
    return joints + time[..., None] * [0, 0, rng.uniform(0.2, 1.5)]


def write_data(root, name):
    """A tiny data set in the published layout, with CLIP's features of its captions already there."""
    skeleton, rng = SKELETONS[KNOWN[name]["skeleton"]], np.random.default_rng(7)
    folder = root / "datasets" / KNOWN[name]["folder"]
    for part in ("new_joint_vecs", "texts", "text_features"):
        (folder / part).mkdir(parents=True)
    clips = [joints_to_features(walk(skeleton, int(frames), rng), skeleton)
             for frames in [*rng.integers(42, 58, 39), 221]]
    for i, clip in enumerate(clips):
        np.save(folder / "new_joint_vecs" / f"{i:06d}.npy", clip)
        (folder / "texts" / f"{i:06d}.txt").write_text(f"{CAPTIONS[i % 3]}\n{CAPTIONS[(i + 1) % 3]}\n")
    for split in ("train", "val", "test"):
        (folder / f"{split}.txt").write_text("\n".join(f"{i:06d}" for i in range(len(clips))))
    rows = np.concatenate(clips).astype(np.float64)
    write_statistics(folder, rows.sum(0), (rows**2).sum(0), len(rows), skeleton)
    texts = [caption.split("#")[0] for caption in CAPTIONS]
    torch.save({"captions": texts, "features": torch.randn(len(texts), 512)},
               folder / "text_features" / "clip.pt")


def save(content, path, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **kwargs)


def write_models(folder, dim):
    """An autoencoder, a generator and a length estimator as published, the first two in the format of old
    torch versions."""
    ae, mardm = fill(AE(dim, width=32, latent_dim=24)), fill(MARDM(ae_dim=24, width=64, ff=96, heads=1,
                                                                   head_width=40, head_depth=2))
    optimizer = torch.optim.AdamW(ae.parameters())
    rest = {"opt_ae": optimizer.state_dict(), "ep": 3, "total_it": 7,
            "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [5, 9]).state_dict()}
    save({"ae": ae.state_dict(), **rest}, folder / "AE/model/net_best_fid.tar",
         _use_new_zipfile_serialization=False)
    other = {name: value + 1 for name, value in mardm.state_dict().items()} | {
        "clip_model.logit_scale": torch.ones(())}
    save({"mardm": other, "ema_mardm": mardm.state_dict(), **rest}, folder / "MARDM/model/latest.tar",
         _use_new_zipfile_serialization=False)
    save({"estimator": fill(LengthEstimator(512, 50)).state_dict(), "epoch": 2},
         folder / "length_estimator/model/finest.tar")


def write_evaluators(root, name, skeleton):
    """The evaluators of both protocols at their published places, and word vectors."""
    rng = np.random.default_rng(3)
    for place, dim in (("text_mot_match", skeleton.essential_dim),
                       ("text_mot_match_standard", skeleton.feature_dim - 4)):
        networks = {"movement_encoder": evaluators.MovementConvEncoder(dim, 32, 32),
                    "motion_encoder": evaluators.MotionEncoderBiGRUCo(32, 32, 16),
                    "text_encoder": evaluators.TextEncoderBiGRUCo(300, 15, 32, 16)}
        save({key: network.state_dict() for key, network in networks.items()} | {"epoch": 3},
             root / "checkpoints" / name / place / "model/finest.tar")
    model = evaluators.MotionCLIP(skeleton.essential_dim, width=16, layers=2, feedforward=24)
    save({"contrast_model": model.state_dict()},
         root / "checkpoints" / name / "text_mot_match_clip/model/finest.tar")
    for folder, file, dim in ((root / "utils/eval_mean_std" / name, "eval_{}.npy", skeleton.essential_dim),
                              (root / "checkpoints" / name / "Comp_v6_KLD005/meta", "{}.npy",
                               skeleton.feature_dim)):
        folder.mkdir(parents=True)
        np.save(folder / file.format("mean"), rng.normal(size=dim))
        np.save(folder / file.format("std"), rng.uniform(0.5, 2, dim))
    (root / "glove").mkdir(exist_ok=True)
    np.save(root / "glove/our_vab_data.npy", rng.normal(size=(len(WORDS), 300)))
    (root / "glove/our_vab_words.pkl").write_bytes(pickle.dumps(list(WORDS)))
    (root / "glove/our_vab_idx.pkl").write_bytes(pickle.dumps({word: row for row, word in enumerate(WORDS)}))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small lose by sharing their work, tenfold where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    root = tmp_path_factory.mktemp("released")
    torch.manual_seed(1)
    for name, known in KNOWN.items():
        write_data(root, name)
        write_models(root / "checkpoints" / name, SKELETONS[known["skeleton"]].essential_dim)
        write_evaluators(root, name, SKELETONS[known["skeleton"]])
    return root


@pytest.fixture
def here(released, monkeypatch):
    monkeypatch.chdir(released)
    return released


@pytest.fixture
def own_copy(released, tmp_path, monkeypatch):
    shutil.copytree(released, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def result(name, run, script, protocol):
    return json.loads(open(f"checkpoints/{name}/{run}/eval/{script}_{protocol}.json").read())


@pytest.mark.parametrize("protocol", ("essential", "standard"))
@pytest.mark.parametrize("name", KNOWN)
def test_evaluation_of_a_generator(here, monkeypatch, capsys, name, protocol):
    monkeypatch.setattr(scoring, "MULTIMODAL_TEXTS", 2)  # of 96
    mm = ["--cal_mm"] if (name, protocol) == ("t2m", "essential") else []
    assert call("evaluation_MARDM", *MODEL, *ON[name], *FAST, "--protocol", protocol,
                *mm) == 0, capsys.readouterr().err
    out = capsys.readouterr()
    results = result(name, "MARDM", "evaluation_MARDM", protocol)
    scores, better = results["scores"], results["scores"]["better"]
    assert results["kind"] == f"generation_{protocol}" and results["protocol"] == protocol
    # of 40, one is too long
    assert results["clips"] == 39 and results["clips_scored"] == 32 and results["left_out"] == 1
    assert results["sampler"]["time_steps"] == 2 and results["seed"] == 3407 and len(results["weights"]) == 16
    assert results["autoencoder"]["weights"] and len(results["evaluators"]["files"]) >= 3
    assert {"code_version", "machine", "peak_memory_mb", "steps", "checkpoint"} <= set(results)
    wanted = {f"{key}_{protocol}" for key in ("FID", "R1", "R2", "R3", "matching", "diversity")}
    wanted |= {"clip_score_essential"} if protocol == "essential" else set()
    assert set(better["generated"]) == wanted
    assert set(scores["generated"]) == wanted | ({"multimodality_essential"} if mm else set())
    assert all(np.isfinite(value["mean"]) for value in scores["generated"].values())
    assert len(scores["repeats"]) == 2 and results["split"] == "test"
    assert scores["generated"][f"FID_{protocol}"]["interval"] > 0  # each repeat draws anew
    assert better["generated"][f"R3_{protocol}"]["mean"] != scores["generated"][f"R3_{protocol}"]["mean"]
    assert f"{protocol} protocol" in out.out and f"better: FID_{protocol}" in out.out
    assert f"FID_{protocol}" in open(f"checkpoints/{name}/MARDM/eval/eval.log").read()


@pytest.mark.parametrize("protocol", ("essential", "standard"))
@pytest.mark.parametrize("name", KNOWN)
def test_evaluation_of_an_autoencoder(here, capsys, name, protocol):
    flags = ["--name", "AE", "--model", "AE_Model", *ON[name], *FAST[6:]]
    assert call("evaluation_AE", *flags, *(["--protocol", protocol] if protocol == "standard" else [])) == 0
    results = result(name, "AE", "evaluation_AE", protocol)
    assert results["metrics"][f"FID_{protocol}"] == results["scores"]["generated"][
        f"FID_{protocol}"]["mean"] > 0
    assert results["metrics"]["MPJPE"] > 0 and results["clips"] == 40 and results["codebook_size"] is None
    assert "scores: better: R3" in capsys.readouterr().out


@pytest.mark.parametrize("name", KNOWN)
def test_sampling(here, monkeypatch, capsys, name):
    monkeypatch.setattr(sample, "load_text_encoder", lambda which: FakeEncoder(
        lambda texts: torch.randn(len(texts), 512)))
    (here / "prompts.txt").write_text("a person walks#44\nsomeone jumps#NA\n")
    flags = [*MODEL, *ON[name], "--text_path", "prompts.txt", "--no_video", "--output_dir", f"made_{name}",
             *FAST[:6]]
    assert call("sample", *flags, "--device", "cpu") == 0, capsys.readouterr().err
    files = sorted((here / f"made_{name}" / f"MARDM_{name}").glob("*.npy"))
    joints = SKELETONS[KNOWN[name]["skeleton"]].num_joints
    assert np.load(files[0]).shape == (44, joints, 3) and np.load(files[1]).shape[0] % 4 == 0


def test_kit_plays_at_its_own_rate(here, monkeypatch, capsys):
    monkeypatch.setattr(sample, "load_text_encoder", lambda which: FakeEncoder(
        lambda texts: torch.zeros(len(texts), 512)))
    flags = [*MODEL, *ON["kit"], "--text_prompt", "a walk", "--motion_length", "24", "--output_dir", "film",
             *FAST[:6]]
    assert call("sample", *flags, "--device", "cpu") == 0, capsys.readouterr().err
    film, = (here / "film/MARDM_kit").glob("*.mp4")
    video = cv2.VideoCapture(str(film))
    assert abs(video.get(cv2.CAP_PROP_FPS) - 12.5) < 0.01 and video.get(cv2.CAP_PROP_FRAME_COUNT) == 24


@pytest.mark.parametrize("more", (["--solver", "dopri5"],
                                  ["--model", "MARDM-DDPM-XL", "--temperature", "0.7"],
                                  ["--cfg", "1", "--hard_pseudo_reorder", "--sampler", "reference"]))
def test_the_published_samplers(own_copy, capsys, more):
    """Adaptive solver and DDPM head, which reads files of the same shapes, on released files: what was asked
    for is recorded."""
    assert call("evaluation_MARDM", *MODEL, *ON["kit"], *FAST, "--repeats", "1",
                *more) == 0, capsys.readouterr().err
    results = result("kit", "MARDM", "evaluation_MARDM", "essential")
    asked = dict(zip(more[::2], more[1::2])) if len(more) % 2 == 0 else {"--cfg": "1",
                                                                         "--sampler": "reference"}
    recorded = results["sampler"] | {"model": results["model"]}
    assert all(str(recorded[flag[2:]]).removesuffix(".0") == value for flag, value in asked.items())
    assert np.isfinite(results["scores"]["generated"]["FID_essential"]["mean"])


DOCTORED = {
    "nothing": lambda root: None,
    "MotionCLIP": lambda root: (root / "checkpoints/t2m/text_mot_match_clip/model/finest.tar").unlink(),
    "standard evaluator": lambda root: shutil.rmtree(root / "checkpoints/t2m/text_mot_match_standard"),
    "standard statistics": lambda root: np.save(root / "checkpoints/t2m/Comp_v6_KLD005/meta/std.npy",
                                                np.zeros(263)),
    "essential statistics": lambda root: shutil.rmtree(root / "utils"),
    "word vectors": lambda root: shutil.rmtree(root / "glove"),
    "tokens of one caption": lambda root: (
        root / "datasets/HumanML3D/texts/000003.txt").write_text("he jumps\n"),
    "most test clips": lambda root: (root / "datasets/HumanML3D/test.txt").write_text("000000 000001 000002"),
    "validation split": lambda root: (root / "datasets/HumanML3D/val.txt").unlink(),
    "feature statistics": lambda root: (root / "datasets/HumanML3D/Std.npy").unlink(),
    "generator": lambda root: (root / "checkpoints/t2m/MARDM/model/latest.tar").write_bytes(b"PK"),
    "length estimator": lambda root: shutil.rmtree(root / "checkpoints/t2m/length_estimator"),
}
TINY = ["--num_workers", "0", "--max_iter", "1", "--batch_size", "8"]
SMALL = {"train_AE": [*TINY, "--width", "16"], "train_MARDM": [*TINY, "--model", "MARDM-SiT-S"],
         "train_evaluator": TINY, "train_length_estimator": TINY, "evaluation_AE": FAST[6:],
         "evaluation_MARDM": FAST, "sample": [*FAST[:6], "--no_video"], "edit": [*FAST[:6], "--no_video"]}


@pytest.mark.parametrize("lacking", DOCTORED)
def test_the_doctor_is_right_about_every_command(own_copy, monkeypatch, capsys, lacking):
    """Each command that it prints is run: it works if and only if the doctor said so."""
    encoder = FakeEncoder(lambda texts: torch.ones(len(texts), 512))
    for module in (TextEncoder, sample):
        monkeypatch.setattr(module, "load_text_encoder", lambda name: encoder)
    quick = {"time_steps": 1, "ode_steps": 1}
    monkeypatch.setattr(Pipeline, "sample", lambda
                        *args, whole=Pipeline.sample, **settings: whole(*args, **settings | quick))
    for folder in ("datasets/KIT-ML", "checkpoints/kit"):
        shutil.rmtree(folder)
    np.save("FILE.npy", walk(SKELETONS["t2m"], 60, np.random.default_rng(0)).astype(np.float32))
    DOCTORED[lacking](own_copy)
    call("scripts.doctor", "--json", "report.json")
    rows = json.loads(open("report.json").read())["sections"]["commands on t2m"]
    assert len(rows) >= 11
    for number, row in enumerate(rows):
        command = row["what"].removesuffix(" will not work").replace("NEW", f"new{number}")
        script, *flags = shlex.split(command)
        if script.startswith("train") and lacking not in ("nothing", "validation split",
                                                          "feature statistics"):
            continue
        capsys.readouterr()
        code = call(script[:-3], *flags, *SMALL[script[:-3]],
                    *(["--device", "cpu"] if "--device" not in flags else []))
        assert code == (0 if row["level"] == "ok" else 2), (command, row, capsys.readouterr().err)


def test_a_released_generator_is_never_taken_for_the_other_head(own_copy, capsys):
    """SiT and DDPM weights look alike: scripts ask which, and the doctor names the head in the command of
    every generator."""
    shutil.copytree("checkpoints/t2m/MARDM", "checkpoints/t2m/MARDM_DDPM_XL")
    for script in ("evaluation_MARDM", "sample", "edit"):
        flags = [] if script == "evaluation_MARDM" else ["--text_prompt", "walk"]
        flags += ["--source_motion", "x.npy", "-msec", "0,4"] if script == "edit" else []
        run = ["--name", "MARDM_DDPM_XL", "--ae_name", "AE", *ON["t2m"], *flags]
        assert call(script, *run) == 2 and "does not say which head" in capsys.readouterr().err, script
    call("scripts.doctor", "--json", "report.json")
    commands = [row["what"] for row in json.loads(open("report.json").read())["sections"]["commands on t2m"]]
    for name, model in (("MARDM", "MARDM-SiT-XL"), ("MARDM_DDPM_XL", "MARDM-DDPM-XL")):
        wanted = f"evaluation_MARDM.py --dataset_name t2m --name {name} --ae_name AE --model {model}"
        assert any(wanted in what for what in commands)


def test_validation_by_released_evaluators(own_copy, monkeypatch, capsys):
    quick = {"time_steps": 1, "ode_steps": 1}
    monkeypatch.setattr(Pipeline, "sample", lambda
                        *args, whole=Pipeline.sample, **settings: whole(*args, **settings | quick))
    shutil.rmtree("checkpoints/t2m/MARDM")
    flags = ["--ae_name", "AE", "--ae_model", "AE_Model", "--model", "MARDM-SiT-S", *ON["t2m"], "--epoch",
             "1", "--max_iter", "1", "--diffmlps_batch_mul", "1", "--num_workers", "0", "--device", "cpu",
             "--need_evaluation"]
    assert call("train_MARDM", *flags) == 0, capsys.readouterr().err
    best = torch.load("checkpoints/t2m/MARDM/model/net_best_fid.tar", weights_only=True)["best"]
    assert best["metric"] == "Val/FID_essential" and best["value"] > 0


def test_sizes_come_from_the_weights(here):
    with torch.device("meta"):  # no memory
        for size, settings in SIZES.items():
            state = MARDM_models[f"MARDM-SiT-{size}"](ae_dim=512).state_dict()
            assert settings.items() <= generator_sizes(state).items()
    model, _ = load_generator("checkpoints/t2m/MARDM/model/latest.tar", "MARDM-SiT-XL")
    # ema_mardm, not mardm, which is 1 more
    assert model.width == 64 and model.state_dict()["mask_latent"].abs().max() < 0.9


def flags(**changes):
    return Namespace(**(dict(protocol=None, checkpoints_dir="checkpoints", evaluator="evaluator",
                             matching_evaluator=None, contrast_evaluator=None, eval_statistics=None,
                             glove_dir="glove") | changes))


def real_clips_scored(name, protocol, tail):
    """Scores of real clips passed off as generated ones, with ``tail`` (normalised units) after each end."""
    spec = get_spec(name)
    suite = load_suite(flags(protocol=protocol), spec, None, clip_tokenizer)
    clips, dim = TextClips(spec, columns=suite.columns), spec.feature_dim
    mean, std = suite.matching.mean[:dim].numpy(), suite.matching.std[:dim].numpy()

    def generate(repeat, drawn):
        after = torch.from_numpy(np.tile(mean + tail * std, (4, 1)))
        made = [(clip[:, :dim], torch.cat([clip[:, :dim], after])) for clip in drawn.real]
        return made if suite.published_tail else [clip for clip, _ in made]

    return scoring.evaluate(suite, lambda repeat: clips.draw(1, repeat), generate, 2, 1)


@pytest.mark.parametrize("name", KNOWN)
def test_real_clips_score_as_real(here, name):
    scores = real_clips_scored(name, "essential", tail=0)
    for side, suffix in ((scores, ""), (scores["better"], "")):
        assert abs(side["generated"]["FID_essential"]["mean"]) < 1e-6
        assert all(side["generated"][key] == value for key, value in side["real"].items()
                   if key[:9] != "diversity"), suffix
    rows = [row["generated"]["R1_essential"] for row in scores["repeats"]]
    assert all((row * 32) % 1 == 0 for row in rows)  # one batch of 32, the other 7 clips dropped


def test_the_tail_counts_as_published_and_not_in_the_better_metrics(here):
    scores = real_clips_scored("t2m", "essential", tail=50)
    assert scores["generated"]["FID_essential"]["mean"] > 1e-4
    assert abs(scores["better"]["generated"]["FID_essential"]["mean"]) < 1e-6


@pytest.mark.parametrize("name", KNOWN)
def test_standard_features_are_rebuilt_from_joints(here, name):
    spec, skeleton = get_spec(name), SKELETONS[KNOWN[name]["skeleton"]]
    clip = TextClips(spec, columns=skeleton.feature_dim).whole(0).real[0].numpy()
    again = rebuild(clip[:, : skeleton.essential_dim], skeleton)
    # the smoothing sees the end
    assert again.shape == clip.shape and np.abs(again[:-1] - clip[:-1])[:, :-4].mean() < 0.02
    scores = real_clips_scored(name, "standard", tail=9)
    assert abs(scores["better"]["generated"]["FID_standard"]["mean"]) < 1e-6
    assert 0 <= scores["generated"]["FID_standard"]["mean"] < 0.01  # what the rebuilding costs


def test_the_published_tail(here):
    """A clip is decoded with empty latents after it, the same in any batch; its inner frames are its own."""
    ae = fill(AE(67, width=32, latent_dim=24))
    pipeline = Pipeline(MARDM(ae_dim=24, width=64, heads=1, head_width=16, head_depth=1), ae, torch.zeros(67),
                        torch.ones(67))
    targets = torch.randn(2, 49, 24)
    (clip, long), (full, padded) = pipeline.decode_with_tail(targets, torch.tensor([80, 196]))
    alone = pipeline.decode_with_tail(targets[:1, :20], torch.tensor([80]))[0]
    assert [x.shape for x in (clip, long, full, padded)] == [(80, 67), (84, 67), (196, 67), (200, 67)]
    assert torch.allclose(clip, alone[0], atol=1e-5) and torch.allclose(long, alone[1], atol=1e-5)
    assert torch.allclose(full, padded[:196], atol=1e-5) and padded[196:].abs().max() == 0
    assert long[80:].abs().max() > 0 and not torch.allclose(clip[-1], long[79], atol=1e-5)


def test_metrics_of_two_protocols_do_not_meet(tmp_path, capsys):
    def write(file, protocol, kind="generation", split="test", evaluator="aa", clips=40, mean=0.1):
        content = {"kind": f"{kind}_{protocol}", "protocol": protocol, "dataset": "t2m", "split": split,
                   "clips": clips, "evaluators": {"files": {"finest.tar": evaluator}},
                   "scores": {"generated": {f"FID_{protocol}": {"mean": mean, "interval": 0.01}}}}
        (tmp_path / file).write_text(json.dumps(content))
        return str(tmp_path / file)

    first = write("a.json", "essential")
    assert compare_results([first, write("b.json", "essential")])[1][1:] == ("FID_essential", 0.1, 0.01)
    for other in (dict(protocol="standard"), dict(protocol="essential", split="val"),
                  dict(protocol="essential", evaluator="bb"), dict(protocol="essential", clips=39),
                  dict(protocol="essential", kind="reconstruction")):
        with pytest.raises(UserError, match="cannot be compared with"):
            compare_results([first, write("c.json", **other)])
    assert call("scripts.compare_evaluations", first, write("d.json", "standard")) == 2
    assert call("scripts.compare_evaluations", first, write("n.json", "essential", mean=None)) == 0
    assert "nan +- 0.0100" in capsys.readouterr().out
    (tmp_path / "e.json").write_text("[]")
    with pytest.raises(UserError, match="no result of"):
        compare_results([str(tmp_path / "e.json")])
    essential, standard = (EvaluatorSuite(name, SKELETONS["t2m"], None) for name in ("essential", "standard"))
    assert essential.tag("FID") != standard.tag("FID")


def run_evaluation(capsys, *more, name="t2m"):
    code = call("evaluation_MARDM", *MODEL, *ON[name], *FAST, *more)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert code == 2 and len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("protocol, file, source", [
    ("essential", "checkpoints/t2m/text_mot_match/model/finest.tar", "README of MARDM"),
    ("essential", "checkpoints/t2m/text_mot_match_clip/model/finest.tar", "README of MARDM"),
    ("essential", "utils/eval_mean_std/t2m/eval_mean.npy", "README of MARDM"),
    ("standard", "checkpoints/t2m/Comp_v6_KLD005/meta/mean.npy", "Guo et al."),
    ("essential", "glove/our_vab_words.pkl", "glove.zip"),
])
def test_a_missing_file_is_named_with_its_source(own_copy, capsys, protocol, file, source):
    (own_copy / file).unlink()
    line = run_evaluation(capsys, "--protocol", protocol)
    assert (file in line or "our_vab_words.pkl in glove" in line) and source in line


def test_the_evaluator_of_the_other_protocol_is_refused(own_copy, capsys):
    shutil.rmtree("checkpoints/t2m/text_mot_match_standard")
    line = run_evaluation(capsys, "--protocol", "standard")
    assert "reads 67 features, the standard protocol needs an evaluator of 259" in line
    mean = "utils/eval_mean_std/t2m/eval_mean.npy"
    np.save(mean, np.zeros(64))
    assert "must hold 67 finite numbers" in run_evaluation(capsys) and mean in run_evaluation(capsys)
    assert "train_evaluator.py" in run_evaluation(capsys, "--protocol", "trained")


def test_an_autoencoder_is_measured_without_evaluators(own_copy, capsys):
    shutil.rmtree("checkpoints/kit/text_mot_match")
    run = ["evaluation_AE", "--name", "AE", "--model", "AE_Model", *ON["kit"], *FAST[6:]]
    assert call(*run) == 0
    assert "no FID: no checkpoints/kit/text_mot_match/model/finest.tar" in capsys.readouterr().out
    assert "FID" not in json.loads(open("checkpoints/kit/AE/eval/evaluation_AE.json").read())["metrics"]
    assert call(*run, "--protocol", "essential") == 2


def test_captions_without_word_classes_are_refused(own_copy, capsys):
    for file in own_copy.glob("datasets/HumanML3D/texts/*.txt"):
        file.write_text("he jumps\n")
    assert "no word/POS tokens" in run_evaluation(capsys)


class Bomb:
    def __reduce__(self):
        return open, ("exploded", "w")


@pytest.mark.parametrize("old", (False, True))
@pytest.mark.parametrize("file", ("AE/model/net_best_fid.tar", "MARDM/model/latest.tar",
                                  "text_mot_match/model/finest.tar", "text_mot_match_clip/model/finest.tar"))
def test_a_hostile_file_is_refused(own_copy, capsys, file, old):
    path = own_copy / "checkpoints/t2m" / file
    content = torch.load(path, weights_only=True)
    save(content | {"extra": Bomb()}, path, _use_new_zipfile_serialization=not old)
    line = run_evaluation(capsys)
    assert str(path.relative_to(own_copy)) in line and "more than tensors and plain values" in line
    assert not (own_copy / "exploded").exists()


def test_a_file_of_something_else_is_refused(own_copy, capsys):
    save({"ema_mardm": {"weight": torch.ones(2)}}, own_copy / "checkpoints/t2m/MARDM/model/latest.tar")
    assert "released model" in run_evaluation(capsys)
