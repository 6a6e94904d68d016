"""Run the README's commands, without the tests, in a clean clone; compare the outputs with it.

    python -m tests.support.newcomer

The clone has the last commit. The home is empty, and the environment has no variables except those
that pip and uv need to install packages; they also keep their caches of downloads. The README's
sections run in their order, down to "What is proved": each command must succeed and print what the
README shows.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support import examples, processes
from tests.support.pages import GUIDE, PROMISE, ROOT, write_pair

END = "\n## What is proved\n"
# `make test` has a run of its own; this installs what it installs for the commands below it.
INSTEAD = ("$ make test\n", "$ make .venv/.test\n")
_PROGRAM = re.compile(r"```python\n(.*?)```\n", re.DOTALL)
_FOR_INSTALLING = re.compile(r"(PIP|UV|SSL_CERT)_\w+|[a-z]+_proxy|PYTHON", re.IGNORECASE)


def main() -> int:
    """Run the commands, print what differs, and return 1 if anything does, else 0."""
    with TemporaryDirectory() as folder:
        clone, home = Path(folder, "obscura_jax"), Path(folder, "home")
        home.mkdir()
        cloned = processes.run("git", "clone", "-q", ROOT, clone)
        assert cloned.returncode == 0, cloned.stderr
        write_pair(clone, (clone / GUIDE).read_text("utf-8"))
        log, found = followed(clone, home)
    print(log)
    for line in found:
        print(f"differs from the README: {line}")
    return int(bool(found))


def followed(clone: Path, home: Path) -> tuple[str, list[str]]:
    """Run the commands of a clone's README; return what was printed, and what differs."""
    page = with_commands((clone / "README.md").read_text("utf-8"))
    new = examples.executed(page, clone, shell=clean_shell(clone, home))
    log = "\n".join(body for kind, body in examples.blocks(new) if kind == "console")
    return log, list(examples.differences(page, new))


def with_commands(readme: str) -> str:
    """Return the README's first sections, with a command for each Python program in them."""

    def with_command(match: re.Match[str]) -> str:
        printed = "".join(f"{line}\n" for line in PROMISE.findall(match[1]))
        file = f"```python\n# program.py: an example\n{match[1]}```\n"
        return f"{file}```console\n$ python program.py\n{printed}```\n"

    assert readme.count(END) == readme.count(INSTEAD[0]) == 1
    return _PROGRAM.sub(with_command, readme.split(END)[0]).replace(*INSTEAD)


def clean_shell(clone: Path, home: Path) -> Sequence[str]:
    """Return the words that start a shell in which the clone's `.venv` and no other is active."""
    outside = [
        folder
        for folder in os.environ["PATH"].split(os.pathsep)
        if not Path(folder, "..", "pyvenv.cfg").exists()
    ]
    variables = {
        "PIP_CACHE_DIR": Path.home() / ".cache" / "pip",
        "UV_CACHE_DIR": Path.home() / ".cache" / "uv",
        **{name: text for name, text in os.environ.items() if _FOR_INSTALLING.fullmatch(name)},
        "HOME": home,
        "PATH": os.pathsep.join([str(clone / ".venv" / "bin"), *outside]),
    }
    return ["env", "-i", *(f"{name}={text}" for name, text in variables.items()), "bash"]


if __name__ == "__main__":
    sys.exit(main())
