"""Find a small change of the JAX program that makes both sides equal where they part.

Every change that the files `changes_*.py` propose is made in the graph, and the operations after it
are evaluated. A change is accepted if values that only PyTorch had are then computed on the JAX
side too; of several, the one after which the programs stay equal for longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import jax

from obscura_jax.parity import changes_functions, changes_layout, changes_numbers, changes_operands
from obscura_jax.parity.align import Alignment, Pair, Side
from obscura_jax.parity.changes import Change, Setting
from obscura_jax.parity.findings import Mend
from obscura_jax.parity.fingerprint import Fingerprint, close, fingerprint
from obscura_jax.parity.gates import gates
from obscura_jax.parity.jax_graph import Graph, as_numpy
from obscura_jax.parity.jax_trace import JaxTrace

_MOST = 600  # changes that are tried for one place
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


def find_mend(alignment: Alignment, pair: Pair, jax_trace: JaxTrace) -> Repair | None:
    """Return a change that makes the sides equal after a pair, or None if none is known."""
    setting = _setting(alignment, pair, jax_trace)
    goals = _goals(alignment.torch, pair.torch)
    if not goals or not setting.ends:
        return None
    best: tuple[int, Change] | None = None
    proposals = chain.from_iterable(kind.changes(setting) for kind in _KINDS)
    for change in islice(proposals, _MOST):
        score = _score(setting, change, goals, alignment.tolerance)
        if score and (best is None or score > best[0]):
            best = score, change
            if score == len(goals):
                break
    if best is None:
        return None
    change = best[1]
    graph, count = _everywhere(setting, change)
    node = setting.jax.node(change.node)
    mend = Mend(change.kind, node.source, change.words)
    return Repair(mend, graph, pair, change.node, count)


def _goals(torch: Side, start: int) -> list[Fingerprint]:
    """Return what a mended program computes: values after the pair that only PyTorch has."""
    found = [torch.node(i).print for i in gates(torch, start)]
    return [p for p in found if p is not None and p.telling]


def _setting(alignment: Alignment, pair: Pair, trace: JaxTrace) -> Setting:
    """Return what the changes are made of."""
    return Setting.around(alignment, pair, trace, gates(alignment.jax, pair.jax))


def _score(setting: Setting, change: Change, goals: Sequence[Fingerprint], tolerance: float) -> int:
    """Return how many of the goals the changed program computes."""
    try:
        values = _evaluated(setting, change)
    except (TypeError, ValueError, IndexError, ZeroDivisionError, NotImplementedError):
        return 0  # the change does not fit the shapes
    prints = [fingerprint(x) for x in values if x is not None]
    telling = [p for p in prints if p.telling]
    return sum(any(close(goal, p, tolerance) for p in telling) for goal in goals)


def _evaluated(setting: Setting, change: Change) -> list[Any]:
    """Return the values at the ends of the region in the changed program."""
    graph = change.applied(setting.graph)
    changed = {i for p in change.equations for i in graph.equations[p].outputs}
    changed |= set(change.leaves)
    after = setting.after(changed, graph)
    operands = {
        i
        for equation in graph.equations
        if not after.isdisjoint(equation.outputs)
        for i in equation.inputs
    }
    ends = [i for i in setting.ends if i in after]
    if not ends:
        return []
    known = setting.values(operands - after)
    device = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True), jax.default_device(device):
        found = graph.evaluate(ends, known)
        return [as_numpy(found[i]) for i in ends]


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
