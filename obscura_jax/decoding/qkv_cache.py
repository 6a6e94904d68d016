"""The key-value cache in the form that takes the fewest kernels on a GPU: one update per block.

Each block has one array, into which a step writes the output of its product for queries, keys and
values. The queries are stored as well, though nothing reads them, because XLA would compute a slice
of that output in a kernel of its own: 117 kernels per token of the 124M model instead of 105.

Axes: B rows, H heads, T cache slots, K head width.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from obscura_jax.decoding.cache import CacheUpdater, KVCache
from obscura_jax.nn.attention import merge_heads


class QKVCache(NamedTuple):
    """One array per block, with queries [0], keys [1] and values [2]."""

    blocks: tuple[Float[Array, "3 b h t k"], ...]


def to_qkv_cache(cache: KVCache) -> QKVCache:
    """Return a cache with arrays (B, H, T, K) in this form, with zeros for the queries."""
    pairs = zip(cache.keys, cache.values, strict=True)
    return QKVCache(tuple(jnp.stack([jnp.zeros_like(k), k, v]) for k, v in pairs))


def from_qkv_cache(cache: QKVCache) -> KVCache:
    """Return one array of keys and one of values per block, the inverse of `to_qkv_cache`."""
    return KVCache(tuple(x[1] for x in cache.blocks), tuple(x[2] for x in cache.blocks))


class QKVUpdater:
    """A `CacheUpdater` for a `QKVCache`, whose pass adds one position per row."""

    def __init__(self, cache: QKVCache, slot: Any) -> None:
        """Start from `cache`; the pass adds its position at `slot`."""
        self._blocks, self._slot = list(cache.blocks), slot

    def write(self, layer: int, queries: Array, keys: Array, values: Array) -> tuple[Array, Array]:
        """Write (B, H, 1, K) arrays at the slot; return the block's full keys and values."""
        block = self._blocks[layer]
        three, rows, heads, slots, width = block.shape
        new = jnp.concatenate([merge_heads(x) for x in (queries, keys, values)], axis=-1)
        new = new.reshape(rows, 1, three, heads, width).transpose(2, 0, 3, 1, 4).astype(block.dtype)
        zero = jnp.zeros((), jnp.int32)  # a Python 0 is int64 under x64; index types must match
        at = (zero, zero, zero, jnp.asarray(self._slot, jnp.int32), zero)
        self._blocks[layer] = lax.dynamic_update_slice(block, new, at, allow_negative_indices=False)
        # Attention reads the old array with the new position put in its place. If it read the new
        # one, XLA would copy keys or values out of it first.
        here = jnp.broadcast_to((jnp.arange(slots) == self._slot)[:, None], block.shape[1:])

        def replaced(old: Array, new: Array) -> Array:
            return jnp.where(here, jnp.broadcast_to(new.astype(old.dtype), old.shape), old)

        return replaced(block[1], keys), replaced(block[2], values)

    @property
    def cache(self) -> QKVCache:
        """The cache after the pass."""
        return QKVCache(tuple(self._blocks))


def updater(cache: KVCache | QKVCache, slot: Any) -> CacheUpdater | QKVUpdater:
    """Return the updater of a cache of either form; a pass adds its positions from `slot` on."""
    if isinstance(cache, QKVCache):
        return QKVUpdater(cache, slot)
    return CacheUpdater(cache, slot)
