"""The reshape or transpose that arranges equal values differently is to blame."""

import jax.numpy as jnp
import numpy as np
import torch

from obscura_jax.parity.align import Pair
from obscura_jax.parity.layouts import blamed_layout
from tests.support.traced import aligned, node

X = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
KEYS = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)


def theirs(x, keys):
    heads = torch.tanh(x).reshape(5, 3, 4).transpose(0, 1)
    return heads @ keys


def ours_right(x, keys):
    heads = jnp.tanh(x).reshape(5, 3, 4).transpose(1, 0, 2)
    return heads @ keys


def ours_wrong(x, keys):
    heads = jnp.tanh(x).reshape(5, 4, 3).transpose(2, 0, 1)
    return heads @ keys


def blamed(ours):
    both = aligned(theirs, ours, X, KEYS)
    pair = Pair(node(both.torch.trace, "bmm"), node(both.jax.trace, "dot_general"), 1.0)
    return blamed_layout(both, pair)


def test_heads_that_are_split_in_another_order_are_blamed():
    torch_node, jax_node = blamed(ours_wrong)
    assert (torch_node.layout, jax_node.layout) == (True, True)
    assert torch_node.source.function == "theirs"
    assert jax_node.source.function == "ours_wrong"
    assert jax_node.op in ("reshape", "transpose")


def test_the_same_split_is_not_blamed():
    assert blamed(ours_right) is None


def test_other_values_are_not_blamed_on_the_layout():
    def other(x, keys):
        return ours_wrong(x * 2, keys)

    assert blamed(other) is None
