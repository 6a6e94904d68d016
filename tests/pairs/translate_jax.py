"""An encoder and a decoder with cross attention, norms after the sums, in Flax Linen.

The table of positions is a float32 constant.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

SOURCE_VOCABULARY, TARGET_VOCABULARY = 31, 27
WIDTH, HEADS, HIDDEN, LAYERS, REACH, LONGEST = 32, 4, 56, 2, 5, 16
HEAD_WIDTH = WIDTH // HEADS


def sinusoids(length, width):
    """Return float32 positions of shape (length, width), a sine and a cosine in turn."""
    angles = np.arange(length)[:, None] / 10000.0 ** (np.arange(0, width, 2) / width)
    table = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    return table.reshape(length, width).astype(np.float32)


POSITIONS = sinusoids(LONGEST, WIDTH)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x, memory, mask, bias=None):
        query = nn.DenseGeneral((HEADS, HEAD_WIDTH), name="query")(x)
        key = nn.DenseGeneral((HEADS, HEAD_WIDTH), name="key")(memory)
        value = nn.DenseGeneral((HEADS, HEAD_WIDTH), name="value")(memory)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key)
        scores = scores / np.sqrt(HEAD_WIDTH).item()
        if bias is not None:
            scores = scores + bias
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        weights = nn.softmax(scores, axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return nn.DenseGeneral(WIDTH, axis=(-2, -1), name="output")(mixed)


class FeedForward(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.Dense(HIDDEN, name="up")(x)
        h = nn.relu(h)
        return nn.Dense(WIDTH, name="down")(h)


class EncoderLayer(nn.Module):
    @nn.compact
    def __call__(self, x, mask, bias):
        h = Attention(name="attention")(x, x, mask, bias)
        x = nn.LayerNorm(epsilon=1e-5, name="norm1")(x + h)
        h = FeedForward(name="ff")(x)
        return nn.LayerNorm(epsilon=1e-5, name="norm2")(x + h)


class DecoderLayer(nn.Module):
    @nn.compact
    def __call__(self, x, causal, encoded, mask):
        h = Attention(name="attention")(x, x, causal)
        x = nn.LayerNorm(epsilon=1e-5, name="norm1")(x + h)
        h = Attention(name="cross")(x, encoded, mask)
        x = x + h
        x = nn.LayerNorm(epsilon=1e-5, name="norm2")(x)
        h = FeedForward(name="ff")(x)
        return nn.LayerNorm(epsilon=1e-5, name="norm3")(x + h)


class Translator(nn.Module):
    """Return logits (batch, target, vocabulary) and the encoded source."""

    def setup(self):
        self.source_embed = nn.Embed(SOURCE_VOCABULARY, WIDTH)
        self.target_embed = nn.Embed(TARGET_VOCABULARY, WIDTH)
        self.relative = nn.Embed(2 * REACH + 1, HEADS)
        self.encoder = [EncoderLayer() for _ in range(LAYERS)]
        self.decoder = [DecoderLayer() for _ in range(LAYERS)]
        self.head = nn.Dense(TARGET_VOCABULARY)

    def relative_bias(self, length):
        steps = jnp.arange(length)
        distance = steps[None, :] - steps[:, None]
        bucket = jnp.clip(distance, -REACH, REACH) + REACH
        bias = self.relative(bucket)
        return jnp.transpose(bias, (2, 0, 1))

    def encode(self, source, mask):
        x = self.source_embed(source)
        x = x * WIDTH**0.5
        x = x + POSITIONS[: source.shape[1]]
        bias = self.relative_bias(source.shape[1])
        for layer in self.encoder:
            x = layer(x, mask, bias)
        return x

    def decode(self, target, encoded, mask):
        y = self.target_embed(target)
        y = y * WIDTH**0.5 + POSITIONS[: target.shape[1]]
        length = target.shape[1]
        causal = jnp.tril(jnp.ones((length, length), bool))
        for layer in self.decoder:
            y = layer(y, causal, encoded, mask)
        return self.head(y)

    def __call__(self, source, target, source_mask):
        mask = source_mask[:, None, None, :]
        encoded = self.encode(source, mask)
        return {"logits": self.decode(target, encoded, mask), "encoded": encoded}


def dense(state, name):
    return {"kernel": state[name + ".weight"].T, "bias": state[name + ".bias"]}


def norm(state, name):
    return {"scale": state[name + ".weight"], "bias": state[name + ".bias"]}


def heads(state, name):
    """Return a dense layer that separates the heads."""
    kernel = state[name + ".weight"].T
    bias = state[name + ".bias"]
    return {
        "kernel": kernel.reshape(WIDTH, HEADS, HEAD_WIDTH),
        "bias": bias.reshape(HEADS, HEAD_WIDTH),
    }


def attention(state, name):
    output = state[name + ".output.weight"].T
    return {
        "query": heads(state, name + ".query"),
        "key": heads(state, name + ".key"),
        "value": heads(state, name + ".value"),
        "output": {
            "kernel": output.reshape(HEADS, HEAD_WIDTH, WIDTH),
            "bias": state[name + ".output.bias"],
        },
    }


def feed_forward(state, name):
    return {"up": dense(state, name + ".up"), "down": dense(state, name + ".down")}


def parameters(state):
    params = {
        "source_embed": {"embedding": state["source_embed.weight"]},
        "target_embed": {"embedding": state["target_embed.weight"]},
        "relative": {"embedding": state["relative.weight"]},
        "head": dense(state, "head"),
    }
    for i in range(LAYERS):
        params[f"encoder_{i}"] = {
            "attention": attention(state, f"encoder.{i}.attention"),
            "norm1": norm(state, f"encoder.{i}.norm1"),
            "ff": feed_forward(state, f"encoder.{i}.ff"),
            "norm2": norm(state, f"encoder.{i}.norm2"),
        }
        params[f"decoder_{i}"] = {
            "attention": attention(state, f"decoder.{i}.attention"),
            "norm1": norm(state, f"decoder.{i}.norm1"),
            "cross": attention(state, f"decoder.{i}.cross"),
            "norm2": norm(state, f"decoder.{i}.norm2"),
            "ff": feed_forward(state, f"decoder.{i}.ff"),
            "norm3": norm(state, f"decoder.{i}.norm3"),
        }
    return {"params": params}


def build(state, inputs):
    """Return `Translator().apply` and its arguments, the variables first."""
    state = {name: jnp.asarray(value) for name, value in state.items()}
    source, target, source_mask = inputs
    tokens = jnp.asarray(source, jnp.int32), jnp.asarray(target, jnp.int32)
    return Translator().apply, (parameters(state), *tokens, jnp.asarray(source_mask))
