"""Find a small change of the JAX program that makes both sides equal where they part.

Every change that the files `changes_*.py` propose is made in the graph, and the operations after it
are evaluated. A change is accepted if values that only PyTorch had are then computed on the JAX
side too; of several, the one after which the programs stay equal for longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np

from obscura_jax.parity import changes_functions, changes_layout, changes_numbers, changes_operands
from obscura_jax.parity.align import Alignment, Pair, Side
from obscura_jax.parity.changes import Change, Setting
from obscura_jax.parity.findings import Mend
from obscura_jax.parity.fingerprint import Fingerprint, close, fingerprint
from obscura_jax.parity.gates import gates
from obscura_jax.parity.jax_graph import Graph, as_numpy, in_float64
from obscura_jax.parity.jax_trace import JaxTrace

_MOST = 2000  # changes that are tried for one place
_NEAR, _FAR = 3, 8  # values after the place that are looked at, at first and in the end
_KINDS = (changes_numbers, changes_operands, changes_functions, changes_layout)


@dataclass(frozen=True)
class Repair:
    """A mend that has been found.

    Attributes:
        mend: the change, in words.
        graph: the changed program.
        pair: the operations at which the programs part.
        place: the JAX node whose line is to be changed.
        occurrences: number of places that were changed.
    """

    mend: Mend
    graph: Graph
    pair: Pair
    place: int
    occurrences: int


def find_mend(alignment: Alignment, pair: Pair, trace: JaxTrace) -> Repair | None:
    """Return a change that makes the sides equal after a pair, or None if none is known."""
    setting = Setting.around(alignment, pair, trace, gates(alignment.jax, pair.jax))
    goals = _goals(alignment.torch, pair.torch)
    if not goals or not setting.ends:
        return None
    near, far = (_Trial(setting, goals, alignment.tolerance, n) for n in (_NEAR, _FAR))
    best: tuple[int, Change] | None = None
    proposals = chain.from_iterable(kind.changes(setting) for kind in _KINDS)
    for change in islice(proposals, _MOST):
        if not near.reach(change):
            continue
        reach = far.reach(change)
        if reach and (best is None or reach > best[0]):
            best = reach, change
        if best is not None and best[0] == far.longest:
            break
    if best is None or best[0] < min(2, far.longest):
        return None
    change = best[1]
    graph, count = _everywhere(setting, change)
    mend = Mend(change.kind, setting.jax.node(change.node).source, change.words)
    return Repair(mend, graph, pair, change.node, count)


def _goals(torch: Side, start: int) -> list[Fingerprint]:
    """Return what a mended program computes: values after the pair that only PyTorch has."""
    found = [torch.node(i).print for i in gates(torch, start, 2 * _FAR)]
    return [p for p in found if p is not None and p.telling]


class _Trial:
    """Evaluates the operations from a change to some ends, and looks for PyTorch's values.

    Attributes:
        longest: the number of ends.
    """

    def __init__(
        self, setting: Setting, goals: Sequence[Fingerprint], tolerance: float, ends: int
    ) -> None:
        self._setting, self._goals, self._tolerance = setting, goals, tolerance
        self._ends = setting.ends[:ends]
        self.longest = len(self._ends)
        equations = setting.graph.equations
        needed = set(self._ends)
        window = []
        first = min([*setting.region, *setting.nearby], default=0)
        last = max(setting.position.get(i, -1) for i in self._ends)
        for p in range(last, first - 1, -1):
            if not needed.isdisjoint(equations[p].outputs):
                needed.update(equations[p].inputs)
                window.append(p)
        self._window = window[::-1]
        self._known = setting.trace.values(
            i for i in needed if not setting.node(i).leaf or i in setting.trace.given
        )

    def reach(self, change: Change) -> int:
        """Return the number of the last end that is equal in the changed program; 0 if none is."""
        try:
            values = self._values(change)
        except (TypeError, ValueError, IndexError, KeyError, NotImplementedError):
            return 0  # the change does not fit the shapes
        for n, i in reversed(list(enumerate(self._ends, 1))):
            array = as_numpy(values[i]) if i in values else None
            if array is None:
                continue
            print_ = fingerprint(array)
            if print_.telling and any(close(g, print_, self._tolerance) for g in self._goals):
                return n
        return 0

    def _values(self, change: Change) -> dict[int, Any]:
        """Return the values of what the change alters."""
        values: dict[int, Any] = {}
        given = self._setting.trace.given
        leaves = {**self._setting.graph.leaves, **change.leaves}

        def value(i: int) -> Any:
            if i in values:
                return values[i]
            if i in change.leaves or i not in self._known:
                return in_float64(leaves[i])
            return self._known[i]

        changed = set(change.leaves)
        with np.errstate(all="ignore"):
            for p in self._window:
                equation = change.equations.get(p, self._setting.graph.equations[p])
                own = p in change.equations
                if not own and changed.isdisjoint(equation.inputs):
                    continue
                results = equation.run([value(i) for i in equation.inputs])
                for i, result in zip(equation.outputs, results, strict=True):
                    if i in given:
                        continue
                    if np.shape(result) != self._setting.node(i).shape:
                        raise ValueError("another shape")
                    values[i] = result
                    changed.add(i)
        return values


def _everywhere(setting: Setting, change: Change) -> tuple[Graph, int]:
    """Make a change in all layers, unless an earlier layer is equal without it."""
    graph = change.applied(setting.graph)
    others = [node for node in setting.same_line(change.node) if node != change.node]
    if change.again is None or any(node < change.node for node in others):
        return graph, 1
    count = 1
    for node in others:
        other = change.again(node)
        if other is not None:
            graph, count = other.applied(graph), count + 1
    return graph, count
