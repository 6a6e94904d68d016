"""Checks of token ids and positions before they index a table."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike


def validate_token_ids(
    ids: ArrayLike, size: int, *, name: str = "token id", table: str = "vocabulary"
) -> Array:
    """Return `ids` as an int32 array; ValueError unless they are integers in [0, size).

    Concrete ids are checked before JAX narrows 64-bit ones. Traced ids keep their type, and their
    range is unknown: inside jit the caller must check it. In error messages an id is called `name`
    and the range of ids `table`.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(ids)):
        ids = jnp.asarray(ids)
    elif not isinstance(ids, jax.Array):
        ids = np.asarray(ids)
        ids = ids if ids.size else ids.astype(np.int32)  # NumPy makes [] float64
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"{name}s must be integers, got {ids.dtype}")
    if isinstance(ids, jax.core.Tracer):
        return ids
    values = np.asarray(ids)
    low, high = values.min(initial=0), values.max(initial=0)
    if low < 0 or high >= size:
        wrong = low if low < 0 else high
        raise ValueError(f"{name} {wrong} is outside the {table}, 0..{size - 1}")
    return jnp.asarray(ids, jnp.int32)


def validate_sequences(ids: ArrayLike, vocab_size: int) -> Array:
    """Return `ids`, (..., T), as int32; check them as `validate_token_ids` does.

    Raises:
        ValueError: also for a single number, and for no ids at all.
    """
    ids = validate_token_ids(ids, vocab_size)
    if ids.ndim == 0:
        raise ValueError("token ids must be a sequence, got a single number")
    if ids.size == 0:
        raise ValueError(f"the prompt is empty: token ids have shape {ids.shape}")
    return ids
