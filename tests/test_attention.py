"""Properties of attention: masks, rows that sum to 1, causality, heads, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from obscura_jax import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention_v1,
    SelfAttention_v2,
)
from obscura_jax.nn.attention import (
    attention_scores,
    attention_weights,
    causal_mask,
    mask_scores,
    merge_heads,
    renormalize_masked,
    scaled_dot_product_attention,
    softmax,
    softmax_naive,
    split_heads,
)

B, T, D_IN, D_OUT, HEADS = 3, 11, 13, 14, 7


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


X = normal(0, B, T, D_IN)
MODULES = [
    CausalAttention(D_IN, D_OUT, T, 0.5, True),
    MultiHeadAttention(D_IN, D_OUT, T, 0.5, HEADS, True),
    MultiHeadAttentionWrapper(D_IN, D_OUT, T, 0.5, 2, True),
]
every_module = pytest.mark.parametrize("module", MODULES, ids=lambda m: type(m).__name__)


def test_causal_mask_table():
    expected = [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    np.testing.assert_array_equal(causal_mask(3), expected)


def test_both_masks_give_the_same_weights():
    scores = attention_scores(normal(1, B, T, 5), normal(2, B, T, 5))
    before = attention_weights(mask_scores(scores, causal_mask(T)), 5)
    after = renormalize_masked(attention_weights(scores, 5), causal_mask(T))
    np.testing.assert_allclose(before, after, atol=3e-7)  # measured 6e-8 to 1.2e-7
    np.testing.assert_allclose(before.sum(-1), 1, atol=5e-7)
    assert not np.triu(before, k=1).any(), "future keys have weight exactly 0"
    assert np.abs(before - attention_weights(scores, 5)).max() > 0.1


def test_softmax_does_not_overflow():
    x = jnp.asarray([[1000.0, 1001.0, -1000.0]])
    np.testing.assert_allclose(softmax(x), jax.nn.softmax(x), atol=1e-7)
    assert jnp.isnan(softmax_naive(x)).any(), "so the maximum must be subtracted"


def test_a_row_without_visible_keys_is_not_nan():
    scores = mask_scores(normal(3, 2, 4), jnp.zeros((2, 4), bool))
    np.testing.assert_allclose(softmax(scores), 0.25)


def test_heads_split_and_merge():
    x = jnp.arange(B * T * D_OUT).reshape(B, T, D_OUT).astype(jnp.float32)
    heads = split_heads(x, HEADS)
    assert heads.shape == (B, HEADS, T, D_OUT // HEADS)
    np.testing.assert_array_equal(heads[1, 2, 3], x[1, 3, 4:6])
    np.testing.assert_array_equal(merge_heads(heads), x)


@pytest.mark.slow
@every_module
def test_the_gradient_is_causal(module):
    """The output at t depends on every position up to t, and on no later one."""
    variables = module.init(jax.random.key(1), X)
    jacobian = jax.jacobian(lambda x: module.apply(variables, x).sum(axis=(0, -1)))(X)
    depends = np.abs(jacobian).sum(axis=(1, 3)) > 0  # (T of the output, T of the input)
    np.testing.assert_array_equal(depends, np.tril(np.ones((T, T), bool)))


def test_without_a_mask_the_output_depends_on_the_future():
    """The negative control of the test above."""
    jacobian = jax.jacobian(lambda x: scaled_dot_product_attention(x, x, x).sum(axis=(0, -1)))(X)
    assert np.triu(np.abs(jacobian).sum(axis=(1, 3)), k=1).any()


@pytest.mark.slow
@every_module
def test_rows_do_not_mix_and_vmap_equals_the_batch(module):
    variables = module.init(jax.random.key(1), X)
    together = module.apply(variables, X)
    alone = module.apply(variables, X[1:2])
    mapped = jax.vmap(lambda x: module.apply(variables, x))(X)
    np.testing.assert_allclose(alone[0], together[1], atol=1e-6)  # measured 2.4e-7
    np.testing.assert_allclose(mapped, together, atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 0.1


@every_module
def test_a_shorter_sequence_is_a_prefix(module):
    variables = module.init(jax.random.key(1), X)
    short = module.apply(variables, X[:, :4])
    np.testing.assert_allclose(short, module.apply(variables, X)[:, :4], atol=1e-6)


@every_module
def test_without_a_key_nothing_drops_and_a_key_fixes_the_mask(module):
    variables = module.init(jax.random.key(1), X)

    def dropped(seed: int) -> jax.Array:
        rngs = {"dropout": jax.random.key(seed)}
        return module.apply(variables, X, deterministic=False, rngs=rngs)

    evaluation = module.apply(variables, X)
    off = module.clone(dropout=0.0)
    np.testing.assert_array_equal(off.apply(variables, X, deterministic=False), evaluation)
    np.testing.assert_array_equal(dropped(1), dropped(1))
    assert not np.array_equal(dropped(1), dropped(2))
    assert not np.array_equal(dropped(1), evaluation)


@pytest.mark.slow
@every_module
def test_dropout_on_the_weights_is_unbiased(module):
    """The mean over many masks equals the evaluation, by the central limit theorem."""
    variables = module.init(jax.random.key(1), X)
    keys = jax.random.split(jax.random.key(2), 2000)

    @jax.jit
    @jax.vmap
    def dropped(key):
        return module.apply(variables, X, deterministic=False, rngs={"dropout": key})

    samples = np.asarray(dropped(keys), np.float64)
    expected = np.asarray(module.apply(variables, X))
    standard_error = samples.std(axis=0) / np.sqrt(len(samples))
    z = (samples.mean(axis=0) - expected) / standard_error
    assert np.abs(z).max() < 5.5  # 462 or more nearly normal numbers: beyond 5.5 once in 50,000
    biased = (0.9 * samples.mean(axis=0) - expected) / standard_error
    assert np.abs(biased).max() > 5.5


@every_module
def test_dropout_without_a_key_is_an_error(module):
    variables = module.init(jax.random.key(1), X)
    with pytest.raises(ValueError, match="dropout needs a key"):
        module.apply(variables, X, deterministic=False)


@every_module
def test_a_sequence_beyond_the_context_is_an_error(module):
    variables = module.init(jax.random.key(1), X)
    with pytest.raises(ValueError, match="12 positions do not fit into context_length=11"):
        module.apply(variables, normal(5, 1, T + 1, D_IN))


def test_the_wrapper_equals_split_heads():
    """Separate heads equal slices of one projection: the step from chapter 3.6.1 to 3.6.2."""
    head_width = D_OUT // HEADS
    wrapper = MultiHeadAttentionWrapper(D_IN, head_width, T, 0.0, HEADS, True)
    params = wrapper.init(jax.random.key(1), X)["params"]["heads"]
    joined = {
        name: {
            leaf: jnp.concatenate([params[str(h)][name][leaf] for h in range(HEADS)])
            for leaf in ("weight", "bias")
        }
        for name in ("W_query", "W_key", "W_value")
    }
    joined["out_proj"] = {"weight": jnp.eye(D_OUT), "bias": jnp.zeros(D_OUT)}
    split = MultiHeadAttention(D_IN, D_OUT, T, 0.0, HEADS, True)
    ours = split.apply({"params": joined}, X)
    np.testing.assert_allclose(ours, wrapper.apply({"params": {"heads": params}}, X), atol=1e-6)
    reversed_heads = {"heads": {str(h): params[str(HEADS - 1 - h)] for h in range(HEADS)}}
    assert np.abs(ours - wrapper.apply({"params": reversed_heads}, X)).max() > 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiHeadAttention(4, 7, 5, 0.0, 2), "d_out=7 is not divisible by num_heads=2"),
        (lambda: MultiHeadAttention(4, 8, 5, 0.0, 0), "num_heads must be"),
        (lambda: MultiHeadAttention(4, 8, 0, 0.0, 2), "context_length must be"),
        (lambda: MultiHeadAttention(4, 8, 5, 1.0, 2), "dropout must be"),
        (lambda: CausalAttention(4, 8, 5, -0.1), "dropout must be"),
        (lambda: CausalAttention(4, 8, -5, 0.1), "context_length must be"),
        (lambda: CausalAttention(0, 8, 5, 0.1), "d_in must be"),
        (lambda: CausalAttention(4, 0, 5, 0.1), "d_out must be"),
        (lambda: MultiHeadAttention(0, 8, 5, 0.0, 2), "d_in must be"),
        (lambda: MultiHeadAttentionWrapper(4, 8, 5, 0.1, 0), "num_heads must be"),
        (lambda: MultiHeadAttentionWrapper(4, 0, 5, 0.1, 2), "d_out must be"),
        (lambda: MultiHeadAttentionWrapper(4, 8, 5, 1.0, 2), "dropout must be"),
        (lambda: SelfAttention_v1(3, 0), "d_out must be"),
        (lambda: SelfAttention_v1(-1, 3), "d_in must be"),
        (lambda: SelfAttention_v2(3, 0), "d_out must be"),
        (lambda: SelfAttention_v2(0, 3), "d_in must be"),
    ],
)
def test_impossible_sizes_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
