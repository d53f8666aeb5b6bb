"""scripts/doctor.py on small made-up folders: every fault is named, at its level, and good ones are ok."""
import importlib
import json
import pickle
import shutil
import sys

import numpy as np
import pytest
import torch

import sample
from models import TextEncoder
from models.AE import AE_models
from models.LengthEstimator import LengthEstimator
from models.loading import weights_hash
from models.MARDM import MARDM_models
from scripts import doctor
from utils.data.specs import KNOWN
from utils.errors import run
from utils.evaluation import suites
from utils.evaluation.evaluators import (
    ContrastiveEvaluator,
    MotionEncoderBiGRUCo,
    MovementConvEncoder,
    TextEncoderBiGRUCo,
)
from utils.motion.skeletons import SKELETONS
from utils.text_condition import WordTable

SPLITS = {"train": 24, "val": 6, "test": 40}
DESCRIPTION = {"name": "own", "skeleton": "t2m", "fps": 20.0, "min_frames": 40, "max_frames": 199,
               "text_encoder": "minilm"}


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    """An empty working folder; both text encoders load, by stand-ins."""
    monkeypatch.chdir(tmp_path)
    replace_text_encoders(monkeypatch, lambda name: Encoder())
    return tmp_path


class Encoder:
    def encode(self, texts):
        return torch.zeros(len(texts), 384)

    def encode_words(self, texts):
        ends = range(1, len(texts) + 1)
        return WordTable(torch.zeros(len(texts), 384), torch.zeros(len(texts), 384).half(), ends)


def replace_text_encoders(monkeypatch, load):
    for module in (TextEncoder, sample):
        monkeypatch.setattr(module, "load_text_encoder", load)


def make_dataset(root, skeleton="t2m", frames=70, describe=None):
    """70 clips whose Mean and Std fit, in HumanML3D's layout; ids 000000 on, by split."""
    width, rng = SKELETONS[skeleton].feature_dim, np.random.default_rng(0)
    (root / "new_joint_vecs").mkdir(parents=True)
    (root / "texts").mkdir()
    for start, (split, count) in zip((0, 24, 30), SPLITS.items()):
        names = [f"{start + i:06d}" for i in range(count)]
        (root / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            np.save(root / "new_joint_vecs" / f"{name}.npy",
                    rng.normal(1.0, 2.0, (frames, width)).astype(np.float32))
            (root / "texts" / f"{name}.txt").write_text(f"clip {name}#clip/NOUN#0.0#0.0\n")
    np.save(root / "Mean.npy", np.full(width, 1.0, np.float32))
    np.save(root / "Std.npy", np.full(width, 2.0, np.float32))
    if describe:
        (root / "dataset.json").write_text(json.dumps(describe))
    return root


def own_dataset(**changes):
    return make_dataset(doctor.Path("datasets/own"), describe=DESCRIPTION | changes)


def examine(capsys, *flags):
    """(exit code, [Finding] of all sections, what was printed) of the script, run as the shell would."""
    before, sys.argv = sys.argv, ["doctor.py", "--json", "report.json", *flags]
    try:
        with pytest.raises(SystemExit) as stop:
            run(importlib.import_module("scripts.doctor").main)
    finally:
        sys.argv = before
    report = json.loads(doctor.Path("report.json").read_text()) if doctor.Path(
        "report.json").is_file() else {"sections": {}}
    findings = [doctor.Finding(**finding) for section in report["sections"].values() for finding in section]
    assert stop.value.code == 2 or report["damaged"] == sum(finding.level == "damaged"
                                                            for finding in findings)
    return stop.value.code, findings, capsys.readouterr()


def level_of(findings, text):
    """The level of the one finding that says ``text``."""
    found = [finding for finding in findings if text in finding.what]
    assert len(found) == 1, (text, found)
    return found[0].level


def says(findings, command):
    """What is said of exactly this command: "ok" or "missing"."""
    found = {f.what: f.level for f in findings}
    return found.get(command) or found[f"{command} will not work"]


def save(content, dataset, name, file="latest.tar"):
    path = doctor.Path("checkpoints") / dataset / name / "model" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def trained(kind, model, name=None, kwargs=None, dataset="own", **more):
    """A checkpoint's dict as the training scripts write it."""
    return {kind: model.state_dict(), "model_name": name, "model_kwargs": kwargs, "total_it": 12, "ep": 1,
            "best": {"metric": "Val/loss", "value": 0.5, "epoch": 0}, "mean": torch.zeros(67),
            "std": torch.ones(67), "dataset": DESCRIPTION | {"name": dataset}} | more


def make_runs():
    """One small run of every kind on ``own``; returns the autoencoder and the generator's checkpoint."""
    kwargs = {"input_width": 67, "width": 8, "latent_dim": 8}
    ae = AE_models["FSQ_AE_High"](**kwargs)
    save(trained("ae", ae, "FSQ_AE_High", kwargs), "own", "ae")
    kwargs = {"ae_dim": 8, "target_dim": 6, "cond_mode": "text", "cond_dim": 384, "width": 16, "ff": 16,
              "layers": 1, "heads": 2, "head_width": 16, "head_depth": 1}
    content = trained("mardm", MARDM_models["FSQ-MARDM-SiT-S"](**kwargs), "FSQ-MARDM-SiT-S", kwargs,
                      trained_on={
        "name": "ae", "model_name": "FSQ_AE_High", "hash": weights_hash(ae)})
    content["ema_mardm"] = content["mardm"]
    save(content, "own", "mardm")
    judge = ContrastiveEvaluator(67, 384, 16, 16, 1, 2)
    save(trained("evaluator", judge, kwargs=judge.config), "own", "evaluator")
    save(trained("estimator", LengthEstimator(384, 50)), "own", "length_estimator")
    return ae, content


def test_an_empty_folder_is_not_damaged_and_says_where_things_come_from(capsys):
    code, findings, out = examine(capsys)
    assert code == 0 and not [f for f in findings if f.level == "damaged"]
    for place in ("datasets/HumanML3D", "datasets/KIT-ML",
                  "checkpoints/kit/text_mot_match_clip/model/finest.tar",
                  "checkpoints/t2m/text_mot_match_standard/model/finest.tar",
                  "checkpoints/t2m/Comp_v6_KLD005/meta/std.npy", "utils/eval_mean_std/t2m/eval_mean.npy"):
        found = [f for f in findings if f.what.startswith(("no ", "t2m: ", "kit: ")) and place in f.what]
        assert [f.level for f in found] == ["missing"], place
        assert found[0].advice or any(source in found[0].what for source in suites.SOURCE.values())
    assert level_of(findings, "our_vab_data.npy") == "missing"
    assert "0 damaged" in out.out and "text encoder minilm" in out.out


@pytest.mark.parametrize("name", ["t2m", "kit"])
def test_published_layouts_are_fine(capsys, name):
    make_dataset(doctor.Path("datasets") / KNOWN[name]["folder"], KNOWN[name]["skeleton"])
    code, findings, _ = examine(capsys)
    assert code == 0
    assert level_of(findings, "Mean.npy and Std.npy fit 24 training clips") == "ok"
    assert level_of(findings, "train 24, val 6, test 40 clips") == "ok"
    assert says(findings, f"train_AE.py --dataset_name {name} --name NEW") == "ok"
    assert says(findings, f"train_length_estimator.py --dataset_name {name} --name NEW") == "ok"
    assert says(findings, f"train_MARDM.py --dataset_name {name} --name NEW") == "missing"


def test_every_fault_of_a_data_set_is_named(capsys):
    root = own_dataset()
    clips, texts = root / "new_joint_vecs", root / "texts"
    nan = np.load(clips / "000000.npy")
    nan[3, 200] = np.nan  # not an essential column
    np.save(clips / "000000.npy", nan)
    (clips / "000001.npy").write_bytes((clips / "000001.npy").read_bytes()[:500])
    np.save(clips / "000002.npy", np.zeros((70, 251), np.float32))  # KIT's width
    (clips / "000003.npy").unlink()
    (texts / "000004.txt").unlink()
    (texts / "000005.txt").write_text("a caption#a/DET#start#0.0\n")
    (texts / "000006.txt").write_text("\n")
    code, findings, _ = examine(capsys)
    assert code == 1
    assert level_of(findings, "holds NaN or infinite values, or no frames: 000000") == "damaged"
    assert [f.level for f in findings if "cannot be read" in f.what
            and f.what.endswith(": 000001")] == ["damaged"]
    assert level_of(findings, "has shape (70, 251), t2m needs (frames, 263): 000002") == "damaged"
    assert level_of(findings, "1 clips of train.txt have no .npy: 000003") == "missing"
    assert level_of(findings, "has no text file: 000004") == "missing"
    assert [f.level for f in findings if "text file that cannot be read" in f.what
            and "000005" in f.what] == ["damaged"]
    assert level_of(findings, "has no caption: 000006") == "missing"
    assert level_of(findings, "66 of 69 clips read can be used") == "ok"
    assert level_of(findings, "train 17, val 6, test 40 clips") == "ok"


def test_the_known_nan_clip_is_a_warning_on_humanml3d_only(capsys):
    for root in (make_dataset(doctor.Path("datasets/HumanML3D")), own_dataset()):
        np.save(root / "new_joint_vecs" / "007975.npy", np.full((70, 263), np.nan, np.float32))
    code, findings, _ = examine(capsys)
    assert code == 1
    levels = [f.level for f in findings if "1 .npy: each holds NaN" in f.what and "007975" in f.what]
    assert sorted(levels) == ["damaged", "warning"]


@pytest.mark.parametrize("file, change", [("Mean.npy", lambda value: value + 1.5),
                                          ("Std.npy", lambda value: value / 5),
                                          ("Std.npy", lambda value: value * 5)])
def test_statistics_of_other_features(capsys, file, change):
    path = own_dataset() / file
    np.save(path, change(np.load(path)))
    code, findings, _ = examine(capsys)
    assert code == 1 and level_of(findings, "Mean.npy and Std.npy do not fit") == "damaged"


def test_statistics_are_compared_by_group(capsys):
    """A std that differs from column to column is fine when its mean over the group is right."""
    path = own_dataset() / "Std.npy"
    std = np.load(path)
    std[4:67] = np.tile([0.5, 2.0, 3.5], 21)
    np.save(path, std)
    code, findings, _ = examine(capsys)
    assert code == 0 and level_of(findings, "Mean.npy and Std.npy fit") == "ok"


@pytest.mark.parametrize("break_it, level, says, reason", [
    (lambda root: (root / "Std.npy").unlink(), "missing", "Std.npy is missing", "Std.npy is missing"),
    (lambda root: (root / "Mean.npy").write_bytes(b"no array"), "damaged", "Mean.npy and Std.npy:", "pickle"),
    (lambda root: (root / "val.txt").unlink(), "missing", "val.txt is missing", "val.txt is missing"),
    (lambda root: (root / "train.txt").write_text(""), "damaged", "train.txt is empty", "train.txt is empty"),
])
def test_what_training_needs(capsys, break_it, level, says, reason):
    break_it(own_dataset())
    code, findings, _ = examine(capsys)
    assert code == (level == "damaged")
    assert says in " ".join(f.what for f in findings if f.level == level)
    refused = [f for f in findings if f.what == "train_AE.py --dataset_name own --name NEW will not work"]
    assert len(refused) == 1 and reason in refused[0].advice


def test_a_description_that_is_not_json(capsys):
    (own_dataset() / "dataset.json").write_text("{")
    code, findings, _ = examine(capsys)
    assert code == 1 and level_of(findings, "dataset.json is not JSON") == "damaged"
    assert not [f for f in findings if "train_AE.py" in f.what]


def test_quick_reads_a_sample(capsys):
    clips = own_dataset() / "new_joint_vecs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "QUICK", {"train": 10, "val": 2, "test": 3})
        code, findings, _ = examine(capsys, "--quick")
        assert code == 0 and level_of(findings, "15 of 15 clips read") == "ok"
        assert says(findings, "train_AE.py --dataset_name own --name NEW") == "ok"
    (clips / "000001.npy").write_bytes(b"")  # 120 of 24 reads them all
    assert examine(capsys, "--quick")[0] == 1


def test_good_runs_make_all_commands_work(capsys):
    own_dataset()
    make_runs()
    code, findings, _ = examine(capsys)
    assert code == 0
    assert "weights" in next(f.what for f in findings
                             if "ae/latest.tar: autoencoder, FSQ_AE_High, 12 steps, " in f.what)
    assert "best Val/loss 0.5" in next(f.what for f in findings if "mardm/latest.tar: generator, "
                                                                   "FSQ-MARDM-SiT-S" in f.what)
    generator = "--dataset_name own --name mardm --ae_name ae --text_prompt 'a person walks'"
    for command in ("train_MARDM.py --dataset_name own --name NEW --ae_name ae --ae_model FSQ_AE_High "
                    "--model FSQ-MARDM-SiT-S",
                    "evaluation_AE.py --dataset_name own --name ae", f"sample.py {generator}",
                    "evaluation_MARDM.py --dataset_name own --name mardm --ae_name ae",
                    f"edit.py {generator} --source_motion FILE.npy -msec 0.3,0.6",
                    "train_AE.py --dataset_name own --name NEW",
                    "train_length_estimator.py --dataset_name own --name NEW"):
        assert says(findings, command) == "ok", command
    few = [f for f in findings if "--need_evaluation will not work" in f.what]
    assert len(few) == 1 and "retrieval needs 32 clips; the split of 6 clips has too few" in few[0].advice
    assert not any("--motion_length" in f.what for f in findings)


def test_a_generator_without_its_autoencoder(capsys):
    ae, content = make_runs()
    path = doctor.Path("checkpoints/own/ae")
    path.rename("checkpoints/own/renamed")
    code, findings, _ = examine(capsys)
    assert code == 0 and level_of(findings, "is not there; renamed is the same") == "warning"
    # needs no data set
    assert level_of(findings, "sample.py --dataset_name own --name mardm --ae_name renamed") == "ok"

    kwargs = {"input_width": 67, "width": 8, "latent_dim": 8}
    save(trained("ae", AE_models["FSQ_AE_High"](**kwargs), "FSQ_AE_High", kwargs), "own", "renamed")
    code, findings, _ = examine(capsys)
    assert code == 0 and level_of(findings,
                                  f"mardm's autoencoder ae ({weights_hash(ae)}) is not there") == "missing"
    refused = [f for f in findings if f.what.startswith("sample.py --dataset_name own --name mardm")]
    assert [f.level for f in refused] == ["missing"] and "no checkpoint at" in refused[0].advice

    tuned = trained("ae", AE_models["FSQ_AE_High"](**kwargs), "FSQ_AE_High", kwargs,
                    decoder_of={"name": "ae", "hashes": [weights_hash(ae)]})
    save(tuned, "own", "tuned")
    code, findings, _ = examine(capsys)
    assert level_of(findings, "is not there; tuned is the same but for its decoder") == "warning"
    assert level_of(findings, "sample.py --dataset_name own --name mardm --ae_name tuned") == "ok"
    shutil.rmtree("checkpoints/own/tuned")

    doctor.Path("checkpoints/own/renamed").rename(path)
    code, findings, _ = examine(capsys)
    assert code == 1 and level_of(findings, "has other weights now") == "damaged"


def test_bad_checkpoints(capsys):
    ae, content = make_runs()
    save(content | {"ema_mardm": {**content["ema_mardm"],
                                  "mask_latent": torch.full((1, 1, 8), float("nan"))}}, "own", "nan")
    save({"ae": ae.state_dict()}, "own", "strange")  # FSQ weights that say nothing do not fit AE_Model
    save({"something": 1}, "own", "unknown")
    save(trained("ae", ae) | {"extra": np.float64(1)}, "own", "code")
    path = save(content, "own", "cut")
    path.write_bytes(path.read_bytes()[:5000])
    doctor.Path("checkpoints/own/begun/model").mkdir(parents=True)
    code, findings, _ = examine(capsys)
    assert code == 1
    assert level_of(findings, "nan/model/latest.tar holds NaN or infinite weights") == "damaged"
    assert level_of(findings, "strange/model/latest.tar are those of another model") == "damaged"
    assert level_of(findings, "unknown/latest.tar: it holds no known model") == "damaged"
    assert level_of(findings, "code/model/latest.tar is damaged, or holds more than tensors") == "damaged"
    assert level_of(findings, "cut/model/latest.tar is not a checkpoint, or is damaged") == "damaged"
    assert level_of(findings, "begun has no latest.tar") == "warning"
    assert level_of(findings, "ae/latest.tar: autoencoder") == "ok"


def test_released_files_are_recognised_by_their_keys(capsys):
    make_dataset(doctor.Path("datasets/HumanML3D"))
    state = AE_models["AE_Model"](input_width=67, width=8, latent_dim=8).state_dict()
    save({"ae": {name: value for name, value in state.items() if name != "decoder.model.0.bias"}}, "t2m",
         "AE")
    code, findings, _ = examine(capsys)
    assert code == 1 and level_of(findings, "are those of another model") == "damaged"
    save({"ae": state, "ep": 1}, "t2m", "AE")  # its shapes tell its size
    code, findings, _ = examine(capsys)
    assert code == 0 and level_of(findings, "AE/latest.tar: autoencoder, a released file") == "ok"
    assert says(findings, "evaluation_AE.py --dataset_name t2m --name AE") == "ok"  # without FID
    assert says(findings, "evaluation_AE.py --dataset_name t2m --name AE --protocol standard") == "missing"


def test_released_evaluators_are_checked_for_width(capsys):
    def write(width, dataset):
        networks = {"movement_encoder": MovementConvEncoder(width, 8, 8),
                    "motion_encoder": MotionEncoderBiGRUCo(8, 8, 8),
                    "text_encoder": TextEncoderBiGRUCo(300, 15, 8, 8)}
        save({key: network.state_dict() for key, network in networks.items()}, dataset, "text_mot_match",
             "finest.tar")

    write(67, "t2m")
    write(247, "kit")
    meta = doctor.Path("checkpoints/t2m/Comp_v6_KLD005/meta")
    meta.mkdir(parents=True)
    np.save(meta / "mean.npy", np.zeros(263))
    np.save(meta / "std.npy", np.zeros(263))
    code, findings, _ = examine(capsys)
    assert level_of(findings, "t2m/text_mot_match/model/finest.tar: matching, essential protocol") == "ok"
    assert level_of(findings, "finest.tar reads 67 features, the standard protocol needs") == "missing"
    assert level_of(findings, "kit/text_mot_match/model/finest.tar: matching, standard protocol") == "ok"
    assert level_of(findings, "meta/mean.npy: statistics, standard protocol") == "ok"
    assert level_of(findings, "meta/std.npy holds values of 0 or less") == "damaged" and code == 1
    write(64, "t2m")
    _, findings, _ = examine(capsys)
    assert level_of(findings, "reads 64 features, the essential protocol needs") == "missing"


def test_glove(capsys):
    folder = doctor.Path("vectors")
    folder.mkdir()
    words = ["unk", "sos", "eos"]
    np.save(folder / "our_vab_data.npy", np.zeros((3, 300), np.float32))
    (folder / "our_vab_words.pkl").write_bytes(pickle.dumps(words))
    (folder / "our_vab_idx.pkl").write_bytes(pickle.dumps({word: i for i, word in enumerate(words)}))
    code, findings, _ = examine(capsys, "--glove_dir", "vectors")
    assert code == 0 and level_of(findings, "3 words in vectors") == "ok"
    np.save(folder / "our_vab_data.npy", np.full((3, 300), np.nan, np.float32))
    code, findings, _ = examine(capsys, "--glove_dir", "vectors")
    assert code == 1 and level_of(findings, "must be finite and of shape") == "damaged"
    (folder / "our_vab_words.pkl").write_bytes(pickle.dumps(examine))
    assert examine(capsys, "--glove_dir", "vectors")[0] == 1


def test_a_missing_text_encoder_stops_what_needs_it(capsys, monkeypatch):
    root = own_dataset()

    def absent(name):
        raise TextEncoder.TextEncoderError("minilm's weights are missing: no file")

    replace_text_encoders(monkeypatch, absent)
    code, findings, _ = examine(capsys)
    assert code == 0
    assert level_of(findings, "text encoder minilm: minilm's weights are missing") == "missing"
    assert says(findings, "train_length_estimator.py --dataset_name own --name NEW") == "missing"
    assert says(findings, "train_AE.py --dataset_name own --name NEW") == "ok"
    captions = [f"clip {i:06d}" for i in range(70)]  # features that are kept need no encoder
    (root / "text_features").mkdir()
    torch.save({"captions": captions, "features": torch.zeros(70, 384)}, root / "text_features" / "minilm.pt")
    assert says(examine(capsys)[1], "train_length_estimator.py --dataset_name own --name NEW") == "ok"


@pytest.mark.parametrize("flags", [["--nonsense"], ["--dataset_dir", "file"], ["--glove_dir", "file"],
                                   ["--json", "no/x.json"]])
def test_bad_flags(capsys, work, flags):
    (work / "file").write_text("")
    code, _, out = examine(capsys, *flags)
    assert code == 2 and "Traceback" not in out.err and out.err
