"""Functions that models apply: activations, other functions of one number, and norms."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import special

from obscura_jax.parity.setting import Setting

Function = Callable[[Any], Any]
ACTIVATIONS: dict[str, Function] = {
    "gelu(approximate=False)": lambda x: 0.5 * x * special.erfc(-x * math.sqrt(0.5)),
    "gelu(approximate=True)": lambda x: (
        0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "silu": lambda x: x * special.expit(x),
    "relu": lambda x: np.maximum(x, 0),
    "quick gelu": lambda x: x * special.expit(1.702 * x),
    "sigmoid": special.expit,
    "tanh": np.tanh,
    "leaky relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "leaky relu with 0.2": lambda x: np.where(x > 0, x, 0.2 * x),
    "relu squared": lambda x: np.square(np.maximum(x, 0)),
    "relu6": lambda x: np.clip(x, 0, 6),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    "softplus": lambda x: np.logaddexp(x, 0),
    "mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
    "hard swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hard sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "exp": np.exp,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "no activation": lambda x: x,
}
UNARY: dict[str, Function] = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log1p": np.log1p,
    "log": np.log,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "square": np.square,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "logistic": special.expit,
    "abs": np.abs,
    "neg": lambda x: -x,
    "log2": lambda x: np.log(x) / math.log(2),
    "softplus": lambda x: np.logaddexp(x, 0),
}


def normalizations(
    setting: Setting, shape: tuple[int, ...], parameters: tuple[int, ...]
) -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """Yield the softmax over each axis, and norms of several kinds, with their parameters."""
    axes = range(len(shape))
    if not parameters:
        for axis in axes:
            name = f"softmax over axis {axis}"
            yield "axis", name, lambda x, axis=axis: special.softmax(x, axis)
        for axis in axes:
            name = f"log softmax over axis {axis}"
            yield "axis", name, lambda x, axis=axis: special.log_softmax(x, axis)
    epsilons = [x for x in setting.torch_numbers if 0 <= x < 1e-2] or [1e-5, 1e-6]
    for axis in reversed(axes):
        for epsilon in epsilons:
            for kind, name, norm in _norms(axis, epsilon):
                if not parameters:
                    yield kind, name, norm
                elif _fits(setting, parameters, shape, axis):
                    yield kind, name, _with_parameters(norm, axis, len(shape))
                    if len(parameters) == 2:
                        yield kind, name, _with_parameters(norm, axis, len(shape), True)


def _norms(axis: int, epsilon: float) -> Iterator[tuple[str, str, Function]]:
    def moments(x: Any) -> tuple[Any, Any]:
        centered = x - x.mean(axis, keepdims=True)
        return centered, np.square(centered).mean(axis, keepdims=True)

    def layer(x: Any) -> Any:
        centered, variance = moments(x)
        return centered / np.sqrt(variance + epsilon)

    def unbiased(x: Any) -> Any:
        centered, variance = moments(x)
        n = x.shape[axis]
        return centered / np.sqrt(variance * n / max(n - 1, 1) + epsilon)

    def outside(x: Any) -> Any:
        centered, variance = moments(x)
        return centered / (np.sqrt(variance) + epsilon)

    def rms(x: Any) -> Any:
        return x / np.sqrt(np.square(x).mean(axis, keepdims=True) + epsilon)

    def rms_outside(x: Any) -> Any:
        return x / (np.sqrt(np.square(x).mean(axis, keepdims=True)) + epsilon)

    def length(x: Any) -> Any:
        return x / np.maximum(np.sqrt(np.square(x).sum(axis, keepdims=True)), epsilon)

    suffix = f" over axis {axis} with epsilon {epsilon:g}"
    yield "norm", f"a layer norm{suffix}", layer
    yield "norm", f"an RMS norm{suffix}", rms
    yield "variance", f"a layer norm with the unbiased variance{suffix}", unbiased
    yield "norm", f"a layer norm with epsilon outside the root{suffix}", outside
    yield "norm", f"an RMS norm with epsilon outside the root{suffix}", rms_outside
    yield "norm", f"division by the length{suffix}", length


def _fits(setting: Setting, parameters: tuple[int, ...], shape: tuple[int, ...], axis: int) -> bool:
    return all(setting.node(i).size == shape[axis] for i in parameters)


def _with_parameters(
    norm: Function, axis: int, ndim: int, exchanged: bool = False
) -> Callable[..., Any]:
    shape = tuple(-1 if n == axis else 1 for n in range(ndim))

    def call(x: Any, *parameters: Any) -> Any:
        ordered = parameters[::-1] if exchanged else parameters
        result = norm(x) * ordered[0].reshape(shape)
        return result + ordered[1].reshape(shape) if len(ordered) > 1 else result

    return call
