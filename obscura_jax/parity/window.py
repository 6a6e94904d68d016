"""Evaluate the part of a JAX program that a change alters."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.changes import Change
from obscura_jax.parity.jax_graph import as_numpy, in_float64
from obscura_jax.parity.setting import Setting


class Window:
    """The operations from the earliest possible change to some later values.

    A change is evaluated without the rest of the program, so that many can be tried.
    """

    def __init__(self, setting: Setting, ends: Iterable[int]) -> None:
        self._setting, self.ends = setting, list(ends)
        equations = setting.graph.equations
        needed = set(self.ends)
        positions = []
        first = min([*setting.region, *setting.nearby], default=0)
        last = max((setting.position.get(i, -1) for i in self.ends), default=-1)
        for p in range(last, first - 1, -1):
            if not needed.isdisjoint(equations[p].outputs):
                needed.update(equations[p].inputs)
                positions.append(p)
        self._positions = positions[::-1]
        given = setting.trace.given
        inner = (i for i in needed if not setting.node(i).leaf or i in given)
        self._known = setting.trace.values(inner)

    def values(self, change: Change) -> dict[int, NDArray[Any]]:
        """Return the ends that a change alters; none if it does not fit, or after much effort."""
        try:
            found = self._values(change)
        except (TypeError, ValueError, IndexError, KeyError, NotImplementedError):
            return {}
        arrays = {i: as_numpy(found[i]) for i in self.ends if i in found}
        return {i: x for i, x in arrays.items() if x is not None}

    def _values(self, change: Change) -> dict[int, Any]:
        values: dict[int, Any] = {}
        given, effort = self._setting.trace.given, self._setting.effort

        def value(i: int) -> Any:
            if i in values:
                return values[i]
            if i in change.leaves:
                return in_float64(change.leaves[i])
            if i not in self._known:
                self._known |= self._setting.trace.values([i])
            return self._known[i]

        changed = set(change.leaves)
        with np.errstate(all="ignore"):
            for p in self._positions:
                equation = change.equations.get(p, self._setting.graph.equations[p])
                if p not in change.equations and changed.isdisjoint(equation.inputs):
                    continue
                operands = [value(i) for i in equation.inputs]
                if not effort.spend(sum(np.size(x) for x in operands)):
                    return {}
                results: Sequence[Any] = equation.run(operands)
                for i, result in zip(equation.outputs, results, strict=True):
                    if i in given:
                        continue
                    if np.shape(result) != self._setting.node(i).shape:
                        raise ValueError("another shape")
                    values[i] = result
                    changed.add(i)
        return values
