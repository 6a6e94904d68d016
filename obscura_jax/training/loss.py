"""The training loss: cross-entropy of the next token over all positions (chapter 5.1)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from obscura_jax.nn.linear import at_least_float32
from obscura_jax.nn.model import GPTModel, RematPolicy
from obscura_jax.nn.scan import hidden_states


def cross_entropy(logits: Float[Array, "*n v"], targets: Int[Array, "*n"]) -> Float[Array, ""]:
    """Return the mean of -log softmax(logits) at the targets, in at least float32."""
    return _summed_cross_entropy(logits, targets) / targets.size


def next_token_loss(
    model: GPTModel,
    params: Any,
    inputs: Int[Array, "b t"],
    targets: Int[Array, "b t"],
    *,
    key: Array | None = None,
    logits_chunk: int | None = None,
    remat: RematPolicy | None = None,
) -> Float[Array, ""]:
    """Return the mean cross-entropy of a batch of windows.

    Args:
        model: the model.
        params: its parameters, with or without stacked blocks (`nn.scan`).
        inputs: token ids, (B, T).
        targets: the id that follows each of them, (B, T).
        key: a typed key for dropout; without one nothing is dropped.
        logits_chunk: number of positions per row whose logits are computed at a time; default:
            all T. A smaller chunk saves memory (logits take B * chunk * V numbers), but the
            output head is computed again for the gradient. T need not be a multiple of it.
        remat: what the backward pass computes again instead of storing it, as in
            `GPTModel.hidden_states`.
    """
    hidden = hidden_states(model, params, inputs, key=key, remat=remat)
    length = targets.shape[1]
    size = min(logits_chunk or length, length)

    @partial(jax.checkpoint, prevent_cse=False)
    def of_chunk(hidden: Array, targets: Array) -> Array:
        logits: Any = model.apply({"params": params}, hidden, method="output_head")
        return _summed_cross_entropy(logits, targets)

    def add(total: Array, start: Array) -> tuple[Array, None]:
        x = lax.dynamic_slice_in_dim(hidden, start, size, axis=1)
        y = lax.dynamic_slice_in_dim(targets, start, size, axis=1)
        return total + of_chunk(x, y), None

    whole, rest = divmod(length, size)
    if whole == 1 and rest == 0:
        logits: Any = model.apply({"params": params}, hidden, method="output_head")
        return cross_entropy(logits, targets)
    zero = jnp.zeros((), at_least_float32(hidden.dtype))
    total, _ = lax.scan(add, zero, jnp.arange(whole) * size)
    if rest:
        total += of_chunk(hidden[:, -rest:], targets[:, -rest:])
    return total / float(targets.size)  # as an int it could exceed 32 bits


def _summed_cross_entropy(
    logits: Float[Array, "*n v"], targets: Int[Array, "*n"]
) -> Float[Array, ""]:
    logits = logits.astype(at_least_float32(logits.dtype))
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).sum()
