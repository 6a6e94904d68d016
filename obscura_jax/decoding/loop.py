"""Generation: `generate_text_simple`, the course's greedy loop (chapter 4.7), compiled once."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int
from numpy.typing import ArrayLike

from obscura_jax.config import check_size
from obscura_jax.nn.model import GPTModel, check_ids


def generate_text_simple(
    model: GPTModel,
    params: Any,
    idx: ArrayLike,
    max_new_tokens: int,
    context_size: int,
) -> Int[Array, "b t"]:
    """Append the most probable next token, `max_new_tokens` times, to every row of `idx`.

    Each step reads the last `context_size` tokens anew, with positions counted from the first token
    still seen: exactly what the course does, and what faster loops are held against. Compiled once
    for a model, a shape of `idx` and the two sizes.

    Args:
        model: the model.
        params: its parameters.
        idx: prompts of one length, (B, T) token ids.
        max_new_tokens: how many tokens to append, at least 1.
        context_size: how many tokens the model sees at most; up to the model's `context_length`.

    Returns:
        (B, T + max_new_tokens) int32: the prompts and what follows them.

    Raises:
        ValueError: for an empty prompt, ids outside the vocabulary, or sizes out of range.
    """
    max_new_tokens = check_size("max_new_tokens", max_new_tokens)
    context_size = check_size("context_size", context_size)
    if np.ndim(idx) != 2:
        raise ValueError(
            f"idx must have two axes, prompts and positions, got shape {np.shape(idx)}"
        )
    if context_size > model.cfg.context_length:
        raise ValueError(
            f"context_size={context_size} exceeds the model's "
            f"context_length={model.cfg.context_length}"
        )
    ids = check_ids(idx, model.cfg.vocab_size)
    return _greedy_loop(model, params, ids, max_new_tokens, context_size)


@partial(jax.jit, static_argnames=("model", "max_new_tokens", "context_size"))
def _greedy_loop(
    model: GPTModel,
    params: Any,
    idx: Int[Array, "b t"],
    max_new_tokens: int,
    context_size: int,
) -> Int[Array, "b t"]:
    prompt_length = idx.shape[1]
    total = prompt_length + max_new_tokens
    window = min(context_size, total - 1)

    def append_one(step: Array, tokens: Array) -> Array:
        # A window of fixed width that ends in the last token, or, while there are fewer tokens than
        # that, starts at the first: what lies behind the last token is hidden by causality.
        length = prompt_length + step
        start = jnp.maximum(length - window, 0)
        seen = lax.dynamic_slice_in_dim(tokens, start, window, axis=1)
        logits = model.apply({"params": params}, seen)
        last = lax.dynamic_index_in_dim(logits, length - 1 - start, axis=1, keepdims=False)
        new = last.argmax(axis=-1).astype(tokens.dtype)
        return lax.dynamic_update_slice_in_dim(tokens, new[:, None], length, axis=1)

    tokens = jnp.pad(idx, ((0, 0), (0, max_new_tokens)))
    return lax.fori_loop(0, max_new_tokens, append_one, tokens)
