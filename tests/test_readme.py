"""The README's Python runs, and prints what its comments say."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
MODEL, DATA, GENERATION = BLOCKS


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(MODEL, marks=pytest.mark.gpt2_124m, id="model"),
        pytest.param(DATA, id="data"),
        pytest.param(GENERATION, id="generation"),
    ],
)
def test_python_block(block, capsys):
    exec(compile(block, "README.md", "exec"), {})
    promised = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert promised
    assert capsys.readouterr().out.splitlines() == promised
