"""Anchors are values in whose place PyTorch's make what comes after equal."""

import jax.numpy as jnp
import numpy as np
import torch

from obscura_jax.parity.align import first_pairs
from obscura_jax.parity.anchors import anchors, at_the_pair
from tests.support.traced import aligned, ops, setting


def theirs(x):
    y = torch.tanh(x)
    return torch.exp(torch.cos(y * 1.5) + y)


def found(ours, theirs=theirs):
    both = aligned(theirs, ours)
    pair = first_pairs(both, both.torch.trace.outputs, both.jax.trace.outputs)[0]
    here = setting(both, pair)
    return here, list(anchors(here))


def test_the_nearest_anchor_is_the_changed_operation():
    def ours(x):
        y = jnp.tanh(x)
        return jnp.exp(jnp.cos(y * 1.25) + y)

    here, all_ = found(ours)
    first = all_[0]
    assert not first.lacking
    assert not first.superfluous
    assert ops(here.torch, [first.torch]) == ops(here.jax, [first.jax]) == ["mul"]
    np.testing.assert_array_equal(first.goal, here.torch.trace.values([first.torch])[first.torch])
    assert first.met(first.goal, 1e-9)
    assert not first.met(here.value(first.jax), 1e-9)
    assert not first.met(first.goal.T, 1e-9)


def test_an_operation_that_pytorch_lacks_is_superfluous():
    def ours(x):
        y = jnp.tanh(x)
        return jnp.exp(jnp.cos(jnp.abs(y * 1.5) ** 1.5) + y)

    here, all_ = found(ours)
    assert any(anchor.superfluous for anchor in all_)
    (extra,) = (anchor for anchor in all_ if anchor.superfluous)
    assert ops(here.jax, [extra.operand]) == ["mul"]
    assert ops(here.jax, [extra.jax]) == ["pow"]


def test_an_operation_that_jax_lacks_is_lacking():
    def theirs(x):
        return torch.exp(torch.cos(torch.tanh(x) * 1.5))

    def ours(x):
        return jnp.exp(jnp.cos(jnp.tanh(x)))

    here, all_ = found(ours, theirs)
    lacking = [anchor for anchor in all_ if anchor.lacking]
    assert lacking
    assert ops(here.torch, [lacking[0].torch]) == ["mul"]
    assert ops(here.jax, [lacking[0].jax]) == ["tanh"]


def test_two_differences_have_no_anchor_at_the_first():
    """With PyTorch's product, the next value is still a sine instead of a cosine."""

    def ours(x):
        y = jnp.tanh(x)
        return jnp.exp(jnp.sin(y * 1.25) + y)

    here, all_ = found(ours)
    assert (ops(here.torch, [all_[0].torch]), ops(here.jax, [all_[0].jax])) == (["cos"], ["sin"])
    assert all(here.pair.jax != anchor.jax for anchor in all_)
    assert {(anchor.torch, anchor.jax) for anchor in at_the_pair(here)} == {
        (here.pair.torch, here.pair.jax)
    }


def test_huge_entries_count_as_infinite():
    def ours(x):
        y = jnp.tanh(x)
        return jnp.exp(jnp.cos(y * 1.25) + y)

    anchor = found(ours)[1][0]
    anchor.goal[0, 0] = -np.inf
    value = anchor.goal.copy()
    value[0, 0] = -3e38
    assert anchor.met(value, 1e-9)
    value[0, 0] = 3.0
    assert not anchor.met(value, 1e-9)
