"""The intermediate versions that the course builds and later replaces, under the course's names."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from obscura_jax.checks import check_drop_rate, check_eps, check_size, check_sizes
from obscura_jax.nn.attention import CausalAttention, check_length, scaled_dot_product_attention
from obscura_jax.nn.containers import ConfiguredModule, ModuleList, Sequential
from obscura_jax.nn.layers import GELU, Dropout, Embedding, dropout_key, fold_key
from obscura_jax.nn.linear import Linear, at_least_float32, linear
from obscura_jax.nn.model import token_and_position_embedding
from obscura_jax.nn.token_ids import validate_sequences


class SelfAttention_v1(nn.Module):  # noqa: N801 - the course's name
    """Unmasked self-attention with raw (d_in, d_out) matrices from U[0, 1) (chapter 3.4.2)."""

    d_in: int
    d_out: int

    def __post_init__(self) -> None:
        check_sizes(self, "d_in", "d_out")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "*batch t d_in"]) -> Float[Array, "*batch t d_out"]:
        """Attend from every position to every position."""
        draw, shape = nn.initializers.uniform(1.0), (self.d_in, self.d_out)
        queries, keys, values = (
            linear(x, self.param(name, draw, shape, jnp.float32).T)
            for name in ("W_query", "W_key", "W_value")
        )
        return scaled_dot_product_attention(queries, keys, values)


class SelfAttention_v2(nn.Module):  # noqa: N801 - the course's name
    """Unmasked self-attention with `Linear` projections (chapter 3.4.2)."""

    d_in: int
    d_out: int
    qkv_bias: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, "d_in", "d_out")
        super().__post_init__()

    def setup(self) -> None:
        self.W_query = Linear(self.d_in, self.d_out, self.qkv_bias)
        self.W_key = Linear(self.d_in, self.d_out, self.qkv_bias)
        self.W_value = Linear(self.d_in, self.d_out, self.qkv_bias)

    def __call__(self, x: Float[Array, "*batch t d_in"]) -> Float[Array, "*batch t d_out"]:
        """Attend from every position to every position."""
        return scaled_dot_product_attention(self.W_query(x), self.W_key(x), self.W_value(x))


class MultiHeadAttentionWrapper(nn.Module):
    """Separate `CausalAttention` heads whose outputs are concatenated (chapter 3.6.1).

    The output has width num_heads * d_out.
    """

    d_in: int
    d_out: int
    context_length: int
    dropout: float
    num_heads: int
    qkv_bias: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, "d_in", "d_out", "context_length", "num_heads")
        self.dropout = check_drop_rate("dropout", self.dropout)
        super().__post_init__()

    def setup(self) -> None:
        head = CausalAttention(
            self.d_in, self.d_out, self.context_length, self.dropout, self.qkv_bias
        )
        self.heads = ModuleList((head,) * self.num_heads)

    def __call__(
        self, x: Float[Array, "*batch t d_in"], *, deterministic: bool = True
    ) -> Float[Array, "*batch t d"]:
        """Return the outputs of the heads, concatenated along the last axis."""
        return jnp.concatenate([head(x, deterministic=deterministic) for head in self.heads], -1)


class DummyTransformerBlock(ConfiguredModule):
    """A placeholder for `TransformerBlock` that returns its input (chapter 4.1)."""

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Return `x`."""
        return x


class DummyLayerNorm(nn.Module):
    """A placeholder for `LayerNorm` that returns its input (chapter 4.1)."""

    normalized_shape: int
    eps: float = 1e-5

    def __post_init__(self) -> None:
        check_sizes(self, "normalized_shape")
        self.eps = check_eps("eps", self.eps)
        super().__post_init__()

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Return `x`."""
        return x


class DummyGPTModel(ConfiguredModule):
    """A GPT with placeholders between embeddings, dropout and output head (chapter 4.1)."""

    def setup(self) -> None:
        cfg = self.cfg
        self.tok_emb = Embedding(cfg.vocab_size, cfg.emb_dim)
        self.pos_emb = Embedding(cfg.context_length, cfg.emb_dim)
        self.drop_emb = Dropout(cfg.drop_rate)
        self.trf_blocks = ModuleList((DummyTransformerBlock(cfg),) * cfg.n_layers)
        self.final_norm = DummyLayerNorm(cfg.emb_dim)
        self.out_head = Linear(cfg.emb_dim, cfg.vocab_size, use_bias=False)

    def __call__(self, ids: ArrayLike, *, deterministic: bool = True) -> Float[Array, "*batch t v"]:
        """Return logits for the token after each position; ids and errors as in `GPTModel`."""
        ids = validate_sequences(ids, self.cfg.vocab_size)
        check_length(ids.shape[-1], self.cfg.context_length)
        x = token_and_position_embedding(self.tok_emb, self.pos_emb, ids)
        key = fold_key(dropout_key(self, self.cfg.drop_rate, deterministic), self.cfg.n_layers)
        x = self.drop_emb(x, deterministic=deterministic, key=key)
        for block in self.trf_blocks:
            x = block(x)
        x = self.final_norm(x)
        return linear(x, self.out_head.weight, dtype=at_least_float32(x.dtype))


class ExampleDeepNeuralNetwork(nn.Module):
    """Linear layers with GELU, with or without shortcuts (chapter 4.4).

    Attributes:
        layer_sizes: the widths, input first; six numbers define the course's five layers.
        use_shortcut: whether to add a layer's input to its output if both have the same shape.
    """

    layer_sizes: Sequence[int]
    use_shortcut: bool

    def __post_init__(self) -> None:
        self.layer_sizes = tuple(check_size("layer_sizes", size) for size in self.layer_sizes)
        if len(self.layer_sizes) < 2:
            raise ValueError(f"layer_sizes needs at least two numbers, got {self.layer_sizes}")
        super().__post_init__()

    def setup(self) -> None:
        pairs = pairwise(self.layer_sizes)
        self.layers = ModuleList([Sequential((Linear(a, b), GELU())) for a, b in pairs])

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        """Apply the layers in order."""
        for layer in self.layers:
            y = layer(x)
            x = x + y if self.use_shortcut and x.shape == y.shape else y
        return x


def mean_abs_gradients(
    model: ExampleDeepNeuralNetwork,
    params: Any,
    x: Float[Array, "*batch d_in"],
    target: Float[Array, "*batch d_out"],
) -> list[float]:
    """Return the mean |gradient| of each layer's weight, first layer first.

    The loss is the mean squared error. This is the experiment of chapter 4.4: without shortcuts
    the first layers hardly learn. Raises ValueError if `target` and the output differ in shape.
    """

    def loss(params: Any) -> Array:
        y: Any = model.apply({"params": params}, x)
        if y.shape != target.shape:
            raise ValueError(f"target has shape {target.shape}, but the output has {y.shape}")
        return jnp.square(y - target).mean()

    layers = jax.grad(loss)(params)["layers"]
    return [float(jnp.abs(layers[i]["0"]["weight"]).mean()) for i in sorted(layers, key=int)]
