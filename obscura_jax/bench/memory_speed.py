"""The speed at which memory is read: by a sum, and by a decode step that reads its weights."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from obscura_jax.bench.generation import ONE_ROW
from obscura_jax.bench.measurements import Measurement
from obscura_jax.config import GPTConfig

# The time of a step of a smaller model is not that of reading its weights.
MIN_WEIGHT_BYTES = 50_000_000
_SHAPE = (2**17, 2**10)  # 512 MiB of float32, more than a processor's caches hold
_SUMS = 9


def read_speed() -> float:
    """Return the bytes per second that JAX's default device reads: the best of several sums."""
    import jax
    import jax.numpy as jnp

    table = jnp.ones(_SHAPE, jnp.float32)
    add_rows = jax.jit(lambda x: x.sum(axis=1))
    add_rows(table).block_until_ready()  # compiles
    seconds = []
    for _ in range(_SUMS):
        begin = time.perf_counter()
        add_rows(table).block_until_ready()
        seconds.append(time.perf_counter() - begin)
    return table.nbytes / min(seconds)


def decode_weight_bytes(cfg: GPTConfig, dtype: str) -> int:
    """Return the bytes of the weights in `dtype` that a decode step reads.

    The step reads every weight, but only one row of the position embedding, and one row per
    sequence of the token embedding if that is not the output head too.
    """
    import jax.numpy as jnp

    from obscura_jax.nn.parameters import init_shapes, named_leaves

    looked_up = {"pos_emb.weight"} | ({"tok_emb.weight"} if not cfg.tie_weights else set())
    leaves = named_leaves(init_shapes(cfg)).items()
    count = sum(math.prod(leaf.shape) for name, leaf in leaves if name not in looked_up)
    return count * jnp.dtype(dtype).itemsize


@dataclass(frozen=True)
class WeightReading:
    """The speed at which one-row decode steps in `dtype` read their weights.

    Attributes:
        dtype: type of the weights.
        speed: bytes per second that a step reads.
        machine_speed: bytes per second that the machine's memory gives.
    """

    dtype: str
    speed: float
    machine_speed: float

    @property
    def is_slow(self) -> bool:
        """Return whether a step reads at less than half of the speed that the machine gives."""
        return self.speed < self.machine_speed / 2

    def warning(self, platform: str) -> str:
        """Return a line that states both speeds and what may be faster on a JAX platform."""
        if platform != "cpu":  # a step of one row is mostly the time of starting its kernels
            advice = "steps of more rows use the memory better"
        elif self.dtype == "float32":
            advice = "another version of JAX may be faster"
        else:
            advice = "another version of JAX, or float32, may be faster"
        return (
            f"{ONE_ROW} in {self.dtype} reads its weights at {self.speed / 1e9:.1f} GB/s of the "
            f"{self.machine_speed / 1e9:.1f} GB/s that this machine's memory gives; {advice}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON, in GB/s (10^9 bytes per second)."""
        return {
            "name": ONE_ROW,
            "system": self.dtype,
            "gigabytes_per_second": self.speed / 1e9,
            "slow": self.is_slow,
        }


def weight_readings(
    cfg: GPTConfig, figures: Iterable[Measurement], machine_speed: float
) -> list[WeightReading]:
    """Return the speed of each system's one-row decode steps that read enough weights.

    The best round counts, as in `read_speed`: other programs slow down both.

    Args:
        cfg: the model.
        figures: measurements, of which those named `ONE_ROW` are used; their values are in
            milliseconds per step, and their systems are number types.
        machine_speed: the result of `read_speed`.
    """
    return [
        WeightReading(figure.system, 1000 * size / min(figure.values), machine_speed)
        for figure in figures
        if figure.name == ONE_ROW
        and (size := decode_weight_bytes(cfg, figure.system)) >= MIN_WEIGHT_BYTES
    ]
