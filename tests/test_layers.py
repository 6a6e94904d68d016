"""Properties of layers that hold for any numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from obscura_jax import DummyLayerNorm, ExampleDeepNeuralNetwork, SelfAttention_v1
from obscura_jax.nn.attention import context_vectors
from obscura_jax.nn.layers import Dropout, Embedding, LayerNorm, dropout, embed, gelu, layer_norm
from obscura_jax.nn.linear import Linear, linear

X = jax.random.normal(jax.random.key(0), (3, 11, 13))
ONES, ZEROS = jnp.ones(13), jnp.zeros(13)


def test_layer_norm_gives_mean_0_and_variance_1():
    y = layer_norm(3 * X + 7, ONES, ZEROS, 1e-5)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(y.var(-1), 1, atol=1e-4)  # eps subtracts about 1e-5 / variance
    assert np.abs(y.var(-1, ddof=1) - 1).min() > 0.05, "the variance is the biased one"


def test_layer_norm_far_from_zero():
    """Subtracting the mean first keeps digits that E[x^2] - E[x]^2 would lose."""
    far = layer_norm(X + 4096, ONES, ZEROS, 1e-5)
    np.testing.assert_allclose(far, layer_norm(X, ONES, ZEROS, 1e-5), atol=4e-3)  # measured 1e-3
    z = X + 4096
    fast = jnp.square(z).mean(-1, keepdims=True) - jnp.square(z.mean(-1, keepdims=True))
    assert not np.allclose(fast, X.var(-1, keepdims=True), atol=0.5)


@pytest.mark.parametrize("function", [gelu, lambda x: layer_norm(x, x[0, 0], x[0, 0], 1e-5)])
def test_the_type_of_the_input_is_returned(function):
    assert function(X.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_layer_norm_statistics_are_float32_in_bfloat16():
    x = (X + 50).astype(jnp.bfloat16)
    expected = layer_norm(x.astype(jnp.float32), ONES, ZEROS, 1e-5).astype(jnp.bfloat16)
    ours = layer_norm(x, ONES.astype(jnp.bfloat16), ZEROS.astype(jnp.bfloat16), 1e-5)
    np.testing.assert_array_equal(ours, expected)


def test_linear_sums_bfloat16_in_float32():
    """257 ones sum to 257 in float32; a bfloat16 sum would stop at 256."""
    x, weight = jnp.ones((1, 257), jnp.bfloat16), jnp.ones((1, 257), jnp.bfloat16)
    assert linear(x, weight, dtype=jnp.float32)[0, 0] == 257


def test_gelu_is_the_tanh_form():
    x = jnp.linspace(-4, 4, 101)
    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x, approximate=True), atol=1e-6)
    assert np.abs(gelu(x) - jax.nn.gelu(x, approximate=False)).max() > 1e-4


def test_an_id_outside_the_table_gives_nan():
    weight = jnp.arange(12.0).reshape(4, 3)
    rows = jax.jit(embed)(weight, jnp.asarray([3, 4, -1]))
    np.testing.assert_array_equal(rows[0], weight[3])
    assert jnp.isnan(rows[1:]).all()


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_a_64_bit_id_does_not_select_another_row(dtype):
    """In 32 bits, 2**32 + 1 is 1: in NumPy, and in JAX with x64 enabled."""
    weight, ids = jnp.arange(12.0).reshape(4, 3), np.array([2**32 + 1, 1], dtype)
    with jax.enable_x64(True):
        traced = jax.jit(embed)(weight, jnp.asarray(ids))
    for rows in (traced, jax.jit(lambda weight: embed(weight, ids))(weight)):
        assert jnp.isnan(rows[0]).all()
        np.testing.assert_array_equal(rows[1], weight[1])
    narrowed = embed(weight, ids.astype(np.int32))
    np.testing.assert_array_equal(narrowed[0], weight[1], "so the range is checked first")


def test_an_embedding_accepts_ids_of_any_shape_within_the_table(unchecked):
    module = Embedding(5, 3)
    variables = module.init(jax.random.key(0), [1])
    weight = variables["params"]["weight"]
    np.testing.assert_array_equal(module.apply(variables, 2), weight[2])
    np.testing.assert_array_equal(module.apply(variables, [[4], [0]]), weight[np.array([[4], [0]])])
    assert module.apply(variables, []).shape == (0, 3)
    for ids in (5, [-1], np.array([2**32 + 1]), np.array([1, 2**63 + 1], np.uint64)):
        with pytest.raises(ValueError, match=r"is outside the vocabulary, 0\.\.4"):
            module.apply(variables, ids)
    for ids in (1.0, ["1"], [None], [2**70], True):
        with pytest.raises(ValueError, match="token ids must be integers"):
            module.apply(variables, ids)


def test_numpy_parameters_are_accepted(unchecked):
    weight = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(embed(weight, jnp.asarray([2, 0])), weight[[2, 0]])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: linear(x, ONES[None]),
        lambda x: layer_norm(x, ONES, ZEROS, 1e-5),
        lambda x: context_vectors(jnp.full((11, 11), 0.5), x),
        lambda x: SelfAttention_v1(13, 2).init_with_output(jax.random.key(0), x),
    ],
)
def test_integer_inputs_are_errors(unchecked, function):
    function(X)
    with pytest.raises(ValueError, match="must be of a floating-point type, got int32"):
        function(X.astype(jnp.int32))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_is_unbiased(rate):
    n = 200_000
    y = np.asarray(dropout(jnp.ones(n), rate, key=jax.random.key(1)), np.float64)
    assert set(np.unique(y)) == {0.0, np.float64(np.float32(1) / np.float32(1 - rate))}
    standard_error = np.sqrt(rate / (1 - rate) / n)
    assert abs(y.mean() - 1) < 5 * standard_error
    assert abs((y * (1 - rate)).mean() - 1) > 5 * standard_error, "unscaled, the mean is biased"


def test_dropout_keys():
    module = Dropout(0.5)

    def dropped(seed):
        return module.apply({}, X, deterministic=False, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(module.apply({}, X), X)
    np.testing.assert_array_equal(dropped(1), dropped(1))
    assert not np.array_equal(dropped(1), dropped(2))
    np.testing.assert_array_equal(dropout(X, 0.5), X)
    with pytest.raises(ValueError, match="dropout needs a key"):
        module.apply({}, X, deterministic=False)


@pytest.mark.parametrize("rate", [1.0, 1.5, -0.1, float("nan")])
def test_impossible_drop_rates_are_errors(rate):
    with pytest.raises(ValueError, match=r"dropout must be a number in \[0, 1\)"):
        Dropout(rate)
    for key in (None, jax.random.key(0)):
        with pytest.raises(ValueError, match=r"the drop rate must be a number in \[0, 1\)"):
            dropout(X, rate, key=key)


@pytest.mark.parametrize(
    ("module", "name", "expected_std"),
    [
        (Linear(400, 301), "weight", 1 / np.sqrt(3 * 400)),
        (Linear(400, 30100), "bias", 1 / np.sqrt(3 * 400)),
        (Embedding(301, 400), "weight", 1.0),
    ],
)
def test_new_parameters_have_torchs_distributions(module, name, expected_std):
    x = jnp.zeros((1, 400)) if isinstance(module, Linear) else jnp.zeros(1, jnp.int32)
    values = np.asarray(module.init(jax.random.key(3), x)["params"][name], np.float64)
    n = values.size
    assert abs(values.mean()) < 5 * expected_std / np.sqrt(n)
    assert abs(values.std() / expected_std - 1) < 5 / np.sqrt(n)
    if isinstance(module, Linear):
        bound = 1 / np.sqrt(400)
        assert 0.999 * bound < np.abs(values).max() <= bound
    else:
        assert np.abs(values).max() > 3.5, "normal, not uniform"


def test_new_matrices_of_self_attention_v1_are_uniform_in_0_1():
    params = SelfAttention_v1(400, 301).init(jax.random.key(3), jnp.zeros((1, 400)))["params"]
    for values in (np.asarray(x, np.float64) for x in params.values()):
        n = values.size
        assert 0 <= values.min() < 1e-3
        assert 0.999 < values.max() < 1
        assert abs(values.mean() - 0.5) < 5 / np.sqrt(12 * n)
        assert abs(values.std() * np.sqrt(12) - 1) < 5 / np.sqrt(n)
    assert not np.array_equal(params["W_query"], params["W_key"])


def test_fresh_layer_norm_has_scale_1_and_shift_0():
    params = LayerNorm(13).init(jax.random.key(0), X)["params"]
    np.testing.assert_array_equal(params["scale"], ONES)
    np.testing.assert_array_equal(params["shift"], ZEROS)


@pytest.mark.parametrize("sizes", [(), (3,), (3, 0), (3, -1, 2), (3, 1.5)])
def test_impossible_networks_are_errors(unchecked, sizes):
    with pytest.raises(ValueError, match="layer_sizes"):
        ExampleDeepNeuralNetwork(sizes, True)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Linear(0, 3), "in_features"),
        (lambda: Linear(3, 2.5), "out_features"),
        (lambda: Embedding(3, -1), "embedding_dim"),
        (lambda: Embedding(0, 3), "num_embeddings"),
        (lambda: LayerNorm(0), "emb_dim"),
        (lambda: LayerNorm(-1), "emb_dim"),
        (lambda: DummyLayerNorm(0), "normalized_shape"),
    ],
)
def test_impossible_sizes_are_errors(unchecked, make, name):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1"):
        make()


@pytest.mark.parametrize("make", [LayerNorm, DummyLayerNorm])
@pytest.mark.parametrize("eps", [0, -1e-5, 1.0, float("nan"), "1e-5"])
def test_impossible_eps_are_errors(unchecked, make, eps):
    with pytest.raises(ValueError, match=r"eps must be a number in \(0, 1\)"):
        make(3, eps)


def test_sizes_are_stored_as_python_numbers(unchecked):
    module = Linear(np.int64(3), jnp.asarray(2))
    assert module == Linear(3, 2)
    assert module != Linear(3, 3)
    assert hash(module) == hash(Linear(3, 2))
    assert type(LayerNorm(3, np.float32(0.5)).eps) is float


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gradients_of_16_bit_products_are_as_precise_as_their_type(rows, dtype):
    """The error relative to float32 is only that of rounding the gradients to the type."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (rows, 7), dtype)
    weight, bias = jax.random.normal(keys[1], (5, 7), dtype), jnp.ones(5, dtype)
    up = jax.random.normal(keys[2], (rows, 5), dtype)

    def gradients(*args):
        return jax.grad(lambda *a: (linear(*a) * up.astype(a[0].dtype)).sum(), (0, 1, 2))(*args)

    ours = gradients(x, weight, bias)
    exact = gradients(*(a.astype(jnp.float32) for a in (x, weight, bias)))
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == dtype
        error = jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max()
        assert error <= jnp.finfo(dtype).eps  # half of it for a single rounding
    per_row = jax.vmap(jax.grad(lambda x, w: linear(x[None], w).sum(), 1), (0, None))(x, weight)
    assert per_row.shape == (rows, 5, 7)
