"""Find values of the JAX program in whose place PyTorch's make both sides equal.

Where two programs part, several operations may follow before both hold the same quantity again. An
anchor is a pair of such values: with PyTorch's in the place of JAX's, what comes after is equal.
An anchor shows where the programs part, even if one of them lacks an operation there.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.align import Side
from obscura_jax.parity.changes import Change, operand_of, result_of, wrapped
from obscura_jax.parity.fingerprint import Fingerprints, fingerprint
from obscura_jax.parity.gates import gates
from obscura_jax.parity.jax_graph import Equation
from obscura_jax.parity.relation import OUTPUT, apart, arrangement, arrangements, correlation
from obscura_jax.parity.setting import Setting
from obscura_jax.parity.window import Window

_NEAR = 8  # values after a pair that may be anchors
_EXTRA = 4  # values after a pair that PyTorch may lack
_DEPENDENT = 8  # values after an anchor that are looked at
# The share of them that must be equal. Each side may have intermediate values of its own. Without
# a superfluous operation everything is equal, but few values may be so by chance.
_SHARE, _MORE = 0.25, 0.75
_LAST = 3  # that both sides compute the same again at the end is enough
_ORDERS = 3  # orders of the axes that are tried for one pair of values
_HUGE = 1e30


@dataclass(frozen=True, eq=False)
class Anchor:
    """A value of each side that stand for the same quantity.

    Attributes:
        torch: node of the PyTorch side.
        jax: node of the JAX side; if `lacking`, the operand on which it lacks an operation.
        goal: PyTorch's value, arranged as JAX's.
        order: the order of the axes that arranges it.
        lacking: whether JAX lacks the operations that compute the value from the operand.
        superfluous: whether PyTorch lacks the operations that compute JAX's value from `goal`.
        injection: the change that puts `goal` in the place of JAX's value.
        operand: if `superfluous`, the JAX node whose value is `goal`.
        uses: if `lacking`, the positions of the operations that use the operand.
    """

    torch: int
    jax: int
    goal: NDArray[Any]
    order: tuple[int, ...]
    lacking: bool
    superfluous: bool
    injection: Change
    operand: int | None = None
    uses: tuple[int, ...] = ()

    def met(self, value: NDArray[Any], tolerance: float) -> bool:
        """Return True if a value of JAX is PyTorch's; huge entries count as infinite."""
        if value.shape != self.goal.shape:
            return False
        huge = np.abs(self.goal) >= _HUGE
        if not np.array_equal(huge, np.abs(value) >= _HUGE):
            return False
        return apart(self.goal[~huge], value[~huge]) <= OUTPUT * tolerance


def _goals(torch: Side, start: int, tolerance: float) -> Fingerprints:
    """Return the values that PyTorch computes after a pair, and that JAX has nowhere."""
    after, found = {start}, Fingerprints(tolerance)
    for i in sorted(torch.live):
        node = torch.node(i)
        if i != start and after.isdisjoint(node.inputs):
            continue
        after.add(i)
        if node.print is not None and node.print.telling and i not in torch.matched:
            found.add(node.print)
    return found


def anchors(setting: Setting) -> Iterator[Anchor]:
    """Yield the anchors after the pair of a setting, the nearest first."""
    torch = setting.torch
    goals = _goals(torch, setting.pair.torch, setting.alignment.tolerance)
    mine = gates(torch, setting.pair.torch, _NEAR)
    theirs = torch.trace.values(mine)
    places = _places(setting)
    ours = setting.trace.values(places)
    found = sorted(
        (k + n, k, i, j)
        for k, i in enumerate(mine)
        for n, j in enumerate(places)
        if i in theirs and j in ours and theirs[i].size == ours[j].size
    )
    yield from _superfluous(setting, goals)
    windows: dict[int, Window] = {}
    known = _known_orders(setting)
    for _, _, i, j in found:
        window = windows.get(j) or windows.setdefault(j, Window(setting, _after(setting, j)))
        for order, goal, uses in _injections(setting, j, _orders(theirs[i], ours[j], known)):
            injection = _injected(setting, j, goal, uses)
            if injection is not None and _reaches(setting, window, injection, goals, _SHARE):
                yield Anchor(i, j, goal, order, bool(uses), False, injection, uses=uses)
                break


def _injections(
    setting: Setting, index: int, orders: Iterable[tuple[tuple[int, ...], NDArray[Any]]]
) -> Iterator[tuple[tuple[int, ...], NDArray[Any], tuple[int, ...]]]:
    """Yield each arrangement with the operations that are to use it; none for all of them."""
    lacking = index not in setting.ends and index != setting.pair.jax
    for order, goal in orders:
        for uses in _uses(setting, index) if lacking else ((),):
            yield order, goal, uses


def _uses(setting: Setting, index: int) -> list[tuple[int, ...]]:
    """Return the operations that use a value and whose results differ: all, and those near."""
    made = setting.position
    consumers = (i for i in setting.consumers.get(index, ()) if i in setting.jax.live)
    differ = sorted({made[i] for i in consumers if i not in setting.jax.matched})
    near = [p for p in differ if p in setting.region]
    return list(dict.fromkeys(tuple(uses) for uses in (differ, near) if uses))


def at_the_pair(setting: Setting) -> tuple[Anchor, ...]:
    """Return the operations of the pair themselves as anchors, in the likely orders of axes."""
    i, j = setting.pair.torch, setting.pair.jax
    theirs, ours = setting.torch.trace.values([i]), setting.trace.values([j])
    if i not in theirs or j not in ours or theirs[i].size != ours[j].size:
        return ()
    if not setting.node(j).is_float:
        return ()
    found = []
    known = _known_orders(setting)
    for order, goal in _orders(theirs[i], ours[j], known):
        if known and order not in known:
            continue
        injection = _injected(setting, j, goal, ())
        if injection is not None:
            found.append(Anchor(i, j, goal, order, False, False, injection))
    return tuple(found)


def _superfluous(setting: Setting, goals: Fingerprints) -> Iterator[Anchor]:
    """Yield an anchor if the programs are equal without some operations of JAX."""
    for j in dict.fromkeys([setting.pair.jax, *setting.ends[:_EXTRA]]):
        node = setting.node(j)
        p = setting.position.get(j)
        if p is None or node.layout or setting.graph.equations[p].outputs[0] != j:
            continue
        window: Window | None = None
        for i in _operands(setting):
            twin = setting.twin(i)
            if setting.node(i).shape != node.shape or not setting.available(i, p) or twin is None:
                continue
            equation = wrapped(setting.graph.equations[p], lambda *all_: [all_[-1]], i)
            words = f"leaving out {node.op}" + (f" of {node.fused}" if node.fused else "")
            change = Change("extra", j, words, {p: equation})
            window = window or Window(setting, _after(setting, j))
            if _reaches(setting, window, change, goals, _MORE):
                yield Anchor(twin, j, setting.value(i), (), False, True, change, i)
                return


def _operands(setting: Setting) -> list[int]:
    """Return the matched values that the region uses, those nearest to the pair first."""
    operands = {
        i: None
        for _, equation in setting.equations(setting.region)
        for i in equation.inputs
        if i not in setting.made and setting.node(i).is_float and setting.node(i).size > 1
    }
    return [i for i in operands if not setting.node(i).leaf]


def _places(setting: Setting) -> list[int]:
    """Return JAX values that may be anchors: after the pair, and operands before it."""
    after = list(dict.fromkeys([setting.pair.jax, *setting.ends[:_NEAR]]))
    return [after[0], *_operands(setting)[:_NEAR], *after[1:]]


def _known_orders(setting: Setting) -> set[tuple[int, ...]]:
    """Return the orders of axes that arrange PyTorch's operands of the pair as JAX's."""
    torch, jax = setting.torch, setting.jax
    shared = torch.operand_classes(setting.pair.torch) & jax.operand_classes(setting.pair.jax)
    shared -= {torch.classes[i] for i in torch.trace.parameters if i in torch.classes}
    mine, other = (
        [
            i
            for i in (*side.node(place).inputs, *side.operands(place))
            if side.classes.get(i) in shared
        ]
        for side, place in ((torch, setting.pair.torch), (jax, setting.pair.jax))
    )
    theirs, ours = torch.trace.values(mine), setting.trace.values(other)
    return {
        order
        for i, x in theirs.items()
        for j, y in ours.items()
        if torch.classes[i] == jax.classes[j] and x.size == y.size
        if (order := arrangement(x, y)) is not None
    }


def _orders(
    theirs: NDArray[Any], ours: NDArray[Any], known: set[tuple[int, ...]]
) -> list[tuple[tuple[int, ...], Any]]:
    """Return the most likely arrangements of PyTorch's value, without repetitions."""
    found: list[tuple[float, tuple[int, ...], Any]] = []
    seen: list[Any] = []
    for order, x in arrangements(theirs, ours.shape):
        if any(np.array_equal(x, y, equal_nan=True) for y in seen):
            continue
        seen.append(x)
        found.append((correlation(x, ours) + (order in known), order, x))
    found.sort(key=lambda entry: -entry[0])
    return [(order, x) for _, order, x in found[:_ORDERS]]


def _after(setting: Setting, index: int) -> list[int]:
    """Return the next values that depend on one, without those that only move it."""
    found: list[int] = []
    seen, heap = {index}, [index]
    while heap and len(found) < _DEPENDENT:
        i = heappop(heap)
        node = setting.node(i)
        telling = not node.layout and node.print is not None and node.print.telling
        if (i != index and telling) or i in setting.trace.outputs:
            found.append(i)
        for j in setting.consumers.get(i, ()):
            if j not in seen and j in setting.jax.live:
                seen.add(j)
                heappush(heap, j)
    return found


def _injected(
    setting: Setting, index: int, goal: NDArray[Any], uses: tuple[int, ...]
) -> Change | None:
    """Return the change that puts a value in the place of another one, or only for some uses."""
    equations = setting.graph.equations
    if uses:
        changed: dict[int, Equation] = {}
        for p in uses:
            for at, i in enumerate(equations[p].inputs):
                if i == index:
                    changed[p] = operand_of(changed.get(p, equations[p]), at, lambda x: goal)
        return Change("injection", index, "", changed)
    p = setting.position.get(index, -1)
    if p < 0 or equations[p].outputs[0] != index:
        return None
    return Change("injection", index, "", {p: result_of(equations[p], lambda x: goal)})


def _reaches(
    setting: Setting, window: Window, change: Change, goals: Fingerprints, share: float
) -> bool:
    """Return True if an output, the last or a share of the values after a change are PyTorch's."""
    values = window.values(change)
    if any(i in values and setting.is_output(i, values[i]) for i in setting.trace.outputs):
        return True
    prints = [fingerprint(values[i]) for i in window.ends if i in values]
    telling = [p for p in prints if p.telling]
    equal = [goals.find(p) is not None for p in telling]
    ends = equal[-_LAST:]
    return bool(equal) and (sum(equal) >= share * len(equal) or (len(ends) > 1 and all(ends)))
