"""What `generate` and `stream` share: a checked call, laid out as arrays, and the programs it runs.

Everything is checked here, on the host, before anything is traced.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import NDArray

from obscura_jax.checks import check_size
from obscura_jax.config import GENERATOR, GPTConfig
from obscura_jax.decoding.cache import bucket
from obscura_jax.decoding.programs import (
    DEFAULT_PROGRAMS,
    NO_CACHE,
    GenerationPrograms,
    Request,
    State,
    initial_state,
)
from obscura_jax.decoding.sampling import settings
from obscura_jax.nn.model import GPTModel
from obscura_jax.nn.token_ids import validate_sequences

_MOST_BY_DEFAULT = 64  # new tokens, if the caller gives no number
PerRow = float | None | Sequence[float | None]
PerRowInt = int | None | Sequence[int | None]


class Options(TypedDict, total=False):
    """The settings of `generate`, which `stream` and `stream_text` hand on to `plan`."""

    temperature: PerRow
    top_k: PerRowInt
    top_p: PerRow
    min_p: PerRow
    key: jax.Array | None
    stop_ids: Sequence[int] | Sequence[Sequence[int]]
    dtype: DTypeLike | None
    sliding_window: bool
    programs: GenerationPrograms


@dataclass(frozen=True)
class Plan:
    """A checked call: what the programs are run on."""

    model: GPTModel
    params: Any
    prompts: jax.Array  # (B, T) int32, padded on the right
    request: Request
    max_new_tokens: int
    longest: int  # tokens in the longest prompt
    programs: GenerationPrograms


def plan(
    model: GPTModel,
    params: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | None,
    *,
    temperature: PerRow = 0.0,
    top_k: PerRowInt = None,
    top_p: PerRow = None,
    min_p: PerRow = None,
    key: jax.Array | None = None,
    stop_ids: Sequence[int] | Sequence[Sequence[int]] = (),
    dtype: DTypeLike | None = None,
    sliding_window: bool = False,
    programs: GenerationPrograms = DEFAULT_PROGRAMS,
) -> Plan:
    """Check the arguments of `generate` and lay them out as arrays."""
    cfg = model.cfg
    if max_new_tokens is not None:
        check_size("max_new_tokens", max_new_tokens)
    padded, lengths = padded_prompts(prompts, cfg)
    longest = max(lengths)
    new = _new_tokens(max_new_tokens, longest, cfg.context_length, sliding_window)
    rows = len(prompts)
    chosen = settings(
        rows, cfg.vocab_size, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    request = Request(
        lengths=jnp.asarray(lengths, jnp.int32),
        settings=chosen,
        keys=_keys(key, rows, bool((np.asarray(chosen.temperature) > 0).any())),
        stop_ids=_stop_ids(stop_ids, rows, cfg.vocab_size),
    )
    return Plan(
        model,
        cast_params(dtype, params),
        jnp.asarray(padded),
        request,
        new,
        longest,
        programs,
    )


def run(plan: Plan, tokens_per_chunk: int) -> Iterator[State]:
    """Yield the state after the first token, then after every `tokens_per_chunk` more.

    It ends when all rows have. Each state's buffers are donated when the next one is requested.
    """
    model, params, request, new = plan.model, plan.params, plan.request, plan.max_new_tokens
    context, programs = model.cfg.context_length, plan.programs
    rows = len(request.lengths)
    cached = min(new, context - plan.longest + 1)  # so many tokens the cache can serve
    if cached > 0:
        width = plan.prompts.shape[1]
        slots = max(bucket(plan.longest + cached - 1, context), width)
        room = slots if cached == new else bucket(new)
        state = programs.prefill(model, params, plan.prompts, request, slots, room)
        yield state
    else:
        state = initial_state(rows, bucket(new))
    count = 1 if cached > 0 else 0
    while count < new and not _ended(state):
        if count < cached:
            count = min(count + tokens_per_chunk, cached)
            state = programs.decode(model, params, state, request, jnp.asarray(count, jnp.int32))
        else:
            count = min(count + tokens_per_chunk, new)
            state = programs.slide(
                model,
                params,
                plan.prompts,
                replace(state, cache=NO_CACHE),
                request,
                jnp.asarray(count, jnp.int32),
                context,
            )
        yield state


def padded_prompts(
    prompts: Sequence[Sequence[int]], cfg: GPTConfig
) -> tuple[NDArray[np.int32], list[int]]:
    """Rows of ids checked, padded on the right to a bucket's length, (B, T); and their lengths.

    Raises:
        ValueError: for an empty batch or row, and ids outside the vocabulary.
    """
    if len(prompts) == 0:
        raise ValueError("the batch is empty: give at least one prompt")
    rows = []
    for number, prompt in enumerate(prompts):
        try:
            ids = np.asarray(validate_sequences(prompt, cfg.vocab_size))
            if ids.ndim > 1:
                raise ValueError(f"token ids must be a flat list, got shape {ids.shape}")
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}") from None
        rows.append(ids)
    lengths = [len(ids) for ids in rows]
    longest = max(lengths)
    limit = cfg.context_length if longest <= cfg.context_length else None
    padded = np.zeros((len(rows), bucket(longest, limit)), np.int32)
    for number, ids in enumerate(rows):
        padded[number, : len(ids)] = ids
    return padded, lengths


def _new_tokens(asked: int | None, longest: int, context: int, sliding_window: bool) -> int:
    """Return how many tokens to generate after the longest prompt; see `generate`."""
    room = context - longest
    if sliding_window or (asked is not None and asked <= room):
        return _MOST_BY_DEFAULT if asked is None else asked
    if room < 1:
        fills = "fills" if room == 0 else "exceeds"
        raise ValueError(
            f"a prompt of {longest} tokens {fills} the context of {context} tokens; shorten it, or "
            "pass sliding_window=True (--sliding)"
        )
    if asked is None:
        return min(room, _MOST_BY_DEFAULT)
    raise ValueError(
        f"{longest} prompt tokens + {asked} new tokens exceed the context of {context} tokens; "
        f"request at most {room}, or pass sliding_window=True (--sliding)"
    )


def cast_params(dtype: DTypeLike | None, params: Any) -> Any:
    """Return `params` as JAX arrays of the number type `dtype`; None keeps their own.

    Raises:
        ValueError: for another type than bfloat16, float16, float32 or, under x64, float64.
    """
    known = ["bfloat16", "float16", "float32", *["float64"] * jax.config.read("jax_enable_x64")]
    try:
        accepted = dtype is None or jnp.dtype(dtype).name in known
    except TypeError:
        accepted = False
    if not accepted:
        raise ValueError(f"dtype must be one of {', '.join(known)}, got {dtype!r}")
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)


def check_finite(broken: Any) -> None:
    """Raise ValueError where a state is broken."""
    if broken:
        raise ValueError("the model's logits are NaN or infinite: its weights are damaged")


def _ended(state: State) -> bool:
    done, broken = jax.device_get((state.done, state.broken))
    return bool(done.all() or broken)


def _keys(key: jax.Array | None, rows: int, sampling: bool) -> jax.Array:
    if key is None:
        if sampling:
            raise ValueError("sampling at a temperature above 0 needs a key: key=jax.random.key(0)")
        key = jax.random.key(0, impl=GENERATOR)  # unused by greedy rows
    if not jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key):
        raise ValueError("key must be a typed key, as jax.random.key(0) makes")
    if key.shape not in ((), (rows,)):
        raise ValueError(f"key must be one key or {rows}, one for each row, got shape {key.shape}")
    return jnp.broadcast_to(key, (rows,))


def _stop_ids(stop_ids: Any, rows: int, vocab_size: int) -> jax.Array:
    if not isinstance(stop_ids, Sequence) and np.ndim(stop_ids) == 0:
        raise ValueError(f"stop_ids must be a list of ids, or one for each row, got {stop_ids!r}")
    per_row = stop_ids if any(np.ndim(ids) for ids in stop_ids) else [stop_ids] * rows
    if len(per_row) != rows:
        raise ValueError(f"stop_ids has {len(per_row)} lists for {rows} rows")
    width = bucket(max(map(len, per_row)))
    table = np.full((rows, width), -1, np.int32)
    for row, ids in enumerate(per_row):
        if len(ids):
            try:
                table[row, : len(ids)] = validate_sequences(ids, vocab_size)
            except ValueError as error:
                raise ValueError(f"stop_ids: {error}") from None
    return jnp.asarray(table)
