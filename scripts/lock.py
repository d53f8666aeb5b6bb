"""Write locks/: every package that `make install` installs, with one version for Python 3.10 to 3.12 and the
SHA-256 of each of its files.

    python -m scripts.lock              # for requirements.txt as it is; other packages keep their versions
    python -m scripts.lock --upgrade    # newest versions that are a week old, in requirements.txt too

`make lock` and `make update` are the same with the pinned uv. Files and hashes are those of the index, PyPI
by default.
"""
import datetime
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from utils import options
from utils.errors import UserError, run
from utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "locks"
# Which packages of requirements.txt and of all that they need are in which file: the first pattern that fits.
# make install takes the files in this order, since building openai-clip needs setuptools, and can take
# torch from another index instead, whose files are others.
FILES = {"build.txt": r"setuptools", "torch.txt": r"torch|triton|nvidia-.+|cuda-.+", "packages.txt": r".+"}
# Stay where they are with --upgrade.
HELD = {"torch": "results were measured with it; its CUDA decides which drivers do",
        "setuptools": "openai-clip imports pkg_resources, which later ones lack"}
HEADER = "# Written by scripts/lock.py (make lock, make update).\n"
COOLING = 7  # days from a release until --upgrade takes it: most malicious ones are gone by then
PIN = re.compile(r"^([a-z0-9.-]+)==([^\s;]+)", re.MULTILINE)


def parse_args():
    parser = options.make_parser(__doc__)
    parser.add_argument("--upgrade", action="store_true",
                        help=f"take the newest versions that are {COOLING} days old, of all but "
                             f"{' and '.join(HELD)}")
    parser.add_argument("--uv", default="uv", help="uv to run")
    parser.add_argument("--index", default="https://pypi.org/simple", help="index of packages")
    return parser.parse_args()


def compile_lock(args, wanted, known=""):
    """The text of a lock of the requirements ``wanted``; versions in the text of a lock ``known`` stay."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "wanted.in"), Path(folder, "lock.txt")
        source.write_text(wanted, encoding="utf-8")
        out.write_text(known, encoding="utf-8")
        words = [args.uv, "pip", "compile", "--quiet", "--no-config", "--universal", "--generate-hashes",
                 "--python-version", "3.10", "--fork-strategy", "fewest", "--no-header", "--no-annotate",
                 "--default-index", args.index, source.name, "--output-file", out.name]
        if args.upgrade:
            newest = datetime.date.today() - datetime.timedelta(days=COOLING)
            words += ["--upgrade", "--exclude-newer", newest.isoformat()]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"uv finds no versions that go together: {' '.join(done.stderr.split())[:500]}")
        return out.read_text(encoding="utf-8")


def relaxed(requirements):
    """A text of requirements with a lower bound in place of each pin that is not held."""
    return PIN.sub(lambda pin: pin[0] if pin[1] in HELD else f"{pin[1]}>={pin[2]}", requirements)


def moved_pins(requirements, lock):
    """A text of requirements with the versions of a lock's text; reasons stay in their column."""
    versions = dict(PIN.findall(lock))

    def line(match):
        old, room = f"{match[1]}=={match[2]}", match[3]
        new = f"{match[1]}=={versions[match[1]]}"
        return new + (room if ";" in room else " " * max(1, len(old) + len(room) - len(new)))

    return re.sub(r"^([a-z0-9.-]+)==([^\s;]+)( *(?:;[^#]*)?)(?=#)", line, requirements, flags=re.MULTILINE)


def blocks(lock):
    """{package: its lines} of a lock's text."""
    return {PIN.match(block)[1]: block.rstrip() + "\n"
            for block in re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE) if block.strip()}


def split(lock):
    """{path: text} of FILES, of a lock's text."""
    texts = {LOCKS / name: HEADER for name in FILES}
    for package, block in blocks(lock).items():
        name = next(name for name, pattern in FILES.items() if re.fullmatch(pattern, package))
        texts[LOCKS / name] += block
    return texts


def renew(args, source, files):
    """Write the locks ``files``, a function from a lock's text to {path: text}, of the requirements in the
    file ``source``, and say what moved."""
    requirements = source.read_text(encoding="utf-8")
    known = "".join(path.read_text(encoding="utf-8") for path in files("") if path.is_file())
    lock = compile_lock(args, relaxed(requirements) if args.upgrade else requirements, known)
    if args.upgrade:
        write_text(source, moved_pins(requirements, lock))
    for path, text in files(lock).items():
        write_text(path, text)
    before, now = dict(PIN.findall(known)), dict(PIN.findall(lock))
    for package in sorted({*before, *now}):
        if before.get(package) != now.get(package):
            print(f"{package}: {before.get(package, 'new')} -> {now.get(package, 'gone')}")
    print(f"{source.name}: {len(now)} packages")


def main():
    args = parse_args()
    uv = shutil.which(args.uv)
    if uv is None:
        raise UserError(f"--uv {args.uv}: there is no such program; `make lock` installs it")
    args.uv = Path(uv).absolute()  # it runs in another folder
    renew(args, ROOT / "requirements.txt", split)
    renew(args, LOCKS / "tools.in", lambda lock: {LOCKS / "tools.txt": HEADER + lock})


if __name__ == "__main__":
    run(main)
