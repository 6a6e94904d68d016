"""Changes of layout: transposed matrices, heads, masks, padding, order and direction."""

import functools
import operator
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np

from obscura_jax.parity import changes_masks, changes_windows
from obscura_jax.parity.changes import Change, operand_of, result_of
from obscura_jax.parity.setting import Setting


def changes(setting: Setting) -> Iterator[Change]:
    """Yield other layouts in the region and just before it."""
    everywhere = [*setting.region, *setting.nearby]
    for p, equation in setting.equations(everywhere):
        if equation.op == "dot_general":
            yield from _transposed(setting, p, equation)
    for p, equation in setting.equations(everywhere):
        match equation.op:
            case "ge" | "gt" | "le" | "lt" | "eq" | "ne":
                yield from changes_masks.compared(setting, p, equation)
            case "select_n":
                yield from changes_masks.selected(setting, p, equation)
            case "conv_general_dilated":
                yield from changes_windows.convolutions(setting, p, equation)
            case "pad":
                yield from changes_windows.pads(setting, p, equation)
            case "reduce_window_max" | "reduce_window_sum" | "reduce_window":
                yield from changes_windows.window_padding(setting, p, equation)
            case "concatenate":
                yield from _orders(p, equation)
                yield from _interleaved(p, equation)
            case "tile":
                yield from _interleaved(p, equation)
            case "reshape":
                yield from _heads(setting, p, equation)
            case "broadcast_in_dim":
                yield from _repeats(setting, p, equation)
            case "slice" | "dynamic_slice" | "gather" | "iota":
                yield from _positions(setting, p, equation)
            case "cumsum" | "cumprod" | "cumlogsumexp" | "cummax":
                yield from _scans(p, equation)
            case "rev":
                changed = {p: replace(equation, call=lambda x: [x])}
                yield Change("direction", equation.outputs[0], "leaving out the reversal", changed)
    yield from _rotary(setting)
    yield from _directions(setting)


def _transposed(setting: Setting, position: int, equation: Any) -> Iterator[Change]:
    """Contract another axis of the same size of one operand."""
    (left, right), batch = equation.params["dimension_numbers"]
    for side, contracted in enumerate((left, right)):
        shape = setting.node(equation.inputs[side]).shape
        for axis in contracted:
            for other in range(len(shape)):
                if other in contracted or other in batch[side] or shape[other] != shape[axis]:
                    continue
                order = list(range(len(shape)))
                order[axis], order[other] = other, axis
                words = "the other operand transposed" if side else "the first operand transposed"

                def turn(x: Any, order: tuple[int, ...] = tuple(order)) -> Any:
                    return x.transpose(order)

                yield Change(
                    "transpose",
                    equation.outputs[0],
                    words,
                    {position: operand_of(equation, side, turn)},
                )


def _orders(position: int, equation: Any) -> Iterator[Change]:
    """Concatenate in another order."""
    count = len(equation.inputs)
    if count > 4:
        return
    for order in permutations(range(count)):
        if order == tuple(range(count)):
            continue

        def call(*parts: Any, order: tuple[int, ...] = order) -> Any:
            return equation.run([parts[n] for n in order])

        words = f"the parts in the order {', '.join(str(n + 1) for n in order)}"
        changed = {position: replace(equation, call=call)}
        yield Change("concat", equation.outputs[0], words, changed)


def _interleaved(position: int, equation: Any) -> Iterator[Change]:
    """Repeat each entry, where the whole is repeated."""
    if equation.op == "tile":
        counts = tuple(equation.params["reps"])
    elif len(set(equation.inputs)) == 1:
        counts = (1,) * equation.params["dimension"] + (len(equation.inputs),)
    else:
        return

    def call(x: Any, *more: Any) -> list[Any]:
        for axis, count in enumerate(counts):
            x = np.repeat(x, count, axis)
        return [x]

    words = "each entry repeated, for the whole repeated"
    yield Change("heads", equation.outputs[0], words, {position: replace(equation, call=call)})


def _heads(setting: Setting, position: int, equation: Any) -> Iterator[Change]:
    """Split an axis in the other order, or exchange axes before two are merged."""
    before = setting.node(equation.inputs[0]).shape
    after = setting.node(equation.outputs[0]).shape
    if len(after) == len(before) + 1:
        for n in range(len(before)):
            if before[:n] == after[:n] and before[n + 1 :] == after[n + 2 :]:
                first, second = after[n], after[n + 1]
                order = list(range(len(after)))
                order[n], order[n + 1] = n + 1, n
                shape = (*after[:n], second, first, *after[n + 2 :])

                def split(x: Any, shape: Any = shape, order: Any = tuple(order)) -> Any:
                    return x.reshape(shape).transpose(order)

                yield _layout(setting, position, equation, split, "the axis split the other way")
    if len(after) < len(before) and len(before) <= 5:
        for axes in permutations(range(len(before))):
            if axes == tuple(range(len(before))):
                continue

            def merge(x: Any, axes: Any = axes) -> Any:
                return x.transpose(axes).reshape(after)

            words = f"the axes in the order {axes} before they are merged"
            yield _layout(setting, position, equation, merge, words)


def _layout(
    setting: Setting, position: int, equation: Any, turn: Callable[[Any], Any], words: str
) -> Change:
    def call(*operands: Any) -> list[Any]:
        return [turn(operands[0])]

    changed = {position: replace(equation, call=call)}
    return Change("heads", equation.outputs[0], words, changed)


def _repeats(setting: Setting, position: int, equation: Any) -> Iterator[Change]:
    """Broadcast to another axis of the same size, or repeat entries instead of the whole."""
    shape = equation.params["shape"]
    dimensions = equation.params["broadcast_dimensions"]
    for n, axis in enumerate(dimensions):
        for other in range(len(shape)):
            if other in dimensions or shape[other] != shape[axis]:
                continue
            new = tuple(other if k == n else d for k, d in enumerate(dimensions))
            if tuple(sorted(new)) != new:
                continue
            params = {**equation.params, "broadcast_dimensions": new}
            yield Change(
                "axis",
                equation.outputs[0],
                f"along axis {other} for {axis}",
                {position: replace(equation, params=params)},
            )
    for axis in range(len(shape) - 1):
        if axis in dimensions and axis + 1 in dimensions:
            continue

        def turn(x: Any, axis: int = axis) -> Any:
            swapped = x.swapaxes(axis, axis + 1)
            return swapped.reshape(x.shape)

        yield Change(
            "heads",
            equation.outputs[0],
            "each entry repeated, for the whole repeated",
            {position: result_of(equation, turn)},
        )


def _positions(setting: Setting, position: int, equation: Any) -> Iterator[Change]:
    """Begin one entry later or earlier."""
    result = equation.outputs[0]
    for step in (1, -1):
        words = f"positions {'plus' if step > 0 else 'minus'} 1"
        if equation.op == "slice":
            size = setting.node(equation.inputs[0]).shape
            params = equation.params
            for axis in range(len(size)):
                start = list(params["start_indices"])
                stop = list(params["limit_indices"])
                start[axis] += step
                stop[axis] += step
                if start[axis] < 0 or stop[axis] > size[axis]:
                    continue
                new = {**params, "start_indices": tuple(start), "limit_indices": tuple(stop)}
                changed = {position: replace(equation, params=new)}
                yield Change("position", result, words, changed)
        elif equation.op == "iota":
            changed = {position: result_of(equation, functools.partial(operator.add, step))}
            yield Change("position", result, words, changed)
        else:
            for at in range(1, len(equation.inputs)):
                if setting.node(equation.inputs[at]).is_float:
                    continue
                shifted = operand_of(equation, at, functools.partial(operator.add, step))
                yield Change("position", result, words, {position: shifted})


def _scans(position: int, equation: Any) -> Iterator[Change]:
    params = {**equation.params, "reverse": not equation.params["reverse"]}
    changed = {position: replace(equation, params=params)}
    yield Change("direction", equation.outputs[0], "the other direction", changed)

    def exclusive(*operands: Any) -> list[Any]:
        return [equation.run(operands)[0] - operands[0]]

    changed = {position: replace(equation, call=exclusive)}
    yield Change("position", equation.outputs[0], "without the entry itself", changed)


def _rotary(setting: Setting) -> Iterator[Change]:
    """Pair the entries of the last axis by halves for neighbors, or the other way round."""
    values: dict[int, None] = {}
    for p in setting.region:
        for i in setting.graph.equations[p].inputs:
            if i not in setting.made and setting.node(i).is_float and not setting.node(i).leaf:
                values |= dict.fromkeys(setting.origins(i))

    def halves(x: Any) -> Any:
        return np.concatenate([x[..., 0::2], x[..., 1::2]], -1)

    def neighbors(x: Any) -> Any:
        return np.stack(np.split(x, 2, -1), -1).reshape(x.shape)

    for value in values:
        shape = setting.node(value).shape
        if len(shape) < 2 or shape[-1] % 2:
            continue
        for words, before, after in (
            ("halves paired, for neighbors", neighbors, halves),
            ("neighbors paired, for halves", halves, neighbors),
        ):
            uses = {}
            for p, equation in enumerate(setting.graph.equations):
                for at, i in enumerate(equation.inputs):
                    if i == value:
                        uses[p] = operand_of(equation, at, before)
            node = setting.graph.equations[min(uses)].outputs[0]
            yield Change("rotary", node, words, dict(uses))
            for p in reversed(setting.region):
                equation = setting.graph.equations[p]
                if setting.node(equation.outputs[0]).shape != shape or p in uses:
                    continue
                changed = {**uses, p: result_of(equation, after)}
                yield Change("rotary", node, words, changed)
                break


def _directions(setting: Setting) -> Iterator[Change]:
    """Reverse a value along an axis."""
    for p, equation in setting.equations(setting.region):
        for at, i in enumerate(equation.inputs):
            node = setting.node(i)
            if i in setting.made or not node.is_float or node.size < 2:
                continue
            for axis in range(len(node.shape)):
                if node.shape[axis] > 1:

                    def turn(x: Any, axis: int = axis) -> Any:
                        return np.flip(x, axis)

                    yield Change(
                        "direction",
                        equation.outputs[0],
                        f"an operand reversed along axis {axis}",
                        {p: operand_of(equation, at, turn)},
                    )
