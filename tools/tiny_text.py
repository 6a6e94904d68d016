"""The training text of the model `tiny`: the documentation that comes with Python.

    python tools/tiny_text.py DIR

Writes DIR/train.txt and DIR/held_out.txt: the help topics of `pydoc_data`, and the docstrings of
the built-in functions and types and of the standard library, read from its source files without
running any module. A document is a topic or a module. A prose paragraph is one line, without the
quotes around names. Every paragraph occurs once. About one in 32, chosen by its hash, is held out:
it occurs nowhere in the training text, not even inside another paragraph. The same version of
Python always produces the same text.
"""

import argparse
import ast
import builtins
import hashlib
import inspect
import re
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import BuiltinFunctionType

_PARAGRAPHS, _DOCUMENTS = "\n\n", "\n\n\n"  # their separators
_PLAIN = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")
_HELD_OUT = 32  # one paragraph in this many

# Folders that have tests, belong to other packages, or are of no use to a reader.
_SKIPPED = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "pydoc_data"} | {
    *("ensurepip", "idlelib", "lib2to3", "turtledemo", "_pyrepl"),
}


def documents() -> list[list[str]]:
    """Return the paragraphs of each document, topics first, without repeated paragraphs."""
    seen: set[str] = set()
    found = []
    library = Path(sysconfig.get_path("stdlib"))
    for text in [*_topics(), "\n\n".join(_builtins()), *_modules(library)]:
        paragraphs = []
        for paragraph in _paragraphs(text):
            if (key := _key(paragraph)) not in seen:
                seen.add(key)
                paragraphs.append(paragraph)
        if paragraphs:
            found.append(paragraphs)
    return found


def split(documents: Iterable[list[str]]) -> tuple[str, str]:
    """Return the training text and the held-out text; each paragraph is in one of the two.

    A paragraph that also occurs inside a training paragraph is not held out.
    """
    documents = list(documents)
    keys = {_key(paragraph) for paragraphs in documents for paragraph in paragraphs}
    chosen = {key for key in keys if _is_chosen(key)}
    others = "\n".join(keys - chosen)
    chosen = {key for key in chosen if key not in others}

    def part(held_out: bool) -> str:
        """Join the documents, without the paragraphs of the other part."""
        kept = ([p for p in each if (_key(p) in chosen) == held_out] for each in documents)
        return _DOCUMENTS.join(_PARAGRAPHS.join(each) for each in kept if each) + "\n"

    return part(held_out=False), part(held_out=True)


def _key(paragraph: str) -> str:
    """Return the words of a paragraph; paragraphs that differ only in white space are the same."""
    return " ".join(paragraph.split())


def _is_chosen(key: str) -> bool:
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:4], "big") % _HELD_OUT == 0


def _paragraphs(text: str) -> Iterator[str]:
    lines = (line.rstrip() for line in text.expandtabs().translate(_PLAIN).splitlines())
    for paragraph in re.split(r"\n{2,}", "\n".join(lines)):
        if stripped := _unwrapped(textwrap.dedent(paragraph.strip("\n"))):
            yield stripped


def _unwrapped(paragraph: str) -> str:
    """Return prose as one line without the quotes around names; code and tables are kept."""
    lines = [
        line for line in paragraph.split("\n") if not re.fullmatch(r"\s*([=*~^-])\1{2,}", line)
    ]
    indented = any(line.startswith(" ") for line in lines)
    listed = bool(lines) and re.match(r"[*-] |\d+\. ", lines[0])
    columns = any(re.search(r"[^\s.!?:)] {2,}\S| {3,}\S", line.strip()) for line in lines)
    code = any(re.match(r"\s*(>>>|\.\.\.)", line) or "::=" in line for line in lines)
    if columns or code or (indented and not listed):
        return re.sub(r"(?<=\S) {3,}", "  ", "\n".join(lines))
    return re.sub(r'["`*]+([\w.()]+)["`*]+', r"\1", " ".join(" ".join(lines).split()))


def _topics() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _builtins() -> Iterator[str]:
    """Yield the docstrings of built-in functions, types and their methods, sorted by name."""
    for _, value in sorted(vars(builtins).items()):
        if not isinstance(value, type | BuiltinFunctionType):
            continue
        own = sorted(vars(value).items()) if isinstance(value, type) else []
        for each in [value, *(part for name, part in own if not name.startswith("_"))]:
            if isinstance(docstring := each.__doc__, str):
                yield inspect.cleandoc(docstring)


def _modules(library: Path) -> Iterator[str]:
    """Yield one text per source file of the library: its docstrings."""
    for path in sorted(library.rglob("*.py"), key=lambda path: path.relative_to(library).parts):
        if _SKIPPED.isdisjoint(path.relative_to(library).parts):
            yield "\n\n".join(_docstrings(path))


def _docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and its functions, in source order."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, kinds)]
    for node in sorted(nodes, key=lambda node: getattr(node, "lineno", 0)):
        if docstring := ast.get_docstring(node, clean=False):
            yield inspect.cleandoc(docstring)


def main() -> None:
    """Write the two files and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="output folder; created if needed")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(("train.txt", "held_out.txt"), split(documents()), strict=True):
        data = text.encode()
        (folder / name).write_bytes(data)
        print(f"{folder / name}: {len(data)} bytes")


if __name__ == "__main__":
    main()
