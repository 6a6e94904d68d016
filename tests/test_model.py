"""Properties of the model: causality, purity, transformations, dropout, parameter count."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from obscura_jax import (
    GPT_CONFIG_124M,
    DummyGPTModel,
    ExampleDeepNeuralNetwork,
    GPTConfig,
    GPTModel,
    SelfAttention_v1,
    TransformerBlock,
)
from obscura_jax.nn.layers import layer_norm
from obscura_jax.nn.parameters import count_parameters, parameter_bytes
from obscura_jax.nn.stepping_stones import mean_abs_gradients

CFG = GPTConfig(
    vocab_size=29,
    context_length=11,
    emb_dim=21,
    n_heads=3,
    n_layers=2,
    drop_rate=0.3,
    qkv_bias=True,
)
B, T = 3, CFG.context_length
MODEL = GPTModel(CFG)
IDS = jax.random.randint(jax.random.key(0), (B, T), 0, CFG.vocab_size)
PARAMS = MODEL.init(jax.random.key(1), IDS)["params"]
apply = jax.jit(lambda params, ids: MODEL.apply({"params": params}, ids))
every_model = pytest.mark.parametrize(
    "model", [MODEL, DummyGPTModel(CFG)], ids=lambda model: type(model).__name__
)


def test_a_dictionary_is_accepted_as_config():
    assert GPTModel(CFG.to_dict()) == MODEL
    assert GPTModel(GPT_CONFIG_124M).cfg == GPTConfig(**GPT_CONFIG_124M)
    assert GPTModel(CFG.to_dict() | {"n_layers": 1}) != MODEL


def test_the_gradient_is_causal():
    """The logits at t depend on the position embeddings up to t, and on no later ones."""

    def logits(table):
        params = PARAMS | {"pos_emb": {"weight": table}}
        return MODEL.apply({"params": params}, IDS).sum(axis=(0, -1))

    jacobian = jax.jit(jax.jacobian(logits))(PARAMS["pos_emb"]["weight"])
    depends = np.abs(jacobian).sum(-1) > 0
    np.testing.assert_array_equal(depends, np.tril(np.ones((T, T), bool)))


def test_rows_do_not_mix():
    alone = apply(PARAMS, IDS[1:2])
    np.testing.assert_allclose(alone[0], apply(PARAMS, IDS)[1], atol=4e-6)  # measured 1e-6


def test_vmap_over_prompts_and_over_models():
    mapped = jax.jit(jax.vmap(apply, (None, 0)))(PARAMS, IDS)
    np.testing.assert_allclose(mapped, apply(PARAMS, IDS), atol=4e-6)
    other = jax.tree.map(lambda x: x * 1.1, PARAMS)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), PARAMS, other)
    both = jax.jit(jax.vmap(apply, (0, None)))(stacked, IDS)
    np.testing.assert_allclose(both[0], apply(PARAMS, IDS), atol=4e-6)
    assert np.abs(both[1] - both[0]).max() > 0.1


def test_every_parameter_has_a_gradient():
    """The bias of the keys is the exception: softmax ignores a shift of all scores."""

    def loss(params):
        return -jax.nn.log_softmax(MODEL.apply({"params": params}, IDS))[..., 0].mean()

    for path, grad in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(PARAMS)):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if not name.endswith("W_key.bias"):
            assert np.abs(grad).max() > 1e-6, name


def test_apply_is_pure():
    before = jax.tree.map(np.array, PARAMS)
    first = MODEL.apply({"params": PARAMS}, IDS)
    np.testing.assert_array_equal(first, MODEL.apply({"params": PARAMS}, IDS))
    jax.tree.map(np.testing.assert_array_equal, before, PARAMS)


def dropped(model, params, seed):
    rngs = {"dropout": jax.random.key(seed)}
    return model.apply({"params": params}, IDS, deterministic=False, rngs=rngs)


def test_dropout():
    evaluation = MODEL.apply({"params": PARAMS}, IDS)
    off = GPTModel(CFG.to_dict() | {"drop_rate": 0.0})
    np.testing.assert_array_equal(dropped(off, PARAMS, 1), evaluation)
    np.testing.assert_array_equal(dropped(MODEL, PARAMS, 1), dropped(MODEL, PARAMS, 1))
    assert not np.array_equal(dropped(MODEL, PARAMS, 1), dropped(MODEL, PARAMS, 2))
    assert not np.array_equal(dropped(MODEL, PARAMS, 1), evaluation)
    with pytest.raises(ValueError, match="dropout needs a key"):
        MODEL.apply({"params": PARAMS}, IDS, deterministic=False)


def test_dropout_of_the_embeddings_is_unbiased():
    """In the dummy model everything after dropout is linear, so the mean logits are unbiased."""
    model = DummyGPTModel(CFG)
    params = model.init(jax.random.key(1), IDS)["params"]
    keys = jax.random.split(jax.random.key(2), 2000)
    dropped_once = jax.vmap(
        lambda key: model.apply({"params": params}, IDS, deterministic=False, rngs={"dropout": key})
    )
    samples = np.asarray(jax.jit(dropped_once)(keys), np.float64)
    z = samples.mean(0) - np.asarray(model.apply({"params": params}, IDS))
    z /= samples.std(0) / np.sqrt(len(samples))
    assert np.abs(z).max() < 5.5  # 957 nearly normal numbers


def without_mixing(params, attention_bias, feed_forward_bias):
    """Return the parameters of a block, changed so that each half adds a constant."""
    att, layers = params["att"], params["ff"]["layers"]
    return params | {
        "att": att | {"out_proj": constant(att["out_proj"], attention_bias)},
        "ff": {"layers": layers | {"2": constant(layers["2"], feed_forward_bias)}},
    }


def constant(params, value):
    weight, bias = params["weight"], params["bias"]
    return {"weight": jnp.zeros_like(weight), "bias": jnp.full_like(bias, value)}


@pytest.mark.slow
def test_dropout_of_the_shortcuts():
    """The halves add 1 and 100, so the output minus x shows what each mask kept."""
    block, x = TransformerBlock(CFG), jnp.zeros((50, T, CFG.emb_dim))
    params = without_mixing(block.init(jax.random.key(1), x)["params"], 1.0, 100.0)
    rngs = {"dropout": jax.random.key(2)}
    added = block.apply({"params": params}, x, deterministic=False, rngs=rngs) * (1 - CFG.drop_rate)
    np.testing.assert_array_equal(block.apply({"params": params}, x), 101)
    np.testing.assert_allclose(np.unique(np.round(added, 4)), [0, 1, 100, 101])
    ff_kept = np.asarray(added) > 50
    att_kept = np.asarray(added) - 100 * ff_kept > 0.5
    n, keep = x.size, 1 - CFG.drop_rate
    for kept, share in ((att_kept, keep), (ff_kept, keep), (att_kept & ff_kept, keep**2)):
        assert abs(kept.mean() - share) < 5 * np.sqrt(share * (1 - share) / n)
    assert abs((att_kept & att_kept).mean() - keep**2) > 5 * np.sqrt(0.25 / n), "one mask for both"


def test_dropout_of_the_embeddings():
    """With embeddings of 1, blocks that add 0 and an identity as head, logits show the mask.

    With this large eps, the final layer norm also shows the scale of the kept values.
    """
    cfg = replace(CFG, vocab_size=CFG.emb_dim, n_layers=1, ln_eps=0.5)
    model, ids = GPTModel(cfg), IDS % cfg.vocab_size
    params = model.init(jax.random.key(1), ids)["params"]
    params |= {
        "tok_emb": {"weight": jnp.ones((cfg.vocab_size, cfg.emb_dim))},
        "pos_emb": {"weight": jnp.zeros((T, cfg.emb_dim))},
        "trf_blocks": {"0": without_mixing(params["trf_blocks"]["0"], 0.0, 0.0)},
        "out_head": {"weight": jnp.eye(cfg.emb_dim)},
    }
    rngs = {"dropout": jax.random.key(2)}
    logits = model.apply({"params": params}, ids, deterministic=False, rngs=rngs)
    kept = np.asarray(logits) > 0
    n, keep = kept.size, 1 - cfg.drop_rate
    assert abs(kept.mean() - keep) < 5 * np.sqrt(keep * (1 - keep) / n)

    def expected(value):
        x = jnp.where(kept, value, 0.0)
        return layer_norm(x, jnp.ones(cfg.emb_dim), jnp.zeros(cfg.emb_dim), cfg.ln_eps)

    np.testing.assert_allclose(logits, expected(1 / keep), atol=1e-6)  # measured 0
    assert np.abs(logits - expected(1.0)).max() > 0.1, "unscaled values would give other logits"
    np.testing.assert_array_equal(model.apply({"params": params}, ids), 0)


def test_tied_weights():
    tied = GPTModel(CFG.to_dict() | {"tie_weights": True})
    params = {name: tree for name, tree in PARAMS.items() if name != "out_head"}
    assert jax.tree.structure(tied.init(jax.random.key(0), IDS)["params"]) == jax.tree.structure(
        params
    )
    untied = PARAMS | {"out_head": {"weight": PARAMS["tok_emb"]["weight"]}}
    ours = tied.apply({"params": params}, IDS)
    np.testing.assert_array_equal(ours, MODEL.apply({"params": untied}, IDS))
    assert not np.array_equal(ours, MODEL.apply({"params": PARAMS}, IDS))


def test_parameters_and_bytes_are_counted():
    d, v, c, f = 21, 29, 11, 84
    block = 4 * (d * d + d) + 2 * d * f + f + d + 4 * d
    total = v * d + c * d + 2 * block + 2 * d + v * d
    assert count_parameters(PARAMS) == total
    assert count_parameters(PARAMS, weight_tying=True) == total - v * d
    assert count_parameters({"params": PARAMS}) == total
    assert count_parameters({"params": PARAMS}, weight_tying=True) == total - v * d
    elsewhere = {"params": {"teacher": PARAMS}}
    assert count_parameters(elsewhere, weight_tying=True) == total, "only the model's head"
    assert parameter_bytes(PARAMS) == 4 * total
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    assert parameter_bytes(half) == 2 * total


@every_model
def test_bfloat16_parameters_give_float32_logits(model):
    params = model.init(jax.random.key(1), IDS)["params"]
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    logits = model.apply({"params": half}, IDS)
    assert logits.dtype == jnp.float32
    full = model.apply({"params": params}, IDS)
    error = np.abs(logits - full).max() / np.abs(full).max()
    assert 1e-4 < error < 0.04  # measured 0.01: eight bits of mantissa, two layers


def test_float64_is_float64_throughout(x64):
    """No operation is in float32."""
    params = jax.tree.map(lambda x: x.astype(jnp.float64), PARAMS)
    logits = MODEL.apply({"params": params}, IDS)
    assert logits.dtype == jnp.float64
    jaxpr = str(jax.make_jaxpr(lambda p: MODEL.apply({"params": p}, IDS))(params))
    assert "f32" not in jaxpr
    assert "f32" in str(jax.make_jaxpr(lambda p: MODEL.apply({"params": p}, IDS))(PARAMS))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (jnp.full((2, 3), 29), r"token id 29 is outside the vocabulary, 0\.\.28"),
        (jnp.full((2, 3), -1), "token id -1 is outside the vocabulary"),
        (jnp.zeros((2, 12), int), "12 positions do not fit into context_length=11"),
        (jnp.zeros((2, 0), int), "the prompt is empty"),
        ([[]], "the prompt is empty"),
        (3, "token ids must be a sequence, got a single number"),
        ([[1.0, 2.0]], "token ids must be integers, got float"),
        (["1"], "token ids must be integers"),
        ([3, -1], "token id -1 is outside the vocabulary"),
        (np.array([[1, 2**32 + 1]]), "token id 4294967297 is outside the vocabulary"),
        (np.array([1, 2**64 - 1], np.uint64), "token id 18446744073709551615 is outside"),
        ([1, 2**70], "token ids must be integers, got object"),
    ],
)
@every_model
def test_bad_ids_are_errors(unchecked, model, ids, message):
    params = model.init(jax.random.key(1), IDS)["params"]
    with pytest.raises(ValueError, match=message):
        model.apply({"params": params}, ids)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (jnp.array([0, 1, 11]), r"position 11 is outside the context, 0\.\.10"),
        (np.array([-1, 0, 1]), "position -1 is outside the context"),
        (jnp.array([0.0, 1.0, 2.0]), "positions must be integers, got float"),
    ],
)
def test_bad_positions_are_errors(unchecked, positions, message):
    with pytest.raises(ValueError, match=message):
        MODEL.apply({"params": PARAMS}, IDS[:, :3], positions=positions)


@every_model
@pytest.mark.parametrize("ids", [np.asarray(IDS, np.int64), IDS.tolist(), np.asarray(IDS, "u1")])
def test_ids_of_any_type_are_accepted(model, ids):
    variables = model.init(jax.random.key(1), ids)
    expected = model.apply(variables, IDS)
    np.testing.assert_array_equal(model.apply(variables, ids), expected)
    np.testing.assert_array_equal(model.apply(variables, ids[0]), expected[0])
    compiled = jax.jit(model.apply)(variables, ids)
    np.testing.assert_allclose(compiled, expected, atol=4e-6)  # measured 1e-6
    assert np.abs(expected[1] - expected[0]).max() > 0.1


def test_numpy_parameters_are_accepted(unchecked):
    params = jax.tree.map(np.asarray, PARAMS)
    ours = MODEL.apply({"params": params}, IDS)
    np.testing.assert_array_equal(ours, MODEL.apply({"params": PARAMS}, IDS))


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [MODEL, DummyGPTModel(CFG), SelfAttention_v1(3, 2), ExampleDeepNeuralNetwork((3, 3, 1), True)],
    ids=lambda module: type(module).__name__,
)
def test_fresh_parameters_are_float32_under_x64(module, x64):
    x = IDS if hasattr(module, "cfg") else jnp.ones((4, 3), jnp.float32)
    params = module.init(jax.random.key(1), x)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_a_target_of_another_shape_is_an_error(unchecked):
    """Targets (3,) and outputs (3, 1) would be broadcast to nine differences."""
    model, x = ExampleDeepNeuralNetwork((4, 4, 1), True), jnp.ones((3, 4))
    params = model.init(jax.random.key(0), x)["params"]
    assert len(mean_abs_gradients(model, params, x, jnp.ones((3, 1)))) == 2
    with pytest.raises(ValueError, match=r"target has shape \(3,\), but the output has \(3, 1\)"):
        mean_abs_gradients(model, params, x, jnp.ones(3))


def test_ids_out_of_range_inside_jit_give_nan():
    assert jnp.isnan(apply(PARAMS, jnp.full((1, 3), 29))).all()
    assert jnp.isnan(apply(PARAMS, jnp.full((1, 3), -1))).all()


def test_it_runs_as_an_nnx_module():
    """With Flax's bridge the same parameters give the same logits in NNX."""
    module = nnx.bridge.ToNNX(MODEL, rngs=nnx.Rngs(0)).lazy_init(IDS)
    state = nnx.state(module)
    nnx.update(module, nnx.State({"params": PARAMS}) if "params" in state else PARAMS)
    np.testing.assert_allclose(module(IDS), MODEL.apply({"params": PARAMS}, IDS), atol=1e-6)
