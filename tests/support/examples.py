"""Run the examples of a page, and compare what their commands print with the page.

    python -m tests.support.examples PAGE [--write]

A page contains, in this order of a reader's steps:

- `python` blocks whose first line is a comment such as `# port.py: ...`; they are written to it;
- `diff` blocks that begin with `--- port.py`: removed lines are replaced by the added ones;
- `console` blocks: a line that starts with `$ ` is a command, and the lines after it its output, in
  which `...` is any number of lines. An output that is not shown is not compared.

Other blocks are not run. A command must succeed, unless the next one is `echo $?` or its output
has a verdict that programs differ. With --write the new outputs are kept. Numbers are compared as
in notebooks, because rounding differs between machines.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support import processes
from tests.support.notebooks import text_difference

_BLOCK = re.compile(r"(?<=```)(python|diff|console)\n(.*?)(?=```)", re.DOTALL)
FILE = re.compile(r"# ([\w.]+\.py)\b")


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


def executed(
    text: str, folder: Path, not_run: Sequence[str] = (), shell: Sequence[str] | None = None
) -> str:
    """Return the text of a page with the outputs of its commands, which run in a folder.

    `not_run` has regular expressions; commands that match one keep the outputs that the page shows.
    `shell` has the words that start bash; by default its commands are those of this environment.
    """
    shell = shell or _shell(folder)
    rc = 0
    settings: list[str] = []  # `export` and `unset`, which are true for all later commands

    def block(match: re.Match[str]) -> str:
        nonlocal rc
        kind, body = match.groups()
        if kind == "python" and (name := FILE.match(body)):
            (folder / name[1]).write_text(body, encoding="utf-8")
        elif kind == "diff":
            _edit(folder, body)
        elif kind == "console":
            lines = []
            for command, shown, rc_shown in _steps(body):
                out = shown
                if re.match("export |unset ", command):
                    settings.append(command)
                elif not any(re.search(pattern, command) for pattern in not_run):
                    printed, rc = _run(command, rc, folder, settings, shell)
                    found = printed.splitlines()
                    out = abridged(found, shown)
                    differs = any(line.startswith("verdict: differs") for line in found)
                    if rc and not (differs or rc_shown):
                        out = [f"exit code {rc}:", *found]
                lines += [f"$ {command}", *out]
            body = "".join(f"{line}\n" for line in lines)
        return f"{kind}\n{body}"

    return _BLOCK.sub(block, text)


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the kind and the content of each block of a page that is run."""
    return [(kind, body) for kind, body in _BLOCK.findall(text)]


def commands(console: str) -> list[str]:
    """Return the commands of a console block."""
    return re.findall(r"^\$ (.*)$", console, re.MULTILINE)


def abridged(printed: list[str], shown: list[str]) -> list[str]:
    """Return the lines of an output that correspond to those that a page shows."""
    if not shown:
        return []
    first, *parts = _split(shown)
    if not parts:
        return printed
    kept, rest = printed[: len(first)], printed[len(first) :]
    for part in parts[:-1]:
        start = rest.index(part[0]) if part[0] in rest else 0
        kept += ["...", *rest[start : start + len(part)]]
        rest = rest[start + len(part) :]
    return [*kept, "...", *rest[len(rest) - len(parts[-1]) :]]


def differences(old: str, new: str) -> Iterator[str]:
    """Yield the first difference in each console block of two versions of a page."""
    for (kind, old_body), (_, new_body) in zip(blocks(old), blocks(new), strict=True):
        if kind == "console" and (found := text_difference(old_body, new_body)):
            yield f"{commands(old_body)[0]}: {found}"


def _steps(console: str) -> Iterator[tuple[str, list[str], bool]]:
    """Yield each command, the lines of output below it, and whether its exit code is shown next."""
    steps = [step.splitlines() for step in re.split(r"(?m)^\$ ", console)[1:]]
    for (command, *shown), (following, *_) in zip(steps, [*steps[1:], [""]], strict=True):
        yield command, shown, following == "echo $?"


def _split(shown: list[str]) -> list[list[str]]:
    """Return the parts of an output between the lines `...`."""
    parts: list[list[str]] = [[]]
    for line in shown:
        if line == "...":
            parts.append([])
        else:
            parts[-1].append(line)
    return parts


def _shell(folder: Path) -> Sequence[str]:
    """Return the words that start bash with this environment's commands, whatever PATH says."""
    (shim := folder / ".bin").mkdir(exist_ok=True)
    here = {"obscura": "-m obscura_jax", "pytest": "-m pytest", "python": ""}
    for name, words in here.items():
        text = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n'
        (shim / name).write_text(text)
        (shim / name).chmod(0o755)
    root = str(Path(__file__).parents[2])
    paths = {
        "PATH": os.pathsep.join([str(shim), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
    }
    return ["env", *(f"{name}={text}" for name, text in paths.items()), "bash"]


def _run(
    command: str, rc: int, folder: Path, settings: Sequence[str], shell: Sequence[str]
) -> tuple[str, int]:
    """Return the output of a command of a shell, and its exit code; `rc` is the last one."""
    script = "\n".join([*settings, f"(exit {rc})", command])
    process = processes.start(*shell, "-c", script, cwd=folder)
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
