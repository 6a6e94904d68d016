"""Run the examples of a page, and compare what their commands print with the page.

    python -m tests.support.examples PAGE [--write]

A page contains, in this order of a reader's steps:

- `python` blocks whose first line is a comment such as `# port.py: ...`; they are written to it;
- `diff` blocks that begin with `--- port.py`: removed lines are replaced by the added ones;
- `console` blocks: a line that starts with `$ ` is a command, and the lines after it its output.

Other blocks are not run. With --write the new outputs are kept. Numbers are compared as in
notebooks, because rounding differs between machines.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support import processes
from tests.support.notebooks import text_difference

_BLOCK = re.compile(r"(?<=```)(python|diff|console)\n(.*?)(?=```)", re.DOTALL)
_FILE = re.compile(r"# ([\w.]+\.py)\b")


def main() -> int:
    """Run the examples of a page, print each difference, and return 1 if there is any, else 0."""
    parser = argparse.ArgumentParser(description="run the examples of a page")
    parser.add_argument("page", type=Path, metavar="PAGE", help="Markdown file")
    parser.add_argument("--write", action="store_true", help="keep the new outputs")
    options = parser.parse_args()
    text = options.page.read_text("utf-8")
    with TemporaryDirectory() as folder:
        new = executed(text, Path(folder))
    if options.write:
        options.page.write_text(new, encoding="utf-8")
        return 0
    found = list(differences(text, new))
    for line in found:
        print(line)
    return int(bool(found))


def executed(text: str, folder: Path) -> str:
    """Return the text of a page with the outputs of its commands, which run in a folder."""
    rc = 0

    def block(match: re.Match[str]) -> str:
        nonlocal rc
        kind, body = match.groups()
        if kind == "python" and (name := _FILE.match(body)):
            (folder / name[1]).write_text(body, encoding="utf-8")
        elif kind == "diff":
            _edit(folder, body)
        elif kind == "console":
            lines = []
            for command in commands(body):
                out, rc = _run(command, rc, folder)
                lines += [f"$ {command}", *out.splitlines()]
            body = "".join(f"{line}\n" for line in lines)
        return f"{kind}\n{body}"

    return _BLOCK.sub(block, text)


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the kind and the content of each block of a page that is run."""
    return [(kind, body) for kind, body in _BLOCK.findall(text)]


def commands(console: str) -> list[str]:
    """Return the commands of a console block."""
    return re.findall(r"^\$ (.*)$", console, re.MULTILINE)


def differences(old: str, new: str) -> Iterator[str]:
    """Yield the first difference in each console block of two versions of a page."""
    for (kind, old_body), (_, new_body) in zip(blocks(old), blocks(new), strict=True):
        if kind == "console" and (found := text_difference(old_body, new_body)):
            yield f"{commands(old_body)[0]}: {found}"


def _run(command: str, rc: int, folder: Path) -> tuple[str, int]:
    """Return the output of a command of a shell, and its exit code; `rc` is the last one."""
    (shim := folder / ".bin").mkdir(exist_ok=True)
    for name, module in (("obscura", "obscura_jax"), ("pytest", "pytest")):
        words = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n'
        (shim / name).write_text(words)
        (shim / name).chmod(0o755)
    root = str(Path(__file__).parents[2])
    paths = {
        "PATH": os.pathsep.join([str(shim), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
    }
    process = processes.start("bash", "-c", f"(exit {rc}); {command}", cwd=folder, env=paths)
    out = process.communicate()[0]
    return re.sub(r" in \d+\.\d+s\b", "", out), process.returncode  # without pytest's times


def _edit(folder: Path, diff: str) -> None:
    """Replace the removed lines of a diff by the added ones; each must be in the file once."""
    first, *lines = diff.splitlines()
    path = folder / first.removeprefix("--- ")
    text = path.read_text("utf-8")
    old: list[str] = []
    new: list[str] = []
    for line in [*lines, "-"]:
        if line.startswith("-") and new:
            before, after = ("".join(f"{x}\n" for x in part) for part in (old, new))
            assert text.count(before) == 1, f"{path.name} does not contain this once:\n{before}"
            text, old, new = text.replace(before, after), [], []
        (old if line.startswith("-") else new).append(line[1:])
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
