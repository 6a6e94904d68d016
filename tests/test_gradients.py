"""Gradients of equal pairs are equal, and planted faults of gradients are found by their lines."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from obscura_jax.parity.compare_programs import compare
from obscura_jax.parity.findings import Verdict
from obscura_jax.parity.gradient_layout import in_one_order, order_of_axes
from obscura_jax.parity.program import jax_program, torch_program
from obscura_jax.parity.report import as_text
from tests.pairs.gradient_faults import FAULTS
from tests.support.planted import PAIRS, compared
from tests.support.planted_gradients import gradients_of, gradients_with, names_the_lines

WIDTH, WIDER = 5, 7


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def arrays(module):
    return {name: jnp.asarray(x.detach().numpy()) for name, x in module.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_the_gradients_of_an_equal_pair_are_equal(pair):
    """The largest difference measured is 1.2e-11 of the gradient's rms."""
    result = gradients_of(
        importlib.import_module(f"tests.pairs.{pair}_torch"),
        importlib.import_module(f"tests.pairs.{pair}_jax"),
    )
    assert len(result.gradients) > 15
    assert result.equal
    assert (result.findings, result.notes) == ((), ())


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_of_a_gradient_is_found(fault):
    result = gradients_with(fault)
    assert not result.equal
    assert len(result.findings) == 1
    assert names_the_lines(result.findings[0], fault) == (True, True)
    assert fault.words in result.findings[0].relation


@pytest.mark.slow
def test_the_verdict_covers_gradients():
    assert compared("rotary").verdict is Verdict.EQUAL
    x = normal(3, WIDTH)
    twice = torch_program(lambda x: 2 * x, torch.from_numpy(x))
    stopped = jax_program(lambda x: 2 * jax.lax.stop_gradient(x), x)
    report = compare(twice, stopped)
    assert report.verdict is Verdict.DIFFERS
    assert "differs, first in the gradients at test_gradients.py" in as_text(report)
    assert compare(twice, stopped, gradients=False).verdict is Verdict.EQUAL


class Split(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDER) for _ in range(3))

    def forward(self, x):
        return torch.tanh(self.query(x)) * self.key(x) + self.value(x)


def fused(p, x):
    query, key, value = jnp.split(x @ p["kernel"] + p["bias"], 3, axis=-1)
    return jnp.tanh(query) * key + value


def fused_parameters(module):
    parts = (module.query, module.key, module.value)
    kernel = np.concatenate([part.weight.detach().numpy().T for part in parts], axis=1)
    return {
        "kernel": kernel,
        "bias": np.concatenate([part.bias.detach().numpy() for part in parts]),
    }


def test_a_fused_parameter_is_compared_with_its_parts():
    torch.manual_seed(0)
    module, x = Split(), normal(3, WIDTH)
    theirs, params = torch_program(module, torch.from_numpy(x)), fused_parameters(module)
    with jax.numpy_rank_promotion("allow"):
        report = compare(theirs, jax_program(fused, params, x))
        wrong = compare(theirs, jax_program(_with_stopped_key, params, x))
    assert report.verdict is Verdict.EQUAL
    names = {gradient.name: gradient.jax_name for gradient in report.gradients}
    assert names["query.weight, key.weight, value.weight"] == "args[0].kernel"
    assert names["query.bias, key.bias, value.bias"] == "args[0].bias"
    assert wrong.verdict is Verdict.DIFFERS


def _with_stopped_key(p, x):
    query, key, value = jnp.split(x @ p["kernel"] + p["bias"], 3, axis=-1)
    return jnp.tanh(query) * jax.lax.stop_gradient(key) + value


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, WIDTH)

    def forward(self, tokens):
        return torch.tanh(self.embed(tokens)) @ self.embed.weight.T


def test_a_tied_embedding_has_the_sum_of_both_gradients():
    torch.manual_seed(0)
    module, tokens = Tied(), np.random.default_rng(0).integers(0, 11, (3, 7))
    theirs = torch_program(module, torch.from_numpy(tokens))
    embed = module.embed.weight.detach().numpy()

    def ours(p, tokens, stop=lambda x: x):
        return jnp.tanh(p["embed"][tokens]) @ stop(p["head"])

    given = ({"embed": embed, "head": embed.T}, tokens.astype(np.int32))
    report = compare(theirs, jax_program(ours, *given))
    assert report.verdict is Verdict.EQUAL
    (gradient,) = report.gradients
    assert (gradient.name, gradient.jax_name) == ("embed.weight", "args[0].embed, args[0].head")
    stopped = compare(theirs, jax_program(lambda *x: ours(*x, jax.lax.stop_gradient), *given))
    assert stopped.verdict is Verdict.DIFFERS


def layer_norm(p, name, x):
    centered = x - x.mean(-1, keepdims=True)
    variance = (centered**2).mean(-1, keepdims=True)
    return centered / jnp.sqrt(variance + 1e-5) * p[name + ".weight"] + p[name + ".bias"]


def test_parameters_of_equal_values_are_matched_by_their_use():
    """Both norms have weights of 1 and biases of 0, as in every fresh model."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.LayerNorm(WIDTH), nn.Tanh(), nn.LayerNorm(WIDTH))
    x = normal(3, WIDTH)

    def ours(p, x):
        return layer_norm(p, "2", jnp.tanh(layer_norm(p, "0", x)))

    with jax.numpy_rank_promotion("allow"):
        report = compare(
            torch_program(module, torch.from_numpy(x)), jax_program(ours, arrays(module), x)
        )
    assert report.verdict is Verdict.EQUAL
    rows = {g.name: g.jax_name for g in report.gradients}
    names = ("0.weight", "0.bias", "2.weight", "2.bias")
    assert rows == {"args[0]": "args[1]"} | {name: f"args[0].{name}" for name in names}


def test_a_frozen_parameter_is_noted_and_left_frozen():
    module, x = nn.Linear(WIDTH, WIDER), normal(3, WIDTH)
    module.bias.requires_grad_(False)
    call = torch_program(module, torch.from_numpy(x))

    def ours(p, x):
        return x @ p["weight"].T + p["bias"]

    with jax.numpy_rank_promotion("allow"):
        report = compare(call, jax_program(ours, arrays(module), x))
    assert report.verdict is Verdict.EQUAL
    assert report.notes == (
        "not trained in PyTorch, but compared all the same: bias (requires_grad is False)",
    )
    assert (module.weight.requires_grad, module.bias.requires_grad) == (True, False)
    assert module.weight.grad is None


def test_a_loop_without_gradient_is_noted():
    x = normal(3, WIDTH)

    def ours(x):
        return jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, x))[
            1
        ]

    report = compare(
        torch_program(lambda x: x.sin().sin(), torch.from_numpy(x)), jax_program(ours, x)
    )
    assert report.verdict is Verdict.EQUAL
    assert report.gradients == ()
    (note,) = report.notes
    assert note.startswith("gradients were not compared: JAX cannot differentiate its side")


def test_gradients_are_brought_into_one_order():
    values, gradient = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    moved = values.transpose(2, 0, 1).reshape(15, 4)
    assert order_of_axes(values, moved) == (2, 0, 1)
    assert order_of_axes(values, moved + 1) is None
    ours = [(moved, gradient.transpose(2, 0, 1).reshape(15, 4))]
    theirs, same = in_one_order([(values, gradient)], ours, copies=True)
    np.testing.assert_array_equal(theirs, same)
    rolled = [(moved, np.roll(ours[0][1], 1, axis=0))]
    theirs, other = in_one_order([(values, gradient)], rolled, copies=True)
    assert np.abs(theirs - other).max() > 0.1
    halves = [(x[:, :2], g[:, :2]) for x, g in ours] + [(x[:, 2:], g[:, 2:]) for x, g in ours]
    theirs, same = in_one_order([(values, gradient)], halves, copies=False)
    np.testing.assert_array_equal(theirs, same)
    assert in_one_order([(values, gradient)], halves[:1], copies=False) is None
