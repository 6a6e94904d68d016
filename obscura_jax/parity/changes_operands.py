"""Changes of operands: exchanged, wrong, missing or superfluous ones."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from obscura_jax.parity.changes import Change, Setting, operand_of, wrapped
from obscura_jax.parity.explain import described
from obscura_jax.parity.relation import relation

_ORDERED = ("sub", "div", "pow", "dot_general", "atan2", "rem")
_SIBLINGS: dict[str, tuple[tuple[str, str, Callable[..., Any]], ...]] = {
    "add": (
        ("sub", "a minus for a plus", np.subtract),
        ("mul", "a product for a sum", np.multiply),
    ),
    "sub": (("add", "a plus for a minus", np.add),),
    "mul": (("div", "a quotient for a product", np.divide), ("add", "a sum for a product", np.add)),
    "div": (("mul", "a product for a quotient", np.multiply),),
    "max": (("min", "min for max", np.minimum),),
    "min": (("max", "max for min", np.maximum),),
}


def changes(setting: Setting) -> Iterator[Change]:
    """Yield changes of the operands in the region, and of the operations between them."""
    yield from _wrong(setting)
    yield from _exchanged(setting)
    yield from _reversed(setting)
    yield from _left_out(setting)
    yield from _siblings(setting)
    yield from _added(setting)
    yield from _by_relation(setting)


def _name(setting: Setting, index: int) -> str:
    node = setting.node(index)
    origin = setting.jax.origin(index)
    name = described(setting.jax, origin)
    if node.op in ("slice", "split", "dynamic_slice") and node.source:
        return f"{node.op} at {node.source}"
    return name


def _wrong(setting: Setting) -> Iterator[Change]:
    """Use a value that PyTorch uses for one that it does not."""
    theirs = setting.torch.operand_classes(setting.pair.torch)
    for p, equation in setting.equations(setting.region):
        for at, old in enumerate(equation.inputs):
            node = setting.node(old)
            if not node.is_float or not node.shape:
                continue
            if p == setting.position.get(setting.pair.jax) and (
                setting.jax.classes.get(old) in theirs
            ):
                continue
            for new in setting.candidates:
                fits = setting.node(new).shape == node.shape
                if new == old or not fits or not setting.available(new, p):
                    continue
                inputs = list(equation.inputs)
                inputs[at] = new
                words = f"{_name(setting, new)} for {_name(setting, old)}"
                yield Change(
                    "operand",
                    equation.outputs[0],
                    words,
                    {p: setting.with_inputs(p, inputs)},
                )


def _exchanged(setting: Setting) -> Iterator[Change]:
    """Exchange two values wherever the region uses them."""
    used: dict[int, None] = {}
    for _, equation in setting.equations(setting.region):
        for i in equation.inputs:
            node = setting.node(i)
            if node.is_float and node.size > 1:
                used[i] = None
    region = {i for p in setting.region for i in setting.graph.equations[p].outputs}
    edge = [i for i in used if i not in region]
    for a, b in combinations(edge, 2):
        if setting.node(a).shape != setting.node(b).shape:
            continue
        if setting.jax.classes.get(a) == setting.jax.classes.get(b):
            continue
        changed = {}
        for p, equation in setting.equations(setting.region):
            inputs = [b if i == a else a if i == b else i for i in equation.inputs]
            if inputs != list(equation.inputs):
                changed[p] = setting.with_inputs(p, inputs)
        if not all(
            setting.available(i, p) for p, e in changed.items() for i in (a, b) if i in e.inputs
        ):
            continue
        first, second = setting.node(a), setting.node(b)
        pieces = ("slice", "split", "dynamic_slice", "squeeze", "gather")
        split = (
            first.op in pieces and first.op == second.op and set(first.inputs) & set(second.inputs)
        )
        place = a if split else setting.graph.equations[min(changed)].outputs[0]
        words = f"exchanging {_name(setting, a)} and {_name(setting, b)}"
        yield Change("split" if split else "swap", place, words, changed)


def _reversed(setting: Setting) -> Iterator[Change]:
    """Exchange the two operands of an operation for which their order matters."""
    for p, equation in setting.equations([*setting.region, *setting.nearby]):
        if equation.op not in _ORDERED or len(equation.inputs) != 2:
            continue
        shape = setting.node(equation.outputs[0]).shape

        def call(
            a: Any, b: Any, equation: Any = equation, shape: tuple[int, ...] = shape
        ) -> list[Any]:
            found = equation.run([b, a])[0]
            if found.shape != shape:
                raise ValueError("another shape")
            return [found]

        def again(node: int) -> Change | None:
            return _again_reversed(setting, node)

        yield Change(
            "swap",
            equation.outputs[0],
            "the operands in the other order",
            {p: replace(equation, call=call)},
            again=again,
        )


def _again_reversed(setting: Setting, node: int) -> Change | None:
    p = setting.position[node]
    equation = setting.graph.equations[p]

    def call(a: Any, b: Any) -> Any:
        return equation.run([b, a])

    return Change("swap", node, "", {p: replace(equation, call=call)})


def _left_out(setting: Setting) -> Iterator[Change]:
    """Leave an operation out: its result is one of its operands."""
    for p, equation in setting.equations(setting.region):
        node = setting.node(equation.outputs[0])
        if node.layout or len(equation.outputs) != 1 or equation.op in ("dot_general",):
            continue
        for at, i in enumerate(equation.inputs):
            if setting.node(i).shape != node.shape or not setting.node(i).is_float:
                continue
            others = [_name(setting, j) for n, j in enumerate(equation.inputs) if n != at]
            words = f"leaving out {equation.op}" + (f" with {others[0]}" if others else "")

            def call(*operands: Any, at: int = at) -> list[Any]:
                return [operands[at]]

            def again(node: int, at: int = at) -> Change | None:
                def call(*operands: Any) -> list[Any]:
                    return [operands[at]]

                q = setting.position[node]
                changed = replace(setting.graph.equations[q], call=call)
                return Change("extra", node, "", {q: changed})

            changed = replace(equation, call=call)
            yield Change("extra", equation.outputs[0], words, {p: changed}, again=again)


def _siblings(setting: Setting) -> Iterator[Change]:
    """Use a related operation, such as a minus for a plus."""
    for p, equation in setting.equations(setting.region):
        for _, words, call in _SIBLINGS.get(equation.op, ()):

            def run(*operands: Any, call: Callable[..., Any] = call) -> list[Any]:
                return [call(*operands)]

            def again(node: int, run: Callable[..., Any] = run) -> Change | None:
                q = setting.position[node]
                changed = replace(setting.graph.equations[q], call=run)
                return Change("operation", node, "", {q: changed})

            kind = "sign" if equation.op in ("add", "sub") else "operation"
            changed = replace(equation, call=run)
            yield Change(kind, equation.outputs[0], words, {p: changed}, again=again)


def _added(setting: Setting) -> Iterator[Change]:
    """Add a value that PyTorch uses, or multiply by it, where the JAX side does not."""
    used = {
        setting.jax.classes.get(i)
        for p in setting.region
        for i in setting.graph.equations[p].inputs
    }
    lacking = [c for c in setting.candidates if setting.jax.classes.get(c) not in used]
    lacking += [c for c in setting.candidates if c not in lacking]
    region = set(setting.region)
    values: dict[int, None] = {}
    for _, equation in setting.equations(setting.region):
        for i in (*equation.inputs, *equation.outputs):
            node = setting.node(i)
            if node.is_float and node.size > 1 and not node.leaf:
                values[i] = None
    operations: tuple[tuple[str, Callable[[Any, Any], Any]], ...] = (
        ("adding", np.add),
        ("multiplying by", np.multiply),
        ("subtracting", np.subtract),
        ("dividing by", np.divide),
        ("multiplying by 1 plus", lambda x, c: x * (1 + c)),
    )
    for c in lacking[:12]:
        for value in values:
            if value == c:
                continue
            for axis in _axes(setting.node(value).shape, setting.node(c).shape):
                for verb, operation in operations:
                    change = _adjusted(setting, value, c, axis, operation, region)
                    if change:
                        words = f"{verb} {_name(setting, c)}"
                        yield Change("missing", value, words, change)


def _axes(shape: tuple[int, ...], added: tuple[int, ...]) -> list[tuple[int, ...]]:
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


def _adjusted(
    setting: Setting,
    value: int,
    other: int,
    shape: tuple[int, ...],
    operation: Callable[[Any, Any], Any],
    region: set[int],
) -> dict[int, Any]:
    """Return the operations that use a value, or the one that makes it, with a change of it."""

    def change(x: Any, c: Any) -> Any:
        return operation(x, c.reshape(shape))

    made = setting.position.get(value)
    if made in region and setting.available(other, made):
        equation = setting.graph.equations[made]
        count = len(equation.inputs)

        def call(*operands: Any) -> list[Any]:
            found, *rest = equation.run(operands[:count])
            return [change(found, operands[count]), *rest]

        return {made: wrapped(equation, call, other)}
    found = {}
    for p in region:
        equation = setting.graph.equations[p]
        for at, i in enumerate(equation.inputs):
            if i == value and setting.available(other, p):
                found[p] = operand_of(equation, at, change, other)
    return found


def _by_relation(setting: Setting) -> Iterator[Change]:
    """Multiply by the factor, or add the offset, by which the results differ."""
    from obscura_jax.parity.gates import gates

    theirs = gates(setting.torch, setting.pair.torch)[:4]
    torch_values = setting.torch.trace.values(theirs)
    jax_values = setting.trace.values(setting.ends[:4])
    for b, ours in jax_values.items():
        for value in torch_values.values():
            found = relation(value, ours)
            p = setting.position.get(b)
            if found is None or p is None:
                continue
            equation = setting.graph.equations[p]
            if found.factor is not None and found.factor != 1:
                yield _scaled(setting, p, equation, 1 / found.factor)
            elif found.offset is not None:
                offset = -found.offset

                def add(*operands: Any, equation: Any = equation, x: float = offset) -> list[Any]:
                    return [equation.run(operands)[0] + x]

                words = f"adding {offset:.8g}"
                changed = {p: replace(equation, call=add)}
                yield Change("offset", equation.outputs[0], words, changed)


def _scaled(setting: Setting, position: int, equation: Any, factor: float) -> Change:
    def make(equation: Any) -> Any:
        def scale(*operands: Any) -> list[Any]:
            return [equation.run(operands)[0] * factor]

        return replace(equation, call=scale)

    def again(node: int) -> Change | None:
        q = setting.position[node]
        return Change("scale", node, "", {q: make(setting.graph.equations[q])})

    words = "the other sign" if factor == -1 else f"multiplying by {factor:.8g}"
    kind = "sign" if factor == -1 else "scale"
    return Change(kind, equation.outputs[0], words, {position: make(equation)}, again=again)
