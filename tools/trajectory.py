"""Two figures of the documentation: the losses of 100 training steps in PyTorch and in JAX.

    python tools/trajectory.py

Writes tools/trajectory.png, without dropout, and tools/same_draws.png, with dropout, where PyTorch
drops the values that JAX drops. In the second figure a third curve, with PyTorch's own dropout,
shows the effect of the random draws alone. The runs are those of
obscura_jax/parity/gpt/trajectory.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from obscura_jax.parity.gpt.trajectory import Dtype, Losses, jax_losses, torch_losses

_DTYPES: tuple[Dtype, ...] = ("float32", "float64")
_DROP_RATE = 0.1


def draw_trajectory() -> Figure:
    """Draw the runs without dropout, and print their largest differences."""
    figure, left, right = _panels("the two curves coincide")
    for dtype in _DTYPES:
        ours, theirs = jax_losses(dtype), torch_losses(dtype)
        if dtype == "float32":
            left.plot(theirs, label="PyTorch", linewidth=4, alpha=0.35)
            left.plot(ours, label="JAX", linewidth=1)
        _draw_difference(right, dtype, ours, theirs)
    return _finished(figure)


def draw_same_draws() -> Figure:
    """Draw the runs with dropout, and print their largest differences."""
    figure, left, right = _panels("training with dropout 0.1")
    own = torch_losses("float32", drop_rate=_DROP_RATE, jax_draws=False)
    for dtype in _DTYPES:
        ours = jax_losses(dtype, drop_rate=_DROP_RATE)
        theirs = torch_losses(dtype, drop_rate=_DROP_RATE)
        if dtype == "float32":
            left.plot(theirs, label="PyTorch, JAX's draws", linewidth=4, alpha=0.35)
            left.plot(ours, label="JAX", linewidth=1)
            left.plot(own, ":", label="PyTorch, its own draws", linewidth=1, color="gray")
            _draw_difference(right, "PyTorch's own draws", ours, own, color="gray")
        _draw_difference(right, dtype, ours, theirs)
    return _finished(figure)


def _panels(title: str) -> tuple[Figure, Any, Any]:
    """Return a figure with a panel for the losses and a panel for their difference."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set(xlabel="step", ylabel="loss", title=title)
    right.set(xlabel="step", title="relative difference (0 drawn at 1e-17)")
    return figure, left, right


def _draw_difference(
    panel: Any, label: str, ours: Losses, theirs: Losses, color: str | None = None
) -> None:
    difference = np.abs(ours / theirs - 1)
    print(f"{label}: {difference.max():.1e}")
    panel.semilogy(np.maximum(difference, 1e-17), ".", label=label, markersize=4, color=color)


def _finished(figure: Figure) -> Figure:
    for panel in figure.axes:
        panel.grid(alpha=0.3)
        panel.legend()
    return figure


def main() -> None:
    """Write both figures."""
    folder = Path(__file__).parent
    draw_trajectory().savefig(folder / "trajectory.png", dpi=80)
    draw_same_draws().savefig(folder / "same_draws.png", dpi=80)


if __name__ == "__main__":
    main()
