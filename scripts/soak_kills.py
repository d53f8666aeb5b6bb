"""Kill trainings at random moments with SIGKILL, resume them, and compare what comes out with a training that
nobody disturbed: weights, optimizer, curves, bit for bit.

    python -m scripts.soak_kills --kills 20 --results soak/kills.json
    python -m scripts.soak_kills --kills 6 --trainers train_AE --processes 2 --work_dir ../soak

Every trainer gets its kills spread over several short runs of a small network on a small demo set, some runs
in one process and some in two under torchrun. A kill comes while a checkpoint is being written, a random
while after one, or at a random moment of the start; under torchrun it hits all processes or a single one.
"""
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from scripts.runs import sigterm_as_ctrl_c
from scripts.soaking import Results, add_results
from utils import options
from utils.demo.dataset import build_demo
from utils.errors import UserError, run
from utils.files import RunFolder, read_checkpoint
from utils.training.events import PATTERN

ROOT = Path(__file__).resolve().parents[1]
SHARED = ["--dataset_name", "demo", "--device", "cpu", "--num_workers", "0", "--log_every", "4",
          "--max_iter", "40"]
AE = ["--model", "VQ_AE_Model", "--quantizer", "ema", "--num_codes", "32", "--code_dim", "8", "--width", "16",
      "--window_size", "40", "--eval_every", "1"]
TRAINERS = {
    "train_AE": AE,
    "train_MARDM": ["--ae_name", "ae", "--ae_model", "VQ_AE_Model", "--model", "VQ-MARDM-SiT-S", "--layers",
                    "1", "--head_depth", "1", "--head_width", "32", "--diffmlps_batch_mul", "1",
                    "--eval_every", "3"],
    "train_evaluator": ["--width", "16", "--eval_every", "3"],
    "train_length_estimator": [],
}
HEADER = ("trainer", "processes", "kills", "while writing", "runs", "identical")
SUMS = ("kills", "writing", "runs", "identical")
CLIPS = 80  # of the demo set: a run has several epochs and validations, so kills fall everywhere
BATCH = {"train_AE": 128}  # windows; of clips and captions 16
KILLS_PER_RUN = 5
PATIENCE = 600  # seconds for one start
SAVES = (0, 0.002)  # --save_minutes: after every step, or so that a kill loses several


def parse_args():
    parser = options.make_parser(__doc__)
    add = parser.add_argument
    add("--kills", type=options.positive_int, default=20, help="kills of each trainer")
    add("--seed", type=options.non_negative_int, default=3407, help="seed of the moments")
    add("--trainers", nargs="+", choices=list(TRAINERS), default=list(TRAINERS), help="which ones")
    add("--processes", type=int, nargs="+", choices=[1, 2], default=[1, 2],
        help="how many train together; with both, the kills are shared out")
    add("--work_dir", default=None, help="folder for data and runs, new or empty; default: a temporary one")
    add_results(parser)
    return parser.parse_args()


class Soak:
    """Trainings in a folder of their own. results: Results of the runs, with the seed of the moments."""

    def __init__(self, folder, results):
        self.folder, self.results, self.process = Path(folder).resolve(), results, None
        build_demo(self.folder / "datasets" / "demo", num_clips=CLIPS)

    def run_folder(self, name):
        return RunFolder(self.folder / "checkpoints", "demo", name)

    def start(self, trainer, processes, name, save_minutes=10):
        """A started process, which resumes the run if that has a state."""
        launcher = ([sys.executable] if processes == 1 else
                    [sys.executable, "-m", "torch.distributed.run", "--standalone",
                     f"--nproc_per_node={processes}"])
        size = BATCH.get(trainer, 16) // processes
        command = [*launcher, str(ROOT / f"{trainer}.py"), "--name", name, *SHARED, *TRAINERS[trainer],
                   "--batch_size", str(size), "--save_minutes", str(save_minutes),
                   *(["--is_continue"] if self.run_folder(name).states() else [])]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with open(self.folder / f"{name}.log", "ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        return self.process

    def stop(self):
        """End the training that runs."""
        if self.process is not None and self.process.poll() is None:
            kill([self.process.pid, *descendants(self.process.pid)])
            self.process.wait()

    def train(self, trainer, processes, name):
        """Train, or go on, to the end. UserError if that fails."""
        code = self.start(trainer, processes, name).wait(PATIENCE)
        if code:
            raise UserError(f"{trainer} ended with exit code {code}; its output is {self.folder / name}.log")

    def kill(self, trainer, processes, name, dice):
        """Start and kill. Whether it came to the kill, and whether a checkpoint was half written then. dice:
        random.Random that draws the moment."""
        folder, how = self.run_folder(name), dice.random()
        temporary = folder.model_dir / f".partial.{folder.latest.name}"
        before = state_of(temporary)  # what the kill before has left

        def is_written():
            return state_of(temporary) not in (None, before)

        process = self.start(trainer, processes, name, dice.choice(SAVES))
        if how < 0.15:
            alive = wait(process, lambda: False, dice.uniform(0, 4))
        elif how < 0.6:
            alive = all(self.next_save(process, folder) for _ in range(dice.randint(0, 6))) and wait(
                process, is_written)
            time.sleep(dice.uniform(0, 0.002))
        else:
            alive = all(self.next_save(process, folder) for _ in range(dice.randint(1, 8)))
            time.sleep(dice.uniform(0, 0.05))
        family = descendants(process.pid)
        victims = [process.pid, *family]
        if family and dice.random() < 0.5:  # torchrun then ends the others
            victims = [dice.choice(family)]
        killed = kill(victims)
        code = process.wait(PATIENCE)
        while any(map(is_alive, family)):
            time.sleep(0.01)
        return alive and killed and code != 0, is_written()

    def next_save(self, process, folder):
        """Wait until latest.tar is another file. False if the process ended before."""
        before = state_of(folder.latest)
        return wait(process, lambda: state_of(folder.latest) != before)

    def torment(self, trainer, processes, kills):
        """A row of the table: ``kills`` kills of a trainer, in as many runs as that takes."""
        reference, row = f"{trainer}_{processes}", dict.fromkeys(SUMS, 0)
        while row["kills"] < kills:
            name = f"{reference}_{row['runs']}"
            if name not in self.results.found:
                self.results.put(name, self.torment_one(trainer, processes, name,
                                                        min(KILLS_PER_RUN, kills - row["kills"])))
            row = {what: count + self.results.found[name][what] for what, count in row.items()}
        return {"trainer": trainer, "processes": processes, **row}

    def torment_one(self, trainer, processes, name, kills):
        """What a run adds to a row: at most ``kills`` kills, and whether its end is that of the reference."""
        reference, row = name.rpartition("_")[0], dict.fromkeys(SUMS, 0)
        if trainer == "train_MARDM" and not self.run_folder("ae").states():
            self.train("train_AE", 1, "ae")
        if not self.run_folder(reference).states():
            self.train(trainer, processes, reference)
        dice = random.Random(f"{self.results.seed} {name}")
        for _ in range(kills):
            killed, writing = self.kill(trainer, processes, name, dice)
            if not killed:
                break
            row["kills"], row["writing"] = row["kills"] + 1, row["writing"] + writing
        self.train(trainer, processes, name)
        return row | {"runs": 1, "identical": int(not self.differences(reference, name))}

    def differences(self, reference, name):
        """What of two finished runs is not the same, bit for bit: paths in the checkpoints, or "curves"."""
        one, other = map(self.run_folder, (reference, name))
        found = []
        for file in ("latest", "best"):
            paths = [getattr(folder, file) for folder in (one, other)]
            if all(path.is_file() for path in paths):
                found += [f"{file}: {place}" for place in unequal(*map(read_checkpoint, paths))]
            elif any(path.is_file() for path in paths):
                found.append(file)
        if curves(one) != curves(other):
            found.append("curves")
        if found:
            print(f"{name} is not {reference}: {', '.join(found[:5])}", flush=True)
        return found


def kill(victims):
    """SIGKILL to processes; whether any was there."""
    killed = False
    for victim in victims:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            killed = True
    return killed


def wait(process, happened, seconds=PATIENCE):
    """Wait for ``happened()``, for the end of a process, or for a time. Whether the process is alive then."""
    end = time.monotonic() + seconds
    while process.poll() is None and not happened() and time.monotonic() < end:
        time.sleep(0.0003)
    return process.poll() is None


def state_of(path):
    """What changes when somebody writes a file; None without one."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def descendants(pid):
    """Process ids of all children, and theirs."""
    pairs = [tuple(map(int, line.split())) for line in
             subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True,
                            check=True).stdout.splitlines()]
    found = [pid]
    for parent in found:
        found += [child for child, above in pairs if above == parent]
    return found[1:]


def is_alive(pid):
    status = subprocess.run(["ps", "-p", str(pid), "-o", "stat="], capture_output=True, text=True).stdout
    return bool(status.strip()) and not status.startswith("Z")


# Of a checkpoint: where the curves lie; flags, --is_continue among them; and the version of the code, which
# somebody may edit meanwhile.
APART = ("curves", "args", "code_version")


def unequal(one, other, place=""):
    """Paths in two nested values at which they differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in dict.fromkeys([*one, *other]) if place or key not in APART]
        return [path for key in keys for path in (
            unequal(one[key], other[key], f"{place}/{key}") if key in one and key in other
            else [f"{place}/{key}"])]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [path for i, pair in enumerate(zip(one, other)) for path in unequal(*pair, f"{place}/{i}")]
    if torch.is_tensor(one) and torch.is_tensor(other):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [place]
    return [] if one == other else [place]


def curves(folder):
    """[(step, tag, value)] in a run's event files, in the order in which TensorBoard reads them."""
    return [(event.step, value.tag, value.simple_value) for path in sorted(folder.model_dir.glob(PATTERN))
            for event in LegacyEventFileLoader(str(path)).Load() for value in event.summary.value]


def soak(kills, folder, results, trainers=tuple(TRAINERS), processes=(1, 2)):
    """Rows {"trainer", "processes", "kills", "writing", "runs", "identical"} of the table; ``kills`` of each
    trainer, shared out over ``processes``. results: Results. UserError where a training does not resume."""
    work, rows = Soak(folder, results), []
    try:
        for trainer in trainers:
            for place, count in enumerate(processes):
                share = kills // len(processes) + (place < kills % len(processes))
                if share:
                    rows.append(work.torment(trainer, count, share))
                    print(" ".join(map(str, rows[-1].values())), flush=True)
    finally:
        work.stop()
    return rows


def main():
    args = parse_args()
    with sigterm_as_ctrl_c(), tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.work_dir or temporary)
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"--work_dir {folder} is not empty; pass a new folder")
        results = Results(args.results, "kills", args.seed)
        rows = soak(args.kills, folder, results, args.trainers, args.processes)
    everything = {"trainer": "all", "processes": ""} | {what: sum(row[what] for row in rows) for what in SUMS}
    results.publish(HEADER, [list(row.values()) for row in [*rows, everything]], results.found)
    if any(row["identical"] < row["runs"] for row in rows):
        raise UserError("a resumed run is not that of an undisturbed training; see above")


if __name__ == "__main__":
    run(main)
