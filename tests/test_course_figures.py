"""The figures that the course's notebooks print, from JAX: from the seed alone, without PyTorch.

The course prints four decimals; a figure is reproduced when it rounds to what was printed. The same
parameters from `torch.manual_seed` are compared in test_torch_random.py.
"""

import json
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from obscura_jax import (
    GPT_CONFIG_124M,
    CausalAttention,
    DummyGPTModel,
    ExampleDeepNeuralNetwork,
    GPTModel,
    MultiHeadAttention,
    SelfAttention_v1,
    generate_text_simple,
    gpt2_tokenizer,
    load_model,
)
from obscura_jax.interop.torch_random import TorchGenerator
from obscura_jax.nn.attention import attention_scores, simple_attention, softmax, softmax_naive
from obscura_jax.nn.model import count_parameters, parameter_bytes
from obscura_jax.nn.stepping_stones import mean_abs_gradients

COURSE = json.loads((Path(__file__).parent / "golden" / "course.json").read_text())
X = jnp.asarray(COURSE["six_tokens"]["x"])
# Half a unit of the fourth decimal, and a little for float32 where the fifth is a 5.
PRINTED = 5.1e-5


def apply(module, params, x) -> jax.Array:
    return module.apply({"params": jax.tree.map(jnp.asarray, params)}, x)


def projections(generator: TorchGenerator) -> dict:
    return {name: generator.linear(3, 2, bias=False) for name in ("W_query", "W_key", "W_value")}


def test_attention_by_dot_products():
    figures = COURSE["six_tokens"]
    scores = attention_scores(X[1:2], X)[0]
    np.testing.assert_allclose(scores, figures["dot_product_scores_row_2"], atol=PRINTED)
    for weights in (softmax(scores), softmax_naive(scores)):
        np.testing.assert_allclose(weights, figures["softmax_weights_row_2"], atol=PRINTED)
    np.testing.assert_allclose(simple_attention(X)[1], figures["context_row_2"], atol=PRINTED)


def self_attention_v1(seed: int) -> jax.Array:
    torch = TorchGenerator(seed)
    params = {name: torch.uniform((3, 2)) for name in ("W_query", "W_key", "W_value")}
    return apply(SelfAttention_v1(3, 2), params, X)


def causal_attention(seed: int) -> jax.Array:
    params = projections(TorchGenerator(seed))
    return apply(CausalAttention(3, 2, 6, 0.0), params, jnp.stack((X, X)))[1]


def multi_head_attention(seed: int) -> jax.Array:
    torch = TorchGenerator(seed)
    params = projections(torch) | {"out_proj": torch.linear(2, 2)}
    return apply(MultiHeadAttention(3, 2, 6, 0.0, 2), params, jnp.stack((X, X)))[1]


@pytest.mark.parametrize(
    ("figure", "compute"),
    [
        ("SelfAttention_v1 seed 123 d_in 3 d_out 2", self_attention_v1),
        ("CausalAttention seed 123 d_in 3 d_out 2 dropout 0", causal_attention),
        ("MultiHeadAttention seed 123 d_in 3 d_out 2 heads 2 dropout 0", multi_head_attention),
    ],
)
def test_attention_modules(figure, compute):
    printed = np.asarray(COURSE[figure])
    np.testing.assert_allclose(compute(123), printed, atol=PRINTED)
    assert np.abs(compute(124) - printed).max() > PRINTED, "another seed gives other figures"


@pytest.mark.parametrize("shortcut", ["with", "without"])
def test_shortcut_experiment(shortcut):
    figures = COURSE["shortcut_experiment"]
    sizes, torch = figures["layer_sizes"], TorchGenerator(123)
    layers = {str(i): {"0": torch.linear(a, b)} for i, (a, b) in enumerate(pairwise(sizes))}
    printed = figures[f"mean_abs_weight_gradient_{shortcut}_shortcut"]
    x, target = jnp.asarray([figures["input"]]), jnp.asarray([[figures["target"]]])
    for use_shortcut in (True, False):
        model = ExampleDeepNeuralNetwork(sizes, use_shortcut)
        gradients = mean_abs_gradients(model, {"layers": layers}, x, target)
        error = np.max(np.abs(np.divide(gradients, printed) - 1))
        if use_shortcut == (shortcut == "with"):
            assert error < 2e-6  # measured 4.5e-7: the course prints all the digits of a float32
        else:
            assert error > 0.1


def test_parameter_counts():
    """Counted from shapes alone: nothing of the 124M model is allocated."""
    figures = COURSE["GPTModel GPT_CONFIG_124M"]
    ids = jnp.asarray(figures["batch"])
    variables = jax.eval_shape(GPTModel(GPT_CONFIG_124M).init, jax.random.key(0), ids)
    params = variables["params"]
    assert count_parameters(params) == figures["parameters"]
    tied = count_parameters(params, weight_tying=True)
    assert tied == figures["parameters_with_weight_tying"]
    assert round(parameter_bytes(params) / 2**20, 2) == figures["float32_megabytes"]
    assert sum(np.prod(leaf.shape) for leaf in flatten_dict(params).values()) == 163_009_536


def test_dummy_model_shape():
    ids = jnp.asarray(COURSE["GPTModel GPT_CONFIG_124M"]["batch"])
    model = DummyGPTModel(GPT_CONFIG_124M)
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), ids)
    assert list(logits.shape) == COURSE["DummyGPTModel seed 123 GPT_CONFIG_124M"]["shape"]


@pytest.mark.gpt2_124m
def test_greedy_sentence():
    figures = COURSE["GPTModel GPT_CONFIG_124M"]["greedy seed 123"]
    tokenizer = gpt2_tokenizer()
    assert tokenizer.encode(figures["prompt"]) == figures["prompt_ids"]
    model, params = load_model("torch-seed:123")
    ids = generate_text_simple(model, params, [figures["prompt_ids"]], 6, 1024)
    assert ids[0, 4:].tolist() == figures["new_ids"]
    assert tokenizer.decode(ids[0].tolist()) == figures["text"]
