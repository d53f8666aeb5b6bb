"""Many runs of the root scripts, some at a time, and the table of their metrics: what
scripts/quantizer_bench.py and scripts/ablation.py share.

A table has rows, and each row has a run for every seed. It is kept in one JSON file that grows with each run
that ends, so that a start can go on where the last one stopped.
"""
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from utils import options
from utils.errors import UserError
from utils.files import RunFolder, file_hash
from utils.report import markdown_table, write_json
from utils.training.settings import code_version, machine

ROOT = Path(__file__).resolve().parents[1]


def add_runs(parser, what):
    """Flags of a script that makes a table of runs."""
    options.add_workers(parser)
    parser.add_argument("--seeds", type=options.positive_int, default=3,
                        help="runs a row: seeds --seed, --seed + 1 ...")
    parser.add_argument("--jobs", type=options.positive_int, default=1,
                        help="runs at a time; beyond 1 each has its share of the cores, and a log of its own")
    parser.add_argument("--warm_up_iter", type=options.non_negative_int, default=None,
                        help="steps of linear warm-up; default: a tenth of the steps, 2,000 at most")
    parser.add_argument("--output_dir", default=None, help=f"folder of the {what}; default: "
                                                           "generation/<name>_<dataset>")


def warm_up_of(args):
    return min(2000, args.steps // 10) if args.warm_up_iter is None else args.warm_up_iter


def evaluator_hash(args, spec):
    """Hash of the data set's own evaluator, None where there is none: metrics of two judges are not for one
    table."""
    path = RunFolder(args.checkpoints_dir, spec.name, args.evaluator).checkpoint()
    return file_hash(path) if path.is_file() else None


def check_begun(path, began, settings):
    """UserError when a run that is to go on, or to be judged again, was begun with other settings than the
    table's; ``began``: the flags in its checkpoint."""
    for key, value in {**settings, "max_iter": settings["steps"],
                       "dataset_name": settings["dataset"]}.items():
        if key in began and began[key] != value:
            raise UserError(f"{path} was begun with {key} {began[key]}, not {value}; pick another --name, or "
                            "remove that run")


@contextmanager
def ended_like_ctrl_c():
    """SIGTERM as if it were Ctrl-C: the children must not be left alone."""
    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Finished(NamedTuple):
    """Exit code, wall time and largest resident memory of a script."""

    code: int
    seconds: float
    memory_gb: float


class Runner:
    """Calls the scripts as a user would, and can end them."""

    def __init__(self, cwd=None):
        self.cwd, self.children, self.stopped = cwd, set(), False
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self.environment = os.environ | {"PYTHONPATH": path}  # for `-m`, from any folder

    def run(self, command, **streams):
        """Run a command, ``train_AE.py --flag ...`` or ``-m scripts.NAME --flag ...``; returns Finished."""
        start, name = time.monotonic(), [str(ROOT / command[0])] if command[0].endswith(
            ".py") else command[:1]
        process = subprocess.Popen([sys.executable, *name, *command[1:]], cwd=self.cwd, env=self.environment,
                                   **streams)
        self.children.add(process)
        try:
            code, memory = wait_for(process)
        except KeyboardInterrupt:
            code, memory = wait_for(process)  # it got the same signal, and saves what it has
        finally:
            self.children.discard(process)
        return Finished(code, time.monotonic() - start, memory)

    def stop(self):
        """Ask what runs to save and end, and begin nothing more. After Ctrl-C the children have been asked
        already; twice is no harm."""
        self.stopped = True
        for process in list(self.children):
            # and not SIGINT, which what a shell has put into the background does not hear
            process.terminate()


def wait_for(process):
    """(exit code, peak memory in GB) of a child that has ended."""
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except ChildProcessError:  # ``terminate`` has met it just as it ended
        return process.wait(), 0.0
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, gigabytes(usage)


def gigabytes(usage):
    """Largest resident memory, of resource.getrusage or os.wait4."""
    return usage.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


class Scripts(Runner):
    """A Runner for the runs of a table: they share flags, and several may go on at a time.

    Args:
        args: of add_common and add_runs. folder: of the logs, which are written where several runs go on at a
            time.
    """

    def __init__(self, args, folder):
        super().__init__()
        self.args, self.logs = args, Path(folder) / "logs"
        self.shared = ["--dataset_name", args.dataset_name, "--dataset_dir", args.dataset_dir,
                       "--checkpoints_dir", args.checkpoints_dir, "--device", args.device, "--num_workers",
                       str(args.num_workers)]

    def split_cores(self, jobs):
        """Give each of ``jobs`` runs at a time its part of the cores, unless the user has set it."""
        if jobs > 1:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            self.environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // jobs)))

    def __call__(self, run, *command):
        """Run a command for the run of that name; its wall time in seconds. UserError when it fails or was
        stopped."""
        if self.stopped:
            raise UserError(f"{run} was not resumed")
        command = [*map(str, command), *self.shared]
        if self.args.jobs > 1:
            finished, where = self._logged(run, command)
        else:
            print("\npython " + shlex.join(command), flush=True)
            finished, where = self.run(command), "above"
        if finished.code:
            raise UserError(f"{' '.join(command[:2])} did not finish for {run}; its message is {where}. Once "
                            "its cause is gone, "
                            "the same command resumes")
        return finished.seconds

    def _logged(self, run, command):
        self.logs.mkdir(parents=True, exist_ok=True)
        path = self.logs / f"{run}.log"
        with open(path, "a", encoding="utf-8") as log:
            log.write("\npython " + shlex.join(command) + "\n")
            log.flush()
            return self.run(command, stdout=log, stderr=log), f"in {path}"


class RunTable:
    """The runs so far, {row: {seed: metrics}}, and the settings that all of them have.

    Args:
        path: of the JSON file. kind: what it says it is. settings: plain values. order: rows, as the table
            lists them.
        columns: {name: (unit, digits)}. before: settings that the files of earlier versions lack, and what
            they were then.
    """

    def __init__(self, path, kind, settings, order, columns, before=None):
        self.path, self.kind, self.settings = Path(path), kind, settings
        self.order, self.columns = list(order), columns
        self.before = before or {}
        self.runs, self.lock = self.read(), threading.Lock()

    def read(self):
        """The runs in the file, {} without one. UserError for a damaged file, or one of another table."""
        if not self.path.is_file():
            return {}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            kind, settings, runs = content["kind"], content["settings"], content["runs"]
            if not isinstance(settings, dict) or not all(isinstance(runs[row], dict) for row in runs):
                raise ValueError("no dicts")
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self.path} is damaged or no table of runs; move it away") from error
        if kind != self.kind:
            raise UserError(f"{self.path} holds a {kind}, not a {self.kind}; pick another --output_dir")
        settings = self.before | settings
        different = [key for key, value in self.settings.items() if settings.get(key) != value]
        if different:
            raise UserError(f"{self.path} was made with {different[0]} {settings.get(different[0])}, not "
                            f"{self.settings[different[0]]}; pick another --name and --output_dir")
        return runs

    def save(self):
        """Write the file; runs that another process has put there meanwhile stay."""
        for row, runs in self.read().items():
            self.runs[row] = runs | self.runs.get(row, {})
        write_json(self.path, {"kind": self.kind, "settings": self.settings, "runs": self.runs,
                               "rows": self.rows(), "machine": machine(), "code_version": code_version()})

    def fill(self, wanted, measure, scripts, jobs):
        """``measure(row, seed)`` -> metrics, ``jobs`` at a time, for every one of ``wanted`` that is not
        there. When one fails, those that go on are waited for and kept, no other is begun, and its error is
        raised; when the user stops, what goes on is asked to save and end."""
        missing = [(row, seed) for row, seed in dict.fromkeys(wanted)
                   if str(seed) not in self.runs.get(row, {})]
        self.save()  # that the folder can be written to is seen before hours of work, not after
        jobs, failed = max(1, min(jobs, len(missing))), threading.Event()
        scripts.split_cores(jobs)
        progress = tqdm(total=len(missing), unit="run", desc="runs", disable=jobs == 1)

        def job(row, seed):
            if failed.is_set():
                return
            try:
                metrics = measure(row, seed)
                with self.lock:
                    self.runs.setdefault(row, {})[str(seed)] = metrics | {
                        "jobs": jobs, "machine": machine(), "code_version": code_version()}
                    self.save()
                    progress.update()
            except BaseException:
                failed.set()
                raise

        with ended_like_ctrl_c(), ThreadPoolExecutor(jobs) as pool:
            started = [pool.submit(job, row, seed) for row, seed in missing]
            try:
                wait(started)
            except KeyboardInterrupt:
                failed.set()
                scripts.stop()
                raise
            finally:
                progress.close()
        for future in started:
            future.result()

    def rows(self):
        """[{"row", "seeds", figure: mean, figure_std: ...}] over the seeds, in the table's order."""
        found = []
        for row in self.order:
            runs = list(self.runs.get(row, {}).values())
            if runs:
                values = {key: [run[key] for run in runs] for key in self.columns
                          if all(is_number(run.get(key)) for run in runs)}
                found.append({"row": row, "seeds": len(runs)}
                             | {key: float(np.mean(v)) for key, v in values.items()}
                             | {f"{key}_std": float(np.std(v, ddof=1)) for key, v in values.items()
                                if len(v) > 1})
        return found

    def markdown(self):
        """The table, with the settings above it."""
        header = ["row", *(f"{key} ({unit})" if unit else key for key, (unit, _) in self.columns.items()),
                  "seeds"]
        cells = [[summary["row"], *(self.cell(summary, key) for key in self.columns), str(summary["seeds"])]
                 for summary in self.rows()]
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        above = f"Mean ± standard deviation over the seeds. Settings: {settings}. Machine: {machine()}."
        return above + "\n\n" + "\n".join(markdown_table(header, cells)) + "\n"

    def publish(self, draw):
        """Print the table, and put it and ``draw(table, path)``'s figure beside the JSON file."""
        text, path = self.markdown(), self.path.with_suffix(".md")
        path.write_text(text, encoding="utf-8")
        print(f"\n{text}\nwrote {self.path} and {path.name}")
        draw(self, self.path.with_suffix(".png"))

    def cell(self, summary, key):
        """Mean ± standard deviation; "-" where a run of the row has no such figure."""
        if key not in summary:
            return "-"
        digits, std = self.columns[key][1], summary.get(f"{key}_std")
        return f"{summary[key]:.{digits}f}" + (f" ± {std:.{digits}f}" if std else "")


def is_number(value):
    return value is not None and math.isfinite(value)


def newest_result(folder, stem):
    """The content of the newest evaluation in a run's folder: <stem>.json, or <stem>_<protocol>.json."""
    path = max(Path(folder).glob(f"{stem}*.json"), key=lambda file: file.stat().st_mtime)
    return json.loads(path.read_text(encoding="utf-8"))
