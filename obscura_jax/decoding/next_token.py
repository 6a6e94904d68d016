"""The choice of the next token of each row, with its log-probability.

Axes: B rows of the batch, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Int32, Key

from obscura_jax.decoding.filters import Logits, RowFloats
from obscura_jax.decoding.sampling import (
    SamplingArrays,
    filter_logits,
    for_each_key,
    gumbel_noise,
    log_probability,
    sample,
)
from obscura_jax.nn.target import on_one_gpu

_LOWEST = float(jnp.finfo(jnp.float32).min)


class NextToken(NamedTuple):
    """The choice.

    Attributes:
        ids: the token of each row; V if its logits contain NaN, or +inf in a row that is sampled.
        logprobs: their log-probabilities under the model, before temperature and filters;
            undefined for a row with NaN or infinite logits.
        finite: whether all logits are finite.
    """

    ids: Int32[Array, " b"]
    logprobs: RowFloats
    finite: Bool[Array, ""]


def choose_next(
    logits: Logits,
    controlled: Logits,
    settings: SamplingArrays,
    keys: Key[Array, " b"],
    positions: Int[Array, " b"],
) -> NextToken:
    """Choose a token for each row, which is sampled with `fold_in(key, position)`.

    `controlled` are the logits that a row's controls leave to sampling.
    """
    if on_one_gpu():
        return _choose_in_few_kernels(logits, controlled, settings, keys, positions)
    ids = sample(controlled, settings, for_each_key(jax.random.fold_in, keys, positions))
    return NextToken(ids, log_probability(logits, ids), jnp.isfinite(logits).all())


class Summary(NamedTuple):
    """The result of one pass over logits, per row."""

    largest: RowFloats  # NaN if the row contains NaN
    ids: Int32[Array, " b"]  # where it is: the lowest id among equals, V if the row contains NaN
    total: RowFloats  # sum of exp(logit - largest)
    finite: Bool[Array, " b"]  # whether all logits are finite


def summarize(logits: Logits) -> Summary:
    """Return the `Summary` of each row, in one reduction of several values.

    A GPU runs one kernel, or two for long rows, for every reduction of the vocabulary.
    """
    vocab_size = logits.shape[1]

    def join(a: Summary, b: Summary) -> Summary:
        largest = jnp.maximum(a.largest, b.largest)
        ids = jnp.minimum(
            jnp.where(a.largest == largest, a.ids, vocab_size),
            jnp.where(b.largest == largest, b.ids, vocab_size),
        )
        total = a.total * jnp.exp(a.largest - largest) + b.total * jnp.exp(b.largest - largest)
        return Summary(largest, ids, total, a.finite & b.finite)

    each = Summary(
        largest=logits,
        ids=lax.broadcasted_iota(jnp.int32, logits.shape, 1),
        total=jnp.ones_like(logits),
        finite=jnp.isfinite(logits),
    )
    empty = Summary(jnp.float32(_LOWEST), jnp.int32(vocab_size), jnp.float32(0), jnp.bool(True))
    found = lax.reduce(each, empty, join, (1,))
    return Summary(*found)


def _choose_in_few_kernels(
    logits: Logits,
    controlled: Logits,
    settings: SamplingArrays,
    keys: Key[Array, " b"],
    positions: Int[Array, " b"],
) -> NextToken:
    """Do the work of `choose_next` in few passes over the logits if no row is sampled."""
    found = summarize(logits)
    greedy = found.ids if controlled is logits else summarize(controlled).ids
    drawn = settings.temperature > 0

    def draw() -> Array:
        folded = for_each_key(jax.random.fold_in, keys, positions)
        noisy = filter_logits(controlled, settings) + gumbel_noise(folded, logits.shape[1])
        return jnp.where(drawn, summarize(noisy).ids, greedy)

    ids = lax.cond(jnp.any(drawn), draw, lambda: greedy)
    chosen = jnp.take_along_axis(logits, ids[:, None], axis=1, mode="clip")[:, 0]
    return NextToken(ids, chosen - found.largest - jnp.log(found.total), found.finite.all())
