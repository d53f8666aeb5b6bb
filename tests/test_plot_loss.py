"""plot_loss.py and analyze_training.py through their main(), on small event files made here."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

import analyze_training
import plot_loss
from utils import curves
from utils.errors import UserError


def write_events(folder, scalars, start=1000.0):
    """An event file begun at wall time ``start``. scalars: {tag: {step: value}}."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"events.out.tfevents.{int(start)}.host", "wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=start, file_version="brain.Event:2").SerializeToString())
        for tag, series in scalars.items():
            for step, value in series.items():
                summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
                writer.write(Event(wall_time=start + step, step=step, summary=summary).SerializeToString())


def falling(first, last, scale=1.0):
    return {step: scale * 100 / (100 + step) for step in range(first, last + 1, 10)}


@pytest.fixture
def runs(tmp_path):
    """Two runs: A learns faster than B, and alone has a metric where higher is better."""
    a = {"Train/loss": falling(10, 2000), "Train/lr": {10: 1e-4, 20: 1e-4},
         "Val/FID": {500: 2.0, 1000: 0.5, 1500: 0.75}, "Val/R3": {500: 0.3, 1000: 0.7}}
    b = {"Train/loss": falling(10, 2000, scale=4.0), "Val/FID": {500: 4.0, 1000: 3.0}}
    write_events(tmp_path / "A" / "model", a)
    write_events(tmp_path / "B" / "model", b)
    return tmp_path


def is_picture(path):
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return min(pixels.shape[:2]) > 300 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_resumed_runs_are_joined_and_the_later_file_wins(tmp_path):
    first = {"Train/loss": {10: 5.0, 20: 4.0, 25: 9.0, 30: 3.0}, "Old/only": {20: 7.0}}
    write_events(tmp_path / "model", first, start=1000)
    write_events(tmp_path / "model", {"Train/loss": {20: 4.5, 30: 3.5, 40: 2.5}}, start=2000)
    (scalars,) = curves.read_runs([tmp_path]).values()
    steps, values = scalars["Train/loss"]
    assert steps.tolist() == [10, 20, 30, 40]           # 25 was repeated, though not logged again
    assert values.tolist() == [5.0, 4.5, 3.5, 2.5]
    assert scalars["Old/only"][1].tolist() == [7.0]     # a tag that the later file does not have is kept


def test_moving_average_is_not_pulled_to_zero_at_the_start():
    np.testing.assert_allclose(curves.ema(np.full(5, 3.0), 0.9), 3.0)
    np.testing.assert_allclose(curves.ema(np.array([1.0, 4.0]), 0.5), [1.0, 3.0])
    np.testing.assert_array_equal(curves.ema(np.array([1.0, 4.0]), 0.0), [1.0, 4.0])


def test_one_run(runs):
    for smooth in ("0", "0.9"):
        plot_loss.main(["--log_dir", str(runs / "A"), "--output", str(runs / f"{smooth}.png"), "--smooth",
                        smooth])
        assert is_picture(runs / f"{smooth}.png")
    assert (runs / "0.png").read_bytes() != (runs / "0.9.png").read_bytes()


@pytest.mark.parametrize("metric, count, lines",
                         [("Val/FID", 6, 1), ("Train/lr", 100, 1), ("Train/loss", 100, 2)])
def test_few_values_and_the_learning_rate_are_not_smoothed(metric, count, lines):
    figure, axes = plot_loss.plt.subplots()
    values = np.linspace(3.0, 1.0, count)
    plot_loss.draw_curves(axes, {"A": (np.arange(count), values)}, metric, 0.9)
    drawn = [line.get_ydata() for line in axes.lines]
    plot_loss.plt.close(figure)
    assert len(drawn) == lines and np.array_equal(drawn[0], values)
    assert np.array_equal(drawn[-1], values) == (lines == 1)


def test_comparison_draws_every_run_under_its_name(runs, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plot_loss, "plot_metric",
                        lambda curves, metric, *rest: drawn.update(curves=curves, metric=metric))
    plot_loss.main(["--log_dirs", str(runs / "A"), str(runs / "B"), "--names", "fast one", "B", "--metric",
                    "Val/FID"])
    assert drawn["metric"] == "Val/FID" and list(drawn["curves"]) == ["fast one", "B"]
    assert drawn["curves"]["B"][1].tolist() == [4.0, 3.0]


def test_comparison_picture(runs):
    picture = runs / "sub" / "c.png"
    plot_loss.main(["--log_dirs", str(runs / "A"), str(runs / "B"), "--log_scale", "--output", str(picture)])
    assert is_picture(picture)
    # no temporary file stays behind
    assert [path.name for path in (runs / "sub").iterdir()] == ["c.png"]


@pytest.mark.parametrize("folder, pictures", [(".", 4), ("B", 2)])
def test_all_metrics(runs, folder, pictures):
    plot_loss.main(["--log_dir", str(runs / folder), "--all", "--output_dir", str(runs / "all")])
    names = sorted(path.name for path in (runs / "all").iterdir())
    assert len(names) == pictures and {"Train_loss.png", "Val_FID.png"} <= set(names)


def test_values_that_are_not_finite_are_left_out(tmp_path):
    write_events(tmp_path, {"Train/loss": {1: 2.0, 2: float("nan"), 3: 1.0}, "bad": {1: float("inf")}})
    (scalars,) = curves.read_runs([tmp_path]).values()
    assert curves.curve(scalars, "Train/loss", "run")[0].tolist() == [1, 3]
    with pytest.raises(UserError, match="no finite value"):
        curves.curve(scalars, "bad", "run")


@pytest.mark.parametrize("arguments, message", [
    (["--log_dir", "missing"], "no folder"),
    (["--log_dir", "empty"], "no TensorBoard events"),
    (["--log_dir", "rubbish"], "hold no scalars"),
    (["--log_dir", "."], "contains 2 runs"),
    (["--log_dir", "A", "--metric", "Val/nothing"], "it has: Train/loss, Train/lr, Val/FID, Val/R3"),
    (["--log_dirs", "A", "B", "--names", "one"], "--names gives 1 names for 2 runs"),
    (["--log_dirs", "A", "A"], "two runs are called 'A'"),
    (["--log_dir", ".", "--all", "--names", "same", "same"], "two runs are called 'same'"),
    (["--log_dir", ".", "--all", "--names", "one"], "--names gives 1 names for 2 runs \\(A, B\\)"),
    (["--log_dir", "A", "--output", "curve.txt"], "must end in .png"),
    (["--log_dir", "A", "--output", "A/model/events.out.tfevents.1000.host/x.png"], "cannot write"),
])
def test_mistakes_are_one_line(runs, monkeypatch, arguments, message):
    (runs / "empty").mkdir()
    if "rubbish" in arguments:
        (runs / "rubbish").mkdir()
        (runs / "rubbish" / "events.out.tfevents.1").write_bytes(b"not an event file at all")
    monkeypatch.chdir(runs)
    with pytest.raises(UserError, match=message) as caught:
        plot_loss.main(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", [[], ["--log_dir", "A", "--log_dirs", "B"],
                                       ["--log_dir", "A", "--smooth", "1"]])
def test_wrong_arguments_exit_with_2(arguments):
    with pytest.raises(SystemExit) as caught:
        plot_loss.main(arguments)
    assert caught.value.code == 2


def test_the_script_itself_exits_with_2_and_one_line(tmp_path):
    done = subprocess.run([sys.executable, str(ROOT / "plot_loss.py"), "--log_dir", str(tmp_path / "none")],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no folder") and done.stderr.count("\n") == 1


def analysis(runs, *arguments):
    out = runs / "out"
    analyze_training.main(["--log_dirs", str(runs / "A"), str(runs / "B"), "--output_dir", str(out),
                           *arguments])
    return json.loads((out / "analysis.json").read_text())


def test_analysis_results(runs, capsys):
    found = analysis(runs, "--names", "FSQ", "VQ", "--threshold", "0.25", "--window", "50")
    fast, slow = found["runs"]["FSQ"], found["runs"]["VQ"]
    assert fast["reached_at"] == 300                                    # 100 / (100 + 300) = 0.25
    assert slow["reached_at"] == 1500                                   # 400 / (100 + 1500)
    assert 300 < fast["reached_at_smoothed"] < 500
    tail = np.array([100 / (100 + step) for step in range(1510, 2001, 10)])
    assert fast["window"]["values"] == 50
    np.testing.assert_allclose([fast["window"]["mean"], fast["window"]["std"]], [tail.mean(), tail.std()],
                               rtol=1e-6)
    np.testing.assert_allclose(slow["window"]["std_over_mean"], tail.std() / tail.mean(), rtol=1e-6)
    # lower is better
    assert fast["metrics"]["Val/FID"] == {"best": 0.5, "iteration": 1000, "last": 0.75}
    # higher is better
    assert fast["metrics"]["Val/R3"]["best"] == pytest.approx(0.7)
    printed = capsys.readouterr().out
    assert "Val/FID" in printed and "1,500" in printed and is_picture(runs / "out" / "analysis.png")


@pytest.fixture
def no_figure(monkeypatch):
    monkeypatch.setattr(analyze_training, "plot", lambda *args: None)       # the slow part, tested above


def test_analysis_of_a_threshold_that_is_never_reached(runs, capsys, no_figure):
    found = analysis(runs, "--threshold", "0.0001")
    assert found["runs"]["A"]["window"]["values"] == 50  # of 200, by default
    assert found["runs"]["A"]["reached_at"] is None and found["runs"]["A"]["reached_at_smoothed"] is None
    assert "never" in capsys.readouterr().out


def test_analysis_of_a_metric_of_which_more_is_better(tmp_path, no_figure):
    for name, offset in (("A", 0.0), ("B", 0.1)):
        write_events(tmp_path / name, {"Val/score": {1: 0.1 + offset, 2: 0.5 + offset, 3: 0.3 + offset}})
    settings = ["--metric", "Val/score", "--threshold", "0.55", "--smooth", "0"]
    found = analysis(tmp_path, *settings, "--maximize", "Val/score")["runs"]
    assert found["A"]["reached_at"] is None and found["B"]["reached_at"] == 2
    assert found["A"]["metrics"]["Val/score"]["iteration"] == 2
    # without the flag lower is better
    assert analysis(tmp_path, *settings)["runs"]["A"]["reached_at"] == 1
    assert analyze_training.more_is_better("Val/R1") and not analyze_training.more_is_better("Val/1-R3")


def test_analysis_table_is_aligned():
    lines = analyze_training.format_table([["a long name", "1"], ["b", "10,000"]], ["run", "at"],
                                          left=1).splitlines()
    assert {len(line) for line in lines} == {len("a long name") + 2 + len("10,000")}
    assert lines[2].endswith("     1") and lines[3].startswith("b ")


def test_analysis_mistakes_are_one_line(runs):
    with pytest.raises(UserError, match="B has no metric 'Val/R3'; it has: Train/loss, Val/FID"):
        analysis(runs, "--metric", "Val/R3")
    with pytest.raises(UserError, match="finite"):
        analysis(runs, "--threshold", "nan")


def test_a_run_is_named_by_its_folder_and_not_by_its_model_folder():
    for folder in ("checkpoints/demo/AE/model", "checkpoints/demo/AE"):
        assert curves.run_folder(Path(folder)).name == "AE"
