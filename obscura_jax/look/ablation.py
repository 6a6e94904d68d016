"""Ablation: the same text through the model without one of its parts.

A part that is taken out adds nothing to the residual stream (zero ablation). Each function runs the
whole model once per part: the heads of a block together under `jax.vmap`, block after block.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Integer

from obscura_jax.look.activations import apply_scaled
from obscura_jax.nn.model import GPTModel

# From logits (T, V) to what is kept of them: arrays, in any structure.
Reduce = Callable[[Array], Any]


def head_ablations(
    model: GPTModel, params: Any, ids: Integer[Array, " t"], reduce: Reduce = jax.nn.log_softmax
) -> Any:
    """Return `reduce(logits)` of the model without each of its heads.

    Args:
        model: the model, of L blocks with H heads.
        params: its parameters.
        ids: the token ids of one text, (T,).
        reduce: maps logits (T, V) to what is wanted of them. By default these are all
            log-probabilities, which take L * H * T * V numbers.

    Returns:
        The arrays that `reduce` returns, with two axes (L, H) before their own.
    """
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    everything = jnp.ones(layers)

    def without(block: Array, head: Array) -> Any:
        factors = jnp.ones((layers, heads)).at[block, head].set(0)
        return reduce(apply_scaled(model, params, ids, factors, everything))

    def without_each(block: Array) -> Any:
        return jax.vmap(lambda head: without(block, head))(jnp.arange(heads))

    return lax.map(without_each, jnp.arange(layers))


def feed_forward_ablations(
    model: GPTModel, params: Any, ids: Integer[Array, " t"], reduce: Reduce = jax.nn.log_softmax
) -> Any:
    """Return `reduce(logits)` of the model without the feed-forward layers of each block.

    Takes the arguments of `head_ablations`. The arrays have one axis (L,) before their own.
    """
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    everything = jnp.ones((layers, heads))

    def without(block: Array) -> Any:
        factors = jnp.ones(layers).at[block].set(0)
        return reduce(apply_scaled(model, params, ids, everything, factors))

    return lax.map(without, jnp.arange(layers))
