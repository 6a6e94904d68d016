"""`generate_text_simple` gives the tokens of the PyTorch loop, with one compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from obscura_jax import GPTConfig, GPTModel, generate_text_simple
from obscura_jax.decoding.simple import _greedy_loop
from obscura_jax.parity.gpt import torch_reference as reference
from obscura_jax.rng.torch_generator import torch_seed_init

CFG = {
    "vocab_size": 31,
    "context_length": 11,
    "emb_dim": 12,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": True,
}
MODEL = GPTModel(CFG)
PARAMS = torch_seed_init(GPTConfig(**CFG), 123)


def torch_model() -> torch.nn.Module:
    torch.manual_seed(123)
    return reference.GPTModel(CFG).eval()


def prompts(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, CFG["vocab_size"], (3, length))


@pytest.mark.parametrize(
    ("length", "new", "context_size"),
    [
        (1, 1, 11),  # the shortest
        (4, 6, 11),  # inside the context
        (4, 30, 11),  # slides past it
        (17, 9, 11),  # starts past it
        (5, 20, 4),  # a window smaller than the prompt
        (2, 9, 1),  # sees one token at a time
        (11, 1, 11),  # exactly full
    ],
)
def test_the_tokens_match_those_of_torch(length, new, context_size):
    idx = prompts(length)
    ours = generate_text_simple(MODEL, PARAMS, idx, new, context_size)
    theirs = reference.generate_text_simple(torch_model(), torch.tensor(idx), new, context_size)
    assert ours.dtype == jnp.int32
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_a_smaller_window_gives_other_tokens():
    """The negative control of the test above: the crop matters."""
    idx = prompts(4)
    wide = generate_text_simple(MODEL, PARAMS, idx, 30, 11)
    narrow = generate_text_simple(MODEL, PARAMS, idx, 30, 10)
    assert not np.array_equal(wide, narrow)


def test_one_compilation_for_all_prompts_of_a_shape():
    generate_text_simple(MODEL, PARAMS, prompts(7), 5, 11)
    before = _greedy_loop._cache_size()
    for seed in range(5):
        params = jax.tree.map(lambda x, s=seed: x * (1 + s / 10), PARAMS)
        generate_text_simple(MODEL, params, prompts(7, seed), 5, 11)
        generate_text_simple(GPTModel(CFG), params, prompts(7, seed).tolist(), 5, 11)
    assert _greedy_loop._cache_size() == before
    generate_text_simple(MODEL, PARAMS, prompts(8), 5, 11)
    assert _greedy_loop._cache_size() == before + 1


def test_sizes_may_be_numpy_or_jax_integers():
    expected = generate_text_simple(MODEL, PARAMS, prompts(4), 3, 7)
    for integer in (np.int64, np.array, jnp.asarray):
        ours = generate_text_simple(MODEL, PARAMS, prompts(4), integer(3), integer(7))
        np.testing.assert_array_equal(ours, expected)
    assert not np.array_equal(generate_text_simple(MODEL, PARAMS, prompts(4, 1), 3, 7), expected)


def test_a_row_gets_the_same_tokens_alone():
    idx = prompts(5)
    together = generate_text_simple(MODEL, PARAMS, idx, 20, 11)
    for row, ids in zip(together, idx, strict=True):
        alone = generate_text_simple(MODEL, PARAMS, ids[None], 20, 11)
        np.testing.assert_array_equal(alone[0], row)


@pytest.mark.parametrize(
    ("idx", "new", "context_size", "message"),
    [
        ([[]], 3, 11, "the prompt is empty"),
        ([], 3, 11, "two axes"),
        ([1, 2], 3, 11, "two axes"),
        ([[1, 31]], 3, 11, "token id 31 is outside the vocabulary, 0..30"),
        ([[-1, 3]], 3, 11, "token id -1 is outside the vocabulary, 0..30"),
        ([[1.5, 3]], 3, 11, "token ids must be integers"),
        ([[1, 2]], 0, 11, "max_new_tokens"),
        ([[1, 2]], -1, 11, "max_new_tokens"),
        ([[1, 2]], 1.5, 11, "max_new_tokens"),
        ([[1, 2]], np.array(2.7), 11, "max_new_tokens"),
        ([[1, 2]], np.array([3, 4]), 11, "max_new_tokens"),
        ([[1, 2]], 3, np.array([3, 4]), "context_size"),
        ([[1, 2**32 + 1]], 3, 11, "token id 4294967297 is outside the vocabulary"),
        ([[1, 2]], 3, 0, "context_size"),
        ([[1, 2]], 3, 12, "context_size=12 exceeds the model's context_length=11"),
    ],
)
def test_bad_input_is_an_error_that_names_it(idx, new, context_size, message):
    with pytest.raises(ValueError, match=message):
        generate_text_simple(MODEL, PARAMS, idx, new, context_size)
