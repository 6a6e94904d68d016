"""Bring the outputs of two programs into one order if both give them the same labels."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from obscura_jax.parity.jax_trace import JaxTrace, is_array
from obscura_jax.parity.program import JaxProgram, arrays_in, picked
from obscura_jax.parity.trace import Trace


def in_order_of(
    labels: Sequence[str], side: JaxProgram | Trace, trace: Trace
) -> tuple[JaxProgram | Trace, Trace]:
    """Return the JAX side and its trace, with the outputs in the order of PyTorch's labels.

    Dictionaries may have another order on each side; `jax.jit` sorts their keys. Outputs with other
    labels, such as those of a tuple, are matched by position and stay as they are.

    Args:
        labels: the labels of PyTorch's outputs.
        side: the JAX program, or the recording of it.
        trace: its trace.
    """
    if list(labels) == trace.labels or sorted(labels) != sorted(trace.labels):
        return side, trace
    order = [trace.labels.index(label) for label in labels]
    outputs = [trace.outputs[n] for n in order]
    native = [trace.native[n] for n in order]
    ordered = replace(trace, outputs=outputs, labels=list(labels), native=native)
    if isinstance(ordered, JaxTrace):
        ordered.graph = replace(ordered.graph, outputs=outputs)
    if isinstance(side, JaxProgram):
        side = replace(side, out=partial(_in_order, side.out, tuple(labels)))
    return side, ordered


def _in_order(out: Any, labels: Sequence[str], result: Any) -> dict[str, Any]:
    found = arrays_in(picked(result, out, "JAX"), is_array)
    return {label: found[label] for label in labels}
