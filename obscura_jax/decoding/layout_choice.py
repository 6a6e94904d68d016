"""The choice between two layouts of weights, by a measurement that is made once per machine.

With weights (in, out), XLA:CPU multiplies several rows without packing the weight at every call.
For all blocks of the 124M model and 8 rows, that is 1.8x faster on an AMD EPYC (Zen 4) and 0.85x as
fast on an Intel Xeon (Sapphire Rapids): the processor decides.
"""

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from obscura_jax.atomic_files import replace_text
from obscura_jax.compile_cache import folder
from obscura_jax.nn.linear import linear
from obscura_jax.nn.weights import Transposed, Weight
from obscura_jax.processor import processor_name

_ROWS = 8
_ROUNDS = 7
_GAIN = 1.1  # how much faster the other layout must be
_SIZE = 40_000_000  # parameters to measure with: more than the caches of most processors hold


def transposed_is_faster(weights: Sequence[Float[Array, "d_out d_in"]]) -> bool:
    """Return whether batches are multiplied faster by these weights if they are stored (in, out).

    The answer for this processor, version of JAX and shapes of weights is kept in the folder of
    compiled programs. Weights of fewer than 40 million parameters are not measured: False.
    """
    chosen: list[Any] = []
    for weight in weights:
        if sum(one.size for one in chosen) < _SIZE:
            chosen.append(weight)
    if sum(one.size for one in chosen) < _SIZE:
        return False
    path, key = folder() / "layouts.json", _key(chosen)
    known = _read(path)
    if key not in known:
        known[key] = _measure(chosen)
        with contextlib.suppress(OSError):  # then the next process measures again
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, json.dumps(known, indent=2))
    return known[key]


def _key(weights: Sequence[Any]) -> str:
    shapes = sorted({str(weight.shape) for weight in weights})
    return (
        f"{processor_name()}, {os.cpu_count()} threads, jax {jax.__version__}: {' '.join(shapes)}"
    )


def _read(path: Path) -> dict[str, bool]:
    """Return the answers in the file; none if it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return {key: value for key, value in found.items() if isinstance(value, bool)}
    return {}


def _measure(weights: Sequence[Float[Array, "d_out d_in"]]) -> bool:
    """Return whether the products of 8 rows are faster with transposed weights."""
    widths = {weight.shape[1] for weight in weights}
    rows = {width: jnp.ones((_ROWS, width), jnp.float32) for width in widths}

    @jax.jit
    def products(rows: dict[int, Array], weights: Sequence[Weight]) -> Array:
        found = (
            linear(rows[wide.shape[1]], weight).sum()
            for weight, wide in zip(weights, given, strict=True)
        )
        return jnp.stack(list(found))

    given = list(weights)
    transposed = [Transposed(jnp.asarray(weight.T)) for weight in weights]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(_ROUNDS + 1):
        for other, form in ((False, given), (True, transposed)):
            began = time.perf_counter()
            jax.block_until_ready(products(rows, form))
            seconds[other].append(time.perf_counter() - began)
    return min(seconds[False][1:]) > _GAIN * min(seconds[True][1:])
