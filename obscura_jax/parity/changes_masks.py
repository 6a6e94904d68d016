"""Changes of masks: another comparison, shifted by one, inverted or transposed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from obscura_jax.parity.changes import Change, operand_of, result_of
from obscura_jax.parity.setting import Setting

_COMPARISONS: dict[str, Callable[..., Any]] = {
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "lt": np.less,
    "eq": np.equal,
    "ne": np.not_equal,
}


def compared(setting: Setting, position: int, equation: Any) -> Iterator[Change]:
    """Compare by another relation, or with a number that is larger or smaller by one."""
    result = equation.outputs[0]
    for name, function in _COMPARISONS.items():
        if name != equation.op:

            def call(a: Any, b: Any, function: Callable[..., Any] = function) -> list[Any]:
                return [function(a, b)]

            changed = {position: replace(equation, call=call)}
            yield Change("mask", result, f"{name} for {equation.op}", changed)
    if setting.node(equation.inputs[0]).is_float:
        return
    for step in (1, -1):

        def shift(x: Any, step: int = step) -> Any:
            return x + step

        words = f"the first number {'plus' if step > 0 else 'minus'} 1"
        yield Change("mask", result, words, {position: operand_of(equation, 0, shift)})
    shape = setting.node(result).shape
    if len(shape) >= 2 and shape[-1] == shape[-2]:
        changed = {position: result_of(equation, lambda x: x.swapaxes(-1, -2))}
        yield Change("mask", result, "the mask transposed", changed)


def selected(setting: Setting, position: int, equation: Any) -> Iterator[Change]:
    """Select the other way round, or by a mask that is transposed or shifted by one."""
    if len(equation.inputs) != 3:
        return
    which = setting.node(equation.inputs[0])
    if "bool" not in which.dtype:
        return
    turns: list[tuple[str, Callable[[Any], Any]]] = [("the mask inverted", np.logical_not)]
    if len(which.shape) >= 2 and which.shape[-1] == which.shape[-2]:
        turns.append(("the mask transposed", lambda m: m.swapaxes(-1, -2)))
    if which.shape:
        for axis, step, words in (
            (-1, 1, "the mask shifted by one to the right"),
            (-1, -1, "the mask shifted by one to the left"),
        ):

            def shift(m: Any, axis: int = axis, step: int = step) -> Any:
                rolled = np.roll(m, step, axis)
                edge = np.take(m, np.array([0 if step > 0 else m.shape[axis] - 1]), axis)
                place = 0 if step > 0 else m.shape[axis] - 1
                return np.where(
                    (np.arange(m.shape[axis]) == place), np.broadcast_to(edge, m.shape), rolled
                )

            turns.append((words, shift))
    place = _mask_place(setting, equation)
    for words, turn in turns:
        changed = {position: operand_of(equation, 0, turn)}
        yield Change("mask", equation.outputs[0], words, changed, place=place)


def _mask_place(setting: Setting, equation: Any) -> int:
    """Return the operation that computes a mask, or the one that uses it if it is a leaf."""
    i = setting.jax.origin(equation.inputs[0])
    return int(equation.outputs[0]) if setting.node(i).leaf else i
