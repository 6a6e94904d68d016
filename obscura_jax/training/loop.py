"""The run: batch after batch, what it measures, and when it stops (chapter 5.2)."""

import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from obscura_jax.checks import check_size
from obscura_jax.nn.model import GPTModel, RematPolicy
from obscura_jax.text.loader import DataLoader
from obscura_jax.training.optimizer import OptimizerConfig
from obscura_jax.training.placement import SINGLE_DEVICE, Placement
from obscura_jax.training.step import TrainState

Row = dict[str, float]


class DivergedError(ValueError):
    """The loss or the gradients are NaN or infinite. `state` is the last good one."""

    def __init__(self, message: str, state: TrainState) -> None:
        super().__init__(message)
        self.state = state


def check_accumulate(parts: int, batch_size: int) -> None:
    """Raise ValueError unless a batch splits into so many equal parts."""
    if batch_size % check_size("grad_accum_steps", parts):
        raise ValueError(f"a batch of {batch_size} windows does not split into {parts} equal parts")


def train(
    model: GPTModel,
    config: OptimizerConfig,
    state: TrainState,
    loader: DataLoader,
    *,
    steps: int,
    grad_accum_steps: int = 1,
    key: jax.Array | None = None,
    compute_dtype: DTypeLike | None = None,
    logits_chunk: int | None = None,
    remat: RematPolicy | None = None,
    placement: Placement = SINGLE_DEVICE,
) -> Iterator[tuple[TrainState, Row]]:
    """Train until `steps` steps are taken, from the one at which `state` stands.

    Which batch a step reads depends on the loader's seed and the step alone.

    Args:
        model: the model.
        config: the optimizer's numbers.
        state: where training stands; its arrays are used up.
        loader: batches of windows; a step reads one.
        steps: the step to stop after.
        grad_accum_steps: in how many equal parts a batch is read, for less memory.
        key: a typed key for dropout; without one nothing is dropped.
        compute_dtype: as in `train_step_jit`.
        logits_chunk: as in `train_step_jit`.
        remat: as in `train_step_jit`.
        placement: where `state` lies, as its `put` gave it.

    Returns:
        For each step the state after it, whose arrays the next step uses up, and a row of metrics:
        step, loss, tokens_per_second, lr, gradient_norm.

    Raises:
        ValueError: at the call, when `grad_accum_steps` does not divide the batch.
        DivergedError: later on, when the loss or the gradients are NaN or infinite.
    """
    check_accumulate(grad_accum_steps, loader.batch_size)

    def rows(state: TrainState) -> Iterator[tuple[TrainState, Row]]:
        start = int(state.step)
        size = loader.batch_size
        batches = loader.steps(start, placement.rows(size, grad_accum_steps))
        for step, batch in zip(range(start, steps), batches, strict=False):
            begin = time.perf_counter()
            inputs, targets = (placement.batch(ids, grad_accum_steps, size) for ids in batch)
            state, report = placement.step(
                model,
                config,
                state,
                inputs,
                targets,
                key,
                compute_dtype=compute_dtype,
                logits_chunk=logits_chunk,
                remat=remat,
            )
            loss, norm, rate = map(float, jax.device_get(tuple(vars(report).values())))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise DivergedError(
                    f"training diverged at step {step} (loss {loss}, gradient norm {norm}); start "
                    "again in another folder with a lower learning rate (--lr) or stronger "
                    "clipping (--clip-norm)",
                    state,
                )
            seconds = time.perf_counter() - begin
            row = {
                "step": step,
                "loss": loss,
                "tokens_per_second": inputs.size / seconds,
                "lr": rate,
                "gradient_norm": norm,
            }
            yield state, row

    return rows(state)


def validation_loss(
    model: GPTModel,
    params: Any,
    loader: DataLoader,
    *,
    most: int = 20,
    logits_chunk: int | None = None,
    placement: Placement = SINGLE_DEVICE,
) -> float:
    """The mean loss over the first batches of pass 0, at most `most` of them, without dropout."""
    size, losses = loader.batch_size, []
    batches = loader.steps(0, placement.rows(size, 1))
    for _, batch in zip(range(min(most, len(loader))), batches, strict=False):
        inputs, targets = (placement.batch(ids, 1, size) for ids in batch)
        losses.append(float(placement.loss(model, params, inputs, targets, logits_chunk)))
    return float(np.mean(losses))
