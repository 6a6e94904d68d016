"""Changes of layout: transposed matrices, heads, masks, padding, order and direction."""

import functools
import operator
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np

from obscura_jax.parity.changes import Change, Setting, operand_of, result_of

_COMPARISONS: dict[str, Callable[..., Any]] = {
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "lt": np.less,
    "eq": np.equal,
    "ne": np.not_equal,
}


def changes(setting: Setting) -> Iterator[Change]:
    """Yield other layouts in the region and just before it."""
    everywhere = [*setting.region, *setting.nearby]
    for p, equation in setting.equations(everywhere):
        if equation.op == "dot_general":
            yield from _transposed(setting, p, equation)
    for p, equation in setting.equations(everywhere):
        match equation.op:
            case "ge" | "gt" | "le" | "lt" | "eq" | "ne":
                yield from _masks(setting, p, equation)
            case "select_n":
                yield from _inverted(setting, p, equation)
            case "conv_general_dilated":
                yield from _convolutions(setting, p, equation)
            case "pad":
                yield from _pads(setting, p, equation)
            case "reduce_window_max" | "reduce_window_sum" | "reduce_window":
                yield from _window_padding(setting, p, equation)
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


def _masks(setting: Setting, position: int, equation: Any) -> Iterator[Change]:
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


def _inverted(setting: Setting, position: int, equation: Any) -> Iterator[Change]:
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


def _convolutions(setting: Setting, position: int, equation: Any) -> Iterator[Change]:
    """Pad, step or dilate in another way that gives the same shape, or flip the kernel."""
    params = equation.params
    numbers = params["dimension_numbers"]
    kernel = setting.node(equation.inputs[1]).shape
    images = setting.node(equation.inputs[0]).shape
    sizes = [kernel[axis] for axis in numbers.rhs_spec[2:]]
    extents = [images[axis] for axis in numbers.lhs_spec[2:]]
    shape = setting.node(equation.outputs[0]).shape
    result = equation.outputs[0]
    outs = [shape[axis] for axis in numbers.out_spec[2:]]
    per_axis: list[list[tuple[int, int, tuple[int, int]]]] = []
    for size, extent, out in zip(sizes, extents, outs, strict=True):
        options = []
        for dilation in (1, 2, 3, 4, 8):
            for stride in (1, 2, 3, 4):
                reach = (size - 1) * dilation + 1
                total = (out - 1) * stride + reach - extent
                for low in {0, max(total, 0) // 2, (max(total, 0) + 1) // 2, max(total, 0)}:
                    for extra in range(stride):
                        options.append((stride, dilation, (low, max(total, 0) - low + extra)))
        per_axis.append(list(dict.fromkeys(options)))
    now = list(
        zip(params["window_strides"], params["rhs_dilation"], params["padding"], strict=True)
    )
    for choice in dict.fromkeys(o for options in per_axis for o in options):
        for axes in ([*range(len(now))], *([n] for n in range(len(now)) if len(now) > 1)):
            new = [choice if n in axes else now[n] for n in range(len(now))]
            if new == now:
                continue
            strides, dilations, padding = zip(*new, strict=True)
            changed = {
                **params,
                "window_strides": strides,
                "rhs_dilation": dilations,
                "padding": padding,
            }
            words = ", ".join(
                f"{name} {_plain(value)} for {_plain(params[key])}"
                for name, key, value in (
                    ("stride", "window_strides", strides),
                    ("dilation", "rhs_dilation", dilations),
                    ("padding", "padding", padding),
                )
                if tuple(value) != tuple(params[key])
            )
            yield Change("padding", result, words, {position: replace(equation, params=changed)})
    spatial = tuple(numbers.rhs_spec[2:])
    flipped = operand_of(equation, 1, lambda w: np.flip(w, spatial))
    yield Change("direction", result, "the kernel reversed", {position: flipped})


def _plain(value: Any) -> str:
    return str(tuple(value)).replace(" ", "")


def _pads(setting: Setting, position: int, equation: Any) -> Iterator[Change]:
    config = equation.params["padding_config"]
    for axis, (low, high, inner) in enumerate(config):
        if not low and not high:
            continue
        for new in dict.fromkeys(
            [(high, low), (low + high, 0), (0, low + high), ((low + high) // 2, -1)]
        ):
            first, second = new if new[1] >= 0 else (new[0], low + high - new[0])
            if (first, second) == (low, high):
                continue
            changed = list(config)
            changed[axis] = (first, second, inner)
            params = {**equation.params, "padding_config": tuple(changed)}
            words = f"padding ({first},{second}) for ({low},{high})"
            yield Change(
                "padding",
                equation.outputs[0],
                words,
                {position: replace(equation, params=params)},
            )
    rank = len(setting.node(equation.inputs[0]).shape)
    if rank and all(low >= 0 and high >= 0 and not inner for low, high, inner in config):
        widths = [(low, high) for low, high, _ in config]
        for mode in ("edge", "reflect", "wrap"):

            def call(x: Any, *rest: Any, mode: Any = mode) -> list[Any]:
                return [np.pad(x, widths, mode=mode)]

            yield Change(
                "padding",
                equation.outputs[0],
                f"padding by {mode} for zeros",
                {position: replace(equation, call=call)},
            )


def _window_padding(setting: Setting, position: int, equation: Any) -> Iterator[Change]:
    params = equation.params
    if "padding" not in params:
        return
    shape = setting.node(equation.inputs[0]).shape
    out = setting.node(equation.outputs[0]).shape
    window, strides = params["window_dimensions"], params["window_strides"]
    options: list[list[tuple[int, int]]] = []
    for n, w, s, o, now in zip(shape, window, strides, out, params["padding"], strict=True):
        total = max((o - 1) * s + w - n, 0)
        found = [tuple(now)]
        if w > 1:
            found += [
                (low, total - low + extra) for low in range(min(w, total + s)) for extra in range(s)
            ]
        options.append([p for p in dict.fromkeys(found) if min(p) >= 0])
    for n in range(max(map(len, options))):
        new = tuple(o[n] if n < len(o) else o[0] for o in options)
        if new == tuple(params["padding"]):
            continue
        changed = replace(equation, params={**params, "padding": new})
        words = f"padding {_plain(new)} for {_plain(params['padding'])}"
        yield Change("padding", equation.outputs[0], words, {position: changed})


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
