"""Changes of windows: padding, steps and dilation of convolutions and pooling."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from obscura_jax.parity.changes import Change, operand_of
from obscura_jax.parity.setting import Setting


def convolutions(setting: Setting, position: int, equation: Any) -> Iterator[Change]:
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


def pads(setting: Setting, position: int, equation: Any) -> Iterator[Change]:
    """Pad at the other end, at both ends, or with entries of the array."""
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


def window_padding(setting: Setting, position: int, equation: Any) -> Iterator[Change]:
    """Pad windows, such as those of pooling, in another way that gives the same shape."""
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
