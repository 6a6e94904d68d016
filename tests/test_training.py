"""Training follows PyTorch, step by step: the same losses from the same weights and batches."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from obscura_jax import GPTConfig, GPTModel
from obscura_jax.interop.build import build
from obscura_jax.parity import torch_reference
from obscura_jax.training.loss import cross_entropy, next_token_loss
from obscura_jax.training.optimizer import OptimizerConfig, learning_rate
from obscura_jax.training.step import init_train_state, train_step_jit
from tests.support.tolerances import BUDGETS

CFG = GPTConfig(
    vocab_size=53,
    context_length=11,
    emb_dim=12,
    n_heads=3,
    n_layers=2,
    drop_rate=0.0,
    qkv_bias=True,
)
MODEL = GPTModel(CFG)
STEPS = 100
OPTIMIZER = OptimizerConfig(
    learning_rate=3e-3,
    warmup_steps=10,
    decay_steps=80,
    weight_decay=0.1,
    decay_1d_params=False,
    clip_norm=0.5,
)


def batches(steps=STEPS, grad_accum_steps=2, seed=0):
    """(steps, A, B, T + 1) ids with something to learn: each row counts up in its own stride."""
    rng = np.random.default_rng(seed)
    start, stride = rng.integers(0, 53, (2, steps, grad_accum_steps, 3, 1))
    return ((start + (stride % 3 + 1) * np.arange(CFG.context_length + 1)) % 53).astype(np.int32)


def torch_model(dtype=torch.float32):
    torch.manual_seed(3)
    return torch_reference.GPTModel(CFG.to_dict()).to(dtype)


def torch_losses(dtype, config=OPTIMIZER):
    model = torch_model(dtype).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": config.weight_decay * config.decay_1d_params},
    ]
    betas = (config.beta1, config.beta2)
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon)

    def factor(step):
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        through = min((step - config.warmup_steps) / config.decay_steps, 1)
        low = config.end_lr_fraction
        return low + (1 - low) * (1 + math.cos(math.pi * through)) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, factor)
    losses = []
    for step in torch.tensor(batches(), dtype=torch.long):
        adamw.zero_grad()
        total = 0.0
        for ids in step:
            logits = model(ids[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            (loss / len(step)).backward()
            total += loss.item() / len(step)
        losses.append(total)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        adamw.step()
        schedule.step()
    return np.array(losses)


def jax_losses(dtype=jnp.float32, config=OPTIMIZER, **kwargs):
    state = {k: v.numpy() for k, v in torch_model().state_dict().items()}
    params = build(state, CFG.to_dict()).params
    state = init_train_state(config, jax.tree.map(lambda leaf: leaf.astype(dtype), params))
    losses = []
    for ids in batches():
        state, report = train_step_jit(MODEL, config, state, ids[..., :-1], ids[..., 1:], **kwargs)
        losses.append(float(report.loss))
    return np.array(losses)


def relative(ours, theirs):
    return np.abs(ours / theirs - 1).max()


def test_100_steps_beside_torch():
    theirs = torch_losses(torch.float32)
    assert theirs[-1] < 0.9 * theirs[0]  # there is something to follow
    allowed = BUDGETS["losses of 100 steps", "float32"].allowed
    assert relative(jax_losses(), theirs) <= allowed
    for wrong in (
        replace(OPTIMIZER, decay_1d_params=True),
        replace(OPTIMIZER, clip_norm=0.51),
        replace(OPTIMIZER, warmup_steps=11),
        replace(OPTIMIZER, weight_decay=0.0),
    ):
        assert relative(jax_losses(config=wrong), theirs) > allowed, wrong


def test_100_steps_in_float64(x64):
    theirs = torch_losses(torch.float64)
    allowed = BUDGETS["losses of 100 steps", "float64"].allowed
    assert relative(jax_losses(jnp.float64), theirs) <= allowed
    assert relative(jax_losses(jnp.float32), theirs) > allowed
    assert relative(jax_losses(jnp.float64, replace(OPTIMIZER, epsilon=2e-8)), theirs) > allowed


def test_one_compilation_for_a_run():
    before = train_step_jit._cache_size()
    jax_losses(logits_chunk=5)
    assert train_step_jit._cache_size() == before + 1


@pytest.mark.parametrize("logits_chunk", [1, 4, 5, 11, 100])
def test_the_loss_in_chunks_is_the_loss(logits_chunk, x64):
    """Of T = 11 positions, in chunks that divide it and that do not: value and gradients."""
    key, ids = jax.random.key(0), batches(1, 1)[0, 0]
    params = MODEL.init(key, ids[:, :-1])["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)

    def loss(params, logits_chunk, targets=ids[:, 1:]):
        return next_token_loss(MODEL, params, ids[:, :-1], targets, logits_chunk=logits_chunk)

    whole, chunked = (jax.value_and_grad(loss)(params, size) for size in (None, logits_chunk))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(chunked), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)
    assert abs(loss(params, logits_chunk, ids[:, :-1]) - whole[0]) > 1e-3


@pytest.mark.parametrize("remat", ["elementwise", "blocks"])
def test_recomputing_changes_no_gradient(remat, x64):
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


def test_cross_entropy_is_torchs():
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


def test_the_rate():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4, decay_steps=6, end_lr_fraction=0.1)
    rates = [round(float(learning_rate(config, step)), 4) for step in range(13)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 0.9397, 0.775, 0.55, 0.325, 0.1603, 0.1, 0.1, 0.1]
    constant = OptimizerConfig(learning_rate=0.5)
    assert [float(learning_rate(constant, step)) for step in (0, 1, 999)] == [0.5] * 3


def test_dropout_is_a_function_of_key_and_step():
    model = GPTModel(replace(CFG, drop_rate=0.2))
    params = model.init(jax.random.key(0), [[0]])["params"]
    ids = batches(1)[0]

    def loss(seed, steps=1):
        state = init_train_state(OPTIMIZER, params)
        for _ in range(steps):
            args = (model, OPTIMIZER, state, ids[..., :-1], ids[..., 1:], jax.random.key(seed))
            state, report = train_step_jit(*args)
        return float(report.loss)

    assert loss(1) == loss(1) != loss(2)
    assert loss(1, 3) == loss(1, 3)


def test_bfloat16_computes_and_float32_keeps():
    params = MODEL.init(jax.random.key(0), [[0]])["params"]
    ids = batches(1)[0]
    found = []
    for dtype in (None, jnp.bfloat16):
        state = init_train_state(OPTIMIZER, params)
        args = (MODEL, OPTIMIZER, state, ids[..., :-1], ids[..., 1:])
        state, report = train_step_jit(*args, compute_dtype=dtype)
        found.append(float(report.loss))
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
def test_bad_numbers_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        OptimizerConfig(**{field: value})
