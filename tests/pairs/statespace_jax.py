"""The state-space model in Flax Linen, with `lax.scan` over time.

RMSNorm computes its mean square in float32, whatever the type of its input.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

LAYERS = 2


class RMSNorm(nn.Module):
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x):
        weight = self.param("weight", nn.initializers.ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        normed = x32 * jax.lax.rsqrt(mean_square + self.eps)
        return weight * normed.astype(x.dtype)


def selective_scan(x, delta, a, b, c):
    """Return the outputs of the recurrence; a has shape (width, state)."""

    def step(hidden, current):
        x, delta, b, c = current
        decay = jnp.exp(delta[..., None] * a)
        drive = delta[..., None] * b[:, None, :] * x[..., None]
        new = decay * hidden + drive
        y = jnp.einsum("bds,bs->bd", new, c)
        return new, y

    zeros = jnp.zeros((x.shape[0], *a.shape), x.dtype)
    time_major = [value.swapaxes(0, 1) for value in (x, delta, b, c)]
    _, y = jax.lax.scan(step, zeros, time_major)
    return y.swapaxes(0, 1)


class Mixer(nn.Module):
    inner: int = 40
    state: int = 6
    rank: int = 5
    kernel: int = 4

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        a_log = self.param("A_log", nn.initializers.zeros, (self.inner, self.state))
        skip = self.param("D", nn.initializers.ones, (self.inner,))
        projected = nn.Dense(2 * self.inner, use_bias=False, name="in_proj")(x)
        x, gate = jnp.split(projected, 2, axis=-1)
        n = x.shape[-1]
        x = nn.Conv(n, (self.kernel,), padding="CAUSAL", feature_group_count=n, name="conv1d")(x)
        x = nn.silu(x)
        selected = nn.Dense(self.rank + 2 * self.state, use_bias=False, name="x_proj")(x)
        rates, b, c = jnp.split(selected, [self.rank, self.rank + self.state], axis=-1)
        steps = nn.Dense(n, name="dt_proj")(rates)
        delta = nn.softplus(steps)
        a = -jnp.exp(a_log)
        y = selective_scan(x, delta, a, b, c)
        y = y + skip * x
        y = y * nn.silu(gate)
        return nn.Dense(width, use_bias=False, name="out_proj")(y)


class StateSpaceModel(nn.Module):
    vocab: int = 29
    width: int = 24

    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(self.vocab, self.width, name="embedding")
        x = embed(ids)
        for i in range(LAYERS):
            normed = RMSNorm(name=f"norm_{i}")(x)
            mixed = Mixer(name=f"mixer_{i}")(normed)
            x = x + mixed
        x = RMSNorm(name="norm")(x)
        return embed.attend(x)


def convert_mixer(state, prefix):
    """Return the parameters of one mixer."""
    params = {
        name: {"kernel": state[f"{prefix}.{name}.weight"].T} for name in ("in_proj", "x_proj")
    }
    params["out_proj"] = {"kernel": state[f"{prefix}.out_proj.weight"].T}
    params["dt_proj"] = {
        "kernel": state[f"{prefix}.dt_proj.weight"].T,
        "bias": state[f"{prefix}.dt_proj.bias"],
    }
    params["conv1d"] = {
        "kernel": np.transpose(state[f"{prefix}.conv1d.weight"], (2, 1, 0)),
        "bias": state[f"{prefix}.conv1d.bias"],
    }
    params["A_log"] = state[f"{prefix}.A_log"]
    params["D"] = state[f"{prefix}.D"]
    return params


def build(state, inputs):
    params = {
        "embedding": {"embedding": state["embedding.weight"]},
        "norm": {"weight": state["norm.weight"]},
    }
    for i in range(LAYERS):
        params[f"norm_{i}"] = {"weight": state[f"blocks.{i}.norm.weight"]}
        params[f"mixer_{i}"] = convert_mixer(state, f"blocks.{i}.mixer")
    variables = {"params": jax.tree.map(jnp.asarray, params)}
    model = StateSpaceModel()

    def fn(variables, ids):
        return model.apply(variables, ids)

    return fn, (variables, jnp.asarray(inputs[0]))
