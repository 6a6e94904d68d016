"""Parameters with one product for the queries, keys and values of a block, instead of three."""

from typing import Any

import jax.numpy as jnp

from obscura_jax.nn.weights import Transposed

_SEPARATE = ("W_query", "W_key", "W_value")


def fuse_qkv(params: Any) -> Any:
    """Return parameters in which `att.W_qkv` replaces the three projections of every block.

    Its weight (3 D, D) and its bias (3 D,), if the model has biases, are those of the queries, keys
    and values, in this order. `GPTModel` accepts both forms. Parameters that have this form already
    are returned as they are. The inverse is `split_qkv`.
    """

    def fuse(attention: dict[str, Any]) -> dict[str, Any]:
        if "W_qkv" in attention:
            return attention
        parts = [attention[name] for name in _SEPARATE]
        fused = {
            leaf: jnp.concatenate([part[leaf] for part in parts], axis=_outputs_axis(leaf))
            for leaf in parts[0]
        }
        return {**_without(attention, _SEPARATE), "W_qkv": fused}

    return _in_attention(fuse, params)


def split_qkv(params: Any) -> Any:
    """Return parameters with three projections per block: the inverse of `fuse_qkv`."""

    def split(attention: dict[str, Any]) -> dict[str, Any]:
        if "W_qkv" not in attention:
            return attention
        parts = {
            leaf: jnp.split(array, 3, axis=_outputs_axis(leaf))
            for leaf, array in attention["W_qkv"].items()
        }
        separate = {
            name: {leaf: arrays[number] for leaf, arrays in parts.items()}
            for number, name in enumerate(_SEPARATE)
        }
        return {**_without(attention, ("W_qkv",)), **separate}

    return _in_attention(split, params)


def _outputs_axis(leaf: str) -> int:
    """Return the axis of the outputs: weights are (out, in), or `nn.weights.Transposed`."""
    return 1 if leaf in Transposed._fields else 0


def _without(tree: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: part for name, part in tree.items() if name not in names}


def _in_attention(change: Any, params: Any) -> Any:
    """Return `params` with `change` applied to the attention of every block."""
    blocks = {
        number: {**block, "att": change(block["att"])}
        for number, block in params["trf_blocks"].items()
    }
    return {**params, "trf_blocks": blocks}
