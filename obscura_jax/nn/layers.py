"""Position-wise layers: embedding, layer norm, GELU and feed-forward; and dropout."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer
from numpy.typing import ArrayLike

from obscura_jax.checks import check_drop_rate, check_eps, check_sizes
from obscura_jax.nn.containers import ConfiguredModule, Sequential
from obscura_jax.nn.linear import Linear, at_least_float32, check_floating
from obscura_jax.nn.token_ids import validate_token_ids
from obscura_jax.nn.weights import Int8Weight, Transposed, outputs, weight_of


def dropout(
    x: Float[Array, "*shape"], rate: float, *, key: Array | None = None
) -> Float[Array, "*shape"]:
    """Zero each value with probability `rate`; scale the others by 1/(1 - rate) (chapter 3.5.2).

    Without a key nothing is dropped. A rate outside [0, 1) raises ValueError. Draws are float32
    for every type of `x`: JAX would draw other values in float64 under x64.
    """
    rate = check_drop_rate("the drop rate", rate)
    if key is None:
        return x
    keep = jax.random.bernoulli(key, jnp.float32(1 - rate), x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))


def dropout_key(
    module: nn.Module, rate: float, deterministic: bool, key: Array | None = None
) -> Array | None:
    """Return the dropout key of `module` for this call, or None if it drops nothing.

    The key is `key` if the caller passes one, and otherwise comes from the `rngs` of `apply`.

    Raises:
        ValueError: if dropout is active and there is neither.
    """
    if deterministic or rate == 0:
        return None
    if key is not None:
        return key
    if not module.has_rng("dropout"):
        raise ValueError('dropout needs a key: apply(..., rngs={"dropout": key})')
    return module.make_rng("dropout")


def fold_key(key: Array | None, number: Array | int) -> Array | None:
    """Return `jax.random.fold_in(key, number)`, or None if there is no key."""
    return None if key is None else jax.random.fold_in(key, number)


def layer_norm(
    x: Float[Array, "*batch d"], scale: Float[Array, " d"], shift: Float[Array, " d"], eps: float
) -> Float[Array, "*batch d"]:
    """Normalize the last axis to mean 0 and (biased) variance 1, then scale and shift.

    Statistics are computed in at least float32. The mean is subtracted before squaring, because
    E[x^2] - E[x]^2 loses all precision if the mean is large. The result has the type of `x`, which
    must be a floating-point type (ValueError). Ba et al. 2016; chapter 4.2.
    """
    check_floating(x)
    z = x.astype(at_least_float32(x.dtype))
    z = z - z.mean(axis=-1, keepdims=True)
    z = z / jnp.sqrt(jnp.square(z).mean(axis=-1, keepdims=True) + eps)
    scale, shift = (jnp.broadcast_to(a, x.shape).astype(z.dtype) for a in (scale, shift))
    return (scale * z + shift).astype(x.dtype)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Apply the tanh form of GELU, which GPT-2 uses (Hendrycks & Gimpel 2016; chapter 4.3)."""
    return 0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def embed(
    weight: Float[Array, "v d"] | Int8Weight, ids: Integer[Array | np.ndarray, "*batch"]
) -> Float[Array, "*batch d"]:
    """Return the row of `weight` for each id; an id outside [0, V) gives NaN, never another row."""
    if ids.dtype.itemsize > 4:  # a gather keeps 32 bits of an index: 2**32 + 1 would read row 1
        xp = np if isinstance(ids, np.ndarray) else jnp
        ids = xp.where((ids >= 0) & (ids < outputs(weight)), ids, outputs(weight))

    def read(table: Array, outside: float | int = jnp.nan) -> Array:
        rows = jnp.asarray(table).at[ids]
        return rows.get(mode="fill", fill_value=outside, wrap_negative_indices=False)

    if isinstance(weight, Int8Weight):
        scale = read(weight.scale)[..., None]
        return read(weight.quantized, 0).astype(scale.dtype) * scale
    return read(weight)


class Dropout(nn.Module):
    """Dropout at the given rate; the identity unless `deterministic=False`."""

    rate: float

    def __post_init__(self) -> None:
        self.rate = check_drop_rate("dropout", self.rate)
        super().__post_init__()

    def __call__(
        self, x: Float[Array, "*shape"], *, deterministic: bool = True, key: Array | None = None
    ) -> Float[Array, "*shape"]:
        """Drop values of `x`; `key` as in `dropout_key`."""
        return dropout(x, self.rate, key=dropout_key(self, self.rate, deterministic, key))


class Embedding(nn.Module):
    """`torch.nn.Embedding(num_embeddings, embedding_dim)`: `weight` (V, D), drawn from N(0, 1)."""

    num_embeddings: int
    embedding_dim: int

    def __post_init__(self) -> None:
        check_sizes(self, "num_embeddings", "embedding_dim")
        super().__post_init__()

    def setup(self) -> None:
        shape = (self.num_embeddings, self.embedding_dim)
        weight = weight_of(self, nn.initializers.normal(1.0), shape, jnp.float32)
        assert not isinstance(weight, Transposed), "only the weights of blocks are transposed"
        self.weight = weight

    def __call__(self, ids: ArrayLike) -> Float[Array, "*batch d"]:
        """Return the embeddings of `ids`, which may have any shape.

        An id outside [0, V) raises ValueError; inside jit, where it cannot be checked, it gives
        NaN.
        """
        return embed(self.weight, validate_token_ids(ids, self.num_embeddings))


class LayerNorm(nn.Module):
    """`layer_norm` with its `scale` (from ones) and `shift` (from zeros), each (emb_dim,)."""

    emb_dim: int
    eps: float = 1e-5

    def __post_init__(self) -> None:
        check_sizes(self, "emb_dim")
        self.eps = check_eps("eps", self.eps)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """Normalize the last axis."""
        shape = (self.emb_dim,)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        shift = self.param("shift", nn.initializers.zeros, shape, jnp.float32)
        return layer_norm(x, scale, shift, self.eps)


class GELU(nn.Module):
    """`gelu` as a module, for use in a list of layers."""

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Apply `gelu` to every value."""
        return gelu(x)


class FeedForward(ConfiguredModule):
    """Linear from D to 4 D (`layers.0`), GELU (`layers.1`), linear back to D (`layers.2`)."""

    def setup(self) -> None:
        d = self.cfg.emb_dim
        self.layers = Sequential((Linear(d, 4 * d), GELU(), Linear(4 * d, d)))

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """Apply the layers in order, to each position separately."""
        return self.layers(x)
