"""Pictures of what the package computes, by matplotlib (the extra "notebooks").

Every function takes plain arrays, NumPy's or JAX's, and returns a figure: a notebook shows it, a
program saves it by `figure.savefig("name.png")`. No function touches pyplot's state.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from obscura_jax.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY, _PALE = "#2a6f97", "#e07a1f", "#c9d3da", "#f3f5f6"


def attention_map(weights: ArrayLike, tokens: Sequence[str], *, title: str = "") -> "Figure":
    """Draw who attends to whom: queries down, keys across, the tokens on both axes.

    Args:
        weights: (T, T), or (H, T, T) for a panel a head; a mask is drawn as well.
        tokens: the T tokens as text.
        title: what stands above.

    Raises:
        ValueError: for weights of another shape.
        MissingExtraError: here and below, when matplotlib is missing.
    """
    heads = np.asarray(weights, np.float64)
    heads = heads[None] if heads.ndim == 2 else heads
    if heads.ndim != 3 or heads.shape[1:] != (len(tokens), len(tokens)):
        raise ValueError(f"weights of shape {np.shape(weights)} for {len(tokens)} tokens")
    size = 1.2 + 0.33 * len(tokens)
    figure = _figure(max(size * len(heads), 3.2), size + 0.3)
    for number, panel in enumerate(figure.subplots(1, len(heads), squeeze=False)[0]):
        image = panel.imshow(heads[number], cmap="Blues", vmin=0, vmax=max(heads.max(), 1e-9))
        _names(panel, [_plain(token) for token in tokens], tokens)
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
    """Draw a table of numbers as colours, the first row at the bottom: layers rise as they run.

    Args:
        values: (R, C); where some are negative, white is 0.
        rows: R names.
        columns: C names, or tokens.
        cells: R rows of C texts to write into the cells.
        title: what stands above.

    Raises:
        ValueError: when the names do not fit the values.
    """
    table = np.asarray(values, np.float64)
    if table.shape != (len(rows), len(columns)):
        raise ValueError(f"values of shape {table.shape}, {len(rows)} rows, {len(columns)} columns")
    figure = _figure(1.8 + (0.8 if cells else 0.45) * len(columns), 1.3 + 0.34 * len(rows))
    panel = figure.add_subplot()
    largest = float(np.abs(table).max())
    low, colours = (-largest, "RdBu") if table.min() < 0 else (0.0, "Blues")
    image = panel.imshow(table, cmap=colours, vmin=low, vmax=largest, aspect="auto", origin="lower")
    _names(panel, rows, columns)
    for r, line in enumerate(cells or ()):
        for c, text in enumerate(line):
            dark = abs(table[r, c]) > 0.6 * largest
            panel.text(
                c,
                r,
                _plain(text),
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
    """Draw functions of one number, such as activations, and the derivatives that `jax.grad` gives.

    Args:
        functions: name -> a scalar JAX function.
        low: where the curves begin.
        high: where they end.
    """
    import jax

    x = np.linspace(low, high, 401, dtype=np.float32)
    figure = _figure(8, 3)
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
    """Draw sizes, such as those of the layers' gradients, on a logarithmic axis.

    Args:
        gradients: name of a network, drawn in a colour -> a positive number for each layer.
        layers: names of the layers, first layer first; by default their numbers.
        quantity: what is drawn.
    """
    count = max(len(sizes) for sizes in gradients.values())
    layers = layers or [f"layer {n}" for n in range(count)]
    figure = _figure(7, 3)
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
    """Draw distributions over the vocabulary, a panel each, the tokens in one order in all of them.

    Args:
        distributions: title -> (V,) probabilities.
        tokens: the text of each of the V tokens.
        top: how many tokens are drawn: the most probable ones of the first distribution.
    """
    arrays = {title: np.asarray(p, np.float64) for title, p in distributions.items()}
    order = np.argsort(-next(iter(arrays.values())), kind="stable")[:top]
    figure = _figure(1.6 + 1.7 * len(arrays), 1 + 0.2 * len(order))
    panels = figure.subplots(1, len(arrays), sharey=True, squeeze=False)[0]
    for panel, (title, probabilities) in zip(panels, arrays.items(), strict=True):
        kept = probabilities[order]
        panel.barh(range(len(order)), kept, color=[_BLUE if p > 0 else _GREY for p in kept])
        panel.set_title(f"{title}\n{np.count_nonzero(probabilities)} tokens left", fontsize=9)
        panel.set_xlabel("probability")
    names = [_plain(tokens[i]) for i in order]
    panels[0].set_yticks(range(len(order)), names, parse_math=False)
    panels[0].invert_yaxis()
    return figure


def window_diagram(
    tokens: Sequence[str], max_length: int, stride: int, *, title: str = ""
) -> "Figure":
    """Draw the sliding windows over a text: what each one reads, and the last token it predicts.

    Args:
        tokens: the text's tokens.
        max_length: tokens in a window.
        stride: from the start of a window to that of the next.
        title: what stands above.
    """
    starts = range(0, len(tokens) - max_length, stride)
    grid = np.zeros((len(starts), len(tokens)), int)
    for row, start in enumerate(starts):
        grid[row, start : start + max_length] = 1
        grid[row, start + max_length] = 2
    names = [f"window {n}" for n in range(len(starts))]
    figure = _figure(1.5 + 0.55 * len(tokens), 1.5 + 0.3 * len(starts))
    _states(figure.add_subplot(), grid, names, tokens, ["not in it", "input", "last target"])
    figure.suptitle(title)
    return figure


def cache_diagram(prompt: Sequence[str], new: Sequence[str]) -> "Figure":
    """Draw which positions a step computes and which it reads, without and with a cache.

    Args:
        prompt: the prompt's tokens.
        new: the tokens generated after it; each step makes one.
    """
    tokens = [*prompt, *new[:-1]]  # the last new token is never read
    again = np.zeros((len(new), len(tokens)), int)
    for step in range(len(new)):
        again[step, : len(prompt) + step] = 2
    cached = np.where(again > 0, 1, 0)
    cached[0, : len(prompt)] = 2
    for step in range(1, len(new)):
        cached[step, len(prompt) + step - 1] = 2
    steps = [f"makes {_plain(token)!r}" for token in new]
    figure = _figure(2.2 + 0.75 * len(tokens), 1.6 + 0.25 * len(new))
    left, right = figure.subplots(1, 2, sharey=True)
    kinds = ["not there yet", "read from the cache", "computed"]
    _states(left, again, steps, tokens, None)
    _states(right, cached, steps, tokens, kinds)
    left.set_title(f"re-read: {np.count_nonzero(again == 2)} positions computed", fontsize=10)
    right.set_title(f"cached: {np.count_nonzero(cached == 2)} positions computed", fontsize=10)
    return figure


def key_tree(tree: Mapping[str, Any]) -> "Figure":
    """Draw how random keys are made of one another: a key, below it what is derived from it.

    Args:
        tree: name -> the tree of the keys derived from it; {} for one that is used up by a draw.
    """
    figure = _figure(7.5, 1 + 0.75 * _depth(tree))
    panel = figure.add_subplot()
    leaves = 0

    def draw(name: str, below: Mapping[str, Any], depth: int) -> float:
        nonlocal leaves
        if below:
            places = [
                draw(child, grandchildren, depth + 1) for child, grandchildren in below.items()
            ]
            x = (places[0] + places[-1]) / 2
            for place in places:
                panel.plot([x, place], [-depth, -depth - 1], color=_GREY, zorder=1)
        else:
            x, leaves = float(leaves), leaves + 1
        box = {"boxstyle": "round", "facecolor": _PALE if below else "white", "edgecolor": _BLUE}
        panel.text(x, -depth, name, ha="center", va="center", fontsize=8, bbox=box)
        return x

    for name, below in tree.items():
        draw(name, below, 0)
    panel.set(xlim=(-0.6, leaves - 0.4), ylim=(-_depth(tree) + 0.5, 0.5))
    panel.axis("off")
    return figure


def loss_curves(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw training and validation loss over steps, from the rows of a `metrics.jsonl`."""
    figure = _figure(7, 4)
    panel = figure.add_subplot()
    for field, label in (("loss", "training"), ("val_loss", "validation")):
        points = [(row["step"] + 1, row[field]) for row in rows if field in row]
        if points:
            marker = "o" if len(points) < 50 and field == "val_loss" else None
            panel.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3)
    panel.set(xlabel="step", ylabel="cross-entropy, nats a token")
    panel.grid(alpha=0.3)
    panel.legend()
    return figure


def _figure(width: float, height: float) -> "Figure":
    require("matplotlib", "notebooks", "a picture")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _names(panel: Any, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Names of rows, and tokens below the columns."""
    columns = [_plain(token) for token in columns]
    panel.set_xticks(range(len(columns)), columns, rotation=45, ha="right", parse_math=False)
    panel.set_yticks(range(len(rows)), rows, parse_math=False)


def _states(
    panel: Any,
    grid: NDArray[np.int_],
    rows: Sequence[str],
    columns: Sequence[str],
    kinds: Sequence[str] | None,
) -> None:
    """A grid of cells in three states, with a legend where the states have names."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    colours = [_PALE, _GREY, _BLUE]
    if kinds and kinds[-1] == "last target":
        colours = [_PALE, _BLUE, _ORANGE]
    panel.imshow(grid, cmap=ListedColormap(colours), vmin=0, vmax=2, aspect="auto")
    panel.set_xticks(np.arange(grid.shape[1] + 1) - 0.5, minor=True)
    panel.set_yticks(np.arange(grid.shape[0] + 1) - 0.5, minor=True)
    panel.grid(which="minor", color="white", linewidth=2)
    panel.tick_params(which="both", length=0)
    _names(panel, rows, columns)
    if kinds:
        patches = [Patch(color=c, label=kind) for c, kind in zip(colours, kinds, strict=True)]
        panel.figure.legend(handles=patches, loc="outside lower center", ncols=3, fontsize=8)


def _plain(token: str) -> str:
    """A token with its white space made visible."""
    return token.replace("\n", "\\n").replace("\t", "\\t").replace(" ", "\u2423")


def _depth(tree: Mapping[str, Any]) -> int:
    return 1 + max((_depth(below) for below in tree.values()), default=0) if tree else 0
