"""Diagrams of windows, caches and random keys."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.plots.canvas import BLUE, GRAY, ORANGE, PALE, name_cells, new_figure, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def window_diagram(
    tokens: Sequence[str], max_length: int, stride: int, *, title: str = ""
) -> "Figure":
    """Draw sliding windows over a text: the tokens each one reads, and the last one it predicts.

    Args:
        tokens: the tokens of the text.
        max_length: tokens per window.
        stride: tokens from the start of one window to the start of the next.
        title: title of the figure.
    """
    starts = range(0, len(tokens) - max_length, stride)
    grid = np.zeros((len(starts), len(tokens)), int)
    for row, start in enumerate(starts):
        grid[row, start : start + max_length] = 1
        grid[row, start + max_length] = 2
    names = [f"window {n}" for n in range(len(starts))]
    figure = new_figure(1.5 + 0.55 * len(tokens), 1.5 + 0.3 * len(starts))
    colors, kinds = [PALE, BLUE, ORANGE], ["not in the window", "input", "last target"]
    _states(figure.add_subplot(), grid, names, tokens, colors, kinds)
    figure.suptitle(title)
    return figure


def cache_diagram(prompt: Sequence[str], new: Sequence[str]) -> "Figure":
    """Draw which positions each step computes and which it reads, without and with a cache.

    Args:
        prompt: the tokens of the prompt.
        new: the tokens generated after it, one per step.
    """
    tokens = [*prompt, *new[:-1]]  # the last new token is never read
    again = np.zeros((len(new), len(tokens)), int)
    for step in range(len(new)):
        again[step, : len(prompt) + step] = 2
    cached = np.where(again > 0, 1, 0)
    cached[0, : len(prompt)] = 2
    for step in range(1, len(new)):
        cached[step, len(prompt) + step - 1] = 2
    steps = [f"generates {visible(token)!r}" for token in new]
    figure = new_figure(2.2 + 0.75 * len(tokens), 1.6 + 0.25 * len(new))
    left, right = figure.subplots(1, 2, sharey=True)
    colors, kinds = [PALE, GRAY, BLUE], ["not generated yet", "read from the cache", "computed"]
    _states(left, again, steps, tokens, colors)
    _states(right, cached, steps, tokens, colors, kinds)
    left.set_title(f"re-read: {np.count_nonzero(again == 2)} positions computed", fontsize=10)
    right.set_title(f"cached: {np.count_nonzero(cached == 2)} positions computed", fontsize=10)
    return figure


def key_tree(tree: Mapping[str, Any]) -> "Figure":
    """Draw how random keys are derived: below each key, the keys that are derived from it.

    Args:
        tree: name -> the tree of the keys derived from it; {} for a key that a draw consumes.
    """
    figure = new_figure(7.5, 1 + 0.75 * _depth(tree))
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
                panel.plot([x, place], [-depth, -depth - 1], color=GRAY, zorder=1)
        else:
            x, leaves = float(leaves), leaves + 1
        box = {"boxstyle": "round", "facecolor": PALE if below else "white", "edgecolor": BLUE}
        panel.text(x, -depth, name, ha="center", va="center", fontsize=8, bbox=box)
        return x

    for name, below in tree.items():
        draw(name, below, 0)
    panel.set(xlim=(-0.6, leaves - 0.4), ylim=(-_depth(tree) + 0.5, 0.5))
    panel.axis("off")
    return figure


def _states(
    panel: Any,
    grid: NDArray[np.int_],
    rows: Sequence[str],
    columns: Sequence[str],
    colors: Sequence[str],
    kinds: Sequence[str] = (),
) -> None:
    """Draw a grid of cells in three states, with a legend if `kinds` names the states."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    panel.imshow(grid, cmap=ListedColormap(colors), vmin=0, vmax=2, aspect="auto")
    panel.set_xticks(np.arange(grid.shape[1] + 1) - 0.5, minor=True)
    panel.set_yticks(np.arange(grid.shape[0] + 1) - 0.5, minor=True)
    panel.grid(which="minor", color="white", linewidth=2)
    panel.tick_params(which="both", length=0)
    name_cells(panel, rows, columns)
    if kinds:
        patches = [Patch(color=c, label=kind) for c, kind in zip(colors, kinds, strict=True)]
        panel.figure.legend(handles=patches, loc="outside lower center", ncols=3, fontsize=8)


def _depth(tree: Mapping[str, Any]) -> int:
    return 1 + max((_depth(below) for below in tree.values()), default=0) if tree else 0
