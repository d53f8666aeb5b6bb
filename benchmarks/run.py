"""Time the fast variants against the plain variants of the same code, in the same run. Random weights of the
real sizes.

    python -m benchmarks.run                        # everything, size XL: an idle machine, 15 GB, and hours on two cores
    python -m benchmarks.run --plain_iterations 6   # plain generations are cut short and scaled: 40 minutes
    python -m benchmarks.run --only work single     # some of it; the other rows of the result file stay as they are
    python -m benchmarks.run --quick                # does it run: tiny, seconds, writes no file

Writes docs/results/performance.json and, beside it, the table performance.md. A row says what it is, the
plain and the fast figure, their ratio, and the aim where there is one.
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
QUICK = {"size": "S", "clips": 2, "frames": 24, "time_steps": 4, "ode_steps": 2, "train_batch": 2,
         "train_steps": 1, "videos": 1, "product_size": 256}


def parse_args():
    parser = options.make_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE",
                        help=f"cases to run, of {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes in place of all sizes below")
    parser.add_argument("--size", choices=list(SIZES), default="XL", help="size of the generators")
    parser.add_argument("--clips", type=options.positive_int, default=16, help="clips of a batch")
    parser.add_argument("--frames", type=options.positive_int, default=196, help="frames a clip")
    parser.add_argument("--time_steps", type=options.positive_int, default=18, help="iterations of unmasking")
    parser.add_argument("--cfg", type=options.non_negative_float, default=4.5, help="guidance scale")
    parser.add_argument("--solver", choices=SOLVERS, default=SOLVER,
                        help="of both sides in the rows with the same solver")
    parser.add_argument("--ode_steps", type=options.positive_int, default=ODE_STEPS, help="its steps")
    parser.add_argument("--plain_iterations", type=options.non_negative_int, default=0,
                        help="iterations of a plain generation that are run (the row says so); 0 = all")
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "tf32", "bf16"], default=["fp32", "bf16"],
                        help="of the fast variants; the plain ones are fp32")
    parser.add_argument("--compile", action="store_true", help="time the compiled training step too")
    parser.add_argument("--train_batch", type=options.positive_int, default=32,
                        help="clips of a training step")
    parser.add_argument("--train_steps", type=options.positive_int, default=2,
                        help="training steps timed; the best counts")
    parser.add_argument("--videos", type=options.positive_int, default=8, help="videos of a batch")
    parser.add_argument("--product_size", type=options.positive_int, default=2048,
                        help="edge of the matrix product")
    parser.add_argument("--threads", type=options.non_negative_int, default=0,
                        help="threads of torch; 0 = as torch chooses")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, or auto (CUDA where there is "
                                                         "one)")
    parser.add_argument("--output", default=None, help="result file; default: docs/results/performance.json, "
                                                       "none with --quick")
    args = parser.parse_args()
    if args.quick:
        vars(args).update(QUICK)
    elif args.output is None:
        args.output = str(ROOT / "docs/results/performance.json")
    return args


def processor():
    """The CPU's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines()
             if line.startswith("model name")] if (
        info.is_file()) else []
    return names[0] if names else platform.processor() or platform.machine()


def circumstances(bench):
    """Where and how the rows of this run were measured."""
    settings = {name: value for name, value in vars(bench.args).items()
                if name not in ("only", "quick", "output")}
    return {"machine": machine(), "processor": processor(), "threads": torch.get_num_threads(),
            "torch": torch.__version__, "product_gflops": {precision: round(bench.speed(precision), 1)
                                                           for precision in bench.args.precisions},
            "load_before": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d"),
            "code_version": code_version(), "settings": settings}


def cells(entry):
    aim = "" if entry["aim"] is None else f"{entry['aim']:g}" + ("" if entry["ratio"] >= entry["aim"]
                                                                 else ": missed")
    return [entry["what"], f"{entry['plain']:.4g}", f"{entry['fast']:.4g}", entry["unit"],
            f"{entry['ratio']:.3g}", aim, entry["note"]]


HEADER = ("what", "plain", "fast", "unit", "ratio", "aim", "note")


def read_results(path):
    """The cases measured so far, {} without a file. UserError for another file."""
    path = Path(path)
    if path.suffix != ".json":
        raise UserError(f"--output {path}: its name must end in .json; the table goes beside it, as .md")
    try:
        results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {case: results[case] for case in results if describe(results[case]["about"])}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged or holds something else; move it away") from error


def save(path, case, rows, about):
    """Put the rows of a case into the result file, in place of its earlier ones, and write the table beside
    it."""
    path, results = Path(path), read_results(path)
    results[case] = {"about": about, "rows": rows}
    ordered = {name: results[name] for name in CASES if name in results}
    lines = []
    for where in dict.fromkeys(describe(entry["about"]) for entry in ordered.values()):
        table = [cells(made) for entry in ordered.values() if describe(entry["about"]) == where
                 for made in entry["rows"]]
        lines += [where, "", *markdown_table(HEADER, table), ""]
    write_json(path, ordered)
    write_text(path.with_suffix(".md"), "\n".join(lines))


def describe(about):
    speeds = ", ".join(f"{speed:g} GFLOP/s {precision}"
                       for precision, speed in about["product_gflops"].items())
    where = f"{about['machine']}, {about['processor']}, {about['threads']} threads"
    return f"{where}; matrix product {speeds}; code {about['code_version']}"


def main():
    args = parse_args()
    if args.frames < 4:
        raise UserError("--frames: a clip has 4 frames at least")
    if args.output:
        read_results(args.output)  # a damaged file is seen before anything is measured
    device = pick_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    bench = Bench(args, device)
    about = circumstances(bench)
    print(describe(about))
    if about["load_before"] > 0.5:
        print(f"the machine is busy (load {about['load_before']:.1f}): the figures of this run are not to be "
              "quoted")
    table = []
    for name in args.only:
        print(f"{name}: {CASES[name].__doc__}", flush=True)
        rows = CASES[name](bench)
        if args.quick or args.size != "XL":
            rows = [made | {"aim": None} for made in rows]  # the aims are those of the large models
        table += [cells(made) for made in rows]
        if args.output:
            save(args.output, name, rows, about)
    print(format_table(table, HEADER))
    print(f"peak memory {peak_memory_mb():.0f} MB")


if __name__ == "__main__":
    run(main)
