"""Generation whose bits do not depend on the company: the same programs for any batch.

The rounding of a product depends on the number of its rows, and that of a sum on its length. Here
both are fixed. A step decodes a tile of `TILE` rows, however few are in use; a prompt is read by
itself, up to `CHUNK` positions at a time; and attention sums over blocks of `BLOCK` cache slots,
from the first. A block that a row does not see adds exactly nothing. Tokens are stored by their
positions, so that no other row's length moves them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from obscura_jax.decoding import tile
from obscura_jax.decoding.cache import (
    NO_CACHE,
    CacheLayout,
    KVCache,
    bucket_length,
    cache_layout,
    target_layout,
)
from obscura_jax.decoding.prefix import Prefix
from obscura_jax.decoding.programs import DEFAULT_PROGRAMS
from obscura_jax.decoding.request import Plan
from obscura_jax.decoding.run import has_ended
from obscura_jax.decoding.state import Request, State, initial_state
from obscura_jax.decoding.tile import BLOCK, TILE
from obscura_jax.nn.dtypes import compute_dtype
from obscura_jax.nn.model import GPTModel

CHUNK = 64

_read_chunk = jax.jit(tile.read_chunk, static_argnames="model", donate_argnames="cache")
_score_chunk = jax.jit(tile.score_chunk, static_argnames="model", donate_argnames="cache")
_fill_row = jax.jit(tile.fill_row, donate_argnames="tile")
_first_tokens = jax.jit(tile.first_tokens, static_argnames="model", donate_argnames="state")
_decode_tile = jax.jit(tile.decode_tile, static_argnames="model", donate_argnames="state")
_PROGRAMS: tuple[Any, ...] = (_read_chunk, _score_chunk, _fill_row, _first_tokens, _decode_tile)


def n_compilations() -> int:
    """Return the number of programs compiled so far in this process."""
    return sum(program._cache_size() for program in _PROGRAMS)


def run_plan(model: GPTModel, params: Any, plan: Plan, tokens_per_chunk: int) -> Iterator[State]:
    """Yield the states of all rows together, on the host, as `run.run_plan` does."""
    context = model.cfg.context_length
    rows = range(len(plan.request.lengths))
    lengths = np.repeat(plan.lengths, plan.samples)
    sliding = [row for row in rows if lengths[row] + plan.new_tokens > context + 1]
    others = [row for row in rows if row not in sliding]
    groups = [others[start : start + TILE] for start in range(0, len(others), TILE)]
    groups += [[row] for row in sliding]
    runs = [_run_tile(model, params, plan, group, tokens_per_chunk) for group in groups]
    order = np.argsort(np.concatenate(groups), kind="stable")
    latest = [next(run) for run in runs]
    while True:
        yield _join(latest, order)
        more = [next(run, None) for run in runs]
        if not any(more):
            return
        latest = [new or old for new, old in zip(more, latest, strict=True)]


def read_prefix(model: GPTModel, params: Any, ids: Sequence[int]) -> KVCache:
    """Return a cache of one row with the whole chunks of `ids` in it."""
    whole = len(ids) - len(ids) % _chunk(model)
    cache, _ = _read(model, params, ids[:whole], _slots(len(ids)), None)
    return cache


def log_probabilities(
    model: GPTModel, params: Any, ids: NDArray[np.int32], lengths: Sequence[int]
) -> NDArray[np.float32]:
    """Return the log-probability of each id's successor, (B, T), for ids padded on the right."""
    size, table = _chunk(model), np.zeros(ids.shape, np.float32)
    for row, length in enumerate(lengths):
        cache = _layout(model, params).empty(1, _slots(length))
        for start in range(0, length - 1, size):
            here, after = (_padded(ids[row, at : at + size], size) for at in (start, start + 1))
            at = jnp.asarray(start, jnp.int32)
            found, cache = _score_chunk(model, params, cache, here[None], after, at)
            count = min(size, length - 1 - start)
            table[row, start : start + count] = found[:count]
    return table


def _run_tile(
    model: GPTModel, params: Any, plan: Plan, rows: Sequence[int], tokens_per_chunk: int
) -> Iterator[State]:
    """Yield the states of some rows, at most `TILE`, on the host."""
    context, new = model.cfg.context_length, plan.new_tokens
    own = [*rows, *[rows[0]] * (TILE - len(rows))]  # rows not in use repeat the first
    request: Request = jax.tree.map(lambda x: x[np.asarray(own)], plan.request)
    longest = max(plan.lengths[row // plan.samples] for row in rows)
    cached = min(new, context - longest + 1)
    state = initial_state(TILE, bucket_length(new), n_alternatives=plan.n_alternatives)
    prompts = np.stack([plan.prompts[row // plan.samples] for row in own])
    count = 0
    unused = jnp.arange(TILE) >= len(rows)
    if cached > 0:
        slots = _slots(longest + cached - 1)
        cache, hidden = _read_rows(model, params, plan, rows, slots)
        known = np.zeros((TILE, slots), np.int32)
        known[:, : min(slots, prompts.shape[1])] = prompts[:, :slots]
        state = replace(state, done=unused, cache=cache, prompts=jnp.asarray(known))
        state, count = _first_tokens(model, params, request, state, hidden), 1
        yield _on_host(state, len(rows))
    while count < new and not has_ended(state):
        if count >= cached and len(state.done) > 1:  # one row alone, from here on
            request = jax.tree.map(lambda x: x[:1], request)
            alone = replace(state, cache=NO_CACHE, prompts=None)
            state = jax.tree.map(lambda x: x[:1] if x.ndim else x, alone)
        count = min(count + tokens_per_chunk, cached if count < cached else new)
        target = jnp.asarray(count, jnp.int32)
        if count <= cached:
            state = _decode_tile(model, params, request, state, target)
        else:
            first = jnp.asarray(prompts[:1])
            state = DEFAULT_PROGRAMS.slide(model, params, request, state, target, first)
        yield _on_host(state, len(rows))


def _read_rows(
    model: GPTModel, params: Any, plan: Plan, rows: Sequence[int], slots: int
) -> tuple[KVCache, Array]:
    """Read each prompt of some rows once; return the tile's cache and hidden states, (R, D)."""
    cache = _layout(model, params).empty(TILE, slots)
    hidden: list[Any] = []
    prompt, one, last = -1, NO_CACHE, None
    for place, row in enumerate(rows):
        if row // plan.samples != prompt:
            prompt = row // plan.samples
            ids = plan.prompts[prompt, : plan.lengths[prompt]].tolist()
            one, last = _read(model, params, ids, slots, plan.prefix)
        cache = _fill_row(cache, jnp.asarray(place, jnp.int32), one)
        hidden.append(last)
    return cache, jnp.stack([*hidden, *[hidden[0]] * (TILE - len(rows))])


def _read(
    model: GPTModel, params: Any, ids: Sequence[int], slots: int, prefix: Prefix | None
) -> tuple[KVCache, Any]:
    """Return a cache of one row that holds `ids`, and the hidden state of the last, (D,)."""
    layout, size, begin, hidden = _layout(model, params), _chunk(model), 0, None
    if prefix is None:
        cache = layout.empty(1, slots)
    else:
        cache = layout.start_with(prefix.cache, 1, slots)
        begin = len(prefix.ids) - len(prefix.ids) % size
    for start in range(begin, len(ids), size):
        part = _padded(ids[start : start + size], size)
        at = jnp.asarray(start, jnp.int32)
        hidden, cache = _read_chunk(model, params, cache, part[None], at)
    last = None if hidden is None else hidden[0, (len(ids) - 1) % size]
    return cache, last


def _padded(ids: Any, size: int) -> NDArray[np.int32]:
    padded = np.zeros(size, np.int32)
    padded[: len(ids)] = ids
    return padded


def _layout(model: GPTModel, params: Any) -> CacheLayout:
    dtype = target_layout(model.cfg, compute_dtype(params)).dtype
    return cache_layout(model.cfg, dtype, merged=True)


def _chunk(model: GPTModel) -> int:
    return min(CHUNK, model.cfg.context_length)


def _slots(positions: int) -> int:
    """Return a number of slots, in whole blocks, of which there are few different ones."""
    return -(-bucket_length(positions) // BLOCK) * BLOCK


def _on_host(state: State, rows: int) -> State:
    """Return the first rows of a state as NumPy arrays, without its cache."""
    plain = jax.device_get(replace(state, cache=NO_CACHE, prompts=None))
    return jax.tree.map(lambda x: x[:rows] if x.ndim else x, plain)


def _join(states: Sequence[State], order: NDArray[np.int64]) -> State:
    """Return the rows of several states as one, in an order."""
    return jax.tree.map(
        lambda *parts: np.concatenate(parts)[order] if parts[0].ndim else np.max(parts), *states
    )
