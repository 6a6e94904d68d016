"""Refuse a module whose results depend on more than its input, since it cannot be compared."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.gpt.compare import Arrays
from obscura_jax.parity.gpt.paired_runs import PairedRuns

_THREADS = 1e-12  # of the largest entry; a sum over several threads varies by about 1e-16


def check_repeatable(
    runs: PairedRuns, ids: NDArray[Any], other_ids: NDArray[Any]
) -> tuple[Arrays, bool]:
    """Run the reference in float64 on `ids` twice, with `other_ids` in between; then backward.

    Returns:
        The intermediates on `ids`, and whether the module drew random numbers without effect.

    Raises:
        ValueError: if two runs on the same input differ. The message gives the difference and the
            reason: random numbers, or state that one call leaves for the next.
    """
    module, label = runs.build("float64"), runs.reference.label

    def backward() -> Arrays:
        with runs.reference.guest("fails in training"):
            module.zero_grad()
            parameters = dict(module.named_parameters())
        runs.backpropagate(module, ids)
        found = ((name, p.grad) for name, p in parameters.items())
        return {f"the gradient of {name}": x.numpy().copy() for name, x in found if x is not None}

    random_state = _random_state()
    first = _run_twice(
        label,
        lambda: runs.their_intermediates(module, ids),
        lambda: runs.their_intermediates(module, other_ids),
    )
    if ids.shape[-1] > 1:
        _run_twice(label, backward, lambda: None)
    return first, _random_state() != random_state


def _run_twice(label: str, run: Callable[[], Arrays], between: Callable[[], object]) -> Arrays:
    random_state, first = _random_state(), run()
    between()
    why = "keeps something from one call to the next"
    try:
        second = run()
    except ValueError as error:
        raise ValueError(f"{label} {why}: {error}, in the second run on the same input") from error
    if _random_state() != random_state:
        why = "draws random numbers in evaluation mode"
    least = 1e-6 * max((_largest(x) for x in first.values()), default=0.0)  # as in `compare`
    for name, x in first.items():
        y = second.get(name)
        if y is None or x.shape != y.shape:
            problem = "have different shapes"
        elif np.array_equal(x, y, equal_nan=True):
            continue
        else:
            size = _largest(x - y) / (max(_largest(x), least) or 1.0)
            if size <= _THREADS:
                continue
            problem = f"differ by {size:.1e}"
        raise ValueError(
            f"{label} {why}: two runs on the same input {problem}, first at {name}; "
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
