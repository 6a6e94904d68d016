"""The intermediate values of a forward pass, and the same pass with parts of the model weakened.

Axes: L blocks, H heads, T positions, D width, K width of a head, V vocabulary. All functions take
one sequence of ids (T,); use `jax.vmap` for several.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from obscura_jax.nn.attention import split_heads
from obscura_jax.nn.intermediates import apply_tapped
from obscura_jax.nn.linear import at_least_float32
from obscura_jax.nn.model import GPTModel


class Activations(NamedTuple):
    """Intermediate values of one forward pass.

    Attributes:
        residual: the residual stream before the first block, then after each block.
        attention: the weights of each head; a row is a query, a column a key.
        contexts: what each head read: its values, averaged under its weights.
        feed_forward: the output of each block's feed-forward layers.
        logits: the logits for the token after each position.
    """

    residual: Float[Array, "l_plus_1 t d"]
    attention: Float[Array, "l h t t"]
    contexts: Float[Array, "l h t k"]
    feed_forward: Float[Array, "l t d"]
    logits: Float[Array, "t v"]


def read_activations(model: GPTModel, params: Any, ids: Integer[Array, " t"]) -> Activations:
    """Run the model on one sequence of ids and return its `Activations`, in at least float32."""
    seen: dict[str, Array] = {}

    def keep(name: str, value: Array) -> Array:
        seen[name] = value.astype(at_least_float32(value.dtype))
        return value

    logits = apply_tapped(model, params, ids, keep)
    blocks = [f"trf_blocks.{n}" for n in range(model.cfg.n_layers)]
    contexts = [split_heads(seen[f"{b}.att.context"], model.cfg.n_heads) for b in blocks]
    return Activations(
        residual=jnp.stack([seen["embeddings"], *(seen[block] for block in blocks)]),
        attention=jnp.stack([seen[f"{block}.att.weights"] for block in blocks]),
        contexts=jnp.stack(contexts),
        feed_forward=jnp.stack([seen[f"{block}.ff.layers.2"] for block in blocks]),
        logits=logits,
    )


def apply_scaled(
    model: GPTModel,
    params: Any,
    ids: Integer[Array, " t"],
    heads: Float[Array, "l h"],
    feed_forward: Float[Array, " l"],
) -> Float[Array, "t v"]:
    """Return the logits of the model with the outputs of its parts multiplied by factors.

    Args:
        model: the model.
        params: its parameters.
        ids: the token ids.
        heads: the factor of each attention head, applied before `out_proj`. 1 changes nothing; 0
            takes the head out, except for the bias that all heads of a block share.
        feed_forward: the factor of the output of each block's feed-forward layers.
    """
    factors: dict[str, Array] = {}
    for block in range(model.cfg.n_layers):
        width = model.cfg.emb_dim // model.cfg.n_heads
        factors[f"trf_blocks.{block}.att.context"] = jnp.repeat(heads[block], width)
        factors[f"trf_blocks.{block}.ff.layers.2"] = feed_forward[block, None]

    def scale(name: str, value: Array) -> Array:
        if name not in factors:
            return value
        return value * jnp.broadcast_to(factors[name].astype(value.dtype), value.shape)

    return apply_tapped(model, params, ids, scale)
