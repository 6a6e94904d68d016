"""The values that every path from an operation to the outputs passes."""

import jax.numpy as jnp
import torch

from obscura_jax.parity.gates import gates
from tests.support.traced import aligned, node, ops


def test_a_value_on_one_of_two_paths_is_no_gate():
    def ours(x):
        y = jnp.tanh(x) * 1.5  # no match
        return jnp.exp(y) / (1 + jnp.cos(y) * jnp.cos(y))

    jax = aligned(lambda x: torch.tanh(x), ours).jax
    start = node(jax.trace, "mul")
    found = ops(jax, gates(jax, start))
    assert found == ["mul", "div"]
    assert {"exp", "cos"} <= {n.op for n in jax.trace.nodes}


def test_all_values_of_a_chain_are_gates():
    def ours(x):
        return jnp.exp(jnp.cos(jnp.tanh(x) * 1.5))

    jax = aligned(lambda x: torch.tanh(x), ours).jax
    start = node(jax.trace, "mul")
    assert ops(jax, gates(jax, start)) == ["mul", "cos", "exp"]
    assert ops(jax, gates(jax, start, limit=2)) == ["mul", "cos"]


def test_a_matched_value_is_no_gate_unless_it_is_an_output():
    def theirs(x):
        return torch.cos(torch.tanh(x) * 1.5) + 1

    def ours(x):
        return jnp.cos(jnp.tanh(x) * 1.5) + 1

    jax = aligned(theirs, ours).jax
    assert ops(jax, gates(jax, node(jax.trace, "mul"))) == ["add"]
    jax = aligned(lambda x: torch.tanh(x), ours).jax
    assert ops(jax, gates(jax, node(jax.trace, "mul"))) == ["mul", "cos", "add"]
