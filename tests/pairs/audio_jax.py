"""The WaveNet in Equinox, for one sequence (channels, length); `vmap` adds the batch.

Weights keep torch's layout (out, in, kernel). The scale of the residual is a float32 constant.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

DILATIONS = (1, 2, 4)
HALF_POWER = np.float32(np.sqrt(0.5))


class CausalConv(eqx.Module):
    weight: jax.Array
    bias: jax.Array
    dilation: int = eqx.field(static=True)

    def __call__(self, x):
        left = (self.weight.shape[-1] - 1) * self.dilation
        x = jnp.pad(x, ((0, 0), (left, 0)))
        dilation = (self.dilation,)
        y = jax.lax.conv_general_dilated(x[None], self.weight, (1,), "VALID", rhs_dilation=dilation)
        return y[0] + self.bias[:, None]


class Pointwise(eqx.Module):
    weight: jax.Array
    bias: jax.Array

    def __call__(self, x):
        return self.weight @ x + self.bias[:, None]


class GroupNorm(eqx.Module):
    weight: jax.Array
    bias: jax.Array
    groups: int = eqx.field(static=True)
    eps: float = eqx.field(static=True, default=1e-5)

    def __call__(self, x):
        grouped = x.reshape(self.groups, -1)
        mean = jnp.mean(grouped, axis=1, keepdims=True)
        var = jnp.var(grouped, axis=1, keepdims=True)
        normed = (grouped - mean) / jnp.sqrt(var + self.eps)
        normed = normed.reshape(x.shape)
        return self.weight[:, None] * normed + self.bias[:, None]


class Layer(eqx.Module):
    norm: GroupNorm
    conv: CausalConv
    residual: Pointwise
    skip: Pointwise

    def __call__(self, x):
        normed = self.norm(x)
        y = self.conv(normed)
        value, gate = jnp.split(y, 2, axis=0)
        value = jnp.tanh(value)
        gate = jax.nn.sigmoid(gate)
        gated = value * gate
        skip = self.skip(gated)
        residual = self.residual(gated)
        total = x + residual
        return total * HALF_POWER, skip


class WaveNet(eqx.Module):
    front: CausalConv
    layers: list[Layer]
    mix: Pointwise
    head: Pointwise

    def __call__(self, frames):
        x = self.front(frames)
        skips = 0
        for layer in self.layers:
            x, skip = layer(x)
            skips = skips + skip
        y = jax.nn.relu(skips)
        y = self.mix(y)
        y = jax.nn.relu(y)
        return self.head(y)


def load(state):
    """Return the model with the weights of a state dict."""

    def array(name):
        return jnp.asarray(state[name])

    def pointwise(name):
        weight = array(f"{name}.weight").squeeze(-1)
        return Pointwise(weight, array(f"{name}.bias"))

    def causal(name, dilation=1):
        return CausalConv(array(f"{name}.weight"), array(f"{name}.bias"), dilation)

    def layer(name, dilation):
        return Layer(
            norm=GroupNorm(array(f"{name}.norm.weight"), array(f"{name}.norm.bias"), groups=4),
            conv=causal(f"{name}.conv", dilation),
            residual=pointwise(f"{name}.residual"),
            skip=pointwise(f"{name}.skip"),
        )

    return WaveNet(
        front=causal("front"),
        layers=[layer(f"layers.{i}", dilation) for i, dilation in enumerate(DILATIONS)],
        mix=pointwise("mix"),
        head=pointwise("head"),
    )


def build(state, inputs):
    model = load(state)
    return jax.vmap(model), (jnp.asarray(inputs[0]),)
