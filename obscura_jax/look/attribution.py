"""Direct logit attribution: how much each part of the model adds to a logit by itself.

The residual stream is a sum, and with the standard deviation of the final layer norm held fixed the
way from it to a logit is linear. So a logit is a sum too, of one number per part (Elhage et al.
2021, "A Mathematical Framework for Transformer Circuits").
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from obscura_jax.look.activations import Activations
from obscura_jax.nn.attention import split_heads
from obscura_jax.nn.linear import at_least_float32
from obscura_jax.nn.model import GPTModel


class Attribution(NamedTuple):
    """The parts of one logit per position. All of them sum to `logit`.

    Attributes:
        embeddings: what the token and position embeddings add.
        heads: what each attention head adds, without the bias of its block.
        attention_bias: what the bias of each block's `out_proj` adds.
        feed_forward: what each block's feed-forward layers add.
        final_norm: what the shift of the final layer norm adds.
        logit: the sum, which is the model's logit up to rounding.
    """

    embeddings: Float[Array, " t"]
    heads: Float[Array, "l h t"]
    attention_bias: Float[Array, "l t"]
    feed_forward: Float[Array, "l t"]
    final_norm: Float[Array, " t"]
    logit: Float[Array, " t"]


def direct_logit_attribution(
    model: GPTModel, params: Any, activations: Activations, targets: Integer[Array, " t"]
) -> Attribution:
    """Split the logit of one token per position into what each part of the model adds to it.

    Args:
        model: the model.
        params: its parameters.
        activations: the values of a forward pass, from `read_activations`.
        targets: the id of the token at each position whose logit is split, (T,).
    """
    cfg, norm = model.cfg, params["final_norm"]
    head = params["tok_emb" if cfg.tie_weights else "out_head"]["weight"]
    wide = at_least_float32(activations.residual.dtype)
    rows = head[targets].astype(wide)  # (T, D)
    scale, shift = (norm[name].astype(wide)[None] for name in ("scale", "shift"))
    last = activations.residual[-1]
    deviation = jnp.sqrt(last.var(axis=-1, keepdims=True) + cfg.ln_eps)
    direction = scale * rows
    direction = (direction - direction.mean(axis=-1, keepdims=True)) / deviation

    def along(x: Float[Array, "*batch t d"]) -> Float[Array, "*batch t"]:
        return jnp.einsum("...td,td->...t", x, direction, precision="highest")

    blocks = [params["trf_blocks"][str(n)] for n in range(cfg.n_layers)]
    projections = [block["att"]["out_proj"] for block in blocks]

    def of_heads(weight: Array, contexts: Array) -> Array:
        read = jnp.einsum("td,de->te", direction, weight.astype(wide), precision="highest")
        return (split_heads(read, cfg.n_heads) * contexts).sum(axis=-1)

    pairs = zip(projections, activations.contexts, strict=True)
    biases = jnp.stack([projection["bias"].astype(wide) for projection in projections])
    heads = jnp.stack([of_heads(each["weight"], contexts) for each, contexts in pairs])
    parts = {
        "embeddings": along(activations.residual[0]),
        "heads": heads,
        "attention_bias": biases @ direction.T,
        "feed_forward": along(activations.feed_forward),
        "final_norm": (shift * rows).sum(axis=-1),
    }
    totals = [part.reshape(-1, len(targets)).sum(axis=0) for part in parts.values()]
    return Attribution(**parts, logit=jnp.stack(totals).sum(axis=0))
