"""Run the notebooks from a clean kernel, and compare their outputs with the committed ones.

    python -m tests.support.notebooks [NAME ...] [--write]

A notebook fails if a cell raises or warns, if the words, numbers or picture of an output differ
from the committed ones, if it is larger than 400 KB, or if it defines a class or function that the
package has. With --write the new outputs are kept. Numbers are equal up to one unit in the last
printed place, 1e-4 of their size, or 1e-6, because float32 rounding differs by that much between
machines. For a cell with the tag "varies" (times, devices, versions), only the presence of an
output is compared. --write also renews the link that opens the notebook in Colab.
"""

import argparse
import ast
import base64
import io
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import nbformat
import numpy as np
from matplotlib.image import imread
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from obscura_jax.scale import libtpu

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
ORDER = (
    *("ch01_setup", "ch02_text", "ch03_attention", "ch04_model", "ch04_generation"),
    *("ch05_training", "parity", "port_and_prove", "functional_jax"),
)
LARGEST = 400_000  # bytes per notebook, outputs included
COLAB = "https://colab.research.google.com/github"  # without more, it lists repositories
_METADATA = {
    "kernelspec": {"name": "python3", "display_name": "Python 3"},
    "language_info": {"name": "python"},
}
_COLAB_LINK = re.compile(r"\[Open in Colab\]\(.*?\)")
_NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?")
_PICTURE = "image/png"
_PIXELS = 0.01  # largest mean difference of equal pictures; values are in 0..1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the notebooks, print one line per notebook, and return 1 if any fails, else 0."""
    parser = argparse.ArgumentParser(description="run the notebooks and compare their outputs")
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks to run; default: all")
    parser.add_argument("--write", action="store_true", help="keep the new outputs")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in ORDER]:
        parser.error(f"no notebook is named {unknown[0]!r}; choose from {', '.join(ORDER)}")
    libtpu.silence_if_no_tpu()  # the kernels inherit the environment
    failed = False
    for name in options.names or ORDER:
        found = check(NOTEBOOKS / f"{name}.ipynb", write=options.write)
        well = "written" if options.write else "the same"
        print(f"{name:<16}  {'FAILS' if found else well}", flush=True)
        for line in found:
            print(f"  {line}", flush=True)
        failed = failed or bool(found)
    return int(failed)


def check(path: Path, *, write: bool = False) -> list[str]:
    """Return the faults of the notebook at `path`, one line each; `write` keeps its outputs."""
    committed = nbformat.read(path, as_version=4)
    found = [f"it defines {name}, which the package has" for name in redefined(committed)]
    try:
        executed = execute(committed)
    except CellExecutionError as error:
        return [*found, f"a cell raises {error.ename}: {error.evalue}"]
    except (CellTimeoutError, DeadKernelError) as error:
        return [*found, f"the kernel gave up: {str(error).splitlines()[0]}"]
    for number, cell in enumerate(executed.cells):
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                found.append(f"cell {number} warns: {output.text.strip().splitlines()[-1]}")
    if write:
        link = colab_link(path.stem, repository())
        executed.cells[0].source = _COLAB_LINK.sub(link, executed.cells[0].source)
        nbformat.write(executed, path)
    else:
        found += differences(committed, executed)
    size = len(nbformat.writes(executed))
    return [*found, f"it has {size} bytes; the limit is {LARGEST}"] if size > LARGEST else found


def execute(notebook: Any) -> Any:
    """Return a copy of the notebook, run from the first cell to the last in its own kernel."""
    fresh = nbformat.from_dict(
        {
            "cells": [dict(cell) for cell in notebook.cells],
            "metadata": _METADATA,
            "nbformat": 4,
            "nbformat_minor": 5,
        }
    )
    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    client = NotebookClient(
        fresh, timeout=None, kernel_name="python3", record_timing=False, resources=resources
    )
    with TemporaryDirectory() as folder:
        if sys.platform != "win32":  # sockets in a folder, so that no port is opened
            kernel = client.create_kernel_manager()
            kernel.transport, kernel.ip = "ipc", f"{folder}/kernel"
        client.execute()
    fresh.metadata = nbformat.from_dict(_METADATA)  # without the version of Python
    return fresh


def repository() -> str | None:
    """Return the public address of the project, if pyproject.toml has one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project.get("urls", {}).get("Repository")


def colab_link(name: str, repository: str | None) -> str:
    """Return the link that opens a notebook in Colab, which reads it from its repository on GitHub.

    For a project without an address there, the link leads to Colab's list of repositories.
    """
    parts = urlsplit(repository or "")
    owner_and_name = parts.path.strip("/").removesuffix(".git")
    place = f"/{owner_and_name}/blob/main/notebooks/{name}.ipynb"
    return f"[Open in Colab]({COLAB}{place if parts.netloc == 'github.com' else ''})"


def parsed(source: str) -> ast.Module:
    """Return the syntax tree of a cell; a command of IPython, such as %pip, becomes `pass`."""
    return ast.parse(re.sub(r"(?m)^([ \t]*)[%!].*$", r"\1pass", source))


def redefined(notebook: Any) -> list[str]:
    """Return the classes and functions that a notebook defines although the package has them."""
    theirs: set[str] = set()
    for file in (ROOT / "obscura_jax").rglob("*.py"):
        body = ast.parse(file.read_text("utf-8")).body
        theirs |= {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    sources = (cell.source for cell in notebook.cells if cell.cell_type == "code")
    return sorted({name for source in sources for name in _defined(source)} & theirs)


def _defined(source: str) -> Iterator[str]:
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def differences(committed: Any, executed: Any) -> list[str]:
    """Return the differences between the outputs of two runs, one line each."""
    found = []
    for number, (old, new) in enumerate(zip(committed.cells, executed.cells, strict=True)):
        if old.cell_type != "code":
            continue
        if "varies" in old.metadata.get("tags", []):
            if bool(old.outputs) != bool(new.outputs):
                found.append(f"cell {number}: one of the two runs has no output")
            continue
        for before, after in zip_longest(_shown(old), _shown(new)):
            if before is None or after is None:
                found.append(f"cell {number} has more or fewer outputs")
            elif difference := _difference(before, after):
                found.append(f"cell {number}: {difference}")
    return found


def _shown(cell: Any) -> list[dict[str, str]]:
    """Return the outputs of a cell as kind -> text, with adjacent printed texts joined."""
    shown: list[dict[str, str]] = []
    for output in cell.outputs:
        if output.output_type != "stream":
            shown.append(dict(output.get("data", {})))
        elif shown and shown[-1].keys() == {"printed"}:
            shown[-1]["printed"] += output.text
        else:
            shown.append({"printed": output.text})
    return shown


def _difference(old: dict[str, str], new: dict[str, str]) -> str:
    """Return the difference between two outputs, or "" if they are equal."""
    if old.keys() != new.keys():
        return f"an output of {', '.join(old)} is now one of {', '.join(new)}"
    for kind in sorted(old):
        if kind == _PICTURE:
            before, after = (imread(io.BytesIO(base64.b64decode(x[kind]))) for x in (old, new))
            if before.shape != after.shape or np.abs(before - after).mean() > _PIXELS:
                return "another picture"
        elif difference := text_difference(old[kind], new[kind]):
            return difference
    return ""


def text_difference(old: str, new: str) -> str:
    """Return the first number or word in which two texts differ, or "" if they are equal."""
    numbers = _NUMBER.findall(old), _NUMBER.findall(new)
    words = (" ".join(_NUMBER.sub(" # ", text).split()) for text in (old, new))
    for before, after in zip(*numbers, strict=False):
        if not _same_number(before, after):
            return f"{before} is now {after}"
    before, after = words
    if before == after:
        return ""
    pairs = zip_longest(before.split(), after.split(), fillvalue="(nothing)")
    return next(f"{a!r} is now {b!r}" for a, b in pairs if a != b)


def _same_number(old: str, new: str) -> bool:
    if old == new or not re.search(r"[.eE]", old + new):
        return old == new  # integers are counts and ids
    unit = max(_last_place(old), _last_place(new))
    return abs(float(old) - float(new)) <= max(1.001 * unit, 1e-4 * abs(float(old)), 1e-6)


def _last_place(number: str) -> float:
    digits, _, exponent = number.lower().partition("e")
    return float(10.0 ** (int(exponent or 0) - len(digits.partition(".")[2])))


if __name__ == "__main__":
    sys.exit(main())
