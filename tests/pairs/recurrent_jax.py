"""The character model as plain functions on a dictionary of arrays, with scans over time."""

import jax
import jax.numpy as jnp

LSTM_LAYERS = 2


def convert(state):
    """Return the parameters; weights of linear layers become (in, out)."""
    params = {
        "embedding": jnp.asarray(state["embedding.weight"]),
        "bridge": {
            "kernel": jnp.asarray(state["bridge.weight"].T),
            "bias": jnp.asarray(state["bridge.bias"]),
        },
        "gru_x": {
            "kernel": jnp.asarray(state["cell.x_proj.weight"].T),
            "bias": jnp.asarray(state["cell.x_proj.bias"]),
        },
        "gru_h": {
            "kernel": jnp.asarray(state["cell.h_proj.weight"].T),
            "bias": jnp.asarray(state["cell.h_proj.bias"]),
        },
        "head": {
            "kernel": jnp.asarray(state["head.weight"].T),
            "bias": jnp.asarray(state["head.bias"]),
        },
    }
    for i in range(LSTM_LAYERS):
        params[f"lstm_{i}"] = {
            "w_x": jnp.asarray(state[f"lstm.weight_ih_l{i}"].T),
            "w_h": jnp.asarray(state[f"lstm.weight_hh_l{i}"].T),
            "b_x": jnp.asarray(state[f"lstm.bias_ih_l{i}"]),
            "b_h": jnp.asarray(state[f"lstm.bias_hh_l{i}"]),
        }
    return params


def linear(p, x):
    return x @ p["kernel"] + p["bias"]


def lstm(p, xs):
    """Return every hidden state of one LSTM layer; xs has shape (length, batch, width)."""
    projected = xs @ p["w_x"] + p["b_x"]

    def step(carry, x):
        hidden, cell = carry
        gates = x + hidden @ p["w_h"] + p["b_h"]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        kept = jax.nn.sigmoid(f) * cell
        written = jax.nn.sigmoid(i) * jnp.tanh(g)
        cell = kept + written
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    zeros = jnp.zeros((xs.shape[1], p["w_h"].shape[0]), xs.dtype)
    _, hiddens = jax.lax.scan(step, (zeros, zeros), projected)
    return hiddens


def gru(p_x, p_h, xs):
    """Return every hidden state of the GRU; xs has shape (length, batch, width)."""

    def step(hidden, x):
        x_gates = linear(p_x, x)
        h_gates = linear(p_h, hidden)
        x_reset, x_update, x_new = jnp.split(x_gates, 3, axis=-1)
        h_reset, h_update, h_new = jnp.split(h_gates, 3, axis=-1)
        reset = jax.nn.sigmoid(x_reset + h_reset)
        update = jax.nn.sigmoid(x_update + h_update)
        candidate = x_new + reset * h_new
        new = jnp.tanh(candidate)
        hidden = (1 - update) * new + update * hidden
        return hidden, hidden

    zeros = jnp.zeros((xs.shape[1], p_h["kernel"].shape[0]), xs.dtype)
    _, hiddens = jax.lax.scan(step, zeros, xs)
    return hiddens


def forward(params, ids):
    x = params["embedding"][ids]
    x = x.swapaxes(0, 1)
    for i in range(LSTM_LAYERS):
        x = lstm(params[f"lstm_{i}"], x)
    x = x + linear(params["bridge"], x)
    y = gru(params["gru_x"], params["gru_h"], x)
    y = y.swapaxes(0, 1)
    return linear(params["head"], y)


def build(state, inputs):
    return forward, (convert(state), jnp.asarray(inputs[0]))
