"""A pair file of a user: each mistake in it is one line, and good ones are programs."""

import os
import sys

import jax
import numpy as np
import pytest
import torch

from obscura_jax.parity.guest import Guest, GuestError
from obscura_jax.parity.jax_trace import trace_jax
from obscura_jax.parity.pair_file import load_pair
from obscura_jax.parity.program import JaxProgram, TorchProgram
from obscura_jax.parity.side_errors import failure_of, running
from obscura_jax.parity.torch_trace import trace_torch
from obscura_jax.parity.user_file import import_file
from tests.support import pairs
from tests.support.pairs import GOOD, JAX, NEEDS_NO_GPU, NO_GPU, TORCH, call

engine = pytest.fixture(pairs.engine)
fails = pytest.fixture(pairs.fails)
pair = pytest.fixture(pairs.pair)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "def torch_side(:\n",
            "pair.py does not run: SyntaxError: invalid syntax (pair.py, line 1)",
        ),
        ("\0", "pair.py does not run: SyntaxError: "),
        (
            "import no_such_package",
            "pair.py does not run: ModuleNotFoundError: No module named 'no_such_package' "
            "(pair.py:1)",
        ),
        ("x = 1\nx / 0", "pair.py does not run: ZeroDivisionError: division by zero (pair.py:2)"),
        (
            "import sys\nsys.exit(0)",
            "pair.py exits on import; put the code that it runs under `if __name__ == "
            "'__main__':`: SystemExit: 0 (pair.py:2)",
        ),
        (
            "",
            "pair.py has no function torch_side(); add it (`obscura parity --new FILE.py` writes "
            "an example)",
        ),
        (
            "def torch_side(): raise SystemExit",
            "pair.py has no function jax_side(); add it (`obscura parity --new FILE.py` writes an "
            "example)",
        ),
        (
            GOOD + "\njax_side = 3",
            "pair.py: jax_side is not a function but int; write `def jax_side():`",
        ),
    ],
)
def test_a_file_that_does_not_load_is_one_line(fails, pair, engine, text, line):
    pair(text)
    assert fails("pair.py").startswith(line)
    assert engine.given == ()


RETURN = "; return a module or a function, and a tuple of its inputs, such as `return module, (x,)`"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            f"return {TORCH}",
            "raise RuntimeError('why\\nnot')",
            "torch_side() fails: RuntimeError: why not (pair.py:8)",
        ),
        (f"return {JAX}", "raise SystemExit", "jax_side() fails: SystemExit (pair.py:11)"),
        (f"return {JAX}", "raise KeyError", "jax_side() fails: KeyError (pair.py:11)"),
        (
            "torch_side()",
            "torch_side(x)",
            "torch_side() fails: TypeError: torch_side() missing 1 required positional "
            "argument: 'x'",
        ),
        pytest.param(
            f"return {TORCH}",
            "torch.zeros(3, device='cuda')",
            f"torch_side() fails: {NO_GPU} (pair.py:8); build the module on the CPU",
            marks=NEEDS_NO_GPU,
        ),
        (f"return {TORCH}", "pass", f"torch_side() returns NoneType{RETURN}"),
        (TORCH, "torch.nn.Flatten()", f"torch_side() returns Flatten{RETURN}"),
        (TORCH, "torch.nn.Flatten(), 5", f"torch_side() returns (Flatten, int){RETURN}"),
        (TORCH, "1, (X,)", f"torch_side() returns (int, tuple){RETURN}"),
        (JAX, "jnp.abs, X, X", f"jax_side() returns (PjitFunction, ndarray, ndarray){RETURN}"),
        (JAX, "(jnp.abs,)", f"jax_side() returns (PjitFunction){RETURN}"),
        (JAX, "(i for i in ())", f"jax_side() returns generator{RETURN}"),
        (
            TORCH,
            "torch.nn.Flatten(), {'input': X}",
            "torch_side() returns a callable and dict; return `callable, (), inputs` to give the "
            "inputs by name, or `callable, (inputs,)`",
        ),
        (
            TORCH,
            f"jax_program({JAX.replace('(X,)', 'X')})",
            "torch_side() returns a JAX program; return a torch_program(...)",
        ),
        (
            JAX,
            "torch_program(abs, X)",
            "jax_side() returns a PyTorch program; return a jax_program(...)",
        ),
        (
            JAX,
            "jax_program(X, X)",
            "jax_side() fails: TypeError: jax_program takes a module or a function first, not "
            "ndarray (pair.py:11)",
        ),
        (
            JAX,
            "jnp.abs, ({'x': torch.from_numpy(X)},)",
            "jax_side() returns a PyTorch tensor as an input; convert it with .numpy()",
        ),
    ],
)
def test_a_side_that_gives_no_program_is_one_line(fails, pair, engine, old, new, line):
    assert GOOD.count(old) == 1
    pair(GOOD.replace(old, new))
    assert fails("pair.py").startswith(f"pair.py: {line}")
    assert engine.given == ()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "torch.nn.Flatten(), ",
            "torch.nn.Linear(7, 2), ",
            "the PyTorch side fails: RuntimeError: mat1 and mat2 shapes cannot be multiplied "
            "(3x8 and 7x2)",
        ),
        (
            "torch.nn.Flatten(), ",
            "lambda x: x.reshape(5, 5), ",
            "the PyTorch side fails: RuntimeError: shape '[5, 5]' is invalid for input of size 24 "
            "(pair.py:8)",
        ),
        (
            "torch.nn.Flatten(), ",
            "lambda x: {torch.float32: x}[(x + 1).dtype], ",
            "the PyTorch side fails in float64: KeyError: torch.float64 (pair.py:8)",
        ),
        (
            TORCH,
            "torch_program(torch.abs, torch.from_numpy(X), out=lambda x: x.no)",
            "the PyTorch side fails: AttributeError: 'Tensor' object has no attribute 'no' "
            "(pair.py:8)",
        ),
        pytest.param(
            "torch.nn.Flatten(), ",
            "lambda x: x.to('cuda'), ",
            f"the PyTorch side fails: {NO_GPU} (pair.py:8); build the module on the CPU",
            marks=NEEDS_NO_GPU,
        ),
        (
            "jnp.abs, ",
            "lambda x: x @ np.ones((7, 2)), ",
            "the JAX side fails: TypeError: dot_general requires contracting dimensions to have "
            "the same shape, got (8,) and (7,). (pair.py:11)",
        ),
        ("jnp.abs, ", "lambda x: sys.exit(3), ", "the JAX side fails: SystemExit: 3 (pair.py:11)"),
    ],
)
def test_a_program_that_fails_is_one_line(fails, pair, engine, old, new, line):
    pair(GOOD.replace(old, new))
    assert fails("pair.py").startswith(f"pair.py: {line}")


def test_the_line_is_the_innermost_one_of_the_users_files(fails, pair, engine, monkeypatch):
    file = pair(GOOD.replace("torch.nn.Flatten()", "neighbor_of_pair.Net()") + "\nimport os\n")
    file.write_text("import neighbor_of_pair\n" + file.read_text())
    (file.parent / "neighbor_of_pair.py").write_text(
        "import torch\nclass Net(torch.nn.Linear):\n"
        "    def __init__(self):\n        super().__init__(2, 2)\n"
        "    def forward(self, x):\n\n        return super().forward(x)\n"
    )
    line = fails("pair.py")
    assert line.startswith("pair.py: the PyTorch side fails: RuntimeError: mat1 and mat2")
    assert line.endswith(" (neighbor_of_pair.py:7)")
    monkeypatch.delitem(sys.modules, "neighbor_of_pair")
    (file.parent / "neighbor_of_pair.py").write_text("\n\nclass Net(:\n")
    line = "pair.py does not run: SyntaxError: invalid syntax (neighbor_of_pair.py, line 3)"
    assert fails("pair.py") == line


def test_a_fault_of_the_engine_is_not_blamed_on_the_program(pair, engine, capsys, monkeypatch):
    def compare(*_, **__):
        raise KeyError(3)

    monkeypatch.setattr(sys.modules["obscura_jax.parity.compare_programs"], "compare", compare)
    pair()
    with pytest.raises(KeyError):
        call(capsys, "pair.py")


def test_a_pair_can_be_loaded_in_python(pair):
    loaded = load_pair(pair())
    assert isinstance(loaded.torch().call, torch.nn.Flatten)
    assert loaded.jax().args[0].shape == (3, 8)
    with pytest.raises(
        GuestError, match=r"pair.py: jax_side\(\) fails: ValueError: no \(pair.py:11"
    ):
        load_pair(pair(GOOD.replace(f"return {JAX}", "raise ValueError('no')"))).jax()


def test_a_note_names_the_side_once_and_keeps_the_exception():
    error = ValueError("why")
    error.add_note("the JAX side fails")  # a user's note
    assert failure_of(error) is None
    inner = running("PyTorch", "in float64")
    with pytest.raises(ValueError, match="why") as caught, running("JAX"), inner:
        raise error
    assert caught.value is error
    assert failure_of(error) == "the PyTorch side fails in float64"
    assert len(error.__notes__) == 2


def test_the_caller_of_a_comparison_is_not_a_line_of_the_program():
    """A module that consists of PyTorch's own has no line of the user."""
    module = torch.nn.Sequential(torch.nn.Linear(8, 5), torch.nn.GELU()).eval()
    nodes = trace_torch(TorchProgram(module, (torch.ones(3, 8),))).nodes
    files = {node.source.file for node in nodes if node.source is not None}
    assert files
    assert all("torch/nn/modules" in file for file in files), files
    nodes = trace_jax(JaxProgram(jax.nn.gelu, (np.ones(3, np.float32),))).nodes
    assert not any(node.source and node.source.file == __file__ for node in nodes)
    nodes = trace_torch(TorchProgram(lambda x: module(x), (torch.ones(3, 8),))).nodes
    assert {node.source.file for node in nodes if node.source is not None} == {__file__}


def test_an_edit_within_the_same_second_is_read(tmp_path):
    path = tmp_path / "pair.py"
    values = []
    for text in ("x = 2\n", "x = 3\n"):
        path.write_text(text)
        os.utime(path, (1, 1))  # the same time and size, by which Python knows its bytecode
        values.append(import_file(path, Guest("pair.py")).x)
    assert values == [2, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["pair.py"]
