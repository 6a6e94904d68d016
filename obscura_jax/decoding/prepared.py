"""Weights laid out for inference, once: cast, and transposed or quantized."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from obscura_jax.decoding.layout_choice import transposed_is_faster
from obscura_jax.nn.dtypes import cast_params
from obscura_jax.nn.target import on_one_cpu
from obscura_jax.nn.weights import Int8Weight, Transposed

WeightForm = Literal["auto", "as-given", "transposed", "int8"]


def prepare_params(
    params: Any, dtype: DTypeLike | None = None, weights: WeightForm = "auto"
) -> dict[str, Any]:
    """Return the parameters of a `GPTModel` in the form in which inference reads them fastest.

    Args:
        params: the parameters, as they are trained and saved.
        dtype: type to compute in, as for `nn.dtypes.cast_params`.
        weights: "as-given" casts only. "transposed" stores the float32 weights of the blocks
            (in, out), and "auto" does so on a CPU that multiplies batches faster by them; see
            `layout_choice`. "int8" rounds the weights of each output to 8 bits with one scale;
            biases, norms and position embeddings keep their type.

    Raises:
        ValueError: for an unknown form or type, and for weights that are NaN or infinite if they
            are to be rounded.
    """
    if weights not in get_args(WeightForm):
        known = ", ".join(map(repr, get_args(WeightForm)))
        raise ValueError(f"weights must be one of {known}; got {weights!r}")
    params = cast_params(params, dtype)
    if weights == "int8":
        rounded = _map_weights({**params, "pos_emb": {}}, _quantized)
        return {**rounded, "pos_emb": params["pos_emb"]}
    if weights == "transposed" or (weights == "auto" and on_one_cpu() and _gains(params)):
        return {**params, "trf_blocks": _map_weights(params["trf_blocks"], _transposed)}
    return dict(params)


def _gains(params: Any) -> bool:
    """Return whether batches gain from transposed weights of the blocks."""
    weights = [leaf for leaf in jax.tree.leaves(params["trf_blocks"]) if leaf.ndim == 2]
    return all(x.dtype == jnp.float32 for x in weights) and transposed_is_faster(weights)


def _map_weights(
    params: Any, form: Callable[[str, Array], dict[str, Array]], path: str = ""
) -> dict[str, Any]:
    """Return the tree with `form(path, weight)` in place of each weight."""
    tree: dict[str, Any] = {}
    for name, part in params.items():
        here = f"{path}.{name}" if path else name
        if isinstance(part, Mapping):
            tree[name] = _map_weights(part, form, here)
        elif name == "weight":
            tree |= form(here, part)
        else:
            tree[name] = part
    return tree


def _transposed(_: str, weight: Float[Array, "d_out d_in"]) -> dict[str, Array]:
    if weight.dtype != jnp.float32:
        return {"weight": weight}
    return Transposed(_transpose(weight))._asdict()


def _quantized(path: str, weight: Float[Array, "d_out d_in"]) -> dict[str, Array]:
    form, finite = quantize(weight)
    if not finite:
        raise ValueError(
            f"{path} has weights that are NaN or infinite, which have no 8-bit form; "
            "leave weights='int8' (--weights int8) out"
        )
    return form._asdict()


def widened(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with the float32 weights that 8-bit ones represent, as NumPy arrays."""
    if set(Int8Weight._fields) <= set(params):
        scale = np.asarray(params["scale"], np.float32)
        weight = np.asarray(params["quantized"], np.float32) * scale[:, None]
        rest = {name: x for name, x in params.items() if name not in Int8Weight._fields}
        return {"weight": weight, **rest}
    return {name: widened(x) if isinstance(x, Mapping) else x for name, x in params.items()}


@jax.jit
def _transpose(weight: Array) -> Array:
    return weight.T


@jax.jit
def quantize(weight: Float[Array, "d_out d_in"]) -> tuple[Int8Weight, Array]:
    """Return a weight rounded to 8 bits, and whether all of its entries are finite.

    The scale of an output is its largest weight divided by 127, or 1 if all of them are 0. It has
    the type of the weight.
    """
    wide = weight.astype(jnp.float32)
    largest = jnp.abs(wide).max(axis=1)
    scale = jnp.where(largest > 0, largest / 127, 1).astype(weight.dtype)
    rounded = jnp.round(wide / scale.astype(jnp.float32)[:, None])
    quantized = jnp.clip(rounded, -127, 127).astype(jnp.int8)
    return Int8Weight(quantized, scale), jnp.isfinite(wide).all()
