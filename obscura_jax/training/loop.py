"""The training loop: one step per batch, the metrics of each, and the validation loss (5.2)."""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import jax
import numpy as np

from obscura_jax.nn.model import GPTModel
from obscura_jax.text.loader import DataLoader
from obscura_jax.training.options import DEFAULT_OPTIONS, StepOptions
from obscura_jax.training.placement import SINGLE_DEVICE, Placement
from obscura_jax.training.run import TrainRun
from obscura_jax.training.step import StepMetrics, TrainState

MetricsRow = dict[str, float]


class DivergedError(ValueError):
    """The loss or the gradients are NaN or infinite."""


def dispatch_steps(
    run: TrainRun, state: TrainState, placement: Placement = SINGLE_DEVICE
) -> Iterator[tuple[TrainState, Callable[[], MetricsRow]]]:
    """Dispatch the steps of a run, from the step of `state`, without waiting for their results.

    The batch of a step depends only on the loader's seed and the step. To keep the devices busy,
    read the metrics of a step after the next one is dispatched. If a step diverges, it and all
    later steps leave the state unchanged.

    Args:
        run: the run.
        state: a state as `placement.place` returns it; its buffers are donated.
        placement: where the state is stored.

    Yields:
        The state after each step, whose buffers the next step donates, and a function that waits
        for the step and returns its metrics: step, loss, tokens_per_second, lr, gradient_norm. Call
        these functions in order. A step's time is counted from its dispatch, or from when the
        metrics before were read if that was later. Raises DivergedError if the loss or the
        gradients are NaN or infinite.
    """
    start, last_read = int(state.step), -math.inf
    batches = placement.batches(run.loader, start, run.options.grad_accum_steps)

    def read(step: int, tokens: int, begin: float, metrics: StepMetrics) -> MetricsRow:
        nonlocal last_read
        metrics = jax.device_get(metrics)
        begin, last_read = max(begin, last_read), time.perf_counter()
        loss, norm = float(metrics.loss), float(metrics.gradient_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(
                f"training diverged at step {step} (loss {loss}, gradient norm {norm}); start "
                "again in another folder with a lower learning rate (--learning-rate) or stronger "
                "clipping (--clip-norm)"
            )
        return {
            "step": step,
            "loss": loss,
            "tokens_per_second": tokens / (last_read - begin),
            "lr": float(metrics.learning_rate),
            "gradient_norm": norm,
        }

    for step in range(start, run.steps):
        begin = time.perf_counter()
        batch = next(batches)
        state, metrics = placement.step(run, state, batch, step)
        yield state, partial(read, step, batch[0].size, begin, metrics)


def train(
    run: TrainRun, state: TrainState, placement: Placement = SINGLE_DEVICE
) -> Iterator[tuple[TrainState, MetricsRow]]:
    """Take the steps of a run, from the step of `state`, and wait for each.

    Arguments as in `dispatch_steps`.

    Yields:
        The state after each step, whose buffers the next step donates, and its row of metrics.

    Raises:
        DivergedError: if the loss or the gradients are NaN or infinite.
    """
    for after, read in dispatch_steps(run, state, placement):
        yield after, read()


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
