"""Timing of training steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from obscura_jax.bench.measurements import Measurement
from obscura_jax.bench.processes import peak_mebibytes
from obscura_jax.config import GPTConfig

if TYPE_CHECKING:
    from obscura_jax.training.options import StepOptions

# Takes one step. Returns its seconds, and the peak memory of the process so far in MiB.
TimedStep = Callable[[], tuple[float, float | None]]


def training_step(
    cfg: GPTConfig, rows: int, length: int, options: StepOptions, *, scan: bool = False
) -> TimedStep:
    """Return a function that takes a training step on random tokens.

    Parameters are float32. With `scan` the blocks run as one in a loop.
    """
    import jax

    from obscura_jax.nn.model import GPTModel
    from obscura_jax.nn.scan import stack_blocks
    from obscura_jax.training.initial import gpt2_init
    from obscura_jax.training.optimizer import OptimizerConfig
    from obscura_jax.training.step import init_train_state, train_step_jit

    model, config = GPTModel(cfg), OptimizerConfig(clip_norm=1.0)
    ids = token_batch(cfg, rows, length)
    inputs, targets = jax.numpy.asarray(ids[None, :, :-1]), jax.numpy.asarray(ids[None, :, 1:])
    state = init_train_state(config, gpt2_init(cfg, jax.random.key(0)))
    if scan:
        state = stack_blocks(state)

    def step() -> tuple[float, float | None]:
        nonlocal state
        begin = time.perf_counter()
        state, metrics = train_step_jit(model, config, state, inputs, targets, options=options)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - begin, peak_mebibytes()

    return step


def token_batch(cfg: GPTConfig, rows: int, length: int) -> np.ndarray:
    """Return random ids (rows, length + 1), the same on every call."""
    rng = np.random.default_rng(0)
    return rng.integers(0, cfg.vocab_size, (rows, length + 1)).astype(np.int32)


def time_training(
    name: str, steps: Mapping[str, TimedStep], tokens: int, repeats: int
) -> list[Measurement]:
    """Time a step of `tokens` tokens of each system in turn, `repeats` times after the first.

    The second of two steps in a row is timed, because steps follow each other in a run: the
    operating system reclaims the memory that one step releases while the other systems work, and
    the next step has to ask for it again.
    """
    seconds: dict[str, list[float]] = {system: [] for system in steps}
    peaks: dict[str, float | None] = {}
    for turn in range(repeats + 1):
        for system, step in steps.items():
            if turn:
                step()
            taken, peaks[system] = step()
            seconds[system].append(taken)
    return [
        Measurement.of(
            name, system, "tokens/s", [tokens / s for s in taken[1:]], taken, peaks[system]
        )
        for system, taken in seconds.items()
    ]
