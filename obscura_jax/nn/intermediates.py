"""Access to every named intermediate value of the real model, to read or to replace it.

Names are the course's, in forward order: `tok_emb`, `pos_emb`, `embeddings`, then for each block
`trf_blocks.N.` with `norm1`, `att.W_query`, `att.W_key`, `att.W_value` (B, T, D), `att.scores`
(unscaled, unmasked) and `att.weights` (B, H, T, T), `att.context` (heads merged), `att.out_proj`,
`residual` (the residual stream after attention), `norm2`, `ff.layers.0` to `2`, and `trf_blocks.N`
itself (its output); then `final_norm` and `logits`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
from jaxtyping import Array
from numpy.typing import ArrayLike

from obscura_jax.config import GPTConfig
from obscura_jax.nn import attention
from obscura_jax.nn.model import GPTModel

TapFn = Callable[[str, Array], Array]
# The modules and methods whose output is not named after the module.
VALUE_NAMES = {
    "drop_emb": "embeddings",
    "TransformerBlock.attention_sublayer": "residual",
    "GPTModel.output_head": "logits",
}
# Suffixes of the names in a block, in forward order.
_IN_BLOCK = (
    *(".norm1", ".att.W_query", ".att.W_key", ".att.W_value", ".att.scores", ".att.weights"),
    *(".att.context", ".att.out_proj", ".residual", ".norm2"),
    *(".ff.layers.0", ".ff.layers.1", ".ff.layers.2", ""),
)


def names(cfg: GPTConfig) -> list[str]:
    """Return the names of a model's intermediate values, in forward order."""
    blocks = [f"trf_blocks.{n}{part}" for n in range(cfg.n_layers) for part in _IN_BLOCK]
    return ["tok_emb", "pos_emb", "embeddings", *blocks, "final_norm", "logits"]


@contextmanager
def tapped(tap: TapFn) -> Iterator[None]:
    """Context manager: pass the output of every module, and the attention context, through `tap`.

    `tap(name, value)` returns the value to continue with. Attention scores and weights are not
    included. If a block runs alone, its names have no `trf_blocks.N.` prefix, and its own output is
    called `TransformerBlock`.
    """

    def intercept(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        module, kind = context.module, type(context.module).__name__
        if context.method_name == "__call__":
            *parent, own = module.path or (kind,)
        else:
            parent, own = [*module.path], f"{kind}.{context.method_name}"
        name = ".".join((*parent, VALUE_NAMES.get(own, own)))
        if name.endswith("att.out_proj"):
            args = (tap(f"{name.removesuffix('out_proj')}context", *args),)
        return tap(name, call(*args, **kwargs))

    with nn.intercept_methods(intercept):
        yield


def apply_tapped(model: GPTModel, params: Any, ids: ArrayLike, tap: TapFn) -> Array:
    """Return `model.apply({"params": params}, ids)`, passing each intermediate through `tap`.

    `tap(name, value)` returns the value to continue with: the same one, or another of its shape.
    """
    known = set(names(model.cfg))

    def attention_fn(block: int, queries: Array, keys: Array, values: Array) -> Array:
        """Apply `scaled_dot_product_attention` with a causal mask, step by step."""
        here = f"trf_blocks.{block}.att"
        scores = tap(f"{here}.scores", attention.attention_scores(queries, keys))
        masked = attention.mask_scores(scores, attention.causal_mask(scores.shape[-1]))
        weights = attention.attention_weights(masked, queries.shape[-1])
        return attention.context_vectors(tap(f"{here}.weights", weights), values)

    with tapped(lambda name, value: tap(name, value) if name in known else value):
        logits: Any = model.apply({"params": params}, ids, attention_fn=attention_fn)
    return logits
