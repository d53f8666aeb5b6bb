"""Whether numbers drift: tiny trainings, from the data set to the FID of generated clips, against golden
values.

    python -m benchmarks.drift             # say what moved, if anything; exit code 1 if so
    python -m benchmarks.drift --write     # store what came out in tests/golden/drift.json too

Ten steps of each of the four trainers on a small demo set in float32, then sample.py and both evaluations, as
a user runs them. The numbers are meant for any machine and any build of torch: dropout is drawn from
``torch.rand``, since the numbers of torch's own depend on whether it was built with MKL, and sentences are
read by a bag of words in place of a text encoder.
"""
import contextlib
import importlib
import io
import json
import math
import os
import re
import sys
import tempfile
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

from utils import options
from utils.curves import read_runs
from utils.demo.dataset import build_demo
from utils.errors import UserError, run
from utils.files import read_checkpoint, read_json, write_text
from utils.report import format_table
from utils.text_condition import WordTable

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "drift.json"
HEADER = ("what", "golden", "now", "moved by", "tolerance")
CLIPS, WORD_DIM = 240, 384  # clips of the data set: 36 of the test split fill a retrieval batch
# Largest difference, as a fraction of the largest golden value of the same name; the first pattern that fits.
# Of codes it is the share of those that differ: where rounding decides, a code may become its neighbour, and
# one of the seven that a batch uses may be new.
TOLERANCES = {"flags/|frames$": 0.0, "/lr$": 1e-5, "codes$": 0.05, "Codes/": 0.2, "clip/": 0.02,
              "FID|MPJPE|evaluation": 5e-3, "": 1e-3}
# Flags that name things or say how to run, not what comes out.
NO_NUMBERS = {"name", "dataset_name", "dataset_dir", "checkpoints_dir", "device", "num_workers", "finetune",
              "finetune_decoder", "ae_name", "is_continue", "compile", "check"}
TRAINERS = {"train_AE": "ae", "train_evaluator": "evaluator", "train_length_estimator": "length_estimator",
            "train_MARDM": "mardm"}
ON_DEMO = ["--dataset_name", "demo", "--device", "cpu", "--dataset_dir", "datasets", "--checkpoints_dir",
           "checkpoints"]
TRAIN = [*ON_DEMO, "--num_workers", "0", "--batch_size", "16", "--epoch", "100", "--max_iter", "10",
         "--log_every", "1", "--lr", "1e-3", "--warm_up_iter", "3", "--milestones", "7"]
# warm-up, decay at a milestone, both regimes of the averaged weights: all within ten steps
OF_TRAINER = {"train_AE": ["--model", "FSQ_AE_High", "--width", "32", "--window_size", "40",
                           "--aux_loss_root", "0.5"],
              "train_MARDM": ["--ae_name", "ae", "--ae_model", "FSQ_AE_High", "--model", "FSQ-MARDM-SiT-S",
                              "--layers", "2", "--head_depth", "2", "--head_width", "128", "--dropout", "0",
                              "--diffmlps_batch_mul", "2", "--ema_decay", "0.52", "--clip_grad", "1"]}
FAST = ["--time_steps", "4", "--ode_steps", "2"]


def parse_args():
    parser = options.make_parser(__doc__)
    parser.add_argument("--write", action="store_true", help=f"store the values in {GOLDEN.name}")
    return parser.parse_args()


class BagOfWords:
    """Stands in for a text encoder: a sentence's feature is the sum of its words' random vectors."""

    dim = WORD_DIM

    def encode(self, texts):
        sums = [sum(map(word_vector, text.lower().split())) for text in texts]
        return F.normalize(torch.stack(sums), dim=-1)

    def word_states(self, texts):
        return [torch.stack([*map(word_vector, text.lower().split())]).half() for text in texts]

    def encode_words(self, texts):
        states = self.word_states(texts)
        return WordTable(self.encode(texts), torch.cat(states), np.cumsum([*map(len, states)]).tolist())


def word_vector(word):
    rng = np.random.RandomState(zlib.crc32(word.encode()))
    return torch.from_numpy(rng.standard_normal(WORD_DIM)).float()


def dropout(x, p=0.5, training=True, inplace=False):
    """``F.dropout`` whose numbers are the same in all builds of torch."""
    return x * (torch.rand(x.shape) >= p) / (1 - p) if training and p else x


def call(script, *words):
    """Run a script as the shell would, without what it says. UserError unless it succeeds."""
    said, before = io.StringIO(), sys.argv
    sys.argv = [f"{script}.py", *words]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            run(importlib.import_module(script).main)
    except SystemExit as stop:
        if stop.code:
            raise UserError(f"{script} failed: {said.getvalue().strip().splitlines()[-1]}") from stop
    finally:
        sys.argv = before


def default_flags(script):
    """{flag: default} of a trainer, those that decide numbers."""
    with mock.patch.object(sys, "argv", [f"{script}.py"]):
        flags = vars(importlib.import_module(script).parse_args())
    return {name: value for name, value in flags.items() if name not in NO_NUMBERS}


def curves(folder, name):
    """{"name/tag": [values]} of a run."""
    tags, = read_runs([folder / "checkpoints/demo" / name]).values()
    return {f"{name}/{tag}": values.tolist() for tag, (_, values) in tags.items()}


def averaged(folder):
    """How far the averaged weights of the generator are behind the last ones: RMS over all of them."""
    content = read_checkpoint(folder / "checkpoints/demo/mardm/model/latest.tar", ("mardm", "ema_mardm"))
    behind = [(content["mardm"][name] - value).flatten() for name, value in content["ema_mardm"].items()]
    return {"mardm/averaged_behind": float(torch.cat(behind).square().mean().sqrt())}


def plain(values, prefix):
    """{"prefix/a/b": number} of nested dicts, their numbers alone."""
    found = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= plain(value, f"{prefix}/{key}")
        elif type(value) in (int, float):
            found[f"{prefix}/{key}"] = value
    return found


def generated(folder):
    """Codes, and joints in metres at five times, of the clip that sample.py made."""
    clip, = (folder / "generation").rglob("*.npy")
    joints, codes = np.load(clip), json.loads(clip.with_suffix(".json").read_text())["codes"]
    times = np.linspace(0, len(joints) - 1, 5).astype(int)
    return {"clip/frames": len(joints), "clip/codes": sum(codes["digits"], []),
            "clip/root": joints[times, 0].ravel().tolist(), "clip/hands": joints[times, 20:].ravel().tolist()}


def evaluated(folder):
    """What both evaluations say."""
    runs = folder / "checkpoints/demo"
    ae = read_json(runs / "ae/eval/evaluation_AE.json")["metrics"]
    mardm = read_json(runs / "mardm/eval/evaluation_MARDM.json")
    scores = {side: {name: value["mean"] for name, value in mardm["scores"][side].items()
                     if name not in ("R1", "R2", "R3")}  # ranks jump where distances hardly move
              for side in ("generated", "real")}
    return (plain({name: ae[name] for name in ("MPJPE", "MPJPE_facing", "FID")}, "evaluation_AE")
            | plain(scores, "evaluation_MARDM"))


def measure(folder):
    """{name: number, list of numbers, or flag's value} of all that is run in an empty folder."""
    found = {f"flags/{script}/{name}": value for script in TRAINERS
             for name, value in default_flags(script).items()}
    build_demo(folder / "datasets/demo", num_clips=CLIPS)
    for script, name in TRAINERS.items():
        call(script, "--name", name, *TRAIN, *OF_TRAINER.get(script, ()))
        found |= curves(folder, name)
    call("sample", "--name", "mardm", *ON_DEMO, *FAST, "--text_prompt", "a person walks", "--no_video")
    call("evaluation_AE", "--name", "ae", *ON_DEMO, "--num_workers", "0")
    call("evaluation_MARDM", "--name", "mardm", *ON_DEMO, *FAST, "--num_workers", "0", "--repeats", "1")
    return found | averaged(folder) | generated(folder) | evaluated(folder)


@contextlib.contextmanager
def alike_everywhere():
    """Within the block, which runs in a new empty folder: one thread, and nothing whose numbers depend on the
    build of torch."""
    threads, before = torch.get_num_threads(), os.getcwd()
    torch.set_num_threads(1)
    load = mock.Mock(return_value=BagOfWords())
    try:
        with (mock.patch.object(F, "dropout", dropout), mock.patch("sample.load_text_encoder", load),
              mock.patch("models.TextEncoder.load_text_encoder", load),
              tempfile.TemporaryDirectory() as folder):
            os.chdir(folder)
            try:
                yield Path(folder)
            finally:
                os.chdir(before)
    finally:
        torch.set_num_threads(threads)


def compare(golden, found):
    """Rows (name, golden, found, difference, tolerance) of what moved; differences and tolerances are
    fractions of the largest golden value of a name. A flag that is new moves nothing."""
    rows = []
    for name in [*golden, *(name for name in found if not name.startswith("flags/") and name not in golden)]:
        allowed = next(value for pattern, value in TOLERANCES.items() if re.search(pattern, name))
        if name.startswith("flags/") or name not in found or name not in golden:
            far = math.inf if golden.get(name, math.nan) != found.get(name, math.nan) else 0.0
        else:
            far = distance(golden[name], found[name], name.endswith("codes"))
        if not far <= allowed:
            rows.append((name, shown(golden.get(name)), shown(found.get(name)), f"{far:.2g}", f"{allowed:g}"))
    return rows


def distance(golden, found, codes=False):
    """Largest difference of numbers, as a fraction of the largest golden one, of ``codes`` the share that
    differs; infinite for other counts."""
    one, other = np.atleast_1d(golden), np.atleast_1d(found)
    if one.shape != other.shape:
        return math.inf
    if codes:
        return float((one != other).mean())
    return float(np.abs(one - other).max() / max(np.abs(one).max(), 1e-12))


def shown(value):
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value[:3]))}{', ...' * (len(value) > 3)}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def rounded(value):
    """A value with seven digits, which are what float32 has."""
    if isinstance(value, list):
        return [*map(rounded, value)]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def main():
    args = parse_args()
    with alike_everywhere() as folder:
        found = measure(folder)
    golden = read_json(GOLDEN) if GOLDEN.is_file() else {}
    rows = compare(golden, found)
    print(format_table(rows, HEADER) if rows else f"nothing moved: {len(golden)} values")
    if args.write:
        lines = [f"{json.dumps(name)}: {json.dumps(rounded(value))}" for name, value in found.items()]
        write_text(GOLDEN, "{\n" + ",\n".join(lines) + "\n}\n")
    elif rows:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
