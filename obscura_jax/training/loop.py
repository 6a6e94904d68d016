"""The training loop: one step per batch, the metrics of each, and the validation loss (5.2)."""

import math
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import jax
import numpy as np

from obscura_jax.nn.model import GPTModel
from obscura_jax.text.loader import DataLoader
from obscura_jax.training.options import DEFAULT_OPTIONS, StepOptions
from obscura_jax.training.placement import SINGLE_DEVICE, Placement
from obscura_jax.training.run import TrainRun
from obscura_jax.training.step import TrainState

MetricsRow = dict[str, float]


class DivergedError(ValueError):
    """The loss or the gradients are NaN or infinite. `state` is the last good one."""

    def __init__(self, message: str, state: TrainState) -> None:
        super().__init__(message)
        self.state = state


def train(
    run: TrainRun, state: TrainState, placement: Placement = SINGLE_DEVICE
) -> Iterator[tuple[TrainState, MetricsRow]]:
    """Train from the step of `state` to the end of the run.

    The batch of a step depends only on the loader's seed and the step.

    Args:
        run: the run.
        state: a state as `placement.place` returns it; its buffers are donated.
        placement: where the state is stored.

    Yields:
        The state after each step, whose buffers the next step donates, and a row of metrics: step,
        loss, tokens_per_second, lr, gradient_norm.

    Raises:
        DivergedError: if the loss or the gradients are NaN or infinite.
    """
    start = int(state.step)
    batches = placement.batches(run.loader, start, run.options.grad_accum_steps)
    for step in range(start, run.steps):
        begin = time.perf_counter()
        batch = next(batches)
        state, found = placement.step(run, state, batch)
        metrics = jax.device_get(found)
        loss, norm = float(metrics.loss), float(metrics.gradient_norm)
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
            "tokens_per_second": batch[0].size / seconds,
            "lr": float(metrics.learning_rate),
            "gradient_norm": norm,
        }
        yield state, row


def validation_loss(
    model: GPTModel,
    params: Any,
    loader: DataLoader,
    *,
    max_batches: int = 20,
    options: StepOptions = DEFAULT_OPTIONS,
    placement: Placement = SINGLE_DEVICE,
) -> float:
    """Return the mean loss over the first batches of epoch 0, without dropout.

    Args:
        model: the model.
        params: placed parameters.
        loader: batches of windows.
        max_batches: number of batches to read, if the epoch has as many.
        options: of these only `logits_chunk` applies.
        placement: where the parameters are stored.
    """
    batches = islice(placement.batches(loader), min(max_batches, len(loader)))
    losses = [float(placement.loss(model, params, batch, options)) for batch in batches]
    return float(np.mean(losses))
