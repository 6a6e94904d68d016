"""Pair files for tests of `obscura parity pair.py`, and an engine that only traces both sides.

`engine`, `fails` and `pair` become fixtures in the files that use them.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from obscura_jax.cli.main import main
from obscura_jax.parity.findings import Report, Verdict
from obscura_jax.parity.jax_trace import trace_jax
from obscura_jax.parity.program import JaxProgram, TorchProgram
from obscura_jax.parity.torch_trace import trace_torch

GOOD = """
import sys
import jax.numpy as jnp, numpy as np, torch
from obscura_jax.parity.program import jax_program, torch_program
X = np.ones((3, 8), np.float32)

def torch_side():
    return torch.nn.Flatten(), (torch.from_numpy(X),)

def jax_side():
    return jnp.abs, (X,)
"""
try:
    torch.zeros(1, device="cuda")
except (AssertionError, RuntimeError) as error:  # PyTorch was built without CUDA, or finds no GPU
    NO_GPU = f"{type(error).__name__}: {error}"
else:
    NO_GPU = ""
NEEDS_NO_GPU = pytest.mark.skipif(not NO_GPU, reason="PyTorch finds a GPU")
TORCH, JAX = "torch.nn.Flatten(), (torch.from_numpy(X),)", "jnp.abs, (X,)"


class Engine:
    """An engine that traces both sides and returns `report`."""

    def __init__(self):
        self.report, self.given, self.options = Report(Verdict.EQUAL), (), {}

    def compare(self, torch_side, jax_side, **options):
        self.given, self.options = (torch_side, jax_side), options
        self.traces = [
            trace_torch(torch_side) if isinstance(torch_side, TorchProgram) else torch_side,
            trace_jax(jax_side) if isinstance(jax_side, JaxProgram) else jax_side,
        ]
        return self.report

    def record(self, program, path):
        self.given = (program, path)

    def read(self, path):
        return SimpleNamespace(side=Path(path).read_text())


def engine(monkeypatch):
    """Replace the engine, and the functions that print its report, by short ones."""
    made = Engine()
    prints = {
        name: lambda one, name=name: f"{name}: {one.verdict}" for name in ("as_text", "as_list")
    }
    modules = {
        "compare_programs": SimpleNamespace(compare=made.compare, assert_parity=None),
        "recording": SimpleNamespace(record=made.record, read=made.read),
        "report": SimpleNamespace(**prints, as_json=lambda one: f"json: {one.verdict}"),
        "programs_page": SimpleNamespace(as_html=lambda one: f"html: {one.verdict}"),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"obscura_jax.parity.{name}", module)
        monkeypatch.setattr(f"obscura_jax.parity.{name}", module, raising=False)
    return made


def fails(capsys):
    """Run the command, which must exit with code 2 after one line; return the line."""

    def run(*words):
        code, out, err = call(capsys, *words)
        assert (code, out) == (2, ""), err
        assert len(err.splitlines()) == 1, err
        return err.removeprefix("obscura parity: ").rstrip("\n")

    return run


def call(capsys, *words):
    """Run `obscura parity` and return its exit code and output."""
    capsys.readouterr()
    try:
        main(["parity", *map(str, words)])
    except SystemExit as end:
        return end.code, *capsys.readouterr()
    return 0, *capsys.readouterr()


def pair(tmp_path, monkeypatch):
    """Return a function that writes pair.py in the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(text=GOOD):
        (tmp_path / "pair.py").write_text(text)
        return tmp_path / "pair.py"

    return write
