"""The model run with a key-value cache: over prompts, and over one token per row.

Axes: B rows, H heads, T positions or cache slots, K head width.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from obscura_jax.decoding.cache import CacheUpdater, KVCache
from obscura_jax.decoding.qkv_cache import QKVCache, QKVUpdater, updater
from obscura_jax.nn.attention import (
    attention_weights,
    causal_mask,
    mask_scores,
    scaled_dot_product_attention,
)
from obscura_jax.nn.cudnn_attention import cudnn_attention, use_cudnn
from obscura_jax.nn.linear import at_least_float32
from obscura_jax.nn.model import GPTModel
from obscura_jax.nn.target import on_one_cpu


def prefill_cache(
    model: GPTModel,
    params: Any,
    ids: Int[Array, "b t"],
    lengths: Int[Array, " b"],
    cache: KVCache,
    start: Int[Array, ""] | None = None,
) -> tuple[Float[Array, "b v"], KVCache]:
    """Return the logits after each prompt, and the cache with the prompts in it.

    Prompts are padded on the right, so the causal mask hides the padding from every real position.
    They fill the first slots, or those from `start` on, if the cache holds a prefix of that length.
    """
    writer = CacheUpdater(cache, slot=0 if start is None else start)

    def attention_fn(layer: int, queries: Array, keys: Array, values: Array) -> Array:
        all_keys, all_values = writer.write(layer, keys, values)
        if start is None:
            return _attend_causally(queries, keys, values)
        slots = all_keys.shape[-2]
        everything = (*keys.shape[:2], slots, keys.shape[-1])
        visible = jnp.arange(slots)[None] <= start + jnp.arange(keys.shape[-2])[:, None]
        return scaled_dot_product_attention(
            queries,
            all_keys.reshape(everything).astype(queries.dtype),
            all_values.reshape(everything).astype(queries.dtype),
            visible,
        )

    positions = None
    if start is not None:
        positions = jnp.broadcast_to(start + jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    logits: Any = model.apply(
        {"params": params},
        ids,
        positions=positions,
        attention_fn=attention_fn,
        logits_at=lengths - 1,
    )
    return logits[:, 0], writer.cache


def _attend_causally(
    queries: Float[Array, "b h t k"], keys: Float[Array, "b h t k"], values: Float[Array, "b h t k"]
) -> Float[Array, "b h t k"]:
    """Compute causal `scaled_dot_product_attention` for 128 queries at a time.

    Each group of queries skips the keys that the mask hides from all of them. At 512 positions this
    skips 3/8 of the attention work and 7 % of the 124M model's prefill time. cuDNN does so itself.
    """
    if use_cudnn(queries):
        return cudnn_attention(queries, keys, values)
    length = queries.shape[-2]
    mask = causal_mask(length)
    if not isinstance(length, int):  # symbolic, in an exported program
        return scaled_dot_product_attention(queries, keys, values, mask)
    parts = []
    for start in range(0, length, 128):
        end = min(start + 128, length)
        seen = (keys[..., :end, :], values[..., :end, :], mask[start:end, :end])
        parts.append(scaled_dot_product_attention(queries[..., start:end, :], *seen))
    return jnp.concatenate(parts, axis=-2)


def decode_step(
    model: GPTModel,
    params: Any,
    token: Int[Array, " b"],
    position: Int[Array, " b"],
    slot: Int[Array, ""],
    visible: Bool[Array, "b t"],
    cache: KVCache | QKVCache,
) -> tuple[Float[Array, "b v"], Any]:
    """Return the logits after one more token per row, and the cache with that token in `slot`.

    `visible` marks the slots that a row attends to: its prompt, and the generated tokens up to
    `slot`; see `programs.decode`.
    """
    writer = updater(cache, slot)

    def attention_fn(layer: int, queries: Array, keys: Array, values: Array) -> Array:
        if isinstance(writer, QKVUpdater):
            keys, values = writer.write(layer, queries, keys, values)
        else:
            keys, values = writer.write(layer, keys, values)
        return _attend_one(queries, keys, values, visible)

    logits: Any = model.apply(
        {"params": params},
        token[:, None],
        positions=position[:, None],
        attention_fn=attention_fn,
        logits_at=jnp.zeros_like(token),
    )
    return logits[:, 0], writer.cache


def _attend_one(
    queries: Float[Array, "b h 1 k"],
    keys: Float[Array, "*bh t k"],
    values: Float[Array, "*bh t k"],
    visible: Bool[Array, "b t"],
) -> Float[Array, "b h 1 k"]:
    """Compute `scaled_dot_product_attention` for one query per row, with vector-matrix products.

    On XLA:CPU a batched vector-matrix product runs at memory speed; as a product with one-row
    matrices it is several times slower.
    """
    b, h, _, k = queries.shape
    sum_dtype = at_least_float32(keys.dtype)
    heads = keys.shape[:-2]
    flat = queries.reshape(*heads, k).astype(keys.dtype)
    scores = jnp.einsum("...k,...tk->...t", flat, keys, preferred_element_type=sum_dtype)
    visible = jnp.repeat(visible[:, None], h, axis=1).reshape(scores.shape)
    weights = attention_weights(mask_scores(scores, visible), k).astype(values.dtype)
    context = jnp.einsum("...t,...tk->...k", weights, values, preferred_element_type=sum_dtype)
    if on_one_cpu():
        # Without the barrier, XLA fuses this reshape and the conversion into the product that
        # follows: 280 us per block instead of 40 in bfloat16.
        context = lax.optimization_barrier(context.reshape(b, h * k))
    return context.astype(queries.dtype).reshape(b, h, 1, k)
