"""Every form of a program, of inputs and of results; each equality has a control that differs."""

import dataclasses
import functools

import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers.modeling_outputs import BaseModelOutput

from obscura_jax.parity.compare_programs import compare
from obscura_jax.parity.findings import Verdict
from obscura_jax.parity.program import jax_program, torch_program
from obscura_jax.parity.recording import read, record

DRAWN = np.random.default_rng(0)
X = DRAWN.normal(size=(3, 7)).astype(np.float32)
W = DRAWN.normal(size=(5, 7)).astype(np.float32)
T = torch.from_numpy(X)
LINEAR = torch.nn.Linear(7, 5, bias=False)
LINEAR.weight.data = torch.from_numpy(W.copy())
DENSE = flax.linen.Dense(5, use_bias=False)


def ours(x, scale=1.0):
    return x @ W.T * np.float32(scale)


def verdict(torch_side, jax_side):
    return compare(torch_side, jax_side).verdict


@dataclasses.dataclass
class Output:
    logits: object
    hidden: object = None


def model_output(x):
    return BaseModelOutput(last_hidden_state=LINEAR(x), hidden_states=(x,))


@pytest.mark.parametrize(
    "side",
    [
        torch_program(LINEAR, T),
        torch_program(lambda x: LINEAR(x), T),
        torch_program(functools.partial(torch.nn.functional.linear, weight=LINEAR.weight), T),
        torch_program(LINEAR, input=T),
        torch_program(lambda x: Output(LINEAR(x)), T),
        torch_program(lambda x: Output(LINEAR(x), x), T, out="logits"),
        torch_program(lambda x: {"a": x, "b": LINEAR(x)}, T, out="b"),
        torch_program(lambda x: (x, LINEAR(x)), T, out=1),
        torch_program(lambda x: (x, [LINEAR(x)]), T, out=lambda result: result[1]),
        torch_program(model_output, T, out="last_hidden_state"),
        torch_program(lambda given: LINEAR(given["a"][0]), {"a": [T]}),
    ],
)
def test_every_form_of_a_pytorch_program(side):
    assert verdict(side, jax_program(ours, X)) is Verdict.EQUAL
    assert verdict(side, jax_program(ours, X, scale=1.001)) is Verdict.DIFFERS


def linen(weight):
    return {"params": {"kernel": weight.T}}


def of_nnx(weight):
    module = nnx.Linear(7, 5, use_bias=False, rngs=nnx.Rngs(0))
    module.kernel.set_value(jnp.asarray(weight.T))
    return module


def of_equinox(weight):
    module = eqx.nn.Linear(7, 5, use_bias=False, key=jax.random.key(0))
    return eqx.tree_at(lambda one: one.weight, module, jnp.asarray(weight))


@pytest.mark.parametrize(
    "build",
    [
        lambda w: jax_program(lambda x: x @ w.T, X),
        lambda w: jax_program(jax.jit(lambda x: x @ w.T), X),
        lambda w: jax_program(functools.partial(lambda w, x: x @ w.T, w), X),
        lambda w: jax_program(lambda w, x: x @ w.T, w, X),
        lambda w: jax_program(lambda *, x: x @ w.T, x=X),
        lambda w: jax_program(lambda given: given["a"][0] @ w.T, {"a": [X]}),
        lambda w: jax_program(DENSE.apply, linen(w), X),
        lambda w: jax_program(functools.partial(DENSE.apply, linen(w)), X),
        lambda w: jax_program(DENSE.bind(linen(w)), X),
        lambda w: jax_program(of_nnx(w), X),
        lambda w: jax_program(nnx.jit(of_nnx(w)), X),
        lambda w: jax_program(jax.vmap(of_equinox(w)), X),
        lambda w: jax_program(eqx.filter_jit(eqx.filter_vmap(of_equinox(w))), X),
    ],
)
def test_every_form_of_a_jax_program(build):
    theirs = torch_program(LINEAR, T)
    assert verdict(theirs, build(W)) is Verdict.EQUAL
    assert verdict(theirs, build(W * np.float32(1.001))) is Verdict.DIFFERS


RESULTS = {
    "integers": (lambda x: LINEAR(x).argsort(-1), lambda x: jnp.argsort(x @ W.T, -1)),
    "booleans": (lambda x: LINEAR(x) > 0, lambda x: x @ W.T > 0),
    "a scalar": (lambda x: LINEAR(x).sum(), lambda x: (x @ W.T).sum()),
    "complex numbers": (torch.fft.fft, jnp.fft.fft),
    "the input": (lambda x: x, lambda x: x),
    "the input and more": (lambda x: (x, LINEAR(x)), lambda x: (x, x @ W.T)),
    "one array twice": (lambda x: (LINEAR(x),) * 2, lambda x: (x @ W.T,) * 2),
}


@pytest.mark.parametrize("name", RESULTS)
def test_every_kind_of_result(name):
    theirs, function = RESULTS[name]
    assert verdict(torch_program(theirs, T), jax_program(function, X)) is Verdict.EQUAL

    def changed(x):
        result = function(x)
        *rest, last = result if isinstance(result, tuple) else (result,)
        last = ~last if last.dtype == bool else last + 1
        return (*rest, last) if rest else last

    assert verdict(torch_program(theirs, T), jax_program(changed, X)) is Verdict.DIFFERS


@pytest.mark.parametrize("rows", [slice(0), slice(3)])
def test_empty_arrays_are_equal_only_if_their_shapes_are(rows):
    report = compare(torch_program(LINEAR, T[rows]), jax_program(ours, X[rows]))
    assert report.verdict is Verdict.EQUAL
    report = compare(torch_program(LINEAR, T[rows]), jax_program(ours, X[:2]))
    assert report.verdict is Verdict.NOT_COMPARABLE


@pytest.mark.parametrize(("number", "equal"), [(2.5, True), (2.25, False)])
@pytest.mark.parametrize("kinds", [(torch.tensor, np.float32), (float, float)])
def test_numbers_as_inputs(kinds, number, equal):
    theirs = torch_program(lambda x, t: LINEAR(x) * t, T, kinds[0](2.5))
    mine = jax_program(lambda x, t: x @ W.T * t, X, kinds[1](number))
    assert compare(theirs, mine).equal is equal


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_modules_of_low_precision_are_compared_in_float64(dtype):
    """In their own precision, both sides differ by rounding: the products are summed in orders."""
    module = torch.nn.Linear(7, 5).to(getattr(torch, dtype))
    weight, bias = (jnp.asarray(p.detach().float().numpy(), dtype) for p in module.parameters())
    theirs = torch_program(module, T.to(getattr(torch, dtype)))
    x = jnp.asarray(X, dtype)
    assert verdict(theirs, jax_program(lambda x: x @ weight.T + bias[None], x)) is Verdict.EQUAL
    assert verdict(theirs, jax_program(lambda x: x @ weight.T - bias[None], x)) is Verdict.DIFFERS


DICTIONARIES = {
    "another order": lambda x: {"a": x * 2, "b": x * 3, "c": x @ W.T},
    "jax.jit": jax.jit(lambda x: {"b": x * 3, "a": x * 2, "c": x @ W.T}),
    "exchanged": lambda x: {"a": x * 3, "b": x * 2, "c": x @ W.T},
}


@pytest.mark.parametrize("name", DICTIONARIES)
def test_outputs_are_matched_by_label(name, tmp_path):
    equal = name != "exchanged"
    theirs = torch_program(lambda x: {"b": x * 3, "c": LINEAR(x), "a": x * 2}, T)
    mine = jax_program(DICTIONARIES[name], X)
    report = compare(theirs, mine)
    assert report.equal is equal
    assert [output.name for output in report.outputs] == ["b", "c", "a"]
    assert [output.equal for output in report.outputs] == [equal, True, equal]
    record(mine, tmp_path / "jax.parity")
    assert compare(theirs, read(tmp_path / "jax.parity")).outputs == report.outputs


def test_outputs_with_other_labels_are_matched_by_position():
    theirs = torch_program(lambda x: {"b": x * 3, "a": x * 2}, T)
    assert compare(theirs, jax_program(lambda x: {"c": x * 3, "d": x * 2}, X)).equal
    assert not compare(theirs, jax_program(lambda x: {"c": x * 2, "d": x * 3}, X)).equal


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_program_without_gradients_is_compared_without_them(context):
    def all_of_it(x):
        with context():
            return torch.tanh(LINEAR(x))

    def a_part(x):
        with context():
            y = LINEAR(x)
        return torch.tanh(y.clone() + x[:, :5])

    report = compare(torch_program(all_of_it, T), jax_program(lambda x: jnp.tanh(ours(x)), X))
    assert report.verdict is Verdict.EQUAL
    assert report.gradients == ()
    assert report.notes == (
        "gradients were not compared: all of the PyTorch side runs under torch.no_grad or "
        "torch.inference_mode; leave that out to compare them",
    )
    other = jax_program(lambda x: jnp.tanh(ours(x) + x[:, :5]), X)
    report = compare(torch_program(a_part, T), other)
    assert report.verdict is Verdict.DIFFERS
    assert not report.findings
    assert report.gradients
