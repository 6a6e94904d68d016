"""Read or replace the named intermediates of our model.

Names are those of `nn.intermediates`.
"""

import difflib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

from obscura_jax.nn.intermediates import apply_tapped, names
from obscura_jax.nn.model import GPTModel

Reduce = Callable[[str, Any], Any]


def capture(
    model: GPTModel, params: Any, ids: ArrayLike, reduce: Reduce | None = None
) -> dict[str, Array]:
    """Return every intermediate of `model` on ids (B, T), by name, in forward order.

    With `reduce`, store `reduce(name, value)` instead of each value, to save memory. This function
    is pure.
    """
    found: dict[str, Array] = {}

    def tap(name: str, value: Array) -> Array:
        found[name] = value if reduce is None else reduce(name, value)
        return value

    apply_tapped(model, params, ids, tap)
    # jit would sort the names of a plain dictionary.
    return OrderedDict((name, found[name]) for name in names(model.cfg))


def apply_with_patches(
    model: GPTModel, params: Any, ids: ArrayLike, replacements: Mapping[str, ArrayLike]
) -> Array:
    """Return the logits, (B, T, V), with named intermediates replaced (activation patching).

    Raises:
        ValueError: for a name that no intermediate has, or a replacement of another shape.
    """
    known = names(model.cfg)
    for name in replacements:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3) or known[:3]
            raise ValueError(
                f"no intermediate is called {name!r}; similar names: {', '.join(near)}"
            )

    def tap(name: str, value: Array) -> Array:
        if name not in replacements:
            return value
        new: Any = replacements[name]
        if np.shape(new) != value.shape:
            raise ValueError(
                f"{name} has shape {value.shape}, but its replacement has shape {np.shape(new)}"
            )
        return value.at[...].set(new)

    return apply_tapped(model, params, ids, tap)
