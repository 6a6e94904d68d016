"""Matplotlib figures of arrays, tokens and random keys (needs the extra "notebooks").

Every function takes NumPy or JAX arrays and returns a figure. A notebook displays it; a program
saves it with `figure.savefig("name.png")`. No function changes the state of pyplot.
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
