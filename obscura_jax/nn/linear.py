"""The only module that multiplies activations by weight matrices."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from obscura_jax.checks import check_sizes
from obscura_jax.nn.target import on_one_cpu
from obscura_jax.nn.weights import Int8Weight, Transposed, Weight, outputs, weight_of


def check_floating(x: Array) -> None:
    """Raise ValueError for integers: casting the result back to their type would truncate it."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"the input must be of a floating-point type, got {x.dtype}")


def at_least_float32(dtype: DTypeLike) -> np.dtype:
    """Return the type of sums of `dtype`: float32 or wider.

    It is `jnp.promote_types(dtype, jnp.float32)`, which refuses 16-bit types where implicit
    promotion is forbidden (`jax_numpy_dtype_promotion=strict`).
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(dtype, jnp.float32)


def linear(
    x: Float[Array, "*batch d_in"],
    weight: Weight,
    bias: Float[Array, " d_out"] | None = None,
    *,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*batch d_out"]:
    """Return `x @ weight.T + bias`, with the weight (out, in) as in torch, or a stored form of it.

    Products are summed in at least float32. The result has type `dtype`, by default the type of
    `x`, which must be a floating-point type (ValueError).
    """
    check_floating(x)
    *batch, width = x.shape
    # With one batch axis the weight's gradient is a plain matrix product, which is 1.2x faster.
    rows = x.reshape(-1, width)
    count = rows.shape[0]  # symbolic in exported programs
    one_row = isinstance(count, int) and count == 1
    several_rows = isinstance(count, int) and count > 1
    y = _product(rows, weight, one_row)
    if on_one_cpu() and not several_rows:
        # Without this barrier XLA:CPU fuses the product of a single row with what follows, such as
        # the bias, into a scalar loop that reads only 2.6 GB/s.
        y = lax.optimization_barrier(y)
    if isinstance(weight, Int8Weight):
        y *= weight.scale[None].astype(y.dtype)
    if bias is not None:
        y += jnp.broadcast_to(bias, y.shape).astype(y.dtype)
    return y.astype(dtype or x.dtype).reshape(*batch, outputs(weight))


def _product(rows: Float[Array, "n d_in"], weight: Weight, one_row: bool) -> Array:
    """Return `rows @ weight.T` in at least float32, in the form that the target favors."""
    if isinstance(weight, Transposed):
        return _dot(rows, weight.transposed, 1, 0)
    if isinstance(weight, Int8Weight):
        wide = rows.astype(at_least_float32(rows.dtype))
        return _dot(wide, weight.quantized.T.astype(wide.dtype), 1, 0)
    if on_one_cpu() and one_row and rows.dtype == weight.dtype == jnp.bfloat16:
        if jax.__version_info__ >= (0, 11):
            # Newer versions convert the weight first, unless there are two rows: 16 ms instead of
            # 67 for all products of one token in the 124M model with jax 0.12.
            return _half_precision_matmul(jnp.repeat(rows, 2, axis=0), weight)[:1]
        # The only form in which XLA:CPU does not first convert the weight to float32: 7 ms instead
        # of 48 ms for all products of one token in the 124M model with jax 0.10.
        return _dot(rows, weight.T, 1, 0)
    if rows.dtype == weight.dtype and rows.dtype.itemsize < 4:
        return _half_precision_matmul(rows, weight)
    return _dot(rows, weight, 1, 1)


def _dot(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    """Multiply two matrices, summing over `axis_a` and `axis_b` in at least float32."""
    summed_axes = (((axis_a,), (axis_b,)), ((), ()))
    return lax.dot_general(a, b, summed_axes, preferred_element_type=at_least_float32(a.dtype))


@jax.custom_vjp
def _half_precision_matmul(x: Array, weight: Array) -> Array:
    """Return `x @ weight.T` of 16-bit numbers in float32, with 16-bit products as gradients.

    JAX's default gradient multiplies a float32 cotangent by 16-bit numbers, which XLA widens first.
    This rule makes a training step of the 124M model 1.9x faster, at the cost of forward-mode
    differentiation for 16-bit inputs.
    """
    return _dot(x, weight, 1, 1)


def _half_precision_fwd(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return _dot(x, weight, 1, 1), (x, weight)


def _half_precision_bwd(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, weight = saved
    gradient = gradient.astype(x.dtype)
    columns = gradient.T
    if on_one_cpu():  # without this layout XLA:CPU widens the operands, which is 2.2x slower
        columns = with_layout_constraint(columns, Layout((0, 1)))
    return (
        _dot(gradient, weight, 1, 0).astype(x.dtype),
        _dot(columns, x, 1, 0).astype(weight.dtype),
    )


_half_precision_matmul.defvjp(_half_precision_fwd, _half_precision_bwd)


def uniform_fan_in(
    key: Array, shape: tuple[int, ...], fan_in: int, dtype: DTypeLike = jnp.float32
) -> Array:
    """Draw from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as torch.nn.Linear does for weight and bias."""
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)


class Linear(nn.Module):
    """`torch.nn.Linear(in_features, out_features, bias)`: `weight` (out, in) and `bias` (out,)."""

    in_features: int
    out_features: int
    use_bias: bool = True

    def __post_init__(self) -> None:
        check_sizes(self, "in_features", "out_features")
        super().__post_init__()

    def setup(self) -> None:
        shape = (self.out_features, self.in_features)
        self.weight = weight_of(self, uniform_fan_in, shape, self.in_features)
        if self.use_bias:
            self.bias = self.param("bias", uniform_fan_in, shape[:1], self.in_features)

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        """Map the last axis from `in_features` to `out_features`."""
        return linear(x, self.weight, self.bias if self.use_bias else None)
