"""The keys and values already computed, and the model run against them.

Axes: B rows, H heads, T slots of the cache, K head width. A slot holds one position of every row.
The prompts lie in slots 0, 1, ..., each row's from the left; token n after the prompts lies in slot
`width` + n in every row, where `width` is the longest prompt's length. A shorter row leaves a gap,
which its mask hides; positions are counted without it.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Float, Int

from obscura_jax.nn.attention import (
    attention_weights,
    causal_mask,
    mask_scores,
    scaled_dot_product_attention,
)
from obscura_jax.nn.linear import at_least_float32
from obscura_jax.nn.model import GPTModel
from obscura_jax.nn.target import on_one_cpu, target


class KVCache(NamedTuple):
    """One array of keys and one of values for each block, each (B, H, T, K).

    On one CPU (B * H, T, K): where rows and heads share an axis, XLA:CPU updates the arrays where
    they lie. With two axes it copies them at every step: 36 against 21 ms a token for the 124M
    model at T = 1024. Two axes can be split over two axes of a mesh.
    """

    keys: tuple[Float[Array, "*bh t k"], ...]
    values: tuple[Float[Array, "*bh t k"], ...]


def bucket(size: int, limit: int | None = None) -> int:
    """The smallest of 16, 32, ..., 512, 768, 1024, 1536, ... that holds `size`, or `limit`.

    Arrays of few lengths need few programs.
    """
    length = 16
    while length < size:
        length *= 2
    if length > 512 and size <= length * 3 // 4:
        length = length * 3 // 4
    return length if limit is None else min(length, limit)


def empty_cache(model: GPTModel, rows: int, length: int, dtype: Any) -> KVCache:
    """A cache of zeros for `rows` rows of `length` slots, of the model's number type `dtype`.

    On one CPU it is of float32 at least: bfloat16 keys would be converted, all of them, for every
    product, and 12 blocks of 128 slots then cost 4 ms a token more.
    """
    cfg = model.cfg
    heads: tuple[int, ...] = (rows, cfg.n_heads)
    if on_one_cpu():
        dtype, heads = at_least_float32(dtype), (rows * cfg.n_heads,)
    shape = (*heads, length, cfg.emb_dim // cfg.n_heads)
    layers = range(cfg.n_layers)
    return KVCache(
        tuple(jnp.zeros(shape, dtype) for _ in layers),
        tuple(jnp.zeros(shape, dtype) for _ in layers),
    )


def read_prompts(
    model: GPTModel, params: Any, ids: Int[Array, "b t"], lengths: Int[Array, " b"], cache: KVCache
) -> tuple[Float[Array, "b v"], KVCache]:
    """The logits after each prompt, and the cache with the prompts in its first slots.

    Prompts are padded on the right, where causality hides the padding from every real position.
    """
    writer = _Writer(cache, slot=0)

    def attend(layer: int, queries: Array, keys: Array, values: Array) -> Array:
        writer.write(layer, keys, values)
        return _attend_causally(queries, keys, values)

    logits: Any = model.apply({"params": params}, ids, attend=attend, only=lengths - 1)
    return logits[:, 0], writer.cache


def _attend_causally(
    queries: Float[Array, "b h t k"], keys: Float[Array, "b h t k"], values: Float[Array, "b h t k"]
) -> Float[Array, "b h t k"]:
    """Causal `scaled_dot_product_attention`, 128 queries at a time, of keys that one of them sees.

    Of 512 positions 3/8 of the work is left out: 7 % of the time of the 124M model.
    """
    length = queries.shape[-2]
    mask = causal_mask(length)
    if not isinstance(length, int):  # an exported program's is a symbol
        return scaled_dot_product_attention(queries, keys, values, mask)
    parts = []
    for start in range(0, length, 128):
        end = min(start + 128, length)
        seen = (keys[..., :end, :], values[..., :end, :], mask[start:end, :end])
        parts.append(scaled_dot_product_attention(queries[..., start:end, :], *seen))
    return jnp.concatenate(parts, axis=-2)


def read_one(
    model: GPTModel,
    params: Any,
    token: Int[Array, " b"],
    position: Int[Array, " b"],
    slot: Int[Array, ""],
    visible: Bool[Array, "b t"],
    cache: KVCache,
) -> tuple[Float[Array, "b v"], KVCache]:
    """The logits after one more token a row, and the cache with it in `slot`.

    `visible` is True where a row may look: its prompt, and the slots from `width` to `slot`.
    """
    writer = _Writer(cache, slot)

    def attend(layer: int, queries: Array, keys: Array, values: Array) -> Array:
        keys, values = writer.write(layer, keys, values)
        return _attend_one(queries, keys, values, visible)

    logits: Any = model.apply(
        {"params": params},
        token[:, None],
        positions=position[:, None],
        attend=attend,
        only=jnp.zeros_like(token),
    )
    return logits[:, 0], writer.cache


def _attend_one(
    queries: Float[Array, "b h 1 k"],
    keys: Float[Array, "*bh t k"],
    values: Float[Array, "*bh t k"],
    visible: Bool[Array, "b t"],
) -> Float[Array, "b h 1 k"]:
    """`scaled_dot_product_attention` of one query a row, its products in the fast form.

    On XLA:CPU a batched product of vectors and matrices runs at memory speed; as products of
    matrices with one row it is several times slower.
    """
    b, h, _, k = queries.shape
    accumulate = at_least_float32(keys.dtype)
    heads = keys.shape[:-2]
    flat = queries.reshape(*heads, k).astype(keys.dtype)
    scores = jnp.einsum("...k,...tk->...t", flat, keys, preferred_element_type=accumulate)
    visible = jnp.repeat(visible[:, None], h, axis=1).reshape(scores.shape)
    weights = attention_weights(mask_scores(scores, visible), k).astype(values.dtype)
    context = jnp.einsum("...t,...tk->...k", weights, values, preferred_element_type=accumulate)
    if on_one_cpu():
        # Else the product that follows reads it, converted, through its two axes: 280 us a block
        # in place of 40, in bfloat16.
        context = lax.optimization_barrier(context.reshape(b, h * k))
    return context.astype(queries.dtype).reshape(b, h, 1, k)


def _compact(cache: Float[Array, "*bh t k"]) -> Float[Array, "*bh t k"]:
    """The same, on TPUs laid out with slots innermost, as arguments and results of programs are.

    Within a loop XLA would have K innermost, filled up from 64 to 128, and copy all caches before
    it. Compiled for v5e, the 124M model's step with 64 rows then has a peak of 8.5 GiB against 2.7,
    and 53 million cycles, as XLA estimates them, against 18.
    """
    if target().platform == "tpu" and target().layouts and cache.shape[-1] % 128:
        cache = with_layout_constraint(cache, Layout((0, 1, 3, 2)))
    return cache


class _Writer:
    """The caches of all blocks while one run through the model replaces them in turn."""

    def __init__(self, cache: KVCache, slot: Any) -> None:
        self._keys, self._values, self._slot = list(cache.keys), list(cache.values), slot

    def write(self, layer: int, keys: Array, values: Array) -> tuple[Array, Array]:
        """Put (B, H, T, K) keys and values at the slot; all keys and values of the block."""
        for store, new in ((self._keys, keys), (self._values, values)):
            heads = store[layer].shape[:-2]
            new = new.reshape(*heads, *new.shape[-2:]).astype(store[layer].dtype)
            zero = jnp.zeros((), jnp.int32)  # a Python 0 is int64 under x64, and all must agree
            at = (*(zero for _ in heads), jnp.asarray(self._slot, jnp.int32), zero)
            store[layer] = _compact(lax.dynamic_update_slice(store[layer], new, at))
        return self._keys[layer], self._values[layer]

    @property
    def cache(self) -> KVCache:
        return KVCache(tuple(self._keys), tuple(self._values))
