"""Every script as a user runs it: --help, one tiny run of each on a small demo set, and one line for each
mistake."""
import json
import shutil
import sys
from functools import partial

import numpy as np
import pytest
import torch
from tiny import call

from models import TextEncoder
from models.loading import load_generator
from utils.curves import read_runs
from utils.data import specs
from utils.demo import dataset
from utils.demo.dataset import build_demo

SCRIPTS = ["train_AE", "train_MARDM", "train_evaluator", "train_behavior", "evaluation_behavior",
           "train_length_estimator", "evaluation_AE",
           "distill_head", "evaluation_MARDM", "sample", "edit", "plot_loss", "analyze_training",
           "scripts.prepare_dataset", "scripts.prepare_imu", "scripts.behavior_bench",
           "scripts.doctor", "scripts.demo", "scripts.compare_evaluations", "scripts.analyze_codes",
           "scripts.quantizer_bench", "scripts.ablation", "scripts.study", "scripts.gallery",
           "scripts.capacity", "scripts.compare_models",
           "scripts.view", "scripts.clean_feet", "scripts.export", "scripts.make_skeleton",
           "scripts.retarget", "scripts.export_weights", "scripts.soak_kills", "scripts.soak_inputs",
           "scripts.lock", "scripts.choose_levels", "benchmarks.drift", "benchmarks.run",
           "benchmarks.solver_steps", "benchmarks.trajectories", "benchmarks.chains"]
ON_DEMO = ["--dataset_name", "demo", "--device", "cpu"]
TRAIN = [*ON_DEMO, "--num_workers", "0", "--batch_size", "16", "--epoch", "1", "--log_every", "1"]
AE = ["--model", "FSQ_AE_High", "--width", "32"]
RVQ = ["--model", "VQ_AE_Model", "--quantizer", "rvq", "--quantizer_settings"]
GENERATOR = ["--ae_name", "ae", "--ae_model", "FSQ_AE_High", "--layers", "1", "--head_width", "64", "--model",
             "FSQ-MARDM-SiT-S"]
SHORT = ["--window_size", "40", "--batch_size", "512"]  # of the two values of a flag the last counts
FAST = ["--time_steps", "2", "--ode_steps", "1", "--cfg", "2"]



@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a small demo set and one tiny run of every training script."""
    root = tmp_path_factory.mktemp("runs")
    build_demo(root / "datasets" / "demo", num_clips=240)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert call("train_AE", "--name", "ae", *AE, *TRAIN, *SHORT) == 0
        assert call("train_evaluator", "--name", "evaluator", *TRAIN) == 0
        assert call("train_length_estimator", "--name", "length_estimator", *TRAIN) == 0
        assert call("train_MARDM", "--name", "mardm", *GENERATOR, *TRAIN, "--diffmlps_batch_mul", "1") == 0
    return root


@pytest.fixture
def work(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script, capsys):
    assert call(script, "--help") == 0
    assert "usage:" in capsys.readouterr().out


def test_checkpoints_describe_themselves(work):
    for name, keys in [("ae", {"ae", "model_name", "model_kwargs", "mean", "std", "dataset"}),
                       ("mardm", {"mardm", "ema_mardm", "model_name", "model_kwargs", "trained_on", "levels",
                                  "dataset"}),
                       ("length_estimator", {"estimator"}), ("evaluator", {"evaluator", "mean", "std"})]:
        folder = work / "checkpoints" / "demo" / name / "model"
        content = torch.load(folder / "latest.tar", weights_only=True)
        assert keys <= set(content) and content["total_it"] > 0, name
        assert list(folder.glob("events.out.tfevents.*"))
        # 10 clips are too few to validate an evaluator
        assert (folder / "net_best_fid.tar").is_file() == (name != "evaluator")
        assert (folder.parent / "train.log").read_text().strip().endswith("MB")


def test_evaluation_AE(work, capsys):
    assert call("evaluation_AE", "--name", "ae", "--model", "FSQ_AE_High", *ON_DEMO, "--num_workers",
                "0") == 0
    out = capsys.readouterr().out
    assert "8^3x5^3" in out and "64000" in out and "codes_used" in out
    results = json.loads((work / "checkpoints/demo/ae/eval/evaluation_AE.json").read_text())
    assert results["metrics"]["MPJPE"] > results["metrics"][
        "MPJPE_facing"] > 0 and results["metrics"]["FID"] > 0
    assert results["seed"] == 3407 and results["clips"] == results["probes"]["all"]["total"] == 36
    assert "MPJPE" in (work / "checkpoints/demo/ae/eval/eval.log").read_text()


def test_probes_know_which_reconstruction_is_whose(work):
    """With the clips themselves in place of their reconstructions every probe passes."""
    import evaluation_AE
    from utils.data.datasets import MotionStore
    from utils.data.specs import get_spec

    spec = get_spec("demo", "datasets")
    store = MotionStore(spec, "test")
    exact = [(motion, motion) for motion in (torch.as_tensor(store.frames(i, 0, n))
                                             for i, n in enumerate(store.lengths))]
    assert evaluation_AE.probe_reconstructions(spec, store, exact)["all"]["share"] > 0.95
    assert evaluation_AE.probe_reconstructions(spec, store, exact[::-1])["all"]["share"] < 0.5


def test_reconstructions_come_in_the_order_of_the_store(work):
    from models.loading import load_autoencoder
    from utils.data.datasets import MotionStore
    from utils.data.specs import get_spec
    from utils.evaluation.reconstruction import reconstruct

    store = MotionStore(get_spec("demo", "datasets"), "test")
    ae, _ = load_autoencoder(work / "checkpoints/demo/ae/model/net_best_fid.tar")
    for clip, (real, made) in enumerate(reconstruct(ae, store, batch_size=8)):
        length = store.lengths[clip] // 4 * 4
        assert torch.equal(real, torch.as_tensor(store.frames(clip, 0, length))) and made.shape == real.shape


def test_evaluation_MARDM(work, capsys):
    # the autoencoder is as trained
    flags = ["--name", "mardm", *ON_DEMO, "--num_workers", "0", "--repeats", "2", *FAST]
    assert call("evaluation_MARDM", *flags, "--probe_repeats", "1") == 0, capsys.readouterr().err
    results = json.loads((work / "checkpoints/demo/mardm/eval/evaluation_MARDM.json").read_text())
    assert {"FID", "R1", "R2", "R3", "matching", "diversity"} <= set(results["scores"]["generated"])
    assert results["name"] == "mardm" and results["autoencoder"]["name"] == "ae"
    assert 0 <= results["probes"]["rate"] <= 1 and results["probes"]["real"] > results["probes"]["shuffled"]
    assert results["sampler"]["time_steps"] == 2 and results["scores"]["generated"]["FID"]["interval"] >= 0
    for metric in ("foot_skating", "acceleration", "peak_jerk", "nearest_train"):
        assert results[metric]["generated"] > 0 and results[metric]["real"] > 0, metric
    assert 0 <= results["label_accuracy"]["generated"] <= results["label_accuracy"]["real"] <= 1
    assert 0 < results["label_accuracy"]["clips"] <= results["clips"] == 36
    assert results["seconds_per_clip"] == pytest.approx(results["seconds"]["generating"] / 72)


def test_results_of_several_evaluations_are_kept(work, capsys):
    flags = ["--name", "mardm", *ON_DEMO, "--num_workers", "0", "--repeats", "1", *FAST]
    assert call("evaluation_MARDM", *flags, "--eval_name", "euler", "--solver", "euler") == 0
    folder = work / "checkpoints/demo/mardm/eval/euler"
    results = json.loads((folder / "evaluation_MARDM.json").read_text())
    assert results["sampler"]["solver"] == "euler" and (folder / "eval.log").is_file()
    assert call("evaluation_MARDM", *flags, "--eval_name", "../euler") == 2
    assert "must be a plain name" in capsys.readouterr().err


def test_evaluation_without_training_split_and_labels(work, tmp_path, capsys):
    shutil.copytree(work / "datasets", tmp_path / "datasets")
    (tmp_path / "datasets/demo/train.txt").unlink()
    flags = ["--name", "mardm", *ON_DEMO, "--num_workers", "0", "--repeats", "1", *FAST, "--dataset_dir",
             tmp_path / "datasets"]
    assert call("evaluation_MARDM", *flags) == 0
    assert "no distances to training clips" in capsys.readouterr().err
    path = work / "checkpoints/demo/mardm/eval/evaluation_MARDM.json"
    results = json.loads(path.read_text())
    assert results["nearest_train"] is results["label_accuracy"] is None and results["peak_jerk"]["real"] > 0
    shutil.copy(work / "datasets/demo/train.txt", tmp_path / "datasets/demo/train.txt")
    (tmp_path / "datasets/demo/labels.json").unlink()
    assert call("evaluation_MARDM", *flags) == 0
    results = json.loads(path.read_text())
    assert results["nearest_train"]["real"] > 0 and results["label_accuracy"] is None


def test_sample_needs_no_data_set(work, tmp_path, monkeypatch, capsys):
    (tmp_path / "checkpoints").symlink_to(work / "checkpoints")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a person walks: fast?#44\na man waves#NA\n\nsomeone jumps\n",
                                          encoding="utf-8")
    flags = ["--name", "mardm", *ON_DEMO, "--text_path", "prompts.txt", "--repeat_times", "2", *FAST]
    assert call("sample", *flags, "--no_video") == 0
    files = sorted((tmp_path / "generation" / "mardm_demo").glob("*.npy"))
    assert len(files) == 6 and not any(set(file.name) & set(':?"<>|*') for file in files)
    assert np.load(files[0]).shape == (44, 22, 3) and all(len(np.load(file)) % 4 == 0 for file in files)
    first = np.load(files[0])
    prompt = ["--text_prompt", "a person walks: fast?", "--motion_length", "44"]
    assert call("sample", "--name", "mardm", *ON_DEMO, *prompt, *FAST) == 0
    again = np.load(next((tmp_path / "generation" / "mardm_demo").glob("000_*_r0.npy")))
    assert np.abs(first - again).max() < 1e-4  # metres: alone or in a file, the same clip
    assert len(list((tmp_path / "generation" / "mardm_demo").glob("*.mp4"))) == 1


def test_training_flags_that_save_time_or_change_the_head(work, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module,
                        "compile", lambda module, **_kwargs: compiled.append(type(module).__name__))
    flags = ["--max_iter", "2", "--accumulate", "3", "--compile", "--precision", "bf16"]
    assert call("train_AE", "--name", "ae2", *AE, *TRAIN, *SHORT, *flags) == 0
    assert call("train_MARDM", "--name", "x", *GENERATOR, *TRAIN, *flags, "--diffmlps_batch_mul", "1",
                "--prediction", "x") == 0
    assert compiled == ["FSQ_AE", "DenoisingMLP"]
    head = load_generator(work / "checkpoints/demo/x/model/latest.tar")[0].DiffMLPs
    assert head.prediction == "x"
    prompt = ["--text_prompt", "a person walks", "--motion_length", "40", "--no_video", "--output_dir", "x"]
    assert call("sample", "--name", "x", *ON_DEMO, *prompt, *FAST, "--precision", "bf16") == 0
    assert len(list((work / "x").rglob("*.npy"))) == 1


def test_solver_steps(work, capsys):
    flags = ["--name", "mardm", *ON_DEMO, "--clips", "2", "--time_steps", "2", "--motion_length", "40",
             "--fine_steps", "20"]
    assert call("benchmarks.solver_steps", *flags) == 0, capsys.readouterr().err
    results = json.loads((work / "checkpoints/demo/mardm/eval/solver_steps.json").read_text())
    assert results["tokens"] == 20 and len(results["rows"]) == 44
    assert "codes that differ" in capsys.readouterr().out


@pytest.fixture(scope="module")
def by_mode(trained):
    """Tiny generators that are told an action, and nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        for name, mode in (("by_action", "action"), ("free", "uncond")):
            assert call("train_MARDM", "--name", name, *GENERATOR, *TRAIN, "--diffmlps_batch_mul", "1",
                        "--cond_mode", mode) == 0
    return trained


def npy_files(folder):
    return [np.load(file) for file in sorted(folder.glob("*.npy"))]


def test_other_conditions_end_to_end(by_mode, work, tmp_path, monkeypatch, capsys):
    kept = {}
    for name, mode in (("by_action", "action"), ("free", "uncond")):
        content = torch.load(f"checkpoints/demo/{name}/model/latest.tar", weights_only=True)
        assert content["model_kwargs"]["cond_mode"] == mode and content["length_counts"].sum() > 100
        kept[name] = content
    actions = kept["by_action"]["actions"]
    assert "jump" in actions and kept["by_action"]["mardm"]["cond_emb.weight"].shape[1] == len(actions)
    labels = json.loads(open("datasets/demo/labels.json").read())
    alone = sum(len(labels[name]["actions"]) == 1 for name in open("datasets/demo/train.txt").read().split())
    assert kept["by_action"]["length_counts"].sum() == alone < kept["free"]["length_counts"].sum()

    (tmp_path / "checkpoints").symlink_to(work / "checkpoints")
    monkeypatch.chdir(tmp_path)  # neither a data set nor a text encoder is needed
    monkeypatch.setattr("sample.load_text_encoder", None)
    flags = [*ON_DEMO, "--no_video", "--time_steps", "2", "--ode_steps", "1"]
    assert call("sample", "--name", "by_action", "--action", "jump", "bow", "--repeat_times", "2",
                *flags) == 0
    made = npy_files(tmp_path / "generation/by_action_demo")
    assert len(made) == 4 and not np.array_equal(made[0][:40], made[2][:40])
    assert call("sample", "--name", "by_action", "--action", "all", "--motion_length", "44", "--output_dir",
                "all", *flags) == 0
    assert {clip.shape for clip in npy_files(tmp_path / "all/by_action_demo")} == {(44, 22, 3)}
    assert len(npy_files(tmp_path / "all/by_action_demo")) == len(actions)
    assert call("sample", "--name", "free", "--repeat_times", "3", *flags) == 0
    clips = npy_files(tmp_path / "generation/free_demo")
    assert len(clips) == 3 and all(40 <= len(clip) <= 196 and len(clip) % 4 == 0 for clip in clips)


@pytest.mark.parametrize("name, mode", [("by_action", "action"), ("free", "uncond")])
def test_evaluation_of_other_conditions(by_mode, work, capsys, name, mode):
    test = work / "datasets/demo/test.txt"
    before = test.read_text()
    try:
        test.write_text((work / "datasets/demo/train.txt").read_text())  # 32 clips of one action are needed
        flags = ["--name", name, "--ae_name", "ae", *ON_DEMO, "--num_workers", "0", "--repeats", "1",
                 "--time_steps", "1", "--ode_steps", "1"]
        assert call("evaluation_MARDM", *flags, *(["--probe_repeats", "1"] if mode == "action" else [])) == 0
    finally:
        test.write_text(before)
    results = json.loads((work / f"checkpoints/demo/{name}/eval/evaluation_MARDM.json").read_text())
    assert results["cond_mode"] == mode and results["scores"]["generated"]["FID"]["mean"] > 0
    assert ("R3" in results["scores"]["generated"]) == (mode == "action") == ("R3" in capsys.readouterr().out)
    if mode == "action":
        labels = json.loads((work / "datasets/demo/labels.json").read_text())
        names = (work / "datasets/demo/train.txt").read_text().split()
        assert results["clips"] == sum(len(labels[name]["actions"]) == 1 for name in names)
        assert results["probes"]["all"]["total"] == results["probes"]["single"]["total"] > 20
        assert results["sampler"]["cfg"] == 2
    else:
        assert results["clips"] == 192 and results["sampler"]["cfg"] == 1


SECTION = ["--source_motion", "clip.npy", "-msec", "0.3,0.6"]
CHECKED = [
    ("train_AE", ["--name", "new", *AE]),
    ("train_AE", ["--name", "ae", *AE, *TRAIN, *SHORT, "--is_continue"]),
    ("train_evaluator", ["--name", "new"]), ("train_length_estimator", ["--name", "new"]),
    ("train_MARDM", ["--name", "new", *GENERATOR, "--scale_targets"]),
    ("train_MARDM", ["--name", "new", "--ae_name", "ae", "--model", "FSQ-MARDM-SiT-S"]),
    ("train_MARDM", ["--name", "new", *GENERATOR, "--cond_mode", "action"]),
    ("evaluation_AE", ["--name", "ae"]), ("evaluation_MARDM", ["--name", "mardm", "--probe_repeats", "1"]),
    ("sample", ["--name", "mardm", "--text_prompt", "a person walks"]),
    ("edit", ["--name", "mardm", "--text_prompt", "a person walks", *SECTION])]


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def errors_of(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]


def same_with_check(capsys, script, flags):
    """Whether a command that fails says the same with --check; both lines."""
    found = []
    for more in ([], ["--check"]):
        capsys.readouterr()
        assert call(script, *flags, *more) == 2
        found.append(errors_of(capsys))
    assert found[0] == found[1] and len(found[0]) == 1
    return found[0][0]


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("script, flags", CHECKED)
def test_check_writes_nothing(work, tmp_path, capsys, script, flags, kept):
    """Neither with what earlier commands have kept in the data set's folder, nor without."""
    np.save(work / "clip.npy", np.zeros((60, 67), np.float32))
    folder = work / "datasets"
    if not kept:
        folder = tmp_path / "datasets"
        shutil.copytree(work / "datasets", folder, ignore=shutil.ignore_patterns("packed", "text_features"))
    before = snapshot(folder), snapshot(work)
    capsys.readouterr()
    flags = [*flags, *ON_DEMO, "--dataset_dir", folder, "--check"]
    assert call(script, *flags) == 0, capsys.readouterr().err
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("check:")]
    assert said == [f"check: {script}.py can run"]
    assert (snapshot(folder), snapshot(work)) == before


def test_check_makes_the_demo_set_elsewhere(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dataset, "build_demo", partial(build_demo, num_clips=60))
    specs.temporary_demo.cache_clear()
    monkeypatch.chdir(tmp_path)
    try:
        assert call("train_AE", *AE, *ON_DEMO, "--check") == 0, capsys.readouterr().err
    finally:
        specs.temporary_demo.cache_clear()
    assert not list(tmp_path.iterdir())


def test_check_needs_an_encoder_only_for_captions_that_are_not_kept(work, tmp_path, monkeypatch, capsys):
    def absent(name):
        raise TextEncoder.TextEncoderError("no weights here")

    monkeypatch.setattr(TextEncoder, "load_text_encoder", absent)
    assert call("train_length_estimator", "--name", "new", *ON_DEMO, "--check") == 0
    shutil.copytree(work / "datasets", tmp_path / "datasets", ignore=shutil.ignore_patterns("text_features"))
    folders = ["--dataset_dir", tmp_path / "datasets", "--checkpoints_dir", tmp_path / "runs"]
    flags = ["--name", "new", *ON_DEMO, *folders]
    assert same_with_check(capsys, "train_length_estimator", flags) == "error: no weights here"


@pytest.mark.parametrize("flags, message", [
    (["--name", "mardm", "--evaluator", "absent"], "train one with train_evaluator.py"),
    (["--name", "mardm", "--probe_repeats", "1", "--length_estimator", "absent"], "no checkpoint at"),
    (["--name", "absent"], "no checkpoint at")])
def test_check_of_an_evaluation(work, capsys, flags, message):
    assert message in same_with_check(capsys, "evaluation_MARDM", [*flags, *ON_DEMO, *FAST, "--repeats", "1"])


@pytest.mark.parametrize("script, flags, message", [
    ("sample", ["--name", "by_action", "--text_prompt", "jump"], "trained on actions; pass --action"),
    ("sample", ["--name", "by_action"], "pass --action NAME ..., or --action all"),
    ("sample", ["--name", "by_action", "--action", "fly"], "--action fly: unknown; the generator's actions "
                                                           "are bow"),
    ("sample", ["--name", "free", "--text_prompt", "jump"], "trained without conditions"),
    ("sample", ["--name", "free", "--action", "jump"], "trained without conditions"),
    ("sample", ["--name", "free", "--cfg", "2"], "guidance needs conditions"),
    ("sample", ["--name", "free", "--motion_length", "500"], "outside 4..196"),
    ("sample", ["--name", "mardm", "--action", "jump"], "trained on texts"),
    ("evaluation_MARDM", ["--name", "free", "--ae_name", "ae", "--cal_mm"], "without conditions"),
    ("evaluation_MARDM", ["--name", "by_action", "--ae_name", "ae", "--cfg", "1"],
     "retrieval needs 32 clips"),
    ("train_MARDM", ["--name", "by_action", *GENERATOR, *TRAIN, "--is_continue"],
     "another size or kind of model"),
])
def test_conditions_that_do_not_fit(by_mode, work, capsys, script, flags, message):
    assert message in same_with_check(capsys, script, [*flags, *ON_DEMO])


def test_resume_of_a_finished_run(work):
    before = torch.load(work / "checkpoints/demo/ae/model/latest.tar", weights_only=True)
    assert call("train_AE", "--name", "ae", *AE, *TRAIN, *SHORT, "--is_continue") == 0
    after = torch.load(work / "checkpoints/demo/ae/model/latest.tar", weights_only=True)
    assert all(torch.equal(value, after["ae"][key]) for key, value in before["ae"].items())


def test_need_evaluation(work, capsys):
    """Scores on the validation split need 32 clips there; with fewer it says so, with them the best FID is
    kept."""
    flags = ["--name", "scored", *GENERATOR, *TRAIN, "--diffmlps_batch_mul", "1", "--need_evaluation"]
    assert "retrieval needs 32 clips" in same_with_check(capsys, "train_MARDM", flags)
    test = (work / "datasets/demo/test.txt").read_text()
    val = work / "datasets/demo/val.txt"
    before = val.read_text()
    try:
        val.write_text(test)
        assert call("train_MARDM", *[flag if flag != "scored" else "scored2" for flag in flags]) == 0
    finally:
        val.write_text(before)
    best = torch.load(work / "checkpoints/demo/scored2/model/net_best_fid.tar", weights_only=True)["best"]
    assert best["metric"] == "Val/FID" and best["value"] > 0


@pytest.fixture
def many_to_validate(work):
    """The test split for the validation split: enough clips for retrieval."""
    val = work / "datasets/demo/val.txt"
    before = val.read_text()
    val.write_text((work / "datasets/demo/test.txt").read_text())
    yield work
    val.write_text(before)


def content_of(work, name, file="net_best_fid.tar"):
    return torch.load(work / f"checkpoints/demo/{name}/model/{file}", weights_only=True)


def test_stage_one_without_enough_clips_for_retrieval(work, capsys):
    said = same_with_check(capsys, "train_AE", ["--name", "few_clips", *AE, *TRAIN, *SHORT,
                                                "--need_evaluation"])
    assert "--need_evaluation: retrieval needs 32 clips" in said and "the lowest MPJPE is kept" in said
    said = same_with_check(capsys, "train_AE", ["--name", "few_clips", *AE, *TRAIN, "--need_evaluation",
                                                "--evaluator", "nobody"])
    assert "no checkpoint at" in said and not (work / "checkpoints/demo/few_clips/model").is_dir()


def test_the_best_fid_of_stage_one(many_to_validate):
    """FID and the others are those of the reconstructions of the model; the best is chosen by it, also from
    when on a run is validated so."""
    from models.loading import load_autoencoder
    from utils.data.specs import get_spec
    from utils.evaluation.evaluators import TrainedEvaluator
    from utils.evaluation.protocols import TextClips
    from utils.evaluation.reconstruction import reconstruct, reconstruction_fid

    work, flags = many_to_validate, ["--name", "judged", *AE, *TRAIN, *SHORT, "--eval_every", "1"]
    assert call("train_AE", *flags) == 0
    assert content_of(work, "judged")["best"]["metric"] == "Val/MPJPE"
    flags += ["--is_continue", "--need_evaluation", "--epoch", "3", "--lr", "0.03", "--warm_up_iter", "0"]
    assert call("train_AE", *flags) == 0
    best, scalars = content_of(work, "judged"), read_runs(["checkpoints/demo/judged"])["judged"]
    assert {"Val/R1", "Val/R3", "Val/matching", "Val/diversity", "Val/MPJPE"} <= set(scalars)
    assert len(scalars["Val/FID"][0]) == 2 and len(scalars["Val/MPJPE"][0]) == 3
    assert best["best"]["metric"] == "Val/FID"
    assert best["best"]["value"] == pytest.approx(min(scalars["Val/FID"][1]), rel=1e-5)
    log = (work / "checkpoints/demo/judged/train.log").read_text()
    assert "is the model of the lowest Val/MPJPE" in log and "is the model of the lowest Val/FID" in log
    assert "the best was that of Val/MPJPE; from now on it is that of Val/FID" in log
    ae, _ = load_autoencoder("checkpoints/demo/judged/model/net_best_fid.tar")
    evaluator = TrainedEvaluator.load("checkpoints/demo/evaluator/model/latest.tar", None)
    clips = TextClips(get_spec("demo", "datasets"), "val")
    assert best["best"]["value"] == pytest.approx(reconstruction_fid(evaluator, reconstruct(ae, clips.store)),
                                                  rel=1e-3)


def test_a_bench_with_fid_along_the_way(many_to_validate, capfd):
    flags = ["scripts.quantizer_bench", *ON_DEMO, "--num_workers", "0", "--width", "16", "--batch_size",
             "64", "--window_size", "40", "--steps", "9", "--seeds", "1", "--rows", "FSQ_AE_High", "--name",
             "along", "--output_dir", "along"]
    assert call(*flags, "--FID_every", "4", "--FID_threshold", "1000") == 0
    run = json.loads((many_to_validate / "along/bench.json").read_text())["runs"]["FSQ_AE_High"]["3407"]
    steps, values = run["validation"]["steps"], run["validation"]["FID"]
    assert steps == [4, 8, 9] and len(values) == 3 and run["steps_to_FID"] == 4 and run["loss_mean"] > 0
    assert call(*flags, "--FID_every", "4", "--FID_threshold", str(values[-1])) == 0
    assert "steps to a validation FID of" in (many_to_validate / "along/bench.md").read_text()
    assert call(*flags) == 2 and "was made with FID_every 4, not None" in capfd.readouterr().err


def test_a_run_goes_on_with_its_own_reach(work, capsys):
    flags = ["--name", "narrow", *AE, *TRAIN, *SHORT]
    assert call("train_AE", *flags, "--max_iter", "1", "--fsq_reach", "1") == 0
    path = work / "checkpoints/demo/narrow/model/latest.tar"
    assert "reach" not in torch.load(path, weights_only=True)["model_kwargs"]  # as before there was a choice
    assert call("train_AE", *flags, "--max_iter", "2", "--is_continue") == 0
    again = torch.load(path, weights_only=True)
    assert again["total_it"] == 2 and "reach" not in again["model_kwargs"]
    assert call("train_AE", *flags, "--max_iter", "3", "--is_continue", "--fsq_reach", "2") == 2
    assert "another size or kind" in capsys.readouterr().err


def test_scaled_targets_go_on_with_their_scale(work, monkeypatch, capsys):
    assert call("train_AE", "--name", "spread", "--model", "AE_Model", "--width", "32", *TRAIN, *SHORT,
                "--max_iter", "1") == 0
    flags = ["--name", "scaled", "--ae_name", "spread", "--model", "MARDM-SiT-S", *TRAIN,
             "--diffmlps_batch_mul", "1"]
    assert call("train_MARDM", *flags, "--max_iter", "1", "--scale_targets") == 0
    path = work / "checkpoints/demo/scaled/model/latest.tar"
    scale = torch.load(path, weights_only=True)["model_kwargs"]["target_scale"]
    with monkeypatch.context() as patch:  # another device measures a little else
        patch.setattr(sys.modules["train_MARDM"], "std_of_targets", lambda *_: 1.01 * scale)
        assert call("train_MARDM", *flags, "--max_iter", "2", "--scale_targets", "--is_continue") == 0
    assert load_generator(path)[0].DiffMLPs.target_scale == scale > 0
    assert call("train_MARDM", *flags, "--max_iter", "3", "--is_continue") == 2
    assert "another size or kind" in capsys.readouterr().err


def test_targets_that_are_all_alike_are_not_scaled(work, capsys):
    assert call("train_AE", "--name", "one_code", "--model", "VQ_AE_Model", "--num_codes", "1", "--width",
                "32", *TRAIN, *SHORT, "--max_iter", "1") == 0
    assert call("train_MARDM", "--name", "none", "--ae_name", "one_code", "--ae_model", "VQ_AE_Model",
                "--model", "VQ-MARDM-SiT-S", *TRAIN, "--scale_targets") == 2
    assert "same target for every token" in capsys.readouterr().err


@pytest.mark.parametrize("script, flags, message", [
    ("train_AE", ["--name", "ae", *AE, *TRAIN], "exists"),
    ("train_AE", ["--name", "new", "--model", "AE_Modell"], "'AE_Modell'; did you mean AE_Model or"),
    ("train_AE", ["--name", "new", *AE, "--dataset_name", "nothing"], "no data set 'nothing'"),
    ("train_AE", ["--name", "new", *AE, "--fsq_levels", "5", *TRAIN], "belongs to --model FSQ_AE_Model"),
    ("train_AE", ["--name", "new", "--model", "FSQ_AE_Model", "--fsq_levels", "1", "5", *TRAIN],
     "2 to 65536"),
    ("train_AE", ["--name", "new", "--model", "FSQ_AE_Model", "--fsq_levels", "9" * 20, *TRAIN],
     "2 to 65536"),
    ("train_AE", ["--name", "new", "--model", "VQ_AE_Model", "--num_codes", "1" + "0" * 14, *TRAIN],
     "numbers; got"),
    ("train_AE", ["--name", "new", *RVQ[:4], "--quantizer_settings", "beta=-1", *TRAIN], "0 or more"),
    ("train_AE", ["--name", "new", *RVQ[:4], "--quantizer_settings", "decay=nan", *TRAIN],
     "is not a usable float"),
    ("train_AE", ["--name", "new", *AE, "--direct", *TRAIN],
     "belongs to --model FSQ_AE_Model or VQ_AE_Model"),
    ("train_AE", ["--name", "new", "--model", "VQ_AE_Model", "--fsq_reach", "2", *TRAIN],
     "belongs to --model FSQ_AE_*"),
    ("train_AE", ["--name", "new", *AE, "--quantizer", "ifsq", *TRAIN],
     "belongs to --model FSQ_AE_Model or VQ_AE_Model"),
    ("train_AE", ["--name", "new", "--model", "FSQ_AE_Model", "--quantizer", "ema", *TRAIN],
     "belongs to --model VQ_AE_Model"),
    ("train_AE", ["--name", "new", "--model", "FSQ_AE_Model", "--quantizer", "ifsq", *TRAIN], "odd levels"),
    ("train_AE", ["--name", "new", "--model", "FSQ_AE_Model", "--num_codes", "9", *TRAIN],
     "belongs to --model VQ_AE_Model"),
    ("train_AE", ["--name", "new", "--model", "VQ_AE_Model", "--quantizer_settings", "beta=1", *TRAIN],
     "belongs to --quantizer"),
    ("train_AE", ["--name", "new", "--model", "VQ_AE_Model", "--num_codes", "0", *TRAIN], "1 or more"),
    ("train_AE", ["--name", "new", *RVQ, "num_layers=2", "use_layers=3", *TRAIN], "cannot use 3 of 2"),
    ("train_AE", ["--name", "new", *RVQ, "layers=2", *TRAIN], "no setting 'layers'"),
    ("train_AE", ["--name", "new", *RVQ, "num_layers=two", *TRAIN], "'two' is not a usable int"),
    ("train_AE", ["--name", "ae", *TRAIN, *SHORT, "--model", "FSQ_AE_Symmetric", "--width", "32",
                  "--is_continue"],
     "trained with another --model"),
    ("train_AE", ["--name", "ae", "--model", "FSQ_AE_High", "--width", "16", *TRAIN, *SHORT, "--is_continue"],
     "another size or kind"),
    ("train_AE", ["--name", "ae", "--model", "AE_Model", "--width", "32", *TRAIN, *SHORT, "--is_continue"],
     "another --model"),
    ("train_AE", ["--name", "ae", *AE, *TRAIN, *SHORT, "--is_continue", "--seed", "1"],
     "trained with --seed 3407"),
    ("train_AE", ["--name", "ae", *AE, *TRAIN, *SHORT, "--is_continue", "--batch_size", "8"],
     "trained with --batch_size (of all processes) 512"),
    ("train_MARDM", ["--name", "mardm", *[flag if flag != "ae" else "other" for flag in GENERATOR], *TRAIN,
                     "--diffmlps_batch_mul", "1", "--is_continue"], "another autoencoder"),
    ("train_AE", ["--name", "new", *AE, *TRAIN, "--checkpoints_dir", "datasets/demo/train.txt"],
     "Not a directory"),
    ("train_AE", ["--name", "new", *AE, *TRAIN, "--dataset_dir", "datasets/demo/train.txt"],
     "Not a directory"),
    ("train_AE", ["--name", "new", *AE, *TRAIN, "--weight_decay", "-5"], "a number of 0 or more"),
    ("train_AE", ["--name", "new", *AE, *TRAIN, "--aux_loss_joints", "nan"], "a number of 0 or more"),
    ("train_AE", ["--name", "new", *AE, *TRAIN, "--lr", "inf"], "a number above 0"),
    ("train_AE", ["--name", "new", *AE, *TRAIN, "--device", "mps"], "use cpu, cuda or cuda:N"),
    ("train_MARDM", ["--name", "new", *GENERATOR, *TRAIN, "--max_motion_length", "2"],
     "a whole number of 4 or more"),
    ("sample", ["--name", "mardm", *ON_DEMO, "--text_prompt", "walk", "--cfg", "nan"],
     "a number of 0 or more, got 'nan'"),
    ("sample", ["--name", "mardm", *ON_DEMO, "--text_prompt", "walk", "--temperature", "-1"],
     "a number of 0 or more"),
    ("sample", ["--name", "mardm", *ON_DEMO, "--text_prompt", "walk", "--motion_length", "abc"],
     "a whole number of 0 or more"),
    ("sample", ["--name", "mardm", *ON_DEMO, "--text_prompt", "walk", "--motion_length", "40", "--no_video",
                "--output_dir", "datasets/demo/train.txt"], "Not a directory"),
    ("evaluation_AE", ["--name", "ae", "--model", "FSQ_AE_Symmetric", *ON_DEMO],
     "was trained as FSQ_AE_High"),
    ("scripts.analyze_codes", ["--name", "absent", *ON_DEMO], "no checkpoint at"),
    ("scripts.quantizer_bench", ["--steps", "0"], "1 or more"),
    ("scripts.quantizer_bench", ["--name", "a/b", *ON_DEMO], "must be a plain name"),
    ("scripts.quantizer_bench", ["--rows", "fsq_ae_HIGHH"], "did you mean FSQ_AE_High or"),
    ("train_AE", ["--name", "new", *AE, *TRAIN, "--window_size", "42"], "multiple of 4"),
    ("train_AE", ["--name", "new", *AE, *TRAIN, "--batch_size", "0"], "1 or more"),
    ("train_AE", ["--name", "new", *AE, *TRAIN, "--device", "cuda:9"], "--device"),
    ("train_MARDM", ["--name", "new", *GENERATOR, *TRAIN, "--ae_name", "absent"], "no checkpoint at"),
    ("train_MARDM", ["--name", "new", *TRAIN, "--ae_name", "ae", "--model", "MARDM-SiT-S"],
     "needs an autoencoder of the kind AE_Model*, not FSQ_AE_High"),
    ("train_MARDM", ["--name", "new", *TRAIN, "--ae_name", "ae", "--ae_model", "AE_Model", "--model",
                     "MARDM-SiT-S"],
     "was trained as FSQ_AE_High"),
    ("train_MARDM", ["--name", "new", *TRAIN, "--ae_name", "ae", "--ae_model", "FSQ_AE_High", "--model",
                     "MARDM-SiT-S"],
     "needs an autoencoder"),
    ("distill_head", ["--name", "new", *ON_DEMO, "--teacher", "absent"], "no checkpoint at"),
    ("distill_head", ["--name", "mardm", *ON_DEMO, "--teacher", "mardm"], "exists"),
    ("distill_head", ["--name", "new", *ON_DEMO, "--teacher", "mardm", "--teacher_steps", "6"],
     "multiple of 4"),
    ("sample", ["--name", "mardm", *ON_DEMO, "--text_prompt", "walk", "--cfg_interval", "0.6", "0.2"],
     "guidance interval goes from 0"),
    ("sample", ["--name", "mardm", *ON_DEMO], "either --text_prompt or --text_path"),
    ("sample", ["--name", "mardm", *ON_DEMO, "--text_prompt", "  "], "prompt is empty"),
    ("sample", ["--name", "mardm", *ON_DEMO, "--text_prompt", "walk", "--motion_length", "-4"], "0 or more"),
    ("sample", ["--name", "mardm", *ON_DEMO, "--text_prompt", "walk", "--motion_length", "500"],
     "outside 4..196"),
    ("sample", ["--name", "mardm", *ON_DEMO, "--text_path", "absent.txt"], "no file absent.txt"),
    ("sample", ["--name", "absent", *ON_DEMO, "--text_prompt", "walk"], "no checkpoint at"),
    ("sample", ["--name", "mardm", "--ae_name", "other", *ON_DEMO, "--text_prompt", "walk"], "other weights"),
    ("sample", ["--name", "mardm", "--ae_name", "evaluator", *ON_DEMO, "--text_prompt", "walk"],
     "holds no autoencoder"),
    ("evaluation_AE", ["--name", "absent", *ON_DEMO], "no checkpoint at"),
    ("evaluation_MARDM", ["--name", "mardm", "--ae_name", "ae", *ON_DEMO, "--evaluator", "absent"],
     "train one with train_evaluator.py"),
])
def test_mistakes_get_one_line(work, capsys, script, flags, message):
    if "other" in flags and not (work / "checkpoints/demo/other").exists():
        assert call("train_AE", "--name", "other", *AE, *TRAIN, *SHORT, "--seed", "1") == 0
    if not script.startswith("scripts.") and "--output_dir" not in flags:  # written to after the work
        same_with_check(capsys, script, flags)
    capsys.readouterr()
    assert call(script, *flags) == 2
    err = capsys.readouterr().err
    said = [line for line in err.splitlines() if line.startswith(("error:", "usage:", "Traceback"))]
    assert message in err and len(said) == 1 and said[0].startswith("error:")


@pytest.mark.parametrize("content, message", [
    ([1, 2], "holds a list"), (torch.zeros(3), "holds a Tensor"),
    ({"mardm": torch.zeros(3)}, "holds something else than a network's weights under 'mardm'"),
    ({"mardm": {}, "model_name": "FSQ-MARDM-SiT-S", "model_kwargs": {"wings": 2}}, "cannot be built"),
    (b"text", "not a checkpoint, or is damaged"),
])
def test_files_that_are_no_checkpoints(work, capsys, content, message):
    path = work / "checkpoints/demo/strange/model/latest.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    for flags in ([], ["--ae_name", "ae"]):
        assert call("sample", "--name", "strange", *flags, *ON_DEMO, "--text_prompt", "walk",
                    "--motion_length", "40") == 2
        err = capsys.readouterr().err
        assert "Traceback" not in err and (message in err or not flags and "--ae_name" in err)


@pytest.mark.parametrize("file", ["latest.tar", "net_best_fid.tar", "finest.tar"])
def test_no_run_is_overwritten(work, capsys, file):
    path = work / "checkpoints" / "demo" / f"copied {file}" / "model" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"somebody's")
    assert call("train_AE", "--name", f"copied {file}", *AE, *TRAIN, *SHORT) == 2
    assert "exists" in capsys.readouterr().err and path.read_bytes() == b"somebody's"


def test_a_run_that_diverges_keeps_its_last_good_state(work, capsys):
    flags = ["--name", "wild", *AE, *TRAIN, "--log_every", "1000", "--warm_up_iter", "0"]
    assert call("train_AE", *flags, "--lr", "1e30", "--clip_grad", "0") == 2
    err = capsys.readouterr().err
    assert "nothing has been saved yet" in err and not (
        work / "checkpoints/demo/wild/model/latest.tar").exists()


def test_clips_of_other_settings_are_not_overwritten(work):
    flags = ["--name", "mardm", *ON_DEMO, "--text_prompt", "walk", "--motion_length", "40", "--no_video",
             "--ode_steps", "2", "--output_dir", "kept"]
    for seed in (1, 2, 1, 2):  # the second time nothing new is made
        assert call("sample", *flags, "--seed", seed) == 0
    one, two = (np.load(file) for file in sorted((work / "kept" / "mardm_demo").glob("*.npy")))
    assert not np.array_equal(one, two)


def test_prompts_of_a_file_that_windows_wrote(tmp_path):
    from utils.clips import read_prompts

    (tmp_path / "prompts.txt").write_bytes("a person walks\r\na man bows#80\r\n".encode("utf-8-sig"))
    assert read_prompts(None, str(tmp_path / "prompts.txt")) == [("a person walks", 0), ("a man bows", 80)]


@pytest.mark.parametrize("prompts, said", [
    (["he waves", "он машет"], "not in Latin letters"),
    (["walks", "with", "both", "legs"], "quotation marks"),
    (["he waves#60"], "in --text_path only"), (["er läuft", "a man sits", "waves"], ""),
    (["walks", "sits"], ""),
])
def test_prompts_that_hardly_mean_what_they_say(prompts, said, capsys):
    from utils.clips import read_prompts

    assert read_prompts(prompts, None) == [(prompt, 0) for prompt in prompts]
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == bool(said)


def test_a_corrupt_file_in_the_data_set_is_named(work, tmp_path, monkeypatch, capsys):
    build_demo(tmp_path / "datasets" / "demo", num_clips=60)
    monkeypatch.chdir(tmp_path)
    for file in (tmp_path / "datasets/demo/new_joint_vecs").glob("*.npy"):
        file.write_bytes(file.read_bytes()[:100])
    assert call("train_AE", "--name", "ae", *AE, *TRAIN) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_generator_that_reads_words(work, capsys):
    """Training, resuming, sampling and editing with --text_cond tokens; a resumed run must read them too."""
    words = ["--name", "words", *GENERATOR, *TRAIN, "--text_cond", "tokens"]
    assert call("train_MARDM", *words, "--max_iter", "1") == 0
    assert call("train_MARDM", *words, "--max_iter", "2", "--is_continue") == 0
    capsys.readouterr()
    assert call("train_MARDM", *words[:-2], "--max_iter", "3", "--is_continue") == 2
    assert "another size or kind of model" in capsys.readouterr().err
    assert call("train_MARDM", *words[2:], "--name", "both", "--cond_mode", "action") == 2
    assert "goes with --cond_mode text" in capsys.readouterr().err
    flags = ["--name", "words", *ON_DEMO, "--no_video", "--time_steps", "2", "--ode_steps", "1"]
    assert call("sample", *flags, "--text_prompt", "walk, then jump", "--motion_length", "40") == 0
    clip = next((work / "generation" / "words_demo").glob("*.npy"))
    assert call("edit", *flags, "--source_motion", clip, "-msec", "8,20", "--text_prompt", "jump") == 0
    assert len(list(clip.parent.glob("*_edit_*.npy"))) == 1


@pytest.mark.parametrize("head", ["SiT1D", "Cat", "CatAR"])
def test_other_heads_train_and_sample(work, head):
    model = [*GENERATOR[:-1], f"FSQ-MARDM-{head}-S"]
    assert call("train_MARDM", "--name", head, *model, *TRAIN, "--max_iter", "1") == 0
    kwargs = torch.load(work / f"checkpoints/demo/{head}/model/latest.tar", weights_only=True)["model_kwargs"]
    assert kwargs["layers"] == 1 and kwargs["head_width"] == 64
    assert call("sample", "--name", head, *ON_DEMO, "--text_prompt", "walk", "--motion_length", "40",
                "--time_steps", "2", "--no_video") == 0
    assert list((work / f"generation/{head}_demo").glob("*.npy"))


def test_an_autoregressive_generator(work, capsys):
    """It trains, resumes, reads words, samples and is evaluated like the others; whatever keeps given tokens
    is refused in one line."""
    model = [*GENERATOR[:-1], "FSQ-GPT-S", "--layers", "1", "--head_width", "32", "--text_cond", "tokens"]
    model += [*TRAIN, "--batch_size", "96", "--epoch"]
    assert call("train_MARDM", "--name", "gpt", *model, "1") == 0
    assert call("train_MARDM", "--name", "gpt", *model, "2", "--is_continue") == 0
    assert call("train_MARDM", "--name", "gpt2", *model, "2") == 0
    parts, whole = (torch.load(work / f"checkpoints/demo/{name}/model/latest.tar", weights_only=True)
                    for name in ("gpt", "gpt2"))
    assert all(torch.equal(value, whole["ema_mardm"][key]) for key, value in parts["ema_mardm"].items())
    run = ["--name", "gpt", *ON_DEMO, "--cfg", "2"]
    flags = [*run, "--text_prompt", "walk", "--no_video"]
    assert call("sample", *flags, "--motion_length", "40") == 0
    clip = next((work / "generation/gpt_demo").glob("*.npy"))
    assert np.load(clip).shape == (40, 22, 3)
    assert call("evaluation_MARDM", *run, "--num_workers", "0", "--repeats", "1") == 0
    (work / "path.csv").write_text("seconds,x,z\n0,0,0\n2,0,2\n")
    capsys.readouterr()
    for script, more, what in [("sample", ["--chain", "--motion_length", "40"], "--chain"),
                               ("sample", ["--start_pose", clip, "--motion_length", "40"], "--start_pose"),
                               ("sample", ["--trajectory", "path.csv"], "--trajectory"),
                               ("sample", ["--motion_length", "40", "--time_steps", "6"], "--time_steps"),
                               ("edit", ["--source_motion", clip, "-msec", "8,20"], "editing")]:
        assert call(script, *flags, *more) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(said) == 1 and said[0].startswith(f"error: {what}") and "autoregressive" in said[0]
    assert call("train_MARDM", "--name", "index", *GENERATOR[:-1], "FSQ-GPT-Index-S", *TRAIN, "--max_iter",
                "1", "--diffmlps_batch_mul", "1") == 0


def test_distilling_a_head(work, capsys):
    """It resumes, leaves the transformer alone, samples with its own guidance, and refuses another."""
    flags = ["--name", "few", "--teacher", "mardm", *TRAIN, "--batch_size", "8", "--tokens", "16", "--cfg",
             "2"]
    assert call("distill_head", *flags, "--max_iter", "1") == 0
    assert call("distill_head", *flags, "--max_iter", "2", "--is_continue") == 0
    teacher, student = (load_generator(work / f"checkpoints/demo/{name}/model/{file}.tar")[0]
                        for name, file in (("mardm", "best"), ("few", "latest")))
    changed = {name.split(".")[0] for name, value in teacher.state_dict().items()
               if not torch.equal(value, student.state_dict()[name])}
    assert changed == {"DiffMLPs"} and student.DiffMLPs.own_cfg == 2
    flags = ["--name", "few", *ON_DEMO, "--text_prompt", "walk", "--motion_length", "40", "--no_video"]
    assert call("sample", *flags, "--ode_steps", "1") == 0
    capsys.readouterr()
    assert call("sample", *flags, "--cfg", "3") == 2
    assert "distilled with a guidance scale of 2" in capsys.readouterr().err
    assert call("distill_head", "--name", "again", "--teacher", "few", *ON_DEMO) == 2
    assert "only a SiT head can be distilled" in capsys.readouterr().err


def test_lengths_from_words(work):
    assert call("train_length_estimator", "--name", "by_words", *TRAIN, "--text_cond", "tokens", "--max_iter",
                "2", "--text_noise", "0.1") == 0
    for generator in ("mardm", "words"):
        if (work / "checkpoints/demo" / generator).is_dir():
            assert call("sample", "--name", generator, *ON_DEMO, "--text_prompt", "he kicks", "--no_video",
                        "--length_estimator", "by_words", "--time_steps", "2", "--ode_steps", "1") == 0
