"""The files that name a version agree, and every extra that a message or a page names exists."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import obscura_jax

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
CITATION = (ROOT / "CITATION.cff").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
PAGES = sorted(
    path
    for pattern in ("*.md", "obscura_jax/**/*.md", "notebooks/*", "docs/**/*.md")
    for path in ROOT.glob(pattern)
    if path.is_file()
)
# .[test,tpu], wheel.whl[torch]
IN_BRACKETS = re.compile(r"(?:\.whl|(?<![\w.])\.|obscura(?:[-_]jax)?)\[([a-z][a-z0-9,-]*)\]")
AFTER_THE_WORD = re.compile(r"\bextra `([^`]+)`")


def disagreements(version, changelog, citation):
    """Return what contradicts `version` or each other in the texts of the two files."""
    cited = yaml.safe_load(citation)
    newest, date = re.findall(r"^## (\S+) - (\S+)$", changelog, re.MULTILINE)[0]
    pairs = {
        "CHANGELOG.md, version": (newest, version),
        "CITATION.cff, version": (cited["version"], version),
        "CITATION.cff, date": (cited["date-released"], date),
    }
    return [name for name, (stated, expected) in pairs.items() if stated != expected]


def extras_required(source):
    """Return the extras that the calls of `require` in a file name."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return {
        call.args[1].value
        for call in calls
        if ast.unparse(call.func) in ("require", "extras.require")
    }


def extras_named(text):
    """Return the extras that a page names."""
    names = {name for found in IN_BRACKETS.findall(text) for name in found.split(",")}
    return names | set(AFTER_THE_WORD.findall(text))


def test_the_version_is_the_same_in_every_file():
    assert disagreements(obscura_jax.__version__, CHANGELOG, CITATION) == []


@pytest.mark.parametrize(
    ("wrong", "old", "new"),
    [
        ("CHANGELOG.md, version", "## 0.2.0 ", "## 0.2.1 "),
        ("CITATION.cff, version", "version: 0.2.0", "version: 0.2.0.dev0"),
        ("CITATION.cff, date", 'released: "2026-', 'released: "2025-'),
    ],
)
def test_another_version_or_date_is_noticed(wrong, old, new):
    changed = [text.replace(old, new) for text in (CHANGELOG, CITATION)]
    assert changed != [CHANGELOG, CITATION]
    assert disagreements("0.2.0", *changed) == [wrong]


def test_every_extra_that_a_message_names_exists():
    files = (ROOT / "obscura_jax").rglob("*.py")
    named = set().union(*(extras_required(path.read_text()) for path in files))
    assert {"torch", "parity", "tokenizers", "look", "tpu"} <= named <= set(EXTRAS)


def test_every_extra_that_a_page_names_exists():
    named = {page.name: extras_named(page.read_text()) - set(EXTRAS) for page in PAGES}
    assert len(named) > 8
    assert {page: names for page, names in named.items() if names} == {}


@pytest.mark.parametrize(
    ("find", "text"),
    [
        (extras_required, "require('torch', 'torchh', 'a test')"),
        (extras_required, "def f():\n    x = extras.require('torch', 'torchh', 'a test')"),
        (extras_named, "pip install -e '.[torchh]'"),
        (extras_named, "pip install 'obscura_jax-0.2.0-py3-none-any.whl[test,torchh]'"),
        (extras_named, "(extra `torchh`, and a network)"),
    ],
)
def test_an_extra_that_does_not_exist_is_noticed(find, text):
    assert find(text) - set(EXTRAS) == {"torchh"}
    assert find(text.replace("torchh", "torch")) <= set(EXTRAS)
