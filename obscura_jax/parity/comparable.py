"""Check that two traced programs can be compared: same inputs, same outputs, nothing random."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.align import Side
from obscura_jax.parity.fingerprint import close, fingerprint
from obscura_jax.parity.program import NotComparableError
from obscura_jax.parity.relation import arrangement
from obscura_jax.parity.trace import Node, Trace

_TOLERANCE = 1e-6  # inputs may be in lower precision on one side


def check_comparable(torch: Trace, jax: Trace) -> None:
    """Check that two programs can be compared.

    Raises:
        NotComparableError: if one of them draws random numbers, or their inputs or outputs do not
            correspond.
    """
    for trace in (torch, jax):
        _check_not_random(trace)
    _check_outputs(torch, jax)
    _check_inputs(torch, jax)


def _check_not_random(trace: Trace) -> None:
    drawn = trace.ancestors(trace.outputs) & set(trace.random)
    if drawn:
        node = trace.nodes[min(drawn)]
        where = f" at {node.source}" if node.source else ""
        remedy = (
            "call .eval() on the module" if trace.side == "PyTorch" else "make it deterministic"
        )
        raise NotComparableError(
            f"the {trace.side} side draws random numbers{where} ({node.op}); {remedy}, or set "
            "dropout to 0"
        )


def _check_outputs(torch: Trace, jax: Trace) -> None:
    if len(torch.outputs) != len(jax.outputs):
        raise NotComparableError(
            f"PyTorch returns {_arrays(torch)}, and JAX {_arrays(jax)}; pick the same with out="
        )
    for n, (a, b) in enumerate(zip(torch.outputs, jax.outputs, strict=True)):
        mine, other = torch.nodes[a].shape, jax.nodes[b].shape
        if mine != other:
            raise NotComparableError(
                f"{_output(torch, n)} has shape {mine} in PyTorch and {other} in JAX; "
                f"{_remedy(torch, jax, a, b)}"
            )


def _arrays(trace: Trace) -> str:
    count = len(trace.outputs)
    names = ", ".join(label or "output" for label in trace.labels[:4])
    more = ", ..." if count > 4 else ""
    return f"{count} array{'s' * (count > 1)} ({names}{more})"


def _output(trace: Trace, n: int) -> str:
    label = trace.labels[n]
    return label if label.startswith("output") or not label else f"output {label}"


def _remedy(torch: Trace, jax: Trace, a: int, b: int) -> str:
    """Return how to give two outputs the same shape."""
    mine, other = torch.nodes[a].shape, jax.nodes[b].shape
    if sorted(mine) == sorted(other):
        theirs, ours = torch.values([a]), jax.values([b])
        order = None
        if a in theirs and b in ours:
            order = _order(ours[b], theirs[a])
        if order is not None:
            return f"return it from JAX as .transpose({', '.join(map(str, order))})"
        return "return it with the axes in the same order"
    if math.prod(mine) == math.prod(other):
        return f"return it from JAX as .reshape{mine}"
    return "return the same part of the result, and give both the same inputs"


def _order(ours: NDArray[Any], theirs: NDArray[Any]) -> tuple[int, ...] | None:
    """Return the order of axes in which JAX's output is PyTorch's."""
    order = arrangement(ours, theirs, 1e-3)
    return order if order is not None and ours.transpose(order).shape == theirs.shape else None


def _check_inputs(torch: Trace, jax: Trace) -> None:
    """Check that an input which one side reads is not another one on the other side."""
    for trace, other in ((torch, jax), (jax, torch)):
        live = trace.ancestors(trace.outputs)
        candidates = [n for n in other.nodes if n.leaf and n.print is not None]
        twins = [other.nodes[i] for i in other.inputs]
        parameters = set(trace.parameters)
        for i in trace.inputs:
            node = trace.nodes[i]
            if i not in live or i in parameters or _known(node, candidates):
                continue
            same = [n for n in twins if n.shape == node.shape and n.is_float == node.is_float]
            if len(same) == 1 and len(_of_shape(trace, node)) == 1:
                raise NotComparableError(
                    f"the two sides have different inputs: {trace.side}'s {node.name} and "
                    f"{other.side}'s {same[0].name}, both of shape {node.shape}, hold different "
                    "values; give both the same"
                )


def _of_shape(trace: Trace, node: Node) -> list[int]:
    return [
        i
        for i in trace.inputs
        if trace.nodes[i].shape == node.shape and trace.nodes[i].is_float == node.is_float
    ]


def _known(node: Node, candidates: Sequence[Node]) -> bool:
    """Return True if the other side has the values of an input, or if they prove nothing."""
    if node.print is None or not node.print.telling:
        return True
    return any(n.print is not None and close(node.print, n.print, _TOLERANCE) for n in candidates)


def first_not_finite(side: Side) -> Node | None:
    """Return the first operation that makes NaN from operands without it, or None."""
    for i in sorted(side.live):
        node = side.node(i)
        if node.print is None or not node.print.nan:
            continue
        operands = [side.node(j).print for j in node.inputs]
        if not any(p is not None and p.nan for p in operands):
            return node
    return None


def has_nan(trace: Trace) -> bool:
    """Return True if an output contains NaN."""
    values = trace.values(trace.outputs)
    return any(bool(fingerprint(np.asarray(x)).nan) for x in values.values())
