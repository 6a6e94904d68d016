"""PyTorch with JAX's draws drops the same values and samples the same tokens."""

from dataclasses import replace

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

from obscura_jax import (
    DummyGPTModel,
    GPTModel,
    MultiHeadAttentionWrapper,
    TransformerBlock,
    generate,
)
from obscura_jax.interop.build import build
from obscura_jax.parity.gpt import torch_reference, trajectory
from obscura_jax.rng import same_draws, threefry
from obscura_jax.rng.same_draws import linen_key, same_dropout, sample_tokens

CFG = replace(trajectory.CFG, drop_rate=0.1)
MODEL = GPTModel(CFG)
SEED = 123
IDS = np.random.default_rng(0).integers(0, CFG.vocab_size, (3, CFG.context_length))


class Keys(nn.Module):
    """Return the dropout keys of the first `count` calls of the module at the path `names`."""

    names: tuple[str, ...]
    count: int

    @nn.compact
    def __call__(self):
        if self.names:
            return Keys(self.names[1:], self.count, name=self.names[0])()
        return [jax.random.key_data(self.make_rng("dropout")) for _ in range(self.count)]


@pytest.mark.parametrize("separator", [False, True])
@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_keys_are_those_of_linen(seed, separator):
    key = jax.random.key(np.uint32(seed))
    paths = [(), ("drop_emb",), ("trf_blocks", "0", "att"), ("trf_blocks", "1", "drop_shortcut")]
    paths += [("a", "bc"), ("ab", "c"), ("ü", *"abcdefghijklm")]
    with flax.config.temp_flip_flag("fix_rng_separator", separator):
        for path in paths:
            theirs = Keys(path, 300).apply({}, rngs={"dropout": key})  # more than one byte
            ours = [linen_key(threefry.key(seed), path, count) for count in range(1, 301)]
            np.testing.assert_array_equal(theirs, ours)
            assert len({tuple(own.tolist()) for own in ours}) == 300
        ends = [linen_key(threefry.key(seed), path, 1).tolist() for path in paths[4:6]]
        assert (ends[0] == ends[1]) is not separator


def torch_model(dtype=torch.float32):
    torch.manual_seed(3)
    return torch_reference.GPTModel(CFG.to_dict()).to(dtype).train()


def our_params(model, cfg=CFG):
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    return build(state, cfg.to_dict()).params


def difference(model, ours, ids=IDS, seed=SEED):
    """Return the largest difference of the logits, which are about 1.7."""
    with same_dropout(model, threefry.key(seed)):
        first, second = (model(torch.tensor(ids)).detach().numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)  # each call starts from the key, like `apply`
    return np.abs(ours - first).max()


def our_logits(model, **kwargs):
    rngs = {"dropout": jax.random.key(SEED)}
    dtype = model.tok_emb.weight.detach().numpy().dtype
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), our_params(model))
    variables = {"params": params}
    return np.asarray(MODEL.apply(variables, IDS, deterministic=False, rngs=rngs, **kwargs))


def test_the_same_values_are_dropped(monkeypatch):
    model = torch_model()
    ours = our_logits(model)
    assert difference(model, ours) <= 1.5e-6  # measured: 3.6e-7
    assert difference(model, ours, seed=SEED + 1) > 0.1
    assert difference(model, our_logits(model.eval())) > 0.1  # eval drops nothing
    model.train()
    right = same_draws.dropout_key
    for call, wrong in (
        ((("drop_emb",), 1), (("trf_blocks", "0", "att"), 1)),
        ((("trf_blocks", "1", "att"), 1), (("trf_blocks", "0", "att"), 1)),
        ((("trf_blocks", "0", "drop_shortcut"), 2), (("trf_blocks", "0", "drop_shortcut"), 1)),
    ):

        def one_wrong(key, path, count, blocks, call=call, wrong=wrong):
            return right(key, *(wrong if (path, count) == call else (path, count)), blocks)

        monkeypatch.setattr(same_draws, "dropout_key", one_wrong)
        assert difference(model, ours) > 0.01, call


def test_the_same_values_are_dropped_in_float64(x64):
    model = torch_model(torch.float64)
    ours = our_logits(model)
    assert difference(model, ours) <= 3e-15  # measured: 7.8e-16
    assert difference(model, ours, seed=SEED + 1) > 0.1


def test_x64_changes_no_draw():
    model = torch_model()
    plain = our_logits(model)
    with jax.enable_x64(True):
        ours = our_logits(model)
    assert np.abs(ours - plain).max() <= 1.5e-6  # measured: 2.4e-7
    assert difference(model, ours) <= 1.5e-6  # measured: 3.6e-7


def test_torch_uses_its_own_draws_outside_the_context():
    model = torch_model()

    def logits():
        torch.manual_seed(5)
        return model(torch.tensor(IDS)).detach()

    before = logits()
    with same_dropout(model, threefry.key(SEED)):
        assert (logits() != before).any()
    assert (logits() == before).all()


@pytest.mark.parametrize("part", ["DummyGPTModel", "TransformerBlock"])
def test_other_modules_drop_the_same_values(part):
    torch.manual_seed(4)
    theirs = getattr(torch_reference, part)(CFG.to_dict()).train()
    state = {name: w.numpy() for name, w in theirs.state_dict().items() if "mask" not in name}
    leaves = {tuple(name.split(".")): jnp.asarray(w) for name, w in state.items()}
    params = flax.traverse_util.unflatten_dict(leaves)
    hidden = np.random.default_rng(1).normal(size=(3, 11, 12)).astype(np.float32)
    module, x = {
        "DummyGPTModel": (DummyGPTModel, IDS),
        "TransformerBlock": (TransformerBlock, hidden),
    }[part]
    rngs = {"dropout": jax.random.key(SEED)}
    ours = module(CFG).apply({"params": params}, jnp.asarray(x), deterministic=False, rngs=rngs)
    assert difference(theirs, ours, x) <= 1.5e-6  # measured: 2.4e-7
    assert difference(theirs, ours, x, seed=SEED + 1) > 0.1


def test_a_part_alone_drops_the_same_values():
    args = {"d_in": 7, "d_out": 5, "context_length": 11, "dropout": 0.3, "num_heads": 2}
    torch.manual_seed(0)
    theirs = torch_reference.MultiHeadAttentionWrapper(**args)
    state = {name: w.numpy() for name, w in theirs.state_dict().items() if "mask" not in name}
    leaves = {tuple(n.split(".")): jnp.asarray(w) for n, w in state.items()}
    params = flax.traverse_util.unflatten_dict(leaves)
    x = np.random.default_rng(1).normal(size=(3, 11, 7)).astype(np.float32)
    rngs = {"dropout": jax.random.key(SEED)}
    ours = MultiHeadAttentionWrapper(**args).apply(
        {"params": params}, jnp.asarray(x), deterministic=False, rngs=rngs
    )
    assert difference(theirs, ours, x) <= 1e-6  # measured: 0
    assert difference(theirs, ours, x, seed=SEED + 1) > 0.1


@pytest.fixture(scope="module")
def varied_model():
    """A model whose logits depend on the prompt; with fresh weights the noise would dominate."""
    cfg = replace(CFG, vocab_size=131, context_length=37)  # more than one line of noise
    torch.manual_seed(0)
    model = torch_reference.GPTModel(cfg.to_dict()).eval()
    with torch.no_grad():
        for weight in [*model.trf_blocks.parameters(), model.out_head.weight]:
            weight *= 4
    return model, GPTModel(cfg), our_params(model, cfg)


PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [53], [130, 0, 7]]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_same_tokens_are_sampled(varied_model, temperature):
    theirs, model, params = varied_model
    key = jax.random.key(SEED)
    ours = generate(model, params, PROMPTS, 29, temperature=temperature, key=key).tokens
    assert sample_tokens(theirs, PROMPTS, 29, threefry.key(SEED), temperature) == ours
    others = (
        sample_tokens(theirs, PROMPTS, 29, threefry.key(SEED + 1), temperature),
        sample_tokens(theirs, PROMPTS, 29, threefry.key(SEED), temperature * 1.5),
        sample_tokens(theirs, [[0, *p[1:]] for p in PROMPTS], 29, threefry.key(SEED), temperature),
        generate(model, params, PROMPTS, 29).tokens,  # greedy
    )
    for other in others:
        assert all(a != b for a, b in zip(other, ours, strict=True))


def test_each_row_can_have_its_own_key(varied_model):
    theirs, model, params = varied_model
    keys = jax.random.split(jax.random.key(SEED), 3)
    ours = generate(model, params, PROMPTS, 29, temperature=1.0, key=keys).tokens
    data = np.asarray(jax.random.key_data(keys))
    assert sample_tokens(theirs, PROMPTS, 29, data) == ours
    assert sample_tokens(theirs, PROMPTS, 29, data[::-1]) != ours


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_a_temperature_of_0_or_less_is_an_error(varied_model, temperature):
    with pytest.raises(ValueError, match="temperature above 0"):
        sample_tokens(varied_model[0], PROMPTS, 1, threefry.key(0), temperature)
