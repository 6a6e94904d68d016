"""Changes of operands: exchanged, wrong, missing or superfluous ones."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from obscura_jax.parity.changes import Change
from obscura_jax.parity.explain import described
from obscura_jax.parity.setting import Setting

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
    yield from _exchanged(setting)
    yield from _wrong(setting)
    yield from _reversed(setting)
    yield from _left_out(setting)
    yield from _siblings(setting)


def name_of(setting: Setting, index: int) -> str:
    """Return a value in a few words, without the operations that only move its entries."""
    return described(setting.jax, setting.jax.unmoved(index))


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
                words = f"{name_of(setting, new)} for {name_of(setting, old)}"
                yield Change(
                    "operand",
                    equation.outputs[0],
                    words,
                    {p: setting.with_inputs(p, inputs)},
                )


def _exchanged(setting: Setting) -> Iterator[Change]:
    """Exchange two values wherever the region uses them."""
    everywhere = sorted({*setting.region, *setting.nearby})
    pairs = sorted(
        combinations(_exchangeable(setting), 2), key=lambda two: _are_parts(setting, *two)
    )
    for a, b in pairs:
        if setting.node(a).shape != setting.node(b).shape:
            continue
        if setting.jax.classes.get(a) == setting.jax.classes.get(b):
            continue
        yield from _exchanged_at(setting, a, b, everywhere)
        lines: dict[object, list[int]] = {}
        for p in everywhere:
            if {a, b} & set(setting.graph.equations[p].inputs):
                source = setting.node(setting.graph.equations[p].outputs[0]).source
                lines.setdefault(source, []).append(p)
        for positions in lines.values() if len(lines) > 1 else ():
            yield from _exchanged_at(setting, a, b, positions)


def _exchanged_at(setting: Setting, a: int, b: int, positions: list[int]) -> Iterator[Change]:
    changed = {}
    for p in positions:
        equation = setting.graph.equations[p]
        inputs = [b if i == a else a if i == b else i for i in equation.inputs]
        if inputs != list(equation.inputs):
            changed[p] = setting.with_inputs(p, inputs)
    if not changed or not all(
        setting.available(i, p) for p, e in changed.items() for i in (a, b) if i in e.inputs
    ):
        return
    a, b = setting.jax.unmoved(a), setting.jax.unmoved(b)
    split = _are_parts(setting, a, b)
    node = setting.graph.equations[min(changed)].outputs[0]
    words = f"exchanging {name_of(setting, a)} and {name_of(setting, b)}"
    kind, place = ("split", a) if split else ("swap", None)
    yield Change(kind, node, words, changed, place=place)


def _exchangeable(setting: Setting) -> list[int]:
    """Return the values that the region uses, with what layout operations made them from."""
    found: dict[int, None] = {}
    for _, equation in setting.equations(setting.region):
        for i in equation.inputs:
            node = setting.node(i)
            if i in setting.made or not node.is_float or node.size < 2:
                continue
            found |= dict.fromkeys(setting.origins(i))
    return list(found)


def _are_parts(setting: Setting, a: int, b: int) -> bool:
    """Return True if two values are parts of one value."""
    first, second = setting.node(a), setting.node(b)
    pieces = ("slice", "split", "dynamic_slice", "squeeze", "gather")
    same = first.op in pieces and first.op == second.op
    return same and not set(first.inputs).isdisjoint(second.inputs)


def _reversed(setting: Setting) -> Iterator[Change]:
    """Exchange the two operands of an operation for which their order matters."""
    for p, equation in setting.equations([*setting.region, *setting.nearby]):
        if equation.op not in _ORDERED or len(equation.inputs) != 2:
            continue

        def call(a: Any, b: Any, equation: Any = equation) -> Any:
            return equation.run([b, a])

        yield Change(
            "swap",
            equation.outputs[0],
            "the operands in the other order",
            {p: replace(equation, call=call)},
        )


def _left_out(setting: Setting) -> Iterator[Change]:
    """Leave an operation out: its result is one of its operands."""
    for p, equation in setting.equations(setting.region):
        node = setting.node(equation.outputs[0])
        if node.layout or len(equation.outputs) != 1 or equation.op in ("dot_general",):
            continue
        for at, i in enumerate(equation.inputs):
            if setting.node(i).shape != node.shape or not setting.node(i).is_float:
                continue
            others = [name_of(setting, j) for n, j in enumerate(equation.inputs) if n != at]
            words = f"leaving out {equation.op}" + (f" with {others[0]}" if others else "")

            def call(*operands: Any, at: int = at) -> list[Any]:
                return [operands[at]]

            changed = replace(equation, call=call)
            yield Change("extra", equation.outputs[0], words, {p: changed})


def _siblings(setting: Setting) -> Iterator[Change]:
    """Use a related operation, such as a minus for a plus."""
    for p, equation in setting.equations(setting.region):
        for _, words, call in _SIBLINGS.get(equation.op, ()):

            def run(*operands: Any, call: Callable[..., Any] = call) -> list[Any]:
                return [call(*operands)]

            kind = "sign" if equation.op in ("add", "sub") else "operation"
            changed = replace(equation, call=run)
            yield Change(kind, equation.outputs[0], words, {p: changed})
