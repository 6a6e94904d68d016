"""The pages of the documentation, and what their commands need to run in a test."""

import re
import shutil
from pathlib import Path

from docs.hooks import measured
from obscura_jax.text import sample_text
from tests.support import examples

ROOT = Path(__file__).parents[2]
PAGES = [path.relative_to(measured.ROOT).as_posix() for path in measured.pages()]
GUIDE = "docs/guides/compare.md"

PROMISE = re.compile(r"^print\(.*\)  # (.*)$", re.MULTILINE)  # in a program: what it prints

# Commands that no test of a page runs (regular expressions), and why.
NOT_RUN = {
    r"^make ": "installs an environment; .ci/run runs it",
    r"^source ": "enters the environment that make has installed",
    r"^pytest -n 2$": "runs all tests",
    r"register-python-argcomplete": "changes a shell; tests/test_completion.py does the same",
    r"pip install ": "needs a network",
    r"^obscura convert gpt2 ": "needs a network",
    r"^srun ": "needs SLURM",
    r"HOST:PORT": "needs several hosts",
    r"^gcloud ": "needs a TPU pod",
    r" --preset gpt2-medium ": "needs a host with GPUs",
    r" --mesh data=2,model=4 \"The\" \"An\"$": "needs a host with 8 devices",
    r"^obscura compile --topology v5e": "takes minutes; tests/test_topology.py compiles",
    r"^\.venv-cuda/": "needs an environment of its own; tests/test_gpu_*.py compile in it",
    r"^python tools/bench_": "takes minutes",
}


def text_of(page: str) -> str:
    """Return the Markdown of a page, which is named relative to the root of the repository."""
    return (ROOT / page).read_text("utf-8")


def python_blocks(page: str) -> list[str]:
    """Return the Python blocks of a page that are programs by themselves, not files."""
    blocks = (body for kind, body in examples.blocks(text_of(page)) if kind == "python")
    return [body for body in blocks if not examples.FILE.match(body)]


def documented_keys(heading: str) -> set[str]:
    """Return the keys in the table of a section of the page on JSON."""
    section = text_of("docs/reference/json.md").split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"(?m)^\| (`.*?) \|", section)
    return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}


def commands(page: str) -> list[str]:
    """Return the commands of all console blocks of a page."""
    blocks = (body for kind, body in examples.blocks(text_of(page)) if kind == "console")
    return [command for body in blocks for command in examples.commands(body)]


def is_run(command: str) -> bool:
    """Tell whether a test runs a command; settings by themselves are not run."""
    return not any(re.search(pattern, command) for pattern in (*NOT_RUN, "^export ", "^unset "))


def prepare(page: str, folder: Path) -> None:
    """Make the files in a folder that the commands of a page need."""
    for name in ("obscura_jax", "tools"):  # as in a clone of the repository
        (folder / name).symlink_to(ROOT / name)
    for make in _NEEDED.get(page, ()):
        make(folder)


def write_pair(folder: Path, guide: str | None = None) -> None:
    """Write the files of the guide: a model, a faulty port of it, and the pair."""
    for kind, body in examples.blocks(guide or text_of(GUIDE)):
        if kind == "python" and (name := examples.FILE.match(body)):
            (folder / name[1]).write_text(body, encoding="utf-8")


def _book(folder: Path) -> None:
    (folder / "book.txt").write_text(sample_text(), encoding="utf-8")


def _model(folder: Path) -> None:
    shutil.copytree(ROOT / "obscura_jax" / "models" / "tiny", folder / "my-model")


def _hf_model(folder: Path) -> None:
    examples.executed("```console\n$ obscura convert tiny hf-model --to hf\n```", folder)


_NEEDED = {
    "README.md": (write_pair,),
    "docs/guides/compare-gpt.md": (_model, _hf_model),
    "docs/guides/devices.md": (_book,),
    "docs/guides/export.md": (_model,),
    "docs/guides/train.md": (),
}
