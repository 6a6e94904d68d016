"""The residual network in plain JAX, for images in the layout (batch, height, width, channels)."""

import jax
import jax.numpy as jnp
from jax import lax

STRIDES = (1, 2)
LAYOUT = ("NHWC", "HWIO", "NHWC")


def kernel(weight):
    """Return a torch convolution's weight in the layout (height, width, in, out)."""
    return jnp.asarray(weight.transpose(2, 3, 1, 0))


def batch_norm_params(state, prefix):
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return {ours: jnp.asarray(state[f"{prefix}.{theirs}"]) for ours, theirs in names.items()}


def convert(state):
    """Return the parameters as a tree."""
    blocks = []
    for i in range(len(STRIDES)):
        prefix = f"blocks.{i}"
        block = {
            "conv1": kernel(state[f"{prefix}.conv1.weight"]),
            "bn1": batch_norm_params(state, f"{prefix}.bn1"),
            "conv2": kernel(state[f"{prefix}.conv2.weight"]),
            "bn2": batch_norm_params(state, f"{prefix}.bn2"),
        }
        if f"{prefix}.shortcut.weight" in state:
            block["shortcut"] = kernel(state[f"{prefix}.shortcut.weight"])
            block["bn_shortcut"] = batch_norm_params(state, f"{prefix}.bn_shortcut")
        blocks.append(block)
    return {
        "stem": kernel(state["stem.weight"]),
        "stem_bias": jnp.asarray(state["stem.bias"]),
        "bn": batch_norm_params(state, "bn"),
        "blocks": blocks,
        "neck": jnp.asarray(state["neck.weight"].T),
        "neck_bias": jnp.asarray(state["neck.bias"]),
        "head": jnp.asarray(state["head.weight"].T),
        "head_bias": jnp.asarray(state["head.bias"]),
    }


def conv(x, w, stride=1):
    """Convolve with the padding that keeps the size at stride 1, the same on both sides."""
    half = w.shape[0] // 2
    strides = (stride, stride)
    return lax.conv_general_dilated(x, w, strides, [(half, half)] * 2, dimension_numbers=LAYOUT)


def batch_norm(p, x, eps=1e-5):
    """Normalize by the running statistics."""
    centered = x - p["mean"]
    normed = centered / jnp.sqrt(p["var"] + eps)
    return normed * p["scale"] + p["bias"]


def max_pool(x):
    window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)


def block(p, x, stride):
    y = conv(x, p["conv1"], stride)
    y = batch_norm(p["bn1"], y)
    y = jax.nn.relu(y)
    y = conv(y, p["conv2"])
    y = batch_norm(p["bn2"], y)
    residual = x
    if "shortcut" in p:
        residual = conv(x, p["shortcut"], stride)
        residual = batch_norm(p["bn_shortcut"], residual)
    total = y + residual
    return jax.nn.relu(total)


def forward(params, images):
    x = conv(images, params["stem"])
    x = x + params["stem_bias"]
    x = batch_norm(params["bn"], x)
    x = jax.nn.relu(x)
    x = max_pool(x)
    for p, stride in zip(params["blocks"], STRIDES, strict=True):
        x = block(p, x, stride)
    x = jnp.mean(x, axis=(1, 2))
    x = x @ params["neck"] + params["neck_bias"]
    x = jnp.tanh(x)
    return x @ params["head"] + params["head_bias"]


def build(state, inputs):
    images = jnp.asarray(inputs[0].transpose(0, 2, 3, 1))
    return forward, (convert(state), images)
