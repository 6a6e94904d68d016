"""A decoder with RMSNorm, rotary positions, grouped queries and SwiGLU, in Flax NNX."""

import jax
import jax.numpy as jnp
from flax import nnx

VOCABULARY, WIDTH, HIDDEN, LAYERS = 29, 48, 56, 3
HEADS, KEY_HEADS, HEAD_WIDTH = 6, 2, 8


class RMSNorm(nnx.Module):
    def __init__(self, width):
        self.weight = nnx.Param(jnp.ones(width))

    def __call__(self, x):
        mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
        root = jnp.sqrt(mean_square + 1e-5)
        normalized = x / root
        return normalized * self.weight[...]


def rotary_tables(length, dtype):
    """Return cosines and sines of shape (length, 1, HEAD_WIDTH // 2)."""
    exponents = jnp.arange(0, HEAD_WIDTH, 2, dtype=dtype) / HEAD_WIDTH
    frequencies = 10000.0**-exponents
    angles = jnp.arange(length, dtype=dtype)[:, None, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x, cos, sin):
    half = HEAD_WIDTH // 2
    first, second = x[..., :half], x[..., half:]
    rotated_first = first * cos - second * sin
    rotated_second = second * cos + first * sin
    return jnp.concatenate([rotated_first, rotated_second], axis=-1)


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.query = nnx.Linear(WIDTH, HEADS * HEAD_WIDTH, use_bias=False, rngs=rngs)
        self.key = nnx.Linear(WIDTH, KEY_HEADS * HEAD_WIDTH, use_bias=False, rngs=rngs)
        self.value = nnx.Linear(WIDTH, KEY_HEADS * HEAD_WIDTH, use_bias=False, rngs=rngs)
        self.output = nnx.Linear(HEADS * HEAD_WIDTH, WIDTH, use_bias=False, rngs=rngs)

    def __call__(self, x, cos, sin):
        batch, length, _ = x.shape
        query = self.query(x).reshape(batch, length, HEADS, HEAD_WIDTH)
        key = self.key(x).reshape(batch, length, KEY_HEADS, HEAD_WIDTH)
        value = self.value(x).reshape(batch, length, KEY_HEADS, HEAD_WIDTH)
        query = rotate(query, cos, sin)
        key = rotate(key, cos, sin)
        key = jnp.repeat(key, HEADS // KEY_HEADS, axis=2)
        value = jnp.repeat(value, HEADS // KEY_HEADS, axis=2)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key)
        scores = scores * HEAD_WIDTH**-0.5
        causal = jnp.tril(jnp.ones((length, length), bool))
        scores = jnp.where(causal, scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return self.output(mixed.reshape(batch, length, WIDTH))


class MLP(nnx.Module):
    def __init__(self, rngs):
        self.gate = nnx.Linear(WIDTH, HIDDEN, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, HIDDEN, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, use_bias=False, rngs=rngs)

    def __call__(self, x):
        gate = self.gate(x)
        up = self.up(x)
        hidden = jax.nn.silu(gate) * up
        return self.down(hidden)


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.attention_norm = RMSNorm(WIDTH)
        self.attention = Attention(rngs)
        self.mlp_norm = RMSNorm(WIDTH)
        self.mlp = MLP(rngs)

    def __call__(self, x, cos, sin):
        normed = self.attention_norm(x)
        x = x + self.attention(normed, cos, sin)
        normed = self.mlp_norm(x)
        return x + self.mlp(normed)


class Decoder(nnx.Module):
    """Return logits (batch, length, vocabulary) of tokens (batch, length); the head is tied."""

    def __init__(self, rngs, dtype):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, param_dtype=dtype, rngs=rngs)
        self.layers = nnx.List([Layer(rngs) for _ in range(LAYERS)])
        self.norm = RMSNorm(WIDTH)

    def __call__(self, tokens):
        x = self.embed(tokens)
        cos, sin = rotary_tables(tokens.shape[1], x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        x = self.norm(x)
        return self.embed.attend(x)


def build(state, inputs):
    """Return the NNX module with the weights of the state dict, and its arguments."""
    model = Decoder(nnx.Rngs(0), state["embed.weight"].dtype)
    model.embed.embedding.set_value(jnp.asarray(state["embed.weight"]))
    model.norm.weight.set_value(jnp.asarray(state["norm.weight"]))
    for i, layer in enumerate(model.layers):
        own = {k.removeprefix(f"layers.{i}."): jnp.asarray(v) for k, v in state.items()}
        layer.attention_norm.weight.set_value(own["attention_norm.weight"])
        layer.attention.query.kernel.set_value(own["attention.query.weight"].T)
        layer.attention.key.kernel.set_value(own["attention.key.weight"].T)
        layer.attention.value.kernel.set_value(own["attention.value.weight"].T)
        layer.attention.output.kernel.set_value(own["attention.output.weight"].T)
        layer.mlp_norm.weight.set_value(own["mlp_norm.weight"])
        layer.mlp.gate.kernel.set_value(own["mlp.gate.weight"].T)
        layer.mlp.up.kernel.set_value(own["mlp.up.weight"].T)
        layer.mlp.down.kernel.set_value(own["mlp.down.weight"].T)
    return model, (jnp.asarray(inputs[0], jnp.int32),)
