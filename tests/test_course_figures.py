"""The figures that the course's notebooks print: from JAX by the seed alone, and from PyTorch.

The course prints four decimals; a figure is reproduced when it rounds to what was printed. That the
PyTorch reference gives them after `torch.manual_seed` shows that it draws in the course's order.
"""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
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
from obscura_jax.nn.attention import attention_scores, simple_attention, softmax, softmax_naive
from obscura_jax.nn.parameters import count_parameters, parameter_bytes
from obscura_jax.nn.stepping_stones import mean_abs_gradients
from obscura_jax.parity.gpt import torch_reference as reference
from obscura_jax.rng.torch_generator import TorchGenerator

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
    generator = TorchGenerator(seed)
    params = {name: generator.uniform((3, 2)) for name in ("W_query", "W_key", "W_value")}
    return apply(SelfAttention_v1(3, 2), params, X)


def causal_attention(seed: int) -> jax.Array:
    params = projections(TorchGenerator(seed))
    return apply(CausalAttention(3, 2, 6, 0.0), params, jnp.stack((X, X)))[1]


def multi_head_attention(seed: int) -> jax.Array:
    generator = TorchGenerator(seed)
    params = projections(generator) | {"out_proj": generator.linear(2, 2)}
    return apply(MultiHeadAttention(3, 2, 6, 0.0, 2), params, jnp.stack((X, X)))[1]


def in_torch(name: str, *arguments: float) -> Callable[[int], np.ndarray]:
    """The PyTorch reference of that name on the six tokens, as a function of the seed."""

    def compute(seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        module = getattr(reference, name)(3, 2, *arguments)
        return module(torch.tensor(COURSE["six_tokens"]["x"])).detach().numpy()

    return compute


@pytest.mark.parametrize(
    ("figure", "compute"),
    [
        ("SelfAttention_v1 seed 123 d_in 3 d_out 2", self_attention_v1),
        ("SelfAttention_v1 seed 123 d_in 3 d_out 2", in_torch("SelfAttention_v1")),
        ("CausalAttention seed 123 d_in 3 d_out 2 dropout 0", causal_attention),
        ("CausalAttention seed 123 d_in 3 d_out 2 dropout 0", in_torch("CausalAttention", 6, 0.0)),
        ("MultiHeadAttention seed 123 d_in 3 d_out 2 heads 2 dropout 0", multi_head_attention),
        (
            "MultiHeadAttention seed 123 d_in 3 d_out 2 heads 2 dropout 0",
            in_torch("MultiHeadAttention", 6, 0.0, 2),
        ),
    ],
)
def test_attention_modules(figure, compute):
    printed = np.asarray(COURSE[figure])
    np.testing.assert_allclose(compute(123), printed, atol=PRINTED)
    assert np.abs(compute(124) - printed).max() > PRINTED, "another seed gives other figures"


EXPERIMENT = COURSE["shortcut_experiment"]


def gradients_in_jax(use_shortcut: bool) -> list[float]:
    sizes, generator = EXPERIMENT["layer_sizes"], TorchGenerator(123)
    layers = {str(i): {"0": generator.linear(a, b)} for i, (a, b) in enumerate(pairwise(sizes))}
    x, target = jnp.asarray([EXPERIMENT["input"]]), jnp.asarray([[EXPERIMENT["target"]]])
    model = ExampleDeepNeuralNetwork(sizes, use_shortcut)
    return mean_abs_gradients(model, {"layers": layers}, x, target)


def gradients_in_torch(use_shortcut: bool) -> list[float]:
    torch.manual_seed(123)
    model = reference.ExampleDeepNeuralNetwork(EXPERIMENT["layer_sizes"], use_shortcut)
    x, target = torch.tensor([EXPERIMENT["input"]]), torch.tensor([[EXPERIMENT["target"]]])
    return reference.mean_abs_gradients(model, x, target)


@pytest.mark.parametrize("shortcut", ["with", "without"])
@pytest.mark.parametrize("compute", [gradients_in_jax, gradients_in_torch])
def test_shortcut_experiment(shortcut, compute):
    printed = EXPERIMENT[f"mean_abs_weight_gradient_{shortcut}_shortcut"]
    for use_shortcut in (True, False):
        error = np.max(np.abs(np.divide(compute(use_shortcut), printed) - 1))
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
