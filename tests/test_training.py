"""The loss, its gradients and the training step."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from obscura_jax import GPTModel
from obscura_jax.parity.gpt.trajectory import CFG, OPTIMIZER, batches
from obscura_jax.training.loss import cross_entropy, next_token_loss
from obscura_jax.training.optimizer import OptimizerConfig, learning_rate
from obscura_jax.training.options import StepOptions
from obscura_jax.training.step import init_train_state, train_step_jit

MODEL = GPTModel(CFG)


@pytest.mark.slow
def test_one_compilation_for_a_run():
    state = init_train_state(OPTIMIZER, MODEL.init(jax.random.key(0), [[0]])["params"])
    before = train_step_jit._cache_size()
    for ids in batches(5):
        args = (MODEL, OPTIMIZER, state, ids[..., :-1], ids[..., 1:])
        options = StepOptions(grad_accum_steps=2, logits_chunk=5)
        state, _ = train_step_jit(*args, options=options)
    assert train_step_jit._cache_size() == before + 1


@pytest.mark.slow
@pytest.mark.parametrize("logits_chunk", [1, 4, 5, 11, 100])
def test_the_loss_in_chunks_equals_the_loss(logits_chunk, x64):
    """Value and gradients agree, for chunks that divide T = 11 positions and others."""
    key, ids = jax.random.key(0), batches(1, 1)[0, 0]
    params = MODEL.init(key, ids[:, :-1])["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)

    def loss(params, logits_chunk, targets=ids[:, 1:]):
        return next_token_loss(MODEL, params, ids[:, :-1], targets, logits_chunk=logits_chunk)

    whole, chunked = (jax.value_and_grad(loss)(params, size) for size in (None, logits_chunk))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(chunked), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)
    assert abs(loss(params, logits_chunk, ids[:, :-1]) - whole[0]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["elementwise", "blocks"])
def test_remat_changes_no_gradient(remat, x64):
    """Dropout included: what is computed again drops the same values."""
    model = GPTModel(replace(CFG, drop_rate=0.2))
    ids = batches(1, 1)[0, 0]
    params = model.init(jax.random.key(0), ids[:, :-1])["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)

    def found(remat, seed=1):
        def loss(params):
            args = (model, params, ids[:, :-1], ids[:, 1:])
            return next_token_loss(*args, key=jax.random.key(seed), remat=remat)

        return jax.value_and_grad(loss)(params), str(jax.make_jaxpr(jax.grad(loss))(params))

    (kept, plain), (again, remade) = found(None), found(remat)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)
    assert remade.count("tanh") > plain.count("tanh")  # it is computed again
    assert abs(found(remat, seed=2)[0][0] - kept[0]) > 1e-4


def test_cross_entropy_equals_torchs():
    rng = np.random.default_rng(0)
    logits, targets = (
        rng.normal(size=(3, 7, 53)).astype(np.float32) * 30,
        batches(1, 1)[0, 0, :, :7],
    )
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits).flatten(0, 1), torch.tensor(targets, dtype=torch.long).flatten()
    )
    assert abs(cross_entropy(jnp.asarray(logits), targets) / theirs.item() - 1) < 1e-6
    low = cross_entropy(jnp.asarray(logits, jnp.bfloat16), targets)
    assert low.dtype == jnp.float32


def test_the_learning_rate_follows_the_schedule():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4, decay_steps=6, end_lr_fraction=0.1)
    rates = [round(float(learning_rate(config, step)), 4) for step in range(13)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 0.9397, 0.775, 0.55, 0.325, 0.1603, 0.1, 0.1, 0.1]
    constant = OptimizerConfig(learning_rate=0.5)
    assert [float(learning_rate(constant, step)) for step in (0, 1, 999)] == [0.5] * 3


@pytest.mark.slow
def test_dropout_is_a_function_of_key_and_step():
    model = GPTModel(replace(CFG, drop_rate=0.2))
    params = model.init(jax.random.key(0), [[0]])["params"]
    ids = batches(1)[0]

    def loss(seed, steps=1):
        state = init_train_state(OPTIMIZER, params)
        for _ in range(steps):
            args = (model, OPTIMIZER, state, ids[..., :-1], ids[..., 1:], jax.random.key(seed))
            state, metrics = train_step_jit(*args, options=StepOptions(grad_accum_steps=2))
        return float(metrics.loss)

    assert loss(1) == loss(1) != loss(2)
    assert loss(1, 3) == loss(1, 3)


@pytest.mark.slow
def test_bfloat16_computes_and_float32_is_stored():
    params = MODEL.init(jax.random.key(0), [[0]])["params"]
    ids = batches(1)[0]
    found = []
    for dtype in (None, "bfloat16"):
        state = init_train_state(OPTIMIZER, params)
        args = (MODEL, OPTIMIZER, state, ids[..., :-1], ids[..., 1:])
        options = StepOptions(grad_accum_steps=2, compute_dtype=dtype)
        state, metrics = train_step_jit(*args, options=options)
        found.append(float(metrics.loss))
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert 1e-5 < abs(found[0] - found[1]) < 0.02


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0),
        ("learning_rate", math.nan),
        ("learning_rate", -1e-3),
        ("learning_rate", "fast"),
        ("warmup_steps", -1),
        ("end_lr_fraction", 1.5),
        ("weight_decay", -0.1),
        ("beta1", 1.0),
        ("beta2", math.nan),
        ("epsilon", 0),
        ("clip_norm", 0),
    ],
)
def test_bad_hyperparameters_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        OptimizerConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("grad_accum_steps", 0),
        ("grad_accum_steps", 1.5),
        ("compute_dtype", "int32"),
        ("compute_dtype", "fast"),
        ("logits_chunk", 0),
        ("remat", "all"),
    ],
)
def test_bad_step_options_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        StepOptions(**{field: value})


def test_step_options_are_one_static_argument():
    options = StepOptions(compute_dtype=jnp.bfloat16)
    assert options == StepOptions(compute_dtype="bfloat16")
    assert hash(options) == hash(StepOptions(compute_dtype="bfloat16"))
    assert StepOptions(grad_accum_steps=3).micro_batch_size(6) == 2
    with pytest.raises(ValueError, match="6 windows does not split into 4"):
        StepOptions(grad_accum_steps=4).micro_batch_size(6)


def test_a_step_refuses_another_number_of_micro_batches():
    state = jax.eval_shape(
        lambda: init_train_state(OPTIMIZER, MODEL.init(jax.random.key(0), [[0]])["params"])
    )
    ids = batches(1)[0]
    with pytest.raises(ValueError, match="inputs have 2 micro-batches, but grad_accum_steps=1"):
        train_step_jit.trace(MODEL, OPTIMIZER, state, ids[..., :-1], ids[..., 1:])
