"""A change of a JAX program, and the setting in which changes are tried."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.jax_graph import Equation, Graph


@dataclass(frozen=True)
class Loaded:
    """A parameter of PyTorch in a changed operation.

    Attributes:
        source: its PyTorch node.
        build: returns the changed operation from the original one and the parameter's value.
    """

    source: int
    build: Callable[[Equation, NDArray[Any]], Equation]


@dataclass(frozen=True)
class Change:
    """A change of a program.

    Attributes:
        kind: the kind, such as "literal".
        node: a node that is changed, from which the other layers' are found.
        words: the change, such as "1e-05 for 1e-06".
        equations: new operations, by their position in the graph.
        leaves: new values of leaves.
        loaded: the parameters of PyTorch that changed operations use, by position.
        place: the node whose line is to be changed, if it is not `node`.
    """

    kind: str
    node: int
    words: str
    equations: Mapping[int, Equation] = field(default_factory=dict)
    leaves: Mapping[int, Any] = field(default_factory=dict)
    loaded: Mapping[int, Loaded] = field(default_factory=dict)
    place: int | None = None

    @property
    def line(self) -> int:
        """The node whose line is to be changed."""
        return self.node if self.place is None else self.place

    def applied(self, graph: Graph) -> Graph:
        """Return the changed program."""
        return replace(graph.with_equations(self.equations), leaves={**graph.leaves, **self.leaves})


def wrapped(equation: Equation, call: Callable[..., Sequence[Any]], *more: int) -> Equation:
    """Return an operation that is computed by another function, with more operands."""
    return replace(equation, call=call, inputs=(*equation.inputs, *more))


def result_of(equation: Equation, change: Callable[..., Any], *more: int) -> Equation:
    """Return an operation whose first result is changed, perhaps by further operands."""
    count = len(equation.inputs)

    def call(*operands: Any) -> Sequence[Any]:
        first, *rest = equation.run(operands[:count])
        return [change(first, *operands[count:]), *rest]

    return wrapped(equation, call, *more)


def operand_of(equation: Equation, at: int, change: Callable[..., Any], *more: int) -> Equation:
    """Return an operation one of whose operands is changed, perhaps by further operands."""
    count = len(equation.inputs)

    def call(*operands: Any) -> Sequence[Any]:
        own, further = list(operands[:count]), operands[count:]
        own[at] = change(own[at], *further)
        return equation.run(own)

    return wrapped(equation, call, *more)


def number(x: float) -> str:
    """Return a number as a person would write it."""
    return str(int(x)) if float(x).is_integer() and abs(x) < 1e15 else f"{x:.10g}"


def as_number(x: Any) -> float | None:
    """Return a real scalar as a float, else None."""
    array = np.asarray(x)
    return float(array) if array.ndim == 0 and array.dtype.kind in "fiu" else None
