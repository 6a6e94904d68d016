"""A decoder with mixtures of experts in all layers but the first, as plain functions in JAX.

The softmax of the router is computed in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np

LAYERS, WINDOW, HEADS, HEAD_WIDTH = 3, 4, 4, 9
EXPERTS, CHOSEN = 6, 2
ROUTED_SCALE, CAP = 1.5, 8.0


def layer_norm(p, x):
    mean = x.mean(axis=-1, keepdims=True)
    centered = x - mean
    variance = jnp.mean(centered**2, axis=-1, keepdims=True)
    deviation = jnp.sqrt(variance + 1e-5)
    return p["weight"] * centered / deviation + p["bias"]


def attention(p, x, visible):
    batch, length, width = x.shape
    joint = x @ p["joint"]["kernel"] + p["joint"]["bias"]
    joint = joint.reshape(batch, length, 3, HEADS, HEAD_WIDTH)
    query, key, value = jnp.moveaxis(joint, 2, 0)
    scores = jnp.einsum("...qhd,...khd->...hqk", query, key)
    scores = scores * HEAD_WIDTH**-0.5
    scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1)
    mixed = jnp.einsum("...hqk,...khd->...qhd", weights, value)
    mixed = mixed.reshape(batch, length, width)
    return mixed @ p["output"]["kernel"] + p["output"]["bias"]


def dense(p, x):
    h = x @ p["up"]["kernel"] + p["up"]["bias"]
    h = jax.nn.gelu(h, approximate=True)
    return h @ p["down"]["kernel"] + p["down"]["bias"]


def expert(p, x):
    """Return SwiGLU of x; the first half of the joint projection is the gate."""
    joint = x @ p["gate_up"]
    gate, up = jnp.split(joint, 2, axis=-1)
    opened = jax.nn.silu(gate)
    return (opened * up) @ p["down"]


def mixture(p, x):
    """Return the sum of the two chosen experts and the shared one; all experts are computed."""
    logits = x @ p["router"]["kernel"] + p["router"]["bias"]
    highest, chosen = jax.lax.top_k(logits, CHOSEN)
    shares = jax.nn.softmax(highest.astype(jnp.float32), axis=-1)
    one_hot = jax.nn.one_hot(chosen, EXPERTS, dtype=x.dtype)
    gates = jnp.sum(one_hot * shares.astype(x.dtype)[..., None], axis=-2)
    outputs = jax.vmap(expert, in_axes=(0, None))(p["experts"], x)
    routed = jnp.einsum("bte,ebtd->btd", gates, outputs)
    openness = jax.nn.sigmoid(x @ p["shared_gate"])
    shared = openness * expert(p["shared"], x)
    return ROUTED_SCALE * routed + shared


def layer(p, x, visible):
    h = layer_norm(p["norm1"], x)
    x = x + attention(p["attention"], h, visible)
    h = layer_norm(p["norm2"], x)
    mlp = mixture if "router" in p["mlp"] else dense
    return x + mlp(p["mlp"], h)


def decoder(params, tokens):
    """Return logits (batch, length, vocabulary) of tokens (batch, length)."""
    length = tokens.shape[1]
    x = params["embed"][tokens]
    x = x + params["positions"][:length]
    distance = jnp.arange(length)[:, None] - jnp.arange(length)
    visible = (distance >= 0) & (distance < WINDOW)
    for p in params["layers"]:
        x = layer(p, x, visible)
    x = layer_norm(params["norm"], x)
    logits = x @ params["head"]
    return CAP * jnp.tanh(logits / CAP)


def affine(state, name):
    return {"kernel": state[name + ".weight"].T, "bias": state[name + ".bias"]}


def norm(state, name):
    return {"weight": state[name + ".weight"], "bias": state[name + ".bias"]}


def mixture_parameters(state, name):
    gate_up = [state[f"{name}.experts.{i}.gate_up.weight"].T for i in range(EXPERTS)]
    down = [state[f"{name}.experts.{i}.down.weight"].T for i in range(EXPERTS)]
    return {
        "router": affine(state, name + ".router"),
        "experts": {"gate_up": np.stack(gate_up), "down": np.stack(down)},
        "shared_gate": state[name + ".shared_gate.weight"].T,
        "shared": {
            "gate_up": state[name + ".shared.gate_up.weight"].T,
            "down": state[name + ".shared.down.weight"].T,
        },
    }


def dense_parameters(state, name):
    return {"up": affine(state, name + ".up"), "down": affine(state, name + ".down")}


def layer_parameters(state, i):
    mlp = mixture_parameters if i > 0 else dense_parameters
    return {
        "norm1": norm(state, f"layers.{i}.norm1"),
        "attention": {
            "joint": affine(state, f"layers.{i}.attention.joint"),
            "output": {
                "kernel": state[f"layers.{i}.attention.output.weight"].T,
                "bias": state[f"layers.{i}.attention.output.bias"],
            },
        },
        "norm2": norm(state, f"layers.{i}.norm2"),
        "mlp": mlp(state, f"layers.{i}.mlp"),
    }


def build(state, inputs):
    """Return the function `decoder` and its arguments, the parameters first."""
    params = {
        "embed": state["embed.weight"],
        "positions": state["positions.weight"],
        "layers": [layer_parameters(state, i) for i in range(LAYERS)],
        "norm": norm(state, "norm"),
        "head": state["head.weight"].T,
    }
    return decoder, (jax.tree.map(jnp.asarray, params), jnp.asarray(inputs[0], jnp.int32))
