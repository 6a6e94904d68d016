"""The forms of decoding for one GPU, run on the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from obscura_jax import GPTConfig, GPTModel, generate
from obscura_jax.decoding import filters, graphs, next_token
from obscura_jax.decoding.cache import CacheUpdater, cache_layout
from obscura_jax.decoding.fused import fuse_qkv, split_qkv
from obscura_jax.decoding.graphs import JitWithOptions, decode_options
from obscura_jax.decoding.next_token import summarize
from obscura_jax.decoding.qkv_cache import QKVUpdater, from_qkv_cache, to_qkv_cache
from obscura_jax.nn.target import Target, tracing_for
from obscura_jax.training.initial import gpt2_init
from tests.support.rounds import rounds

pytestmark = pytest.mark.slow

CFG = GPTConfig(
    vocab_size=211,
    context_length=37,
    emb_dim=12,
    n_heads=3,
    n_layers=2,
    drop_rate=0.0,
    qkv_bias=True,
    tie_weights=False,
)
MODEL = GPTModel(CFG)
PARAMS = gpt2_init(CFG, jax.random.key(0))
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
GPU = Target("cuda")


def trees_equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_jax_calls_a_cuda_device_gpu():
    assert Target("gpu") == GPU != Target("cpu")


# Searches of the filters


def hard_rows(seed, rows, width):
    """Return rows with ties, infinities, NaN, zeros of both signs and the smallest numbers."""
    rng = np.random.default_rng(seed)
    scale = rng.choice([0.1, 3, 1e4], (rows, 1))
    logits = (scale * rng.standard_normal((rows, width))).astype(np.float32)
    coarse = rng.random(rows) < 0.5
    logits[coarse] = np.round(logits[coarse])
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45], np.float32)
    chosen = rng.random((rows, width)) < rng.choice([0, 0.02, 0.5], (rows, 1))
    return np.where(chosen, rng.choice(special, (rows, width)), logits)


def thresholds(target, logits, weights, enough):
    with tracing_for(target):
        search = jax.jit(lambda *args: filters._threshold(*args))
        found = search(jnp.asarray(logits), jnp.asarray(weights), jnp.asarray(enough))
    return np.asarray(found).view(np.uint32)


@pytest.mark.parametrize("seed", range(rounds(4, 40)))
def test_both_searches_find_the_same_threshold(seed):
    rng = np.random.default_rng(1000 + seed)
    rows, width = 1001, 67
    logits = hard_rows(seed, rows, width)
    weights = rng.integers(0, rng.choice([2, 2**20]), (rows, width), dtype=np.uint32)
    weights[:, 0] += 1
    enough = (1 + rng.random(rows) * (weights.sum(1) - 1)).astype(np.uint32)
    expected = thresholds(Target("cpu"), logits, weights, enough)
    assert np.array_equal(thresholds(GPU, logits, weights, enough), expected)
    assert not np.array_equal(thresholds(GPU, logits, weights[::-1], enough), expected)


@pytest.mark.parametrize("name", ["keep_top_k", "keep_top_p"])
def test_filters_keep_the_same_logits(name):
    width = 211
    logits = hard_rows(5, 1003, width)
    rng = np.random.default_rng(6)
    settings = {
        "keep_top_k": rng.integers(1, width + 1, 1003).astype(np.int32),
        "keep_top_p": rng.random(1003).astype(np.float32) + np.float32(1e-3),
    }[name]

    def kept(target, settings):
        with tracing_for(target):
            return np.asarray(
                jax.jit(lambda *args: getattr(filters, name)(*args))(logits, settings)
            )

    expected, found = kept(Target("cpu"), settings), kept(GPU, settings)
    assert np.array_equal(found, expected, equal_nan=True)
    assert not np.array_equal(kept(GPU, settings[::-1]), expected, equal_nan=True)


def test_the_search_for_a_gpu_has_no_loop():
    def text(target):
        with tracing_for(target):
            args = jnp.zeros((3, 7)), jnp.ones((3, 7), jnp.uint32), jnp.ones(3, jnp.uint32)
            return str(jax.make_jaxpr(lambda *args: filters._threshold(*args))(*args))

    assert "scan" in text(Target("cpu")) or "while" in text(Target("cpu"))
    assert "scan" not in text(GPU)
    assert "while" not in text(GPU)


# The choice of a token


def test_a_summary_has_the_values_of_separate_reductions():
    logits = hard_rows(7, 1001, 211)
    logits[np.abs(logits) < 1e-37] = 0  # XLA:CPU rounds such numbers to 0
    found = jax.tree.map(np.asarray, summarize(jnp.asarray(logits)))
    finite = np.isfinite(logits).all(axis=1)
    assert np.array_equal(found.finite, finite)
    assert 100 < finite.sum() < 900
    assert np.array_equal(found.largest, logits.max(axis=1), equal_nan=True)
    has_nan = np.isnan(logits).any(axis=1)
    assert (found.ids[has_nan] == 211).all()
    assert np.array_equal(found.ids[~has_nan], logits[~has_nan].argmax(axis=1))
    assert not np.array_equal(found.ids[~has_nan], logits[~has_nan, ::-1].argmax(axis=1))
    rows = logits[finite].astype(np.float64)
    total = np.exp(rows - rows.max(axis=1, keepdims=True)).sum(axis=1)
    np.testing.assert_allclose(found.total[finite], total, rtol=1e-6)  # 5.1e-8 measured


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 1.3},
        {"temperature": 0.8, "top_k": 7, "top_p": 0.9, "min_p": 0.03},
    ],
)
def test_decoding_for_a_gpu_generates_the_same_tokens(settings, rows, dtype):
    def run(target, key):
        options = {**settings, "key": jax.random.key(key), "dtype": dtype}
        with tracing_for(target):
            return generate(MODEL, PARAMS, PROMPTS[:rows], 30, **options)

    expected, found = run(Target("cpu"), 1), run(GPU, 1)
    assert found.tokens == expected.tokens
    for ours, theirs in zip(found.logprobs, expected.logprobs, strict=True):
        # 9.5e-7 in float32 and 1.2e-3 in bfloat16 measured
        np.testing.assert_allclose(ours, theirs, atol=1e-5 if dtype == "float32" else 3e-3)
    if settings:
        assert run(GPU, 2).tokens != expected.tokens


def test_a_mixed_batch_is_sampled_only_where_asked():
    def run(target, temperature):
        with tracing_for(target):
            key = jax.random.key(3)
            return generate(MODEL, PARAMS, PROMPTS, 20, temperature=temperature, key=key).tokens

    mixed = run(GPU, [0, 1.5, 0])
    assert mixed == run(Target("cpu"), [0, 1.5, 0])
    greedy = run(GPU, 0)
    assert [mixed[0], mixed[2]] == [greedy[0], greedy[2]]
    assert mixed[1] != greedy[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_reported(bad):
    damaged = jax.tree.map(jnp.array, PARAMS)
    damaged["out_head"]["weight"] = damaged["out_head"]["weight"].at[5].set(bad)
    with tracing_for(GPU), pytest.raises(ValueError, match="NaN or infinite"):
        generate(MODEL, damaged, PROMPTS[:1], 5)


def test_keys_are_folded_only_to_draw():
    logits, keys = jnp.zeros((3, 211)), jax.random.split(jax.random.key(0), 3)

    def outside_of_branches(target):
        sampling = next_token.SamplingArrays(*(jnp.zeros(3, t) for t in "fiff"))
        with tracing_for(target):
            traced = jax.make_jaxpr(lambda *args: next_token.choose_next(*args))(
                logits, logits, sampling, keys, jnp.arange(3)
            )
        return [str(eqn.primitive) for eqn in traced.jaxpr.eqns]

    assert "random_fold_in" in str(outside_of_branches(Target("cpu")))
    assert "random_fold_in" not in str(outside_of_branches(GPU))


# The cache and the parameters


def test_fused_parameters_compute_the_same():
    fused = fuse_qkv(PARAMS)
    assert trees_equal(split_qkv(fused), PARAMS)
    assert trees_equal(fuse_qkv(fused), fused)
    assert trees_equal(split_qkv(PARAMS), PARAMS)
    weight = fused["trf_blocks"]["1"]["att"]["W_qkv"]["weight"]
    assert weight.shape == (3 * 12, 12)
    logits = MODEL.apply({"params": PARAMS}, [PROMPTS[1]])
    np.testing.assert_allclose(  # 0 measured: each output is a product of the same two vectors
        MODEL.apply({"params": fused}, [PROMPTS[1]]), logits, atol=1e-6
    )
    fused["trf_blocks"]["1"]["att"]["W_qkv"]["weight"] = jnp.roll(weight, 12, axis=0)
    wrong = MODEL.apply({"params": fused}, [PROMPTS[1]])
    assert np.abs(wrong - logits).max() > 1e-3


def test_a_model_without_biases_is_fused():
    cfg = GPTConfig(**{**CFG.to_dict(), "qkv_bias": False})
    params = gpt2_init(cfg, jax.random.key(1))
    assert fuse_qkv(params)["trf_blocks"]["0"]["att"]["W_qkv"].keys() == {"weight"}
    assert trees_equal(split_qkv(fuse_qkv(params)), params)


def test_both_caches_hold_the_same():
    layout = cache_layout(CFG, "float32")
    draws = iter(jax.random.split(jax.random.key(4), 99))

    def draw(*shape):
        return jax.random.normal(next(draws), shape)

    cache = layout.empty(2, 7, lambda shape, dtype: draw(*shape))
    assert trees_equal(from_qkv_cache(to_qkv_cache(cache)), cache)
    one, other = CacheUpdater(cache, 5), QKVUpdater(to_qkv_cache(cache), 5)
    misplaced = QKVUpdater(to_qkv_cache(cache), 4)
    for layer in range(CFG.n_layers):
        new = [draw(2, 3, 1, 4) for _ in range(3)]
        expected = one.write(layer, *new[1:])
        assert trees_equal(other.write(layer, *new), expected)
        assert not trees_equal(misplaced.write(layer, *new), expected)
    assert trees_equal(from_qkv_cache(other.cache), one.cache)
    assert not trees_equal(from_qkv_cache(misplaced.cache), one.cache)


# How the loop is compiled


def test_only_one_gpu_has_options():
    assert decode_options(1) == {}
    with tracing_for(Target("tpu")):
        assert decode_options(1) == {}
    with tracing_for(Target("cuda", multi_device=True)):
        assert decode_options(1) == {}
    with tracing_for(GPU):
        assert decode_options(1).keys() > decode_options(2).keys() == graphs._ONE_GRAPH.keys()


def test_a_function_is_jitted_once_for_each_set_of_options():
    double = JitWithOptions(lambda x: 2 * x, lambda x: {"xla_gpu_graph_min_graph_size": x.shape[0]})
    for length in (3, 3, 4):
        x = jnp.arange(length)
        assert np.array_equal(double(x), 2 * x)
    assert double.for_call(jnp.arange(3)) is double.for_call(jnp.ones(3))
    assert double.for_call(jnp.arange(3)) is not double.for_call(jnp.arange(4))
    assert double._cache_size() == 2
