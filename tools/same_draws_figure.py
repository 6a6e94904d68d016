"""The README's figure: 100 training steps in which PyTorch drops the same values as JAX.

    python tools/same_draws_figure.py

The run is that of tests/test_same_draws.py, in float32 and in float64. A third curve, with
PyTorch's own dropout, shows the effect of the draws alone, with the same weights and batches.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))

from obscura_jax.parity import torch_reference
from tests.test_same_draws import jax_losses, torch_losses


def main() -> None:
    """Run all five trainings, draw the figure, and print the largest differences."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    own = torch_losses(torch.float32, module=torch_reference.GPTModel)
    for name in ("float32", "float64"):
        theirs = torch_losses(getattr(torch, name))
        with jax.enable_x64(name == "float64"):
            ours = jax_losses(getattr(jnp, name))
        error = np.abs(ours / theirs - 1)
        print(f"{name}: {error.max():.1e}")
        if name == "float32":
            apart = np.abs(ours / own - 1)
            print(f"PyTorch's own dropout: {apart.max():.1e}")
            left.plot(theirs, label="PyTorch, JAX's draws", linewidth=4, alpha=0.35)
            left.plot(ours, label="JAX", linewidth=1)
            left.plot(own, ":", label="PyTorch, its own draws", linewidth=1, color="gray")
            right.semilogy(apart, ".", label="its own draws", color="gray", markersize=4)
        right.semilogy(np.maximum(error, 1e-17), ".", label=name, markersize=4)
    left.set(xlabel="step", ylabel="loss", title="training with dropout 0.1")
    right.set(xlabel="step", title="relative difference (0 drawn at 1e-17)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(Path(__file__).with_name("same_draws.png"), dpi=80)


if __name__ == "__main__":
    main()
