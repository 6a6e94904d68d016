"""Measure by how much the outputs of a side change if one of its lines rounds to lower precision.

A comparison computes everything in float64, so that casts to lower precision change nothing. Here
the casts of one line round again, and those of all other lines do not.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.align import Side
from obscura_jax.parity.changes import result_of
from obscura_jax.parity.jax_graph import Equation, as_numpy
from obscura_jax.parity.jax_trace import JaxTrace
from obscura_jax.parity.program import JaxProgram, TorchProgram
from obscura_jax.parity.relation import apart
from obscura_jax.parity.torch_native import numpy_of
from obscura_jax.parity.torch_trace import Run
from obscura_jax.parity.trace import Trace

Program = TorchProgram | JaxProgram | Trace
Array = NDArray[Any]

_MOST = 4  # lines of a side that are measured
_LARGEST = 20_000_000  # parameters of a model whose lines are measured


def lowered_lines(side: Side, program: Program | None = None) -> tuple[str, ...]:
    """Return the lines that round to lower precision, those that change the outputs most first.

    Args:
        side: the side.
        program: the program; if it is missing or a recording, nothing is measured.
    """
    found: dict[str, list[int]] = {}
    for i in sorted(side.live):
        node = side.node(i)
        if node.lowered:
            found.setdefault(f"{node.lowered} at {node.source or node.op}", []).append(i)
    outputs_if = _measure(side.trace, program)
    rows = []
    for n, (words, nodes) in enumerate(found.items()):
        times = f" ({len(nodes)} times)" if len(nodes) > 1 else ""
        cost, effect = "", -1.0
        if outputs_if is not None and n < _MOST:
            effect = _largest(_outputs(side.trace), outputs_if(nodes))
            cost = f", which changes the outputs by {effect:.1e}"
        rows.append((-effect, n, words + times + cost))
    return tuple(words for *_, words in sorted(rows))


def _measure(
    trace: Trace, program: Program | None
) -> Callable[[Sequence[int]], list[Array]] | None:
    """Return a function from nodes that round to the outputs, or None if there is none."""
    if sum(trace.nodes[i].size for i in trace.parameters) > _LARGEST:
        return None
    if isinstance(trace, JaxTrace):
        return partial(_jax_outputs, trace)
    if isinstance(program, TorchProgram):
        return partial(_torch_outputs, program)
    return None


def _outputs(trace: Trace) -> list[Array]:
    values = trace.values(trace.outputs)
    return [values[i] for i in trace.outputs]


def _largest(before: Iterable[Array], after: Iterable[Array]) -> float:
    return max(apart(x, y) for x, y in zip(before, after, strict=True))


def _jax_outputs(trace: JaxTrace, nodes: Sequence[int]) -> list[Array]:
    graph = trace.graph
    rounding = {
        p: result_of(equation, partial(_rounded, equation))
        for p, equation in enumerate(graph.equations)
        if equation.outputs[0] in nodes
    }
    found = dict(graph.with_equations(rounding).evaluate(trace.outputs, trace.given))
    arrays = [as_numpy(found[i]) for i in trace.outputs]
    return [x for x in arrays if x is not None]


def _rounded(equation: Equation, x: Array) -> Array:
    """Return the result of a cast, rounded as the program asks for."""
    params = equation.params
    if equation.op == "reduce_precision":
        with jax.enable_x64(True):
            bits = params["exponent_bits"], params["mantissa_bits"]
            return np.asarray(jax.lax.reduce_precision(jnp.asarray(x), *bits))
    with np.errstate(over="ignore"):
        return x.astype(params["new_dtype"]).astype(x.dtype)


class _RoundingRun(Run):
    """A run in which the results of some nodes are rounded.

    Attributes:
        results: the outputs.
    """

    def __init__(self, program: TorchProgram, nodes: Iterable[int]) -> None:
        super().__init__(program, frozenset())
        self._rounding = frozenset(nodes)
        self.results: list[Array] = []

    def computed(self, result: Any, lowered: str) -> Any:
        """Return the result of an operation, rounded if it is one of those nodes."""
        import torch

        if len(self.nodes) not in self._rounding:
            return result
        return result.to(getattr(torch, lowered)).to(result.dtype)

    def finish(self, results: list[Any]) -> None:
        """Keep the outputs."""
        self.results = [numpy_of(self.lift(x)) for x in results]


def _torch_outputs(program: TorchProgram, nodes: Sequence[int]) -> list[Array]:
    run = _RoundingRun(program, nodes)
    run()
    return run.results
