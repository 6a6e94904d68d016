"""Top-n log-probabilities: the most probable tokens at each position, whichever was sampled.

Axes: B rows of the batch, N positions, K alternatives, V vocabulary.
"""

from typing import Any, NamedTuple

from jax import lax
from jaxtyping import Array, Float, Int

from obscura_jax.decoding.filters import Logits
from obscura_jax.decoding.per_row import IntPerRow, numbers_per_row
from obscura_jax.decoding.sampling import log_probabilities

MOST_ALTERNATIVES = 20


class Alternatives(NamedTuple):
    """The K most probable tokens at each position, the most probable first.

    Attributes:
        ids: (B, N, K), or (B, K) at one position; of equally probable tokens the lowest id first.
        logprobs: their log-probabilities under the model, before controls, temperature and filters.
    """

    ids: Int[Array, "b *n k"]
    logprobs: Float[Array, "b *n k"]


def alternative_counts(top_logprobs: IntPerRow, rows: int, vocab_size: int) -> list[int]:
    """Return the number of alternatives that each row reports, 0 for None.

    Raises:
        ValueError: for a number that is not an integer from 0 to 20 or to the size of the
            vocabulary, and for a list that does not have `rows` values.
    """
    most = min(MOST_ALTERNATIVES, vocab_size)

    def is_count(n: Any) -> bool:
        return isinstance(n, int) and 0 <= n <= most

    words = f"a whole number from 0 to {most}"
    return [n or 0 for n in numbers_per_row("top_logprobs", top_logprobs, rows, is_count, words)]


def table_width(counts: list[int], vocab_size: int) -> int:
    """Return K for rows that report `counts` alternatives: 0 if none do.

    All counts above 0 share one width, and so one compiled program.
    """
    return min(MOST_ALTERNATIVES, vocab_size) if any(counts) else 0


def most_probable(logits: Logits, n: int) -> Alternatives:
    """Return the `n` most probable tokens of each row, for logits of one position."""
    _, ids = lax.top_k(logits, n)
    return Alternatives(ids, log_probabilities(logits, ids))


def write(table: Alternatives, new: Alternatives, position: Int[Array, ""]) -> Alternatives:
    """Return `table` with those of one position, (B, K), written there."""

    def update(old: Array, values: Array) -> Array:
        return lax.dynamic_update_index_in_dim(old, values, position, axis=1)

    return Alternatives(update(table.ids, new.ids), update(table.logprobs, new.logprobs))


def reported(
    table: Alternatives, row: int, length: int, count: int
) -> list[list[tuple[int, float]]]:
    """Return the first `count` alternatives at the first `length` positions of a row."""
    ids, logprobs = (x[row, :length, :count].tolist() for x in table)
    return [list(zip(*one, strict=True)) for one in zip(ids, logprobs, strict=True)]
