"""The programs of `decoding.invariant`: one row's prompt in chunks, and a tile of rows in steps.

Axes: R = `TILE` rows, C = chunk of positions, H heads, T cache slots, K head width. The cache has
the merged layout, (R * H, T, K), and T is a multiple of `BLOCK`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from obscura_jax.decoding.cache import CacheUpdater, KVCache
from obscura_jax.decoding.sampling import log_probability
from obscura_jax.decoding.state import Request, State
from obscura_jax.decoding.token_loop import decode_tokens, sample_next
from obscura_jax.nn.linear import at_least_float32
from obscura_jax.nn.model import GPTModel

TILE = 8
BLOCK = 128


def read_chunk(
    model: GPTModel, params: Any, cache: KVCache, ids: Int[Array, "1 c"], start: Int[Array, ""]
) -> tuple[Float[Array, "1 c d"], KVCache]:
    """Read C positions of one row from `start` on; return the hidden states, and the cache."""
    writer = CacheUpdater(cache, start)
    positions = start + jnp.arange(ids.shape[1], dtype=jnp.int32)

    def attention_fn(layer: int, queries: Array, keys: Array, values: Array) -> Array:
        stored = writer.write(layer, keys, values)

        def visible(slots: Array) -> Array:
            return slots[None, None] <= positions[None, :, None]

        return _attend_in_blocks(queries[0], stored, positions[-1], visible)[None]

    last = jnp.int32(model.cfg.context_length - 1)  # padding may reach beyond the context
    hidden: Any = model.apply(
        {"params": params},
        ids,
        positions=jnp.minimum(positions, last)[None],
        attention_fn=attention_fn,
        method="hidden_states",
    )
    return hidden, writer.cache


def score_chunk(
    model: GPTModel,
    params: Any,
    cache: KVCache,
    ids: Int[Array, "1 c"],
    successors: Int[Array, " c"],
    start: Int[Array, ""],
) -> tuple[Float[Array, " c"], KVCache]:
    """Read a chunk, and return the log-probability of each position's successor."""
    hidden, cache = read_chunk(model, params, cache, ids, start)
    logits: Any = model.apply({"params": params}, hidden[0], method="output_head")
    return log_probability(logits, successors), cache


def fill_row(tile: KVCache, row: Int[Array, ""], cache: KVCache) -> KVCache:
    """Return the tile's cache with one of its rows replaced."""

    def filled(store: Array, new: Array) -> Array:
        zero = jnp.zeros((), jnp.int32)
        return lax.dynamic_update_slice(store, new, (row * len(new), zero, zero))

    return KVCache(
        *(tuple(map(filled, *both)) for both in zip(tile, cache, strict=True)),
    )


def first_tokens(
    model: GPTModel, params: Any, request: Request, state: State, hidden: Float[Array, "r d"]
) -> State:
    """Sample the first token of each row from the hidden state of its last position."""
    logits: Any = model.apply({"params": params}, hidden, method="output_head")
    return sample_next(state, request, logits, state.cache)


def decode_tile(
    model: GPTModel, params: Any, request: Request, state: State, target_count: Int[Array, ""]
) -> State:
    """Sample tokens until each row has `target_count` of them or all rows have ended."""

    def step(weights: Any, token: Array, state: State) -> tuple[Array, KVCache]:
        position = request.lengths + state.count - 1
        writer = _RowUpdater(state.cache, position)

        def visible(slots: Array) -> Array:
            heads = model.cfg.n_heads
            return jnp.repeat(slots[None, None] <= position[:, None, None], heads, axis=0)

        def attention_fn(layer: int, queries: Array, keys: Array, values: Array) -> Array:
            stored = writer.write(layer, keys, values)
            flat = queries.reshape(-1, *queries.shape[2:])
            context = _attend_in_blocks(flat, stored, position.max(), visible)
            return context.reshape(queries.shape)

        logits: Any = model.apply(
            {"params": weights},
            token[:, None],
            positions=position[:, None],
            attention_fn=attention_fn,
        )
        return logits[:, 0], writer.cache

    return decode_tokens(params, request, state, target_count, step)


class _RowUpdater(CacheUpdater):
    """A `CacheUpdater` that writes one position of each row, at a slot of its own."""

    def write(self, layer: int, keys: Array, values: Array) -> tuple[Array, Array]:
        """Write (R, H, 1, K) keys and values; return the block's full cache."""
        zero = jnp.zeros((), jnp.int32)
        for store, new in ((self._keys, keys), (self._values, values)):
            heads = new.shape[1]
            for row in range(len(new)):
                at = (jnp.int32(row * heads), self._slot[row], zero)
                one = new[row].astype(store[layer].dtype)
                store[layer] = lax.dynamic_update_slice(store[layer], one, at)
        return self._keys[layer], self._values[layer]


def _attend_in_blocks(
    queries: Float[Array, "h q k"],
    stored: tuple[Float[Array, "h t k"], Float[Array, "h t k"]],
    last: Int[Array, ""],
    visible: Callable[[Array], Bool[Array, "h q b"]],
) -> Float[Array, "h q k"]:
    """Compute attention over the slots up to `last`, block by block (Milakov & Gimelshein 2018).

    `visible` tells which of some slots each query sees. Every query must see slot 0.
    """
    keys, values = stored
    heads, count, width = queries.shape
    wide = queries.astype(keys.dtype)
    dtype = at_least_float32(keys.dtype)
    least = jnp.asarray(jnp.finfo(dtype).min, dtype)

    def add_block(number: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        largest, total, context = sums
        at = (0, number * BLOCK, 0)
        some_keys, some_values = (
            lax.dynamic_slice(x, at, (heads, BLOCK, width)) for x in (keys, values)
        )
        scores = jnp.einsum("hqk,htk->hqt", wide, some_keys, preferred_element_type=dtype)
        seen = visible(number * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32))
        scores = jnp.where(seen, scores / math.sqrt(width), least)
        new_largest = jnp.maximum(largest, scores.max(axis=-1, keepdims=True))
        weights = jnp.where(seen, jnp.exp(scores - new_largest), 0)
        kept = jnp.exp(largest - new_largest)  # exactly 1 after a block that the query does not see
        new = jnp.einsum(
            "hqt,htk->hqk", weights.astype(keys.dtype), some_values, preferred_element_type=dtype
        )
        total = total * kept + weights.sum(axis=-1, keepdims=True)
        return new_largest, total, context * kept + new

    start = (
        jnp.full((heads, count, 1), least),
        jnp.zeros((heads, count, 1), dtype),
        jnp.zeros((heads, count, width), dtype),
    )
    _, total, context = lax.fori_loop(0, last // BLOCK + 1, add_block, start)
    return (context / total).astype(queries.dtype)
