"""Changes that turn a value into a known one: a factor, a bias, a function that was left out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.anchors import Anchor
from obscura_jax.parity.changes import Change, Loaded, number, operand_of, result_of
from obscura_jax.parity.changes_operands import name_of
from obscura_jax.parity.jax_graph import Equation
from obscura_jax.parity.known_functions import ACTIVATIONS, UNARY, normalizations
from obscura_jax.parity.relation import OUTPUT, TOLERANCE, apart, relation
from obscura_jax.parity.setting import Setting

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
        for step in _steps(setting, anchor, x):
            change = _applied(setting, anchor, step)
            if change is not None:
                yield change


@dataclass(frozen=True)
class _Step:
    """A function of JAX's value that gives PyTorch's, perhaps with a further operand.

    Attributes:
        kind: the kind of change.
        words: the change.
        function: the function.
        operand: the JAX node of the further operand, or None.
        parameter: the PyTorch node of the further operand, or None.
    """

    kind: str
    words: str
    function: Callable[..., Any]
    operand: int | None = None
    parameter: int | None = None


def _steps(setting: Setting, anchor: Anchor, x: NDArray[Any]) -> Iterator[_Step]:
    """Yield the functions that turn JAX's value into PyTorch's."""
    yield from _by_number(anchor, x)
    if not anchor.lacking and anchor.jax not in setting.jax.matched:
        return
    for names, kind in ((ACTIVATIONS, "activation"), (UNARY, "unary")):
        for name, function in names.items():
            if name != "no activation" and _is(function(x), anchor.goal):
                yield _Step(kind, f"applying {name}", function)
    for c in _operands(setting, anchor):
        for words, function in _operations(x, setting.value(c), anchor.goal):
            yield _Step("missing", f"{words} {name_of(setting, c)}", function, operand=c)
    torch = setting.torch
    for c, value in torch.trace.values(setting.torch_parameters).items():
        for words, function in _operations(x, value, anchor.goal):
            name = f"{torch.node(c).name} of PyTorch"
            yield _Step("missing", f"{words} {name}", function, parameter=c)
    for kind, name, norm in normalizations(setting, x.shape, ()):
        if _is(norm(x), anchor.goal):
            yield _Step(kind, f"applying {name}", norm)


def _by_number(anchor: Anchor, x: NDArray[Any]) -> Iterator[_Step]:
    found = relation(anchor.goal, x)
    if found is not None and found.factor is not None and found.factor != 1:
        factor = 1 / found.factor
        if factor == -1:
            yield _Step("sign", "the other sign", np.negative)
        else:
            yield _Step("scale", f"multiplying by {number(factor)}", lambda v: v * factor)
    elif found is not None and found.offset is not None:
        offset = -found.offset
        yield _Step("offset", f"adding {number(offset)}", lambda v: v + offset)


def _operations(
    x: NDArray[Any], other: NDArray[Any], goal: NDArray[Any]
) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the operations of two values that give a third one."""
    for shape in _shapes(x.shape, other.shape):
        for verb, operation in _OPERATIONS:
            if _is(operation(x, other.reshape(shape)), goal):

                def adjust(v: Any, o: Any, operation: Any = operation, shape: Any = shape) -> Any:
                    return operation(v, o.reshape(shape))

                yield verb, adjust


def _is(value: NDArray[Any], goal: NDArray[Any]) -> bool:
    return value.shape == goal.shape and apart(goal, value) <= OUTPUT * TOLERANCE


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


def _applied(setting: Setting, anchor: Anchor, step: _Step) -> Change | None:
    """Return the change of a value, or of its uses where JAX lacks the operation."""
    index, graph = anchor.jax, setting.graph
    if not anchor.lacking:
        p = setting.position[index]
        return _of_result(setting, p, step)
    changed, loaded = {}, {}
    for p in anchor.uses:
        equation = graph.equations[p]
        for at in [at for at, i in enumerate(equation.inputs) if i == index]:
            if step.parameter is not None:
                source, build = step.parameter, _builder(at, step.function)
                loaded[p] = Loaded(source, build)
                changed[p] = build(equation, setting.torch.trace.values([source])[source])
            elif step.operand is not None:
                if not setting.available(step.operand, p):
                    return None
                changed[p] = operand_of(equation, at, step.function, step.operand)
            else:
                changed[p] = operand_of(changed.get(p, equation), at, step.function)
    if not changed:
        return None
    node = graph.equations[min(changed)].outputs[0]
    return Change(step.kind, node, step.words, changed, loaded=loaded, place=index)


def _builder(at: int, function: Callable[..., Any]) -> Callable[[Equation, NDArray[Any]], Equation]:
    """Return how an operation is changed by a function of an operand and a parameter."""
    return lambda there, value: operand_of(there, at, lambda x: function(x, value))


def _of_result(setting: Setting, position: int, step: _Step) -> Change | None:
    """Return the change of an operation's first result, by a further operand if there is one."""
    equation, function = setting.graph.equations[position], step.function
    loaded: dict[int, Loaded] = {}
    if step.parameter is not None:

        def build(there: Equation, value: NDArray[Any]) -> Equation:
            return result_of(there, lambda v: function(v, value))

        loaded[position] = Loaded(step.parameter, build)
        value = setting.torch.trace.values([step.parameter])[step.parameter]
        changed = build(equation, value)
    elif step.operand is None:
        changed = result_of(equation, function)
    elif setting.available(step.operand, position):
        changed = result_of(equation, function, step.operand)
    else:
        return None
    changes = {position: changed}
    return Change(step.kind, equation.outputs[0], step.words, changes, loaded=loaded)
