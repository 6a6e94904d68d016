"""Pairs that cannot be compared: one line with the reason and what to do, and exit code 2.

The files next to this one test what a pair file and a recording may contain; see test_pair_file.py
and test_recording_files.py.
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from obscura_jax.parity.compare_programs import compare
from obscura_jax.parity.findings import Verdict
from obscura_jax.parity.program import jax_program, torch_program
from obscura_jax.parity.recording import record
from tests.support import pairs, processes
from tests.support.pairs import NEEDS_NO_GPU, NO_GPU, call

fails = pytest.fixture(pairs.fails)
pair = pytest.fixture(pairs.pair)

START = """
import dataclasses
import jax, jax.numpy as jnp, numpy as np, torch
from obscura_jax.parity.program import jax_program, torch_program
R = np.random.default_rng(0)
X = R.normal(size=(3, 7)).astype(np.float32)
W = R.normal(size=(5, 7)).astype(np.float32)
T = torch.from_numpy(X)
LINEAR = torch.nn.Linear(7, 5, bias=False)
LINEAR.weight.data = torch.from_numpy(W)
ON_META = torch.nn.Linear(7, 5, device="meta")
COUNT = []

@dataclasses.dataclass
class Output:
    logits: object
    count: int = 3
"""
TORCH, JAX = "LINEAR, T", "lambda x: x @ W.T, X"


def text(torch_side=TORCH, jax_side=JAX):
    return (
        f"{START}\ndef torch_side():\n    return {torch_side}\n"
        f"\ndef jax_side():\n    return {jax_side}\n"
    )


SEVERAL_RUNS = "the PyTorch side returns different results in two runs on the same input: "
SAME_NUMBERS = "set dropout to 0, or give both sides the same numbers as an input"
META = "the device meta; build the module on the CPU, and load its weights"


@pytest.mark.parametrize(
    ("torch_side", "jax_side", "reason"),
    [
        (
            TORCH,
            "lambda x: x @ W.T, X[:2]",
            "the output has shape (3, 5) in PyTorch and (2, 5) in JAX; give both the same input: "
            "PyTorch's args[0] has shape (3, 7), and JAX's args[0] (2, 7)",
        ),
        (
            TORCH,
            "lambda x: x @ W.T, X + 1",
            "the two sides have different inputs: PyTorch's args[0] and JAX's args[0], both of "
            "shape (3, 7), hold different values; give both the same",
        ),
        (
            "LINEAR, (), {'input': T}",
            "lambda x: x @ W.T, (), {'x': 2 * X}",
            "the two sides have different inputs: PyTorch's input and JAX's x, both of shape "
            "(3, 7), hold different values; give both the same",
        ),
        (
            "lambda x: 'logits', T",
            JAX,
            "the PyTorch side returns no tensors but str; return a tensor, or pick one with out=",
        ),
        (
            "lambda x: LINEAR(x).detach().numpy(), T",
            JAX,
            "the PyTorch side returns no tensors but ndarray; return a tensor, or pick one with "
            "out=",
        ),
        (
            TORCH,
            "lambda x: None, X",
            "the JAX side returns no arrays but NoneType; return an array, or pick one with out=",
        ),
        (
            "lambda x: {'logits': LINEAR(x), 'x': x}, T",
            JAX,
            "PyTorch returns 2 arrays (logits, x), and JAX 1 array (output); pick the same with "
            "out=",
        ),
        (
            TORCH,
            "lambda x: (x @ W.T).T, X",
            "the output has shape (3, 5) in PyTorch and (5, 3) in JAX; return it from JAX as "
            ".transpose(1, 0)",
        ),
        (
            "lambda x: {'y': LINEAR(x)}, T",
            "lambda x: (x @ W.T).reshape(-1), X",
            "output y has shape (3, 5) in PyTorch and (15,) in JAX; return it from JAX as "
            ".reshape(3, 5)",
        ),
        (
            TORCH,
            "lambda x: (x @ W.T)[1], X",
            "the output has shape (3, 5) in PyTorch and (5,) in JAX; return the same part of the "
            "result, and give both the same inputs",
        ),
        (
            "lambda x: torch.fft.fft(x), T",
            "lambda x: jnp.fft.fft(x).real, X",
            "the output is complex in PyTorch and real in JAX; return complex numbers from both, "
            "or their real parts",
        ),
        (
            "torch_program(lambda x: Output(LINEAR(x)), T, out='loss')",
            JAX,
            "the PyTorch side returns Output without 'loss'; it has logits, count",
        ),
        (
            TORCH,
            "jax_program(lambda x: (x @ W.T,), X, out=1)",
            "the JAX side returns tuple without 1; it has 1 item",
        ),
        (
            "torch.nn.Sequential(LINEAR, torch.nn.Dropout(0.5)), T",
            JAX,
            f"{SEVERAL_RUNS}it draws random numbers; call .eval() on the module, or set dropout to "
            "0",
        ),
        (
            "lambda x: COUNT.append(1) or len(COUNT) * LINEAR(x), T",
            JAX,
            f"{SEVERAL_RUNS}it keeps state from one call to the next, or draws random numbers "
            "without PyTorch",
        ),
        (
            "lambda x: torch.manual_seed(1) and LINEAR(x) + torch.rand(3, 5), T",
            JAX,
            "the PyTorch side draws random numbers at pair.py:20 (rand); call .eval() on the "
            f"module, {SAME_NUMBERS}",
        ),
        (
            TORCH,
            "lambda x: x @ W.T + jax.random.uniform(jax.random.key(1), (3, 5)), X",
            "the JAX side draws random numbers at pair.py:23 (random_bits); make it deterministic, "
            f"{SAME_NUMBERS}",
        ),
        (
            "ON_META, T",
            JAX,
            f"the PyTorch side has no values: weight is on {META}",
        ),
        (
            "lambda x: 2 * x, T.to('meta')",
            JAX,
            "the PyTorch side returns tensors on the device meta, which have no values; give it "
            "inputs on the CPU",
        ),
    ],
)
def test_a_pair_that_cannot_be_compared_is_one_line(fails, pair, torch_side, jax_side, reason):
    pair(text(torch_side, jax_side))
    assert fails("pair.py", "--json", "r.json") == f"pair.py cannot be compared: {reason}"
    written = json.loads(Path("r.json").read_text())
    assert (written["verdict"], written["reason"]) == ("not comparable", reason)


@pytest.mark.parametrize("layer", ["Dropout(0.5, ", "BatchNorm(7, "])
def test_a_module_of_nnx_in_training_mode_is_refused(fails, pair, capsys, layer):
    code = text("torch.nn.Identity(), T", f"nnx.{layer}rngs=nnx.Rngs(0)), X")
    pair(f"from flax import nnx\n{code}")
    assert fails("pair.py") == (
        "pair.py cannot be compared: the JAX side changes its own state when it is called, as "
        "dropout and batch norms in training mode do; call .eval() on the module"
    )
    if layer.startswith("Dropout"):
        evaluated = code.replace("return nnx.", "layer = nnx.").replace(
            "nnx.Rngs(0)), X", "nnx.Rngs(0))\n    layer.eval()\n    return layer, X"
        )
        pair(f"from flax import nnx\n{evaluated}")
        assert call(capsys, "pair.py")[0] == 0


@pytest.mark.parametrize(
    ("torch_side", "jax_side", "line"),
    [
        ("lambda x: 1 / 0, T", JAX, "the PyTorch side fails: ZeroDivisionError: division by zero"),
        (TORCH, "lambda x: {}['no'], X", "the JAX side fails: KeyError: 'no'"),
        pytest.param(
            "lambda x: LINEAR.cuda()(x), T",
            JAX,
            f"the PyTorch side fails: {NO_GPU}",
            marks=NEEDS_NO_GPU,
        ),
    ],
)
def test_a_program_that_raises_is_one_line_and_no_file(fails, pair, torch_side, jax_side, line):
    pair(text(torch_side, jax_side))
    assert fails("pair.py", "--json", "r.json").startswith(f"pair.py: {line}")
    assert not Path("r.json").exists()


def test_a_good_pair_is_the_control(pair, capsys):
    pair(text())
    code, out, err = call(capsys, "pair.py", "--json", "r.json")
    assert (code, err) == (0, "")
    assert out.endswith("verdict: equal\n")
    assert json.loads(Path("r.json").read_text())["verdict"] == "equal"


X = np.linspace(-2, 3, 21, dtype=np.float32).reshape(3, 7)
T = torch.from_numpy(X)


@pytest.mark.parametrize("wrong", ["cut short", "another version", "other inputs", "other side"])
def test_a_recording_that_does_not_fit_is_one_line(fails, pair, wrong):
    scale = 2 if wrong == "other inputs" else 1
    program = torch_program(torch.abs, scale * T)
    record(program, "one.parity")
    pair(text("torch.abs, T", f"jnp.abs, np.{X!r}.astype(np.float32)".replace(", dtype=", ", np.")))
    content = Path("one.parity").read_bytes()
    if wrong == "cut short":
        Path("one.parity").write_bytes(content[:-9])
        line = "one.parity is cut short or damaged; record it again"
    elif wrong == "another version":
        Path("one.parity").write_bytes(content.replace(b"recording/1", b"recording/9", 1))
        line = "one.parity is a recording of format 9, and this version of obscura_jax reads "
    elif wrong == "other inputs":
        line = "pair.py cannot be compared: the recording one.parity was made with other inputs"
    else:
        from obscura_jax.parity.recording import read

        with pytest.raises(ValueError, match="is a recording of a PyTorch program, but is given"):
            compare(program, read("one.parity"))
        return
    assert fails("pair.py", "--against", "one.parity").startswith(line)


PLACES = {
    "the second run of PyTorch": ("lambda x: wait(2) or LINEAR(x), T", JAX),
    "the run of PyTorch in float64": ("lambda x: wait(3) or LINEAR(x), T", JAX),
    "the trace of JAX": (TORCH, "lambda x: wait(1) or x @ W.T, X"),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_ctrl_c_during_a_trace_ends_quietly(pair, place, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    wait = (
        "def wait(count, calls=[]):\n    calls.append(1)\n    if len(calls) == count:\n"
        "        print('ready', flush=True)\n        threading.Event().wait()\n"
    )
    pair(f"import threading\n{wait}{text(*PLACES[place])}")
    process = processes.start(
        *processes.OBSCURA, "parity", "pair.py", "--json", "r.json", stderr=processes.PIPE
    )
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "")
    assert process.returncode == 130
    assert not Path("r.json").exists()


WITHOUT_TORCH = """
import importlib.abc, sys

class NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())
"""
NEEDS = "needs torch: run pip install -e '.[parity]' in the clone of obscura_jax\n"


@pytest.mark.slow
def test_without_torch_one_line_names_the_extra(pair, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    pair(text())
    command = f"{WITHOUT_TORCH}\nfrom obscura_jax.__main__ import run; run()"
    ended = processes.run(sys.executable, "-c", command, "parity", "pair.py")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"obscura parity: obscura parity {NEEDS}"
    command = f"""{WITHOUT_TORCH}
from obscura_jax.parity.compare_programs import compare
from obscura_jax.parity.program import jax_program, torch_program
try:
    compare(torch_program(abs, 1), jax_program(abs, 1))
except ImportError as error:
    print(error)
"""
    ended = processes.run(sys.executable, "-c", command)
    assert (ended.stdout, ended.stderr) == (f"a comparison with a PyTorch program {NEEDS}", "")


def test_without_torch_recordings_are_compared(pair, monkeypatch):
    """The second JAX program is wrong by 1e-6."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    pair("import jax.numpy as jnp, numpy as np\ndef jax_side():\n    return jnp.tanh, np.load('x')")
    with Path("x").open("wb") as file:
        np.save(file, X)
    record(torch_program(torch.tanh, T), "torch.parity")
    record(jax_program(jax.numpy.tanh, X), "jax.parity")
    record(jax_program(lambda x: jax.numpy.tanh(x) * 1.000001, X), "wrong.parity")
    command = f"""{WITHOUT_TORCH}
from obscura_jax.parity.compare_programs import compare
from obscura_jax.parity.recording import read
for name in ("jax", "wrong"):
    print(compare(read("torch.parity"), read(f"{{name}}.parity")).verdict)
from obscura_jax.cli.main import main
main(["parity", "pair.py", "--against", "torch.parity"])
"""
    ended = processes.run(sys.executable, "-c", command)
    lines = ended.stdout.splitlines()
    assert lines[:2] == ["equal", "differs"], ended.stderr
    assert (ended.returncode, lines[-1], ended.stderr) == (0, "verdict: equal", "")


def test_ctrl_c_in_python_is_raised():
    def interrupt(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(torch_program(interrupt, T), jax_program(abs, X))
    assert (
        compare(torch_program(torch.tanh, T), jax_program(jax.numpy.tanh, X)).verdict
        is Verdict.EQUAL
    )
