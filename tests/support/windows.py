"""A small dataset, and windows and batches in a form that `==` compares."""

from typing import Any

import numpy as np

from obscura_jax.text import GPTDatasetV1

N, LENGTH, STRIDE = 211, 7, 3  # 68 windows


def dataset(n: int = N, length: int = LENGTH, stride: int = STRIDE) -> GPTDatasetV1:
    """68 windows over random ids."""
    ids = np.random.default_rng(1).integers(0, 50257, n)
    return GPTDatasetV1.from_ids(ids, length, stride)


def lists(batches: Any) -> list[tuple[Any, Any]]:
    """Return the batches as nested lists."""
    return [(inputs.tolist(), targets.tolist()) for inputs, targets in batches]
