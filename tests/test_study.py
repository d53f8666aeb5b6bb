"""scripts.study with scripts that are not run: what is called in which order, and what is refused."""
import json
from types import SimpleNamespace

import pytest
import torch
from tiny import call

from models.MARDM import check_pair
from scripts import runs, study
from utils.errors import UserError
from utils.report import write_json

ON = ["--dataset_name", "mine", "--device", "cpu", "--num_workers", "0"]
COMMON = {"train": "--ae_name AE --max_iter 7 --milestones 3 5", "evaluate": "--repeats 1"}
ROWS = {"fast": {"of": "base", "evaluate": "--solver euler"},
        "base": {"train": "--lr 1e-3"},
        "short": {"of": "fast", "script": "follow_up.py", "flags": "--calls 1", "evaluate": "--cfg 2"}}
SCRIPT = """
from utils import options

def parse_args():
    parser = options.make_parser("")
    options.add_common(parser, "x")
    options.add_training(parser, 64, 5, 2e-4, 0, 0, [1], 1)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--calls", type=options.positive_int)
    return parser.parse_args()
"""


def value_of(command, flag):
    return command[command.index(flag) + 1]


class FakeRuns:
    """In place of Runner.run: keeps the commands, and writes what the scripts would leave. fail: scripts that
    do not finish."""

    def __init__(self):
        self.commands, self.fail = [], set()

    def __call__(self, runner, command, **streams):
        self.commands.append(command)
        folder = runs.RunFolder("checkpoints", "mine", value_of(command, "--name"))
        if command[0] in self.fail:
            return runs.Finished(1, 1.0, 1.0)
        if command[0] == "evaluation_MARDM.py":
            self.write_result(command, folder.root / "eval" / value_of(command, "--eval_name"))
        else:
            folder.model_dir.mkdir(parents=True, exist_ok=True)
            args = {"lr": float(value_of(command, "--lr"))} if "--lr" in command else {}
            torch.save({"args": args}, folder.latest)
        return runs.Finished(0, 1.0, 1.0)

    def write_result(self, command, folder):
        fid = int(value_of(command, "--seed")) + (10 if "euler" in command else 0)
        scores = {key: {"mean": 0.5, "interval": 0.0} for key in runs.SCORES} | {
            "FID": {"mean": fid, "interval": 0.0}}
        sides = {"generated": 0.25, "real": 0.125}
        write_json(folder / "evaluation_MARDM.json", {
            "protocol": "trained", "scores": {"generated": scores, "real": scores}, "steps": 7, "clips": 36,
            **{key: sides for key in runs.CLIP_METRICS}, "label_accuracy": None, "seconds_per_clip": 0.5})

    def names(self):
        """[(script, run, eval_name or teacher)] of the calls."""
        return [(command[0], value_of(command, "--name"),
                 value_of(command, "--eval_name") if "--eval_name" in command else
                 value_of(command, "--teacher") if "--teacher" in command else None)
                for command in self.commands]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    write_json(tmp_path / "datasets/mine/dataset.json", {
        "name": "mine", "skeleton": "t2m", "fps": 20.0, "min_frames": 40, "max_frames": 199,
        "text_encoder": "minilm"})
    (tmp_path / "follow_up.py").write_text(SCRIPT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "ROOT", tmp_path)
    monkeypatch.setattr(study, "load_suite",
                        lambda *_: SimpleNamespace(protocol="trained", files={"file": "hash"}))
    monkeypatch.setattr(study, "load_generator", lambda _: (torch.nn.Linear(999, 1000), {}))
    (tmp_path / "checkpoints/mine/AE/model").mkdir(parents=True)
    torch.save({}, tmp_path / "checkpoints/mine/AE/model/latest.tar")
    made = FakeRuns()
    monkeypatch.setattr(runs.Runner, "run", lambda runner, command, **streams: made(runner, command))
    return made


def start(rows, *flags, common=COMMON):
    text = rows if isinstance(rows, str) else json.dumps({"common": common, "rows": rows})
    with open("study.json", "w") as file:
        file.write(text)
    return call("scripts.study", "study.json", *ON, "--seed", "1", "--seeds", "2", *flags)


def table():
    with open("generation/study_mine/study.json") as file:
        return json.load(file)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_every_generator_is_trained_once_and_evaluated_by_every_row(fake, jobs):
    assert start(ROWS, "--jobs", jobs) == 0
    names = fake.names()
    for seed in (1, 2):
        expected = [("train_MARDM.py", f"study_base_{seed}", None),
                    ("evaluation_MARDM.py", f"study_base_{seed}", "base"),
                    ("evaluation_MARDM.py", f"study_base_{seed}", "fast"),
                    ("follow_up.py", f"study_short_{seed}", f"study_base_{seed}"),
                    ("evaluation_MARDM.py", f"study_short_{seed}", "short")]
        found = [name for name in names if name[1].endswith(f"_{seed}")]
        assert found == expected if jobs == "1" else sorted(map(str, found)) == sorted(map(str, expected))
        assert found[0] == expected[0]
    train, evaluate, fast, follow, _ = fake.commands[:5] if jobs == "1" else [[]] * 5
    if jobs == "1":
        assert train[1:8] == ["--ae_name", "AE", "--max_iter", "7", "--milestones", "3", "5"]
        assert value_of(train, "--lr") == "1e-3" and "--is_continue" not in train
        assert value_of(evaluate, "--which") == "latest" and value_of(fast, "--solver") == "euler"
        assert value_of(follow, "--calls") == "1" and "--ae_name" not in follow


def test_the_table(fake):
    assert start(ROWS) == 0
    content = table()
    assert [row["row"] for row in content["rows"]] == ["fast", "base", "short"]  # as in the file
    fast, base, short = content["rows"]
    assert (base["FID"], fast["FID"], base["seeds"]) == (1.5, 11.5, 2)
    assert base["FID_std"] == pytest.approx(0.5**0.5) and base["nearest_train"] == 0.25
    assert base["parameters"] == 1.0 and base["steps"] == 7 and base["training_seconds"] >= 0
    assert "training_seconds" not in fast and "training_seconds" in short and "label_accuracy" not in base
    assert content["runs"]["base"]["1"]["real"]["peak_jerk"] == 0.125
    with open("generation/study_mine/study.md") as file:
        assert "| base | 1.5000 ± 0.7071 | 0.500 |" in file.read()


def test_started_again_it_resumes(fake):
    fake.fail = {"evaluation_MARDM.py"}
    assert start(ROWS) == 2
    assert fake.names()[-1] == ("evaluation_MARDM.py", "study_base_1", "base") and not table()["runs"]
    fake.fail, fake.commands = set(), []
    assert start(ROWS) == 0
    assert "--is_continue" in fake.commands[0] and fake.commands[0][0] == "train_MARDM.py"
    fake.commands = []
    assert start(ROWS) == 0 and not fake.commands
    # a new row of a finished generator needs no training
    assert start(ROWS | {"slow": {"of": "base", "evaluate": "--solver heun"}}, "--seeds", "1") == 0
    assert fake.names() == [("evaluation_MARDM.py", "study_base_1", "slow")]


def test_a_failed_training_is_not_tried_again_by_other_rows(fake, capfd):
    fake.fail = {"train_MARDM.py"}
    assert start(ROWS, "--jobs", "2", "--seeds", "1") == 2
    assert len(fake.commands) == 1
    assert "train_MARDM.py did not finish for study_base_1" in capfd.readouterr().err


def test_other_recipes_are_refused(fake, capfd):
    assert start(ROWS, "--seeds", "1") == 0
    fake.commands = []
    assert start(ROWS | {"base": {"train": "--lr 1e-4"}}) == 2
    assert "has the row 'base' by another recipe" in capfd.readouterr().err
    assert start(ROWS, common=COMMON | {"evaluate": ""}) == 2
    assert "was made with evaluate --repeats 1, not" in capfd.readouterr().err
    assert start({"base": {"train": "--lr 1e-4"}}, "--output_dir", "other") == 2
    assert "was begun with lr 0.001, not 0.0001" in capfd.readouterr().err
    assert not fake.commands


BASE = {"base": {}}


@pytest.mark.parametrize("rows, message", [
    ("{", "is not JSON"), ("[]", "holds no JSON object"), ("{}", "has no rows"),
    ('{"rows": {"a": {}, "a": {}}}', "'a' is named twice"), ('{"row": {}}', "unknown key 'row'"),
    ('{"rows": {"a": {}}, "common": {"trian": ""}}', "unknown key 'trian'"),
    ({"a": {"trian": ""}}, "row 'a' has the unknown key 'trian'"), ({"a": []}, "must be a JSON object"),
    ({"a/b": {}}, "row 'a/b': a row's name"), ({"..": {}}, "a row's name"), ({"a b": {}}, "a row's name"),
    ({"a": {"train": 3}}, "must be text with flags"), ({"a": {"train": "'"}}, "cannot be split into flags"),
    ({"a": {"train": "--name x"}}, "--name is set by the study"),
    ({"a": {"evaluate": "--which=best"}}, "--which is set by the study"),
    ({"a": {"evaluate": "--protocol standard"}}, "--protocol belongs to common"),
    ({"a": {"of": "b"}}, "row 'a' is of 'b', which is no row"), ({"a": {"of": 3}}, "which is no row"),
    ({"a": {"of": "a"}}, "row 'a' is of itself: a of a"),
    ({"a": {"of": "b"}, "b": {"of": "a"}}, "row 'a' is of itself: a of b of a"),
    ({**BASE, "c": {"of": "base", "train": "--lr 1"}}, "trains nothing"),
    ({**BASE, "c": {"of": "base", "flags": ""}}, "trains nothing"),
    ({"c": {"script": "follow_up.py"}}, 'go with "of"'),
    ({**BASE, "c": {"of": "base", "script": "absent.py"}}, "no script 'absent.py'"),
    ({**BASE, "c": {"of": "base", "script": "../x.py"}}, "no script '../x.py'"),
    ({**BASE, "c": {"of": "base", "script": "empty.py"}}, "no script that a study can call"),
    ({**BASE, "c": {"of": "base", "script": "follow_up.py", "flags": "--calls 0"}}, "'c': argument --calls"),
    ({"a": {"train": "--lr much"}}, "row 'a': argument --lr: must be a number"),
    ({"a": {"train": "--unit_length 8"}}, "row 'a': --unit_length must be 4"),
    ({"a": {"evaluate": "--slover x"}}, "row 'a': evaluate: unrecognized arguments: --slover"),
    ({"a": {"train": "--ae_name other"}}, "train that first, or correct --ae_name"),
    ({"a": {"evaluate": "--ae_name other"}}, "train that first, or correct --ae_name"),
    ({"a": {"evaluate": "--probe_repeats 1"}}, "train that first, or correct --length_estimator"),
    ({"a": {"train": "--model VQ-MARDM-SiT-S"}}, "needs an autoencoder of the kind VQ_AE*, not AE_Model")])
def test_bad_files_are_named_before_anything_is_trained(fake, capfd, tmp_path, rows, message):
    (tmp_path / "empty.py").write_text("")
    assert start(rows) == 2
    said = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert len(said) == 1 and said[0].startswith("error: ") and message in said[0], said
    assert not fake.commands


def test_chosen_rows_come_with_what_they_are_made_of(fake):
    start(ROWS, "--rows", "short", "--seeds", "1")
    assert fake.names() == [("train_MARDM.py", "study_base_1", None),
                            ("follow_up.py", "study_short_1", "study_base_1"),
                            ("evaluation_MARDM.py", "study_short_1", "short")]
    start(ROWS, "--rows", "fast", "--seeds", "1")
    assert "--is_continue" in fake.commands[3]  # the table has no row for it, so it may be unfinished
    assert len(fake.commands) == 5 and [row["row"] for row in table()["rows"]] == ["fast", "short"]


def test_an_unknown_row_is_named(fake, capfd):
    assert start(ROWS, "--rows", "slow") == 2
    assert "study.json has no row 'slow'; it has fast, base, short" in capfd.readouterr().err


def test_a_missing_file(fake, capfd):
    assert call("scripts.study", "absent.json", *ON) == 2
    assert "absent.json cannot be read (No such file" in capfd.readouterr().err


@pytest.mark.parametrize("path", sorted((study.ROOT / "docs/results/recipes").glob("*.json")),
                         ids=lambda path: path.stem)
def test_the_recipes_of_the_documents_can_be_read(path):
    common, rows = study.read_study(path)
    for name, row in rows.items():
        study.parse(name, ["evaluation_MARDM.py", *common["evaluate"], *row.evaluate])
        if row.script == study.TRAIN:
            args = study.parse(name, [row.script, *common["train"], *row.flags])
            check_pair(args.model, args.ae_model)
        elif row.script:
            study.parse(name, [row.script, *row.flags, "--teacher", "x"])


def test_damaged_seconds_are_named(tmp_path):
    (tmp_path / "seconds.json").write_text("{")
    with pytest.raises(UserError, match="is damaged; remove it"):
        study.read_seconds(tmp_path / "seconds.json")
