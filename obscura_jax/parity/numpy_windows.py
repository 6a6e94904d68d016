"""JAX's convolutions and window reductions in NumPy, in float64.

Mends change their padding, strides and dilation. JAX would compile every one of these.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[Any]
Params = Mapping[str, Any]


def convolution(p: Params, x: Array, kernel: Array) -> Array:
    """Return the result of `conv_general_dilated`."""
    numbers = p["dimension_numbers"]
    if p.get("batch_group_count", 1) != 1 or x.dtype.kind != "f":
        raise NotImplementedError
    x = x.transpose(numbers.lhs_spec)  # batch, channels, positions
    kernel = kernel.transpose(numbers.rhs_spec)  # outputs, inputs, positions
    x = _padded(x, ((0, 0), (0, 0), *p["padding"]), (1, 1, *p["lhs_dilation"]), 0.0)
    windows = _windows(x, (1, 1, *kernel.shape[2:]), (1, 1, *p["window_strides"]), p)
    groups, spatial = p["feature_group_count"], kernel.ndim - 2
    batch, channels, *places = windows.shape[: 2 + spatial]
    size = int(np.prod(kernel.shape[2:]))
    patches = windows.reshape(batch, groups, channels // groups, int(np.prod(places)), size)
    patches = patches.transpose(0, 1, 3, 2, 4).reshape(batch, groups, -1, channels // groups * size)
    outputs = kernel.shape[0] // groups
    weights = kernel.reshape(groups, outputs, -1).transpose(0, 2, 1)
    result = np.matmul(patches, weights).transpose(0, 1, 3, 2)
    result = result.reshape(batch, kernel.shape[0], *places)
    return np.ascontiguousarray(result.transpose(np.argsort(numbers.out_spec)))


def window(function: Callable[..., Any], start: float) -> Callable[..., Array]:
    """Return how a primitive such as `reduce_window_max` is computed.

    Args:
        function: reduces the last axes, such as np.max.
        start: the value of the padding.
    """

    def call(p: Params, x: Array, *_: Array) -> Array:
        if x.dtype.kind != "f":
            raise NotImplementedError
        x = _padded(x, p["padding"], p["base_dilation"], start)
        sizes, strides = p["window_dimensions"], p["window_strides"]
        windows = _windows(x, sizes, strides, {"rhs_dilation": p["window_dilation"]}, all_axes=True)
        return np.asarray(function(windows, axis=tuple(range(x.ndim, 2 * x.ndim))))

    return call


def _padded(
    x: Array, padding: Sequence[tuple[int, int]], dilation: Sequence[int], value: float
) -> Array:
    """Return an array with entries between its entries and around them; less than 0 cuts."""
    spread = [(n - 1) * d + 1 if n else 0 for n, d in zip(x.shape, dilation, strict=True)]
    shape = [n + low + high for n, (low, high) in zip(spread, padding, strict=True)]
    if any(low < 0 or high < 0 for low, high in padding):
        raise NotImplementedError
    out = np.full(shape, value)
    place = tuple(
        slice(low, low + n, d) for n, (low, _), d in zip(spread, padding, dilation, strict=True)
    )
    out[place] = x
    return out


def _windows(
    x: Array, sizes: Sequence[int], strides: Sequence[int], p: Params, all_axes: bool = False
) -> Array:
    """Return the windows of an array: their places first, then the entries of each."""
    skipped = 0 if all_axes else 2
    dilation = (1,) * skipped + tuple(p["rhs_dilation"])
    reach = [(n - 1) * d + 1 for n, d in zip(sizes, dilation, strict=True)]
    view = sliding_window_view(x, reach)
    places = tuple(slice(None, None, s) for s in strides)
    inner = tuple(slice(None, None, d) for d in dilation)
    found = view[places + inner]
    if skipped:  # the windows of batch and channels have one entry
        found = found.reshape(*found.shape[: x.ndim], *found.shape[x.ndim + skipped :])
    return found
