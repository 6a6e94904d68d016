"""Steps of training, as `obscura bench` and tools/bench_train.py time them."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from obscura_jax.cli.bench import Figure, figure

# Takes a step: its seconds, and the peak memory of the process so far in MiB.
Stepper = Callable[[], tuple[float, float | None]]


def ours(
    cfg: Any, rows: int, length: int, dtype: str, *, scan: bool = False, **how: Any
) -> Stepper:
    """Steps of `train_step` on random tokens: float32 parameters, computing in `dtype`.

    With `scan` the blocks are one in a loop; `how` is handed to the step: chunk, recompute.
    """
    import jax

    from obscura_jax.nn.depth import stacked
    from obscura_jax.nn.model import GPTModel
    from obscura_jax.training.initial import gpt2_parameters
    from obscura_jax.training.optimizer import OptimizerConfig
    from obscura_jax.training.step import first_state, train_step

    model, config = GPTModel(cfg), OptimizerConfig(clip_norm=1.0)
    ids = tokens(cfg, rows, length)
    inputs, targets = jax.numpy.asarray(ids[None, :, :-1]), jax.numpy.asarray(ids[None, :, 1:])
    state = first_state(config, gpt2_parameters(cfg, jax.random.key(0)))
    if scan:
        state = stacked(state)

    def step() -> tuple[float, float | None]:
        nonlocal state
        begin = time.perf_counter()
        state, report = train_step(
            model, config, state, inputs, targets, compute_dtype=dtype, **how
        )
        jax.block_until_ready((state, report))
        return time.perf_counter() - begin, peak_mebibytes()

    return step


def tokens(cfg: Any, rows: int, length: int) -> np.ndarray:
    """Random ids (rows, length + 1), the same for every system."""
    rng = np.random.default_rng(0)
    return rng.integers(0, cfg.vocab_size, (rows, length + 1)).astype(np.int32)


def measure(name: str, steppers: Mapping[str, Stepper], work: int, repeats: int) -> list[Figure]:
    """Time a step of `work` tokens of each in turn, `repeats` times over after the first.

    It is the second of two in a row, as steps follow each other in a run: what memory one gives
    back, the system takes away while the others work, and the next has to ask for it again.
    """
    seconds: dict[str, list[float]] = {system: [] for system in steppers}
    peaks: dict[str, float | None] = {}
    for turn in range(repeats + 1):
        for system, step in steppers.items():
            if turn:
                step()
            taken, peaks[system] = step()
            seconds[system].append(taken)
    return [
        figure(name, system, "tokens/s", [work / s for s in taken[1:]], taken, peaks[system])
        for system, taken in seconds.items()
    ]


def peak_mebibytes() -> float | None:
    """The most memory that this process has had at once, where the system tells."""
    status = Path("/proc/self/status")  # getrusage would count the parent's as well
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**10
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
