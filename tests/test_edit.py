"""edit.py: kept frames bit for bit, no jump where sections begin and end, and one line for each mistake."""
import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from tiny import FAST, enter, features_of, walk, write_checkpoints

import edit
import sample
from models.MARDM import MARDM_models
from utils.data.specs import DatasetSpec, joints_in_metres
from utils.motion.features import features_to_joints, joints_to_features, rotate_y
from utils.motion.inbetweening import facing_frames, sections_of, stitch
from utils.motion.skeletons import SKELETONS

call = partial(tiny.call, "edit")


def headings(joints, skeleton):
    right_hip, left_hip, *_ = skeleton.face_joints
    across = joints[:, left_hip] - joints[:, right_hip]
    return np.unwrap(np.arctan2(-across[:, 2], across[:, 0]))


def largest_steps(joints, skeleton):
    """Of root, of any joint (metres a frame) and of the heading (radians a frame)."""
    joints = joints.astype(np.float64)
    moved = np.linalg.norm(np.diff(joints, axis=0), axis=-1)
    return moved[:, 0].max(), moved.max(), np.abs(np.diff(headings(joints, skeleton))).max()


@pytest.mark.parametrize("name", ["t2m", "kit"])
@pytest.mark.parametrize("section", [(20, 50), (0, 30), (40, 80), (33, 34), (0, 80)])
def test_kept_frames_stay_and_nothing_jumps(name, section):
    skeleton = SKELETONS[name]
    # turns the other way
    source, other = walk(skeleton, 80), walk(skeleton, 80, curve=-0.03, speed=0.05, seed=1)
    edited = np.zeros(80, bool)
    edited[slice(*section)] = True
    out = stitch(source, features_of(source, skeleton), features_of(other, skeleton), edited, skeleton)
    assert np.array_equal(out[~edited], source[~edited]) and not np.array_equal(out[edited], source[edited])
    assert out.dtype == source.dtype and np.isfinite(out).all()
    root, joint, turn = largest_steps(out, skeleton)
    # the sources: up to 0.05 m, 0.10 m and 0.03 rad a frame
    assert root < 0.065 and joint < 0.125 and turn < 0.06
    for parent, child in skeleton.bones:
        length = np.linalg.norm(out[:, child] - out[:, parent], axis=-1)
        assert np.ptp(length) < 1e-4  # the source's throughout


def test_the_clip_itself_comes_back():
    skeleton = SKELETONS["t2m"]
    source = walk(skeleton, 60)
    features = features_of(source, skeleton)
    for section in [(0, 60), (0, 20), (20, 40), (45, 60)]:
        edited = np.zeros(60, bool)
        edited[slice(*section)] = True
        out = stitch(source, features, features, edited, skeleton)
        assert np.abs(out - source).max() < 1e-3, section


def test_an_open_end_keeps_the_generated_motion():
    """At the end of a clip nothing is bent: the heading that was generated is the one that comes out."""
    skeleton = SKELETONS["t2m"]
    source, other = walk(skeleton, 80), walk(skeleton, 80, curve=-0.03, seed=0)
    edited = np.arange(80) >= 40
    out = stitch(source, features_of(source, skeleton), features_of(other, skeleton), edited, skeleton)
    turned = headings(out.astype(np.float64), skeleton)
    wanted = headings(other.astype(np.float64), skeleton)
    assert abs((turned[79] - turned[50]) - (wanted[79] - wanted[50])) < 0.05


def test_facing_frames_are_found():
    skeleton = SKELETONS["t2m"]
    poses = np.random.default_rng(0).normal(size=(5, 22, 3))
    poses[:, 0, [0, 2]] = 0
    heading, origin = np.linspace(-3, 3, 5), np.random.default_rng(1).normal(size=(5, 3))
    found = facing_frames(rotate_y(poses, heading[:, None]) + origin[:, None], poses)
    assert np.allclose(found[0], heading) and np.allclose(found[1], origin)
    assert sections_of(np.array([1, 1, 0, 0, 1], bool)) == [(0, 2), (4, 5)] and skeleton.num_joints == 22


def test_sources_in_metres_for_a_generator_in_millimetres(tmp_path):
    """Features are in the data set's unit, joints in metres on both sides: a clip's own features give the
    clip back."""
    source = walk(SKELETONS["kit"], 60)
    np.save(tmp_path / "clip.npy", source)
    settings = dict(name="kit", root="", skeleton="kit", fps=12.5, min_frames=24, max_frames=199,
                    text_encoder="clip")
    spec = DatasetSpec(**settings, metres_per_unit=0.001)
    joints, features = edit.read_source(tmp_path / "clip.npy", spec)
    _, metres = edit.read_source(tmp_path / "clip.npy", DatasetSpec(**settings))
    assert np.array_equal(joints, source) and np.allclose(features[:, 1:], 1000 * metres[:, 1:], rtol=1e-4,
                                                          atol=0.01)
    edited = (np.arange(60) >= 20) & (np.arange(60) < 40)
    out = edit.replace_frames(joints, features, features, edited, spec)
    assert np.array_equal(out[~edited], source[~edited]) and np.abs(out - source).max() < 1e-3
    np.save(tmp_path / "features.npy", features)
    # metres again
    assert np.abs(np.diff(edit.read_source(tmp_path / "features.npy", spec)[0], axis=0)).max() < 0.2


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("edit")
    write_checkpoints(root, "body22", SKELETONS["t2m"])
    write_checkpoints(root, "body21", SKELETONS["kit"])
    write_checkpoints(root, "continuous", SKELETONS["t2m"], ae_model="AE_Model")
    write_checkpoints(root, "free", SKELETONS["t2m"], cond_mode="uncond")
    write_checkpoints(root, "labels", SKELETONS["t2m"], cond_mode="action")
    write_checkpoints(root, "millimetres", SKELETONS["kit"], unit=0.001)
    return root


@pytest.fixture
def work(runs, tmp_path, monkeypatch):
    return enter(runs, tmp_path, monkeypatch)



def edit_clip(work, source, sections, *flags, dataset="body22", prompt=("--text_prompt", "jump: high?")):
    np.save(work / "clip.npy", source)
    code = call("--name", "mardm", "--dataset_name", dataset, "--source_motion", "clip.npy", "-msec",
                *sections, *prompt,
                *FAST, "--no_video", *flags)
    assert code == 0
    return [np.load(file) for file in sorted((work / "generation" / f"mardm_{dataset}").glob("*.npy"))]


@pytest.mark.parametrize("dataset, frames, sections, edited", [
    ("body22", 64, ["0.25,0.5"], [(16, 32)]),
    ("body22", 63, ["10,21", "0.5,0.75"], [(10, 21), (32, 47)]),
    ("body22", 63, ["0.5,1.0"], [(32, 63)]),  # the three frames behind the last whole token too
    ("body22", 63, ["10,60"], [(10, 60)]),  # up to the last whole token
    ("body22", 63, ["0,9", "5,12"], [(0, 12)]),  # overlapping
    ("body22", 63, ["61,62"], [(61, 62)]),
    ("body22", 4, ["1,2"], [(1, 2)]),
    ("body22", 196, ["0,196"], [(0, 196)]),
    ("body21", 50, ["20,40"], [(20, 40)]),
    ("millimetres", 50, ["20,40"], [(20, 40)]),  # the source is in metres all the same
    ("continuous", 50, ["20,40"], [(20, 40)]),
])
def test_frames_outside_the_sections_are_the_source(work, dataset, frames, sections, edited):
    skeleton = SKELETONS["kit" if dataset in ("body21", "millimetres") else "t2m"]
    source = walk(skeleton, frames)
    one, two = edit_clip(work, source, sections, "--repeat_times", 2, dataset=dataset)
    inside = np.zeros(frames, bool)
    for start, stop in edited:
        inside[start:stop] = True
    for out in (one, two):
        assert out.shape == source.shape and out.dtype == source.dtype and np.isfinite(out).all()
        assert np.array_equal(out[~inside], source[~inside])
        assert (np.abs(out - source).max((1, 2))[inside] > 1e-4).all()
    if inside.sum() > 8:
        assert not np.array_equal(one, two)
        assert largest_steps(one, skeleton)[0] < 0.5


@pytest.mark.parametrize("columns, dtype", [(67, np.float32), (263, np.float32), (67, np.float64)])
def test_features_as_source(work, columns, dtype):
    skeleton = SKELETONS["t2m"]
    joints = walk(skeleton, 61)
    features = joints_to_features(np.concatenate([joints, joints[-1:]]), skeleton)[:, :columns].astype(dtype)
    out, = edit_clip(work, features, ["20,40"])
    source = features_to_joints(features, 22)
    inside = (np.arange(61) >= 20) & (np.arange(61) < 40)
    assert np.array_equal(out[~inside], source[~inside]) and not np.array_equal(out[inside], source[inside])


def test_float64_sources_stay_exact(work):
    source = walk(SKELETONS["t2m"], 40).astype(np.float64) + 1e-9
    out, = edit_clip(work, source, ["10,20"])
    assert np.array_equal(out[:10], source[:10]) and np.array_equal(out[20:], source[20:])


def test_clean_feet_change_the_new_frames_alone(work, capsys, monkeypatch):
    from test_feet import sliding, standing

    source = sliding(standing(SKELETONS["t2m"]))
    monkeypatch.setattr(edit, "replace_frames", lambda joints, *_: joints.copy())
    out, = edit_clip(work, source, ["20,45"], "--clean_feet")
    inside = (np.arange(60) >= 20) & (np.arange(60) < 45)
    assert np.array_equal(out[~inside], source[~inside])
    assert (out[inside] != source[inside]).any((1, 2)).all()
    assert "_r0: foot skating 0." in capsys.readouterr().err


def test_several_prompts_are_several_edits(work):
    prompts = "--text_prompt", "sit", "jump up"
    one, two = edit_clip(work, walk(SKELETONS["t2m"], 40), ["10,20"], prompt=prompts)
    assert not np.array_equal(one, two)


def test_clips_are_written_before_the_next_are_made(work, monkeypatch):
    written, original = [], edit.regenerate
    for module in (edit, sample):
        monkeypatch.setattr(module, "CHUNK", 2)

    def regenerate(*args, **settings):
        written.append(len(list((work / "generation").rglob("*.npy"))))
        return original(*args, **settings)

    monkeypatch.setattr(edit, "regenerate", regenerate)
    prompts = "--text_prompt", "sit", "jump", "wave"
    made = edit_clip(work, walk(SKELETONS["t2m"], 16), ["4,8"], prompt=prompts)
    assert written == [0, 2] and len(made) == 3


def test_only_touched_tokens_are_generated(work, monkeypatch):
    seen = []
    generate = MARDM_models["FSQ-MARDM-SiT-S"].func.generate
    monkeypatch.setattr(MARDM_models["FSQ-MARDM-SiT-S"].func, "generate",
                        lambda *args, **kwargs: seen.append(kwargs["known"]) or generate(*args, **kwargs))
    edit_clip(work, walk(SKELETONS["t2m"], 63), ["7,9", "0.5,33"])
    targets, keep = seen[0]
    assert targets.shape == (1, 15, 6) and (~keep[0]).nonzero().flatten().tolist() == [1, 2, 8]


def test_the_text_and_the_seed_decide(work):
    source = walk(SKELETONS["t2m"], 60)
    (work / "prompts.txt").write_text("sit\nwave both#40\n", encoding="utf-8")
    first = edit_clip(work, source, ["10,50"], prompt=("--text_path", "prompts.txt"))
    assert len(first) == 2 and not np.array_equal(*first)
    again = edit_clip(work, source, ["10,50"], prompt=("--text_path", "prompts.txt"))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    other = edit_clip(work, source, ["10,50"], "--seed", 1, prompt=("--text_path", "prompts.txt"))
    assert not np.array_equal(first[0], other[0])


def test_video_and_safe_names(work):
    np.save(work / "clip.npy", walk(SKELETONS["t2m"], 8))
    assert call("--name", "mardm", "--dataset_name", "body22", "--source_motion", "clip.npy", "-msec", "2,6",
                "--text_prompt", "a/b: c?", *FAST) == 0
    names = sorted(file.name for file in (work / "generation" / "mardm_body22").iterdir())
    assert names == [f"000_a_b_c_clip_edit_2-5_r0.{suffix}" for suffix in ("json", "mp4", "npy")]


def test_facts_and_the_page(work):
    """What sample.py and edit.py know of a clip is written beside it, and a page on demand."""
    edit_clip(work, walk(SKELETONS["t2m"], 40), ["10,20", "30,33"], "--view")
    folder = work / "generation" / "mardm_body22"
    clip, = folder.glob("*.npy")
    facts = json.loads(clip.with_suffix(".json").read_text())
    codes = facts.pop("codes")
    assert facts == {"prompt": "jump: high?", "run": "mardm", "dataset": "body22", "seed": 3407, "repeat": 0,
                     "edited": [[10, 20], [30, 33]], "source": "clip.npy", "fps": 20.0,
                     "skeleton": "t2m"}
    assert len(codes["digits"]) == len(codes["indices"]) == 10 and codes["sizes"] == [8, 8, 8, 5, 5, 5]
    page = (folder / "view.html").read_text()
    assert f'"file":"{clip.name}"' in page and '"title":"jump: high?"' in page
    edit_clip(work, walk(SKELETONS["t2m"], 40), ["10,20"], dataset="continuous")
    clip, = (work / "generation" / "mardm_continuous").glob("*.npy")
    assert json.loads(clip.with_suffix(".json").read_text())["codes"] is None
    assert len(list(clip.parent.iterdir())) == 2


@pytest.mark.parametrize("snap, known", [("every", True), ("end", True), ("none", False)])
def test_the_codes_are_those_of_the_clip(work, monkeypatch, snap, known):
    flags = ["--name", "mardm", "--dataset_name", "body22", "--text_prompt", "jump", "--motion_length", "44",
             *FAST, "--no_video", "--snap", snap]
    assert tiny.call("sample", *flags) == 0
    clip, = (work / "generation" / "mardm_body22").glob("*.npy")
    codes = json.loads(clip.with_suffix(".json").read_text())["codes"]
    assert (codes is not None) == known
    if known:
        pipeline, _, spec = sample.load(SimpleNamespace(
            checkpoints_dir="checkpoints", dataset_name="body22", name="mardm", ae_name=None, model=None,
            ae_model=None, device="cpu"))
        targets = pipeline.ae.quantizer.decode_indices(torch.tensor(codes["indices"]))[None]
        motion, = pipeline.decode(targets, torch.tensor([44]))
        assert np.abs(joints_in_metres(motion, spec) - np.load(clip)).max() < 1e-4


def test_more_clips_than_a_page_shows_are_refused_before_they_are_made(work, capsys):
    np.save(work / "clip.npy", walk(SKELETONS["t2m"], 8))
    assert call("--name", "mardm", "--dataset_name", "body22", "--source_motion", "clip.npy", "-msec", "2,6",
                "--text_prompt", "jump", "--repeat_times", "501", "--view", *FAST) == 2
    assert "501 clips are more than a page shows (500)" in capsys.readouterr().err
    assert not (work / "generation").exists()


@pytest.mark.parametrize("dataset, formats", [("body22", ["bvh", "glb", "npz", "csv"]),
                                              ("millimetres", ["bvh", "csv"])])
def test_other_formats_beside_each_clip(work, dataset, formats):
    skeleton = SKELETONS["kit" if dataset == "millimetres" else "t2m"]
    clips = edit_clip(work, walk(skeleton, 40), ["10,20"], "--repeat_times", 2, "--export", *formats,
                      dataset=dataset)
    folder = work / "generation" / f"mardm_{dataset}"
    stems = sorted(path.stem for path in folder.glob("*.npy"))
    assert {path.name for path in folder.iterdir()} == {
        f"{stem}.{suffix}" for stem in stems for suffix in ("npy", "json", *formats)}
    for stem, joints in zip(stems, clips):
        rows = np.loadtxt(folder / f"{stem}.csv", delimiter=",", skiprows=1)
        assert np.abs(rows[:, 2:].reshape(joints.shape) - joints).max() < 1e-5
        assert rows[1, 1] == 1 / 20 and "Frame Time: 0.05\n" in (folder / f"{stem}.bvh").read_text()


def test_sample_exports_too(work, monkeypatch):
    flags = ["--name", "mardm", "--text_prompt", "walk", "--motion_length", "40", "--no_video", *FAST]
    flags += ["--dataset_name", "body22", "--export", "csv", "bvh"]
    for _ in range(2):  # the second time the same files come out
        assert tiny.call("sample", *flags) == 0
        made = {path.suffix for path in (work / "generation" / "mardm_body22").iterdir()}
        assert made == {".npy", ".json", ".csv", ".bvh"}


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_formats_that_cannot_hold_the_skeleton(work, capsys, check):
    np.save("clip.npy", walk(SKELETONS["kit"], 40))
    source = ["--source_motion", "clip.npy", "-msec", "10,20", "--text_prompt", "jump"]
    assert call("--name", "mardm", "--dataset_name", "body21", *source, *FAST, "--export", "bvh", "npz",
                *check) == 2
    assert "the kit skeleton has others; choose bvh, glb or csv" in capsys.readouterr().err
    assert not (work / "generation").exists()


def test_unconditional_generators_need_no_prompt(work):
    assert len(edit_clip(work, walk(SKELETONS["t2m"], 40), ["10,20"], "--cfg", 1, dataset="free",
                         prompt=())) == 1


def test_generators_by_action(work):
    jump, bow = edit_clip(work, walk(SKELETONS["t2m"], 40), ["10,20"], dataset="labels",
                          prompt=("--action", "jump", "bow"))
    assert not np.array_equal(jump, bow)


def test_help(capsys):
    assert call("--help") == 0
    assert "--mask_edit_section" in capsys.readouterr().out


GOOD = walk(SKELETONS["t2m"], 40)
NAN = GOOD.copy()
NAN[3, 2, 1] = np.nan


@pytest.mark.parametrize("source, sections, message", [
    (None, ["0.3,0.6"], "no file"),
    (b"not an array", ["0.3,0.6"], "is not a .npy file"),
    (b"PK\x03\x04 half an archive", ["0.3,0.6"], "is not a .npy file"),
    (np.array([{"pose": 1}], dtype=object), ["0.3,0.6"], "is not a .npy file"),
    (GOOD[0], ["0.3,0.6"], "needs joints"),
    (GOOD[None], ["0.3,0.6"], "needs joints"),
    (GOOD[..., :2], ["0.3,0.6"], "needs joints"),
    (GOOD[:, :21], ["0.3,0.6"], "needs joints"),  # the other skeleton
    (np.zeros((40, 251), np.float32), ["0.3,0.6"], "needs joints"),  # its features
    (np.zeros((40, 64), np.float32), ["0.3,0.6"], "needs joints"),
    (NAN, ["0.3,0.6"], "holds NaN"),
    (GOOD.astype("U8"), ["0.3,0.6"], "not numbers"),
    (GOOD[:3], ["0.3,0.6"], "3 frames, outside 4..196"),
    (np.tile(GOOD, (5, 1, 1))[:197], ["0.3,0.6"], "197 frames, outside 4..196"),
    (GOOD, ["0.3,1.2"], "outside the clip"),
    (GOOD, ["30,41"], "outside the clip"),
    (GOOD, ["0.6,0.3"], "ends before it starts"),
    (GOOD, ["20,20"], "covers none"),
    (GOOD, ["0.301,0.302"], "covers none"),
    (GOOD, ["20"], "write START,END"),
    (GOOD, ["1,2,3"], "write START,END"),
    (GOOD, ["a,b"], "write START,END"),
    (GOOD, ["5,10", "0.3,"], "write START,END"),
])
def test_mistakes_get_one_line(work, capsys, source, sections, message):
    path = work / "clip.npy"
    if isinstance(source, bytes):
        path.write_bytes(source)
    elif source is not None:
        np.save(path, source)
    assert call("--name", "mardm", "--dataset_name", "body22", "--source_motion", path, "-msec", *sections,
                "--text_prompt", "sit", *FAST) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("error: ") and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("flags, message", [
    (["--dataset_name", "body22"], "either --text_prompt or --text_path"),
    (["--dataset_name", "body22", "--text_prompt", " "], "prompt is empty"),
    (["--dataset_name", "body22", "--text_path", "clip.npy"], "it is not text in UTF-8"),
    (["--dataset_name", "absent", "--text_prompt", "sit"], "no checkpoint at"),
    (["--dataset_name", "labels", "--text_prompt", "sit"], "was trained on actions; pass --action"),
    (["--dataset_name", "labels"], "pass --action NAME"),
    (["--dataset_name", "labels", "--action", "fly"], "--action fly: unknown; the generator's actions are "
                                                      "bow, jump"),
    (["--dataset_name", "body22", "--action", "bow", "--text_prompt", "sit"], "was trained on texts"),
    (["--dataset_name", "free", "--text_prompt", "sit"], "was trained without conditions"),
    (["--dataset_name", "free"], "guidance needs conditions"),
])
def test_mistakes_in_the_prompt_or_the_run(work, capsys, flags, message):
    np.save(work / "clip.npy", GOOD)
    assert call("--name", "mardm", "--source_motion", "clip.npy", "-msec", "0.3,0.6", *flags, *FAST) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("error: ")
