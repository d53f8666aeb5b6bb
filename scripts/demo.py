"""The whole pipeline on the embedded data set, at a size that two CPU cores train in minutes: `make demo`.

    python -m scripts.demo           # about half an hour on 2 cores; started again it resumes
    python -m scripts.demo --tiny    # the same steps with hardly any training: checks that they run

Makes the data, trains autoencoder, evaluator, length estimator and generator, evaluates them, and writes
eight clips, a contact sheet, and the metrics (generation/demo/report.json). Every step is one of the root
scripts, called as a user would call it; the commands are printed.
"""
import json
import os
import shlex
import time
from pathlib import Path

import numpy as np

from scripts.runs import Runner
from utils.data.specs import get_spec
from utils.errors import UserError, run
from utils.motion.skeletons import SKELETONS
from utils.options import make_parser, non_negative_int
from utils.report import format_table, write_json
from utils.training.settings import code_version, machine, peak_memory_mb
from utils.visualize import contact_sheet

AE, GENERATOR = "FSQ_AE_Model", "FSQ-MARDM-SiT-S"
LEVELS = [7] * 12  # with a small root loss, enough for reconstructions to pass the semantic probes
PROMPTS = (
    "a person walks forward", "a man strolls in a circle to the left", "someone waves with the right hand",
    "the figure lifts its left arm", "a woman jumps twice",
    "a person turns around to the right by 180 degrees", "he kicks with his left leg",
    "a person sits down, then stands up again")
GOALS = {  # metric: (goal, whether more is better)
    "reconstruction MPJPE, protocol (mm)": (45, False),
    "reconstruction MPJPE, facing frame (mm)": (25, False),
    "R-precision top 3, generated / real": (0.70, True), "R-precision top 3, real clips": (0.90, True),
    "semantic probes, one action": (0.90, True), "semantic probes, two in a row": (0.50, True),
    "semantic probes, two in a row, by outsiders": (0.25, True), "semantic probes, real clips": (0.97, True),
    "semantic probes, shuffled captions": (0.25, False), "peak memory of any step (GB)": (4, False),
}


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("--seed", type=non_negative_int, default=3407, help="random seed of every step")
    parser.add_argument("--tiny", action="store_true", help="a few training steps only; goals may be missed")
    parser.add_argument("--work_dir", default=".", help="folder of datasets/, checkpoints/ and generation/")
    return parser.parse_args()


class Steps:
    """Runs scripts one after the other and records what each took; finished steps are not repeated."""

    def __init__(self, work_dir, seed):
        self.work_dir, self.seed = Path(work_dir).resolve(), seed
        self.checkpoints = self.work_dir / "checkpoints" / "demo"
        self.output = self.work_dir / "generation" / "demo"
        self.path = self.output / "steps.json"
        self.done = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self.runner = Runner(self.work_dir)

    def __call__(self, step, script, *flags):
        command = [script, *map(str, flags), "--dataset_name", "demo", "--seed", str(self.seed)]
        shown, before = "python " + shlex.join(command), self.done.get(step, {})
        if before.get("command") == shown:
            print(f"[{step}] was finished before ({before['seconds']:.0f} s)")
            return
        if script.startswith("train_") and (self.checkpoints / step / "model" / "latest.tar").is_file():
            command.append("--is_continue")
        print(f"\n[{step}] {shown}", flush=True)
        finished = self.runner.run(command)
        self.record(step, "" if finished.code else shown, before.get("seconds", 0) + finished.seconds,
                    max(finished.memory_gb, before.get("memory_gb", 0)))
        if finished.code:
            raise UserError(f"step '{step}' did not finish; its message is above. `make demo` resumes here")

    def record(self, step, command, seconds, memory_gb):
        """Save what all starts of a step took; an unfinished step has no command yet."""
        self.done[step] = {"command": command, "seconds": seconds, "memory_gb": memory_gb}
        write_json(self.path, self.done)


def train_and_evaluate(steps, tiny):
    """Every training and evaluation; ``tiny`` ends each training after a few steps."""
    common = ["--num_workers", 0]
    train = [*common, "--precision", "auto", *(["--max_iter", 20] if tiny else [])]
    # Reach 1: the metrics in the README were measured with it.
    steps("demo_AE", "train_AE.py", "--name", "demo_AE", "--model", AE, "--fsq_levels", *LEVELS,
          "--fsq_reach", 1, "--width", 192, "--dropout", 0, "--batch_size", 64, "--lr", 1e-3,
          "--warm_up_iter", 100, "--milestones", 1300, 1700, "--aux_loss_root", 0.15, "--epoch", 3,
          "--max_iter", 1900, "--eval_every", 1, *train)
    steps("evaluator", "train_evaluator.py", "--name", "evaluator", "--lr", 1e-3, "--epoch", 4,
          "--milestones", 300, *train)
    words = ["--text_cond", "tokens"]  # they tell sides and order; the pooled feature hardly does
    steps("length_estimator", "train_length_estimator.py", "--name", "length_estimator", "--lr", 1e-3,
          "--epoch", 5, "--milestones", 1050, "--soft_lengths", 1.5, "--text_noise", 0.5, *words, *train)
    steps("demo_MARDM", "train_MARDM.py", "--name", "demo_MARDM", "--model", GENERATOR, "--ae_name",
          "demo_AE", "--ae_model", AE, "--batch_size", 64, "--lr", 1e-3, "--clip_grad", 1, "--dropout", 0,
          "--warm_up_iter", 200, "--milestones", 1750, 2100, "--epoch", 26, "--eval_every", 26,
          "--diffmlps_batch_mul", 2, "--ema_decay", 0.995, *words, "--word_drop_prob", 0.1, *train)
    steps("evaluation_AE", "evaluation_AE.py", "--name", "demo_AE", "--model", AE, *common)
    steps("evaluation_MARDM", "evaluation_MARDM.py", "--name", "demo_MARDM", "--ae_name", "demo_AE",
          "--repeats", 1 if tiny else 3, "--probe_repeats", 1 if tiny else 4, *common)


def sample_clips(steps, clips):
    """Eight clips of fixed prompts, and their contact sheet; returns its path."""
    steps.output.mkdir(parents=True, exist_ok=True)
    (steps.output / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    steps("sample", "sample.py", "--name", "demo_MARDM", "--text_path", "generation/demo/prompts.txt")
    # the newest, as clips of earlier settings are kept
    files = [max(clips.glob(f"{row:03d}_*_r0*.npy"), key=os.path.getmtime) for row in range(len(PROMPTS))]
    sheet = steps.output / "contact_sheet.png"
    contact_sheet([(np.load(file), prompt) for file, prompt in zip(files, PROMPTS)], sheet, SKELETONS["t2m"])
    return sheet


def report(steps, args):
    """Print the metrics and write them to report.json; returns whether every goal is met."""
    ae, generation = (json.loads((steps.checkpoints / name / "eval" / f"{script}.json").read_text())
                      for name, script in (("demo_AE", "evaluation_AE"), ("demo_MARDM", "evaluation_MARDM")))
    probes, scores = generation["probes"], generation["scores"]
    made, real = scores["generated"], scores["real"]
    values = dict(zip(GOALS, (
        ae["metrics"]["MPJPE"], ae["metrics"]["MPJPE_facing"], made["R3"]["mean"] / real["R3"]["mean"],
        real["R3"]["mean"], probes["single"]["share"], probes["sequence"]["share"],
        probes["outsiders"]["all"]["share"], probes["real"], probes["shuffled"],
        max(step["memory_gb"] for step in steps.done.values()))))
    met = {key: values[key] >= goal if more else values[key] <= goal for key, (goal, more) in GOALS.items()}
    goals = [(key, f"{values[key]:.3f}", f"{'at least' if more else 'at most'} {goal}"
              + ("" if met[key] else ": MISSED")) for key, (goal, more) in GOALS.items()]
    others = [(key, f"{value['mean']:.3f}", f"{real[key]['mean']:.3f}" if key in real else "-")
              for key, value in made.items()]
    took = [(step, f"{value['seconds'] / 60:.1f}", f"{value['memory_gb']:.2f}")
            for step, value in steps.done.items()]
    for rows, header in ((goals, ("metric", "reached", "goal")), (others, ("metric", "generated", "real")),
                         (took, ("step", "minutes", "GB"))):
        print("\n" + format_table(rows, header))
    write_json(steps.output / "report.json", {
        "values": values, "met": met, "goals": {key: goal for key, (goal, _) in GOALS.items()},
        "steps": steps.done, "seed": args.seed, "machine": machine(), "code_version": code_version(),
        "tiny": args.tiny, "reconstruction": ae, "generation": generation})
    return all(met.values())


def main():
    args = parse_args()
    steps, start = Steps(args.work_dir, args.seed), time.monotonic()
    clips = steps.work_dir / "generation" / "demo_MARDM_demo"
    get_spec("demo", steps.work_dir / "datasets")
    if "data" not in steps.done:
        steps.record("data", "made on first use", time.monotonic() - start, peak_memory_mb() / 1024)
    train_and_evaluate(steps, args.tiny)
    sheet = sample_clips(steps, clips)
    all_met = report(steps, args)
    print(f"\nclips: {clips}\ncontact sheet: {sheet}\nreport: {steps.output / 'report.json'}")
    if not all_met and not args.tiny:
        raise UserError("a goal in the table was missed")


if __name__ == "__main__":
    run(main)
