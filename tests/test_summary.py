"""The summary of a side: counts, parameters without a twin, and every operation with its match."""

import jax.numpy as jnp
import numpy as np
import torch

from obscura_jax.parity.align import align
from obscura_jax.parity.jax_trace import trace_jax
from obscura_jax.parity.program import jax_program, torch_program
from obscura_jax.parity.summary import operations_of, side_of
from obscura_jax.parity.torch_trace import trace_torch
from tests.support.traced import X, aligned

W = np.random.default_rng(1).normal(size=(7, 7)).astype(np.float32)


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.from_numpy(W.copy()))
        self.bias = torch.nn.Parameter(torch.from_numpy(W[0] + 1))
        self.unused = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        self.unused.exp()
        return torch.tanh(x @ self.weight) + self.bias


def summaries(ours):
    theirs = trace_torch(torch_program(Module(), torch.from_numpy(X)))
    both = align(theirs, trace_jax(jax_program(ours, X)), 1e-9)
    return side_of(both.torch, both.jax, "Module"), side_of(both.jax, both.torch, "ours")


def test_parameters_without_a_twin_are_named():
    torch_side, jax_side = summaries(lambda x: jnp.tanh(x @ W))
    assert (torch_side.name, torch_side.program) == ("PyTorch", "Module")
    assert (jax_side.name, jax_side.program) == ("JAX", "ours")
    assert torch_side.unmatched_parameters == ("bias",)
    assert torch_side.unread_parameters == ("unused",)
    assert (torch_side.operations, torch_side.matched) == (3, 2)
    assert (jax_side.operations, jax_side.matched) == (2, 2)
    torch_side, _ = summaries(lambda x: jnp.tanh(x @ W) + (W[0] + 1)[None])
    assert torch_side.unmatched_parameters == ()
    assert torch_side.matched == torch_side.operations


def test_a_part_of_a_parameter_has_a_twin():
    both = np.concatenate([W, W], 1) + 5 * np.arange(2).repeat(7).astype(np.float32)
    torch_side, _ = summaries(lambda x: jnp.tanh(x @ jnp.asarray(both)[:, :7]))
    assert torch_side.unmatched_parameters == ("bias",)


def test_every_operation_has_the_index_of_its_match():
    both = aligned(lambda x: torch.tanh(x) * 2, lambda x: jnp.exp(jnp.tanh(x)))
    theirs = operations_of(both.torch, both.jax)
    ours = operations_of(both.jax, both.torch)
    assert [row.place.op for row in theirs] == ["tanh", "mul"]
    assert [row.place.op for row in ours] == ["tanh", "exp"]
    assert (theirs[0].match, ours[0].match) == (ours[0].index, theirs[0].index)
    assert (theirs[1].match, ours[1].match) == (None, None)
    assert {row.side for row in theirs} == {"PyTorch"}
