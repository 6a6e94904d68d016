"""Blocks in a loop: the same model from the same tree, and a program that does not grow."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from obscura_jax import GPTConfig, GPTModel, TransformerBlock
from obscura_jax.nn.scan import hidden_states, stack_blocks, unstack_blocks
from obscura_jax.training.initial import gpt2_init
from obscura_jax.training.loss import next_token_loss
from obscura_jax.training.optimizer import OptimizerConfig
from obscura_jax.training.step import init_train_state, make_train_step

CFG = GPTConfig(
    vocab_size=53,
    context_length=11,
    emb_dim=12,
    n_heads=3,
    n_layers=3,
    drop_rate=0.0,
    qkv_bias=True,
)
MODEL = GPTModel(CFG)
CONFIG = OptimizerConfig(clip_norm=1.0)
IDS = np.arange(3 * 7).reshape(3, 7) % 53


@jax.jit
def run(tree, key=None):
    """Half of everything is dropped, if there is a key."""
    return hidden_states(GPTModel(replace(CFG, drop_rate=0.5)), tree, IDS, key=key)


def params():
    """All different from each other, biases and norms too."""
    tree = gpt2_init(CFG, jax.random.key(0))
    leaves, shape = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return shape.unflatten(
        [
            leaf + 0.1 * jax.random.normal(key, leaf.shape)
            for leaf, key in zip(leaves, keys, strict=True)
        ]
    )


def test_stacking_and_unstacking_a_state_is_exact():
    state = init_train_state(CONFIG, params())
    loop = stack_blocks(state)
    assert loop.params["trf_blocks"]["ff"]["layers"]["0"]["weight"].shape == (3, 48, 12)
    back = unstack_blocks(loop)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)
    shapes = stack_blocks(jax.eval_shape(lambda: state))
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, loop)


@pytest.mark.slow
@pytest.mark.parametrize("remat", [None, "elementwise", "blocks"])
def test_the_scan_equals_the_model(remat, x64):
    tree = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params())

    def loss(tree):
        return next_token_loss(MODEL, tree, IDS, (IDS + 1) % 53, remat=remat)

    measure = jax.jit(jax.value_and_grad(loss))
    want, gradients = measure(tree)
    got, of_loop = measure(stack_blocks(tree))
    np.testing.assert_allclose(got, want, rtol=1e-14)
    flat = zip(jax.tree.leaves(unstack_blocks(of_loop)), jax.tree.leaves(gradients), strict=True)
    for ours, theirs in flat:
        np.testing.assert_allclose(ours, theirs, atol=1e-14)  # 2e-16 measured


@pytest.mark.slow
def test_blocks_in_another_order_are_detected(x64):
    tree = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params())
    blocks = tree["trf_blocks"]
    swapped = {**tree, "trf_blocks": {**blocks, "1": blocks["2"], "2": blocks["1"]}}
    want, got = (run(stack_blocks(each)) for each in (tree, swapped))
    assert np.abs(want - got).max() > 1e-3


@pytest.mark.slow
def test_the_scan_drops_the_same_values():
    tree, (key, other) = params(), jax.random.split(jax.random.key(3))
    want, got = (run(each, jax.random.clone(key)) for each in (tree, stack_blocks(tree)))
    np.testing.assert_allclose(got, want, atol=2e-6)  # 2.4e-7 measured
    assert np.abs(run(stack_blocks(tree), other) - want).max() > 0.1
    assert np.abs(with_keys_by_name(tree, jax.random.clone(key)) - want).max() > 0.1


def with_keys_by_name(tree, key):
    """The hidden states with keys that Linen makes of the names in each block: other masks."""
    model = GPTModel(replace(CFG, drop_rate=0.5))
    first = jax.random.fold_in(key, CFG.n_layers)
    how = {"deterministic": False, "rngs": {"dropout": first}}
    x = model.apply({"params": tree}, IDS, method="embeddings", **how)
    for number in range(CFG.n_layers):
        how["rngs"] = {"dropout": jax.random.fold_in(key, number)}
        block = {"params": tree["trf_blocks"][str(number)]}
        x = TransformerBlock(model.cfg).apply(block, x, **how)
    return x


@pytest.mark.slow
def test_both_forms_are_bit_for_bit_the_same_operations():
    """With dropout, loss and gradients; compiled, the order of sums differs by rounding."""
    tree, model = params(), GPTModel(replace(CFG, drop_rate=0.5))

    def found(tree, seed):
        def loss(tree):
            return next_token_loss(model, tree, IDS, (IDS + 1) % 53, key=jax.random.key(seed))

        return jax.value_and_grad(loss)(tree)

    with jax.disable_jit():
        want, (loss, of_loop) = found(tree, 3), found(stack_blocks(tree), 3)
        other, _ = found(stack_blocks(tree), 4)
    jax.tree.map(np.testing.assert_array_equal, (loss, unstack_blocks(of_loop)), want)
    assert abs(other - loss) > 0.01


def test_every_block_of_the_scan_drops_other_values():
    tree = stack_blocks(params())
    key, other = jax.random.split(jax.random.key(3))
    first, again, third = (run(tree, jax.random.clone(k)) for k in (key, key, other))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - third).max() > 0.1
    # Blocks of zeros but for a last bias of 1 add 2 where they do not drop it. Three masks of their
    # own give every sum; one mask for all would give 0 and 6 only.
    blank = jax.tree.map(jnp.zeros_like, tree)
    blank["trf_blocks"]["ff"]["layers"]["2"]["bias"] += 1
    assert set(np.unique(run(blank, jax.random.clone(key)))) == {0.0, 2.0, 4.0, 6.0}


def step(blocks, scan):
    """Return a step of a model with `blocks` blocks, to be traced and lowered."""
    cfg = replace(CFG, n_layers=blocks)
    state = jax.eval_shape(lambda: init_train_state(CONFIG, gpt2_init(cfg, jax.random.key(0))))
    ids = jax.ShapeDtypeStruct((1, 3, 11), jnp.int32)
    program = make_train_step()  # not traced yet
    return partial(
        program.lower, GPTModel(cfg), CONFIG, stack_blocks(state) if scan else state, ids, ids
    )


@pytest.mark.slow
def test_the_program_of_a_step_does_not_grow():
    small, large = (len(step(blocks, scan=True)().as_text()) for blocks in (12, 48))
    assert large < 1.01 * small
    small, large = (len(step(blocks, scan=False)().as_text()) for blocks in (3, 12))
    assert large > 2.5 * small


@pytest.mark.slow
def test_the_compiled_program_of_a_step_does_not_grow():
    small, large = (len(step(blocks, scan=True)().compile().as_text()) for blocks in (12, 48))
    assert large < 1.05 * small  # 1.00 measured
    small, large = (len(step(blocks, scan=False)().compile().as_text()) for blocks in (2, 5))
    assert large > 1.8 * small
