"""Changes of numbers: an epsilon, a base, a divisor, an exponent."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from obscura_jax.parity.changes import Change, as_number, number
from obscura_jax.parity.setting import Setting

_EPSILONS = (1e-5, 1e-6, 1e-12, 1e-8, 1e-7, 1e-3, 1e-4, 0.0)
_BASES = (10000.0, 500000.0, 1000000.0)


def changes(setting: Setting) -> Iterator[Change]:
    """Yield changes of the literals and exponents in and before the region."""
    for positions in (setting.region, setting.nearby):
        for p, equation in setting.equations(positions):
            for i in equation.inputs:
                yield from _literals(setting, p, i)
            if equation.op == "integer_pow":
                yield from _exponents(setting, p)


def _literals(setting: Setting, position: int, leaf: int) -> Iterator[Change]:
    node = setting.node(leaf)
    if not node.leaf or node.shape or leaf not in setting.graph.leaves:
        return
    old = as_number(setting.graph.leaves[leaf])
    if old is None or not np.isfinite(old):
        return
    if not node.is_float:
        yield from _integers(setting, position, leaf, int(old))
        return
    sizes = _sizes(setting, position)
    new = list(setting.torch_numbers)
    if old in sizes and old > 1:
        new += [old - 1, old + 1]
    if old + 1 in sizes:
        new.append(old + 1)
    if 0 <= old < 1e-2:
        new += _EPSILONS
    if old >= 100:
        new += _BASES
    for x in dict.fromkeys(new):
        if x != old and np.isfinite(x):
            yield _literal(setting, position, leaf, old, x)


def _integers(setting: Setting, position: int, leaf: int, old: int) -> Iterator[Change]:
    """Yield the neighbors of an integer that is added, such as the offset of a mask."""
    equation = setting.graph.equations[position]
    if equation.op not in ("add", "sub"):
        return
    dtype = np.asarray(setting.graph.leaves[leaf]).dtype
    for new in (old - 1, old + 1, 0):
        if new != old:
            words = f"{new} for {old}"
            yield Change("mask", equation.outputs[0], words, leaves={leaf: dtype.type(new)})


def _literal(setting: Setting, position: int, leaf: int, old: float, new: float) -> Change:
    result = setting.graph.equations[position].outputs[0]
    variance = abs(new - old) == 1 and old > 1
    words = f"{number(new)} for {number(old)}"
    kind = "variance" if variance else "literal"
    return Change(kind, result, words, leaves={leaf: np.float64(new)})


def _sizes(setting: Setting, position: int) -> set[float]:
    """Return the sizes of the axes of the values that lead to an operation."""
    found: set[float] = set()
    stack = [(i, 4) for i in setting.graph.equations[position].inputs]
    while stack:
        i, depth = stack.pop()
        node = setting.node(i)
        found.update(float(n) for n in node.shape)
        found.add(float(node.size))
        if depth:
            stack += [(j, depth - 1) for j in node.inputs]
    return found


def _exponents(setting: Setting, position: int) -> Iterator[Change]:
    equation = setting.graph.equations[position]
    old = equation.params["y"]
    for new in (1, 2, 3, 4):
        if new != old:
            changed = replace(equation, params={**equation.params, "y": new})
            words = f"the power {new} for {old}"
            yield Change("literal", equation.outputs[0], words, {position: changed})
