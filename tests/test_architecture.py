"""The rules of docs/architecture.md: who may import whom, no import cycles, and limits of size."""
import ast
from functools import cache

import pytest
from conftest import ROOT

FOLDERS = ("utils", "models", "diffusions", "scripts", "benchmarks")
ROOMS = ("data", "motion", "export", "evaluation", "training", "demo", "viewer", "studio")
FILES = sorted(path for pattern in ("*.py", "tests/*.py", *(f"{folder}/**/*.py" for folder in FOLDERS))
               for path in ROOT.glob(pattern))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES
           if path.parent.name != "tests" and path.name != "__init__.py"}
MOST_PARAMETERS, LONGEST_LINE = 9, 110


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """The project's modules that a file imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names & MODULES.keys()


GRAPH = {name: imports(path) for name, path in MODULES.items()}


def part(name):
    """The part of the project to which a module belongs: "ground", "utils.data", "models", "root" ..."""
    first, *rest = name.split(".")
    if first == "utils":
        return f"utils.{rest[0]}" if len(rest) > 1 else "ground"
    return first if rest else "root"


UTILS = {"ground", *(f"utils.{room}" for room in ROOMS)}
MAY_IMPORT = {"ground": {"ground"}, **{f"utils.{room}": UTILS for room in ROOMS},
              "diffusions": {"diffusions"}, "models": {"models", "diffusions", "ground"}}


def test_every_module_has_its_place():
    assert {part(name) for name in MODULES} == {*MAY_IMPORT, "root", "scripts", "benchmarks"}
    assert "utils.files" in GRAPH["utils.report"] and "utils.demo.dataset" in GRAPH["utils.data.specs"]


@pytest.mark.parametrize("importer", MAY_IMPORT)
def test_who_may_import_whom(importer):
    wrong = [f"{name} imports {other}" for name, others in GRAPH.items() if part(name) == importer
             for other in others if part(other) not in MAY_IMPORT[importer]]
    assert not wrong


def cycle(graph):
    """One cycle of a graph {node: nodes}, or None."""
    done = set()

    def visit(node, above):
        if node in above:
            return [*above[above.index(node) :], node]
        if node in done:
            return None
        found = next(filter(None, (visit(other, [*above, node]) for other in sorted(graph[node]))), None)
        done.add(node)
        return found

    return next(filter(None, (visit(node, []) for node in graph)), None)


def test_no_import_cycles():
    assert cycle({"a": {"b", "d"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
    assert cycle(GRAPH) is None


def test_functions_have_few_parameters():
    wrong = []
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                given = node.args
                names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs,
                                                       *filter(None, (given.vararg, given.kwarg)))]
                count = len(names) - (names[:1] in (["self"], ["cls"]))
                if count > MOST_PARAMETERS:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {count} parameters")
    assert not wrong


def test_lines_are_short():
    templates = [*ROOT.glob("utils/viewer/page.*[!y]"), *ROOT.glob("utils/studio/page.*")]
    assert len(templates) == 6
    assert not [f"{path.relative_to(ROOT)}:{number}" for path in [*FILES, *templates] for number, line in
                enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if len(line) > LONGEST_LINE]


@pytest.mark.parametrize("words", ["sys.path.insert", "noqa: E402"])
def test_commands_are_run_as_modules(words):
    """``python -m scripts.NAME`` finds the project without a change of the search path."""
    assert not [path for path in MODULES.values() if path.parent in (ROOT / "scripts", ROOT / "benchmarks")
                and words in path.read_text(encoding="utf-8")]
