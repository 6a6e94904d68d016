"""The nodes of the same line in other layers."""

import jax.numpy as jnp

from obscura_jax.parity.parallel import Parallel, same_line
from tests.support.traced import jax_trace, node, ops


def layer(x, scale):
    y = jnp.tanh(x * scale)
    return y + jnp.exp(y)


def three_layers(x):
    x = x + 1  # so that the first layer follows an addition as the others do
    for scale in (0.5, 1.5, 2.5):
        x = layer(x, scale)
    return jnp.tanh(x)  # the same operation, on another line


TRACE = jax_trace(three_layers)


def test_a_line_is_found_in_all_layers_and_nowhere_else():
    found = same_line(TRACE, node(TRACE, "tanh"))
    assert len(found) == 3
    assert node(TRACE, "tanh", 3) not in found
    assert same_line(TRACE, node(TRACE, "tanh", 3)) == [node(TRACE, "tanh", 3)]
    assert same_line(TRACE, found[1]) == found


def test_nodes_near_a_line_are_mapped_to_those_of_the_other_layer():
    parallel = Parallel(TRACE, node(TRACE, "exp"), node(TRACE, "exp", 2))
    for op in ("tanh", "mul", "add"):
        assert parallel(node(TRACE, op)) == node(TRACE, op, 2), op
    scales = [TRACE.nodes[node(TRACE, "mul", n)].inputs[1] for n in (0, 2)]
    assert ops(TRACE, scales) == ["leaf", "leaf"]
    assert parallel(scales[0]) == scales[1]
    back = Parallel(TRACE, node(TRACE, "exp", 2), node(TRACE, "exp", 1))
    assert back(node(TRACE, "tanh", 2)) == node(TRACE, "tanh", 1)


def test_a_line_outside_of_the_layers_has_no_counterpart():
    parallel = Parallel(TRACE, node(TRACE, "exp"), node(TRACE, "exp", 1))
    assert parallel(node(TRACE, "tanh", 3)) is None
    assert parallel(node(TRACE, "tanh", 2)) is None  # the layer after the last one
