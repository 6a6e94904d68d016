"""Look inside a model: what it computes for one text, as arrays, and one page that shows it.

`inside` returns everything for a text. It is made of pure functions, which also work alone, under
`jax.jit`, `jax.vmap` and `jax.grad`. `show` makes the page.
"""

from obscura_jax.look.ablation import block_ablations, feed_forward_ablations, head_ablations
from obscura_jax.look.activations import Activations, apply_scaled, read_activations
from obscura_jax.look.attribution import Attribution, direct_logit_attribution
from obscura_jax.look.head_scores import (
    first_token_score,
    induction_score,
    previous_token_score,
    same_token_score,
)
from obscura_jax.look.inside_model import Ablations, Inside, Prediction, ablate_parts, inside
from obscura_jax.look.lens import logit_lens
from obscura_jax.look.show import Page, show

__all__ = [
    "Ablations",
    "Activations",
    "Attribution",
    "Inside",
    "Page",
    "Prediction",
    "ablate_parts",
    "apply_scaled",
    "block_ablations",
    "direct_logit_attribution",
    "feed_forward_ablations",
    "first_token_score",
    "head_ablations",
    "induction_score",
    "inside",
    "logit_lens",
    "previous_token_score",
    "read_activations",
    "same_token_score",
    "show",
]
