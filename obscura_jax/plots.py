"""Pictures, by matplotlib (the extra "notebooks")."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from obscura_jax.extras import require


def save_loss_curves(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw training and validation loss over steps, from the rows of a metrics.jsonl, as a PNG.

    Raises:
        MissingExtraError: when matplotlib is missing.
    """
    require("matplotlib", "notebooks", "a picture")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for field, label in (("loss", "training"), ("val_loss", "validation")):
        points = [(row["step"] + 1, row[field]) for row in rows if field in row]
        if points:
            marker = "o" if len(points) < 50 and field == "val_loss" else None
            axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3)
    axes.set(xlabel="step", ylabel="cross-entropy, nats a token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
