"""Run the transformer blocks with `lax.scan`, so that program size does not depend on depth.

The course's tree has a branch `trf_blocks.N` for each block. In a stacked tree, `trf_blocks` is the
branch of a single block, and each of its arrays has an additional first axis over the blocks.
Stacked trees exist in memory only; files always contain the course's tree.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from obscura_jax.nn.layers import fold_key
from obscura_jax.nn.model import REMAT_POLICIES, GPTModel, RematPolicy, TransformerBlock

_BLOCKS = "trf_blocks"


def stack_blocks(tree: Any) -> Any:
    """Stack the blocks of every parameter tree in `tree`, such as those of an optimizer state.

    Leaves may be JAX arrays, NumPy arrays or `jax.ShapeDtypeStruct`s; their kind is kept.
    """

    def stack(*leaves: Any) -> Any:
        if isinstance(leaves[0], jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct((len(leaves), *leaves[0].shape), leaves[0].dtype)
        return (np if isinstance(leaves[0], np.ndarray) else jnp).stack(leaves)

    def of_params(params: dict[str, Any]) -> dict[str, Any]:
        blocks = [params[_BLOCKS][str(n)] for n in range(len(params[_BLOCKS]))]
        return {**params, _BLOCKS: jax.tree.map(stack, *blocks)}

    return _in_params(of_params, tree)


def unstack_blocks(tree: Any) -> Any:
    """Return the course's tree: the inverse of `stack_blocks`."""

    def of_params(params: dict[str, Any]) -> dict[str, Any]:
        count = len(jax.tree.leaves(params[_BLOCKS])[0])
        blocks = {
            str(n): jax.tree.map(lambda leaf, n=n: leaf[n], params[_BLOCKS]) for n in range(count)
        }
        return {**params, _BLOCKS: blocks}

    return _in_params(of_params, tree)


def hidden_states(
    model: GPTModel,
    params: Any,
    ids: ArrayLike,
    *,
    key: Array | None = None,
    remat: RematPolicy | None = None,
) -> Float[Array, "*batch t d"]:
    """Return `GPTModel.hidden_states`, (..., T, D), for a plain or a stacked parameter tree.

    With a `key`, values are dropped, and the same ones for both kinds of trees. `remat` is as in
    `GPTModel.hidden_states`.
    """
    options: dict[str, Any] = {"deterministic": key is None}
    rngs: Any = {} if key is None else {"rngs": {"dropout": key}}
    if "0" in params[_BLOCKS]:
        options |= {"method": "hidden_states", "remat": remat, **rngs}
        out: Any = model.apply({"params": params}, ids, **options)
        return out
    if key is not None:  # the key that GPTModel.hidden_states draws
        drawn: Any = model.apply({}, method=lambda model: model.make_rng("dropout"), **rngs)
        key = drawn
    blocks = params[_BLOCKS]
    numbers = jnp.arange(len(jax.tree.leaves(blocks)[0]))

    def run(x: Array, block: tuple[Any, Array]) -> tuple[Array, None]:
        weights, number = block
        own_key = fold_key(key, number)
        y: Any = TransformerBlock(model.cfg).apply({"params": weights}, x, key=own_key, **options)
        return y, None

    if remat is not None:
        run = jax.checkpoint(run, policy=REMAT_POLICIES[remat], prevent_cse=False)
    first = fold_key(key, len(numbers))
    x: Any = model.apply({"params": params}, ids, method="embeddings", key=first, **options)
    x, _ = lax.scan(run, x, (blocks, numbers))
    return x


def _in_params(change: Callable[[dict[str, Any]], Any], tree: Any) -> Any:
    """Return `tree` with `change` applied to every parameter tree in it."""

    def is_params(part: Any) -> bool:
        return isinstance(part, dict) and _BLOCKS in part

    return jax.tree.map(lambda x: change(x) if is_params(x) else x, tree, is_leaf=is_params)
