"""JAX programs whose control flow depends on values, and other kinds of traced functions."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from obscura_jax.parity import jax_eager
from obscura_jax.parity.compare_programs import compare
from obscura_jax.parity.findings import Verdict
from obscura_jax.parity.jax_trace import trace_jax
from obscura_jax.parity.program import jax_program, torch_program

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(3, 7, 5)).astype(np.float32)
W = RANDOM.normal(size=(5, 11)).astype(np.float32)
OURS, THEIRS = jnp.asarray(W), torch.from_numpy(W)


@pytest.fixture(autouse=True)
def as_by_default():
    with jax.numpy_rank_promotion("allow"):
        yield


# Each pair is equal for SCALE = 1. Any other value changes the line that it is on.
SCALE = 1.0


def torch_branch(x):
    y = x @ THEIRS
    return torch.nn.functional.silu(y) if y.sum() > 0 else torch.tanh(y)


def jax_branch(x):
    y = x @ OURS * SCALE
    if y.sum() > 0:
        return jax.nn.silu(y)
    return jnp.tanh(y)


def torch_index(x):
    first = int(torch.argmax(x[0, :, 0]))
    return torch.sigmoid((x @ THEIRS)[:, first:]) * 2


def jax_index(x):
    first = int(jnp.argmax(x[0, :, 0]))
    return jax.nn.sigmoid((x @ OURS)[:, first:] * SCALE) * 2


def torch_mask(x):
    y = x @ THEIRS
    return torch.exp(y[y > 0])


def jax_mask(x):
    y = x @ OURS
    return jnp.exp(y[y > 0] * SCALE)


def torch_read(x):
    return torch.exp(torch.tanh(x @ THEIRS))


def jax_read(x):
    y = np.asarray(jnp.tanh(x @ OURS))
    assert isinstance(y, np.ndarray)
    return jnp.exp(jnp.asarray(y) * SCALE)


def torch_loop(x):
    y = torch.tanh(x)
    while float(y.abs().max()) > 0.01:
        y = torch.tanh(y) * 0.7
    return y + 1


def jax_loop(x):
    y = jnp.tanh(x)
    while float(jnp.abs(y).max()) > 0.01:
        y = jnp.tanh(y) * 0.7
    return y * SCALE + 1


def torch_jit(x):
    y = torch.nn.functional.gelu(x @ THEIRS)
    return torch.softmax(y, -1) if y.sum().item() > 0 else y


def jax_jit(x):
    @jax.jit
    def hidden(x):
        return jax.nn.gelu(x @ OURS * SCALE, approximate=False)

    y = hidden(x)
    return jax.nn.softmax(y) if y.sum().item() > 0 else y


def torch_size(x):
    count = (x[0] > 0).sum(-1).tolist()[0]
    return torch.cat([torch.tanh(x)] * count, -1)


def jax_size(x):
    count = (x[0] > 0).sum(-1).tolist()[0]
    return jnp.concatenate([jnp.tanh(x * SCALE)] * count, -1)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.Dense(11, use_bias=False)(x)
        y = y * SCALE
        return nn.silu(y) if y.sum() > 0 else nn.tanh(y)


class NNX(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(5, 11, use_bias=False, rngs=nnx.Rngs(0))
        self.dense.kernel.set_value(OURS)

    def __call__(self, x):
        y = self.dense(x)
        y = y * SCALE
        return nnx.silu(y) if y.sum() > 0 else nnx.tanh(y)


class Equinox(eqx.Module):
    weight: jax.Array

    def __call__(self, x):
        y = x @ self.weight
        y = y * SCALE
        return jax.nn.silu(y) if bool(y.sum() > 0) else jnp.tanh(y)


def linen(x):
    return Linen().apply({"params": {"Dense_0": {"kernel": OURS}}}, x)


@jax.custom_vjp
def swish(x):
    return x * SCALE * jax.nn.sigmoid(x)


swish.defvjp(
    lambda x: (swish(x), x),
    lambda x, g: (g * SCALE * jax.nn.sigmoid(x) * (1 + x * (1 - jax.nn.sigmoid(x))),),
)


@jax.custom_jvp
def squared(x):
    return x * SCALE * x


squared.defjvp(lambda x, dx: (squared(*x), 2 * SCALE * x[0] * dx[0]))


def torch_rows(x):
    return torch.softmax(x @ THEIRS, -1)


def jax_rows(x):
    return jax.vmap(lambda row: jax.nn.softmax(row @ OURS * SCALE))(x)


def torch_sum(x):
    total, found = torch.zeros(7, 5), []
    for row in x:
        total = torch.tanh(total + row)
        found.append(total)
    return torch.stack(found)


def jax_scan(x):
    def step(total, row):
        total = jnp.tanh(total + row * SCALE)
        return total, total

    return jax.lax.scan(step, jnp.zeros((7, 5)), x)[1]


def torch_halved(x):
    y = torch.tanh(x)
    while y.abs().max() > 0.1:
        y = y * 0.5
    return y @ THEIRS


def jax_while(x):
    y = jax.lax.while_loop(lambda y: jnp.abs(y).max() > 0.1, lambda y: y * 0.5, jnp.tanh(x))
    return y * SCALE @ OURS


def torch_cond(x):
    return torch.tanh(x @ THEIRS) if x.sum() > 0 else torch.sigmoid(x @ THEIRS)


def jax_cond(x):
    return jax.lax.cond(x.sum() > 0, jnp.tanh, jax.nn.sigmoid, x @ OURS * SCALE)


EAGER = {
    "branch": (torch_branch, jax_branch, jax_branch),
    "index": (torch_index, jax_index, jax_index),
    "mask": (torch_mask, jax_mask, jax_mask),
    "read by NumPy": (torch_read, jax_read, jax_read),
    "loop": (torch_loop, jax_loop, jax_loop),
    "jit inside": (torch_jit, jax_jit, jax_jit),
    "list of numbers": (torch_size, jax_size, jax_size),
    "linen": (torch_branch, linen, Linen.__call__),
    "nnx": (torch_branch, NNX(), NNX.__call__),
    "equinox": (torch_branch, Equinox(OURS), Equinox.__call__),
    "remat inside": (
        lambda x: torch.tanh(x @ THEIRS) if x.sum() > 9 else x,
        lambda x: jax.checkpoint(lambda y: jnp.tanh(y @ OURS * SCALE))(x) if x.sum() > 9 else x,
        None,
    ),
    "custom_vjp inside": (
        lambda x: torch.nn.functional.silu(x) if x.sum() > 9 else x,
        lambda x: swish(x) if x.sum() > 9 else x,
        swish,
    ),
    "custom_jvp inside": (
        lambda x: x * x if x.sum() > 9 else x,
        lambda x: squared(x) if x.sum() > 9 else x,
        squared,
    ),
    "scan inside": (
        lambda x: torch_sum(x) if x.sum() > 9 else x,
        lambda x: jax_scan(x) if x.sum() > 9 else x,
        jax_scan,
    ),
}
TRACED = {
    "jit": (torch_rows, jax.jit(lambda x: jax.nn.softmax(x @ OURS * SCALE)), None),
    "vmap": (torch_rows, jax_rows, jax_rows),
    "scan": (torch_sum, jax_scan, jax_scan),
    "while": (torch_halved, jax_while, jax_while),
    "cond": (torch_cond, jax_cond, jax_cond),
    "custom_vjp": (torch.nn.functional.silu, lambda x: swish(x), swish),
    "remat": (
        lambda x: torch.tanh(x @ THEIRS),
        jax.checkpoint(lambda x: jnp.tanh(x @ OURS * SCALE)),
        None,
    ),
}
ALL = EAGER | TRACED


def planted(name, scale):
    """Return the report on a pair whose JAX side is changed by `scale`."""
    torch_side, jax_side, _ = ALL[name]
    jax.clear_caches()  # a function that was traced before has the old SCALE
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "SCALE", scale)
        return compare(torch_program(torch_side, torch.from_numpy(X)), jax_program(jax_side, X))


@pytest.mark.parametrize("name", ALL)
def test_an_equal_pair_is_equal(name):
    assert planted(name, 1.0).verdict is Verdict.EQUAL


@pytest.mark.parametrize("name", ALL)
def test_a_changed_line_is_found(name):
    report = planted(name, 1.001)
    assert report.verdict is Verdict.DIFFERS
    place = report.findings[0].jax
    assert "SCALE" in place.code
    assert place.source.file == __file__


@pytest.mark.parametrize("name", ALL)
def test_programs_are_recorded_only_if_tracing_fails(name, monkeypatch):
    calls = []
    monkeypatch.setattr(jax_eager, "record", lambda *given: calls.append(given) or original(*given))
    original = jax_eager._recorded
    trace_jax(jax_program(ALL[name][1], X))
    assert len(calls) == (name in EAGER)


def test_a_recorded_function_has_the_operations_of_a_traced_one():
    def plain(x):
        return jax.nn.softmax(jax.nn.gelu(x @ OURS)) * jnp.sum(OURS)

    def branching(x):
        return plain(x) if x[0, 0, 0] > -9 else x

    def operations(call):
        nodes = trace_jax(jax_program(call, X)).nodes
        return [(n.op, n.shape, n.dtype, n.source, n.fused, n.name) for n in nodes]

    expected, found = operations(plain), operations(branching)
    condition = [row for row in found if row not in expected]
    assert len(found) > len(expected)
    assert {op for op, *_ in condition} <= {
        "slice",
        "squeeze",
        "convert_element_type",
        "gt",
        "leaf",
    }
    assert [row for row in found if row in expected and row[0] != "leaf"] == [
        row for row in expected if row[0] != "leaf"
    ]


def test_what_numpy_computes_is_a_constant():
    """It is in the precision of the program, so it differs from PyTorch's in float64."""
    theirs = torch_program(lambda x: torch.exp(x.sort(-1)[0] / 3), torch.from_numpy(X))
    ours = jax_program(lambda x: jnp.exp(np.sort(np.asarray(x) / 3)), X)
    report = compare(theirs, ours)
    assert report.verdict is not Verdict.EQUAL
    assert report.outputs[0].float64 < 1e-6  # measured: 6e-8


def test_another_version_of_jax_is_one_sentence(monkeypatch):
    jax_eager._is_supported.cache_clear()
    monkeypatch.delattr(jax_eager._Recorder, "process_custom_jvp_call")
    report = compare(torch_program(torch_branch, torch.from_numpy(X)), jax_program(jax_branch, X))
    jax_eager._is_supported.cache_clear()
    assert report.verdict is Verdict.NOT_COMPARABLE
    assert report.reason == (
        "the JAX side cannot be traced, because its control flow depends on the values of arrays; "
        "pass these values as Python numbers, or use JAX 0.10.2 or 0.12.0"
    )


def test_an_error_of_the_function_is_its_own():
    def fails(x):
        if x.sum() > 9:
            raise AttributeError("of the program")
        return x

    with pytest.raises(AttributeError, match="of the program") as error:
        trace_jax(jax_program(fails, X))
    assert error.value.__notes__ == ["the JAX side fails"]
    assert trace_jax(jax_program(fails, -X)).labels == [""]


def test_complex_results_are_compared_in_both_precisions():
    theirs = torch_program(lambda x: torch.fft.rfft(x), torch.from_numpy(X))
    (row,) = compare(theirs, jax_program(jnp.fft.rfft, X)).outputs
    assert row.float64 < 1e-12  # measured: 2e-16
    assert row.native < 1e-5  # measured: 3e-7
    (row,) = compare(theirs, jax_program(lambda x: jnp.fft.rfft(x).conj(), X)).outputs
    assert min(row.float64, row.native) > 0.1


def test_a_function_that_calls_python_is_compared():
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    theirs = torch_program(lambda x: torch.tanh(x) * 2, torch.from_numpy(X))

    def ours(scale):
        def twice(y):
            return np.asarray(y) * np.float32(scale)

        return jax_program(lambda x: jax.pure_callback(twice, shape, jnp.tanh(x)), X)

    assert compare(theirs, ours(2)).outputs[0].float64 < 1e-6  # measured: 6e-8, it runs in float32
    assert compare(theirs, ours(2.1)).outputs[0].float64 > 1e-2
