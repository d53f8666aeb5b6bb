"""The whole pipeline on the embedded data set, at a size that two CPU cores train in minutes: `make demo`.

    python -m scripts.demo                    # about half an hour on 2 cores; started again it goes on where it stopped
    python -m scripts.demo --tiny             # the same steps with hardly any training: a check of the plumbing

Data, autoencoder, evaluator, length estimator, generator, both evaluations, eight clips, a contact sheet, and
the table of generation/demo/report.json. Every step is one of the root scripts, called as a user would call
it; the commands are printed.
"""
import json
import os
import resource
import shlex
import time
from pathlib import Path

import numpy as np

from scripts.runs import Runner, gigabytes
from utils.data.specs import get_spec
from utils.errors import UserError, run
from utils.motion.skeletons import SKELETONS
from utils.options import make_parser, non_negative_int
from utils.report import format_table, write_json
from utils.training.settings import code_version, machine
from utils.visualize import contact_sheet

AE, GENERATOR = "FSQ_AE_Model", "FSQ-MARDM-SiT-S"
# Twelve dimensions and a little root loss keep what the probes look for: evaluation_AE.py counts it on
# reconstructions.
LEVELS = [7] * 12
PROMPTS = (
    "a person walks forward",
    "a man strolls in a circle to the left",
    "someone waves with the right hand",
    "the figure lifts its left arm",
    "a woman jumps twice",
    "a person turns around to the right by 180 degrees",
    "he kicks with his left leg",
    "a person sits down, then stands up again",
)
GOALS = {  # figure: (goal, whether more is better)
    "reconstruction MPJPE, protocol (mm)": (45, False),
    "reconstruction MPJPE, facing frame (mm)": (25, False),
    "R-precision top 3, generated / real": (0.70, True), "R-precision top 3, real clips": (0.90, True),
    "semantic probes, generated clips": (0.75, True), "semantic probes, real clips": (0.97, True),
    "semantic probes, shuffled captions": (0.25, False), "peak memory of any step (GB)": (4, False),
}


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("--seed", type=non_negative_int, default=3407, help="random seed of every step")
    parser.add_argument("--tiny", action="store_true", help="a few training steps only; no goal is judged")
    parser.add_argument("--work_dir", default=".", help="where datasets/, checkpoints/ and generation/ are "
                                                        "kept")
    return parser.parse_args()


class Steps:
    """Runs scripts one after the other and notes what each took. What an earlier start finished is not done
    again."""

    def __init__(self, work_dir, seed):
        self.work_dir, self.seed = Path(work_dir).resolve(), seed
        self.path = self.work_dir / "generation" / "demo" / "steps.json"
        self.done = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self.runner = Runner(self.work_dir)

    def __call__(self, step, script, *flags):
        command = [script, *map(str, flags), "--dataset_name", "demo", "--seed", str(self.seed)]
        shown = "python " + shlex.join(command)
        if self.done.get(step, {}).get("command") == shown:
            print(f"[{step}] done before ({self.done[step]['seconds']:.0f} s)")
            return
        run_dir = self.work_dir / "checkpoints" / "demo" / step
        if script.startswith("train_") and (run_dir / "model" / "latest.tar").is_file():
            command.append("--is_continue")
        print(f"\n[{step}] {shown}", flush=True)
        before, finished = self.done.get(step, {}), self.runner.run(command)
        self.note(step, "" if finished.code else shown, before.get("seconds", 0) + finished.seconds,
                  max(finished.memory_gb, before.get("memory_gb", 0)))
        if finished.code:
            raise UserError(f"the step '{step}' did not finish; its message is above. `make demo` resumes "
                            "from here")

    def note(self, step, command, seconds, memory_gb):
        """Keep what a step took, all its starts together; an unfinished one has no command yet."""
        self.done[step] = {"command": command, "seconds": seconds, "memory_gb": memory_gb}
        write_json(self.path, self.done)


def train_and_evaluate(steps, tiny):
    """Every training and evaluation; ``tiny`` stops each training after a few steps."""
    common = ["--num_workers", 0]
    train = [*common, "--precision", "auto", *(["--max_iter", 20] if tiny else [])]
    # Reach 1: README's figures were measured with it.
    steps("demo_AE", "train_AE.py", "--name", "demo_AE", "--model", AE, "--fsq_levels", *LEVELS,
          "--fsq_reach", 1, "--width", 192, "--dropout", 0, "--batch_size", 64, "--lr", 1e-3,
          "--warm_up_iter", 100, "--milestones", 1300, 1700, "--aux_loss_root", 0.15, "--epoch", 3,
          "--max_iter", 1900, "--eval_every", 1, *train)
    steps("evaluator", "train_evaluator.py", "--name", "evaluator", "--lr", 1e-3, "--epoch", 16,
          "--milestones", 300, *train)
    steps("length_estimator", "train_length_estimator.py", "--name", "length_estimator", "--lr", 1e-3,
          "--epoch", 20, "--milestones", 1050, "--soft_lengths", 1.5, "--text_noise", 0.5, *train)
    steps("demo_MARDM", "train_MARDM.py", "--name", "demo_MARDM", "--model", GENERATOR, "--ae_name",
          "demo_AE", "--ae_model", AE, "--batch_size", 64, "--lr", 1e-3, "--clip_grad", 1, "--dropout", 0,
          "--warm_up_iter", 200, "--milestones", 2000, 2400, "--epoch", 104, "--eval_every", 104,
          "--diffmlps_batch_mul", 2, "--ema_decay", 0.995, *train)
    steps("evaluation_AE", "evaluation_AE.py", "--name", "demo_AE", "--model", AE, *common)
    steps("evaluation_MARDM", "evaluation_MARDM.py", "--name", "demo_MARDM", "--ae_name", "demo_AE",
          "--repeats", 1 if tiny else 3, "--probe_repeats", 1 if tiny else 4, *common)


def sample_clips(steps):
    """Eight clips of fixed prompts, and the contact sheet."""
    folder = steps.work_dir / "generation" / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    steps("sample", "sample.py", "--name", "demo_MARDM", "--text_path", "generation/demo/prompts.txt")
    made = steps.work_dir / "generation" / "demo_MARDM_demo"
    # older ones stay
    files = [max(made.glob(f"{row:03d}_*_r0*.npy"), key=os.path.getmtime) for row in range(len(PROMPTS))]
    sheet = folder / "contact_sheet.png"
    contact_sheet([(np.load(file), prompt) for file, prompt in zip(files, PROMPTS)], sheet, SKELETONS["t2m"])
    return sheet


def report(steps, args):
    """The table, on the screen and in report.json; returns whether every goal is met."""
    evaluations = steps.work_dir / "checkpoints" / "demo"
    ae = json.loads((evaluations / "demo_AE" / "eval" / "evaluation_AE.json").read_text())
    generation = json.loads((evaluations / "demo_MARDM" / "eval" / "evaluation_MARDM.json").read_text())
    scores, probes = generation["scores"], generation["probes"]
    made, real = scores["generated"]["R3"]["mean"], scores["real"]["R3"]["mean"]
    values = dict(zip(GOALS, (
        ae["metrics"]["MPJPE"], ae["metrics"]["MPJPE_facing"], made / real, real, probes["rate"],
        probes["real"], probes["shuffled"], max(step["memory_gb"] for step in steps.done.values()))))
    met = {key: values[key] >= goal if more else values[key] <= goal for key, (goal, more) in GOALS.items()}
    rows = [(key, f"{values[key]:.3f}", f"{'at least' if more else 'at most'} {goal}",
             "yes" if met[key] else "NO")
            for key, (goal, more) in GOALS.items()]
    rows += [(f"{key} (generated / real)", f"{value['mean']:.3f}",
              f"{scores['real'][key]['mean']:.3f}" if key in scores["real"]
              else "-", "") for key, value in scores["generated"].items()]
    rows += [(f"minutes: {step}", f"{value['seconds'] / 60:.1f}", f"{value['memory_gb']:.2f} GB", "")
             for step, value in steps.done.items()]
    print("\n" + format_table(rows, ("figure", "value", "goal or reference", "met")))
    write_json(steps.work_dir / "generation" / "demo" / "report.json", {
        "values": values, "met": met, "goals": {key: goal for key, (goal, _) in GOALS.items()},
        "steps": steps.done, "seed": args.seed, "machine": machine(), "code_version": code_version(),
        "tiny": args.tiny, "reconstruction": ae, "generation": generation})
    return all(met.values())


def main():
    args = parse_args()
    steps = Steps(args.work_dir, args.seed)
    start = time.monotonic()
    get_spec("demo", steps.work_dir / "datasets")
    if "data" not in steps.done:
        memory = gigabytes(resource.getrusage(resource.RUSAGE_SELF))
        steps.note("data", "made on first use", time.monotonic() - start, memory)
    train_and_evaluate(steps, args.tiny)
    sheet = sample_clips(steps)
    good = report(steps, args)
    print(f"\nclips: {steps.work_dir / 'generation' / 'demo_MARDM_demo'}\ncontact sheet: {sheet}\n"
          f"report: {steps.path.with_name('report.json')}")
    if not good and not args.tiny:
        raise UserError("a goal of the table is missed")


if __name__ == "__main__":
    run(main)
