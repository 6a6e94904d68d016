"""Names and shapes: tensors as a file has them <-> a config and a parameter tree.

A conversion is total. Every tensor of the source is used once, every leaf of the tree is filled
once, and every shape is the one that the model itself declares.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from numpy.typing import NDArray

from obscura_jax.config import GPT_CONFIG_124M, GPTConfig
from obscura_jax.nn.model import GPTModel

Tensors = Mapping[str, NDArray[Any]]
_MASK = "trf_blocks.{}.att.mask"


@dataclass(frozen=True)
class Converted:
    """What one tensor of the source became: a row of the audit.

    Attributes:
        source: its name in the source.
        target: the leaf it fills, or "-" for a buffer that is checked and dropped.
        note: what was done to it.
        shape: its shape in the source.
        dtype: its type in the source.
    """

    source: str
    target: str
    note: str
    shape: tuple[int, ...]
    dtype: str


def parameter_shapes(cfg: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of `GPTModel(cfg)` under its dotted name; allocates nothing."""
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    variables = jax.eval_shape(GPTModel(cfg).init, jax.random.key(0), ids)
    return {name: leaf.shape for name, leaf in flatten_dict(variables["params"], sep=".").items()}


def infer_config(tensors: Tensors, known: Mapping[str, Any]) -> GPTConfig:
    """The config of a course state dict: sizes from the shapes, the rest from `known`.

    A drop rate that `known` lacks is the course's, 0.1; nothing but training looks at it.

    Args:
        tensors: the state dict.
        known: config entries from elsewhere (a file's own config, the command line); they must agree with the shapes.

    Raises:
        ValueError: when the tensors are not a course model, when `known` contradicts them, or when
            `n_heads` is not in `known`: no shape depends on it.
    """
    for name in ("tok_emb.weight", "pos_emb.weight"):
        if name not in tensors:
            raise ValueError(f"not a course checkpoint: it has no {name}")
        if tensors[name].ndim != 2 or 0 in tensors[name].shape:
            raise ValueError(f"{name} must be a matrix, got shape {tensors[name].shape}")
    vocab_size, emb_dim = tensors["tok_emb.weight"].shape
    blocks = {int(m[1]) for name in tensors if (m := re.match(r"trf_blocks\.(\d+)\.", name))}
    if gaps := set(range(len(blocks))) - blocks:
        raise ValueError(f"missing tensors: there are {len(blocks)} blocks, and no {min(gaps)}")
    found: dict[str, Any] = {
        "vocab_size": vocab_size,
        "context_length": tensors["pos_emb.weight"].shape[0],
        "emb_dim": emb_dim,
        "n_layers": len(blocks),
        "qkv_bias": "trf_blocks.0.att.W_query.bias" in tensors,
        "tie_weights": "out_head.weight" not in tensors,
    }
    for name, value in found.items():
        if known.get(name, value) != value:
            raise ValueError(f"the config says {name}={known[name]}, the tensors say {value}")
    if "n_heads" not in known:
        raise ValueError(
            f"the number of heads cannot be read off the tensors: give n_heads (--n-heads), "
            f"a divisor of emb_dim={emb_dim}; GPT-2 has heads of width 64, here {emb_dim / 64:g}"
        )
    return GPTConfig.of({"drop_rate": GPT_CONFIG_124M["drop_rate"], **known, **found})


def from_course(tensors: Tensors, cfg: GPTConfig) -> tuple[dict[str, Any], list[Converted]]:
    """A parameter tree of `GPTModel(cfg)` from a course state dict, and the audit of how.

    Values are kept as they are in float32, widened from float16 and bfloat16, rounded from float64.
    The causal mask of each block is checked and dropped.

    Raises:
        ValueError: naming missing or unexpected tensors, or the tensor of a wrong shape or type.
    """
    shapes = parameter_shapes(cfg)
    masks = {_MASK.format(n) for n in range(cfg.n_layers)}
    if missing := shapes.keys() - tensors.keys():
        raise ValueError(f"missing tensors: {_some(missing)}")
    if unexpected := tensors.keys() - shapes.keys() - masks:
        raise ValueError(f"unexpected tensors: {_some(unexpected)}")
    flat: dict[str, jax.Array] = {}
    audit: list[Converted] = []
    for name, tensor in tensors.items():
        target, note = name, "as it is"
        if name in masks:
            _check_mask(name, tensor, cfg.context_length)
            target, note = "-", "causal mask: checked, dropped"
        else:
            if tensor.shape != shapes[name]:
                raise ValueError(f"{name} has shape {tensor.shape}, the model needs {shapes[name]}")
            if not jnp.issubdtype(tensor.dtype, jnp.floating):
                raise ValueError(f"{name} has type {tensor.dtype}, not a floating-point type")
            if tensor.dtype != np.float32:
                wider = jnp.finfo(tensor.dtype).bits > 32
                note = "rounded to float32" if wider else "widened to float32"
            flat[name] = jnp.asarray(tensor, jnp.float32)
        audit.append(Converted(name, target, note, tensor.shape, str(tensor.dtype)))
    return unflatten_dict(flat, sep="."), audit


def to_course(cfg: GPTConfig, params: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The course's state dict for `params`, its mask buffers and output head included.

    Raises:
        ValueError: when `params` is not a parameter tree of `GPTModel(cfg)`.
    """
    tensors = named_tensors(cfg, params)
    if cfg.tie_weights:  # the course's model always has a head of its own
        tensors["out_head.weight"] = tensors["tok_emb.weight"]
    future = np.triu(np.ones((cfg.context_length, cfg.context_length), np.float32), k=1)
    return tensors | {_MASK.format(n): future for n in range(cfg.n_layers)}


def named_tensors(cfg: GPTConfig, params: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """`params` as host arrays under their dotted names, checked to be all that `GPTModel(cfg)` has."""
    tensors = {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep=".").items()}
    shapes = parameter_shapes(cfg)
    if wrong := shapes.keys() ^ tensors.keys():
        raise ValueError(f"the parameters do not fit the config: {_some(wrong)}")
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{name} has shape {tensors[name].shape}, the model needs {shape}")
    return {name: tensors[name] for name in shapes}


def _check_mask(name: str, mask: NDArray[Any], context_length: int) -> None:
    if mask.shape != (context_length, context_length):
        raise ValueError(f"{name} has shape {mask.shape}, not the context's {context_length} twice")
    if not np.array_equal(mask.astype(bool), np.triu(np.ones_like(mask, bool), k=1)):
        raise ValueError(f"{name} is not the causal mask (ones above the diagonal)")


def _some(names: Iterable[str]) -> str:
    first, *rest = sorted(names)
    return f"{first} and {len(rest)} more" if rest else first
