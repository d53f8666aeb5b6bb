"""Chains: parts that follow each other without a seam, decoded piece by piece, and the flags of sample.py."""
import itertools
import json

import numpy as np
import pytest
import tiny
import torch
from conftest import FakeEncoder
from test_feet import sliding, standing
from test_generation import make_pipeline
from tiny import FAST, enter, fake_features, write_checkpoints

import sample
from benchmarks import chains
from models.AE import AE_models
from models.chaining import WINDOW, Part, chain, decode, decoder_reach, targets_of, windows
from utils.errors import UserError
from utils.evaluation.metrics import differences, foot_skating
from utils.motion.features import features_to_joints, joints_of_pieces
from utils.motion.feet import clean_feet
from utils.motion.skeletons import SKELETONS
from utils.text_condition import TextCondition

SETTINGS = dict(time_steps=2, ode_steps=1, cfg=2.0)


def parts_of(frames, cond=None):
    cond = torch.randn(len(frames), 16, generator=torch.Generator().manual_seed(1)) if cond is None else cond
    return [Part(cond[[i]], count, i) for i, count in enumerate(frames)]


@pytest.mark.parametrize("tokens, most, sizes", [(1, 48, [1]), (48, 48, [48]), (49, 48, [24, 25]),
                                                 (100, 48, [33, 33, 34])])
def test_long_parts_are_made_by_several_windows(tokens, most, sizes):
    assert windows(tokens, most) == sizes


@pytest.mark.parametrize("ae_name", ["AE_Model", "FSQ_AE_High", "VQ_AE_RVQ"])
def test_pieces_decode_like_the_whole(ae_name):
    torch.manual_seed(0)
    ae = AE_models[ae_name](width=32, latent_dim=32).eval()
    targets = ae.snap(torch.randn(1, 150, ae.target_dim))
    blocks = targets[0].split([1, 40, 0, 3, 48, 58])
    with torch.no_grad():
        whole = ae.decode_targets(targets)[0]
    pieces = list(decode(ae, iter(blocks)))
    assert torch.cat(pieces).shape == whole.shape and len(pieces) > 2
    assert (torch.cat(pieces) - whole).abs().max() < 1e-5 * whole.abs().max()


def test_the_reach_of_the_decoder_is_what_it_depends_on():
    torch.manual_seed(0)
    ae = AE_models["AE_Model"](width=16, latent_dim=16).double().eval()
    reach = decoder_reach(ae.decoder)
    targets = torch.randn(1, 60, 16, dtype=torch.float64, requires_grad=True)
    seen = torch.zeros(60, dtype=torch.bool)
    for frame in (120, 123):  # of token 30
        grad, = torch.autograd.grad(ae.decode_targets(targets)[0, frame].sum(), targets)
        seen |= (grad[0] != 0).any(-1)
    places = seen.nonzero()[:, 0] - 30
    assert reach == 22 and (int(places.min()), int(places.max())) == (-reach, reach)


def test_every_window_keeps_the_tokens_before_it(monkeypatch):
    pipeline = make_pipeline()
    seen, generate = [], pipeline.generator.generate

    def spy(ae, cond, lengths, seeds, known, **settings):
        seen.append((cond, known, generate(ae, cond, lengths, seeds, known=known, **settings)))
        return seen[-1][2]

    monkeypatch.setattr(pipeline.generator, "generate", spy)
    parts = parts_of([40, 30, 4, 400])
    blocks = list(targets_of(pipeline, parts, 3, SETTINGS))
    assert [len(block) for block in blocks] == [10, 7, 1, 33, 33, 34] and len(blocks) == len(seen)
    before = torch.zeros(0, pipeline.ae.target_dim)
    owners = [0, 1, 2, 3, 3, 3]
    for (cond, (_, keep), made), block, owner in zip(seen, blocks, owners):
        context = before[-3:]
        assert torch.equal(cond, parts[owner].cond) and made.shape[1] <= WINDOW
        assert keep.sum() == len(context) and torch.equal(made[0, : len(context)], context)
        assert torch.equal(made[0, len(context) :], block)
        before = torch.cat([before, block])
    assert not torch.equal(blocks[3], blocks[4])  # each window draws for itself


def test_a_chain_is_the_same_each_time_and_its_frames_come_early():
    pipeline = make_pipeline()
    parts = parts_of([60, 80, 100, 44])
    first = torch.cat(list(chain(pipeline, parts, **SETTINGS)))
    again = torch.cat(list(chain(pipeline, parts, **SETTINGS)))
    assert first.shape == (284, 67) and torch.equal(first, again)
    other = [part._replace(seed=part.seed + 1) for part in parts]
    assert not torch.equal(first, torch.cat(list(chain(pipeline, other, **SETTINGS))))
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield parts[number % 4]

    early = next(chain(pipeline, endless(), **SETTINGS))
    assert len(taken) == 2 and len(early) == 140 - 88 and torch.allclose(early, first[:52], atol=1e-4)
    held = [len(piece) for piece in itertools.islice(chain(pipeline, endless(), **SETTINGS), 8)]
    assert max(held) == 100  # pieces do not grow


@pytest.mark.parametrize("cond_mode", ["text", "action", "uncond"])
@pytest.mark.parametrize("words", [0, 8])
def test_every_kind_of_condition(cond_mode, words):
    if words and cond_mode != "text":
        return
    pipeline = make_pipeline(cond_mode=cond_mode, num_actions=2, word_dim=words)
    cond = {"text": torch.randn(2, 16), "action": torch.eye(2), "uncond": None}[cond_mode]
    if words:
        cond = TextCondition(cond, torch.randn(2, 3, words), torch.ones(2, 3, dtype=torch.bool))
    parts = [Part(None if cond is None else cond[[i]], 40, i) for i in range(2)]
    settings = SETTINGS | ({"cfg": 1.0} if cond is None else {})
    motion = torch.cat(list(chain(pipeline, parts, **settings)))
    assert motion.shape == (80, 67) and motion.isfinite().all()


def test_a_context_needs_room():
    with pytest.raises(UserError, match="needs a context of 1 to 48; got 49"):
        next(chain(make_pipeline(), parts_of([40]), context=49))
    with pytest.raises(UserError, match="got 0"):
        next(chain(make_pipeline(), parts_of([40]), context=0))


@pytest.mark.parametrize("joints", [22, 21])
def test_joints_of_pieces_are_those_of_the_whole(joints):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(90, 4 + 3 * (joints - 1))) * 0.1
    whole = features_to_joints(features, joints)
    pieces = list(joints_of_pieces(np.split(features, [1, 30, 31, 60]), joints))
    assert [len(piece) for piece in pieces] == [1, 29, 1, 29, 30]
    assert np.abs(np.concatenate(pieces) - whole).max() < 1e-9


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("chain")
    write_checkpoints(root, "body22", SKELETONS["t2m"])
    write_checkpoints(root, "free", SKELETONS["t2m"], cond_mode="uncond")
    write_checkpoints(root, "labels", SKELETONS["t2m"], cond_mode="action")
    write_checkpoints(root, "millimetres", SKELETONS["kit"], unit=0.001)
    return root


@pytest.fixture
def work(runs, tmp_path, monkeypatch):
    return enter(runs, tmp_path, monkeypatch)



def call(*args, dataset="body22"):
    return tiny.call("sample", "--name", "mardm", "--dataset_name", dataset, *FAST, "--no_video", *args)


def clips(work, dataset="body22"):
    return [np.load(file) for file in sorted((work / "generation" / f"mardm_{dataset}").glob("*.npy"))]


def test_a_chain_of_prompts(work, capsys):
    prompts = ["--text_prompt", "sit", "wave both", "go on", "--chain"]
    assert call(*prompts, "--part_lengths", 60, 82, 300) == 0
    one, = clips(work)
    assert one.shape == (440, 22, 3) and one.dtype == np.float32
    assert "frames 60-139: wave both" in capsys.readouterr().err
    jerk = np.linalg.norm(differences(one, 20, 3), axis=-1).max(-1)
    seams = [jerk[end - 6 : end + 6].max() for end in (60, 140)]
    assert max(seams) <= 1.5 * np.percentile(jerk, 95)
    assert call(*prompts, "--part_lengths", 60, 82, 300) == 0 and len(clips(work)) == 1  # the same clip
    assert call(*prompts, "--part_lengths", 40, "--repeat_times", 2, "--clean_feet") == 0
    assert "foot skating" in capsys.readouterr().err
    assert sorted(map(len, clips(work))) == [120, 120, 440]


def test_lines_of_a_file_are_chained(work):
    (work / "prompts.txt").write_text("sit#40\nwave#200\n", encoding="utf-8")
    assert call("--text_path", "prompts.txt", "--chain") == 0
    assert [len(clip) for clip in clips(work)] == [240]
    assert call("--text_path", "prompts.txt") == 2  # alone, a clip ends at 196 frames


def test_several_prompts_are_several_clips(work):
    assert call("--text_prompt", "sit", "wave both", "--motion_length", 40) == 0
    names = sorted(file.name for file in (work / "generation" / "mardm_body22").glob("*.npy"))
    assert names == ["000_sit_40f_r0.npy", "001_wave_both_40f_r0.npy"]


def test_clean_feet_of_clips(work, capsys, monkeypatch):
    clip = sliding(standing(SKELETONS["t2m"])).astype(np.float32)
    monkeypatch.setattr(sample, "joints_in_metres", lambda motion, spec: clip)
    assert call("--text_prompt", "sit", "--motion_length", 60, "--clean_feet") == 0
    made, = clips(work)
    assert np.array_equal(made, clean_feet(clip, 20, SKELETONS["t2m"], 0.0))
    assert not np.array_equal(made, clip)
    before, after = (foot_skating(joints, 20, SKELETONS["t2m"]) for joints in (clip, made))
    assert f"000_sit_60f_r0: foot skating {before:.4f} -> {after:.4f} m/s" in capsys.readouterr().err


def test_a_stream_is_the_clip(work, capsys):
    flags = ["--text_prompt", "sit", "wave", "--chain", "--part_lengths", 120, 40]
    assert call(*flags) == 0
    whole, = clips(work)
    capsys.readouterr()
    assert call(*flags, "--stream", "-") == 0 and call(*flags, "--stream", "frames.jsonl") == 0
    text = capsys.readouterr().out
    assert text == (work / "frames.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["frame"] for row in rows] == list(range(160)) and rows[3]["seconds"] == 0.15
    assert [(row["part"], row["prompt"]) for row in rows] == [(0, "sit")] * 120 + [(1, "wave")] * 40
    assert np.abs(np.array([row["joints"] for row in rows]) - whole).max() < 1e-4 and len(clips(work)) == 1
    assert call(*flags, "--stream", "frames.jsonl") == 2
    assert "frames.jsonl exists" in capsys.readouterr().err


@pytest.mark.parametrize("dataset, flags, length", [
    ("free", ["--cfg", 1, "--part_lengths", 500], 500),
    ("labels", ["--action", "jump", "bow", "--part_lengths", 40], 80),
    ("millimetres", ["--text_prompt", "sit", "go", "--part_lengths", 40], 80)])
def test_other_generators(work, dataset, flags, length):
    assert call("--chain", *flags, dataset=dataset) == 0
    one, = clips(work, dataset)
    assert len(one) == length and np.isfinite(one).all()
    assert np.ptp(one[:, :, 1]) < 20  # metres


@pytest.mark.parametrize("flags, message", [
    (["--part_lengths", 40], "--part_lengths belongs to --chain"),
    (["--stream", "-"], "--stream belongs to --chain"),
    (["--chain", "--part_lengths", 40, 40], "2 lengths for 1 parts"),
    (["--chain", "--part_lengths", 3], "3 frames is outside 4..10000000"),
    (["--chain", "--part_lengths", 40, "--motion_length", 40], "not both"),
    (["--chain", "--stream", "-", "--repeat_times", 2], "leave out --repeat_times"),
    (["--chain", "--stream", "-", "--export", "bvh"], "leave them out"),
    (["--chain", "--stream", "-", "--view"], "leave them out"),
    (["--chain", "--stream", "-", "--clean_feet"], "needs the whole clip"),
    (["--chain", "--stream", "absent/frames"], "absent/frames: No such file"),
    (["--chain", "--context", 49], "must be a whole number in 1..48"),
    (["--chain"], "no length estimator")])
def test_mistakes_get_one_line(work, capsys, flags, message):
    given = flags == ["--chain"] or {"--part_lengths", "--motion_length"} & set(map(str, flags))
    length = [] if given else ["--motion_length", 40]
    assert call("--text_prompt", "sit", *flags, *length) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]


def test_jerks_of_the_benchmark_are_found_where_they_are():
    joints = np.zeros((100, 22, 3))
    joints[40:, 5, 0] += 0.1  # a jump between frames 39 and 40
    near, far = chains.jerks(joints, 20.0, [40])
    assert near == [pytest.approx(2 * 0.1 * 20**3)] and max(far) == 0
    near, far = chains.jerks(joints, 20.0, [70])
    assert near == [0] and sum(peak > 0 for peak in far) == 1
    assert chains.jerks(joints, 20.0, ())[0] == [] and len(far) < len(chains.jerks(joints, 20.0, ())[1])


def test_the_benchmark_of_chains(work, monkeypatch, capsys):
    monkeypatch.setattr(chains, "load_text_encoder", lambda name: FakeEncoder(fake_features))
    assert tiny.call("benchmarks.chains", "--name", "mardm", "--dataset_name", "body22", *FAST, "--chains",
                     "2", "--parts", "2", "--part_length", "40") == 0
    results = json.loads((work / "checkpoints/body22/mardm/eval/chains.json").read_text())
    rows = {row["what"]: row for row in results["rows"]}
    assert list(rows) == ["alone", "2 chains of 2, --context 1", "2 chains of 2, --context 2", "start poses"]
    assert [len(row["seams"]) for row in rows.values()] == [0, 2, 2, 6]
    assert [row["parts"] for row in rows.values()] == [4, 4, 4, 6]
    assert "start poses" in capsys.readouterr().out
