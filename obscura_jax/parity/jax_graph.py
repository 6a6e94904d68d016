"""A JAX program as a flat list of operations that can be changed, and evaluated in float64."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity import numpy_kernels
from obscura_jax.parity.jax_lift import bind_lifted, is_plain, lifted, lifted_type
from obscura_jax.parity.trace import Node


@dataclass(frozen=True)
class Equation:
    """One application of a primitive.

    Attributes:
        op: its name.
        params: its parameters.
        inputs: nodes of its operands.
        outputs: nodes of its results.
        primitive: the primitive, or None for the operations "scan_slice" and "scan_stack".
        call: computes the results from the operands in float64; default: the primitive.
    """

    op: str
    params: Mapping[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    primitive: Any = None
    call: Callable[..., Sequence[Any]] | None = None

    @property
    def changed(self) -> bool:
        """True if another function than the primitive computes the results."""
        return self.call is not None and self.primitive is not None

    def run(self, operands: Sequence[Any]) -> Sequence[Any]:
        """Return the results, in float64 where they are floats: arrays of NumPy, or random keys."""
        if self.call is not None:
            return self.call(*operands)
        known = numpy_kernels.apply(self.op, self.params, operands)
        if known is not None:
            return known
        with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
            results = bind_lifted(self.primitive, self.params, [lifted(x) for x in operands])
            return [np.asarray(x) if is_plain(x.dtype) else x for x in results]


@dataclass(frozen=True)
class Graph:
    """A program as a list of operations.

    Attributes:
        nodes: a description of every value.
        equations: the operations, in order.
        leaves: the value of each leaf, by node, in its own precision.
        outputs: the nodes that the program returns.
        inputs: the nodes that are its inputs.
        random: the nodes that draw random numbers.
        captured: the nodes of the arrays that the function captures.
    """

    nodes: list[Node]
    equations: list[Equation]
    leaves: dict[int, Any]
    outputs: list[int]
    inputs: list[int]
    random: list[int] = field(default_factory=list)
    captured: list[int] = field(default_factory=list)

    def evaluate(
        self, wanted: Iterable[int], given: Mapping[int, Any] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Yield nodes with their values in float64, in order; each value is kept while needed.

        Args:
            wanted: the nodes.
            given: values that stand in for those of nodes.
        """
        wanted, given = set(wanted), given or {}
        needed = self._needed(wanted, given)
        last = {i: n for n, equation in enumerate(needed) for i in equation.inputs}
        values: dict[int, Any] = {}

        def value(i: int) -> Any:
            if i not in values:
                values[i] = in_float64(given[i] if i in given else self.leaves[i])
            return values[i]

        for i in sorted(i for i in wanted if i in given or i in self.leaves):
            yield i, value(i)
            if i not in last:
                del values[i]
        for n, equation in enumerate(needed):
            results = equation.run([value(i) for i in equation.inputs])
            for i, result in zip(equation.outputs, results, strict=True):
                if i in given:
                    continue
                if np.shape(result) != self.nodes[i].shape:
                    raise ValueError(f"the changed operation {equation.op} has another shape")
                if i in wanted:
                    yield i, result
                if last.get(i, -1) > n:
                    values[i] = result
            for i in equation.inputs:
                if last[i] == n:
                    values.pop(i, None)

    def _needed(self, wanted: Iterable[int], given: Mapping[int, Any]) -> list[Equation]:
        """Return the operations that the wanted values depend on, in order."""
        needed, found = {i for i in wanted if i not in given}, []
        for equation in reversed(self.equations):
            if not needed.isdisjoint(equation.outputs):
                found.append(equation)
                needed.update(i for i in equation.inputs if i not in given)
        return found[::-1]

    def with_equations(self, changed: Mapping[int, Equation]) -> "Graph":
        """Return a copy in which the equations at some positions are replaced."""
        equations = [changed.get(n, equation) for n, equation in enumerate(self.equations)]
        return replace(self, equations=equations)


def in_float64(x: Any) -> Any:
    """Return a value as an array of NumPy in float64, complex128 or an integer type.

    Random keys are returned unchanged.
    """
    dtype = getattr(x, "dtype", None)
    if dtype is not None and not is_plain(dtype):
        return x
    array = np.asarray(x)
    return array.astype(lifted_type(array.dtype), copy=False)


def as_numpy(x: Any) -> NDArray[Any] | None:
    """Return a value as an array of reals or integers; None for random keys."""
    array = in_float64(x)
    if not isinstance(array, np.ndarray):
        return None
    if array.dtype.kind == "c":
        return np.stack([array.real, array.imag], -1)
    return array
