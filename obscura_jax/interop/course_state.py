"""A parameter tree -> named tensors, and the course's state dict, in which PyTorch loads it."""

from collections.abc import Set
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from numpy.typing import NDArray

from obscura_jax.config import GPTConfig
from obscura_jax.interop.config_values import check_ln_eps
from obscura_jax.interop.name_tables import COURSE, summarize_names, to_dialect
from obscura_jax.nn.parameters import init_shapes, named_leaves

Shapes = dict[str, tuple[int, ...]]


def parameter_shapes(cfg: GPTConfig) -> Shapes:
    """Return the shape of every parameter of `GPTModel(cfg)` by dotted name; allocate nothing."""
    shapes: Shapes = {}
    for name, shape in _block_shapes(replace(cfg, n_layers=1)).items():
        blocks = range(cfg.n_layers) if name.startswith("trf_blocks.0.") else (0,)
        shapes |= {name.replace(".0.", f".{n}.", 1): shape for n in blocks}
    return shapes


@lru_cache(maxsize=16)
def _block_shapes(cfg: GPTConfig) -> Shapes:
    return {name: leaf.shape for name, leaf in flatten_dict(init_shapes(cfg), sep=".").items()}


def named_tensors(cfg: GPTConfig, params: Any) -> dict[str, NDArray[Any]]:
    """Return `params` as host arrays by dotted name.

    Raises:
        ValueError: if they are not the parameters of `GPTModel(cfg)`, naming missing or unexpected
            leaves, or a leaf of the wrong shape or type.
    """
    flat, shapes = named_leaves(params), parameter_shapes(cfg)
    check_names(shapes.keys(), flat.keys())
    tensors = {name: np.asarray(flat[name]) for name in shapes}
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise ValueError(f"{name} has shape {tensor.shape}, but the model needs {shapes[name]}")
        check_floating(name, tensor)
    return tensors


def to_course(cfg: GPTConfig, params: Any) -> dict[str, NDArray[Any]]:
    """Return the course's state dict for `params`, with its mask buffers and output head.

    Raises:
        ValueError: if `params` are not the parameters of `GPTModel(cfg)`, or if the course's layer
            norm, whose eps is fixed, would compute something else.
    """
    check_ln_eps("the course's", cfg)
    tensors = to_dialect(COURSE, cfg, named_tensors(cfg, params))
    future = np.triu(np.ones((cfg.context_length, cfg.context_length), np.float32), k=1)
    return tensors | {mask.format(n): future for mask in COURSE.masks for n in range(cfg.n_layers)}


def check_names(required: Set[str], given: Set[str], allowed: Set[str] | None = None) -> None:
    """Raise ValueError unless all `required` names are given, and only `allowed` ones, if any."""
    unexpected = given - (required if allowed is None else allowed)
    differences = {"missing": required - given, "unexpected": unexpected}
    if wrong := [
        f"{kind} tensors: {summarize_names(names)}" for kind, names in differences.items() if names
    ]:
        raise ValueError("; ".join(wrong))


def check_floating(name: str, tensor: NDArray[Any]) -> None:
    """Raise ValueError unless the tensor has a floating-point type."""
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise ValueError(f"{name} has type {tensor.dtype}; convert it to a floating-point type")
