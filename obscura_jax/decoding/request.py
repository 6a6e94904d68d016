"""The door of generation: options and prompts are checked here, and laid out as arrays.

Everything is checked on the host, before anything is traced.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import NDArray

from obscura_jax.checks import check_size
from obscura_jax.config import GENERATOR, GPTConfig
from obscura_jax.decoding.alternatives import alternative_counts, table_width
from obscura_jax.decoding.cache import bucket_length
from obscura_jax.decoding.controls import NO_CONTROLS, Controls
from obscura_jax.decoding.per_row import IdsPerRow, IntPerRow, ids_per_row
from obscura_jax.decoding.programs import DEFAULT_PROGRAMS, GenerationPrograms
from obscura_jax.decoding.sampling import GREEDY, Sampling
from obscura_jax.decoding.state import Request
from obscura_jax.nn.token_ids import validate_sequences

DEFAULT_NEW_TOKENS = 64


@dataclass(frozen=True)
class GenerationOptions:
    """Options that `generate`, `stream` and `stream_text` share.

    Attributes:
        sampling: temperature and filters; by default greedy.
        key: a typed key for all rows, or an array of one per row; needed above temperature 0. The
            token at position p of a row is sampled with `fold_in(key, p)`.
        stop_ids: ids that end a row: one list for all rows, or one list per row.
        dtype: type to compute in, float32 or bfloat16; by default the type of the parameters.
        sliding_window: continue beyond `context_length` instead of raising an error. Each step
            then runs the model on the last `context_length` tokens, as the course does.
        programs: the programs to run; by default those for one device.
        controls: biases, bans, penalties and a minimum length; by default none.
        top_logprobs: number of most probable tokens to return at each position, at most 20; one
            number for all rows, or a list with one per row.
    """

    sampling: Sampling = GREEDY
    key: jax.Array | None = None
    stop_ids: IdsPerRow = ()
    dtype: DTypeLike | None = None
    sliding_window: bool = False
    programs: GenerationPrograms = DEFAULT_PROGRAMS
    controls: Controls = NO_CONTROLS
    top_logprobs: IntPerRow = None


DEFAULT_OPTIONS = GenerationOptions()


@dataclass(frozen=True)
class Plan:
    """A checked call.

    Attributes:
        prompts: (B, T) int32 token ids, padded on the right.
        request: the settings of each row.
        longest: number of tokens in the longest prompt.
        new_tokens: maximum number of new tokens per row.
        n_alternatives: number of most probable tokens to keep at each position of every row.
    """

    prompts: jax.Array
    request: Request
    longest: int
    new_tokens: int
    n_alternatives: int


def plan_generation(
    cfg: GPTConfig,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | None,
    options: GenerationOptions = DEFAULT_OPTIONS,
) -> Plan:
    """Check a call of `generate` for a model of `cfg`; raise ValueError as `generate` says."""
    if max_new_tokens is not None:
        check_size("max_new_tokens", max_new_tokens)
    _check_support(options)
    padded, lengths = pad_sequences(prompts, cfg)
    rows, longest = len(lengths), max(lengths)
    sampling = options.sampling.arrays(rows, cfg.vocab_size)
    stop_ids = ids_per_row("stop_ids", options.stop_ids, rows, cfg.vocab_size)
    needs_key = bool((np.asarray(sampling.temperature) > 0).any())
    request = Request(
        lengths=jnp.asarray(lengths, jnp.int32),
        sampling=sampling,
        keys=_keys(options.key, rows, needs_key),
        stop_ids=_stop_id_table(stop_ids),
        controls=options.controls.arrays(rows, cfg.vocab_size, stop_ids),
    )
    new = _new_tokens(max_new_tokens, longest, cfg.context_length, options.sliding_window)
    least = max(options.controls.min_lengths(rows))
    if least > new:
        raise ValueError(
            f"min_new_tokens={least} exceeds the maximum of {new} new tokens; lower it, or raise "
            "max_new_tokens"
        )
    counts = alternative_counts(options.top_logprobs, rows, cfg.vocab_size)
    width = table_width(counts, cfg.vocab_size)
    return Plan(jnp.asarray(padded), request, longest, new, width)


def pad_sequences(
    sequences: Sequence[Sequence[int]], cfg: GPTConfig
) -> tuple[NDArray[np.int32], list[int]]:
    """Return checked token ids, (B, T), padded on the right to a bucket's length; and lengths.

    Raises:
        ValueError: for an empty batch or row, and ids outside the vocabulary.
    """
    if len(sequences) == 0:
        raise ValueError("the batch is empty; give at least one prompt")
    rows = []
    for number, sequence in enumerate(sequences):
        try:
            ids = np.asarray(validate_sequences(sequence, cfg.vocab_size))
            if ids.ndim > 1:
                raise ValueError(f"token ids must be a flat list, got shape {ids.shape}")
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}") from None
        rows.append(ids)
    lengths = [len(ids) for ids in rows]
    longest = max(lengths)
    limit = cfg.context_length if longest <= cfg.context_length else None
    padded = np.zeros((len(rows), bucket_length(longest, limit)), np.int32)
    for number, ids in enumerate(rows):
        padded[number, : len(ids)] = ids
    return padded, lengths


def _new_tokens(requested: int | None, longest: int, context: int, sliding_window: bool) -> int:
    """Return how many tokens to generate after the longest prompt; see `generate`."""
    left = context - longest
    if sliding_window or (requested is not None and requested <= left):
        return DEFAULT_NEW_TOKENS if requested is None else requested
    if left < 1:
        verb = "fills" if left == 0 else "exceeds"
        raise ValueError(
            f"a prompt of {longest} tokens {verb} the context of {context} tokens; shorten it, or "
            "pass sliding_window=True (--sliding)"
        )
    if requested is None:
        return min(left, DEFAULT_NEW_TOKENS)
    raise ValueError(
        f"{longest} prompt tokens + {requested} new tokens exceed the context of {context} tokens; "
        f"request at most {left}, or pass sliding_window=True (--sliding)"
    )


def _keys(key: jax.Array | None, rows: int, needed: bool) -> jax.Array:
    """Return (B,) typed keys."""
    if key is None:
        if needed:
            raise ValueError("sampling at a temperature above 0 needs a key: key=jax.random.key(0)")
        key = jax.random.key(0, impl=GENERATOR)  # unused by greedy rows
    if not jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key):
        raise ValueError("key must be a typed key, as returned by jax.random.key(0)")
    if key.shape not in ((), (rows,)):
        raise ValueError(f"key must be one key, or {rows} (one per row); got shape {key.shape}")
    return jnp.broadcast_to(key, (rows,))


def _stop_id_table(stop_ids: list[list[int]]) -> jax.Array:
    """Return (B, S) ids, padded with -1."""
    table = np.full((len(stop_ids), bucket_length(max(map(len, stop_ids)))), -1, np.int32)
    for row, ids in enumerate(stop_ids):
        table[row, : len(ids)] = ids
    return jnp.asarray(table)


def _check_support(options: GenerationOptions) -> None:
    """Raise ValueError if the programs lack something that the options ask for."""
    names = options.controls.used() + ["top_logprobs"] * (options.top_logprobs is not None)
    if names and not options.programs.have_controls:
        raise ValueError(
            f"an exported model has no {names[0]}; leave it out, or load the model that was "
            "exported"
        )
