"""Values of two programs are matched by what they are; entries are the first without a match."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from obscura_jax.parity.align import align, entries, family, first_pairs
from tests.support.traced import X, aligned, jax_trace, node, ops, torch_trace

W = np.random.default_rng(1).normal(size=(7, 3)).astype(np.float32)


def theirs(x):
    return torch.exp(torch.tanh(x) @ torch.from_numpy(W)) + 1


def ours(x):
    return jnp.exp(jnp.tanh(x) @ W) + 1


def other(x):
    return jnp.exp(jnp.tanh(x) @ W * 1.0001) + 1


def test_all_values_of_equal_programs_are_matched():
    found = aligned(theirs, ours)
    for side in (found.torch, found.jax):
        operations = [i for i in side.live if not side.node(i).leaf]
        assert operations
        assert all(i in side.settled for i in operations)
        assert not entries(side, side.trace.outputs)
    changed = aligned(theirs, other)
    assert entries(changed.torch, changed.torch.trace.outputs)


def test_the_first_value_without_a_match_is_the_entry():
    found = aligned(theirs, other)
    assert ops(found.torch, entries(found.torch, found.torch.trace.outputs)) == ["exp"]
    assert ops(found.jax, entries(found.jax, found.jax.trace.outputs)) == ["mul"]
    pair = first_pairs(found, found.torch.trace.outputs, found.jax.trace.outputs)[0]
    assert (found.torch.node(pair.torch).op, found.jax.node(pair.jax).op) == ("exp", "mul")
    assert pair.overlap == 1.0  # both use the product


@pytest.mark.parametrize(("tolerance", "equal"), [(1e-3, True), (1e-9, False)])
def test_the_tolerance_decides(tolerance, equal):
    def nearly(x):
        return jnp.exp(jnp.tanh(x) @ W * (1 + 1e-5)) + 1

    found = align(torch_trace(theirs), jax_trace(nearly), tolerance)
    assert bool(entries(found.torch, found.torch.trace.outputs)) is not equal


def test_other_layouts_of_a_value_have_its_class():
    found = aligned(lambda x: torch.tanh(x).T.reshape(-1) * 2, lambda x: jnp.tanh(x) * 2)
    (product,) = (i for i, c in found.torch.classes.items() if found.torch.node(i).op == "mul")
    assert found.torch.classes[product] == found.jax.classes[node(found.jax.trace, "mul")]
    assert found.torch.classes[product] != found.jax.classes[node(found.jax.trace, "tanh")]


def test_a_value_that_is_scaled_earlier_is_benign():
    """JAX scales before the product, PyTorch after it: the product alone has no match."""
    found = aligned(lambda x: (x @ torch.from_numpy(W)) * 0.5, lambda x: (x * 0.5) @ W)
    assert not entries(found.torch, found.torch.trace.outputs)
    assert ops(found.torch, sorted(found.torch.benign)) == ["mm"]
    assert ops(found.jax, sorted(found.jax.benign)) == ["mul"]
    found = aligned(lambda x: (x @ torch.from_numpy(W)) * 0.5, lambda x: (x * 0.51) @ W)
    assert not found.torch.benign
    assert entries(found.torch, found.torch.trace.outputs)


def test_a_wrong_mask_is_found_at_the_operation_that_uses_it():
    rows = np.arange(5)[:, None]

    def masked(x):
        return torch.where(torch.from_numpy(rows < 3), x, x * 2).exp()

    found = aligned(masked, lambda x: jnp.exp(jnp.where(rows < 2, x, x * 2)))
    assert ops(found.torch, entries(found.torch, found.torch.trace.outputs)) == ["where"]
    assert ops(found.jax, entries(found.jax, found.jax.trace.outputs)) == ["select_n"]
    found = aligned(masked, lambda x: jnp.exp(jnp.where(rows < 3, x, x * 2)))
    assert not entries(found.torch, found.torch.trace.outputs)


def test_operands_are_those_before_layout_operations():
    side = aligned(lambda x: torch.tanh(x).T.reshape(7, 5) * 2, lambda x: jnp.tanh(x) * 2).torch
    product = node(side.trace, "mul")
    assert ops(side, side.operands(product))[0] == "tanh"
    assert ops(side, side.node(product).inputs)[0] != "tanh"


def test_families_of_operations():
    assert family("mm") == family("dot_general") != family("add")
    assert family("add_") == family("add")
    assert family("no such operation") == "no such operation"
    assert X.shape == (5, 7)
