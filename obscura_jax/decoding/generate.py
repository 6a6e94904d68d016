"""`generate`: prompts of any lengths in, new tokens out, through the compiled programs of `engine`.

Everything is checked here, on the host, before anything is traced.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from obscura_jax.config import check_size
from obscura_jax.decoding.cache import bucket
from obscura_jax.decoding.engine import (
    NO_CACHE,
    Request,
    State,
    decode,
    nothing_drawn,
    prefill,
    slide,
)
from obscura_jax.decoding.sampling import settings
from obscura_jax.nn.model import GPTModel, check_ids

PerRow = float | None | Sequence[float | None]
PerRowInt = int | None | Sequence[int | None]


@dataclass(frozen=True)
class Stats:
    """What a call of `generate` did.

    Attributes:
        prompt_tokens: tokens in all prompts.
        new_tokens: tokens given back, in all rows.
        prefill_seconds: until the first token of each row stood.
        decode_seconds: for all tokens after those.
        compiled: programs compiled in this call; their time is part of the seconds.
    """

    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    compiled: int


@dataclass(frozen=True)
class Generation:
    """The new tokens of each row.

    Attributes:
        tokens: their ids, the stop id excluded.
        logprobs: the log-probability of each under the model, before temperature and filters.
        finish: "stop" for a row that ended in a stop id, else "length".
        stats: what the call did.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]
    finish: list[str]
    stats: Stats


@dataclass(frozen=True)
class Plan:
    """A checked call: what the programs are run on."""

    model: GPTModel
    params: Any
    prompts: jax.Array  # (B, T) int32, padded on the right
    request: Request
    max_new_tokens: int
    longest: int  # tokens in the longest prompt


def plan(
    model: GPTModel,
    params: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: PerRow = 0.0,
    top_k: PerRowInt = None,
    top_p: PerRow = None,
    min_p: PerRow = None,
    key: jax.Array | None = None,
    stop_ids: Sequence[int] | Sequence[Sequence[int]] = (),
    dtype: DTypeLike | None = None,
    sliding: bool = False,
) -> Plan:
    """Check the arguments of `generate` and lay them out as arrays."""
    cfg = model.cfg
    max_new_tokens = check_size("max_new_tokens", max_new_tokens)
    if len(prompts) == 0:
        raise ValueError("the batch is empty: give at least one prompt")
    for row, prompt in enumerate(prompts):
        try:
            check_ids(prompt, cfg.vocab_size)
        except ValueError as error:
            raise ValueError(f"prompt {row}: {error}") from None
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    if longest + max_new_tokens > cfg.context_length and not sliding:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed "
            f"context_length={cfg.context_length}: ask for fewer, or for sliding (--sliding)"
        )
    rows = len(prompts)
    chosen = settings(
        rows, cfg.vocab_size, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    width = bucket(longest, None if longest > cfg.context_length else cfg.context_length)
    padded = np.zeros((rows, width), np.int32)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = prompt
    request = Request(
        lengths=jnp.asarray(lengths, jnp.int32),
        settings=chosen,
        keys=_keys(key, rows, bool((np.asarray(chosen.temperature) > 0).any())),
        stop_ids=_stop_ids(stop_ids, rows, cfg.vocab_size),
    )
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, _float_type(dtype)), params)
    return Plan(model, params, jnp.asarray(padded), request, max_new_tokens, longest)


def run(plan: Plan, chunk: int) -> Iterator[State]:
    """The state after the first token, then after every `chunk` more, until all rows have ended.

    A state's arrays are gone once the next one is asked for.
    """
    model, params, request, new = plan.model, plan.params, plan.request, plan.max_new_tokens
    context = model.cfg.context_length
    rows = len(request.lengths)
    cached = min(new, context - plan.longest + 1)  # so many tokens the cache can serve
    if cached > 0:
        width = plan.prompts.shape[1]
        slots = max(bucket(plan.longest + cached - 1, context), width)
        room = slots if cached == new else bucket(new)
        state = prefill(model, params, plan.prompts, request, slots, room)
        yield state
    else:
        state = nothing_drawn(rows, bucket(new))
    count = 1 if cached > 0 else 0
    while count < new and not _ended(state):
        if count < cached:
            count = min(count + chunk, cached)
            state = decode(model, params, state, request, jnp.asarray(count))
        else:
            count = min(count + chunk, new)
            state = slide(
                model,
                params,
                plan.prompts,
                replace(state, cache=NO_CACHE),
                request,
                jnp.asarray(count),
                context,
            )
        yield state


def generate(
    model: GPTModel,
    params: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 64,
    *,
    temperature: PerRow = 0.0,
    top_k: PerRowInt = None,
    top_p: PerRow = None,
    min_p: PerRow = None,
    key: jax.Array | None = None,
    stop_ids: Sequence[int] | Sequence[Sequence[int]] = (),
    dtype: DTypeLike | None = None,
    sliding: bool = False,
) -> Generation:
    """Continue each prompt with a key-value cache, in one compiled loop.

    A prompt's tokens are the same alone, in any batch, in any row, whatever the lengths of its
    neighbours: greedy, and sampled with the same key. A setting given as a list holds one value for
    each row. Filters apply in the order temperature, top-k, top-p, min-p.

    Args:
        model: the model.
        params: its parameters.
        prompts: one list of token ids for each row; lengths may differ.
        max_new_tokens: how many tokens a row gets at most.
        temperature: 0 takes the most probable token; above 0 tokens are drawn.
        top_k: draw from the k most probable tokens (with those tied to the last of them).
        top_p: draw from the fewest most probable tokens whose probabilities reach p, in (0, 1].
        min_p: draw from tokens at least min_p times as probable as the most probable, in [0, 1).
        key: a typed key for all rows, or an array of one for each row. The token at position p of
            a row is drawn with `fold_in(key, p)`; equal prompts with one key get equal tokens.
        stop_ids: ids that end a row: one list for all rows, or a list for each.
        dtype: the number type to compute in, float32 or bfloat16; by default that of `params`.
            Logits and softmax are float32 at least.
        sliding: go on beyond `context_length`, where each step re-reads the last `context_length`
            tokens with fresh positions, as the course does. Without it that is an error.

    Raises:
        ValueError: for an empty batch or prompt, ids outside the vocabulary, settings out of range,
            sampling without a key, too many tokens, or logits that are NaN or infinite.
    """
    before = programs_compiled()
    start = time.perf_counter()
    call = plan(
        model,
        params,
        prompts,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        key=key,
        stop_ids=stop_ids,
        dtype=dtype,
        sliding=sliding,
    )
    states = run(call, chunk=call.max_new_tokens)
    state = next(states)
    state.count.block_until_ready()
    first = time.perf_counter()
    for state in states:  # noqa: B007 - the last one counts
        pass
    made, done, broken, drawn, logprobs = jax.device_get(
        (state.made, state.done, state.broken, state.tokens, state.logprobs)
    )
    end = time.perf_counter()
    check_whole(broken)
    tokens = [row[:n].tolist() for row, n in zip(drawn, made, strict=True)]
    stats = Stats(
        prompt_tokens=sum(map(len, prompts)),
        new_tokens=int(made.sum()),
        prefill_seconds=first - start,
        decode_seconds=end - first,
        compiled=programs_compiled() - before,
    )
    return Generation(
        tokens=tokens,
        logprobs=[row[:n].tolist() for row, n in zip(logprobs, made, strict=True)],
        finish=["stop" if stopped else "length" for stopped in done],
        stats=stats,
    )


def programs_compiled() -> int:
    """How many programs of generation this process has compiled so far."""
    programs: tuple[Any, ...] = (prefill, decode, slide)
    return sum(program._cache_size() for program in programs)


def check_whole(broken: Any) -> None:
    """Raise ValueError where a state is broken."""
    if broken:
        raise ValueError("the model's logits are NaN or infinite: its weights are damaged")


def _float_type(dtype: DTypeLike | None) -> DTypeLike | None:
    if dtype is None:
        return None
    try:
        if jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            return dtype
    except TypeError:
        pass
    raise ValueError(f"dtype must be float32 or bfloat16, got {dtype!r}")


def _ended(state: State) -> bool:
    return bool(state.done.all() | state.broken)


def _keys(key: jax.Array | None, rows: int, sampling: bool) -> jax.Array:
    if key is None:
        if sampling:
            raise ValueError("sampling at a temperature above 0 needs a key: key=jax.random.key(0)")
        key = jax.random.key(0)  # of no effect: every row takes its most probable token
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
                table[row, : len(ids)] = check_ids(ids, vocab_size)
            except ValueError as error:
                raise ValueError(f"stop_ids: {error}") from None
    return jnp.asarray(table)
