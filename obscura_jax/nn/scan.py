"""A model's blocks as one block in a loop: a program that does not grow with their number.

The course's tree has a branch `trf_blocks.N` for each block. Stacked, `trf_blocks` is the branch of
one block whose arrays have a first axis more, over the blocks. It exists in memory only.
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
    """`tree` with the blocks of each parameter tree in it stacked, such as an optimizer's."""

    def stack(*leaves: Any) -> Any:
        if isinstance(leaves[0], jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct((len(leaves), *leaves[0].shape), leaves[0].dtype)
        return (np if isinstance(leaves[0], np.ndarray) else jnp).stack(leaves)

    def of_params(params: dict[str, Any]) -> dict[str, Any]:
        blocks = [params[_BLOCKS][str(n)] for n in range(len(params[_BLOCKS]))]
        return {**params, _BLOCKS: jax.tree.map(stack, *blocks)}

    return _in_params(of_params, tree)


def unstack_blocks(tree: Any) -> Any:
    """The inverse of `stack_blocks`: the course's tree."""

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
    """Return `GPTModel.hidden_states` for a tree of either kind, with dropout if there is a key.

    Both kinds drop the same values.
    """
    how: dict[str, Any] = {"deterministic": key is None}
    rngs: Any = {} if key is None else {"rngs": {"dropout": key}}
    if "0" in params[_BLOCKS]:
        method = "hidden_states"
        how |= {"remat": remat, **rngs}
        out: Any = model.apply({"params": params}, ids, method=method, **how)
        return out
    if key is not None:  # as in GPTModel.hidden_states
        made: Any = model.apply({}, method=lambda model: model.make_rng("dropout"), **rngs)
        key = made
    blocks = params[_BLOCKS]
    numbers = jnp.arange(len(jax.tree.leaves(blocks)[0]))

    def run(x: Array, block: tuple[Any, Array]) -> tuple[Array, None]:
        weights, number = block
        block_of = TransformerBlock(model.cfg)
        y: Any = block_of.apply({"params": weights}, x, key=fold_key(key, number), **how)
        return y, None

    if remat is not None:
        run = jax.checkpoint(run, policy=REMAT_POLICIES[remat], prevent_cse=False)
    first = fold_key(key, len(numbers))
    x: Any = model.apply({"params": params}, ids, method="embeddings", key=first, **how)
    x, _ = lax.scan(run, x, (blocks, numbers))
    return x


def _in_params(change: Callable[[dict[str, Any]], Any], tree: Any) -> Any:
    """`tree` with each parameter tree in it changed."""

    def is_params(part: Any) -> bool:
        return isinstance(part, dict) and _BLOCKS in part

    return jax.tree.map(lambda x: change(x) if is_params(x) else x, tree, is_leaf=is_params)
