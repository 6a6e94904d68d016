"""The forms in which a weight matrix is stored: as in torch, transposed, or in 8 bits.

Every weight (V, D) or (out, in) of the model is a plain array, as it is trained and saved, or one
of the forms below, which `decoding.prepared` makes for inference. `nn.linear.linear` multiplies by
each of them, and `nn.layers.embed` reads rows of those that are not transposed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float, Int8


class Transposed(NamedTuple):
    """A weight stored (in, out). XLA:CPU multiplies several rows by it without packing it first."""

    transposed: Float[Array, "d_in d_out"]


class Int8Weight(NamedTuple):
    """A weight of 8 bits: `quantized * scale[:, None]`, with one scale per output."""

    quantized: Int8[Array, "d_out d_in"]
    scale: Float[Array, " d_out"]


Weight = Float[Array, "d_out d_in"] | Transposed | Int8Weight


def weight_of(module: nn.Module, init: Callable[..., Array], *shape_and_more: Any) -> Weight:
    """Return the weight of a module: its parameter `weight`, or the form that is stored instead.

    A prepared tree has the fields of the form in place of `weight`. The parameter is drawn by
    `init(key, *shape_and_more)`.
    """
    for form in (Transposed, Int8Weight):
        if all(module.has_variable("params", name) for name in form._fields):
            fields: list[Any] = [module.get_variable("params", name) for name in form._fields]
            return form(*fields)
    drawn: Array = module.param("weight", init, *shape_and_more)
    return drawn


def outputs(weight: Weight) -> int:
    """Return the number of outputs (rows) of a weight."""
    if isinstance(weight, Transposed):
        return weight.transposed.shape[1]
    return len(weight.quantized if isinstance(weight, Int8Weight) else weight)
