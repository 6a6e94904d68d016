"""Attention (chapter 3): one function per step, then the causal modules.

Axes: T query positions, S key positions, D width, H heads, K width of a head. Leading axes, such as
the batch, pass through unchanged, so every function accepts one sequence or many.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from obscura_jax.checks import check_drop_rate, check_heads, check_sizes
from obscura_jax.nn.cudnn_attention import cudnn_attention, use_cudnn
from obscura_jax.nn.layers import dropout, dropout_key
from obscura_jax.nn.linear import Linear, at_least_float32, check_floating

DimSize = Any  # an int, or a symbolic dimension in a program to be exported

# From the queries, keys and values of all heads, (..., H, T, K), to context vectors (..., H, T, K).
AttentionFn = Callable[[Array, Array, Array], Array]


def attention_scores(
    queries: Float[Array, "*batch t k"], keys: Float[Array, "*batch s k"]
) -> Float[Array, "*batch t s"]:
    """Return the dot product of every query with every key, unscaled, in at least float32."""
    dtype = at_least_float32(queries.dtype)
    return jnp.einsum("...tk,...sk->...ts", queries, keys, preferred_element_type=dtype)


def softmax_naive(x: Float[Array, "*batch s"]) -> Float[Array, "*batch s"]:
    """Return exp(x) / sum(exp(x)) over the last axis; it overflows for large x."""
    e = jnp.exp(x)
    return e / e.sum(axis=-1, keepdims=True)


def softmax(x: Float[Array, "*batch s"]) -> Float[Array, "*batch s"]:
    """Return the softmax over the last axis, subtracting the maximum first to avoid overflow."""
    return softmax_naive(x - jax.lax.stop_gradient(x.max(axis=-1, keepdims=True)))


def attention_weights(scores: Float[Array, "*batch t s"], d_k: int) -> Float[Array, "*batch t s"]:
    """Return softmax(scores / sqrt(d_k)): each row is non-negative and sums to 1."""
    return softmax(scores / math.sqrt(d_k))


def context_vectors(
    weights: Float[Array, "*batch t s"], values: Float[Array, "*batch s k"]
) -> Float[Array, "*batch t k"]:
    """Return the average of `values` under each row of `weights`, in the type of `values`.

    Raises ValueError for values of an integer type.
    """
    check_floating(values)
    out = jnp.einsum(
        "...ts,...sk->...tk",
        weights.astype(values.dtype),
        values,
        preferred_element_type=weights.dtype,
    )
    return out.astype(values.dtype)


def simple_attention(x: Float[Array, "*batch t d"]) -> Float[Array, "*batch t d"]:
    """Attend without trained weights: the inputs are queries, keys and values (chapter 3.3)."""
    return context_vectors(softmax(attention_scores(x, x)), x)


def causal_mask(context_length: DimSize) -> Bool[Array, "t t"]:
    """Return True where a query (row) may attend to a key (column): on and below the diagonal."""
    return jnp.tril(jnp.ones((context_length, context_length), bool))


def mask_scores(
    scores: Float[Array, "*batch t s"], mask: Bool[Array, "*mask s"]
) -> Float[Array, "*batch t s"]:
    """Replace masked scores by the lowest finite number, which softmax maps to exactly 0.

    The course uses -inf. The results are equal for rows that keep at least one key; a row that
    keeps none has finite results instead of NaN.
    """
    return jnp.where(jnp.broadcast_to(mask, scores.shape), scores, jnp.finfo(scores.dtype).min)


def renormalize_masked(
    weights: Float[Array, "*batch t s"], mask: Bool[Array, "t s"]
) -> Float[Array, "*batch t s"]:
    """Mask after softmax (chapter 3.5.1): set masked weights to 0 and renormalize each row."""
    kept = jnp.where(jnp.broadcast_to(mask, weights.shape), weights, 0)
    return kept / kept.sum(axis=-1, keepdims=True)


def scaled_dot_product_attention(
    queries: Float[Array, "*batch t k"],
    keys: Float[Array, "*batch s k"],
    values: Float[Array, "*batch s v"],
    mask: Bool[Array, "t s"] | None = None,
    *,
    dropout_rate: float = 0.0,
    key: Array | None = None,
) -> Float[Array, "*batch t v"]:
    """Return softmax(Q K^T / sqrt(K)) V (Vaswani et al. 2017, equation 1).

    Scores are masked where `mask` is False. The weights are dropped at `dropout_rate` if a `key` is
    given; without one, no weight is dropped.
    """
    scores = attention_scores(queries, keys)
    if mask is not None:
        scores = mask_scores(scores, mask)
    weights = dropout(attention_weights(scores, queries.shape[-1]), dropout_rate, key=key)
    return context_vectors(weights, values)


def split_heads(x: Float[Array, "*batch t d"], num_heads: int) -> Float[Array, "*batch h t k"]:
    """Turn (..., T, H * K) into (..., H, T, K): head h is the h-th slice of the width."""
    heads = x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)
    return jnp.swapaxes(heads, -3, -2)


def merge_heads(x: Float[Array, "*batch h t k"]) -> Float[Array, "*batch t d"]:
    """Turn (..., H, T, K) into (..., T, H * K), the inverse of `split_heads`."""
    heads_last = jnp.swapaxes(x, -3, -2)
    return heads_last.reshape(*heads_last.shape[:-2], -1)


def check_length(length: DimSize, context_length: int) -> None:
    """Raise ValueError if a sequence is longer than the context."""
    if length > context_length:
        raise ValueError(f"{length} positions do not fit into context_length={context_length}")


class CausalAttention(nn.Module):
    """Single-head causal self-attention with dropout on the weights (chapter 3.5.3).

    Attributes:
        d_in: width of the input.
        d_out: width of queries, keys, values and output.
        context_length: the longest sequence accepted.
        dropout: probability of dropping an attention weight, in [0, 1).
        qkv_bias: whether the three projections have biases.
    """

    d_in: int
    d_out: int
    context_length: int
    dropout: float
    qkv_bias: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, "d_in", "d_out", "context_length")
        self.dropout = check_drop_rate("dropout", self.dropout)
        super().__post_init__()

    def setup(self) -> None:
        self.W_query = Linear(self.d_in, self.d_out, self.qkv_bias)
        self.W_key = Linear(self.d_in, self.d_out, self.qkv_bias)
        self.W_value = Linear(self.d_in, self.d_out, self.qkv_bias)

    def __call__(
        self, x: Float[Array, "*batch t d_in"], *, deterministic: bool = True
    ) -> Float[Array, "*batch t d_out"]:
        """Attend within each sequence; position t sees positions 0..t."""
        check_length(x.shape[-2], self.context_length)
        return scaled_dot_product_attention(
            self.W_query(x),
            self.W_key(x),
            self.W_value(x),
            causal_mask(x.shape[-2]),
            dropout_rate=self.dropout,
            key=dropout_key(self, self.dropout, deterministic),
        )


class MultiHeadAttention(nn.Module):
    """Causal self-attention with `num_heads` heads (chapter 3.6.2).

    Three projections compute the queries, keys and values of all heads, which are then split. The
    context vectors of the heads are merged and mixed by `out_proj`. Parameters with one projection
    `W_qkv` in place of the three are accepted too; see `decoding.fused`.

    Attributes:
        d_in: width of the input.
        d_out: width of the output, divisible by `num_heads`.
        context_length: the longest sequence accepted.
        dropout: probability of dropping an attention weight, in [0, 1).
        num_heads: number of heads that share the width.
        qkv_bias: whether the query, key and value projections have biases; `out_proj` always has.
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
        check_heads("d_out", self.d_out, "num_heads", self.num_heads)
        super().__post_init__()

    def setup(self) -> None:
        self.W_query = Linear(self.d_in, self.d_out, self.qkv_bias)
        self.W_key = Linear(self.d_in, self.d_out, self.qkv_bias)
        self.W_value = Linear(self.d_in, self.d_out, self.qkv_bias)
        self.W_qkv = Linear(self.d_in, 3 * self.d_out, self.qkv_bias)
        self.out_proj = Linear(self.d_out, self.d_out)

    def __call__(
        self,
        x: Float[Array, "*batch t d_in"],
        *,
        deterministic: bool = True,
        attention_fn: AttentionFn | None = None,
        key: Array | None = None,
    ) -> Float[Array, "*batch t d_out"]:
        """Attend within each sequence, in every head; position t sees positions 0..t.

        If given, `attention_fn` replaces causal attention. `key` is as in `dropout_key`. The
        target's choice of attention may be cuDNN; see `nn.cudnn_attention`.
        """
        check_length(x.shape[-2], self.context_length)
        if self.has_variable("params", "W_qkv"):
            projected = jnp.split(self.W_qkv(x), 3, axis=-1)
        else:
            projected = [self.W_query(x), self.W_key(x), self.W_value(x)]
        queries, keys, values = (split_heads(part, self.num_heads) for part in projected)
        if attention_fn is not None:
            return self.out_proj(merge_heads(attention_fn(queries, keys, values)))
        key = dropout_key(self, self.dropout, deterministic, key)
        if use_cudnn(queries, drops=key is not None):
            context = cudnn_attention(queries, keys, values)
        else:
            mask, rate = causal_mask(x.shape[-2]), self.dropout
            context = scaled_dot_product_attention(
                queries, keys, values, mask, dropout_rate=rate, key=key
            )
        return self.out_proj(merge_heads(context))
