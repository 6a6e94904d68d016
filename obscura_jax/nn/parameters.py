"""Shapes, names, count and size of a model's parameters, without allocating them."""

import math
from typing import Any

import jax

from obscura_jax.config import GPTConfig
from obscura_jax.nn.model import GPTModel


def init_shapes(cfg: GPTConfig) -> dict[str, Any]:
    """Return the parameter tree of `GPTModel(cfg)` with a `jax.ShapeDtypeStruct` for each array."""
    variables = jax.eval_shape(lambda: GPTModel(cfg).init(jax.random.key(0), [[0]]))
    return dict(variables["params"])


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by their dotted paths, such as trf_blocks.0.norm1.scale."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def count_parameters(params: Any, *, weight_tying: bool = False) -> int:
    """Return the number of parameters; with `weight_tying`, the output head is not counted.

    `params` is a parameter tree, or the `{"params": tree}` that `init` returns. Its leaves may be
    arrays or shapes from `jax.eval_shape`, which need no memory for a large model.
    """

    def is_counted(path: tuple[Any, ...]) -> bool:
        names = [jax.tree_util.keystr((part,), simple=True) for part in path[:2]]
        of_the_head = "out_head" in names[:1] or names == ["params", "out_head"]
        return not (weight_tying and of_the_head)

    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(math.prod(leaf.shape) for path, leaf in leaves if is_counted(path))


def parameter_bytes(params: Any) -> int:
    """Return the size of `params` in bytes; 163,009,536 float32 parameters take 621.83 MiB."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
