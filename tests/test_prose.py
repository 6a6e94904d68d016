"""Docstrings are sentences, and prose avoids the words that CONTRIBUTING.md lists."""

import ast
import io
import re
import tokenize
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("docs", "obscura_jax", "tests", "tools")
# A docstring that starts with one of these is a clause, not a sentence.
OPENINGS = {"What", "How", "Where", "Which", "Who", "Whose", "Whether", "Within", "Those", "Of"}
WORDS = re.compile(
    r"\b(anew|(?<!--)beside|so many|if need be|for ever|stands|lies|goes on|is told)\b",
    re.IGNORECASE,
)


def docstrings(tree):
    """Yield every docstring of a module, class or function, with its line."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text


def strings(tree):
    """Yield every string literal with its line, also docstrings and constants in f-strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def comments(source):
    """Yield every comment with its first line; comments on consecutive lines are joined."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = [(t.start[0], t.string.lstrip("#")) for t in tokens if t.type == tokenize.COMMENT]
    breaks = [i + 1 for i, (a, b) in enumerate(pairwise(found)) if b[0] != a[0] + 1]
    for start, end in pairwise([0, *breaks, len(found)]):
        if start < end:
            yield found[start][0], " ".join(text for _, text in found[start:end])


def faults(source):
    """Return (line, reason) for every violation in a file."""
    tree = ast.parse(source)
    found = []
    for line, text in docstrings(tree):
        first = re.split(r"\W", text, maxsplit=1)[0]
        if first in OPENINGS:
            found.append((line, f"docstring starts with {first}"))
    for line, text in [*strings(tree), *comments(source)]:
        words = WORDS.findall(" ".join(text.split()))
        found += [(line, f"prose contains {word.lower()!r}") for word in words]
    return sorted(found)


def test_the_prose_is_plain():
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 200
    found = [
        f"{path.relative_to(ROOT)}:{line}: {reason}"
        for path in files
        if path != Path(__file__)  # it lists the words
        for line, reason in faults(path.read_text("utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize("first", sorted(OPENINGS))
@pytest.mark.parametrize(
    "code", ['"""{} x."""', 'def f():\n    """{} x."""', 'class C:\n    """{}, x."""']
)
def test_a_clause_is_detected(first, code):
    assert faults(code.format(first)) == [
        (1 + code.count("\n"), f"docstring starts with {first}"),
    ]
    assert faults(code.format(f"{first}ever")) == []
    assert faults(code.format(f"Return {first.lower()}")) == []


@pytest.mark.parametrize("words", ["anew", "so many", "If need be", "lies", "goes on", "is told"])
@pytest.mark.parametrize(
    "code", ['"""Read {}."""', "x = 1  # read {}", "x = f'{{y}} read {}'", "# a\n# read {}, b"]
)
def test_a_word_is_detected(words, code):
    assert faults(code.format(words)) == [(1, f"prose contains {words.lower()!r}")]
    broken = words.replace(" ", "\n# " if code.startswith("# ") else " ")
    assert faults(code.format(broken)) == faults(code.format(words))
    assert faults(code.format("of a new one, as many, forever, if needed, has told")) == []
    assert faults(f"{words.lower().replace(' ', '_')} = 1") == []
