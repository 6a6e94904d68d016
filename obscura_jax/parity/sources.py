"""Find the line of a user's program that an operation comes from."""

import linecache
import sys
import sysconfig
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from obscura_jax.parity.trace import Source

_LIBRARIES = ("torch", "jax", "jaxlib", "flax", "equinox", "keras", "optax", "numpy", "einops")
_OWN = str(Path(__file__).parent) + "/"
_OWN_PROGRAMS = f"{_OWN}gpt/"  # contains a GPT in PyTorch, whose lines are those of a program


class Frame(NamedTuple):
    """A frame of a call stack."""

    file: str
    line: int
    function: str


def user_source(frames: Iterable[Frame]) -> Source | None:
    """Return the program's innermost line that is not in a library; if all are, the innermost.

    PyTorch's internal files are left out, and so is the code that started the comparison.

    Args:
        frames: the call stack, innermost first.
    """
    innermost, inside = None, False
    for frame in frames:
        if _is_own(frame.file):
            if inside:
                break  # the engine calls the program here; its own caller is another program
            continue
        inside = True
        if frame.file.startswith("<frozen") or "/torch/_" in frame.file:
            continue
        if not frame.file.startswith(library_roots()):
            return Source(frame.file, frame.line, frame.function)
        innermost = innermost or Source(frame.file, frame.line, frame.function)
    return innermost


def user_line(frames: Iterable[Frame], folder: Path) -> Source | None:
    """Return the innermost line in a folder, or else the innermost one outside of libraries.

    Args:
        frames: the call stack, innermost first.
        folder: the folder; packages that are installed inside it are not a part of it.
    """
    theirs = [
        f for f in frames if not _is_own(f.file) and not f.file.startswith(("<", *library_roots()))
    ]
    inside = [f for f in theirs if _is_inside(Path(f.file), folder.resolve())]
    found = next(iter([*inside, *theirs]), None)
    return found and Source(found.file, found.line, found.function)


def _is_own(file: str) -> bool:
    """Return True for a file of the engine."""
    return file.startswith(_OWN) and not file.startswith(_OWN_PROGRAMS)


def _is_inside(file: Path, folder: Path) -> bool:
    inside = file.resolve().is_relative_to(folder)
    return inside and "site-packages" not in file.resolve().relative_to(folder).parts


def stack_of(frame: FrameType | None) -> Iterable[Frame]:
    """Yield the call stack of Python, innermost frame first."""
    while frame is not None:
        code = frame.f_code
        yield Frame(code.co_filename, frame.f_lineno, code.co_qualname)
        frame = frame.f_back


def current_source(depth: int = 1) -> Source | None:
    """Return the user's line that is running now."""
    return user_source(stack_of(sys._getframe(depth)))


@cache
def library_roots() -> tuple[str, ...]:
    """Return the folders of libraries, whose lines stand for the line that calls them."""
    roots = [sysconfig.get_path("stdlib") + "/"]
    for name in _LIBRARIES:
        try:
            spec = find_spec(name)
        except (ImportError, ValueError):
            continue
        if spec is not None and spec.submodule_search_locations:
            roots += [f"{folder}/" for folder in spec.submodule_search_locations]
    # Site packages are inside the folder of the standard library, but models may live there.
    return tuple(root for root in roots if "site-packages" in root) + _standard(roots[0])


def _standard(root: str) -> tuple[str, ...]:
    """Return the modules and packages of the standard library."""
    entries = Path(root).iterdir() if Path(root).is_dir() else []
    return tuple(
        f"{entry}/" if entry.is_dir() else str(entry)
        for entry in entries
        if entry.name not in ("site-packages", "dist-packages")
    )


def line_of(source: Source | None) -> str:
    """Return the text of a line of source, or "" if its file is not there."""
    if source is None:
        return ""
    linecache.checkcache(source.file)  # it may have been edited since its last comparison
    return source.text or linecache.getline(source.file, source.line).strip()
