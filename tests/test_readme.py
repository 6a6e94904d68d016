"""The README's Python runs, and prints what its comments say."""

import re
from pathlib import Path

import pytest

from obscura_jax.text import sample_text

ROOT = Path(__file__).parents[1]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


MODEL, DATA, GENERATION, STREAMING, TRAINING = blocks("README.md")
(MESH,) = blocks("obscura_jax/scale/README.md")


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [
        pytest.param(MODEL, marks=pytest.mark.gpt2_124m, id="model"),
        pytest.param(DATA, id="data"),
        pytest.param(GENERATION, id="generation"),
        pytest.param(STREAMING, id="streaming"),
        pytest.param(TRAINING, id="training"),
        pytest.param(MESH, id="mesh"),
    ],
)
def test_python_block(block, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(sample_text(), encoding="utf-8")  # the training block reads it
    exec(compile(block, "README.md", "exec"), {})
    promised = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert promised
    assert capsys.readouterr().out.splitlines() == promised
