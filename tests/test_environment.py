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


@pytest.fixture
def clone(tmp_path):
    """A folder with the Makefile, and room for fake interpreters."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").write_text("")
    (tmp_path / "bin").mkdir()
    return tmp_path


def interpreter(folder, name, minor, pip_fails=False):
    """A fake Python 3.<minor>, whose venv has a pip that records each call, and a pytest."""
    file = folder / "bin" / name
    file.write_text(f"""#!/bin/sh
case "$*" in
    *version_info*) test {minor} -ge 10 && test {minor} -le 12 ;;
    *"-m venv"*) mkdir -p .venv/bin && echo {name} > .venv/made_by && cp "$0" .venv/bin/python ;;
    *"-m pip"*) echo install >> pip_calls; exit {int(pip_fails)} ;;
    *"-m pytest"*) echo "pytest runs" ;;
esac
""")
    file.chmod(0o755)


def make(folder, *arguments):
    tools = f"{folder / 'bin'}:/usr/bin:/bin"
    return subprocess.run([shutil.which("make"), *arguments], cwd=folder, env={"PATH": tools},
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
def test_make_installs_once_and_again_when_requirements_change(clone):
    interpreter(clone, "python3", minor=11)
    for _ in range(2):
        done = make(clone, "test")
        assert done.returncode == 0 and "pytest runs" in done.stdout, done.stderr
    assert (clone / "pip_calls").read_text() == "install\n"
    later = (clone / ".venv" / ".installed").stat().st_mtime + 5
    os.utime(clone / "requirements.txt", (later, later))
    assert make(clone, "test").returncode == 0
    assert (clone / "pip_calls").read_text() == "install\ninstall\n"


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
