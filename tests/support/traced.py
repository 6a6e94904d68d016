"""Traces of small programs, for unit tests of the engine that compares them."""

import numpy as np
import torch

from obscura_jax.parity.align import Alignment, align
from obscura_jax.parity.diverge import TOLERANCE
from obscura_jax.parity.gates import gates
from obscura_jax.parity.jax_trace import JaxTrace, trace_jax
from obscura_jax.parity.program import jax_program, torch_program
from obscura_jax.parity.setting import Effort, Setting
from obscura_jax.parity.torch_trace import trace_torch
from obscura_jax.parity.trace import Trace

X = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)


def torch_trace(function, *inputs) -> Trace:
    """Return the trace of a function of tensors; its inputs are arrays, by default `X`."""
    return trace_torch(torch_program(function, *map(torch.from_numpy, inputs or (X,))))


def jax_trace(function, *inputs) -> JaxTrace:
    """Return the trace of a function of JAX arrays; its inputs are arrays, by default `X`."""
    return trace_jax(jax_program(function, *(inputs or (X,))))


def aligned(theirs, ours, *inputs) -> Alignment:
    """Return the alignment of two functions on the same inputs."""
    return align(torch_trace(theirs, *inputs), jax_trace(ours, *inputs), TOLERANCE)


def setting(alignment: Alignment, pair) -> Setting:
    """Return the setting around a pair of operations."""
    jax = alignment.jax
    return Setting.around(alignment, pair, jax.trace, gates(jax, pair.jax), Effort(10**9))


def ops(side, indices) -> list[str]:
    """Return the names of the operations of some nodes."""
    trace = side if isinstance(side, Trace) else side.trace
    return [trace.nodes[i].op for i in indices]


def node(trace: Trace, op: str, nth: int = 0) -> int:
    """Return the index of the operation of a name, the first one by default."""
    return [n.index for n in trace.nodes if n.op == op][nth]
