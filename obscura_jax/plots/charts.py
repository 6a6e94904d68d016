"""Charts: arrays of numbers as colors, bars and curves."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from obscura_jax.plots.canvas import BLUE, GRAY, name_cells, new_figure, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def attention_map(weights: ArrayLike, tokens: Sequence[str], *, title: str = "") -> "Figure":
    """Draw attention weights: queries down, keys across, the tokens on both axes.

    Args:
        weights: (T, T), or (H, T, T) for one panel per head; a boolean mask works too.
        tokens: the T tokens as text.
        title: title of the figure.

    Raises:
        ValueError: for weights of another shape.
        MissingExtraError: here and below, if matplotlib is missing.
    """
    heads = np.asarray(weights, np.float64)
    heads = heads[None] if heads.ndim == 2 else heads
    if heads.ndim != 3 or heads.shape[1:] != (len(tokens), len(tokens)):
        raise ValueError(
            f"weights must have shape (T, T) or (H, T, T) for {len(tokens)} tokens, "
            f"got {np.shape(weights)}"
        )
    size = 1.2 + 0.33 * len(tokens)
    figure = new_figure(max(size * len(heads), 3.2), size + 0.3)
    for number, panel in enumerate(figure.subplots(1, len(heads), squeeze=False)[0]):
        image = panel.imshow(heads[number], cmap="Blues", vmin=0, vmax=max(heads.max(), 1e-9))
        name_cells(panel, [visible(token) for token in tokens], tokens)
        panel.set(title=f"head {number}" if len(heads) > 1 else "")
        panel.set(xlabel="key", ylabel="query" if number == 0 else "")
    figure.colorbar(image, ax=figure.axes, shrink=0.8)
    figure.suptitle(title)
    return figure


def heat_map(
    values: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    cells: Sequence[Sequence[str]] | None = None,
    title: str = "",
) -> "Figure":
    """Draw a table of numbers as colors, first row at the bottom, so that layers run upward.

    Args:
        values: (R, C); if some are negative, white is 0.
        rows: R names.
        columns: C names, or tokens.
        cells: R rows of C texts to write into the cells.
        title: title of the figure.

    Raises:
        ValueError: if the numbers of names do not match the shape of `values`.
    """
    table = np.asarray(values, np.float64)
    if table.shape != (len(rows), len(columns)):
        raise ValueError(
            f"values have shape {table.shape}, but there are {len(rows)} row names "
            f"and {len(columns)} column names"
        )
    figure = new_figure(1.8 + (0.8 if cells else 0.45) * len(columns), 1.3 + 0.34 * len(rows))
    panel = figure.add_subplot()
    largest = float(np.abs(table).max())
    low, colors = (-largest, "RdBu") if table.min() < 0 else (0.0, "Blues")
    image = panel.imshow(table, cmap=colors, vmin=low, vmax=largest, aspect="auto", origin="lower")
    name_cells(panel, rows, columns)
    for r, line in enumerate(cells or ()):
        for c, text in enumerate(line):
            dark = abs(table[r, c]) > 0.6 * largest
            panel.text(
                c,
                r,
                visible(text),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
                parse_math=False,
            )
    figure.colorbar(image)
    panel.set_title(title)
    return figure


def function_curves(
    functions: Mapping[str, Callable[[Any], Any]], low: float = -4.0, high: float = 4.0
) -> "Figure":
    """Draw functions of one number, such as activations, and their derivatives by `jax.grad`.

    Args:
        functions: name -> a scalar JAX function.
        low: left end of the curves.
        high: right end of the curves.
    """
    import jax

    x = np.linspace(low, high, 401, dtype=np.float32)
    figure = new_figure(8, 3)
    values, slopes = figure.subplots(1, 2)
    for name, function in functions.items():
        values.plot(x, jax.vmap(function)(x), label=name)
        slopes.plot(x, jax.vmap(jax.grad(function))(x), label=name)
    values.set(xlabel="x", title="value")
    slopes.set(xlabel="x", title="derivative")
    for panel in (values, slopes):
        panel.grid(alpha=0.3)
    values.legend()
    return figure


def gradient_bars(
    gradients: Mapping[str, Sequence[float]],
    layers: Sequence[str] | None = None,
    quantity: str = "mean |gradient|",
) -> "Figure":
    """Draw one bar per layer, such as the size of its gradient, on a logarithmic axis.

    Args:
        gradients: name of a network, which gets its own color -> one positive number per layer.
        layers: names of the layers, first layer first; by default their numbers.
        quantity: label of the logarithmic axis.
    """
    count = max(len(sizes) for sizes in gradients.values())
    layers = layers or [f"layer {n}" for n in range(count)]
    figure = new_figure(7, 3)
    panel = figure.add_subplot()
    width = 0.8 / len(gradients)
    for number, (name, sizes) in enumerate(gradients.items()):
        places = np.arange(len(sizes)) + (number - (len(gradients) - 1) / 2) * width
        panel.bar(places, np.asarray(sizes), width, label=name)
    panel.set_xticks(range(count), layers)
    panel.set(yscale="log", ylabel=quantity)
    panel.grid(alpha=0.3, axis="y")
    figure.legend(loc="outside upper center", ncols=len(gradients))
    return figure


def probability_bars(
    distributions: Mapping[str, ArrayLike], tokens: Sequence[str], *, top: int = 15
) -> "Figure":
    """Draw distributions over the vocabulary, one panel each, with the tokens in the same order.

    Args:
        distributions: title -> (V,) probabilities.
        tokens: the text of each of the V tokens.
        top: number of tokens to draw: the most probable ones of the first distribution.
    """
    arrays = {title: np.asarray(p, np.float64) for title, p in distributions.items()}
    order = np.argsort(-next(iter(arrays.values())), kind="stable")[:top]
    figure = new_figure(1.6 + 1.7 * len(arrays), 1 + 0.2 * len(order))
    panels = figure.subplots(1, len(arrays), sharey=True, squeeze=False)[0]
    for panel, (title, probabilities) in zip(panels, arrays.items(), strict=True):
        kept = probabilities[order]
        panel.barh(range(len(order)), kept, color=[BLUE if p > 0 else GRAY for p in kept])
        panel.set_title(f"{title}\n{np.count_nonzero(probabilities)} tokens left", fontsize=9)
        panel.set_xlabel("probability")
    names = [visible(tokens[i]) for i in order]
    panels[0].set_yticks(range(len(order)), names, parse_math=False)
    panels[0].invert_yaxis()
    return figure


def loss_curves(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw training and validation loss over steps, from the rows of a `metrics.jsonl`."""
    figure = new_figure(7, 4)
    panel = figure.add_subplot()
    for field, label in (("loss", "training"), ("val_loss", "validation")):
        points = [(row["step"] + 1, row[field]) for row in rows if field in row]
        if points:
            marker = "o" if len(points) < 50 and field == "val_loss" else None
            panel.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3)
    panel.set(xlabel="step", ylabel="cross-entropy, nats per token")
    panel.grid(alpha=0.3)
    panel.legend()
    return figure
