"""Changes that turn a value into a known one: a factor, a bias, a function that was left out."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.anchors import Anchor
from obscura_jax.parity.changes import Change, Setting, number, operand_of, result_of
from obscura_jax.parity.changes_functions import ACTIVATIONS, UNARY, normalizations
from obscura_jax.parity.changes_operands import name_of
from obscura_jax.parity.relation import apart, relation

_SAME = 3e-9
_OPERANDS = 12
_OPERATIONS: tuple[tuple[str, Callable[[Any, Any], Any]], ...] = (
    ("adding", np.add),
    ("multiplying by", np.multiply),
    ("subtracting", np.subtract),
    ("dividing by", np.divide),
    ("multiplying by 1 plus", lambda x, c: x * (1 + c)),
)


def changes(setting: Setting, anchor: Anchor) -> Iterator[Change]:
    """Yield changes after which JAX's value at an anchor is PyTorch's."""
    x = setting.value(anchor.jax)
    with np.errstate(all="ignore"):
        for kind, words, function, more in _functions(setting, anchor, x):
            change = _applied(setting, anchor, kind, words, function, more)
            if change is not None:
                yield change


Proposal = tuple[str, str, Callable[..., Any], tuple[int, ...]]


def _functions(setting: Setting, anchor: Anchor, x: NDArray[Any]) -> Iterator[Proposal]:
    """Yield functions of JAX's value, and of further values, that give PyTorch's value."""
    goal = anchor.goal
    found = relation(goal, x)
    if found is not None and found.factor is not None and found.factor != 1:
        factor = 1 / found.factor
        if factor == -1:
            yield "sign", "the other sign", np.negative, ()
        else:
            yield "scale", f"multiplying by {number(factor)}", lambda v: v * factor, ()
    elif found is not None and found.offset is not None:
        offset = -found.offset
        yield "offset", f"adding {number(offset)}", lambda v: v + offset, ()
    if not anchor.lacking:
        return
    for names, kind in ((ACTIVATIONS, "activation"), (UNARY, "unary")):
        for name, function in names.items():
            if name != "no activation" and _is(function(x), goal):
                yield kind, f"applying {name}", function, ()
    for c in _operands(setting, anchor):
        for shape in _shapes(x.shape, setting.node(c).shape):
            other = setting.value(c).reshape(shape)
            for verb, operation in _OPERATIONS:
                if _is(operation(x, other), goal):

                    def adjust(
                        v: Any, o: Any, operation: Any = operation, shape: Any = shape
                    ) -> Any:
                        return operation(v, o.reshape(shape))

                    yield "missing", f"{verb} {name_of(setting, c)}", adjust, (c,)
    for kind, name, norm in normalizations(setting, x.shape, ()):
        if _is(norm(x), goal):
            yield kind, f"applying {name}", norm, ()


def _is(value: NDArray[Any], goal: NDArray[Any]) -> bool:
    return value.shape == goal.shape and apart(goal, value) <= _SAME


def _operands(setting: Setting, anchor: Anchor) -> list[int]:
    """Return JAX values that PyTorch uses, those that its operation at the anchor uses first."""
    theirs = setting.torch.operand_classes(anchor.torch)
    classes = setting.jax.classes
    first = [c for c in setting.candidates if classes.get(c) in theirs]
    rest = [c for c in setting.candidates if c not in first]
    return [c for c in [*first, *rest[:_OPERANDS]] if c != anchor.jax]


def _shapes(shape: tuple[int, ...], added: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes in which a value can be broadcast to `shape`."""
    found = []
    if len(added) == 1:
        for axis in reversed(range(len(shape))):
            if shape[axis] == added[0]:
                found.append(tuple(n if k == axis else 1 for k, n in enumerate(shape)))
        return found
    padded = (1,) * (len(shape) - len(added)) + added
    if len(padded) == len(shape) and all(a in (1, n) for a, n in zip(padded, shape, strict=True)):
        found.append(padded)
    return found


def _applied(
    setting: Setting,
    anchor: Anchor,
    kind: str,
    words: str,
    function: Callable[..., Any],
    more: tuple[int, ...],
) -> Change | None:
    """Return the change of a value, or of its uses where JAX lacks the operation."""
    index = anchor.jax
    graph = setting.graph
    if not anchor.lacking:
        p = setting.position[index]
        return Change(kind, index, words, {p: result_of(graph.equations[p], function)})
    changed: dict[int, Any] = {}
    for p in setting.region:
        for at, i in enumerate(graph.equations[p].inputs):
            if i != index:
                continue
            if not all(setting.available(c, p) for c in more):
                return None
            changed[p] = operand_of(changed.get(p, graph.equations[p]), at, function, *more)
    return Change(kind, index, words, changed)
