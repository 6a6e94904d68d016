"""Shared parts of all figures: an empty figure, colors, and names of rows and tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from obscura_jax.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GRAY, PALE = "#2a6f97", "#e07a1f", "#c9d3da", "#f3f5f6"


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure, sized in inches; MissingExtraError if matplotlib is missing."""
    require("matplotlib", "notebooks", "a figure")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def name_cells(panel: Any, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Label the rows with names, and the columns with the tokens in `columns`."""
    columns = [visible(token) for token in columns]
    panel.set_xticks(range(len(columns)), columns, rotation=45, ha="right", parse_math=False)
    panel.set_yticks(range(len(rows)), rows, parse_math=False)


def visible(token: str) -> str:
    """Return a token with visible white space."""
    return token.replace("\n", "\\n").replace("\t", "\\t").replace(" ", "\u2423")
