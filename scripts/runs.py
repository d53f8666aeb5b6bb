"""What the benches, ablation, study and demo share: calling the root scripts, and tables of metrics.

A table has rows, and each row one run per seed. It is one JSON file, written again after every run, so the
same command resumes where it was stopped.
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
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from analyze_training import first_reach
from utils import options
from utils.curves import curve, read_runs
from utils.data.specs import get_spec
from utils.errors import UserError
from utils.evaluation.smoothness import flat
from utils.files import RunFolder, file_hash, read_checkpoint, read_json
from utils.report import markdown_table, write_json
from utils.training.settings import code_version, machine

ROOT = Path(__file__).resolve().parents[1]
SCORES = ("FID", "R1", "R2", "R3", "matching", "diversity")
TAIL = 80  # % of the steps; the losses of those after it show how steady a training is
CLIP_METRICS = ("label_accuracy", "foot_skating", "acceleration", "peak_jerk", "nearest_train")


def add_calls(parser, name):
    """Flags of every Calls."""
    options.add_common(parser, name, check=False)
    options.add_workers(parser)
    add = parser.add_argument
    add("--seeds", type=options.positive_int, default=3, help="runs per row: seeds --seed, --seed + 1 ...")
    add("--jobs", type=options.positive_int, default=1,
        help="runs at the same time; with more than 1 they divide the cores, and each has its own log")
    add("--output_dir", help="folder of the table; default: generation/<name>_<dataset>")


def add_experiment(parser, name, batch_size, samples):
    """Flags of every Experiment; ``samples``: what a batch consists of."""
    add_calls(parser, name)
    add = parser.add_argument
    add("--steps", type=options.positive_int, default=20_000, help="training steps per run")
    add("--batch_size", type=options.positive_int, default=batch_size, help=f"{samples} per step")
    add("--lr", type=options.positive_float, default=2e-4, help="learning rate after warm-up")
    add("--warm_up_iter", type=options.non_negative_int,
        help="steps of linear warm-up; default: a tenth of the steps, at most 2,000")
    add("--dropout", type=options.fraction, default=0.2, help="dropout of the trained networks")
    add("--precision", choices=["fp32", "tf32", "bf16", "auto"], default="fp32", help="precision of training")
    add("--evaluator", default="evaluator", help="--name of the evaluator's run")


Finished = namedtuple("Finished", "code seconds memory_gb")  # exit code, wall time, peak resident memory


class Runner:
    """Runs the project's scripts in processes of their own, from the folder ``cwd``."""

    def __init__(self, cwd=None):
        self.cwd, self.children, self.stopped = cwd, set(), False
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self.environment = os.environ | {"PYTHONPATH": path}  # for `-m`, from any folder

    def split_cores(self, jobs):
        """Divide the cores among ``jobs`` simultaneous runs, unless the user has set OMP_NUM_THREADS."""
        if jobs > 1:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            self.environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // jobs)))

    def run(self, command, **streams):
        """Run ``NAME.py --flag ...`` (a root script) or ``-m scripts.NAME --flag ...``; returns Finished."""
        start, (name, *arguments) = time.monotonic(), command
        name = str(ROOT / name) if name.endswith(".py") else name
        process = subprocess.Popen([sys.executable, name, *arguments], cwd=self.cwd, env=self.environment,
                                   **streams)
        self.children.add(process)
        try:
            code, memory = wait_for(process)
        except KeyboardInterrupt:
            code, memory = wait_for(process)  # the child got the signal too, and saves its run
        finally:
            self.children.discard(process)
        return Finished(code, time.monotonic() - start, memory)

    def stop(self):
        """Start nothing more, and let the children save and end. After Ctrl-C this is their second signal,
        which does no harm; it is SIGTERM because background jobs of a shell ignore SIGINT."""
        self.stopped = True
        for process in list(self.children):
            process.terminate()


def wait_for(process):
    """(exit code, peak memory in GB) of a child, once it has ended."""
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except ChildProcessError:  # ``terminate`` was called just as it ended, and has collected it
        return process.wait(), 0.0
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


@contextmanager
def sigterm_as_ctrl_c():
    """SIGTERM raises KeyboardInterrupt, so that the children are stopped too."""
    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class RunTable:
    """The runs so far, {row: {seed: metrics}}, and the settings that they share.

    Args:
        path, kind: of the JSON file. settings: plain values. order: all rows, as the table lists them.
        columns: {metric: (unit, digits)}. before: {setting: value} of files older than the setting.
    """

    def __init__(self, path, kind, settings, order, columns, before=None):
        self.path, self.kind, self.settings = Path(path), kind, settings
        self.order, self.columns, self.before = list(order), dict(columns), before or {}
        self.runs, self.lock = self.read(), threading.Lock()

    def read(self):
        """The runs in the file, {} without one. UserError if it is damaged or belongs to another table."""
        if not self.path.is_file():
            return {}
        try:
            content = read_json(self.path)
            kind, settings, runs = content["kind"], self.before | content["settings"], content["runs"]
            if not all(isinstance(seeds, dict) for seeds in runs.values()):
                raise ValueError("a row must be an object")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{self.path} is damaged or not a table of runs; move it away") from error
        if kind != self.kind:
            raise UserError(f"{self.path} is a table of kind '{kind}', not '{self.kind}'; pick another "
                            "--output_dir")
        for key, value in self.settings.items():
            if settings.get(key) != value:
                raise UserError(f"{self.path} was made with {key} {settings.get(key)}, not {value}; pick "
                                "another --name and --output_dir")
        return runs

    def save(self):
        """Write the file, with the runs that another process has added to it in the meantime."""
        for row, runs in self.read().items():
            self.runs[row] = runs | self.runs.get(row, {})
        write_json(self.path, {"kind": self.kind, "settings": self.settings, "runs": self.runs,
                               "rows": self.rows(), "machine": machine(), "code_version": code_version()})

    def fill(self, wanted, measure, runner, jobs):
        """Call ``measure(row, seed)`` -> metrics, ``jobs`` at a time, for every missing one of ``wanted``.
        After a failure no further run starts, those under way are finished and kept, and the error is raised;
        when the user interrupts, those under way save and end."""
        missing = [(row, seed) for row, seed in dict.fromkeys(wanted)
                   if str(seed) not in self.runs.get(row, {})]
        self.save()  # an unwritable folder is noticed before hours of work
        jobs, failed = max(1, min(jobs, len(missing))), threading.Event()
        runner.split_cores(jobs)
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

        with sigterm_as_ctrl_c(), ThreadPoolExecutor(jobs) as pool, progress:
            started = [pool.submit(job, row, seed) for row, seed in missing]
            try:
                wait(started)
            except KeyboardInterrupt:
                failed.set()
                runner.stop()
                raise
        for future in started:
            future.result()

    def rows(self):
        """[{"row", "seeds", metric: mean, metric_std: ...}] over the seeds, in the table's order."""
        summaries = []
        for row in self.order:
            if runs := list(self.runs.get(row, {}).values()):
                summary = {"row": row, "seeds": len(runs)}
                values = {key: [run[key] for run in runs] for key in self.columns
                          if all(run.get(key) is not None and math.isfinite(run[key]) for run in runs)}
                summary |= {key: float(np.mean(v)) for key, v in values.items()}
                if len(runs) > 1:
                    summary |= {f"{key}_std": float(np.std(v, ddof=1)) for key, v in values.items()}
                summaries.append(summary)
        return summaries

    def markdown(self):
        """The table in Markdown, below a line with the settings and the machine."""
        header = ["row", *(f"{key} ({unit})" if unit else key for key, (unit, _) in self.columns.items()),
                  "seeds"]
        cells = [[summary["row"], *(self.cell(summary, key) for key in self.columns), str(summary["seeds"])]
                 for summary in self.rows()]
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        above = f"Mean ± standard deviation over the seeds. Settings: {settings}. Machine: {machine()}."
        return above + "\n\n" + "\n".join(markdown_table(header, cells)) + "\n"

    def cell(self, summary, key):
        """Mean ± standard deviation; "-" where a run of the row lacks the metric."""
        if key not in summary:
            return "-"
        digits, std = self.columns[key][1], summary.get(f"{key}_std")
        # equal numbers can differ from their mean in the last bit
        return f"{summary[key]:.{digits}f}" + (f" ± {std:.{digits}f}" if std and std > 1e-9 else "")

    def publish(self, draw):
        """Print the table, write it as .md beside the JSON file, and draw it there: ``draw(table, path)``."""
        text, path = self.markdown(), self.path.with_suffix(".md")
        path.write_text(text, encoding="utf-8")
        print(f"\n{text}\nwrote {self.path} and {path.name}")
        draw(self, self.path.with_suffix(".png"))


class Calls:
    """A RunTable whose runs call the root scripts, as a user would.

    A subclass defines ``measure(row, seed)`` -> metrics, ``table`` (``open_table``), kind, file, columns,
    before: of the table, and, to use ``flags``, its settings. args: of ``add_calls``. UserError for a bad
    --name or data set.
    """

    before = {}

    def __init__(self, args):
        self.args, self.spec, self.runner = args, self.open_data(args), Runner()
        RunFolder(args.checkpoints_dir, self.spec.name, args.name)  # refuses a bad --name at once

    def open_data(self, args):
        """The data set of all runs, which has a ``name``."""
        return get_spec(args.dataset_name, args.dataset_dir)

    def open_table(self, settings, order):
        """The RunTable in --output_dir. UserError if it is of other settings."""
        output = Path(self.args.output_dir or f"generation/{self.args.name}_{self.spec.name}")
        return RunTable(output / self.file, self.kind, settings, order, self.columns, self.before)

    def wanted(self, rows):
        """[(row, seed)], seed by seed, so that a table of one seed is complete first."""
        seeds = range(self.args.seed, self.args.seed + self.args.seeds)
        return [(row, seed) for seed in seeds for row in rows]

    def fill(self, wanted):
        """Measure what the table lacks."""
        self.table.fill(wanted, self.measure, self.runner, self.args.jobs)

    def folder(self, row, seed):
        """RunFolder of a run."""
        return RunFolder(self.args.checkpoints_dir, self.spec.name,
                         f"{self.args.name}_{row.replace(' ', '_')}_{seed}")

    def whole(self, command):
        """A command, as a list of str, with the flags that every script gets."""
        args = self.args
        return [*map(str, command), "--dataset_name", args.dataset_name, "--dataset_dir", args.dataset_dir,
                "--checkpoints_dir", args.checkpoints_dir, "--device", args.device, "--num_workers",
                str(args.num_workers)]

    def call(self, run, *command):
        """Run a script for the run of that name, with a log if several run at a time; returns seconds.
        UserError when it fails, or after ``stop``."""
        if self.runner.stopped:
            raise UserError(f"{run} was not started")
        command = self.whole(command)
        shown = "\npython " + shlex.join(command)
        if self.args.jobs == 1:
            print(shown, flush=True)
            finished, where = self.runner.run(command), "above"
        else:
            path = self.table.path.parent / "logs" / f"{run}.log"
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as log:
                print(shown, file=log, flush=True)
                finished, where = self.runner.run(command, stdout=log, stderr=log), f"in {path}"
        if finished.code:
            script = command[1] if command[0] == "-m" else command[0]
            raise UserError(f"{script} did not finish for {run}; its message is {where}. Remove the cause, "
                            "then the same command resumes")
        return finished.seconds

    def flags(self, *names):
        """Command-line flags of these settings; None and False are left out."""
        flags = []
        for name in names:
            value = self.settings[name]
            if value is not None and value is not False:
                values = value if isinstance(value, list) else [] if value is True else [value]
                flags += [f"--{name}", *values]
        return flags


class Experiment(Calls):
    """Calls whose runs differ in little: all are trained with the same steps, batches and optimiser.

    A subclass defines ``train_flags``, ``read``, and
        kind, file, order, columns, before: of the table. scripts: the training and the evaluation script.
        names: flags that become settings of the table. trained, evaluated: those of them that are passed on
        to each script, besides those that ``measure`` always passes. milestones: in % of the steps.
    """

    evaluated, evaluation_flags = (), ()

    def __init__(self, args):
        super().__init__(args)
        evaluator = RunFolder(args.checkpoints_dir, self.spec.name, args.evaluator).checkpoint()
        self.settings = {name: getattr(args, name) for name in self.names} | {
            "dataset": args.dataset_name,
            "warm_up_iter": min(2000, args.steps // 10) if args.warm_up_iter is None else args.warm_up_iter,
            "milestones": [args.steps * percent // 100 for percent in self.milestones],
            "evaluator": file_hash(evaluator) if evaluator.is_file() else None}
        self.table = self.open_table(self.settings, self.order)

    def measure(self, row, seed):
        """Metrics of a row with one seed; what an earlier start has trained is kept."""
        folder, s = self.folder(row, seed), self.settings
        name, resume = folder.root.name, ["--is_continue"] if folder.latest.is_file() else []
        if resume:
            self.check_begun(folder.latest)
        train, evaluate = self.scripts
        shared = self.flags("batch_size", "lr", "warm_up_iter", "milestones", "dropout", "precision")
        seconds = self.call(name, train, "--name", name, "--seed", seed, "--max_iter", s["steps"], "--epoch",
                            s["steps"], *shared, *self.flags(*self.trained), *self.train_flags(row, seed),
                            *resume)
        self.call(name, evaluate, "--name", name, "--which", "latest", "--seed", seed, "--evaluator",
                  self.args.evaluator, *self.flags(*self.evaluated), *self.evaluation_flags)
        metrics = self.read(folder, seed)
        if metrics["steps"] != s["steps"]:
            raise UserError(f"{folder.latest} has {metrics['steps']} steps, not {s['steps']}; remove it, or "
                            "pick another --name")
        return metrics | {"seconds": seconds, "resumed": bool(resume)}  # seconds of the last start alone

    def count_steps(self, threshold):
        """Note in every run that was validated so after how many steps its FID reached the threshold, if it
        did."""
        for metrics in (metrics for runs in self.table.runs.values() for metrics in runs.values()):
            if validation := metrics.get("validation"):
                steps, values = (np.array(validation[key]) for key in ("steps", "FID"))
                metrics["steps_to_FID"] = first_reach(steps, values, threshold, upwards=False)
        self.table.columns["steps_to_FID"] = (f"steps to a validation FID of {threshold:g}", 0)
        self.table.save()

    def began(self, checkpoint):
        """{setting: value} that a checkpoint's run was begun with."""
        return checkpoint.get("args", {})

    def check_begun(self, path):
        """UserError when the run to resume was begun with other settings than the table's."""
        s = self.settings
        expected = s | {"max_iter": s["steps"], "dataset_name": s["dataset"]}
        del expected["evaluator"]  # a hash here, a name among the run's flags
        check_began(path, self.began(read_checkpoint(path)), expected)


def check_began(path, began, expected):
    """UserError when a run began with other flags than expected, both {flag: value}; flags that it does not
    know of are passed over."""
    for key, value in expected.items():
        if key in began and began[key] != value:
            raise UserError(f"{path} was begun with {key} {began[key]}, not {value}; pick another --name, or "
                            "remove that run")


def read_losses(folder):
    """Steps and training losses of a run, and the losses of its last fifth: three arrays."""
    name = folder.root.name
    steps, losses = curve(read_runs([folder.root])[name], "Train/loss", name)
    return steps, losses, losses[steps > TAIL / 100 * steps[-1]]


def read_curves(folder):
    """Validations of a run (None without FID), and mean and relative noise of its last losses."""
    name, tail = folder.root.name, read_losses(folder)[2]
    scalars = read_runs([folder.root])[name]
    fid = next((tag for tag in scalars if tag.startswith("Val/FID")), None)
    found = {"loss_mean": float(tail.mean()),
             "loss_noise": float(tail.std() / tail.mean()) if len(tail) > 1 else None, "validation": None}
    if fid is not None:
        steps, values = curve(scalars, fid, name)
        found["validation"] = {"steps": steps.tolist(), "FID": values.tolist()}
    return found


def newest_result(folder, stem):
    """Content of the newest <stem>.json or <stem>_<protocol>.json of the test split in a folder."""
    paths = sorted(Path(folder).glob(f"{stem}*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    found = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    return next(content for content in found if content.get("split", "test") == "test")


def read_generation(folder):
    """Metrics of evaluation_MARDM.py by any protocol; None for what it did not measure."""
    results = newest_result(folder, "evaluation_MARDM")
    made, real = ({key.removesuffix(f"_{results['protocol']}"): value["mean"]
                   for key, value in results["scores"][side].items()} for side in ("generated", "real"))
    for side, scores in (("generated", made), ("real", real)):
        scores |= {key: results[key][side] for key in CLIP_METRICS if results[key]}
    real |= flat(results.get("smoothness", {}).get("real"))
    return {**{key: made.get(key) for key in (*SCORES, *CLIP_METRICS)}, "steps": results["steps"],
            "real": real, "probes": results["probes"]["rate"] if "probes" in results else None,
            **flat(results.get("smoothness", {}).get("generated")),
            "outsiders": results.get("probes", {}).get("outsiders", {}).get("all", {}).get("share"),
            "seconds_per_clip": results["seconds_per_clip"], "clips": results["clips"]}
