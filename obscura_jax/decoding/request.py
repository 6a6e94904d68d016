"""The door of generation: options and prompts are checked here, and laid out as arrays.

Everything is checked on the host, before anything is traced.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from obscura_jax.checks import check_size
from obscura_jax.config import GENERATOR, GPTConfig
from obscura_jax.decoding.alternatives import alternative_counts, table_width
from obscura_jax.decoding.cache import bucket_length
from obscura_jax.decoding.controls import NO_CONTROLS, Controls
from obscura_jax.decoding.per_row import IdsPerRow, IntPerRow, ids_per_row
from obscura_jax.decoding.prefix import Prefix
from obscura_jax.decoding.sampling import GREEDY, Sampling, for_each_key
from obscura_jax.decoding.state import Request
from obscura_jax.nn.token_ids import validate_sequences

DEFAULT_NEW_TOKENS = 64


@dataclass(frozen=True)
class GenerationOptions:
    """Options for continuing prompts, of `Generator`, `stream` and `stream_text`.

    Attributes:
        sampling: temperature and filters; by default greedy.
        key: a typed key for all prompts, or an array of one per prompt; needed above temperature 0.
            The token at position p of a row is sampled with `fold_in(key, p)`.
        stop_ids: ids that end a row: one list for all prompts, or one list per prompt.
        sliding_window: continue beyond `context_length` instead of raising an error. Each step
            then runs the model on the last `context_length` tokens, as the course does.
        samples: number of rows that continue each prompt, which is read once. The rows of a prompt
            follow each other; above 1, sample n of a prompt uses `fold_in(key, n)` as its key.
        prefix: the start that all prompts share, from `Generator.prefix`; the prompts follow it.
        controls: biases, bans, penalties and a minimum length; by default none.
        top_logprobs: number of most probable tokens to return at each position, at most 20; one
            number for all prompts, or a list with one per prompt.
    """

    sampling: Sampling = GREEDY
    key: jax.Array | None = None
    stop_ids: IdsPerRow = ()
    sliding_window: bool = False
    samples: int = 1
    prefix: Prefix | None = None
    controls: Controls = NO_CONTROLS
    top_logprobs: IntPerRow = None


DEFAULT_OPTIONS = GenerationOptions()


@dataclass(frozen=True)
class Plan:
    """A checked call.

    Attributes:
        prompts: (B, T) int32 token ids, padded on the right.
        lengths: number of tokens in each prompt.
        request: the settings of each row, of which there are `samples` per prompt.
        new_tokens: maximum number of new tokens per row.
        samples: number of rows per prompt.
        prefix: the start of all prompts, already read.
        n_alternatives: number of most probable tokens to keep at each position of every row.
        top_logprobs: how many of them each row reports.
    """

    prompts: NDArray[np.int32]
    lengths: list[int]
    request: Request
    new_tokens: int
    samples: int = 1
    prefix: Prefix | None = None
    n_alternatives: int = 0
    top_logprobs: list[int] = field(default_factory=list)

    @property
    def longest(self) -> int:
        """Number of tokens in the longest prompt."""
        return max(self.lengths)


def plan_generation(
    cfg: GPTConfig,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | None,
    options: GenerationOptions = DEFAULT_OPTIONS,
) -> Plan:
    """Check a call of `generate` for a model of `cfg`; raise ValueError as `generate` says."""
    if max_new_tokens is not None:
        check_size("max_new_tokens", max_new_tokens)
    samples = check_size("samples", options.samples)
    padded, lengths = pad_sequences(prompts, cfg)
    if options.prefix is not None:
        padded, lengths = pad_sequences([[*options.prefix.ids, *prompt] for prompt in prompts], cfg)
    rows = len(lengths)
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
    if samples > 1:
        request = _sampled(request, samples)
    new = _new_tokens(max_new_tokens, max(lengths), cfg.context_length, options.sliding_window)
    least = max(options.controls.min_lengths(rows))
    if least > new:
        raise ValueError(
            f"min_new_tokens={least} exceeds the maximum of {new} new tokens; lower it, or raise "
            "max_new_tokens"
        )
    counts = alternative_counts(options.top_logprobs, rows, cfg.vocab_size)
    width = table_width(counts, cfg.vocab_size)
    reported = [count for count in counts for _ in range(samples)]
    return Plan(padded, lengths, request, new, samples, options.prefix, width, reported)


def _sampled(request: Request, samples: int) -> Request:
    """Return the request with `samples` rows in place of each, whose keys differ."""
    repeated: Request = jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), request)
    numbers = jnp.tile(jnp.arange(samples, dtype=jnp.uint32), len(request.lengths))
    return repeated._replace(keys=for_each_key(jax.random.fold_in, repeated.keys, numbers))


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
