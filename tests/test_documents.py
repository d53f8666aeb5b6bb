"""The documents: short where they should be, links that lead somewhere, commands and names that exist."""
import contextlib
import importlib
import io
import itertools
import re
import sys

import pytest
import yaml
from conftest import ROOT

from models.AE import AE_models
from models.MARDM import MARDM_models

PAGES = sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/**/*.md")])
COMMAND = re.compile(r"(?:\.venv/bin/)?python (?:-m ((?:scripts|benchmarks)\.\w+)|(\w+)\.py)(.*)")
ELSEWHERE = {"--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_endpoint"}  # torchrun's own


def text_of(path):
    return path.read_text(encoding="utf-8")


def anchors(path):
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if link.startswith(("http://", "https://")):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.fixture(scope="module")
def flags_of():
    """A function module -> the flags that its --help names."""
    known = {}

    def flags(module):
        if module not in known:
            known[module] = set(re.findall(r"--\w+|-msec", help_of(module)))
        return known[module]

    return flags


def help_of(module):
    out, before = io.StringIO(), sys.argv
    sys.argv = [module, "--help"]
    try:
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
            importlib.import_module(module).main()
    finally:
        sys.argv = before
    return out.getvalue()


def commands(page):
    """(module, what follows) of every command of a page; lines that end in a backslash are joined."""
    for line in text_of(page).replace("\\\n", " ").splitlines():
        for command in COMMAND.findall(line.split("  #")[0]):
            if "NAME" not in (command[0] or command[1]):
                yield command[0] or command[1], command[2].split("`")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(page, flags_of):
    for module, rest in commands(page):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
        unknown = set(re.findall(r"(?<!\S)--\w+", rest)) - flags_of(module) - ELSEWHERE
        assert not unknown, f"{module} has no {unknown}"


def test_the_readme_is_short_and_has_a_chinese_sister():
    names = "README.md", "README.zh-CN.md", "docs/README.md"
    english, chinese, index = (text_of(ROOT / name) for name in names)
    assert len(english.split()) < 900 and "README.zh-CN.md" in english and "README.md" in chinese
    assert all(f"]({page.name})" in index for page in ROOT.glob("docs/*.md")
               if page.name != "README.md")


def test_recipes_are_short():
    sections = re.split(r"^## ", text_of(ROOT / "CONTRIBUTING.md"), flags=re.MULTILINE)
    recipes = [section for section in sections if section.startswith("Add a")]
    assert len(recipes) == 3 and all(len(recipe.strip().splitlines()) <= 30 for recipe in recipes)


def rows_named(cell, names):
    """The ``names`` that a table's cell stands for: `A_{b,c}` is two, and `_x` after `A_b` is A_x."""
    found, words = set(), re.findall(r"`([^`]+)`", cell)
    for word in words:
        parts = [part.split(",") for part in re.split(r"[{}]", word)]
        for name in map("".join, itertools.product(*parts)):
            heads = [words[0][:end.start()] for end in re.finditer("_", words[0])] if name[0] == "_" else [""]
            found |= {head + name for head in heads} & set(names)
    return found


def test_the_zoo_page_names_every_row():
    page = text_of(ROOT / "docs/zoo.md")
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert set.union(*(rows_named(cell, AE_models) for cell in cells)) == set(AE_models)
    families = {name.removesuffix("-deep").rsplit("-", 1)[0] for name in MARDM_models
                if not name.startswith("VQ_")}
    named = set(re.findall(r"`([A-Z][\w-]+)-\*`", page))
    assert families <= named


def test_the_citation_can_be_read():
    content = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    assert {"cff-version", "title", "authors", "license", "message"} <= set(content)
