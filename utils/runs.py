"""Many runs of the root scripts, some at a time, and the table of their figures: what scripts/quantizer_bench.py and
scripts/ablation.py share.

A table has rows, and each row has a run for every seed. It is kept in one JSON file that grows with each run that ends, so
that a start can go on where the last one stopped.
"""
import json
import math
import os
import shlex
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils import options
from utils.errors import UserError
from utils.evaluation import write_json
from utils.train_utils import code_version, machine

ROOT = Path(__file__).resolve().parents[1]


def add_runs(parser, what):
    """Flags of a script that makes a table of runs."""
    options.add_workers(parser)
    parser.add_argument("--seeds", type=options.positive_int, default=3, help="runs a row: seeds --seed, --seed + 1 ...")
    parser.add_argument("--jobs", type=options.positive_int, default=1,
                        help="runs at a time; beyond 1 each has its share of the cores, and a log of its own")
    parser.add_argument("--output_dir", default=None, help=f"folder of the {what}; default: generation/<name>_<dataset>")


class Scripts:
    """Calls the root scripts as a user would, with the flags that all runs of a table share.

    Args:
        args: of add_common and add_runs. folder: of the logs, which are written where several runs go on at a time.
    """

    def __init__(self, args, folder):
        self.args, self.logs = args, Path(folder) / "logs"
        self.shared = ["--dataset_name", args.dataset_name, "--dataset_dir", args.dataset_dir, "--checkpoints_dir",
                       args.checkpoints_dir, "--device", args.device, "--num_workers", str(args.num_workers)]
        self.environment = os.environ.copy()
        if args.jobs > 1:
            self.environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // args.jobs)
                                                      if hasattr(os, "sched_getaffinity") else 1)

    def __call__(self, run, script, *flags):
        """Run ``script`` for the run of that name; its wall time in seconds. UserError when it fails."""
        command = [script, *map(str, flags), *self.shared]
        start = time.monotonic()
        code, where = self._logged(run, command) if self.args.jobs > 1 else self._shown(command)
        if code:
            raise UserError(f"{script} did not finish for {run}; its message is {where}. The same command goes on from here")
        return time.monotonic() - start

    def _shown(self, command):
        print("\npython " + shlex.join(command), flush=True)
        return self._finish(subprocess.Popen(self._python(command), env=self.environment)), "above"

    def _logged(self, run, command):
        self.logs.mkdir(parents=True, exist_ok=True)
        path = self.logs / f"{run}.log"
        with open(path, "a", encoding="utf-8") as log:
            log.write("\npython " + shlex.join(command) + "\n")
            log.flush()
            process = subprocess.Popen(self._python(command), env=self.environment, stdout=log, stderr=log)
            return self._finish(process), f"in {path}"

    @staticmethod
    def _python(command):
        return [sys.executable, str(ROOT / command[0]), *command[1:]]

    @staticmethod
    def _finish(process):
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()  # it got the same signal, and saves what it has
            raise


class RunTable:
    """The runs so far, {row: {seed: figures}}, and the settings that all of them have.

    Args:
        path: of the JSON file. kind: what it says it is. settings: plain values. order: rows, as the table lists them.
        figures: {column: (unit, digits)}.
    """

    def __init__(self, path, kind, settings, order, figures):
        self.path, self.kind, self.settings, self.order, self.figures = Path(path), kind, settings, list(order), figures
        self.runs, self.lock = {}, threading.Lock()
        if self.path.is_file():
            content = json.loads(self.path.read_text(encoding="utf-8"))
            different = [key for key, value in settings.items() if content["settings"].get(key) != value]
            if different:
                raise UserError(f"{path} was made with {different[0]} {content['settings'].get(different[0])}, not "
                                f"{settings[different[0]]}; pick another --name and --output_dir")
            self.runs = content["runs"]

    def save(self):
        write_json(self.path, {"kind": self.kind, "settings": self.settings, "runs": self.runs, "rows": self.rows(),
                               "machine": machine(), "code_version": code_version()})

    def fill(self, wanted, measure, jobs):
        """``measure(row, seed)`` -> figures, ``jobs`` at a time, for every one of ``wanted`` that is not there. When one fails,
        those that go on are still waited for and kept, no other is begun, and its error is raised."""
        missing = [(row, seed) for row, seed in wanted if str(seed) not in self.runs.get(row, {})]
        progress = tqdm(total=len(missing), unit="run", desc="runs", disable=jobs == 1)

        def job(row, seed):
            figures = measure(row, seed)
            with self.lock:
                self.runs.setdefault(row, {})[str(seed)] = figures | {"jobs": jobs, "machine": machine()}
                self.save()
                progress.update()

        if jobs == 1:
            for row, seed in missing:
                job(row, seed)
            return
        with ThreadPoolExecutor(jobs) as pool:
            started = [pool.submit(job, row, seed) for row, seed in missing]
            try:
                done, _ = wait(started, return_when=FIRST_EXCEPTION)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                progress.close()
        for future in done:
            future.result()

    def rows(self):
        """[{"row", "seeds", figure: mean, figure_std: ...}] over the seeds, in the table's order."""
        found = []
        for row in self.order:
            runs = list(self.runs.get(row, {}).values())
            if runs:
                values = {key: [run[key] for run in runs] for key in self.figures if all(is_number(run.get(key)) for run in runs)}
                found.append({"row": row, "seeds": len(runs)} | {key: float(np.mean(v)) for key, v in values.items()}
                             | {f"{key}_std": float(np.std(v, ddof=1)) for key, v in values.items() if len(v) > 1})
        return found

    def markdown(self):
        """The table, with the settings above it."""
        header = ["row", *(f"{key} ({unit})" if unit else key for key, (unit, _) in self.figures.items()), "seeds"]
        lines = ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header)]]
        for summary in self.rows():
            cells = [summary["row"], *(self.cell(summary, key) for key in self.figures), str(summary["seeds"])]
            lines.append("| " + " | ".join(cells) + " |")
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        above = f"Mean ± standard deviation over the seeds. Settings: {settings}. Machine: {machine()}."
        return above + "\n\n" + "\n".join(lines) + "\n"

    def cell(self, summary, key):
        """Mean ± standard deviation; "-" where a run of the row has no such figure."""
        if key not in summary:
            return "-"
        digits, std = self.figures[key][1], summary.get(f"{key}_std")
        return f"{summary[key]:.{digits}f}" + (f" ± {std:.{digits}f}" if std else "")


def is_number(value):
    return value is not None and math.isfinite(value)


def newest_result(folder, stem):
    """The content of the newest evaluation in a run's folder: <stem>.json, or <stem>_<protocol>.json."""
    path = max(Path(folder).glob(f"{stem}*.json"), key=lambda file: file.stat().st_mtime)
    return json.loads(path.read_text(encoding="utf-8"))
