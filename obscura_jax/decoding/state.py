"""The values that the programs of generation work on: a request, and the state it leads to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from obscura_jax.decoding.cache import NO_CACHE, KVCache
from obscura_jax.decoding.sampling import SamplingArrays


class Request(NamedTuple):
    """The request, one entry per row. All fields are traced: no value triggers recompilation.

    Attributes:
        lengths: (B,), number of tokens in each prompt.
        sampling: sampling settings of each row.
        keys: (B,), one typed key per row; the token at position p is sampled with fold_in(key, p).
        stop_ids: (B, S), the ids that end a row, padded with -1.
    """

    lengths: Int[Array, " b"]
    sampling: SamplingArrays
    keys: Key[Array, " b"]
    stop_ids: Int[Array, "b s"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """The state of generation. Each program takes a state and returns the next one.

    Attributes:
        count: number of tokens sampled so far in every row.
        tokens: (B, N), sampled tokens; entries at or after `n_kept` in a row are undefined.
        logprobs: (B, N), their log-probabilities under the model, before sampling settings.
        n_kept: (B,), number of tokens that belong to the output: a row ends before its stop id.
        done: (B,), True where the row has sampled a stop id.
        nonfinite: True once the model has returned NaN or infinite logits.
        cache: keys and values of the prompts and of all sampled tokens except the last.
    """

    count: Int[Array, ""]
    tokens: Int[Array, "b n"]
    logprobs: Float[Array, "b n"]
    n_kept: Int[Array, " b"]
    done: Bool[Array, " b"]
    nonfinite: Bool[Array, ""]
    cache: KVCache


def initial_state(
    rows: Any, capacity: Any, cache: KVCache = NO_CACHE, make: Callable[..., Any] = jnp.zeros
) -> State:
    """Return the state before the first token, with room for `capacity` tokens per row.

    Each array is `make(shape, dtype)`: `jnp.zeros`, `np.zeros`, or `jax.ShapeDtypeStruct`.
    """
    return State(
        count=make((), np.int32),
        tokens=make((rows, capacity), np.int32),
        logprobs=make((rows, capacity), np.float32),
        n_kept=make((rows,), np.int32),
        done=make((rows,), bool),
        nonfinite=make((), bool),
        cache=cache,
    )


def check_finite(nonfinite: Any) -> None:
    """Raise ValueError if `nonfinite`, the flag of a `State`, is True."""
    if nonfinite:
        raise ValueError("the model's logits are NaN or infinite; its weights are damaged")
