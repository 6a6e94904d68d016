"""A vision transformer with a convolutional stem, in Equinox."""

import equinox as eqx
import jax
import jax.numpy as jnp

CHANNELS, STEM, WIDTH, HIDDEN, HEADS, LAYERS, CLASSES = 3, 12, 40, 56, 4, 2, 11
PATCH = 4


class Stem(eqx.Module):
    """A convolution that halves the height and the breadth."""

    weight: jax.Array
    bias: jax.Array

    def __call__(self, image):
        lhs, rhs, strides = image[None], self.weight, (2, 2)
        x = jax.lax.conv_general_dilated(lhs, rhs, strides, [(1, 1), (1, 1)])[0]
        x = x + self.bias[:, None, None]
        return jax.nn.gelu(x, approximate=False)


class Norm(eqx.Module):
    weight: jax.Array
    bias: jax.Array

    def __call__(self, x):
        mean = jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.var(x, axis=-1, keepdims=True)
        scaled = (x - mean) * jax.lax.rsqrt(variance + 1e-6)
        return scaled * self.weight + self.bias


class Attention(eqx.Module):
    joint: eqx.nn.Linear
    output: eqx.nn.Linear

    def __call__(self, x):
        length, width = x.shape
        joint = jax.vmap(self.joint)(x)
        query, key, value = jnp.split(joint, 3, axis=-1)
        query = query.reshape(length, HEADS, -1).transpose(1, 0, 2)
        key = key.reshape(length, HEADS, -1).transpose(1, 0, 2)
        value = value.reshape(length, HEADS, -1).transpose(1, 0, 2)
        scores = query @ key.mT / query.shape[-1] ** 0.5
        weights = jax.nn.softmax(scores, axis=-1)
        mixed = weights @ value
        merged = mixed.transpose(1, 0, 2).reshape(length, width)
        return jax.vmap(self.output)(merged)


class Block(eqx.Module):
    norm1: Norm
    attention: Attention
    scale1: jax.Array
    norm2: Norm
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    scale2: jax.Array

    def __call__(self, x):
        h = self.norm1(x)
        h = self.attention(h)
        x = x + h * self.scale1
        normed = self.norm2(x)
        h = jax.vmap(self.up)(normed)
        h = jax.nn.gelu(h, approximate=False)
        h = jax.vmap(self.down)(h)
        return x + self.scale2 * h


class VisionTransformer(eqx.Module):
    """Return logits (classes) of one image (channels, height, breadth)."""

    stem: Stem
    patches: eqx.nn.Conv2d
    class_token: jax.Array
    positions: jax.Array
    blocks: list[Block]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __call__(self, image):
        x = self.stem(image)
        x = self.patches(x)
        x = x.reshape(WIDTH, -1).T
        x = jnp.concatenate([self.class_token, x], axis=0)
        x = x + self.positions
        for block in self.blocks:
            x = block(x)
        x = jax.vmap(self.norm)(x)
        pooled = jnp.mean(x[1:], axis=0)
        features = jnp.concatenate([x[0], pooled])
        return self.head(features)


def with_weights(layer, weight, bias):
    """Return a copy of an Equinox layer with these arrays."""
    return eqx.tree_at(lambda x: (x.weight, x.bias), layer, (weight, bias))


def linear(weight, bias):
    layer = eqx.nn.Linear(weight.shape[1], weight.shape[0], key=jax.random.key(0))
    return with_weights(layer, weight, bias)


def block(p, prefix):
    return Block(
        norm1=Norm(p[prefix + "norm1.weight"], p[prefix + "norm1.bias"]),
        attention=Attention(
            joint=linear(
                p[prefix + "attention.in_proj_weight"],
                p[prefix + "attention.in_proj_bias"],
            ),
            output=linear(
                p[prefix + "attention.out_proj.weight"],
                p[prefix + "attention.out_proj.bias"],
            ),
        ),
        scale1=p[prefix + "scale1"],
        norm2=Norm(p[prefix + "norm2.weight"], p[prefix + "norm2.bias"]),
        up=linear(p[prefix + "up.weight"], p[prefix + "up.bias"]),
        down=linear(p[prefix + "down.weight"], p[prefix + "down.bias"]),
        scale2=p[prefix + "scale2"],
    )


def build(state, inputs):
    """Return the model, mapped over the batch, and its arguments."""
    p = {name: jnp.asarray(value) for name, value in state.items()}
    patches = eqx.nn.Conv2d(STEM, WIDTH, PATCH, stride=PATCH, key=jax.random.key(0))
    norm = eqx.nn.LayerNorm(WIDTH, eps=1e-6)
    model = VisionTransformer(
        stem=Stem(p["stem.weight"], p["stem.bias"]),
        patches=with_weights(patches, p["patches.weight"], p["patches.bias"][:, None, None]),
        class_token=p["class_token"][0],
        positions=p["positions"][0],
        blocks=[block(p, f"blocks.{i}.") for i in range(LAYERS)],
        norm=with_weights(norm, p["norm.weight"], p["norm.bias"]),
        head=linear(p["head.weight"], p["head.bias"]),
    )
    return jax.vmap(model), (jnp.asarray(inputs[0]),)
