"""Controls: biases, bans, penalties and a minimum length, as changes of the logits before sampling.

A row's controls apply in this order: logit bias and bans, repetition penalty, frequency and
presence penalties, minimum length. Temperature and filters see the result, and so do greedy rows.
Settings are traced arrays, and "off" is a value as well, so no setting triggers recompilation.

Axes: B rows of the batch, V vocabulary, K biased ids, S stop ids, T prompt positions, N sampled
tokens. Logits are float32; a logit of -inf excludes its token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, Int, Int32

from obscura_jax.decoding.cache import bucket_length
from obscura_jax.decoding.filters import Logits, RowFloats
from obscura_jax.decoding.per_row import (
    FloatPerRow,
    IdsPerRow,
    IntPerRow,
    ids_per_row,
    is_number,
    numbers_per_row,
    plain,
)
from obscura_jax.nn.token_ids import validate_token_ids

BiasPerRow = Mapping[int, float] | None | Sequence[Mapping[int, float] | None]

_LARGEST = 100  # of biases, of penalties, and of a repetition penalty and its inverse
_BAN = float(np.finfo(np.float32).min)  # means -inf, which `jax_debug_infs` refuses
_ALWAYS = 2**31 - 1


class ControlArrays(NamedTuple):
    """Checked controls of each row, as a pytree of arrays.

    Attributes:
        active_until: (B,), number of sampled tokens from which on the row's controls have no
            effect; 0 if it has none.
        bias_ids: (B, K), the ids that `bias` is added to, all different; padded with V.
        bias: (B, K), the lowest float32 for banned ids.
        repetition_penalty: (B,), 1 if off.
        frequency_penalty: (B,), 0 if off.
        presence_penalty: (B,), 0 if off.
        min_new_tokens: (B,), 0 if off.
    """

    active_until: Int32[Array, " b"]
    bias_ids: Int32[Array, "b k"]
    bias: Float32[Array, "b k"]
    repetition_penalty: RowFloats
    frequency_penalty: RowFloats
    presence_penalty: RowFloats
    min_new_tokens: Int32[Array, " b"]


class History(NamedTuple):
    """The ids that each row has so far.

    Attributes:
        prompts: (B, T), ids of the prompts, padded on the right.
        lengths: (B,), number of tokens in each prompt.
        tokens: (B, N), sampled tokens; entries at or after `n_sampled` are undefined.
        n_sampled: number of tokens sampled so far in every row.
    """

    prompts: Int[Array, "b t"]
    lengths: Int[Array, " b"]
    tokens: Int[Array, "b n"]
    n_sampled: Int[Array, ""]


@dataclass(frozen=True)
class Controls:
    """Controls of what is sampled: each is one value for all rows, or a list with one per row.

    All are off by default. They apply in the order of the fields, before temperature and filters,
    also to greedy rows. Log-probabilities remain those of the model, before all controls.

    Attributes:
        logit_bias: a mapping from token ids to numbers from -100 to 100, added to their logits.
        banned_ids: ids that are never sampled.
        repetition_penalty: divide the logit of each token in the prompt or the new tokens by it if
            the logit is positive, else multiply (Keskar et al. 2019); from 0.01 to 100, 1 is off.
        frequency_penalty: subtract it from the logit of a token once for each time that the token
            is among the new tokens; from -100 to 100. The prompt does not count, as in OpenAI's
            API.
        presence_penalty: subtract it once if the token is among the new tokens; from -100 to 100.
        min_new_tokens: sample no stop id among this many new tokens.
    """

    logit_bias: BiasPerRow = None
    banned_ids: IdsPerRow = ()
    repetition_penalty: FloatPerRow = None
    frequency_penalty: FloatPerRow = None
    presence_penalty: FloatPerRow = None
    min_new_tokens: IntPerRow = None

    def used(self) -> list[str]:
        """Return the names of the controls that were given."""
        given = {field.name: plain(getattr(self, field.name)) for field in fields(self)}
        return [name for name, value in given.items() if value not in (None, (), [], {})]

    def min_lengths(self, rows: int) -> list[int]:
        """Return `min_new_tokens` of each row, 0 if off; raise ValueError as `arrays` does."""

        def is_length(n: Any) -> bool:
            return isinstance(n, int) and 0 <= n <= _ALWAYS

        words = "a whole number of at least 0"
        name, value = "min_new_tokens", self.min_new_tokens
        return [n or 0 for n in numbers_per_row(name, value, rows, is_length, words)]

    def arrays(
        self, rows: int, vocab_size: int, stop_ids: Sequence[Sequence[int]] = ()
    ) -> ControlArrays:
        """Check the controls on the host, and return those of each row.

        Args:
            rows: number of rows.
            vocab_size: number of tokens in the vocabulary.
            stop_ids: the stop ids of each row, which `min_new_tokens` excludes; by default none.

        Raises:
            ValueError: for a number that is NaN or out of its range, an id outside the vocabulary,
                a list that does not have `rows` values, or a row without any id left to sample. The
                message names the control, the row of a list, and the value.
        """
        biases = _biases(self.logit_bias, self.banned_ids, rows, vocab_size)
        least = self.min_lengths(rows)
        for row, bias in enumerate(biases):
            excluded = {token for token, value in bias.items() if value == _BAN}
            if stop_ids and least[row]:
                excluded.update(stop_ids[row])
            if len(excluded) == vocab_size:
                raise ValueError(f"row {row} bans every token; leave at least one to sample")

        def penalty(name: str, lowest: float, off: float) -> Any:
            words = f"a number from {lowest:g} to {_LARGEST}"
            value = getattr(self, name)
            given = numbers_per_row(name, value, rows, lambda x: lowest <= x <= _LARGEST, words)
            return np.array([off if x is None else x for x in given], np.float32)

        repetition = penalty("repetition_penalty", 1 / _LARGEST, 1)
        frequency = penalty("frequency_penalty", -_LARGEST, 0)
        presence = penalty("presence_penalty", -_LARGEST, 0)
        permanent = (repetition != 1) | (frequency != 0) | (presence != 0)
        permanent |= np.array([len(bias) > 0 for bias in biases])
        columns = (*_bias_tables(biases, vocab_size), repetition, frequency, presence)
        active_until = np.where(permanent, _ALWAYS, least).astype(np.int32)
        arrays = (active_until, *columns, np.array(least, np.int32))
        return ControlArrays(*map(jnp.asarray, arrays))


NO_CONTROLS = Controls()


def _biases(logit_bias: Any, banned_ids: Any, rows: int, vocab_size: int) -> list[dict[int, float]]:
    """Return a mapping from ids to biases per row, with `_BAN` for banned ids."""
    listed = not isinstance(logit_bias, Mapping) and logit_bias is not None
    per_row = logit_bias if listed else [logit_bias] * rows
    if isinstance(per_row, str) or not isinstance(per_row, Sequence):
        raise ValueError(f"logit_bias must map token ids to numbers, got {logit_bias!r}")
    if len(per_row) != rows:
        raise ValueError(
            f"logit_bias lists {len(per_row)} values for {rows} rows; give one per row"
        )
    biases: list[dict[int, float]] = []
    for row, own in enumerate(per_row):
        where = f"logit_bias of row {row}" if listed else "logit_bias"
        biases.append(_checked_bias({} if own is None else own, where, vocab_size))
    for bias, banned in zip(
        biases, ids_per_row("banned_ids", banned_ids, rows, vocab_size), strict=True
    ):
        bias.update(dict.fromkeys(banned, _BAN))
    return biases


def _checked_bias(bias: Any, where: str, vocab_size: int) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise ValueError(f"{where} must map token ids to numbers, got {bias!r}")
    try:
        ids = validate_token_ids([plain(token) for token in bias], vocab_size).tolist()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    values = [plain(value) for value in bias.values()]
    for token, value in zip(ids, values, strict=True):
        if not (is_number(value) and abs(value) <= _LARGEST):
            words = f"a number from {-_LARGEST} to {_LARGEST}"
            raise ValueError(f"{where} of token {token} must be {words}, got {value!r}")
    return dict(zip(ids, values, strict=True))


def _bias_tables(biases: list[dict[int, float]], vocab_size: int) -> tuple[Any, Any]:
    """Return ids and values as (B, K) arrays, with K rounded up to a bucket's length."""
    shape = (len(biases), bucket_length(max(map(len, biases))))
    ids, values = np.full(shape, vocab_size, np.int32), np.zeros(shape, np.float32)
    for row, bias in enumerate(biases):
        ids[row, : len(bias)] = list(bias.keys())
        values[row, : len(bias)] = list(bias.values())
    return ids, values


def apply_controls(
    logits: Logits, controls: ControlArrays, stop_ids: Int[Array, "b s"], history: History
) -> Logits:
    """Return the logits that a row's controls leave to sampling; equal to `logits` if none are on.

    `stop_ids` are padded with -1.
    """

    def apply() -> Array:
        bias = jnp.where(controls.bias == _BAN, -jnp.inf, controls.bias)
        biased = _add_at(logits, controls.bias_ids, bias)
        off = (controls.frequency_penalty == 0) & (controls.presence_penalty == 0)
        off &= controls.repetition_penalty == 1
        penalized = lax.cond(
            jnp.all(off), lambda: biased, lambda: _penalize(biased, controls, history)
        )
        early = (history.n_sampled < controls.min_new_tokens)[:, None] & (stop_ids >= 0)
        excluded = jnp.where(early, stop_ids, logits.shape[1])
        return _add_at(penalized, excluded, jnp.full(excluded.shape, -jnp.inf, logits.dtype))

    # The cond skips the work, unless it is vmapped, in steps in which no row has a control.
    active = jnp.any(history.n_sampled < controls.active_until)
    return lax.cond(active, apply, lambda: logits)


def _penalize(logits: Logits, controls: ControlArrays, history: History) -> Logits:
    """Apply the repetition, frequency and presence penalties."""
    sampled = jnp.arange(history.tokens.shape[1], dtype=jnp.int32)[None] < history.n_sampled
    prompt = jnp.arange(history.prompts.shape[1], dtype=jnp.int32)[None] < history.lengths[:, None]
    nothing = jnp.zeros(logits.shape, jnp.int32)
    sampled = jnp.broadcast_to(sampled, history.tokens.shape)
    counts = _count_at(nothing, history.tokens, sampled)
    seen = _count_at(counts, history.prompts, prompt) > 0
    penalty = jnp.where(seen, controls.repetition_penalty[:, None], 1)
    logits = jnp.where(logits > 0, logits / penalty, logits * penalty)
    frequency = controls.frequency_penalty[:, None] * counts.astype(logits.dtype)
    presence = jnp.where(counts > 0, controls.presence_penalty[:, None], 0)
    return logits - (frequency + presence)


def _count_at(counts: Array, ids: Int[Array, "b k"], counted: Array) -> Array:
    """Return (B, V) `counts` plus 1 at each row's ids that are counted.

    The others become V, which has no place, rather than adding 0: before the first token all ids
    and all numbers to add would be 0, and libtpu ends the process if both are one array.
    """
    return _add_at(counts, jnp.where(counted, ids, counts.shape[1]), jnp.ones_like(ids))


def _add_at(table: Array, ids: Int[Array, "b k"], values: Array) -> Array:
    """Return (B, V) `table` with each row's values added at its ids; ids of V and above have none.

    `vmap` makes the rows an axis that a mesh can split.
    """
    return jax.vmap(lambda row, at, added: row.at[at].add(added, mode="drop"))(table, ids, values)
