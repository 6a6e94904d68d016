"""The README's figure: the losses of 100 steps in PyTorch and in JAX, and their difference.

    python tools/trajectory.py

The run is that of tests/test_training.py: the same seeded weights, batches, warmup, cosine decay,
clipping, weight decay and gradient accumulation, in float32 and in float64.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.test_training import jax_losses, torch_losses


def main() -> None:
    """Run all four trainings, draw the figure, and print the largest differences."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ("float32", "float64"):
        theirs = torch_losses(getattr(torch, name))
        with jax.enable_x64(name == "float64"):
            ours = jax_losses(getattr(jnp, name))
        error = np.abs(ours / theirs - 1)
        print(f"{name}: {error.max():.1e}")
        right.semilogy(np.maximum(error, 1e-17), ".", label=name, markersize=4)
        if name == "float32":
            left.plot(theirs, label="PyTorch", linewidth=4, alpha=0.35)
            left.plot(ours, label="JAX", linewidth=1)
    left.set(xlabel="step", ylabel="loss", title="one curve on the other")
    right.set(xlabel="step", title="relative difference (0 drawn at 1e-17)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=80)


if __name__ == "__main__":
    main()
