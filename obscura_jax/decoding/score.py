"""`score`: log-probabilities and perplexity of texts under a model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from obscura_jax.decoding.request import pad_sequences
from obscura_jax.decoding.sampling import log_probability
from obscura_jax.decoding.state import check_finite
from obscura_jax.nn.dtypes import cast_params
from obscura_jax.nn.model import GPTModel
from obscura_jax.text.any_tokenizer import token_ids
from obscura_jax.text.tokenizers import Tokenizer, gpt2_tokenizer, has_gpt2_size

_CHUNK = 128  # positions whose logits exist at once


@dataclass(frozen=True)
class Score:
    """Log-probabilities and perplexity of each text.

    Attributes:
        tokens: the ids of each text.
        logprobs: the natural log-probability of each id but the first, given the ids before it.
        perplexity: exp(-mean of its logprobs) of each text; NaN for a text of one token.
        corpus_perplexity: the perplexity of all texts together; each token has equal weight.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]
    perplexity: list[float]
    corpus_perplexity: float


def score(
    model: GPTModel,
    params: Any,
    texts: Sequence[str | Sequence[int]],
    *,
    tokenizer: Tokenizer | None = None,
    dtype: DTypeLike | None = None,
) -> Score:
    """Return the log-probability of every token of every text, and their perplexity.

    Texts of any lengths form one batch. Lengths within a bucket share one compiled program, and
    logits of at most 128 positions exist at once.

    Args:
        model: the model.
        params: its parameters.
        texts: token ids, or strings, in which `<|endoftext|>` is one id; at most `context_length`
            tokens each.
        tokenizer: the model's own, such as `load_tokenizer(source, model.cfg)`. By default GPT-2's,
            if the model has its number of tokens, padded or not.
        dtype: type to compute in, float32 or bfloat16; by default the type of `params`.
            Log-probabilities are at least float32.

    Raises:
        ValueError: for an empty batch or text, strings without a tokenizer, ids outside the
            vocabulary, a text longer than `context_length`, or logits that are NaN or infinite.
    """
    return score_ids(model, cast_params(params, dtype), texts, tokenizer)


def score_ids(
    model: GPTModel,
    params: Any,
    texts: Sequence[str | Sequence[int]],
    tokenizer: Tokenizer | None,
    run: Callable[..., Any] | None = None,
) -> Score:
    """Do the work of `score`.

    If given, `run(model, params, ids, lengths)` returns the (B, T) log-probabilities.
    """
    if isinstance(texts, str):
        raise ValueError("texts must be a list of texts, got one string")
    if tokenizer is None and any(isinstance(text, str) for text in texts):
        if not has_gpt2_size(model.cfg.vocab_size):
            raise ValueError(
                f"the tokenizer of a model of {model.cfg.vocab_size} tokens is unknown; pass "
                "tokenizer=load_tokenizer(source, model.cfg), or token ids"
            )
        tokenizer = gpt2_tokenizer()
    rows = [token_ids(tokenizer, text) if isinstance(text, str) else text for text in texts]
    ids, lengths = pad_sequences(rows, model.cfg)
    if max(lengths) > model.cfg.context_length:
        raise ValueError(
            f"a text of {max(lengths)} tokens exceeds context_length={model.cfg.context_length}; "
            "split it"
        )
    if run is None:
        table = jax.device_get(_log_probabilities(model, params, ids))
    else:
        table = run(model, params, ids, lengths)
    logprobs = [row[: length - 1].tolist() for row, length in zip(table, lengths, strict=True)]
    together = [logprob for row in logprobs for logprob in row]
    check_finite(not all(map(math.isfinite, together)))
    tokens = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
    return Score(
        tokens=tokens,
        logprobs=logprobs,
        perplexity=[_perplexity(row) for row in logprobs],
        corpus_perplexity=_perplexity(together),
    )


@partial(jax.jit, static_argnames=("model",))
def _log_probabilities(model: GPTModel, params: Any, ids: Int[Array, "b t"]) -> Float[Array, "b t"]:
    """Return the log-probability of each id's successor; the last column is undefined."""
    hidden: Any = model.apply({"params": params}, ids, method="hidden_states")
    rows, length, _ = hidden.shape
    size = min(_CHUNK, length)
    padding = -length % size
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    successors = jnp.pad(jnp.roll(ids, -1, axis=1), ((0, 0), (0, padding)))

    def score_chunk(start: Array) -> Array:
        x = lax.dynamic_slice_in_dim(hidden, start, size, axis=1)
        targets = lax.dynamic_slice_in_dim(successors, start, size, axis=1)
        logits: Any = model.apply({"params": params}, x, method="output_head")
        flat = log_probability(logits.reshape(rows * size, -1), targets.reshape(-1))
        return flat.reshape(rows, size)

    chunks = lax.map(score_chunk, jnp.arange(0, length, size))
    return jnp.moveaxis(chunks, 0, 1).reshape(rows, -1)[:, :length]


def _perplexity(logprobs: list[float]) -> float:
    if not logprobs:
        return math.nan
    with np.errstate(over="ignore"):
        return float(np.exp(-np.mean(logprobs)))
