"""JAX primitives in NumPy, in float64.

A program is evaluated once, so that compiling it takes longer than running it. A primitive that is
not in the table is applied by JAX.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from obscura_jax.parity import numpy_windows
from obscura_jax.parity.jax_lift import lifted_type

Array = NDArray[Any]
Params = Mapping[str, Any]


def _dot_general(p: Params, a: Array, b: Array) -> Array:
    (left, right), (left_batch, right_batch) = p["dimension_numbers"]
    left_free = [n for n in range(a.ndim) if n not in (*left, *left_batch)]
    right_free = [n for n in range(b.ndim) if n not in (*right, *right_batch)]
    batch = [a.shape[n] for n in left_batch]
    rows, columns = [a.shape[n] for n in left_free], [b.shape[n] for n in right_free]
    inner = math.prod(a.shape[n] for n in left)
    if inner != math.prod(b.shape[n] for n in right):
        raise ValueError("the contracted axes have different sizes")
    x = a.transpose(*left_batch, *left_free, *left).reshape(*batch, math.prod(rows), inner)
    y = b.transpose(*right_batch, *right, *right_free).reshape(*batch, inner, math.prod(columns))
    return np.matmul(x, y).reshape(*batch, *rows, *columns)


def _broadcast_in_dim(p: Params, x: Array, *_: Any) -> Array:
    shape, dimensions = p["shape"], p["broadcast_dimensions"]
    sizes = [1] * len(shape)
    for axis, n in zip(dimensions, x.shape, strict=True):
        sizes[axis] = n
    return np.broadcast_to(x.reshape(sizes), shape)


def _select(p: Params, which: Array, *cases: Array) -> Array:
    return (
        np.choose(which.astype(np.int64), cases)
        if len(cases) > 2
        else np.where(which, *cases[::-1])
    )


def _convert(p: Params, x: Array, *_: Any) -> Array:
    target = np.dtype(lifted_type(p["new_dtype"]))
    if x.dtype.kind == "f" and target.kind in "iu":
        x = np.trunc(x)
    return x.astype(target)


def _iota(p: Params, *_: Any) -> Array:
    shape, axis = p["shape"], p["dimension"]
    sizes = [n if k == axis else 1 for k, n in enumerate(shape)]
    numbers = np.arange(shape[axis], dtype=np.dtype(lifted_type(p["dtype"]))).reshape(sizes)
    return np.broadcast_to(numbers, shape)


def _pad(p: Params, x: Array, value: Array) -> Array:
    config = p["padding_config"]
    if any(low < 0 or high < 0 for low, high, _ in config):
        raise NotImplementedError
    shape = [
        low + high + n + max(n - 1, 0) * inner
        for n, (low, high, inner) in zip(x.shape, config, strict=True)
    ]
    out = np.full(shape, value, x.dtype)
    place = tuple(
        slice(low, low + max((n - 1) * (inner + 1) + 1, 0), inner + 1)
        for n, (low, _, inner) in zip(x.shape, config, strict=True)
    )
    out[place] = x
    return out


def _slice(p: Params, x: Array) -> Array:
    strides = p["strides"] or (1,) * x.ndim
    return x[
        tuple(
            slice(*bounds)
            for bounds in zip(p["start_indices"], p["limit_indices"], strides, strict=True)
        )
    ]


def _dynamic_slice(p: Params, x: Array, *starts: Array) -> Array:
    place = []
    for start, size, n in zip(starts, p["slice_sizes"], x.shape, strict=True):
        first = min(max(int(start), 0), n - size)
        place.append(slice(first, first + size))
    return x[tuple(place)]


def _dynamic_update_slice(p: Params, x: Array, update: Array, *starts: Array) -> Array:
    out = x.copy()
    place = []
    for start, size, n in zip(starts, update.shape, x.shape, strict=True):
        first = min(max(int(start), 0), n - size)
        place.append(slice(first, first + size))
    out[tuple(place)] = update
    return out


def _integer_pow(p: Params, x: Array) -> Array:
    y = p["y"]
    if y == 2:
        return x * x
    if y == 3:
        return x * x * x
    return x**y if y >= 0 else 1 / x ** (-y)


def _reduce(function: Callable[..., Any]) -> Callable[..., Array]:
    return lambda p, x: np.asarray(function(x, axis=tuple(p["axes"])))


def _along(function: Callable[..., Any]) -> Callable[..., Array]:
    def call(p: Params, x: Array) -> Array:
        axis = p["axis"]
        if p["reverse"]:
            return np.flip(function(np.flip(x, axis), axis=axis), axis)
        return np.asarray(function(x, axis=axis))

    return call


def _argument(function: Callable[..., Any]) -> Callable[..., Array]:
    def call(p: Params, x: Array) -> Array:
        (axis,) = p["axes"]
        return np.asarray(function(x, axis=axis)).astype(np.dtype(p["index_dtype"]))

    return call


def _of(function: Callable[..., Any]) -> Callable[..., Array]:
    return lambda p, *operands: np.asarray(function(*operands))


def _divide(p: Params, a: Array, b: Array) -> Array:
    if a.dtype.kind in "iu":
        return (np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(a.dtype)
    return np.asarray(a / b)


def _logical(of_bool: Any, of_integer: Any) -> Callable[..., Array]:
    return lambda p, *operands: np.asarray(
        (of_bool if operands[0].dtype == bool else of_integer)(*operands)
    )


def _sign(p: Params, x: Array) -> Array:
    return np.sign(x)


def _clamp(p: Params, least: Array, x: Array, most: Array) -> Array:
    return np.minimum(np.maximum(x, least), most)


def _layout(function: Callable[[Params, Array], Array]) -> Callable[..., Array]:
    return lambda p, x, *_: function(p, x)


_TABLE: dict[str, Callable[..., Array]] = {
    "add": _of(np.add),
    "add_any": _of(np.add),
    "sub": _of(np.subtract),
    "mul": _of(np.multiply),
    "div": _divide,
    "rem": _of(np.fmod),
    "neg": _of(np.negative),
    "abs": _of(np.abs),
    "sign": _sign,
    "max": _of(np.maximum),
    "min": _of(np.minimum),
    "pow": _of(np.power),
    "square": _of(np.square),
    "integer_pow": _integer_pow,
    "exp": _of(np.exp),
    "exp2": _of(np.exp2),
    "expm1": _of(np.expm1),
    "log": _of(np.log),
    "log1p": _of(np.log1p),
    "sqrt": _of(np.sqrt),
    "rsqrt": _of(lambda x: 1 / np.sqrt(x)),
    "cbrt": _of(np.cbrt),
    "sin": _of(np.sin),
    "cos": _of(np.cos),
    "tan": _of(np.tan),
    "tanh": _of(np.tanh),
    "atan2": _of(np.arctan2),
    "logistic": _of(special.expit),
    "erf": _of(special.erf),
    "erfc": _of(special.erfc),
    "floor": _of(np.floor),
    "ceil": _of(np.ceil),
    "is_finite": _of(np.isfinite),
    "eq": _of(np.equal),
    "ne": _of(np.not_equal),
    "ge": _of(np.greater_equal),
    "gt": _of(np.greater),
    "le": _of(np.less_equal),
    "lt": _of(np.less),
    "and": _logical(np.logical_and, np.bitwise_and),
    "or": _logical(np.logical_or, np.bitwise_or),
    "xor": _logical(np.logical_xor, np.bitwise_xor),
    "not": _logical(np.logical_not, np.bitwise_not),
    "select_n": _select,
    "clamp": _clamp,
    "dot_general": _dot_general,
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _layout(lambda p, x: x.reshape(p["new_sizes"])),
    "transpose": _layout(lambda p, x: x.transpose(p["permutation"])),
    "squeeze": _layout(lambda p, x: np.squeeze(x, tuple(p["dimensions"]))),
    "rev": _layout(lambda p, x: np.flip(x, tuple(p["dimensions"]))),
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "concatenate": lambda p, *parts: np.concatenate(parts, p["dimension"]),
    "pad": _pad,
    "iota": _iota,
    "convert_element_type": _convert,
    "copy": _layout(lambda p, x: x),
    "copy_p": _layout(lambda p, x: x),
    "stop_gradient": _layout(lambda p, x: x),
    "reduce_precision": _layout(lambda p, x: x),
    "sharding_constraint": _layout(lambda p, x: x),
    "device_put": _layout(lambda p, x: x),
    "reduce_sum": _reduce(np.sum),
    "reduce_max": _reduce(np.max),
    "reduce_min": _reduce(np.min),
    "reduce_prod": _reduce(np.prod),
    "reduce_and": _reduce(np.all),
    "reduce_or": _reduce(np.any),
    "conv_general_dilated": numpy_windows.convolution,
    "reduce_window_max": numpy_windows.window(np.max, -np.inf),
    "reduce_window_min": numpy_windows.window(np.min, np.inf),
    "reduce_window_sum": numpy_windows.window(np.sum, 0.0),
    "tile": _layout(lambda p, x: np.tile(x, p["reps"])),
    "argmax": _argument(np.argmax),
    "argmin": _argument(np.argmin),
    "cumsum": _along(np.cumsum),
    "cumprod": _along(np.cumprod),
    "cummax": _along(np.maximum.accumulate),
}


def apply(name: str, params: Params, operands: Sequence[Any]) -> list[Array] | None:
    """Return the results of a primitive, or None if it is not known or takes other arrays.

    Args:
        name: name of the primitive.
        params: its parameters.
        operands: its operands.
    """
    function = _TABLE.get(name)
    if function is None or not all(isinstance(x, np.ndarray) for x in operands):
        return None
    with np.errstate(all="ignore"):
        try:
            return [np.asarray(function(params, *operands))]
        except NotImplementedError:
            return None
