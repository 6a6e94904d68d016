"""Check that two traced programs can be compared: same inputs, same outputs, nothing random."""

import math
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from obscura_jax.parity.fingerprint import close
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
            f"the {trace.side} side draws random numbers{where} ({node.op}); {remedy}, set dropout "
            "to 0, or give both sides the same numbers as an input"
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
        _check_complex(torch, jax, n)


def _check_complex(torch: Trace, jax: Trace, n: int) -> None:
    kinds = [trace.nodes[trace.outputs[n]].dtype for trace in (torch, jax)]
    if ("complex" in kinds[0]) != ("complex" in kinds[1]):
        words = ["complex" if "complex" in kind else "real" for kind in kinds]
        raise NotComparableError(
            f"{_output(torch, n)} is {words[0]} in PyTorch and {words[1]} in JAX; return complex "
            "numbers from both, or their real parts"
        )


def _arrays(trace: Trace) -> str:
    count = len(trace.outputs)
    names = ", ".join(label or "output" for label in trace.labels[:4])
    more = ", ..." if count > 4 else ""
    return f"{count} array{'s' * (count > 1)} ({names}{more})"


def _output(trace: Trace, n: int) -> str:
    label = trace.labels[n]
    if not label:
        return "the output"
    return label if label.startswith("output") else f"output {label}"


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
    if len(torch.inputs) == len(jax.inputs) == 1:
        theirs_in, ours_in = torch.nodes[torch.inputs[0]], jax.nodes[jax.inputs[0]]
        if theirs_in.size != ours_in.size:
            return (
                f"give both the same input: PyTorch's {theirs_in.name} has shape "
                f"{theirs_in.shape}, and JAX's {ours_in.name} {ours_in.shape}"
            )
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
