"""The README's Python and the examples of the guide run, and print what the pages say."""

import re
from pathlib import Path

import pytest

from obscura_jax.text import sample_text
from tests.support import examples

ROOT = Path(__file__).parents[1]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


MODEL, DATA, GENERATION, STREAMING, ENGINE, LOOK, TRAINING = blocks("README.md")
(MESH,) = blocks("obscura_jax/scale/README.md")


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [
        pytest.param(MODEL, marks=pytest.mark.gpt2_124m, id="model"),
        pytest.param(DATA, id="data"),
        pytest.param(GENERATION, id="generation"),
        pytest.param(STREAMING, id="streaming"),
        pytest.param(ENGINE, id="engine"),
        pytest.param(LOOK, id="look"),
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


GUIDE = (ROOT / "obscura_jax/parity/README.md").read_text("utf-8")


@pytest.mark.slow
def test_the_guide(tmp_path):
    assert list(examples.differences(GUIDE, examples.executed(GUIDE, tmp_path))) == []


def test_the_readme_shows_the_guides_first_report():
    (report,) = (
        block
        for kind, block in examples.blocks((ROOT / "README.md").read_text("utf-8"))
        if kind == "console" and "obscura parity pair.py\nPyTorch" in block
    )
    assert report in GUIDE
    assert report.replace("1e-06", "1e-07") not in GUIDE


PAGE = """
```python
# three.py: prints
print(1 + 1)
x = 0.333331
print(x)
```
```diff
--- three.py
-print(1 + 1)
+print(1 + 2)
+print("three")
-print(x)
+raise SystemExit(x > 0)
```
```console
$ python three.py
3
three
$ echo $?
1
```
```console
$ echo "0.333332 in 1.23s"
0.333331
```
"""


def test_the_examples_of_a_page_run_in_order(tmp_path):
    assert list(examples.differences(PAGE, examples.executed(PAGE, tmp_path))) == []


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("three\n$", "four\n$", "python three.py: 'four' is now 'three'"),
        ("$?\n1", "$?\n0", "python three.py: 0 is now 1"),
        ("0.333331\n`", "0.3434\n`", 'echo "0.333332 in 1.23s": 0.3434 is now 0.333332'),
        ("1 + 2", "1 + 3", "python three.py: 3 is now 4"),
    ],
)
def test_another_output_is_detected(tmp_path, old, new, found):
    page = PAGE.replace(old, new)
    assert page != PAGE
    assert list(examples.differences(page, examples.executed(page, tmp_path))) == [found]


def test_a_diff_that_does_not_fit_is_detected(tmp_path):
    with pytest.raises(AssertionError, match=r"three\.py does not contain this once:\nprint\(2\)"):
        examples.executed(PAGE.replace("-print(x)", "-print(2)"), tmp_path)
