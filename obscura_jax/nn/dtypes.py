"""The number types that a model can compute in."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def cast_params(params: Any, dtype: DTypeLike | None) -> Any:
    """Return `params` as JAX arrays of type `dtype`, or of their own types if it is None.

    Raises:
        ValueError: unless `dtype` is None, bfloat16, float16, float32 or, under x64, float64.
    """
    known = ["bfloat16", "float16", "float32", *["float64"] * jax.config.read("jax_enable_x64")]
    try:
        accepted = dtype is None or jnp.dtype(dtype).name in known
    except TypeError:
        accepted = False
    if not accepted:
        raise ValueError(f"dtype must be one of {', '.join(known)}, got {dtype!r}")
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)


def compute_dtype(params: Any) -> jnp.dtype:
    """Return the type that a model with these parameters computes in: that of its norms."""
    norms = params["final_norm"]
    dtype: jnp.dtype = norms["scale"].dtype
    return dtype
