"""Five hundred damaged inputs, and what the commands make of them.

    python -m scripts.soak_inputs --inputs 500 --seed 3407 --results soak/inputs.json
    python -m scripts.soak_inputs --seed 3407 --only 17         # one of them, with all that it prints

Every input is a file of a tiny data set, network or clip that is damaged in one way (scripts/corpus/),
and the command that reads it. Each runs in a forked process and a folder of its own, and passes with

    a clear line     exit code 2, one line that names the file, nothing half written
    a right result   the result of the undamaged file, what is left out named, or a result that a check of its
                     own finds right

within --seconds, with at most --megabytes more memory than with the undamaged file, and without running what
a pickle asks for. Prints a table, and for each failure the command that repeats it. Exit code 1 if there is
any. Needs fork, so Linux or macOS.
"""
import ctypes
import hashlib
import importlib
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import copytree, rmtree
from typing import NamedTuple

from tqdm import tqdm

from scripts.corpus import damage, undamaged
from scripts.corpus.inputs import KINDS, corpus
from scripts.runs import sigterm_as_ctrl_c
from scripts.soaking import Results, add_results
from utils.errors import UserError, run
from utils.options import make_parser, non_negative_int, positive_int

SECONDS, MEGABYTES = 120, 1024  # of the bounds
HEADROOM = 12 * 2 ** 30  # address space beyond the parent's: the machine's memory is not at risk
SCALE = 2 ** 20 if sys.platform == "darwin" else 2 ** 10  # of the system's peak memory, in a megabyte
LONGEST = 1100  # characters of a clear line
LINE, RESULT = "clear line", "right result"
COLUMNS = ("kind of file", "inputs", LINE, RESULT, "failures")


class Ran(NamedTuple):
    """What came of a command. code: exit code, None where it was killed; files: {path: hash} that it wrote;
    found: what the case's own check says; megabytes: peak memory."""

    code: int
    seconds: float
    megabytes: float
    out: str
    err: str
    files: dict
    found: str


def parse_args():
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--inputs", type=positive_int, default=500, help="number of inputs")
    add("--seed", type=non_negative_int, default=3407, help="seed of the corpus")
    add("--only", type=non_negative_int, nargs="+", default=None, metavar="N",
        help="run the inputs of these numbers alone, and show them")
    add("--seconds", type=positive_int, default=SECONDS, help="longest time of an input")
    add("--megabytes", type=positive_int, default=MEGABYTES,
        help="most memory beyond what the undamaged input needs")
    add("--jobs", type=positive_int, default=1, help="inputs at the same time")
    add("--first", type=non_negative_int, default=0, metavar="N", help="leave out the inputs before this one")
    add_results(parser)
    return parser.parse_args()


def fingerprints(folder):
    """{relative path: (what it is, size, time, number)} of everything in a folder."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            about = os.lstat(os.path.join(place, name))
            kind = about.st_mode & 0o170000
            what = (kind,) if name in folders else (kind, about.st_size, about.st_mtime_ns, about.st_ino)
            found[os.path.relpath(os.path.join(place, name), folder)] = what
    return found


def written(folder, before):
    """{path: hash} of the files that are new or changed, and new folders, in a folder."""
    changed = [name for name, what in fingerprints(folder).items()
               if before.get(name) != what and name not in ("stdout", "stderr", "found")]
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() if (path := folder / name).is_file() else ""
            for name in sorted(changed)}


def without_privileges():
    """Give up root's right to read every file, so that permissions hold; for anybody else they do anyway."""
    if sys.platform == "linux" and os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # of capset(2), version 3
        sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice: none
        ctypes.CDLL(None).capset(header, sets)


def in_child(command, prepare, check, folder, headroom):
    """Run a command as its script does, with stdout and stderr in files; never returns. prepare: damages the
    input; check: judges the result."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        tqdm._instances.clear()  # the bar of this script is not above those of the command
        os.chdir(folder)
        os.setpgid(0, 0)
        prepare()
        before = fingerprints(folder)
        for stream, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        sys.stdout, sys.stderr = (open(stream, "w", encoding="utf-8", errors="backslashreplace",
                                       closefd=False)
                                  for stream in (1, 2))
        resource.setrlimit(resource.RLIMIT_AS, (headroom, headroom))
        without_privileges()
        sys.argv = [f"{command.module}.py", *command.words]
        undamaged.use_stand_in()
        try:
            run(importlib.import_module(command.module).main)
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
        if code == 0 and (found := check()):
            Path("found").write_text(found)
        Path("wrote").write_text("".join(f"{digest} {name}\n" for name, digest in
                                         written(folder, before).items()))
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def address_space():
    """Bytes of this process' address space; 0 where that is not known."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 2 ** 38


class Soak:
    """Runs Cases in copies of one folder of undamaged inputs. References, of undamaged inputs, are kept."""

    def __init__(self, folder, seconds=SECONDS, megabytes=MEGABYTES):
        self.folder, self.seconds, self.megabytes = Path(folder), seconds, megabytes
        self.base, self.references = self.folder / "base", {}
        self.running = {}  # process: (what is called with its Ran, its folder, when it began)
        self.headroom = address_space() + HEADROOM
        self.base.mkdir()
        self.make_base()

    def make_base(self):
        """Write the undamaged inputs, in a process of its own, as torch's threads do not survive a fork."""
        if not (process := os.fork()):
            code = 1
            try:
                with open(self.folder / "base.log", "w", encoding="utf-8") as log:
                    os.dup2(log.fileno(), 1)
                    os.dup2(log.fileno(), 2)
                    os.chdir(self.base)
                    undamaged.make_inputs()
                    code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        if os.waitpid(process, 0)[1]:
            raise RuntimeError((self.folder / "base.log").read_text())

    def start(self, name, command, prepare, check, done):
        """Start a command in a fresh copy of the inputs; ``done(Ran)`` is called once it has ended."""
        folder = self.folder / name
        copytree(self.base, folder, copy_function=os.link)
        sys.stdout.flush()
        sys.stderr.flush()
        if not (process := os.fork()):
            in_child(command, prepare, check, folder, self.headroom)
        self.running[process] = done, folder, time.monotonic()

    def wait(self, fewer_than):
        """Wait until fewer commands than that run."""
        while len(self.running) >= fewer_than:
            for process, (done, folder, begun) in list(self.running.items()):
                ended, status, usage = os.wait4(process, os.WNOHANG)
                seconds = time.monotonic() - begun
                if not ended and seconds > self.seconds:
                    os.killpg(process, signal.SIGKILL)
                    _, status, usage = os.wait4(process, 0)
                elif not ended:
                    continue
                del self.running[process]
                done(self.collect(folder, status, usage, seconds))
                rmtree(folder, ignore_errors=True)
            time.sleep(0.002)

    def stop(self):
        """End the commands that run."""
        for process in self.running:
            with suppress(ProcessLookupError):  # it has no group of its own yet
                os.killpg(process, signal.SIGKILL)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        self.running.clear()

    def collect(self, folder, status, usage, seconds):
        def text(name):
            path = folder / name
            return path.read_bytes().decode("utf-8", "replace") if path.is_file() else ""

        code = os.waitstatus_to_exitcode(status)
        files = dict(line.split(" ", 1)[::-1] for line in text("wrote").splitlines())
        marker = {damage.MARKER: ""} if (folder / damage.MARKER).exists() else {}
        return Ran(None if code < 0 else code, seconds, usage.ru_maxrss / SCALE, text("stdout"),
                   text("stderr"),
                   files | marker, text("found"))

    def reference(self, case):
        """The Ran of a case's command with the undamaged input; where all ways are refused, what this process
        needs by itself."""
        if all(way.outcome == "refused" for way in case.kind.ways):
            return Ran(0, 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / SCALE, "", "", {}, "")
        if case.command not in self.references:
            self.wait(1)
            name = f"reference_{len(self.references)}"
            target = Path(case.kind.target)
            self.start(name, case.command, lambda: None, lambda: case.command.check(target),
                       lambda ran: self.references.__setitem__(case.command, ran))
            self.wait(1)
            ran = self.references[case.command]
            if ran.code not in (0, 1, 2) or ran.found or "Traceback" in ran.err:
                raise RuntimeError(f"{case}: not even the undamaged input works: {ran}")
        return self.references[case.command]

    def run(self, case, done):
        """Start a Case; ``done(case, Ran, verdict)`` is called once it has ended; verdict: of ``judge``."""
        reference, target = self.reference(case), Path(case.kind.target)
        check = case.command.check if case.way.outcome == "any" else lambda _target: None

        self.start(f"case_{case.number}", case.command, lambda: case.way.apply(target, case.dice),
                   lambda: check(target), lambda ran: done(case, ran, self.judge(case, ran, reference)))

    def judge(self, case, ran, reference):
        """LINE, RESULT, or what is wrong."""
        beyond = ran.megabytes - reference.megabytes
        lines = [line for line in re.split(r"[\n\r]", ran.err) if line.strip()]
        if damage.MARKER in ran.files:
            return "it ran the code of a pickle"
        if ran.code is None:
            return f"killed after {ran.seconds:.0f} s"
        if "Traceback (most recent call last)" in ran.err or ran.code not in (0, 1, 2):
            return f"a traceback: {lines[-1] if lines else ran.code}"[:300]
        if beyond > self.megabytes:
            return f"{beyond:.0f} MB more than the undamaged input"
        if noise := [line for line in lines if re.search(r"\w+Warning: ", line)]:
            return f"a warning of a library: {noise[0][:200]}"
        return (judge_line if ran.code == 2 else judge_result)(case, ran, reference, lines)


def judge_line(case, ran, reference, lines):
    errors = [line for line in lines if line.startswith("error: ")]
    half = [name for name in ran.files if re.search(r"\.partial\b|^\.[0-9a-f]{12}\.|/\.[0-9a-f]{12}\.", name)]
    if half:
        return f"left {half[0]} behind"
    if len(errors) != 1 or lines[-1] != errors[0]:
        return f"exit code 2, but {len(errors)} lines of error: {' / '.join(lines[-3:])}"[:300]
    line = errors[0]
    if len(line) > LONGEST or not line.isprintable():
        return f"a line of {len(line)} characters, or not printable: {line[:120]!r}"
    if line == next(iter(re.findall("^error: .*", reference.err, re.MULTILINE)), None):
        return RESULT  # that of the undamaged file
    if case.way.outcome in ("same", "left out"):
        return f"refused, though it should be {case.way.outcome}: {line}"
    return LINE if named(case, line) else f"the line does not name the file: {line}"


def named(case, text):
    """Whether a text names what is wrong: the file, or one of the kind's words for it."""
    words = case.way.says or case.kind.says or Path(case.kind.target).name
    return any(word in text for word in words.split("|"))


def judge_result(case, ran, reference, lines):
    said = ran.out + ran.err
    if any(line.startswith("error: ") for line in lines):
        return f"exit code {ran.code} with an error: {lines[-1]}"
    if case.command.module == "scripts.doctor":  # its report is the result
        bad = [line for line in said.splitlines() if re.match(r"\s+(warning|missing|damaged)", line)]
        if case.way.outcome == "left out" and not named(case, "\n".join(bad)):
            return "the doctor found nothing"
        return RESULT
    if ran.code == 1:
        return f"exit code 1: {' / '.join(lines[-2:])}"[:300]
    if case.way.outcome == "refused":
        return f"was taken as if it were whole: {' / '.join(said.splitlines()[-2:])}"[:300]
    if case.way.outcome == "left out" and not named(case, said):
        return "left something out without a word"
    if case.way.outcome == "same" and (ran.files, ran.code) != (reference.files, reference.code):
        different = [name for name in {*ran.files, *reference.files}
                     if ran.files.get(name) != reference.files.get(name)]
        return f"another result than that of the undamaged file: {sorted(different)[:3]}"
    return ran.found or RESULT


@contextmanager
def soak_in_temporary_folder(**bounds):
    """Yields a Soak, whose commands end with the block, however that ends."""
    with sigterm_as_ctrl_c(), tempfile.TemporaryDirectory() as folder:
        soaking = Soak(folder, **bounds)
        try:
            yield soaking
        finally:
            soaking.stop()


def soak(cases, soaking, jobs=1, done=lambda case, ran, verdict: None):
    """Run Cases by a Soak; [(Case, Ran, verdict)] in their order. ``done`` is called with each of them as it
    comes."""
    cases, results = list(cases), {}
    with tqdm(total=len(cases), desc="damaged inputs", unit="input", mininterval=1) as progress:
        def note(case, ran, verdict):
            done(case, ran, verdict)
            results[case.number] = case, ran, verdict
            if verdict not in (LINE, RESULT):
                progress.write(f"{case.number}: {case}\n    {verdict}", file=sys.stderr)
            progress.update()

        for case in cases:
            soaking.run(case, note)
            soaking.wait(jobs)
        soaking.wait(1)
    return [results[case.number] for case in cases]


def first_cases(count, seed):
    """The first Cases of a corpus."""
    return [case for case, _ in zip(corpus(seed), range(count))]


def table(results):
    """Rows of the table, the COLUMNS, with a sum at the end; of [(Case, verdict)]."""
    rows = []
    for name in [kind.name for kind in KINDS]:
        verdicts = [verdict for case, verdict in results if case.kind.name == name]
        lines, right = verdicts.count(LINE), verdicts.count(RESULT)
        if verdicts:
            rows.append((name, len(verdicts), lines, right, len(verdicts) - lines - right))
    return [*rows, ("all", *(sum(row[column] for row in rows) for column in range(1, 5)))]


def failures(results, seed):
    """A line for each failure of [(Case, verdict)], with the command that repeats it."""
    return [f"{case.number}: {case}\n    {verdict}\n    python -m scripts.soak_inputs --seed {seed} --only "
            f"{case.number}" for case, verdict in results if verdict not in (LINE, RESULT)]


def soak_rest(cases, results, jobs=1, **bounds):
    """Run the Cases that have not passed yet by the Results; [(Case, verdict)] of all. bounds: ``seconds``,
    ``megabytes``."""
    def passed(case):
        before = results.found.get(str(case.number), {})
        return before.get("input") == str(case) and before.get("verdict") in (LINE, RESULT)

    def keep(case, ran, verdict):
        results.put(str(case.number), {"input": str(case), "verdict": verdict,
                                       "seconds": round(ran.seconds, 2), "megabytes": round(ran.megabytes)})

    import_commands()
    with soak_in_temporary_folder(**bounds) as soaking:
        soak([case for case in cases if not passed(case)], soaking, jobs, keep)
    return [(case, results.found[str(case.number)]["verdict"]) for case in cases]


def import_commands():
    """Import all commands, once for all processes that are forked."""
    for module in {command.module for kind in KINDS for command in kind.commands}:
        importlib.import_module(module)


def show(args):
    """Run some inputs and print all that is known of them; whether one fails."""
    cases = [case for case in first_cases(max(args.only) + 1, args.seed) if case.number in args.only]
    import_commands()
    with soak_in_temporary_folder(seconds=args.seconds, megabytes=args.megabytes) as soaking:
        found = soak(cases, soaking, args.jobs)
    for case, ran, verdict in found:
        print(f"\n{case.number}: {case}\nexpected: {case.way.outcome}\n{ran.out}{ran.err}")
        print(f"exit code {ran.code}, {ran.seconds:.2f} s, {ran.megabytes:.0f} MB; wrote "
              f"{', '.join(ran.files) or 'nothing'}\n{verdict}")
    return any(verdict not in (LINE, RESULT) for _, _, verdict in found)


def main():
    args = parse_args()
    if args.only is not None:
        sys.exit(show(args))
    cases = first_cases(args.inputs, args.seed)[args.first:]
    if not cases:
        raise UserError(f"--first {args.first} leaves nothing of --inputs {args.inputs}")
    results = Results(args.results, "inputs", args.seed)
    verdicts = soak_rest(cases, results, args.jobs, seconds=args.seconds, megabytes=args.megabytes)
    results.publish(COLUMNS, table(verdicts), [str(case.number) for case in cases])
    failed = failures(verdicts, args.seed)
    print(*failed, sep="\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    run(main)
