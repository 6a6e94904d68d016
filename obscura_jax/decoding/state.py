"""The values that the programs of generation work on: a request, and the state it leads to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from obscura_jax.decoding.alternatives import Alternatives
from obscura_jax.decoding.cache import NO_CACHE, KVCache
from obscura_jax.decoding.controls import ControlArrays
from obscura_jax.decoding.sampling import SamplingArrays


class Request(NamedTuple):
    """The request, one entry per row. All fields are traced: no value triggers recompilation.

    Attributes:
        lengths: (B,), number of tokens in each prompt.
        sampling: sampling settings of each row.
        keys: (B,), one typed key per row; the token at position p is sampled with fold_in(key, p).
        stop_ids: (B, S), the ids that end a row, padded with -1.
        controls: controls of each row; None in exported programs, which have none.
    """

    lengths: Int[Array, " b"]
    sampling: SamplingArrays
    keys: Key[Array, " b"]
    stop_ids: Int[Array, "b s"]
    controls: ControlArrays | None = None


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
        prompts: (B, T), the ids of the prompts, padded on the right; T is the number of slots of
            the cache. None without a cache, and in exported programs.
        alternatives: the most probable tokens at the positions of `tokens`; None if no row asks.
    """

    count: Int[Array, ""]
    tokens: Int[Array, "b n"]
    logprobs: Float[Array, "b n"]
    n_kept: Int[Array, " b"]
    done: Bool[Array, " b"]
    nonfinite: Bool[Array, ""]
    cache: KVCache
    prompts: Int[Array, "b t"] | None = None
    alternatives: Alternatives | None = None


def initial_state(
    rows: Any,
    capacity: Any,
    cache: KVCache = NO_CACHE,
    make: Callable[..., Any] = jnp.zeros,
    *,
    n_alternatives: int = 0,
) -> State:
    """Return the state before the first token, with room for `capacity` tokens per row.

    It has room for the `n_alternatives` most probable tokens at each position as well. Each array
    is `make(shape, dtype)`: `jnp.zeros`, `np.zeros`, or `jax.ShapeDtypeStruct`.
    """
    table = (rows, capacity, n_alternatives)
    kept = Alternatives(make(table, np.int32), make(table, np.float32)) if n_alternatives else None
    return State(
        count=make((), np.int32),
        tokens=make((rows, capacity), np.int32),
        logprobs=make((rows, capacity), np.float32),
        n_kept=make((rows,), np.int32),
        done=make((rows,), bool),
        nonfinite=make((), bool),
        cache=cache,
        alternatives=kept,
    )


def check_finite(nonfinite: Any) -> None:
    """Raise ValueError if `nonfinite`, the flag of a `State`, is True."""
    if nonfinite:
        raise ValueError("the model's logits are NaN or infinite; its weights are damaged")
