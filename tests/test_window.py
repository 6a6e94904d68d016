"""A change is evaluated in its window with the same result as in the full program."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from obscura_jax.parity.align import first_pairs
from obscura_jax.parity.changes import Change, result_of
from obscura_jax.parity.jax_trace import evaluated
from obscura_jax.parity.window import Window
from tests.support.traced import aligned, node, setting


def theirs(x):
    return torch.cos(torch.tanh(x) * 1.5) + 1


def ours(x):
    return jnp.cos(jnp.tanh(x) * 1.25) + 1


@pytest.fixture
def here():
    found = aligned(theirs, ours)
    pair = first_pairs(found, found.torch.trace.outputs, found.jax.trace.outputs)[0]
    return setting(found, pair)


def change(here, function):
    place = here.pair.jax
    position = here.position[place]
    return Change(
        "test", place, "", {position: result_of(here.graph.equations[position], function)}
    )


def test_a_change_has_the_result_of_the_full_program(here):
    one = change(here, lambda x: x / 1.25 * 1.5)
    ends = [node(here.trace, "cos"), *here.trace.outputs]
    found = Window(here, ends).values(one)
    full = evaluated(one.applied(here.graph), here.trace.labels, here.trace.native).values(ends)
    assert found.keys() == full.keys() == {*ends}
    for i in ends:
        np.testing.assert_array_equal(found[i], full[i])
        assert np.abs(found[i] - here.value(i)).max() > 0.01
    (output,) = here.torch.trace.values(here.torch.trace.outputs).values()
    np.testing.assert_allclose(found[ends[1]], output, rtol=1e-13)  # measured: 3e-16


def test_values_that_a_change_does_not_reach_are_left_out(here):
    before = node(here.trace, "tanh")
    found = Window(here, [before, *here.trace.outputs]).values(change(here, lambda x: 2 * x))
    assert list(found) == here.trace.outputs


@pytest.mark.parametrize("wrong", [lambda x: x[:2], lambda x: x["no"], lambda x: x @ np.ones(3)])
def test_a_change_that_does_not_fit_has_no_values(here, wrong):
    window = Window(here, here.trace.outputs)
    assert window.values(change(here, wrong)) == {}
    assert window.values(change(here, lambda x: 2 * x)) != {}
