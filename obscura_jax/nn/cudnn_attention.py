"""Causal attention with cuDNN's kernel, which stores no scores, and the choice to use it.

Axes: T positions, H heads, K width of a head.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from obscura_jax.nn.target import current_target, on_one_gpu


def use_cudnn(queries: Float[Array, "*batch h t k"], *, drops: bool = False) -> bool:
    """Return whether causal attention for these queries runs in cuDNN, by the target's choice.

    "auto" uses cuDNN for 16-bit queries on one CUDA device of this computer that supports it, if no
    attention weight is dropped. A program that is compiled for a CUDA device that is not present
    uses the reference, because JAX asks cuDNN for its version while tracing.

    Args:
        queries: the queries of all heads.
        drops: whether attention weights are dropped, which cuDNN cannot do as the reference does.

    Raises:
        ValueError: if the choice is "cudnn", and cuDNN cannot compute this attention.
    """
    target = current_target()
    if target.attention == "reference":
        return False
    if target.attention == "auto":
        return _reason_against(queries, drops) is None and on_one_gpu() and _is_supported(queries)
    if reason := _reason_against(queries, drops):
        raise ValueError(f'attention="cudnn" {reason}')
    return True


def cudnn_attention(
    queries: Float[Array, "*batch h t k"],
    keys: Float[Array, "*batch h t k"],
    values: Float[Array, "*batch h t k"],
) -> Float[Array, "*batch h t k"]:
    """Return causal attention, computed by cuDNN; position t attends to positions 0..t."""

    def heads_last(x: Array) -> Array:
        return jnp.swapaxes(x.reshape(-1, *x.shape[-3:]), 1, 2)

    context = jax.nn.dot_product_attention(
        *map(heads_last, (queries, keys, values)), is_causal=True, implementation="cudnn"
    )
    return jnp.swapaxes(context, 1, 2).reshape(queries.shape)


def _reason_against(queries: Array, drops: bool) -> str | None:
    """Return why cuDNN cannot compute this attention, and what to do; None if it can."""
    platform = current_target().platform
    if platform != "cuda":
        return f'needs a CUDA device, but this program is for {platform}; use "auto"'
    if queries.dtype.itemsize != 2:
        return (
            f"needs 16-bit numbers, but the queries are {queries.dtype}; "
            'compute in bfloat16 (--dtype bfloat16), or use "auto"'
        )
    if drops:
        return 'cannot drop attention weights; set drop_rate to 0, or use "auto"'
    return None


def _is_supported(queries: Array) -> bool:
    """Return whether the local device can run cuDNN's kernel for heads of this width."""
    if jax.default_backend() != "gpu" or not all(isinstance(n, int) for n in queries.shape):
        return False
    version = tuple(map(int, jax.local_devices()[0].compute_capability.split(".")))
    width = queries.shape[-1]
    return version >= (8, 0) and width % 8 == 0 and width <= 128
