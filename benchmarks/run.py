"""Times the fast variants against the plain variants of the same code, in one run, with random weights of the
real sizes.

    python -m benchmarks.run                       # all, size XL: an idle machine, 15 GB, hours on 2 cores
    python -m benchmarks.run --plain_iterations 6  # plain generations are cut short and scaled: 40 minutes
    python -m benchmarks.run --only work single    # some cases; the others' rows in the result file are kept
    python -m benchmarks.run --quick               # a check that it runs: tiny, seconds, writes no file

Writes docs/results/performance.json and, beside it, the table performance.md: what was timed, the plain and
the fast value, their ratio, and the aim if there is one.
"""
import json
import os
import platform
import time
from pathlib import Path

import torch

from benchmarks.cases import CASES, Bench
from diffusions.flow import SOLVERS
from models.DiffMLPs import ODE_STEPS, SOLVER
from models.MARDM import SIZES
from utils import options
from utils.errors import UserError, run
from utils.files import write_text
from utils.report import format_table, markdown_table, write_json
from utils.training.settings import code_version, machine, peak_memory_mb, pick_device

ROOT = Path(__file__).resolve().parents[1]
HEADER = ("what", "plain", "fast", "unit", "ratio", "aim", "note")
QUICK = {"size": "S", "clips": 2, "frames": 24, "time_steps": 4, "ode_steps": 2, "train_batch": 2,
         "train_steps": 1, "videos": 1, "product_size": 256}


def parse_args():
    parser = options.make_parser(__doc__)
    add, positive_int, non_negative_int = parser.add_argument, options.positive_int, options.non_negative_int
    add("--only", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE",
        help=f"cases to run, of {', '.join(CASES)}")
    add("--quick", action="store_true", help="tiny sizes in place of all sizes below")
    add("--size", choices=list(SIZES), default="XL", help="size of the generators")
    add("--clips", type=positive_int, default=16, help="clips per batch")
    add("--frames", type=options.number(int, 4), default=196, help="frames per clip")
    add("--time_steps", type=positive_int, default=18, help="iterations of unmasking")
    add("--cfg", type=options.non_negative_float, default=4.5, help="guidance scale")
    add("--solver", choices=SOLVERS, default=SOLVER, help="of both variants in the rows with the same solver")
    add("--ode_steps", type=positive_int, default=ODE_STEPS, help="steps of that solver")
    add("--plain_iterations", type=non_negative_int, default=0,
        help="iterations of a plain generation that are run (the row says so); 0 = all")
    add("--precisions", nargs="+", choices=["fp32", "tf32", "bf16"], default=["fp32", "bf16"],
        help="of the fast variants; the plain ones are fp32")
    add("--compile", action="store_true", help="time the compiled training step too")
    add("--train_batch", type=positive_int, default=32, help="clips per training step")
    add("--train_steps", type=positive_int, default=2, help="training steps timed; the best counts")
    add("--videos", type=positive_int, default=8, help="videos per batch")
    add("--product_size", type=positive_int, default=2048, help="edge of the matrix product")
    add("--threads", type=non_negative_int, default=0, help="threads of torch; 0 = torch's default")
    add("--device", default="auto", help="cpu, cuda, cuda:N, or auto (CUDA if available)")
    add("--output", help="result file; default: docs/results/performance.json, none with --quick")
    args = parser.parse_args()
    if args.quick:
        vars(args).update(QUICK)
    elif args.output is None:
        args.output = str(ROOT / "docs/results/performance.json")
    return args


def processor():
    """The CPU's name, if the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def circumstances(bench):
    """Where and how the rows of this run are measured."""
    settings = {name: value for name, value in vars(bench.args).items()
                if name not in ("only", "quick", "output")}
    return {"machine": machine(), "processor": processor(), "threads": torch.get_num_threads(),
            "torch": torch.__version__, "product_gflops": {precision: round(bench.speed(precision), 1)
                                                           for precision in bench.args.precisions},
            "load_before": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d"),
            "code_version": code_version(), "settings": settings}


def cells(row):
    missed = row["aim"] is not None and row["ratio"] < row["aim"]
    aim = "" if row["aim"] is None else f"{row['aim']:g}" + ": missed" * missed
    return [row["what"], f"{row['plain']:.4g}", f"{row['fast']:.4g}", row["unit"], f"{row['ratio']:.3g}", aim,
            row["note"]]


def read_results(path):
    """The cases measured so far, {} without a file. UserError for a file that is something else."""
    path = Path(path)
    if path.suffix != ".json":
        raise UserError(f"--output {path}: its name must end in .json; the table goes beside it, as .md")
    try:
        results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {case: results[case] for case in results if describe(results[case]["about"])}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged or something else; move it away") from error


def save(path, case, rows, about):
    """Put the rows of a case into the result file, in place of its earlier ones, and rewrite the table."""
    path, results = Path(path), read_results(path)
    results[case] = {"about": about, "rows": rows}
    results = {name: results[name] for name in CASES if name in results}
    tables = {}  # one per machine and code version
    for entry in results.values():
        tables.setdefault(describe(entry["about"]), []).extend(map(cells, entry["rows"]))
    write_json(path, results)
    write_text(path.with_suffix(".md"), "\n".join(
        line for where, rows in tables.items() for line in (where, "", *markdown_table(HEADER, rows), "")))


def describe(about):
    speeds = ", ".join(f"{speed:g} GFLOP/s {precision}"
                       for precision, speed in about["product_gflops"].items())
    where = f"{about['machine']}, {about['processor']}, {about['threads']} threads"
    return f"{where}; matrix product {speeds}; code {about['code_version']}"


def main():
    args = parse_args()
    if args.output:
        read_results(args.output)  # a damaged file is noticed before anything is measured
    device = pick_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    bench = Bench(args, device)
    about = circumstances(bench)
    print(describe(about))
    if about["load_before"] > 0.5:
        print(f"the machine is busy (load {about['load_before']:.1f}): do not quote the times of this run")
    table = []
    for name in args.only:
        print(f"{name}: {CASES[name].__doc__}", flush=True)
        rows = CASES[name](bench)
        if args.quick or args.size != "XL":
            rows = [row | {"aim": None} for row in rows]  # the aims are those of the large models
        table += map(cells, rows)
        if args.output:
            save(args.output, name, rows, about)
    print(format_table(table, HEADER))
    print(f"peak memory {peak_memory_mb():.0f} MB")


if __name__ == "__main__":
    run(main)
