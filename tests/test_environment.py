"""Requirements: complete, pinned once for pip and conda; and the Makefile's choice of an interpreter."""
import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import scripts.lock
from scripts.lock import FILES, LOCKS, PIN, blocks, moved_pins, relaxed
from utils.errors import run

PACKAGE_OF = {"cv2": "opencv-python-headless", "clip": "openai-clip", "PIL": "pillow",
              "mpl_toolkits": "matplotlib", "yaml": "pyyaml"}  # import name: package name
ROOMS = ("models", "utils", "diffusions", "scripts", "benchmarks", "tests")
LINE = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>[0-9.]+)(?P<only>; python_version >= \"3\.11\")? +# .+")


def pins(here=False):
    """{package: version} of requirements.txt, whose lines are pins with reasons, or comments; ``here``: only
    what applies to this Python."""
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines()
             if not line.startswith("#")]
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    return {match["name"]: match["version"] for match in map(LINE.fullmatch, lines)
            if not (here and match["only"] and sys.version_info < (3, 11))}


def third_party_imports():
    """{module: file} of all imports from outside the project and the standard library."""
    files = [*ROOT.glob("*.py"), *(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))]
    ours = {*ROOMS, *(file.stem for file in files)}  # tests import each other by name
    found = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            else:
                continue
            found |= {module.split(".")[0]: file.name for module in modules}
    return {module: name for module, name in found.items()
            if module not in ours | set(sys.stdlib_module_names)}


def test_requirements_name_everything_that_is_imported():
    pinned = pins()
    missing = {module: name for module, name in third_party_imports().items()
               if PACKAGE_OF.get(module, module.replace("_", "-")) not in pinned}
    assert missing == {}, "imported, but not in requirements.txt"


def test_torchvision_is_left_out():
    """A torchvision that does not fit the torch build stops transformers from importing (see
    requirements.txt)."""
    assert "torchvision" not in pins()


def test_conda_installs_the_same_versions():
    lines = [line.split(" #")[0].strip() for line in (ROOT / "environment.yml").read_text().splitlines()]
    dependencies = lines[lines.index("dependencies:") + 1:]
    python, *rest = dependencies
    assert python in ("- python=3.10", "- python=3.11", "- python=3.12")
    assert rest == ["- pip", "- pip:", "- -r requirements.txt"], "versions belong in requirements.txt"


def test_project_file_states_the_makefiles_range():
    assert 'requires-python = ">=3.10,<3.13"' in (ROOT / "pyproject.toml").read_text()
    assert "(3, 10) <= sys.version_info[:2] <= (3, 12)" in (ROOT / "Makefile").read_text()


def test_installed_versions_are_the_pinned_ones():
    if os.path.realpath(sys.prefix) != os.path.realpath(ROOT / ".venv"):
        pytest.skip("this is not the environment in .venv, which make test runs in")
    installed = {name: importlib.metadata.version(name).split("+")[0] for name in pins(here=True)}
    assert installed == pins(here=True)


def locked(*names):
    """{package: (its line, [its hashes])} of files in locks/."""
    found = {}
    for name in names:
        for package, block in blocks(re.sub("^#.*", "", (LOCKS / name).read_text(), flags=re.M)).items():
            assert package not in found, f"{package} is locked twice"
            found[package] = block.splitlines()[0], re.findall(r"--hash=sha256:([0-9a-f]{64})\b", block)
    return found


def test_locks_hold_what_requirements_ask_for():
    everything = locked(*FILES)
    assert all(hashes for _, hashes in everything.values())
    for package, version in pins().items():
        assert everything[package][0].startswith(f"{package}=={version} "), f"{package}: run make lock"
    assert "python_full_version >= '3.11'" in everything["diveq"][0]
    assert all(hashes for _, hashes in locked("tools.txt").values())
    assert {"uv", "pip-audit"} <= set(locked("tools.txt"))


def test_locks_are_complete():
    """What is installed without looking for dependencies is all that is needed, but for torch's own."""
    there = locked(*FILES)
    for package in locked("build.txt", "packages.txt"):
        try:
            same = importlib.metadata.version(package) == PIN.match(there[package][0])[2]
        except importlib.metadata.PackageNotFoundError:  # of another system or Python
            continue
        for need in map(Requirement, importlib.metadata.requires(package) or ()) if same else ():
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                name = canonicalize_name(need.name)
                assert name in there, f"{package} needs {name}: run make lock"
                version = PIN.match(there[name][0])[2]
                assert need.specifier.contains(version, prereleases=True), (package, name)


def test_torch_is_alone_in_its_file():
    assert set(locked("build.txt")) == {"setuptools"}
    assert {name.split("-")[0] for name in locked("torch.txt")} == {"torch", "triton", "nvidia", "cuda"}
    assert not {"torch", "triton"} & set(locked("packages.txt"))


def test_an_upgrade_moves_all_pins_but_the_held_ones():
    text = ("torch==2.13.0   # models\neinops==0.8.2   # why\n"
            'diveq==0.1.3; python_version >= "3.11" # tests\n')
    assert relaxed(text).splitlines() == ["torch==2.13.0   # models", "einops>=0.8.2   # why",
                                          'diveq>=0.1.3; python_version >= "3.11" # tests']
    lock = "einops==0.10.12 \\\n    --hash=sha256:0\ntorch==2.13.0\ndiveq==0.2 ; python_version >= '3.11'\n"
    assert moved_pins(text, lock).splitlines() == ["torch==2.13.0   # models", "einops==0.10.12 # why",
                                                   'diveq==0.2; python_version >= "3.11" # tests']


def test_making_locks_without_uv(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lock.py", "--uv", "/nowhere/uv"])
    with pytest.raises(SystemExit, match="2"):
        run(scripts.lock.main)
    assert "--uv /nowhere/uv: there is no such program" in capsys.readouterr().err


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def clone(tmp_path):
    """A folder with the Makefile, and room for fake interpreters."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").write_text("torch==2.13.0   # a reason\n")
    (tmp_path / "locks").mkdir()
    for name in ("build", "torch", "packages"):
        (tmp_path / "locks" / f"{name}.txt").write_text("")
    (tmp_path / "bin").mkdir()
    return tmp_path


def interpreter(folder, name, minor, pip_fails=False, config=""):
    """A fake Python 3.<minor>, whose venv has a pip that records what it installs and is configured with
    ``config``, and a pytest."""
    file = folder / "bin" / name
    file.write_text(f"""#!/bin/sh
case "$*" in
    *version_info*) test {minor} -ge 10 && test {minor} -le 12 ;;
    *"-m venv"*) mkdir -p .venv/bin && echo {name} > .venv/made_by && cp "$0" .venv/bin/python ;;
    *"-m pip"*" config list") echo "{config}" ;;
    *"-m pip"*" check") ;;
    *"-m pip"*) echo "$*" | sed 's/.* install //' >> pip_calls; exit {int(pip_fails)} ;;
    *"-m pytest"*) echo "pytest runs" ;;
esac
""")
    file.chmod(0o755)


def make(folder, *arguments):
    tools = f"{folder / 'bin'}:/usr/bin:/bin"
    return subprocess.run([shutil.which("make"), *arguments], cwd=folder, env={"PATH": tools},
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


@needs_make
def test_make_installs_once_and_again_when_requirements_change(clone):
    interpreter(clone, "python3", minor=11)
    for _ in range(2):
        done = make(clone, "test")
        assert done.returncode == 0 and "pytest runs" in done.stdout, done.stderr
    once = (clone / "pip_calls").read_text()
    assert len(once.splitlines()) == 3
    for name in ("requirements.txt", "locks/packages.txt"):
        later = (clone / ".venv" / ".installed").stat().st_mtime + 5
        os.utime(clone / name, (later, later))
        (clone / "pip_calls").unlink()
        assert make(clone, "test").returncode == 0
        assert (clone / "pip_calls").read_text() == once
        os.utime(clone / name, (0, 0))


@needs_make
@pytest.mark.parametrize("flags, config, torch", [
    ([], "", "--require-hashes --no-deps -r locks/torch.txt"),
    ([], "global.timeout='60'", "--require-hashes --no-deps -r locks/torch.txt"),
    ([], "global.find-links='/opt/wheels'", "torch==2.13.0"),
    ([], "global.index-url='https://mirror/simple'", "torch==2.13.0"),
    (["TORCH=locked"], "global.find-links='/opt/wheels'", "--require-hashes --no-deps -r locks/torch.txt"),
    (["TORCH=https://there/cpu"], "", "--index-url https://there/cpu torch==2.13.0"),
])
def test_all_but_another_torch_is_checked_by_hash(clone, flags, config, torch):
    interpreter(clone, "python3", minor=11, config=config)
    assert make(clone, "install", *flags).returncode == 0
    assert (clone / "pip_calls").read_text().splitlines() == [
        "--require-hashes --no-deps -r locks/build.txt", torch,
        "--require-hashes --no-deps --no-build-isolation -r locks/packages.txt"]


@needs_make
def test_make_takes_another_interpreter_if_python3_is_unsuitable(clone):
    interpreter(clone, "python3", minor=13)
    interpreter(clone, "python3.11", minor=11)
    assert make(clone, "test").returncode == 0
    assert (clone / ".venv" / "made_by").read_text() == "python3.11\n"


@needs_make
def test_make_without_a_suitable_python_fails_in_one_line(clone):
    interpreter(clone, "python3.9", minor=9)
    done = make(clone, "test", "PYTHON=python3.9")
    said = [line for line in done.stderr.splitlines() if not line.startswith("make: ")]
    assert done.returncode == 2 and len(said) == 1
    assert said[0].startswith("error: no Python 3.10 to 3.12 with venv among: python3.9")


@needs_make
def test_failed_installation_leaves_no_stamp(clone):
    interpreter(clone, "python3", minor=12, pip_fails=True)
    assert make(clone, "test").returncode == 2
    assert not (clone / ".venv" / ".installed").exists()


@pytest.mark.parametrize("fails, remains", [("False", []), ("True", ["of_the_module0", "test_of_a_test0"])])
def test_tests_leave_no_files_behind_unless_they_fail(fails, remains, tmp_path):
    """pytest's default keeps the files of three runs, which had filled a disk."""
    lines = ["import pytest", "@pytest.fixture(scope='module')", "def made(tmp_path_factory):",
             "    return tmp_path_factory.mktemp('of_the_module')",
             "def test_of_a_test(made, tmp_path):", f"    assert made.is_dir() and not {fails}"]
    (tmp_path / "test_x.py").write_text("\n".join(lines))
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "conftest", "-p",
               "no:cacheprovider", f"--basetemp={tmp_path / 'files'}", str(tmp_path / "test_x.py")]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
                          capture_output=True, text=True)
    assert done.returncode == (fails == "True"), done.stdout + done.stderr
    assert sorted(path.name for path in (tmp_path / "files").iterdir() if not path.is_symlink()) == remains
