"""The committed notebooks show the course's figures, the map is correct, and the check can fail.

`make notebooks` executes the notebooks; these tests read the committed files.
"""

import ast
import base64
import importlib
import io
import json
import re
from copy import deepcopy
from pathlib import Path

import jax.numpy as jnp
import nbformat
import pytest
from matplotlib.figure import Figure

from obscura_jax.parity.gpt.course import compare_with_course
from tests.support import notebooks as runner

ROOT = Path(__file__).parents[1]
FILES = [runner.NOTEBOOKS / f"{name}.ipynb" for name in runner.ORDER]
COURSE = json.loads((ROOT / "tests" / "golden" / "course.json").read_text())
TEXT = {file.stem: file.read_text("utf-8") for file in FILES}
READ = {file.stem: nbformat.reads(TEXT[file.stem], as_version=4) for file in FILES}


def code(name):
    return [cell for cell in READ[name].cells if cell.cell_type == "code"]


def test_every_notebook_is_run():
    assert sorted(runner.NOTEBOOKS.glob("*.ipynb")) == sorted(FILES)


@pytest.mark.parametrize("name", runner.ORDER)
def test_a_notebook_is_committed_as_one_run_left_it(name):
    assert len(TEXT[name].encode()) < runner.LARGEST
    assert [cell.execution_count for cell in code(name)] == list(range(1, len(code(name)) + 1))
    outputs = [output for cell in code(name) for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert "DIFFERENT" not in TEXT[name]
    places = re.compile(r"/(tmp|home|root|Users|work)/|[A-Z]:\\\\")
    assert not [o for o in outputs if places.search(o.get("text", str(o.get("data", ""))))]
    assert runner.redefined(READ[name]) == []


@pytest.mark.parametrize("name", runner.ORDER)
def test_a_notebook_names_one_functional_idea(name):
    first = READ[name].cells[0].source
    assert first.count("**The functional idea of this notebook: ") == 1


@pytest.mark.parametrize("name", runner.ORDER[1:])
def test_a_notebook_draws(name):
    pictures = [o for cell in code(name) for o in cell.outputs if "image/png" in o.get("data", {})]
    assert pictures


# --- in Colab


@pytest.mark.parametrize("name", runner.ORDER)
def test_a_notebook_starts_with_its_link_and_the_installation(name):
    first, install = READ[name].cells[:2]
    assert first.source.count(runner.colab_link(name, runner.repository())) == 1
    extras = "notebooks,torch" if "import torch" in TEXT[name] else "notebooks"
    assert install.source.endswith(f'%pip install -q "$(ls obscura_jax-*.whl)[{extras}]"')
    assert install.outputs == []  # where the package is installed, nothing is done


def test_the_link_to_colab_is_that_of_the_repository():
    place = f"{runner.COLAB}/a/b/blob/main/notebooks/n.ipynb"
    for address in ("https://github.com/a/b", "https://github.com/a/b.git/"):
        assert runner.colab_link("n", address) == f"[Open in Colab]({place})"
    for address in (None, "https://gitlab.com/a/b"):  # Colab reads from GitHub only
        assert runner.colab_link("n", address) == f"[Open in Colab]({runner.COLAB})"


def test_a_link_follows_the_address_in_pyproject(tmp_path, monkeypatch):
    project = '[project.urls]\nRepository = "https://github.com/a/b"\n'
    (tmp_path / "pyproject.toml").write_text(project)
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    right = runner.colab_link("ch01_setup", runner.repository())
    assert "/a/b/blob/main/" in right
    head = READ["ch01_setup"].cells[0]
    assert right not in head.source  # the link of another address is a wrong one
    alone = nbformat.v4.new_notebook(cells=[head])
    nbformat.write(alone, tmp_path / "ch01_setup.ipynb")
    assert runner.check(tmp_path / "ch01_setup.ipynb", write=True) == []
    (written,) = nbformat.read(tmp_path / "ch01_setup.ipynb", as_version=4).cells
    assert written.source.splitlines()[2] == right
    assert written.source.replace(right, "") == head.source.replace(head.source.splitlines()[2], "")


# --- comparisons with the figures that the course prints


def figures_shown():
    """Return the second argument of every `compare_with_course` in the notebooks, through JSON."""
    shown = []
    for name in runner.ORDER:
        for cell in code(name):
            for node in ast.walk(runner.parsed(cell.source)):
                if (
                    isinstance(node, ast.Call)
                    and getattr(node.func, "id", "") == "compare_with_course"
                ):
                    shown.append(json.loads(json.dumps(ast.literal_eval(node.args[1]))))
    return shown


def figures_of_the_course():
    model, shortcuts, six = (
        COURSE[name] for name in ("GPTModel GPT_CONFIG_124M", "shortcut_experiment", "six_tokens")
    )
    greedy = model["greedy seed 123"]
    return {
        "split": COURSE["split"]["Hello, world. Is this-- a test?"],
        "tiktoken": COURSE["tiktoken_gpt2"]["ids"],
        "scores": six["dot_product_scores_row_2"],
        "softmax": six["softmax_weights_row_2"],
        "context": six["context_row_2"],
        "v1": COURSE["SelfAttention_v1 seed 123 d_in 3 d_out 2"],
        "causal": COURSE["CausalAttention seed 123 d_in 3 d_out 2 dropout 0"],
        "heads": COURSE["MultiHeadAttention seed 123 d_in 3 d_out 2 heads 2 dropout 0"],
        "without": shortcuts["mean_abs_weight_gradient_without_shortcut"],
        "with": shortcuts["mean_abs_weight_gradient_with_shortcut"],
        "dummy": COURSE["DummyGPTModel seed 123 GPT_CONFIG_124M"]["shape"],
        "parameters": model["parameters"],
        "tied": model["parameters_with_weight_tying"],
        "megabytes": model["float32_megabytes"],
        "prompt": greedy["prompt_ids"],
        "ids": greedy["new_ids"],
        "text": greedy["text"],
    }


@pytest.mark.parametrize("figure", figures_of_the_course())
def test_a_figure_of_the_course_is_in_a_notebook(figure):
    assert figures_of_the_course()[figure] in figures_shown()


def test_a_wrong_figure_is_noticed():
    wrong = deepcopy(figures_of_the_course()["heads"])
    wrong[3][1] += 1e-4
    assert wrong not in figures_shown()
    assert len(figures_shown()) == len(figures_of_the_course())  # and no others


def test_compare_with_course():
    row = jnp.array([0.44194, 0.6515])
    assert compare_with_course(row, [0.4419, 0.6515]).equal
    assert repr(compare_with_course(row, [0.4419, 0.6515])).endswith(
        "largest difference 4.0e-05: the same to the last digit printed"
    )
    wrong = compare_with_course(row, [0.4418, 0.6515])
    assert not wrong.equal
    assert repr(wrong).endswith("largest difference 1.4e-04: DIFFERENT, 5.1e-05 is rounding")
    assert compare_with_course("tea", "tea").equal
    assert "DIFFERENT" in repr(compare_with_course("tea", "coffee"))
    assert not compare_with_course([1, 2], [1, 3]).equal
    assert compare_with_course([2e-4], [2.0000001e-4], decimals=None).equal
    assert not compare_with_course([2e-4], [2.00001e-4], decimals=None).equal
    with pytest.raises(ValueError, match=r"ours has shape \(2,\), but course has \(3,\)"):
        compare_with_course(row, [0.1, 0.2, 0.3])


# --- the check


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("loss 5.21", "loss 5.22"),  # a unit in the last place
        ("[0.1 0.25]", "[ 0.1  0.25]"),
        ("3e-08 apart", "1e-07 apart"),  # both are rounding
        ("1000.01", "1000.05"),
    ],
)
def test_differences_from_rounding_are_ignored(old, new):
    assert runner.text_difference(old, new) == ""


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("loss 5.21", "loss 5.23", "5.21 is now 5.23"),
        ("12 programs", "13 programs", "12 is now 13"),
        ("1e-3 apart", "3e-3 apart", "1e-3 is now 3e-3"),
        ("True", "False", "'True' is now 'False'"),
        ("[1 2 3]", "[1 2]", "'#' is now ']'"),
        ("0.5", "nan", "'#' is now 'nan'"),
        ("-0.1234", "0.1234", "-0.1234 is now 0.1234"),
    ],
)
def test_another_output_is_detected(old, new, found):
    assert runner.text_difference(old, new) == found


def notebook(*sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        "def softmax(x):\n    return x",
        "class GPTModel:\n    pass",
        "%matplotlib inline\ngelu = lambda x: x",
        "if True:\n    %pip install x\ngelu = lambda x: x",
        "def f():\n    def layer_norm(x):\n        return x",
    ],
)
def test_a_definition_that_the_package_has_is_detected(source):
    assert len(runner.redefined(notebook("x = 1", source))) == 1
    assert runner.redefined(notebook("def causal(x):\n    return x", "f = lambda x: x")) == []


@pytest.fixture(scope="module")
def executed():
    """Return the result of running a notebook that prints, draws and shows the time."""
    drawn = notebook(
        "%matplotlib inline\nprint('three', 1 / 3)",
        "from matplotlib.figure import Figure\nfigure = Figure(figsize=(2, 2))\n"
        "panel = figure.add_subplot()\npanel.bar([0, 1], [1, 2])\nfigure",
        "import time\ntime.time()",
    )
    drawn.cells[2].metadata["tags"] = ["varies"]
    return runner.execute(drawn)


def test_a_run_is_compared_with_itself_and_with_others(executed):
    assert runner.differences(executed, runner.execute(executed)) == []

    def changed(number, change):
        other = deepcopy(executed)
        change(other.cells[number])
        return runner.differences(other, executed)

    def printed(cell):
        cell.outputs[0].text = cell.outputs[0].text.replace("0.333", "0.334")

    def another_picture(cell):
        figure = Figure(figsize=(2, 2))
        figure.add_subplot().bar([0, 1], [2, 1])
        place = io.BytesIO()
        figure.savefig(place, format="png", bbox_inches="tight")
        data = next(o.data for o in cell.outputs if "image/png" in o.get("data", {}))
        data["image/png"] = base64.b64encode(place.getvalue()).decode()

    def clear(cell):
        cell.outputs = []

    def other_time(cell):
        cell.outputs[0].data["text/plain"] = "12.5"

    assert changed(0, printed) == ["cell 0: 0.3343333333333333 is now 0.3333333333333333"]
    assert changed(1, another_picture) == ["cell 1: another picture"]
    assert changed(0, clear) == ["cell 0 has more or fewer outputs"]
    assert changed(2, other_time) == []
    assert changed(2, clear) == ["cell 2: one of the two runs has no output"]


@pytest.mark.slow
def test_errors_and_warnings_fail(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(runner, "ORDER", ("raises", "dies", "warns"))
    nbformat.write(notebook("1 / 0"), tmp_path / "raises.ipynb")
    nbformat.write(notebook("import os\nos._exit(1)"), tmp_path / "dies.ipynb")
    nbformat.write(notebook("import sys\nprint('oh', file=sys.stderr)"), tmp_path / "warns.ipynb")
    before = (tmp_path / "warns.ipynb").read_bytes()
    assert runner.main([]) == 1
    out = capsys.readouterr().out
    assert "a cell raises ZeroDivisionError: division by zero" in out
    assert "the kernel gave up: Kernel died" in out
    assert "cell 0 warns: oh" in out
    assert (tmp_path / "warns.ipynb").read_bytes() == before


def test_an_unknown_notebook_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        runner.main(["ch09"])
    assert "no notebook is named 'ch09'; choose from ch01_setup, " in capsys.readouterr().err


# --- the map


MAP = (runner.NOTEBOOKS / "README.md").read_text("utf-8")
# The course's headings of chapters 1 to 4, in its order.
HEADINGS = """
Initial Setup and Dependencies; Dependencies Installed;
Working with Text Data; Initial Text Processing; Vocabulary and Tokenizers; SimpleTokenizerV1;
Special Tokens; SimpleTokenizerV2; Data Loading with Tiktoken + PyTorch; Tokenizer Upgrade;
GPTDatasetV1; DataLoader Utility; Embeddings Implementation;
Implementing the Attention Mechanism; Core Self-Attention Logic;
Self-Attention with Trainable Weights; SelfAttention_v1; SelfAttention_v2; Causal Masking;
Regularization with Dropout; Multi-Head Attention; Conceptual MultiHeadAttentionWrapper;
Efficient MultiHeadAttention;
Coding an LLM Architecture; GPT Model Structure (Dummy Implementation); GPT_CONFIG_124M;
DummyGPTModel; Model Instantiation and Forward Pass; Layer Normalization and GELU Activation;
Layer Normalization; GELU Activation Function; FeedForward Network;
Residual Connections (Shortcut Connections); Vanishing Gradients; Impact of Shortcut Connections;
Conceptual Integration; Transformer Block Implementation; TransformerBlock Class;
Complete GPT Model and Text Generation; GPTModel Class; Parameter Counting;
generate_text_simple Function
"""


def rows():
    lines = [line for line in MAP.split("## The map")[1].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def broken(row):
    """Return what a row of the map names but the project lacks."""
    found = []
    for name, anchor in re.findall(r"\]\((\w+)\.ipynb#(.*?)\)(?=;| \||$)", " | ".join(row)):
        cells = (cell.source for cell in READ[name].cells if cell.cell_type == "markdown")
        headings = re.findall(r"(?m)^#+ (.*)$", "\n".join(cells))
        if anchor not in {heading.replace("`", "").replace(" ", "-") for heading in headings}:
            found.append(anchor)
    for path in re.findall(r"`(\w+(?:\.\w+)+)`", row[-2]):
        module, _, function = path.rpartition(".")
        if not hasattr(importlib.import_module(f"obscura_jax.{module}"), function):
            found.append(path)
    for test, file in re.findall(r"\[([\w.]+)\]\(\.\./tests/([\w/.]+)\)", row[-1]):
        source = ROOT / "tests" / file
        if not source.exists() or (
            test.startswith("test_")
            and test != source.name
            and f"def {test}(" not in source.read_text("utf-8")
        ):
            found.append(f"{file}::{test}")
    return found


def test_the_map_is_correct():
    assert [found for row in rows() if (found := broken(row))] == []
    linked = [row for row in rows() if ".ipynb#" in " ".join(row)]
    assert len(linked) > 60
    assert all("../tests/" in row[-1] and "`" in row[-2] for row in linked)


@pytest.mark.parametrize("wrong", ["Slidingwindows", "create_dataloader_v2", "test_the_windows"])
def test_a_wrong_row_is_detected(wrong):
    row = [
        "GPTDatasetV1",
        "[ch02_text: Sliding windows](ch02_text.ipynb#Sliding-windows)",
        "`text.loader.create_dataloader_v1`",
        "[test_num_workers_changes_nothing](../tests/test_loader.py)",
    ]
    assert broken(row) == []
    right = {
        "Slidingwindows": "Sliding-windows",
        "create_dataloader_v2": "create_dataloader_v1",
        "test_the_windows": "test_num_workers_changes_nothing",
    }[wrong]
    assert len(broken([cell.replace(right, wrong) for cell in row])) == 1


def test_every_heading_of_the_course_has_a_row():
    headings = [" ".join(heading.split()) for heading in HEADINGS.split(";")]
    mapped = [row[0] for row in rows()]
    assert [heading for heading in headings if heading not in mapped] == []
    assert len(headings) == 42
