"""Find a small change of the JAX program that makes both sides equal where they part.

Every change that the files `changes_*.py` propose is made in the graph, and the operations up to
the next anchors are evaluated. The mend is the first change after which JAX's value is PyTorch's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from obscura_jax.parity import (
    changes_functions,
    changes_layout,
    changes_numbers,
    changes_operands,
    changes_parameters,
    changes_reach,
)
from obscura_jax.parity.anchors import Anchor, at_the_pair
from obscura_jax.parity.changes import Change, Loaded
from obscura_jax.parity.jax_graph import Equation, Graph
from obscura_jax.parity.parallel import parallel, same_line
from obscura_jax.parity.setting import Setting
from obscura_jax.parity.window import Window

_MOST = 2000  # changes that are tried for one place
_FIRST = 2  # anchors that are tried before more distant ones
_KINDS = (
    changes_numbers,
    changes_parameters,
    changes_operands,
    changes_functions,
    changes_layout,
)


@dataclass(frozen=True)
class Repair:
    """A mend that has been found.

    Attributes:
        graph: the changed program.
        anchor: where PyTorch's value is met.
        change: the change.
        occurrences: number of places that were changed.
    """

    graph: Graph
    anchor: Anchor
    change: Change
    occurrences: int


def find_mend(setting: Setting, anchors: tuple[Anchor, ...]) -> Repair | None:
    """Return a change that makes the sides equal at one of the anchors, or None."""
    found = None
    for several in dict.fromkeys((anchors[:_FIRST], anchors)):
        setting = setting.toward(anchor.jax for anchor in several)
        found = next(_met(setting, several), None)
        if found is not None:
            break
    else:  # other operations may be wrong too, so that nothing after it is equal
        found = next(_met(setting, at_the_pair(setting), reach=False), None)
    if found is None:
        return None
    change, wide, anchor = found
    graph, count = _everywhere(setting, change, wide)
    return Repair(graph, anchor, change, count)


Met = tuple[Change, Change, Anchor]


def _met(setting: Setting, anchors: Sequence[Anchor], reach: bool = True) -> Iterator[Met]:
    """Yield changes, also at all nodes of their line, with the anchor that they reach.

    Args:
        setting: the setting.
        anchors: the anchors.
        reach: whether a change may be made up of how the values at an anchor relate.
    """
    for anchor in anchors[:1]:
        if anchor.superfluous:
            yield anchor.injection, anchor.injection, anchor
        if anchor.lacking:
            simple = (c for c in changes_reach.changes(setting, anchor) if c.kind != "norm")
            yield from ((change, change, anchor) for change in simple)
    tolerance = setting.alignment.tolerance
    after = [anchor for anchor in anchors if not anchor.lacking]
    if after:
        window = Window(setting, [anchor.jax for anchor in after])
        proposals = (change for kind in _KINDS for change in kind.changes(setting))
        for change in islice(proposals, _MOST):
            for wide in _wider(setting, change):
                values = window.values(wide)
                for anchor in after:
                    if anchor.jax in values and anchor.met(values[anchor.jax], tolerance):
                        yield change, wide, anchor
    for anchor in anchors if reach else ():
        yield from ((c, c, anchor) for c in changes_reach.changes(setting, anchor))


def _wider(setting: Setting, change: Change) -> Iterator[Change]:
    """Yield a change at every node of its line in the region, such as queries and keys; and it."""
    same = [i for i in _elsewhere(setting, change) if i in setting.inside]
    moved = [other for i in same if (other := _moved(setting, change, i)) is not None]
    if moved:
        yield _together(change, *moved)
    yield change


def _elsewhere(setting: Setting, change: Change) -> list[int]:
    """Return the nodes at which the same change can be made: those of the same line."""
    made = {i for equation in change.equations.values() for i in equation.outputs}
    lines = same_line(setting.trace, change.node)
    at, several = lines.index(change.node), max(1, len(made.intersection(lines)))
    return [i for n, i in enumerate(lines) if n != at and (n - at) % several == 0]


def _together(change: Change, *others: Change) -> Change:
    """Return one change that makes several."""
    equations, leaves = dict(change.equations), dict(change.leaves)
    for other in others:
        equations |= {p: e for p, e in other.equations.items() if p not in equations}
        leaves |= {i: x for i, x in other.leaves.items() if i not in leaves}
    return replace(change, equations=equations, leaves=leaves)


def _everywhere(setting: Setting, change: Change, wide: Change) -> tuple[Graph, int]:
    """Make a change in all layers, unless an earlier layer is equal without it."""
    lines, others = same_line(setting.trace, change.node), _elsewhere(setting, change)
    if any(i < change.node for i in others):
        return wide.applied(setting.graph), 1
    moved = []
    for i in others:
        other = _moved(setting, change, i, (lines.index(i), len(lines)))
        if other is not None and _fits(setting, other):
            moved.append(other)
    return _together(wide, *moved).applied(setting.graph), 1 + len(moved)


def _fits(setting: Setting, change: Change) -> bool:
    """Return True if changed operations accept their operands and keep the shape of results."""
    for equation in change.equations.values():
        known = setting.trace.values(equation.inputs)
        try:
            results = equation.run([known[i] for i in equation.inputs])
        except (TypeError, ValueError, IndexError, KeyError, NotImplementedError):
            return False
        shapes = [setting.node(i).shape for i in equation.outputs]
        if [np.shape(result) for result in results] != shapes:
            return False
    return True


def _moved(
    setting: Setting, change: Change, node: int, layer: tuple[int, int] | None = None
) -> Change | None:
    """Return a change in another layer, where `node` is the one to be changed.

    Args:
        setting: the setting.
        change: the change.
        node: the node of the same line in the other layer.
        layer: which of how many nodes of that line it is; needed for PyTorch's parameters.
    """
    other_layer = parallel(setting.trace, change.node, node)
    equations: dict[int, Equation] = {}
    for p, equation in change.equations.items():
        own = setting.graph.equations[p]
        result = other_layer(own.outputs[0])
        inputs = [other_layer(i) for i in equation.inputs]
        if result is None or None in inputs or result not in setting.position:
            return None
        q = setting.position[result]
        there = setting.graph.equations[q]
        if there.op != own.op or len(there.outputs) != len(own.outputs) or q in equations:
            return None
        if p in change.loaded:
            changed = _loaded(setting, change.loaded[p], there, layer)
            if changed is None:
                return None
            equations[q] = changed
        else:
            given = tuple(i for i in inputs if i is not None)
            equations[q] = replace(equation, inputs=given, outputs=there.outputs)
    leaves: dict[int, Any] = {}
    for leaf, value in change.leaves.items():
        other = other_layer(leaf)
        graph = setting.graph
        if other is None or not np.array_equal(graph.leaves[leaf], graph.leaves[other]):
            return None
        leaves[other] = value
    return Change(change.kind, node, change.words, equations, leaves)


def _loaded(
    setting: Setting, loaded: Loaded, there: Equation, layer: tuple[int, int] | None
) -> Equation | None:
    """Return an operation that uses the PyTorch parameter of another layer."""
    torch = setting.torch.trace
    users = [i for i in setting.torch_region if loaded.source in setting.torch.operands(i)]
    if layer is None or not users:
        return None
    place, count = layer
    lines = same_line(torch, users[0])
    elsewhere = lines[place * len(lines) // count]
    source = parallel(torch, users[0], elsewhere)(loaded.source)
    if source is None or torch.nodes[source].shape != torch.nodes[loaded.source].shape:
        return None
    return loaded.build(there, torch.values([source])[source])
