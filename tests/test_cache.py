"""The layout of the cache is defined in one place, and the cache is found by its type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from obscura_jax import GPTConfig
from obscura_jax.decoding.cache import KVCache, cache_layout, target_layout
from obscura_jax.decoding.state import initial_state
from obscura_jax.nn.target import Target, tracing_for
from obscura_jax.scale.generation import row_specs
from obscura_jax.scale.mesh import BATCH

CFG = GPTConfig(
    vocab_size=61,
    context_length=67,
    emb_dim=12,
    n_heads=3,
    n_layers=2,
    drop_rate=0.0,
    qkv_bias=True,
)


@pytest.mark.parametrize(
    ("target", "dtype", "shape", "kept"),
    [
        (Target("cpu"), "bfloat16", (6, 7, 4), "float32"),
        (Target("cpu"), "float32", (6, 7, 4), "float32"),
        (Target("cpu", multi_device=True), "bfloat16", (2, 3, 7, 4), "bfloat16"),
        (Target("cuda"), "bfloat16", (2, 3, 7, 4), "bfloat16"),
        (Target("tpu"), "float32", (2, 3, 7, 4), "float32"),
    ],
)
def test_only_a_single_cpu_merges_rows_and_heads(target, dtype, shape, kept):
    with tracing_for(target):
        layout = target_layout(CFG, dtype)
    cache = layout.empty(2, 7)
    assert {leaf.shape for leaf in jax.tree.leaves(cache)} == {shape}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(cache)} == {kept}
    assert len(cache.keys) == len(cache.values) == CFG.n_layers


def test_a_cache_converted_there_and_back_is_the_same():
    separate, merged = (cache_layout(CFG, "float32", merged=merged) for merged in (False, True))
    leaves = iter(range(100))
    cache = separate.empty(2, 5, lambda shape, _: np.arange(120).reshape(shape) + next(leaves))
    there = merged.convert(cache, 2)
    assert {leaf.shape for leaf in jax.tree.leaves(there)} == {(6, 5, 4)}
    np.testing.assert_array_equal(there.values[1][4], cache.values[1][1, 1])  # row 1, head 1
    jax.tree.map(np.testing.assert_array_equal, separate.convert(there, 2), cache)


def test_only_the_cache_is_split_over_heads_whatever_its_number_of_axes():
    """Another array with four axes is no cache."""
    cache = cache_layout(CFG, "float32").empty(2, 7, jax.ShapeDtypeStruct)
    state = initial_state(2, 7, cache, jax.ShapeDtypeStruct)
    other = jax.ShapeDtypeStruct((2, 3, 7, 4), jnp.float32)
    specs = row_specs({"state": state, "other": other, "slots": 7})
    assert specs["other"] == specs["state"].tokens == P(BATCH)
    assert specs["state"].count == specs["slots"] == P()
    assert specs["state"].cache == KVCache((P(BATCH, "model"),) * 2, (P(BATCH, "model"),) * 2)
