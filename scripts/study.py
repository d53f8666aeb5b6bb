"""A table of generator recipes: trains, evaluates and compares the rows of a file.

    python -m scripts.study study.json --dataset_name demo --seeds 3

The file is JSON:

    {"common": {"train": "--ae_name AE --ae_model FSQ_AE_High --max_iter 2000", "evaluate": "--repeats 3"},
     "rows": {"base":  {"train": "--model FSQ-MARDM-SiT-S"},
              "ddpm":  {"train": "--model FSQ-MARDM-DDPM-S", "evaluate": "--cfg 2"},
              "euler": {"of": "base", "evaluate": "--solver euler"},
              "fast":  {"of": "base", "script": "distill_head.py", "flags": "--which latest --max_iter 2000",
                        "evaluate": "--ode_steps 1"}}}

"train" are flags of train_MARDM.py, "evaluate" of evaluation_MARDM.py; those of "common" come first. A row
with "of" uses the generator of another row. With "script" too, that root script makes a new generator of it:
it is called with the "flags", --name, --seed, --teacher (the other row's run), --is_continue where it has
begun, and the flags that say where data and runs are; "common" is not for it.

Every row is trained and then evaluated on the test split with the latest checkpoint, for every seed; the runs
are checkpoints/<dataset>/<name>_<row>_<seed>, with results in eval/<row>/. Started again it resumes, and more
rows or seeds join the table (--rows: some of the file's); --jobs 2 trains two at a time. Writes study.json,
study.md and study.png into --output_dir.
"""
import importlib
import re
import shlex
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from models.loading import load_generator, trained_as
from models.MARDM import check_pair
from scripts.runs import ROOT, Calls, add_calls, check_began, read_generation
from utils import options
from utils.curves import STYLE, plt, save_figure
from utils.errors import UserError, run
from utils.evaluation.smoothness import SMOOTHNESS
from utils.evaluation.suites import load_suite
from utils.files import RunFolder, read_checkpoint, read_json
from utils.report import write_json
from utils.training.resuming import FREE_FLAGS

TRAIN, EVALUATE = "train_MARDM.py", "evaluation_MARDM.py"
OURS = {"--help", "-h", "--check", "--name", "--seed", "--dataset_name", "--dataset_dir", "--checkpoints_dir",
        "--device", "--num_workers", "--is_continue", "--teacher"}
OURS_TO_EVALUATE = OURS | {"--which", "--eval_name"}
SHARED = {"--protocol", "--evaluator", "--matching_evaluator", "--contrast_evaluator", "--eval_statistics"}
# What a resumed training may change, but for what makes its recipe.
FREE = FREE_FLAGS - {"epoch", "max_iter", "batch_size"}
COLUMNS = {  # column: (unit, digits)
    "FID": ("", 4), "R1": ("", 3), "R2": ("", 3), "R3": ("", 3), "matching": ("", 3), "diversity": ("", 3),
    "probes": ("fraction passed", 3), "outsiders": ("sequences passed", 3), "label_accuracy": ("", 3),
    "foot_skating": ("m/s", 3),
    "acceleration": ("m/s^2", 2), "peak_jerk": ("m/s^3", 0), "nearest_train": ("m", 4), **SMOOTHNESS,
    "seconds_per_clip": ("s", 3), "training_seconds": ("s", 0), "parameters": ("millions", 2),
    "steps": ("", 0), "clips": ("", 0)}


class Row(NamedTuple):
    """What a row does. script, flags: of its training; script None: it uses the generator of the row ``of``.
    evaluate: flags."""

    script: str
    flags: tuple
    evaluate: tuple
    of: str = None


def parse_args():
    parser = options.make_parser(__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.json", help="the recipes")
    add_calls(parser, "study")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows, and what they are made of")
    return parser.parse_args()


def read_study(path):
    """The common flags {"train", "evaluate": tuple} and {name: Row} of a file. UserError for a bad one."""
    content = read_json(path)
    check_keys(path, content, ("common", "rows"))
    common = content.get("common", {})
    check_keys(f"{path}: common", common, ("train", "evaluate"))
    common = {key: split_flags(f"{path}: common: {key}", common.get(key, ""), refused)
              for key, refused in (("train", OURS), ("evaluate", OURS_TO_EVALUATE))}
    recipes = content.get("rows")
    if not recipes or not isinstance(recipes, dict):
        raise UserError(f"{path} has no rows: {{\"rows\": {{NAME: {{\"train\": FLAGS}}}}}}")
    try:
        rows = {name: read_row(name, recipe) for name, recipe in recipes.items()}
        for name in rows:
            chain(rows, name)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return common, rows


def check_keys(what, value, known):
    """UserError unless ``value`` is a dict with no other keys than the known ones."""
    if not isinstance(value, dict):
        raise UserError(f"{what} must be a JSON object, {{...}}")
    if unknown := [key for key in value if key not in known]:
        raise UserError(f"{what} has the unknown key '{unknown[0]}'; known are {', '.join(known)}")


def split_flags(what, text, refused):
    """A tuple of flags. UserError for anything but text, and for the ``refused`` flags."""
    if not isinstance(text, str):
        raise UserError(f"{what} must be text with flags")
    try:
        flags = tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f"{what} cannot be split into flags ({error})") from error
    for flag in (word.split("=")[0] for word in flags):
        if flag in refused:
            where = "belongs to common" if flag in SHARED else "is set by the study"
            raise UserError(f"{what}: {flag} {where}; leave it out")
    return flags


def read_row(name, recipe):
    """The Row of a recipe (a dict)."""
    what = f"row '{name}'"
    if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", name):
        raise UserError(f"{what}: a row's name, which names folders, has letters, digits and . _ + - only")
    check_keys(what, recipe, ("train", "evaluate", "of", "script", "flags"))
    evaluate = split_flags(f"{what}: evaluate", recipe.get("evaluate", ""),
                           OURS_TO_EVALUATE | SHARED)
    script, of = recipe.get("script"), recipe.get("of")
    if of is None and (script is not None or "flags" in recipe):
        raise UserError(f"{what}: script and flags go with \"of\", the row whose generator they start from")
    if of is None:
        return Row(TRAIN, split_flags(f"{what}: train", recipe.get("train", ""), OURS), evaluate)
    if "train" in recipe or (script is None and "flags" in recipe):
        raise UserError(f"{what} is of '{of}' and trains nothing: leave out train and flags, or name a "
                        "script")
    if script is not None and not (isinstance(script, str) and re.fullmatch(r"\w+\.py", script)
                                   and (ROOT / script).is_file()):
        raise UserError(f"{what}: there is no script '{script}' in the root folder")
    return Row(script, split_flags(f"{what}: flags", recipe.get("flags", ""), OURS), evaluate, of)


def chain(rows, name):
    """The row, the row that it is of, and so on. UserError where one does not exist or comes again."""
    found = [name]
    while (other := rows[found[-1]].of) is not None:
        if not isinstance(other, str) or other not in rows:
            raise UserError(f"row '{found[-1]}' is of '{other}', which is no row")
        if other in found:
            raise UserError(f"row '{name}' is of itself: {' of '.join([*found, other])}")
        found.append(other)
    return found


def parse(what, command):
    """The arguments (Namespace) that a root script reads from a command. UserError with its complaint."""
    module, before, said = importlib.import_module(Path(command[0]).stem), sys.argv, StringIO()
    if not hasattr(module, "parse_args"):
        raise UserError(f"{what}: {command[0]} is no script that a study can call: it has no parse_args")
    sys.argv = command
    try:
        with redirect_stderr(said), redirect_stdout(said):
            return module.parse_args()
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    except SystemExit as error:
        raise UserError(f"{what}: {said.getvalue().strip().removeprefix('error: ')}") from error
    finally:
        sys.argv = before


def read_seconds(path):
    """{run: training seconds of all its starts} so far. UserError if the file is damaged."""
    try:
        return read_json(path) if path.is_file() else {}
    except UserError as error:
        raise UserError(f"{path} is damaged; remove it (it holds the training seconds so far)") from error


class Study(Calls):
    """The rows are those of the file."""

    kind, file, columns = "study", "study.json", COLUMNS

    def __init__(self, args):
        self.common, self.rows = read_study(args.file)
        self.chosen = list(dict.fromkeys(args.rows or self.rows))
        if unknown := [name for name in self.chosen if name not in self.rows]:
            raise UserError(f"{args.file} has no row '{unknown[0]}'; it has {', '.join(self.rows)}")
        super().__init__(args)
        self.trained = {}  # (row, seed): None, or the message of a failure
        self.lock = threading.Lock()  # of the seconds
        self.running = {pair: threading.Lock() for pair in self.wanted(self.rows)}
        suite = load_suite(self.parsed("common: evaluate", self.evaluation(None, args.seed)), self.spec,
                           lambda _: None)
        self.table = self.open_table({"dataset": args.dataset_name, "protocol": suite.protocol,
                                      "evaluators": sorted(suite.files.values()),
                                      **{key: shlex.join(flags) for key, flags in self.common.items()}},
                                     self.rows)
        self.clock = self.table.path.with_name("study_seconds.json")
        self.seconds = read_seconds(self.clock)

    def generator(self, row):
        """The row that trains this row's generator."""
        return next(name for name in chain(self.rows, row) if self.rows[name].script)

    def training(self, row, seed):
        """The command that trains a row's generator."""
        script, flags, _, of = self.rows[row]
        folder = self.folder(row, seed)
        shared = () if of else self.common["train"]
        teacher = ["--teacher", self.folder(self.generator(of), seed).root.name] if of else []
        resume = ["--is_continue"] if folder.latest.is_file() else []
        return [script, *shared, *flags, *teacher, "--name", folder.root.name, "--seed", seed, *resume]

    def evaluation(self, row, seed):
        """The command that evaluates a row; row None: what is common to all."""
        flags = self.rows[row].evaluate if row else ()
        name = self.folder(self.generator(row), seed).root.name if row else self.args.name
        return [EVALUATE, *self.common["evaluate"], *flags, "--name", name, "--which", "latest", "--seed",
                seed, *(["--eval_name", row] if row else [])]

    def check(self):
        """UserError for flags that a script would refuse, for what is missing, and for rows and runs that
        were made by another recipe."""
        for row in self.rows:
            for metrics in self.table.runs.get(row, {}).values():
                if metrics.get("recipe") != self.recipe(row):
                    raise UserError(f"{self.table.path} has the row '{row}' by another recipe, "
                                    f"{metrics.get('recipe')}; give the new one another name")
        needed = {name for row in self.chosen for name in chain(self.rows, row)}
        for row, seed in self.wanted(row for row in self.rows if row in needed):
            args = self.parsed(f"row '{row}': evaluate", self.evaluation(row, seed))
            self.check_there(row, "--ae_name", args.ae_name)
            self.check_there(row, "--length_estimator", args.probe_repeats and args.length_estimator)
            if self.rows[row].script:
                args = self.parsed(f"row '{row}'", self.training(row, seed))
                if self.rows[row].script == TRAIN:
                    self.check_there(row, "--ae_name", args.ae_name)
                    check_pair(args.model, args.ae_model or self.ae_model(args.ae_name))
                self.check_begun(self.folder(row, seed).latest, args)

    def parsed(self, what, command):
        """The arguments (Namespace) that a script gets from a command."""
        return parse(what, self.whole(command))

    def check_there(self, row, flag, name):
        """UserError if the run that a flag names has no checkpoint; name None, 0: it names none."""
        path = RunFolder(self.args.checkpoints_dir, self.spec.name, name).checkpoint() if name else None
        if path and not path.is_file():
            raise UserError(f"row '{row}': there is no {path}: train that first, or correct {flag}")

    def ae_model(self, name):
        """What the autoencoder of a run was trained as."""
        path = RunFolder(self.args.checkpoints_dir, self.spec.name, name).checkpoint()
        return trained_as(read_checkpoint(path))

    def check_begun(self, path, args):
        """UserError when the run to resume was begun with other flags."""
        if path.is_file():
            check_began(path, read_checkpoint(path).get("args", {}),
                        {key: value for key, value in vars(args).items() if key not in FREE})

    def recipe(self, row):
        """What a run keeps of its row, to notice changes of the file."""
        script, flags, evaluate, of = self.rows[row]
        return {"script": script, "flags": shlex.join(flags), "evaluate": shlex.join(evaluate), "of": of}

    def train(self, row, seed):
        """Train a row's generator, after the one that it is of, unless that was done before. Rows of the same
        generator wait for the first of them; where it fails, so do they."""
        key, run = (row, seed), self.folder(row, seed)
        with self.running[key]:
            if key not in self.trained:
                finished = run.latest.is_file() and str(seed) in self.table.runs.get(row, {})
                self.trained[key] = None if finished else self.start_training(row, seed)
            if self.trained[key] is not None:
                raise UserError(self.trained[key])

    def start_training(self, row, seed):
        """Train; returns the message of a failure, or None. Keeps the seconds of all starts."""
        name, begun = self.folder(row, seed).root.name, None
        try:
            if self.rows[row].of:
                self.train(self.generator(self.rows[row].of), seed)
            begun = time.monotonic()
            self.call(name, *self.training(row, seed))
        except UserError as error:
            return str(error)
        finally:
            with self.lock:
                if begun is not None:
                    self.seconds[name] = self.seconds.get(name, 0) + time.monotonic() - begun
                    write_json(self.clock, self.seconds)

    def measure(self, row, seed):
        """Metrics of a row with one seed; a row that trains nothing has no training seconds."""
        maker = self.generator(row)
        self.train(maker, seed)
        self.call(self.folder(row, seed).root.name, *self.evaluation(row, seed))
        folder = self.folder(maker, seed)
        generator, _ = load_generator(folder.latest)
        return read_generation(folder.root / "eval" / row) | {
            "parameters": sum(weight.numel() for weight in generator.parameters()) / 1e6,
            "training_seconds": self.seconds.get(folder.root.name) if row == maker else None,
            "recipe": self.recipe(row)}

    def in_order(self):
        """The names of the chosen rows, those that others are of first, so that few have to wait."""
        return sorted(self.chosen, key=lambda row: len(chain(self.rows, row)))


def draw(table, path):
    """R-precision by FID, with the standard deviations over the seeds, for rows that have both."""
    rows = [summary for summary in table.rows() if {"FID", "R3"} <= set(summary)]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
        for number, summary in enumerate(rows):
            axes.errorbar(summary["FID"], summary["R3"], summary.get("R3_std"), summary.get("FID_std"),
                          fmt="osD^vX"[number // 10 % 6], color=f"C{number % 10}", capsize=2,
                          label=summary["row"])
        axes.set(xlabel="test FID", ylabel="R-precision, top 3")
        if rows:
            figure.legend(loc="outside right upper", fontsize=9)
        save_figure(figure, path)


def main():
    study = Study(parse_args())
    study.check()  # before the first training, not after hours of it
    study.fill(study.wanted(study.in_order()))
    study.table.publish(draw)


if __name__ == "__main__":
    run(main)
