"""NaN and infinite outputs: the side that has them, and the operation that makes the first."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from obscura_jax.parity.compare_programs import compare
from obscura_jax.parity.findings import Verdict
from obscura_jax.parity.jax_trace import trace_jax
from obscura_jax.parity.not_finite import first_of, not_finite
from obscura_jax.parity.program import jax_program, torch_program
from obscura_jax.parity.torch_trace import trace_torch

X = np.linspace(-2, 3, 21, dtype=np.float32).reshape(3, 7) + np.float32(0.1)
T = torch.from_numpy(X)


def side_of(name, function):
    return torch_program(function, T) if name == "PyTorch" else jax_program(function, X)


def both(own, function, other):
    """Return two programs, of which that of the side `own` is another function."""
    names = ("PyTorch", "JAX")
    return [side_of(name, function if name == own else other) for name in names]


def roots(x):
    kind = torch if isinstance(x, torch.Tensor) else jnp
    y = x * 2
    return kind.sqrt(y) + 1


def positive_roots(x):
    kind = torch if isinstance(x, torch.Tensor) else jnp
    y = x * 2
    return kind.sqrt(kind.abs(y)) + 1


def quotients(x):
    y = x - x
    return x / y


def finite_quotients(x):
    y = x - x
    return x / (y + 1)


@pytest.mark.parametrize("own", ["PyTorch", "JAX"])
@pytest.mark.parametrize(
    ("function", "other", "kind", "op"),
    [
        (roots, positive_roots, "NaN", "sqrt"),
        (quotients, finite_quotients, "infinite values", "div"),
    ],
)
def test_the_first_operation_of_one_side_is_named(own, function, other, kind, op):
    report = compare(*both(own, function, other))
    assert report.verdict is Verdict.DIFFERS
    (note,) = report.notes
    assert note.startswith(f"only {own}'s outputs contain {kind}, which first appear at ")
    assert note.endswith(f"({op})")
    place = report.findings[0].torch if own == "PyTorch" else report.findings[0].jax
    assert place.source.function == function.__name__
    assert compare(*both(own, other, other)).notes == ()


@pytest.mark.parametrize("function", [roots, quotients])
def test_both_sides_may_have_them_at_the_same_entries(function):
    report = compare(side_of("PyTorch", function), side_of("JAX", function))
    assert report.verdict is Verdict.EQUAL
    assert "contain NaN" in report.notes[0] or "contain infinite values" in report.notes[0]
    assert "they first appear at test_not_finite.py" in report.notes[0]
    report = compare(side_of("PyTorch", function), side_of("JAX", lambda x: function(-x)))
    assert report.verdict is Verdict.DIFFERS


def test_values_that_do_not_reach_an_output_do_not_count():
    def masked(x):
        return jnp.where(x > 0, x, jnp.where(x > 0, 0.0, jnp.log(x - 9)) * 0 + x)

    trace = trace_jax(jax_program(lambda x: jnp.where(jnp.isnan(jnp.log(-x)), x, 2 * x), X))
    assert any(node.print and node.print.nan for node in trace.nodes)
    assert first_of(trace, "NaN") is None
    assert first_of(trace_jax(jax_program(masked, X)), "NaN").op == "log"


def test_an_input_is_named():
    given = X.copy()
    given[0, 0] = np.inf
    theirs, ours = torch_program(abs, torch.from_numpy(given)), jax_program(abs, given)
    found = not_finite(trace_torch(theirs), trace_jax(ours))
    assert found.finding is None
    assert found.notes[0].endswith("they first appear in args[0] in PyTorch and in args[0] in JAX")
    assert not not_finite(trace_torch(torch_program(abs, T)), trace_jax(jax_program(abs, X))).notes


@pytest.mark.parametrize("factor", [1e4, 1.0])
def test_an_overflow_in_one_sides_own_precision_is_noted(factor):
    """The largest float16 is 65504; the JAX program divides before it multiplies."""
    half = T.half() + 1
    theirs = torch_program(lambda x: x * 2 * factor / factor, half)
    ours = jax_program(lambda x: x * 2 / factor * factor, half.numpy())
    report = compare(theirs, ours)
    notes = [note for note in report.notes if "own precision" in note]
    expected = "the output is finite in float64, but not in PyTorch's own precision"
    assert notes == ([expected] if factor > 1 else [])


def test_a_gradient_that_is_nan_on_one_side_alone_differs():
    """The root of a negative number is masked, but the gradient through it is NaN."""

    def careless(x):
        kind = torch if isinstance(x, torch.Tensor) else jnp
        return kind.where(x > 0, kind.sqrt(x), 0.0)

    def careful(x):
        return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)

    report = compare(side_of("PyTorch", careless), side_of("JAX", careful))
    assert all(output.equal for output in report.outputs)
    assert report.verdict is Verdict.DIFFERS
    assert report.gradients[0].apart == np.inf
    assert compare(side_of("PyTorch", careless), side_of("JAX", careless)).equal
