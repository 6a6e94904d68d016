"""The logit lens: what the model would say if it ended after a block (nostalgebraist 2020)."""

from typing import Any

from jaxtyping import Array, Float

from obscura_jax.nn.model import GPTModel


def logit_lens(
    model: GPTModel, params: Any, residual: Float[Array, "*batch t d"]
) -> Float[Array, "*batch t v"]:
    """Return the logits that the final layer norm and the output head make of a residual stream.

    For the stream after the last block these are the model's own logits; for the stream after an
    earlier block, those of the same model without the later blocks.
    """
    dtype = params["final_norm"]["scale"].dtype
    logits: Any = model.apply({"params": params}, residual.astype(dtype), method="output_head")
    return logits
