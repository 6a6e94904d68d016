"""Every component with its PyTorch twin, input sizes, and a fault that the tests must notice.

Sizes are odd and unequal if the component allows it, so that a swapped axis is an error. B = 3, and
every causal component runs at its full context.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

from obscura_jax.config import GPTConfig
from obscura_jax.nn import attention, layers, model, stepping_stones
from obscura_jax.nn.linear import linear
from obscura_jax.parity.gpt import torch_reference as reference

CFG = {
    "vocab_size": 29,
    "context_length": 11,
    "emb_dim": 21,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": True,
}
B, T, D = 3, CFG["context_length"], CFG["emb_dim"]
D_IN, D_OUT, HEADS = 13, 14, 7
SEQUENCE, STREAM, IDS = (B, T, D_IN), (B, T, D), "ids"

Apply = Callable[..., jax.Array]  # (params, *inputs) -> output


@dataclass(frozen=True)
class Twin:
    """A component in both frameworks.

    Attributes:
        name: the course's name for it.
        reference: the PyTorch module, or a function of tensors.
        port: the Linen module, or a function of arrays.
        inputs: a shape per input, or IDS for token ids (B, T).
        fault: a plausible mistake that tests must notice, as a function of parameters and inputs.
    """

    name: str
    reference: Callable[..., torch.Tensor]
    port: nn.Module | Callable[..., jax.Array]
    inputs: tuple[Any, ...]
    fault: Apply

    @property
    def apply(self) -> Apply:
        """The port as a function of parameters and inputs."""
        if isinstance(self.port, nn.Module):
            return module_apply(self.port)
        return lambda _, *inputs: self.port(*inputs)

    @property
    def home(self) -> str:
        """The module and name of the port."""
        owner = type(self.port) if isinstance(self.port, nn.Module) else self.port
        return f"{owner.__module__.removeprefix('obscura_jax.')}.{owner.__name__}"

    def parameters(self) -> dict[str, np.ndarray]:
        """Return random float64 values for every parameter of the reference."""
        if not isinstance(self.reference, torch.nn.Module):
            return {}
        rng = np.random.default_rng(7)
        shapes = {name: tuple(p.shape) for name, p in self.reference.named_parameters()}
        return {
            name: rng.normal(size=shape) / (np.sqrt(shape[-1]) if len(shape) > 1 else 1)
            for name, shape in shapes.items()
        }

    def values(self) -> tuple[np.ndarray, ...]:
        """Return random inputs: float64 numbers, or ids."""
        rng = np.random.default_rng(11)
        return tuple(
            rng.integers(0, CFG["vocab_size"], (B, T)) if shape == IDS else rng.normal(size=shape)
            for shape in self.inputs
        )


def module_apply(module: nn.Module, **changes: Any) -> Apply:
    """Return `module.apply` of parameters and inputs, for the module with changed attributes."""
    return lambda params, *inputs: module.clone(**changes).apply({"params": params}, *inputs)


def causal_weights(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Mask the scores, then softmax: `mask_scores` and `attention_weights`."""
    scores = attention.attention_scores(queries, keys)
    scores = attention.mask_scores(scores, attention.causal_mask(keys.shape[-2]))
    return attention.attention_weights(scores, keys.shape[-1])


def renormalized_weights(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Softmax, then mask and divide: `attention_weights` and `renormalize_masked`."""
    scores = attention.attention_scores(queries, keys)
    weights = attention.attention_weights(scores, keys.shape[-1])
    return attention.renormalize_masked(weights, attention.causal_mask(keys.shape[-2]))


causal_weights.__module__ = renormalized_weights.__module__ = attention.__name__
causal_weights.__name__, renormalized_weights.__name__ = "mask_scores", "renormalize_masked"


class InputEmbedding(nn.Module):
    """The two tables of chapter 2.8 as one module."""

    def setup(self) -> None:
        self.tok_emb = layers.Embedding(CFG["vocab_size"], D)
        self.pos_emb = layers.Embedding(CFG["context_length"], D)

    def __call__(self, ids: jax.Array) -> jax.Array:
        return model.token_and_position_embedding(self.tok_emb, self.pos_emb, ids)


InputEmbedding.__module__, InputEmbedding.__name__ = model.__name__, "token_and_position_embedding"


def exact_gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


def with_swapped(first: str, second: str, apply: Apply) -> Apply:
    """Return `apply` with two subtrees of the parameters exchanged."""
    other = {first: second, second: first}

    def swapped(params: Any, *inputs: jax.Array) -> jax.Array:
        flat = flatten_dict(params)
        flat = {tuple(other.get(part, part) for part in path): x for path, x in flat.items()}
        return apply(unflatten_dict(flat), *inputs)

    return swapped


def unscaled(params: Any, x: jax.Array) -> jax.Array:
    q, k, v = (
        linear(x, params[n]["weight"], params[n]["bias"]) for n in ("W_query", "W_key", "W_value")
    )
    return attention.context_vectors(attention.softmax(attention.attention_scores(q, k)), v)


def unmasked(params: Any, x: jax.Array) -> jax.Array:
    return module_apply(stepping_stones.SelfAttention_v2(D_IN, D_OUT, True))(params, x)


def interleaved_heads(params: Any, x: jax.Array) -> jax.Array:
    def heads(y: jax.Array) -> jax.Array:  # channel c goes to head c % H, not c // K
        return jnp.moveaxis(y.reshape(*y.shape[:-1], -1, HEADS), -1, -3)

    q, k, v = (
        heads(linear(x, params[n]["weight"], params[n]["bias"]))
        for n in ("W_query", "W_key", "W_value")
    )
    y = attention.scaled_dot_product_attention(q, k, v, attention.causal_mask(T))
    out_proj = params["out_proj"]
    return linear(attention.merge_heads(y), out_proj["weight"], out_proj["bias"])


def feed_forward_with_exact_gelu(params: Any, x: jax.Array) -> jax.Array:
    first, second = (params["layers"][i] for i in ("0", "2"))
    hidden = exact_gelu(linear(x, first["weight"], first["bias"]))
    return linear(hidden, second["weight"], second["bias"])


def unbiased_layer_norm(params: Any, x: jax.Array) -> jax.Array:
    z = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True, ddof=1) + 1e-5)
    return z * jnp.broadcast_to(params["scale"], x.shape) + jnp.broadcast_to(
        params["shift"], x.shape
    )


def positions_from_one(apply: Apply) -> Apply:
    def shifted(params: Any, ids: jax.Array) -> jax.Array:
        table = jnp.roll(params["pos_emb"]["weight"], -1, axis=0)
        return apply(params | {"pos_emb": {"weight": table}}, ids)

    return shifted


def _module_twin(
    name: str,
    arguments: tuple[Any, ...],
    inputs: Any,
    fault: Apply,
) -> Twin:
    """Return a twin whose two sides are classes with the same name and arguments."""
    homes = (attention, layers, model, stepping_stones)
    port = next(getattr(home, name) for home in homes if hasattr(home, name))(*arguments)
    twin = getattr(reference, name)(*arguments)
    return Twin(name, twin, port, (inputs,), fault)


_EPS = GPTConfig(**CFG, ln_eps=1e-6)
_NO_BIAS = CFG | {"qkv_bias": False}

TWINS = (
    Twin(
        "token + position embedding",
        reference.InputEmbedding(CFG),
        InputEmbedding(),
        (IDS,),
        positions_from_one(module_apply(InputEmbedding())),
    ),
    Twin(
        "softmax_naive",
        reference.softmax_naive,
        attention.softmax_naive,
        (SEQUENCE,),
        lambda _, x: jax.nn.softmax(x, axis=-2),
    ),
    Twin(
        "torch.softmax",
        lambda x: torch.softmax(x, dim=-1),
        attention.softmax,
        (SEQUENCE,),
        lambda _, x: jax.nn.softmax(x, axis=-2),
    ),
    Twin(
        "simple self-attention",
        reference.simple_attention,
        attention.simple_attention,
        (SEQUENCE,),
        lambda _, x: attention.scaled_dot_product_attention(x, x, x),
    ),
    Twin(
        "causal mask, renormalized",
        reference.renormalized_causal_attention_weights,
        renormalized_weights,
        (SEQUENCE, SEQUENCE),
        lambda _, q, k: jnp.tril(
            attention.attention_weights(attention.attention_scores(q, k), D_IN)
        ),
    ),
    Twin(
        "causal mask, -inf before softmax",
        reference.causal_attention_weights,
        causal_weights,
        (SEQUENCE, SEQUENCE),
        lambda _, q, k: attention.attention_weights(
            jnp.tril(attention.attention_scores(q, k)), D_IN
        ),
    ),
    _module_twin(
        "SelfAttention_v1",
        (D_IN, D_OUT),
        SEQUENCE,
        with_swapped(
            "W_query", "W_key", module_apply(stepping_stones.SelfAttention_v1(D_IN, D_OUT))
        ),
    ),
    _module_twin("SelfAttention_v2", (D_IN, D_OUT, True), SEQUENCE, unscaled),
    _module_twin("CausalAttention", (D_IN, D_OUT, T, 0.1, True), SEQUENCE, unmasked),
    _module_twin(
        "MultiHeadAttentionWrapper",
        (D_IN, D_OUT, T, 0.1, 2, True),
        SEQUENCE,
        with_swapped(
            "0",
            "1",
            module_apply(stepping_stones.MultiHeadAttentionWrapper(D_IN, D_OUT, T, 0.1, 2, True)),
        ),
    ),
    _module_twin(
        "MultiHeadAttention",
        (D_IN, D_OUT, T, 0.1, HEADS, True),
        SEQUENCE,
        interleaved_heads,
    ),
    _module_twin(
        "DummyGPTModel",
        (CFG,),
        IDS,
        positions_from_one(module_apply(stepping_stones.DummyGPTModel(CFG))),
    ),
    _module_twin("LayerNorm", (D,), STREAM, unbiased_layer_norm),
    _module_twin("GELU", (), STREAM, lambda _, x: exact_gelu(x)),
    _module_twin("FeedForward", (CFG,), STREAM, feed_forward_with_exact_gelu),
    _module_twin(
        "ExampleDeepNeuralNetwork",
        ((D, D, D, D, 5, 1), True),
        STREAM,
        module_apply(stepping_stones.ExampleDeepNeuralNetwork((D, D, D, D, 5, 1), False)),
    ),
    _module_twin(
        "TransformerBlock",
        (CFG,),
        STREAM,
        module_apply(model.TransformerBlock(_EPS)),
    ),
    _module_twin("GPTModel", (CFG,), IDS, module_apply(model.GPTModel(_EPS))),
    Twin(
        "GPTModel without qkv_bias",
        reference.GPTModel(_NO_BIAS),
        model.GPTModel(_NO_BIAS),
        (IDS,),
        with_swapped("norm1", "norm2", module_apply(model.GPTModel(_NO_BIAS))),
    ),
)
