"""The cost of a line of lower precision: the change of the outputs if only that line rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from obscura_jax.parity import precision
from obscura_jax.parity.compare_programs import compare
from obscura_jax.parity.program import jax_program, torch_program
from obscura_jax.parity.recording import read, record
from obscura_jax.parity.relation import apart
from tests.support import planted

X = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
T = torch.from_numpy(X)
SIDES = ("PyTorch", "JAX")


def torch_plain(x):
    y = torch.tanh(x) + 3 * x
    return y * 2 + 1


def torch_rounds(x):
    y = torch.tanh(x).bfloat16().float() + 3 * x.half().float()
    return y * 2 + 1


def jax_plain(x):
    y = jnp.tanh(x) + 3 * x
    return y * 2 + 1


def jax_rounds(x):
    z = jnp.tanh(x).astype(jnp.bfloat16).astype(jnp.float32)
    y = z + 3 * x.astype(jnp.float16).astype(jnp.float32)
    return y * 2 + 1


def torch_rounds_twice(x):
    for _ in range(2):
        x = x.bfloat16().float()
    return x


def rounded(x, dtype):
    return torch.from_numpy(x).to(dtype).double().numpy()


def expected(part, dtype):
    """Return the effect of rounding one of both parts, computed without the engine."""
    x = X.astype(np.float64)
    parts = {"tanh": np.tanh(x), "x": x}
    before = (parts["tanh"] + 3 * parts["x"]) * 2 + 1
    parts[part] = rounded(parts[part], dtype)
    return f"{apart(before, (parts['tanh'] + 3 * parts['x']) * 2 + 1):.1e}"


def lowered(torch_side, jax_side):
    report = compare(torch_program(torch_side, T), jax_program(jax_side, X), gradients=False)
    assert report.equal  # in float64 no cast rounds
    return {side.name: side.lowered for side in report.sides}


@pytest.mark.parametrize("name", SIDES)
def test_the_cost_of_each_line_is_measured(name):
    """The casts of PyTorch are on one line for each type, those of JAX on two lines."""
    rounds = (torch_rounds, jax_plain) if name == "PyTorch" else (torch_plain, jax_rounds)
    found = lowered(*rounds)
    line = (torch_rounds if name == "PyTorch" else jax_rounds).__code__.co_firstlineno + 1
    later = line if name == "PyTorch" else line + 1
    assert found[name] == (  # the larger effect first
        f"float16 at test_precision.py:{later}, which changes the outputs by "
        f"{expected('x', torch.float16)}",
        f"bfloat16 at test_precision.py:{line}, which changes the outputs by "
        f"{expected('tanh', torch.bfloat16)}",
    )
    assert expected("tanh", torch.bfloat16) != expected("tanh", torch.float16)
    other = next(side for side in SIDES if side != name)
    assert found[other] == ()


def test_casts_to_more_digits_are_not_lines_of_lower_precision():
    def theirs(x):
        ones = torch.ones(7, dtype=torch.float32)
        return (x.half().float().double() * ones).float() * torch.tensor(2.0).float()

    found = lowered(theirs, lambda x: x * 2)["PyTorch"]
    assert len(found) == 1
    assert found[0].startswith("float16 at ")


def test_a_module_of_low_precision_does_not_round_its_own_type():
    module, x = torch.nn.Linear(7, 5).bfloat16(), T.bfloat16()
    weight, bias = (p.detach().float().numpy() for p in module.parameters())

    def theirs(x):
        return module(x).float().bfloat16()

    ours = jax_program(lambda x: x @ weight.T + bias[None], x.float().numpy())
    side = compare(torch_program(theirs, x), ours, gradients=False).sides[0]
    (line,) = side.lowered  # the cast back from float32
    assert line.startswith(f"bfloat16 at test_precision.py:{theirs.__code__.co_firstlineno + 1}")


def test_the_casts_of_one_line_are_counted_and_measured_together():
    (line,) = lowered(torch_rounds_twice, lambda x: x)["PyTorch"]
    once = apart(X.astype(np.float64), rounded(X.astype(np.float64), torch.bfloat16))
    assert f" (2 times), which changes the outputs by {once:.1e}" in line


def test_a_reduced_precision_is_measured():
    found = lowered(lambda x: x, lambda x: jax.lax.reduce_precision(x, 8, 7))["JAX"]
    once = apart(X.astype(np.float64), rounded(X.astype(np.float64), torch.bfloat16))
    assert found[0].startswith("7 bits at test_precision.py:")
    assert found[0].endswith(f"which changes the outputs by {once:.1e}")


def test_large_models_and_recordings_are_not_measured(tmp_path, monkeypatch):
    theirs, ours = torch_program(torch_rounds, T), jax_program(jax_plain, X)
    record(theirs, tmp_path / "torch.parity")
    report = compare(read(tmp_path / "torch.parity"), ours)
    assert not any("which changes" in words for words in report.sides[0].lowered)
    assert len(report.sides[0].lowered) == 2
    monkeypatch.setattr(precision, "_MOST", 1)
    words = lowered(torch_rounds, jax_plain)["PyTorch"]
    assert ["which changes" in one for one in words] == [True, False]
    monkeypatch.setattr(precision, "_LARGEST", -1)
    words = lowered(torch_rounds, jax_plain)["PyTorch"]
    assert ["which changes" in one for one in words] == [False, False]


def test_the_effects_are_in_the_report():
    report = compare(torch_program(torch_rounds, T), jax_program(jax_rounds, X))
    words = " ".join(str(report).split())
    for side in report.sides:
        assert f"{side.name} rounds to lower precision at: {', '.join(side.lowered)}" in words


def test_a_program_in_one_precision_has_no_such_line():
    with jax.numpy_rank_promotion("allow"):
        report = compare(*planted.programs("rotary"), gradients=False)
    assert [side.lowered for side in report.sides] == [(), ()]
