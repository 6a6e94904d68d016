"""Our solutions of the exercises of the notebooks, and the arguments that they are compared on.

Sizes are odd and unequal, so that exchanged axes change the result. Numbers are drawn in the
default type, which is float64 in the check.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, random
from jax.flatten_util import ravel_pytree

from obscura_jax.config import GPTConfig
from obscura_jax.decoding.simple import generate_text_simple
from obscura_jax.nn.attention import (
    causal_mask,
    scaled_dot_product_attention,
    softmax,
    softmax_naive,
)
from obscura_jax.nn.layers import gelu, layer_norm
from obscura_jax.nn.model import GPTModel, TransformerBlock
from obscura_jax.text.dataset import GPTDatasetV1
from obscura_jax.training.optimizer import OptimizerConfig, optimizer

_CFG = GPTConfig(11, 17, 15, 3, 1, drop_rate=0.0, qkv_bias=False)
_BETWEEN = 1e-10  # relative: float64 rounds by less, and mistakes are larger
_Cases = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Exercise:
    """Our solution of an exercise, and what its check needs.

    Attributes:
        ours: the solution.
        cases: returns the arguments of each call, new ones every time.
        hint: the place to look at if another solution differs.
        static: positions of the static arguments, if a solution must compile.
    """

    ours: Callable[..., Any]
    cases: Callable[[], _Cases]
    hint: str
    static: tuple[int, ...] | None = None


def _draw(key: Array, n: int, width: int) -> Array:
    keys = random.split(key, n)
    return jnp.stack([random.uniform(row_key, (width,)) for row_key in keys])


def _sliding_window(ids: list[int], length: int, stride: int) -> Any:
    dataset = GPTDatasetV1.from_ids(ids, length, stride)
    return dataset.windows(range(len(dataset)))


def _lists() -> _Cases:
    """Return ids that fill their last window, ids with some left over, and windows with gaps."""
    ids = [7 * i % 29 for i in range(29)]
    return [(ids[:17], 4, 3), (ids, 5, 2), (ids[:26], 3, 7)]


def _attention(queries: Array, keys: Array, values: Array) -> Array:
    return scaled_dot_product_attention(queries, keys, values, causal_mask(len(queries)))


def _queries() -> _Cases:
    shapes = ((7, 4), (7, 4), (7, 5))
    return [tuple(map(random.normal, random.split(random.key(3), 3), shapes))]


def _parameters(module: Any, x: Array, key: Array) -> Any:
    """Return parameters of which no scale is 1 and no shift 0."""
    shapes = jax.eval_shape(module.init, key, x)["params"]
    flat, tree = ravel_pytree(jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes))
    return tree(random.normal(key, flat.shape) / 3)


@partial(jax.jit, static_argnames="n_heads")
def _block(params: Any, x: Array, n_heads: int) -> Any:
    return TransformerBlock(_CFG).apply({"params": params}, x)


def _blocks() -> _Cases:
    x = random.normal(random.key(4), (2, 7, _CFG.emb_dim))
    return [(_parameters(TransformerBlock(_CFG), x, random.key(5)), x, _CFG.n_heads)]


def _generation(model: GPTModel, params: Any, prompt: Array, room: int, stop: int) -> Array:
    ids = generate_text_simple(model, params, prompt[None], room, len(prompt) + room)[0]
    stopped = jnp.cumsum((ids == stop) & (jnp.arange(len(ids)) >= len(prompt)))
    return jnp.where(stopped > 0, stop, ids)


def _prompts() -> _Cases:
    """Return a stop id that is generated, and in the prompt too, and one that is not."""
    model, prompt = GPTModel(_CFG), jnp.array([3, 1, 4, 1, 5])
    params = _parameters(model, prompt, random.key(6))
    return [(model, params, prompt, 11, stop) for stop in (3, 10)]


def _adamw(state: Any, gradient: Array) -> Any:
    step, parameter, mean, square = state
    adamw = optimizer(OptimizerConfig())
    moments, *rest = adamw.init(parameter)
    moments = moments._replace(count=step, mu=mean, nu=square)
    update, (moments, *_) = adamw.update(gradient, (moments, *rest), parameter)
    return moments.count, parameter + update, moments.mu, moments.nu


def _states() -> _Cases:
    """Return the state before the first step, and one in the middle of a run."""
    parameter, gradient, mean, root = random.normal(random.key(8), (4, 5, 3))
    zeros = jnp.zeros((5, 3))
    return [
        ((jnp.int32(0), parameter, zeros, zeros), gradient),
        ((jnp.int32(6), parameter, mean, root**2), gradient),
    ]


def _clipped_gradient(loss: Any, params: Any, inputs: Array, targets: Array, limit: float) -> Any:
    def clipped(x: Array, y: Array) -> Any:
        gradient = jax.grad(loss)(params, x, y)
        factor = jnp.minimum(1, limit / optax.tree.norm(gradient))
        return jax.tree.map(lambda part: factor * part, gradient)

    return jax.tree.map(lambda each: each.mean(0), jax.vmap(clipped)(inputs, targets))


def _examples() -> _Cases:
    def loss(params: Any, x: Array, y: Array) -> Array:
        return jnp.square(jnp.tanh(params["weight"] @ x + params["bias"]) - y).sum()

    a, b, c, d = random.split(random.key(9), 4)
    params = {"weight": random.normal(a, (3, 5)), "bias": random.normal(b, (3,))}
    return [(loss, params, random.normal(c, (7, 5)), random.normal(d, (7, 3)), 2.5)]


def _verdict(first: Callable[[Any], Array], second: Callable[[Any], Array], x: Any) -> bool:
    a, b = (np.asarray(function(jnp.asarray(x))) for function in (first, second))
    return bool(np.abs(a - b).max() <= _BETWEEN * np.abs(a).max())


def _pairs() -> _Cases:
    """Return pairs that differ by rounding, up to 1e-4 in float32, or by a mistake, from 4e-7."""

    def norm(eps: float) -> Callable[[Array], Array]:
        return lambda x: layer_norm(x, jnp.ones(5, x.dtype), jnp.zeros(5, x.dtype), eps)

    def mean_square(x: Array) -> Array:
        return jnp.square(x).mean(-1)

    pairs = [
        (softmax, softmax_naive),
        (gelu, lambda x: jax.nn.gelu(x, approximate=False)),
        (lambda x: (1e6 * x).mean(-1), lambda x: 1e6 * x.sum(-1) / 5),
        (norm(1e-5), norm(1e-6)),
        (lambda x: (x + 30).var(-1), lambda x: mean_square(x + 30) - (x + 30).mean(-1) ** 2),
        (
            lambda x: 1 / jnp.sqrt(mean_square(x) + 1e-6),
            lambda x: 1 / (jnp.sqrt(mean_square(x)) + 1e-6),
        ),
    ]
    x = np.random.default_rng(10).normal(size=(7, 5))
    return [(first, second, x.copy()) for first, second in pairs]


EXERCISES = {
    "draw": Exercise(_draw, lambda: [(random.key(1), 5, 3)], "draw each row with a key of its own"),
    "sliding_window": Exercise(
        _sliding_window, _lists, "the last window is the last one whose targets exist"
    ),
    "attention": Exercise(
        _attention, _queries, "see that scores are scaled and position t sees positions 0 to t"
    ),
    "block": Exercise(_block, _blocks, "see what enters each norm, and what each shortcut adds"),
    "generation": Exercise(
        _generation,
        _prompts,
        "see which logits choose a token, and what the loop does after the stop id",
        static=(0, 3, 4),
    ),
    "adamw": Exercise(
        _adamw, _states, "see that the step is counted first, and that only the update is corrected"
    ),
    "clipped_gradient": Exercise(
        _clipped_gradient, _examples, "clip each example's gradient by the norm of all its parts"
    ),
    "verdict": Exercise(
        _verdict,
        _pairs,
        "print both differences of the last pair that your function received",
    ),
}
