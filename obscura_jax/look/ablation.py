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


def block_ablations(
    model: GPTModel,
    params: Any,
    ids: Integer[Array, " t"],
    block: Array | int,
    reduce: Reduce = jax.nn.log_softmax,
) -> tuple[Any, Any]:
    """Return `reduce(logits)` without each head of a block, and without its feed-forward layers.

    Args:
        model: the model, of L blocks with H heads.
        params: its parameters.
        ids: the token ids of one text, (T,).
        block: the number of the block, which may be traced.
        reduce: maps logits (T, V) to what is wanted of them; by default all log-probabilities.

    Returns:
        The arrays that `reduce` returns, with an axis (H,) before their own; and those for the
        feed-forward layers, with only their own axes.
    """
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    every_head, every_layer = jnp.ones((layers, heads)), jnp.ones(layers)

    def without_head(head: Array) -> Any:
        factors = every_head.at[block, head].set(0)
        return reduce(apply_scaled(model, params, ids, factors, every_layer))

    logits = apply_scaled(model, params, ids, every_head, every_layer.at[block].set(0))
    return jax.vmap(without_head)(jnp.arange(heads)), reduce(logits)


def head_ablations(
    model: GPTModel, params: Any, ids: Integer[Array, " t"], reduce: Reduce = jax.nn.log_softmax
) -> Any:
    """Return `reduce(logits)` of the model without each of its heads.

    Takes the arguments of `block_ablations`, except for the block. The arrays have two axes (L, H)
    before their own; by default these are L * H * T * V numbers.
    """

    def of_block(block: Array) -> Any:
        return block_ablations(model, params, ids, block, reduce)[0]

    return lax.map(of_block, jnp.arange(model.cfg.n_layers))


def feed_forward_ablations(
    model: GPTModel, params: Any, ids: Integer[Array, " t"], reduce: Reduce = jax.nn.log_softmax
) -> Any:
    """Return `reduce(logits)` of the model without the feed-forward layers of each block.

    Takes the arguments of `head_ablations`. The arrays have one axis (L,) before their own.
    """

    def of_block(block: Array) -> Any:
        return block_ablations(model, params, ids, block, reduce)[1]

    return lax.map(of_block, jnp.arange(model.cfg.n_layers))
