"""Refuse a module whose results depend on more than its input: it cannot be compared."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.compare import Arrays
from obscura_jax.parity.paired_runs import PairedRuns

_THREADS = 1e-12  # of the largest entry; a sum over threads moves by some 1e-16


def check_repeatable(
    sides: PairedRuns, ids: NDArray[Any], between: NDArray[Any]
) -> tuple[Arrays, bool]:
    """Run the reference in float64 on `ids` twice, with `between` in between; then backwards.

    Returns:
        its intermediates on `ids`, and whether random numbers were drawn, to no effect.

    Raises:
        ValueError: if two runs on the same input differ: by how much, and whether random numbers
            were drawn or something was kept from one call to the next.
    """
    module, label = sides.build("float64"), sides.reference.label

    def backward() -> Arrays:
        with sides.reference.guest("fails in training"):
            module.zero_grad()
            parameters = dict(module.named_parameters())
        sides.backpropagate(module, ids)
        found = ((name, p.grad) for name, p in parameters.items())
        return {f"the gradient of {name}": x.numpy().copy() for name, x in found if x is not None}

    dice = _random_state()
    first = _run_twice(
        label,
        lambda: sides.their_intermediates(module, ids),
        lambda: sides.their_intermediates(module, between),
    )
    if ids.shape[-1] > 1:
        _run_twice(label, backward, lambda: None)
    return first, _random_state() != dice


def _run_twice(label: str, run: Callable[[], Arrays], between: Callable[[], object]) -> Arrays:
    dice, first = _random_state(), run()
    between()
    why = "keeps something from one call to the next"
    try:
        second = run()
    except ValueError as error:
        raise ValueError(f"{label} {why}: {error}, at its second run on the same input") from error
    if _random_state() != dice:
        why = "draws random numbers in evaluation mode"
    least = 1e-6 * max((_largest(x) for x in first.values()), default=0.0)  # as in `compare`
    for name, x in first.items():
        y = second.get(name)
        if y is None or x.shape != y.shape:
            apart = "have other shapes"
        elif np.array_equal(x, y, equal_nan=True):
            continue
        else:
            size = _largest(x - y) / (max(_largest(x), least) or 1.0)
            if size <= _THREADS:
                continue
            apart = f"differ by {size:.1e}"
        raise ValueError(
            f"{label} {why}: two runs on the same input {apart}, first at {name}; "
            "only a function of its input can be compared"
        )
    return first


def _largest(x: NDArray[Any]) -> float:
    return float(np.abs(x).max(initial=0.0))


def _random_state() -> tuple[Any, ...]:
    """Return a value that changes when PyTorch, NumPy or Python draws a random number."""
    import torch

    numpy_state: Any = np.random.get_state()
    return (
        torch.get_rng_state().numpy().tobytes(),
        numpy_state[1].tobytes() + bytes([numpy_state[2] % 256, numpy_state[2] // 256]),
        random.getstate(),
    )
