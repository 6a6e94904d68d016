"""The BertModel in Flax NNX.

`nnx.Embed` keeps the type that it was created with, here float32, whatever is loaded into it.
"""

import jax
import jax.numpy as jnp
from flax import nnx

VOCAB, WIDTH, LAYERS, HEADS, HIDDEN, POSITIONS, TYPES = 31, 32, 2, 4, 56, 20, 2
EPSILON = 1e-12


class Embeddings(nnx.Module):
    def __init__(self, rngs):
        self.words = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(POSITIONS, WIDTH, rngs=rngs)
        self.types = nnx.Embed(TYPES, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, epsilon=EPSILON, rngs=rngs)

    def __call__(self, ids, types):
        x = self.words(ids) + self.types(types)
        places = jnp.arange(ids.shape[1])[None]
        x = x + self.positions(places)
        return self.norm(x)


class SelfAttention(nnx.Module):
    def __init__(self, rngs):
        self.query = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.key = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.value = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x, bias):
        batch, length, width = x.shape
        heads = (batch, length, HEADS, width // HEADS)
        query = self.query(x).reshape(heads)
        key = self.key(x).reshape(heads)
        value = self.value(x).reshape(heads)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / jnp.sqrt(width // HEADS)
        weights = jax.nn.softmax(scores + bias, axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return self.out(mixed.reshape(x.shape))


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.attention = SelfAttention(rngs)
        self.attention_norm = nnx.LayerNorm(WIDTH, epsilon=EPSILON, rngs=rngs)
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, epsilon=EPSILON, rngs=rngs)

    def __call__(self, x, bias):
        attended = self.attention(x, bias)
        x = self.attention_norm(x + attended)
        hidden = self.up(x)
        hidden = jax.nn.gelu(hidden, approximate=False)
        hidden = self.down(hidden)
        return self.norm(x + hidden)


class Bert(nnx.Module):
    def __init__(self, rngs):
        self.embeddings = Embeddings(rngs)
        self.layers = nnx.List([Layer(rngs) for _ in range(LAYERS)])
        self.pooler = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, ids, mask, types):
        x = self.embeddings(ids, types)
        bias = jnp.where(mask[:, None, None, :], 0.0, jnp.finfo(x.dtype).min)
        for layer in self.layers:
            x = layer(x, bias)
        first = x[:, 0]
        pooled = jnp.tanh(self.pooler(first))
        return x, pooled


def set_linear(linear, state, name):
    linear.kernel.set_value(jnp.asarray(state[f"{name}.weight"].T))
    linear.bias.set_value(jnp.asarray(state[f"{name}.bias"]))


def set_norm(norm, state, name):
    norm.scale.set_value(jnp.asarray(state[f"{name}.weight"]))
    norm.bias.set_value(jnp.asarray(state[f"{name}.bias"]))


def load(state):
    """Return the model with the weights of a state dict."""
    model = Bert(nnx.Rngs(0))
    embeddings = model.embeddings
    tables = (
        (embeddings.words, "word_embeddings"),
        (embeddings.positions, "position_embeddings"),
        (embeddings.types, "token_type_embeddings"),
    )
    for table, name in tables:
        table.embedding.set_value(jnp.asarray(state[f"bert.embeddings.{name}.weight"]))
    set_norm(embeddings.norm, state, "bert.embeddings.LayerNorm")
    for i, layer in enumerate(model.layers):
        prefix = f"bert.encoder.layer.{i}"
        set_linear(layer.attention.query, state, f"{prefix}.attention.self.query")
        set_linear(layer.attention.key, state, f"{prefix}.attention.self.key")
        set_linear(layer.attention.value, state, f"{prefix}.attention.self.value")
        set_linear(layer.attention.out, state, f"{prefix}.attention.output.dense")
        set_norm(layer.attention_norm, state, f"{prefix}.attention.output.LayerNorm")
        set_linear(layer.up, state, f"{prefix}.intermediate.dense")
        set_linear(layer.down, state, f"{prefix}.output.dense")
        set_norm(layer.norm, state, f"{prefix}.output.LayerNorm")
    set_linear(model.pooler, state, "bert.pooler.dense")
    return model


def build(state, inputs):
    ids, mask, types = inputs
    return load(state), (jnp.asarray(ids), jnp.asarray(mask), jnp.asarray(types))
