"""Pictures of what the package computes, by matplotlib (the extra "notebooks").

Every function takes plain arrays, NumPy's or JAX's, and returns a figure: a notebook shows it, a
program saves it by `figure.savefig("name.png")`. No function touches pyplot's state.
"""

from obscura_jax.plots.charts import (
    attention_map,
    function_curves,
    gradient_bars,
    heat_map,
    loss_curves,
    probability_bars,
)
from obscura_jax.plots.diagrams import cache_diagram, key_tree, window_diagram

__all__ = [
    "attention_map",
    "cache_diagram",
    "function_curves",
    "gradient_bars",
    "heat_map",
    "key_tree",
    "loss_curves",
    "probability_bars",
    "window_diagram",
]
