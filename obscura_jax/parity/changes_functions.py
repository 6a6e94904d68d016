"""Changes of functions: another activation, softmax axis, kind of norm or reduction."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import special

from obscura_jax.parity import numpy_windows
from obscura_jax.parity.changes import Change, wrapped
from obscura_jax.parity.known_functions import ACTIVATIONS, UNARY, Function, normalizations
from obscura_jax.parity.relation import apart
from obscura_jax.parity.setting import Setting

_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "sum": np.sum,
    "mean": np.mean,
    "max": np.max,
    "min": np.min,
}
_DEPTH = 40  # operations between a result and what it is a function of
_NEAR = 4  # operations between a value and another one that it is a function of
_WINDOWS = ("reduce_window_max", "reduce_window_sum", "reduce_window")


def changes(setting: Setting) -> Iterator[Change]:
    """Yield other functions for those in the region."""
    for p, equation in setting.equations(setting.region):
        yield from _reductions(setting, p, equation)
    yield from _of_one_value(setting)
    for p, equation in setting.equations(setting.region):
        yield from _unary(setting, p, equation)
    for p, equation in setting.equations(setting.region):
        if equation.op in _WINDOWS:
            yield from _windows(p, equation)


def _unary(setting: Setting, position: int, equation: Any) -> Iterator[Change]:
    if len(equation.inputs) != 1 or equation.op not in UNARY:
        return
    for name, function in UNARY.items():
        if name != equation.op:
            yield _replaced(setting, position, name, equation.op, function)


def _replaced(setting: Setting, position: int, new: str, old: str, function: Function) -> Change:
    def call(*operands: Any) -> list[Any]:
        return [function(operands[0])]

    equation = setting.graph.equations[position]
    changed = {position: replace(equation, call=call)}
    return Change("unary", equation.outputs[0], f"{new} for {old}", changed)


def _reductions(setting: Setting, position: int, equation: Any) -> Iterator[Change]:
    """Reduce by another function, or over another axis of the same size."""
    if equation.op not in ("reduce_sum", "reduce_max", "reduce_min"):
        return
    axes = tuple(equation.params["axes"])
    shape = setting.node(equation.inputs[0]).shape
    old = equation.op.removeprefix("reduce_")

    def change(kind: str, words: str, function: Callable[..., Any], over: Any) -> Change:
        def call(*operands: Any) -> list[Any]:
            return [function(operands[0], axis=over)]

        changed = {position: replace(equation, call=call)}
        return Change(kind, equation.outputs[0], words, changed)

    for name, function in _REDUCTIONS.items():
        if name != old:
            yield change("reduction", f"{name} for {old}", function, axes)
    if len(axes) == 1:
        for axis in range(len(shape)):
            if axis != axes[0] and shape[axis] == shape[axes[0]]:
                words = f"axis {axis} for {axes[0]}"
                yield change("axis", words, _REDUCTIONS[old], (axis,))


def _windows(position: int, equation: Any) -> Iterator[Change]:
    """Pool by a mean for a maximum, or the other way round."""
    params = equation.params
    if params.get("window_dimensions") is None:
        return
    entries = math.prod(params["window_dimensions"])
    largest = functools.partial(numpy_windows.window(np.max, -np.inf), params)
    total = functools.partial(numpy_windows.window(np.sum, 0.0), params)
    for name, function in (
        ("max pooling", largest),
        ("mean pooling", lambda x: total(x) / entries),
        ("sum pooling", total),
    ):

        def call(*operands: Any, function: Function = function) -> list[Any]:
            return [function(operands[0])]

        changed = {position: replace(equation, call=call)}
        yield Change("reduction", equation.outputs[0], name, changed)


def _of_one_value(setting: Setting) -> Iterator[Change]:
    """Replace what is a function of a single value, and perhaps of parameters."""
    for p in reversed(setting.region):  # a whole function before its parts
        equation = setting.graph.equations[p]
        result = setting.node(equation.outputs[0])
        if not result.is_float or result.size < 2 or len(equation.outputs) != 1 or result.layout:
            continue
        for u, parameters in _arguments(setting, equation.outputs[0]):
            if not setting.available(u, p):
                continue
            old = _current(setting, u, equation.outputs[0], parameters)
            for name, function in ACTIVATIONS.items() if not parameters else ():
                if name != old:
                    yield _applied(setting, p, u, (), function, "activation", name, old)
            for kind, name, normalized in normalizations(
                setting, setting.node(u).shape, parameters
            ):
                if name != old:
                    yield _applied(setting, p, u, parameters, normalized, kind, name, old)


def _applied(
    setting: Setting,
    position: int,
    value: int,
    parameters: tuple[int, ...],
    function: Callable[..., Any],
    kind: str,
    new: str,
    old: str,
) -> Change:
    equation = setting.graph.equations[position]
    count = len(equation.inputs)

    def call(*operands: Any) -> list[Any]:
        return [function(*operands[count:])]

    changed = {position: wrapped(equation, call, value, *parameters)}
    words = f"{new} for {old}" if old else new
    return Change(kind, equation.outputs[0], words, changed, place=setting.pair.jax)


def _arguments(setting: Setting, result: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield a value of the same shape, and parameters, that a result is a function of."""
    shape = setting.node(result).shape
    values: dict[int, None] = {}
    parameters: dict[int, None] = {}
    stack, seen = [(result, 0)], set()
    while stack:
        i, depth = stack.pop()
        if i in seen:
            continue
        seen.add(i)
        node = setting.node(i)
        if not node.is_float or node.size < 2:
            if i != result and not node.leaf and depth < _DEPTH:
                stack += [(j, depth + 1) for j in node.inputs]
            continue
        if node.leaf:
            if node.name != "literal" and node.print is not None:
                parameters[i] = None
        elif i != result and i in setting.jax.matched - setting.jax.weak and (node.shape == shape):
            values[i] = None
        elif depth < _DEPTH:
            stack += [(j, depth + 1) for j in node.inputs]
        else:
            return
    for value in list(values):  # a square of another value is no second argument
        if not values.keys().isdisjoint(_before(setting, value)):
            del values[value]
    if len(values) == 1 and len(parameters) <= 2:
        yield next(iter(values)), tuple(parameters)


def _before(setting: Setting, index: int) -> set[int]:
    """Return the nearest values that a value is computed from."""
    found: set[int] = set()
    level = set(setting.node(index).inputs)
    for _ in range(_NEAR):
        found |= level
        level = {j for i in level for j in setting.node(i).inputs}
    return found


def _current(setting: Setting, value: int, result: int, parameters: tuple[int, ...]) -> str:
    """Return the name of the function that the program applies now, or ""."""
    known = setting.trace.values([value, result])
    if value not in known or result not in known:
        return ""
    fused = setting.node(result).fused
    if parameters:
        return fused
    x = known[value]
    with np.errstate(all="ignore"):
        for name, function in ACTIVATIONS.items():
            if apart(function(x), known[result]) < 1e-9:
                return name
        for axis in range(x.ndim):
            if apart(special.softmax(x, axis), known[result]) < 1e-9:
                return f"softmax over axis {axis}"
    return fused
