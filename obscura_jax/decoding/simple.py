"""The course's greedy loop `generate_text_simple` (chapter 4.7), compiled once."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int
from numpy.typing import ArrayLike

from obscura_jax.checks import check_size
from obscura_jax.nn.model import GPTModel
from obscura_jax.nn.token_ids import validate_sequences


def generate_text_simple(
    model: GPTModel,
    params: Any,
    idx: ArrayLike,
    max_new_tokens: int,
    context_size: int,
) -> Int[Array, "b t"]:
    """Append the most probable next token, `max_new_tokens` times, to every row of `idx`.

    Each step runs the model on the last `context_size` tokens, with positions counted from the
    first token in the window, exactly as the course does. Faster loops are tested against this one.
    It is compiled once per model, shape of `idx` and pair of sizes.

    Args:
        model: the model.
        params: its parameters.
        idx: prompts of one length, (B, T) token ids.
        max_new_tokens: number of tokens to append, at least 1.
        context_size: maximum number of tokens the model sees; at most its `context_length`.

    Returns:
        (B, T + max_new_tokens) int32: the prompts, each with its new tokens appended.

    Raises:
        ValueError: for an empty prompt, ids outside the vocabulary, or sizes out of range.
    """
    max_new_tokens = check_size("max_new_tokens", max_new_tokens)
    context_size = check_size("context_size", context_size)
    if np.ndim(idx) != 2:
        raise ValueError(
            f"idx must have two axes, prompts and positions; got shape {np.shape(idx)}"
        )
    if context_size > model.cfg.context_length:
        raise ValueError(
            f"context_size={context_size} exceeds the model's "
            f"context_length={model.cfg.context_length}"
        )
    ids = validate_sequences(idx, model.cfg.vocab_size)
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
        # The window has a fixed width and ends at the last token. While there are fewer tokens than
        # that, it starts at the first one, and the causal mask hides what follows the last one.
        length = prompt_length + step
        start = jnp.maximum(length - window, 0)
        seen = lax.dynamic_slice_in_dim(tokens, start, window, axis=1)
        logits = model.apply({"params": params}, seen)
        last = lax.dynamic_index_in_dim(logits, length - 1 - start, axis=1, keepdims=False)
        new = last.argmax(axis=-1).astype(tokens.dtype)
        return lax.dynamic_update_slice_in_dim(tokens, new[:, None], length, axis=1)

    tokens = jnp.pad(idx, ((0, 0), (0, max_new_tokens)))
    return lax.fori_loop(0, max_new_tokens, append_one, tokens)
