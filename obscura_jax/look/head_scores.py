"""Scores that say what a head attends to: the mean weight that it gives to certain keys.

Each function takes attention weights (..., T, T) and returns (...). The score is the mean, over the
queries that have such a key, of the weight on all of those keys; NaN if no query has one. A query
whose id is negative is padding and does not count.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

Weights = Float[Array, "*heads t t"]
Ids = Integer[Array, " t"]


def previous_token_score(attention: Weights, ids: Ids) -> Float[Array, "*heads"]:
    """Return the mean weight on the token just before."""
    return _mean_weight(attention, ids, _offset(ids) == 1)


def first_token_score(attention: Weights, ids: Ids) -> Float[Array, "*heads"]:
    """Return the mean weight of later tokens on the first one, where a head can rest."""
    offset = _offset(ids)
    return _mean_weight(attention, ids, (offset > 0) & (_keys(ids) == 0))


def same_token_score(attention: Weights, ids: Ids) -> Float[Array, "*heads"]:
    """Return the mean weight on earlier occurrences of the same token."""
    return _mean_weight(attention, ids, _equal(ids, ids) & (_offset(ids) > 0))


def induction_score(attention: Weights, ids: Ids) -> Float[Array, "*heads"]:
    """Return the mean weight on tokens that followed an earlier occurrence of the same token.

    A head that copies how a sequence went on before attends there (Olsson et al. 2022, "In-context
    Learning and Induction Heads").
    """
    before = jnp.roll(ids, 1)  # the token before each key; the first key has none
    follows = _equal(ids, before) & (_keys(ids) > 0)
    return _mean_weight(attention, ids, follows & (_offset(ids) >= 0))


# In the order in which they are shown.
HEAD_SCORES: dict[str, Callable[[Weights, Ids], Array]] = {
    "previous token": previous_token_score,
    "first token": first_token_score,
    "same token": same_token_score,
    "induction": induction_score,
}


def _keys(ids: Ids) -> Integer[Array, "1 t"]:
    return jnp.arange(len(ids))[None]


def _offset(ids: Ids) -> Integer[Array, "t t"]:
    """Return how many positions each key (column) is before each query (row)."""
    return jnp.arange(len(ids))[:, None] - _keys(ids)


def _equal(queries: Ids, keys: Ids) -> Bool[Array, "t t"]:
    return queries[:, None] == keys[None]


def _mean_weight(
    attention: Weights, ids: Ids, chosen: Bool[Array, "t t"]
) -> Float[Array, "*heads"]:
    chosen = chosen & (ids >= 0)[:, None]
    on_chosen = jnp.where(jnp.broadcast_to(chosen, attention.shape), attention, 0).sum(axis=-1)
    has_one = chosen.any(axis=-1)
    total = jnp.where(jnp.broadcast_to(has_one, on_chosen.shape), on_chosen, 0).sum(axis=-1)
    return total / has_one.sum()
