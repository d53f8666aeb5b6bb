"""The studio: one piece of work at a time, requests checked in the page's words, clips as sample.py and
edit.py make them, refusals as sentences; and, where there is a Chromium, its page from a prompt to a file."""
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_edit import largest_steps
from test_view import NASTY, chromium, picture, wait  # noqa: F401 (a fixture)
from tiny import FAST, call, enter, walk, write_checkpoints

import edit
import sample
import studio
from utils.arrays import load_array
from utils.errors import UserError, run
from utils.motion.skeletons import SKELETONS
from utils.studio import jobs, requests
from utils.studio.server import open_server
from utils.studio.takes import Takes

T2M = SKELETONS["t2m"]
ROW = {"prompt": "sit", "seconds": "2"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("studio")
    write_checkpoints(root, "body22", T2M)
    write_checkpoints(root, "free", T2M, cond_mode="uncond")
    write_checkpoints(root, "labels", T2M, cond_mode="action")
    write_checkpoints(root, "millimetres", SKELETONS["kit"], unit=0.001)
    return root


@pytest.fixture(autouse=True)
def no_pretrained_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(studio, "PRETRAINED", tmp_path / "pretrained")


@pytest.fixture
def desk(runs, tmp_path, monkeypatch):
    """A Studio on tiny generators, and a function that waits for a job."""
    enter(runs, tmp_path, monkeypatch)
    made = studio.Studio(studio.parse_args([*FAST, "--dataset_name", "body22", "--name", "mardm"]),
                         tmp_path / "session")
    yield made
    made.queue.close()


@pytest.mark.parametrize("flags, first", [
    ([], "body22"), (["--dataset_name", "labels"], "labels"),
    (["--dataset_name", "labels", "--name", "mardm"], "labels"),
    (["--dataset_name", "labels", "--name", "other"], "body22"),
])
def test_the_generator_that_is_named_comes_first(runs, tmp_path, monkeypatch, flags, first):
    enter(runs, tmp_path, monkeypatch)
    made = studio.Studio(studio.parse_args(flags), tmp_path / "session")
    about = made.models()
    made.queue.close()
    assert about["models"][about["wanted"]]["dataset"] == first


def test_of_the_weights_that_come_with_the_code_those_of_people_come_first(tmp_path, monkeypatch):
    monkeypatch.setattr(studio, "PRETRAINED", ROOT / "pretrained")
    found, _ = studio.find_generators(tmp_path)
    assert [trained.dataset for trained in found] == ["realmotion", "demo"]


def ask(dataset="body22", **wanted):
    return {"dataset": dataset, "model": "mardm", "rows": [ROW], "seed": 7, "guidance": "", "variants": 1,
            "clean_feet": False, **wanted}


def finished(desk, answer, state="done"):
    """What is told of a job once it has ended."""
    def ended():
        job, = (job for job in desk.state()["jobs"] if job["number"] == answer["job"])
        return job if job["state"] not in ("waiting", "running") else None

    job = wait(ended)
    assert job["state"] == state, job
    return job


def joints_of(desk, number):
    return load_array(desk.takes.take(number).current.path)


def by_command_line(script, *words):
    """The clips of a call of sample.py or edit.py."""
    assert call(script.__name__, "--name", "mardm", "--dataset_name", "body22", "--seed", "7", *FAST,
                "--no_video", *words) == 0
    files = sorted(Path("generation/mardm_body22").glob("*.npy"), key=lambda path: path.stat().st_mtime_ns)
    return [np.load(file) for file in files]


# Jobs.

@pytest.fixture
def queue():
    made = jobs.Queue()
    yield made
    made.close()


def test_one_job_at_a_time_in_order(queue):
    go, order, at_once = threading.Event(), [], []

    def work(job):
        at_once.append(sum(other.state == "running" for other in queue.jobs))
        assert go.wait(10)
        order.append(job.title)
        return job.title

    for title in "abc":
        queue.add(title, work)
    wait(lambda: queue.about()[0]["state"] == "running")
    assert [job["ahead"] for job in queue.about()] == [[], ["a"], ["a", "b"]]
    go.set()
    wait(lambda: all(job["state"] == "done" for job in queue.about()))
    assert order == ["a", "b", "c"] == [job["result"] for job in queue.about()] and at_once == [1, 1, 1]


def test_jobs_are_followed_and_cancelled(queue):
    step, reached = threading.Semaphore(0), []

    def work(job):
        job.begin("counting", 1000)
        for number in job.follow(range(1000)):
            assert step.acquire(timeout=10)
            reached.append(number)

    first, second = queue.add("first", work), queue.add("second", work)
    for _ in range(3):
        step.release()
    wait(lambda: first.done == 3)
    about = queue.about()[0]
    assert (about["stage"], about["done"], about["total"], about["state"]) == ("counting", 3, 1000, "running")
    queue.cancel(second.number)
    queue.cancel(first.number)
    assert second.state == "cancelled" and first.state == "running"
    step.release()
    wait(lambda: first.state == "cancelled")
    assert reached == [0, 1, 2, 3]
    queue.cancel(first.number)
    with pytest.raises(UserError, match="no job 99"):
        queue.cancel(99)
    third = queue.add("third", lambda job: 3)  # the thread lives on
    wait(lambda: third.state == "done")


def test_failures_are_sentences_and_faults_go_to_the_terminal(queue, capsys):
    def fail(error):
        def work(job):
            raise error
        return work

    errors = [UserError("write more"), FileNotFoundError(2, "No such file", "x.tar"), MemoryError(),
              ZeroDivisionError("secret")]
    made = [queue.add("bad", fail(error)) for error in errors]
    wait(lambda: made[-1].state == "failed")
    assert [job.error for job in made[:2]] == ["write more", "x.tar: No such file"]
    assert "fewer variants" in made[2].error and made[3].error == jobs.FAULT
    shown = capsys.readouterr().err
    assert "ZeroDivisionError: secret" in shown and "write more" not in shown


def test_the_queue_is_bounded_and_forgets(queue, monkeypatch):
    go = threading.Event()
    for _ in range(jobs.MOST_WAITING + 1):
        queue.add("x", lambda job: go.wait(10))
        wait(lambda: queue.jobs[0].state == "running")
    with pytest.raises(UserError, match="wait already"):
        queue.add("x", lambda job: 0)
    go.set()
    wait(lambda: queue.jobs[-1].state == "done")
    for _ in range(40):
        job = queue.add("y", lambda job: 0)
        wait(lambda job=job: job.state == "done")
    assert len(queue.jobs) <= jobs.KEPT + 1


# Requests.

@pytest.fixture
def text(desk):
    return desk.trained(ask())


def test_generators_are_found_and_described(desk, text):
    about = desk.models()
    assert [(one["dataset"], one["condition"]) for one in about["models"]] == [
        ("body22", "text"), ("free", "uncond"), ("labels", "action"), ("millimetres", "text")]
    assert about["wanted"] == 0 and not about["advice"] and not about["left_out"] and about["seed"] == 3407
    assert [one["fixed"] for one in about["models"]] == [None, 1.0, None, None]
    assert about["models"][2]["actions"] == ["bow", "jump"] and about["guidance"] == 2
    assert text.spec.fps == 20 and requests.Trained(*text[:-1], 3.5).about()["fixed"] == 3.5


def test_rows_become_parts(text):
    rows = [{"prompt": "  sit \n down ", "seconds": ""}, {"prompt": "", "seconds": ""},
            {"prompt": "走 é <b>\ud800", "seconds": 3.19}, {"prompt": "x", "seconds": None}]
    motion = requests.read_motion(ask(rows=rows, variants="3", guidance="1.5", clean_feet=True), text)
    assert motion.prompts == ["sit down", "走 é <b>", "x"] and motion.frames == [0, 64, 0]
    assert motion.chained and motion.variants == 3
    assert motion.settings == requests.Settings(7, 1.5, True)
    one = requests.read_motion(ask(rows=[{"prompt": "x", "seconds": "9.8"}]), text)
    long = requests.read_motion(ask(rows=[{"prompt": "x", "seconds": "10"}]), text)
    assert not one.chained and one.frames == [196] and long.chained and long.frames == [200]


@pytest.mark.parametrize("wanted, message", [
    (dict(rows=[]), "write what the body does"),
    (dict(rows=[{"prompt": " \t", "seconds": ""}]), "write what the body does"),
    (dict(rows=None), "the page sent no rows"), (dict(rows=["x"]), "the page sent no rows"),
    (dict(rows=[ROW, {"prompt": " ", "seconds": 3}]), "row 2: the prompt is empty"),
    (dict(rows=[{"prompt": "\ud800", "seconds": 3}]), "row 1: the prompt is empty"),
    (dict(rows=[{"prompt": "x" * 1001}]), "row 1: the prompt has 1,001 letters; at most 1,000"),
    (dict(rows=[ROW] * 51), "51 rows are more"),
    *((dict(rows=[ROW, {"prompt": "x", "seconds": seconds}]),
       f"row 2: seconds must be a number in 0.2..300, got '{seconds}'")
      for seconds in ("0", "-1", "0.19", "301", "1e99", "nan", "inf", "soon", "2,5", True, [1])),
    (dict(rows=[{"prompt": "x", "seconds": 200}] * 2), "400 seconds are more than"),
    (dict(variants=0), "the number of variants must be a whole number in 1..16, got '0'"),
    (dict(variants="17"), "in 1..16"), (dict(variants="1.5"), "in 1..16"),
    (dict(variants=None), "got 'None'"),
    (dict(seed=-1), "the seed must be a whole number"), (dict(seed=""), "the seed must"),
    (dict(seed="9" * 5000), "the seed must"), (dict(seed=2**53), "the seed must"),
    (dict(guidance="a lot"), "guidance must be a number in 0..100, got 'a lot'"),
    (dict(guidance=-1), "in 0..100"),
])
def test_what_cannot_be_made_is_said(desk, wanted, message):
    with pytest.raises(UserError) as error:
        desk.generate(ask(**wanted))
    assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 200
    assert not desk.state()["jobs"]


@pytest.mark.parametrize("start, stop, frames, window", [
    (0, 10, 150, (0, 150)), (20, 40, 196, (0, 196)), (0, 8, 500, (0, 196)), (490, 500, 500, (304, 500)),
    (200, 260, 500, (132, 328)), (150, 338, 500, (146, 342))])
def test_windows_around_sections(start, stop, frames, window):
    assert requests.window_of(start, stop, frames) == window


# Clips.

def test_clips_are_those_of_sample(desk):
    answer = desk.generate(ask(variants=2, rows=[{"prompt": "wave both", "seconds": 2.2}]))
    job = finished(desk, answer)
    assert (job["done"], job["total"], job["result"]) == (2, 2, [1, 2])
    wanted = by_command_line(sample, "--text_prompt", "wave both", "--motion_length", 44, "--repeat_times", 2)
    assert all(np.array_equal(joints_of(desk, i + 1), joints) for i, joints in enumerate(wanted))
    about = desk.state()["clips"]
    assert [clip["repeat"] for clip in about] == [0, 1]
    assert about[0]["seconds"] == 2.2 and about[0]["seed"] == 7
    assert about[0]["formats"] == ["mp4", "npy", "bvh", "glb", "npz", "csv"] and not about[0]["parts"]


def test_chains_are_those_of_sample(desk):
    rows = [{"prompt": "sit", "seconds": 12}, {"prompt": "wave", "seconds": 2}]
    job = finished(desk, desk.generate(ask(rows=rows, guidance=1.5, clean_feet=True)))
    assert job["done"] == job["total"] == 2 * 3  # 2 iterations, 2 windows and 1
    wanted, = by_command_line(sample, "--text_prompt", "sit", "wave", "--chain", "--part_lengths", 240, 40,
                              "--cfg", 1.5, "--clean_feet")
    assert np.array_equal(joints_of(desk, 1), wanted)
    assert desk.state()["clips"][0]["parts"] == [[0, 12, "sit"], [12, 14, "wave"]]


def test_lengths_that_are_not_given_need_an_estimator(desk):
    rows = [ROW, {"prompt": "wave", "seconds": ""}]
    job = finished(desk, desk.generate(ask(rows=rows)), "failed")
    assert "no length estimator" in job["error"] and "train_length_estimator.py" in job["error"]
    finished(desk, desk.generate(ask()))  # and the next one is made


@pytest.mark.parametrize("dataset, rows, frames", [
    ("labels", [{"prompt": "jump", "seconds": 2}, {"prompt": "bow", "seconds": 2}], 80),
    ("free", [{"prompt": "", "seconds": 2}], 40), ("millimetres", [ROW], 40)])
def test_other_generators(desk, dataset, rows, frames):
    result = finished(desk, desk.generate(ask(dataset, rows=rows)))["result"]
    about, = desk.state()["clips"]
    assert len(joints_of(desk, result[0])) == frames and about["dataset"] == dataset
    assert ("npz" in about["formats"]) == (dataset != "millimetres")
    if dataset == "labels":
        with pytest.raises(UserError, match="'fly' is no action of this generator; it knows bow, jump"):
            desk.generate(ask(dataset, rows=[{"prompt": "fly", "seconds": 2}]))
        change = {**ask(dataset), "clip": result[0], "from": 1, "to": 2, "prompt": "bow"}
        finished(desk, desk.edit(change))
    if dataset == "free":
        finished(desk, desk.edit({**ask(dataset), "clip": result[0], "from": 1, "to": 2}))
    if dataset == "millimetres":
        with pytest.raises(UserError, match="has the skeleton kit .* choose the generator that made"):
            desk.edit({**ask(), "clip": result[0], "from": 1, "to": 2, "prompt": "x"})


def test_one_generator_is_kept(desk, monkeypatch):
    loads, load = [], sample.load
    monkeypatch.setattr(sample, "load", lambda args, precision: loads.append(args.dataset_name)
                        or load(args, precision))
    for dataset in ("body22", "body22", "millimetres"):
        first = weakref.ref(desk.loaded[1][0]) if loads else None
        finished(desk, desk.generate(ask(dataset)))
    assert loads == ["body22", "millimetres"] and desk.loaded[1][2].name == "millimetres" and not first()


def test_running_work_is_cancelled_at_its_next_iteration(desk):
    desk.defaults["time_steps"] = 18
    held, started = threading.Event(), threading.Event()
    follow = jobs.Job.follow

    def slow(job, steps):
        for step in follow(job, steps):
            started.set()
            assert held.wait(10)
            yield step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs.Job, "follow", slow)
        answer, waiting = desk.generate(ask()), desk.generate(ask(rows=[{"prompt": "later", "seconds": 2}]))
        assert started.wait(10)
        running, second = desk.state()["jobs"]
        assert (running["state"], running["stage"], running["total"]) == ("running", "generating", 18)
        assert second["state"] == "waiting" and second["ahead"] == ["sit"]
        desk.cancel({"job": answer["job"]})
        held.set()
        assert finished(desk, answer, "cancelled")["done"] <= 1
    finished(desk, waiting)
    assert [clip["title"] for clip in desk.state()["clips"]] == ["later"]
    assert desk.loaded[1][0].iterations is None


# Edits.

def edited(desk, number=1, state="done", **wanted):
    change = {**ask(), "clip": number, "from": 0.5, "to": 1.5, "prompt": "jump", **wanted}
    return finished(desk, desk.edit(change), state)


def test_edits_are_those_of_edit_and_can_be_undone(desk):
    finished(desk, desk.generate(ask(rows=[{"prompt": "sit", "seconds": 3}])))
    source, first = joints_of(desk, 1), desk.state()["clips"][0]
    edited(desk)
    np.save("clip.npy", source)
    *_, wanted = by_command_line(edit, "--source_motion", "clip.npy", "-msec", "10,30", "--text_prompt",
                                 "jump")
    assert np.array_equal(joints_of(desk, 1), wanted) and not np.array_equal(source, wanted)
    about, = desk.state()["clips"]
    assert about["edits"] == 1 and about["key"] != first["key"]
    assert about["caption"] == "sit / jump (0.5-1.5 s)" and about["title"] == "sit"
    edited(desk, **{"from": 2, "to": 3})
    twice = joints_of(desk, 1)
    assert np.array_equal(twice[:39], wanted[:39]) and desk.state()["clips"][0]["edits"] == 2
    desk.undo({"clip": 1})
    assert np.array_equal(joints_of(desk, 1), wanted)
    desk.undo({"clip": 1})
    assert np.array_equal(joints_of(desk, 1), source) and desk.state()["clips"][0] == first
    with pytest.raises(UserError, match="nothing to undo"):
        desk.undo({"clip": 1})
    edited(desk)
    assert desk.state()["clips"][0]["key"] not in (first["key"], about["key"])  # the player loads it anew


def test_sections_of_long_motions(desk):
    finished(desk, desk.generate(ask(rows=[{"prompt": "sit", "seconds": 25}])))
    source = joints_of(desk, 1)
    for start, stop in ((0, 2), (11, 14), (15, 24.4), (23, 25)):
        edited(desk, **{"from": start, "to": stop})
        new, inside = joints_of(desk, 1), np.zeros(500, bool)
        inside[round(20 * start) : round(20 * stop)] = True
        assert np.array_equal(new[~inside], source[~inside]) and new.shape == source.shape
        assert (new[inside] != source[inside]).any((1, 2)).all()
        assert largest_steps(new, T2M)[0] < 0.5
        assert desk.takes.take(1).current.facts["edited"] == [(round(20 * start), round(20 * stop))]
        desk.undo({"clip": 1})
    with pytest.raises(UserError, match="9.45 seconds is too long to be replaced at once; at most 9.4"):
        edited(desk, **{"from": 1, "to": 10.45})


@pytest.mark.parametrize("wanted, message", [
    ({"prompt": " "}, "the new section: the prompt is empty"),
    ({"from": 1, "to": 1}, "the new section is empty"),
    ({"from": 1.5, "to": 0.5}, "the new section is empty"),
    ({"from": -1}, "'from' must be a number in 0..2.0, got"),
    ({"to": "2.1"}, "'to' must be a number in 0..2.0"), ({"to": ""}, "'to' must be"),
    ({"clip": 9}, "not there"), ({"clip": "1"}, "not there"), ({"clip": True}, "not there"),
    ({"seed": "x"}, "the seed"),
    ({"model": "gone"}, "this generator is not there"), ({"model": ["x"]}, "this generator is not there")])
def test_edits_that_cannot_be_made(desk, wanted, message):
    desk.takes.add([("x", walk(T2M, 40), "sit", {"run": "r", "dataset": "d", "seed": 1, "repeat": 0})],
                   desk.trained(ask()).spec)
    with pytest.raises(UserError) as error:
        desk.edit({**ask(), "clip": 1, "from": 0.5, "to": 1.5, "prompt": "jump", **wanted})
    assert message in str(error.value)


def test_a_clip_that_changes_while_its_edit_waits(desk):
    finished(desk, desk.generate(ask()))
    edited(desk)
    go = threading.Event()
    desk.queue.add("first", lambda job: go.wait(10))
    change = {**ask(), "clip": 1, "from": 0.5, "to": 1.5, "prompt": "jump"}
    waiting = desk.edit(change)
    desk.undo({"clip": 1})
    go.set()
    assert "was changed while this edit waited" in finished(desk, waiting, "failed")["error"]
    waiting = desk.edit(change)
    finished(desk, waiting)
    desk.remove({"clip": 1})
    assert not desk.state()["clips"] and not list((desk.takes.folder / "001").glob("*"))


# Files.

def test_files_are_made_when_they_are_asked_for(desk):
    finished(desk, desk.generate(ask()))
    folder = desk.takes.take(1).current.path.parent
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".npy"]
    for name in desk.state()["clips"][0]["formats"]:
        answer = desk.export({"clip": 1, "format": name})
        assert answer == {"name": f"001_sit.{name}", "address": f"files/1/{name}"}
        assert (folder / answer["name"]).stat().st_size > 500
    made = (folder / "001_sit.mp4").stat().st_mtime_ns
    desk.export({"clip": 1, "format": "mp4"})
    assert (folder / "001_sit.mp4").stat().st_mtime_ns == made
    edited(desk)
    assert desk.export({"clip": 1, "format": "csv"})["name"] == "001_sit_edited.csv"
    before, after = (np.loadtxt(folder / name, delimiter=",", skiprows=1)
                     for name in ("001_sit.csv", "001_sit_edited.csv"))
    assert not np.array_equal(before, after)
    for bad in ("../001_sit.npy", "fbx", None):
        with pytest.raises(UserError, match="no such format"):
            desk.export({"clip": 1, "format": bad})


def test_takes_refuse_what_is_not_finite_and_too_much(tmp_path, desk, monkeypatch):
    takes, spec = Takes(tmp_path / "x"), desk.trained(ask()).spec
    bad = walk(T2M, 8)
    bad[3] = np.nan
    with pytest.raises(UserError, match="not finite"):
        takes.add([("x", walk(T2M, 8), "a", {}), ("x", bad, "b", {})], spec)
    assert not takes.about()
    monkeypatch.setattr("utils.studio.takes.MOST_TAKES", 1)
    finished(desk, desk.generate(ask()))
    with pytest.raises(UserError, match="keeps 1 clips; remove some"):
        desk.generate(ask())


def test_pages_of_clips(desk):
    for prompt in (NASTY, "other"):
        finished(desk, desk.generate(ask(rows=[{"prompt": prompt, "seconds": 2}])))
    page = desk.takes.page([1, 2])
    assert "<title>2 clips</title>" in page and "<script>window.hacked=1" not in page
    assert "<title>Clip 2</title>" in desk.takes.page([2])
    with pytest.raises(UserError, match="not there"):
        desk.takes.page([3])
    with pytest.raises(UserError, match="choose a clip"):
        desk.takes.page([])


# The command.

def start(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["studio.py", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        run(studio.main)
    return end.value.code


def test_flags():
    with pytest.raises(SystemExit):
        studio.parse_args(["--share"])
    args = studio.parse_args([])
    assert (args.host, args.port) == ("127.0.0.1", 7860)


def test_pretrained_weights_are_found_too(runs, tmp_path, monkeypatch):
    (tmp_path / "pretrained/body22").mkdir(parents=True)
    (tmp_path / "pretrained/body22/given").symlink_to(runs / "checkpoints/body22/mardm")
    found, _ = studio.find_generators(runs / "checkpoints")
    assert found[-1].name == "given" and found[-1].runs == str(tmp_path / "pretrained") and len(found) == 5


def test_nothing_trained_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = studio.Studio(studio.parse_args([]), tmp_path)
    about = made.models()
    assert not about["models"] and "`make demo` trains one" in about["advice"]
    with pytest.raises(UserError, match="make demo"):
        made.generate(ask())
    made.queue.close()


def test_runs_that_cannot_be_used_are_named(runs, tmp_path, monkeypatch):
    content = torch.load(runs / "checkpoints/body22/mardm/model/latest.tar", weights_only=True)
    for name, change in (("released", lambda: content.pop("model_name")), ("empty", content.clear)):
        change()
        (tmp_path / f"x/{name}/model").mkdir(parents=True)
        torch.save(content, tmp_path / f"x/{name}/model/latest.tar")
    (tmp_path / "x/damaged/model").mkdir(parents=True)
    (tmp_path / "x/damaged/model/best.tar").write_bytes(b"PK nothing")
    (tmp_path / "x/begun/model").mkdir(parents=True)
    found, left_out = studio.find_generators(tmp_path)
    assert not found and len(left_out) == 2
    assert "damaged/model/best.tar is damaged" in left_out[0] and "which head" in left_out[1]


# Over HTTP, and in a browser.

@pytest.fixture
def server(desk):
    made = open_server(desk, "127.0.0.1", 0)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()


def test_only_its_own_page_may_ask(server, desk):
    client = server.app.test_client()
    assert client.get("/state").json == {"jobs": [], "clips": []}
    body = json.dumps(ask())
    assert client.post("/generate", data=body, content_type="text/plain").status_code == 415
    assert client.post("/generate", data=body).status_code == 415
    for host in ("evil.example", "127.0.0.1.evil.example", "192.168.0.1"):
        for address in ("/", "/state", "/models"):
            assert client.get(address, headers={"Host": host}).status_code == 400, host
        assert client.post("/generate", json=ask(), headers={"Host": host}).status_code == 400
    for host in ("localhost:7860", "127.0.0.1", "[::1]:80"):
        assert client.get("/state", headers={"Host": host}).status_code == 200
    assert not desk.queue.jobs
    page = client.get("/")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "Access-Control-Allow-Origin" not in page.headers
    assert client.get("/share").status_code == client.get("/studio.py").status_code == 404


def test_refusals_are_sentences(server, monkeypatch, capsys):
    client = server.app.test_client()
    reply = client.post("/generate", json=ask(seed="x"))
    assert reply.status_code == 400 and reply.json["error"].startswith("the seed must be")
    assert "something else" in client.post("/undo", json=[1]).json["error"]
    reply = client.post("/undo", data="{", content_type="application/json")
    assert reply.status_code == 400 and "could not understand" in reply.json["error"]
    assert "not there" in client.get("/view/7").json["error"]
    assert "not there" in client.get("/files/7/bvh").json["error"]
    assert client.post("/generate", json={"rows": "x" * 2**20}).status_code == 413
    monkeypatch.setattr(studio, "read_motion", lambda *_: 1 / 0)
    reply = client.post("/generate", json=ask())
    assert reply.status_code == 500 and reply.json == {"error": jobs.FAULT}
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_addresses(desk):
    server = pytest.importorskip("utils.studio.server", reason="Flask is not installed")
    assert [server.is_local(host) for host in ("127.0.0.1", "localhost", "::1", "127.3.2.1")] == [True] * 4
    assert not any(server.is_local(host) for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="cannot listen on 127.0.0.1, port .* in use"):
            server.open_server(desk, "127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="cannot listen on no.such.host.invalid"):
        server.open_server(desk, "no.such.host.invalid", 0)


def test_the_command_serves_and_cleans_up(runs, tmp_path):
    command = [sys.executable, str(ROOT / "studio.py"), "--port", "0", "--host", "0.0.0.0",
               "--checkpoints_dir", str(runs / "checkpoints")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        line = process.stdout.readline()
        assert line.startswith("studio: http://0.0.0.0:") and [*tmp_path.glob("studio-*")]
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 0 and not [*tmp_path.glob("studio-*")]
    assert err.startswith("warning: 0.0.0.0 can be reached from other machines") and err.count("\n") == 1



@pytest.fixture
def page(chromium, server):  # noqa: F811
    """The page in a browser, and a function that finds elements; at the end nothing may have been asked of
    another server."""
    from selenium.webdriver.common.by import By

    chromium.get("about:blank")
    for log in ("browser", "performance"):
        chromium.get_log(log)
    place = f"http://127.0.0.1:{server.port}/"
    chromium.get(place)

    def find(selector):
        return chromium.find_elements(By.CSS_SELECTOR, selector)

    wait(lambda: find("#model option") and find("#rows li"))
    yield SimpleNamespace(chrome=chromium, find=find, place=place)
    chromium.switch_to.default_content()
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events
             if event["method"] == "Network.requestWillBeSent"}
    assert {place, place + "state", place + "models", place + "studio.js"} <= asked
    assert not [url for url in asked if not url.startswith((place, "data:", "blob:", "about:"))]


def write(element, text):
    element.clear()
    element.send_keys(text)


def in_player(page, look):
    """What ``look`` sees inside the player."""
    page.chrome.switch_to.frame(page.find("#player")[0])
    try:
        return look()
    finally:
        page.chrome.switch_to.default_content()


def test_from_a_prompt_to_a_file(page, tmp_path):
    chrome, find = page.chrome, page.find
    chrome.execute_cdp_cmd("Browser.setDownloadBehavior",
                           {"behavior": "allow", "downloadPath": str(tmp_path / "got")})
    # a prompt with HTML, two variants
    find("#rows .prompt")[0].send_keys("sit <img src=x onerror='window.hacked=1'> \u8d70")
    find("#rows .seconds")[0].send_keys("2")
    write(find("#variants")[0], "2")
    find("#generate")[0].click()
    wait(lambda: len(find("#clips li")) == 2)
    assert "sit <img src=x onerror" in find("#clips .name")[0].text and not chrome.execute_script(
        "return window.hacked")

    # play
    def playing():
        return chrome.execute_script("return window.viewer && viewer.state.tick")

    wait(lambda: in_player(page, lambda: picture(chrome) and picture(chrome, 1)))
    in_player(page, lambda: chrome.execute_script("document.getElementById('play').click()"))
    wait(lambda: in_player(page, playing) > 5)
    in_player(page, lambda: chrome.execute_script("document.getElementById('play').click()"))
    tick = in_player(page, playing)
    find("#from-now")[0].click()
    assert float(find("#from")[0].get_attribute("value")) == pytest.approx(tick / 20, abs=0.006)

    # edit a section of the first variant, and take it back
    write(find("#from")[0], "0.5")
    write(find("#to")[0], "1.5")
    find("#edit-prompt")[0].send_keys("jump")
    find("#edit button.main")[0].click()
    wait(lambda: "edited" in find("#clips")[0].text)
    chosen = find("#clips .chosen .name")[0].text
    assert chosen.startswith("1: sit") and chosen.endswith("/ jump (0.5-1.5 s)")
    wait(lambda: in_player(page, lambda: picture(chrome)))
    edited = "return JSON.parse(document.getElementById('data').textContent).clips.map(clip => clip.edited)"
    wait(lambda: in_player(page, lambda: chrome.execute_script(edited)) == [[[10, 30]]])

    # a file
    find("[aria-label='Download clip 1 as bvh']")[0].click()
    file = wait(lambda: [*(tmp_path / "got").glob("*.bvh")])[0]
    assert file.name.startswith("001_sit_img_src") and file.name.endswith("_edited.bvh")
    assert file.read_text().startswith("HIERARCHY") and "Frames: 40" in file.read_text()
    find("[aria-label='Undo the last edit of clip 1']")[0].click()
    wait(lambda: "edited" not in find("#clips")[0].text)
    wait(lambda: in_player(page, lambda: chrome.execute_script(edited)) == [[]])
    assert chrome.get_log("browser") == []


def test_waiting_cancelling_and_mistakes(page, desk, monkeypatch):
    chrome, find = page.chrome, page.find
    go = threading.Event()
    follow = jobs.Job.follow
    monkeypatch.setattr(jobs.Job, "follow", lambda job, steps: follow(job, (
        step for step in steps if go.wait(20))))

    # two requests queue
    find("#rows .prompt")[0].send_keys("sit")
    find("#rows .seconds")[0].send_keys("2")
    find("#generate")[0].click()
    wait(lambda: [item.text for item in find("#jobs .says")] == ["generating: step 0 of 2"])
    find("#more")[0].click()
    assert chrome.execute_script("return document.activeElement === arguments[0]", find("#rows .prompt")[1])
    find("#rows .prompt")[1].send_keys("wave")
    find("#rows .seconds")[1].send_keys("2")
    assert len(find("#bar i")) == 2 and "One motion" in find("#meaning")[0].text
    find("#generate")[0].click()
    wait(lambda: [item.text for item in find("#jobs .says")][1:] == ["waits for: sit"])

    # mistakes are sentences
    for box, bad, sentence in [("#variants", "99", "The number of variants must be a whole number in 1..16"),
                               ("#seed", "x", "The seed must be a whole number"),
                               ("#rows .seconds", "-3", "Row 1: seconds must be a number in 0.2..300"),
                               ("#rows .prompt", "", "Row 1: the prompt is empty")]:
        before = find(box)[0].get_attribute("value")
        write(find(box)[0], bad)
        find("#generate")[0].click()
        wait(lambda sentence=sentence: find("#complaint")[0].text.startswith(sentence))
        write(find(box)[0], before)
    assert len(find("#jobs li")) == 2

    # the first is cancelled, the second is made
    find("[aria-label='Cancel: sit']")[0].click()
    go.set()
    wait(lambda: find("#clips .name") and not find("#jobs li"))
    assert [item.text for item in find("#clips .name")] == ["1: sit / wave"]
    assert [part.text for part in find("#parts button")] == ["0.0\u20132.0 s: sit", "2.0\u20134.0 s: wave"]

    # a failure of the work itself; a phone
    write(find("#rows .seconds")[0], "")
    find("#generate")[0].click()
    wait(lambda: find("#complaint")[0].text.startswith("No length estimator at"))
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                           {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True})
    assert chrome.execute_script("return document.documentElement.scrollWidth") <= 360
    tops = [find(box)[0].location["y"] for box in ("#write", "#stage", "#edit", "#clips-box")]
    assert tops == sorted(tops)
    chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_generators_by_action_and_without_conditions(page):
    from selenium.webdriver.support.ui import Select

    find = page.find
    Select(find("#dataset")[0]).select_by_value("labels")
    assert find("#rows .prompt")[0].get_attribute("list") == "actions"
    assert [option.get_attribute("value") for option in find("#actions option")] == ["bow", "jump"]
    find("#more")[0].click()
    Select(find("#dataset")[0]).select_by_value("free")
    assert not find("#rows .prompt")[0].is_enabled() and not find("#guidance")[0].is_enabled()
    assert [row.is_displayed() for row in find("#rows li")] == [True, False]
    find("#rows .seconds")[0].send_keys("2")
    find("#generate")[0].click()
    wait(lambda: find("#clips .name"))
    assert not find("#edit-label")[0].is_displayed()
    find("#edit button.main")[0].click()
    wait(lambda: "edited" in find("#clips")[0].text)
