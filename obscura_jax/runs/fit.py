"""A resumable training run in a folder: metrics, validation and checkpoints.

The folder contains `checkpoints`, and `metrics.jsonl` with one JSON object per step and one per
validation.
"""

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from obscura_jax.atomic_files import replace_text
from obscura_jax.checks import check_sizes, real_number
from obscura_jax.runs.folder import CHECKPOINTS, METRICS
from obscura_jax.text.loader import DataLoader
from obscura_jax.training.checkpoint import CheckpointManager
from obscura_jax.training.loop import DivergedError, dispatch_steps, validation_loss
from obscura_jax.training.placement import SINGLE_DEVICE, Placement, host_device
from obscura_jax.training.run import TrainRun
from obscura_jax.training.step import TrainState, init_train_state


@dataclass(frozen=True)
class Schedule:
    """When a run validates, saves and stops. It may differ each time that a run is resumed.

    Attributes:
        validate_every: steps between validations; there is also one after the last step.
        save_every: steps between checkpoints; there is also one at the end.
        max_to_keep: number of checkpoints to keep, the newest ones.
        max_seconds: stop after the first step that ends later than this; None sets no limit.
        look_every: steps between looks inside the model; there is also one before the first step
            and one after the last. None takes none.

    Raises:
        ValueError: if a field is out of range; the message names it.
    """

    validate_every: int = 100
    save_every: int = 100
    max_to_keep: int = 2
    max_seconds: float | None = None
    look_every: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self, "validate_every", "save_every", "max_to_keep")
        if self.look_every is not None:
            check_sizes(self, "look_every")
        if self.max_seconds is not None and not real_number(self.max_seconds) > 0:
            raise ValueError(f"max_seconds must be above 0, got {self.max_seconds!r}")


@dataclass(frozen=True)
class Callbacks:
    """Functions that a run calls.

    Attributes:
        on_metrics: receives each row of the metrics.
        should_stop: called after each step; a true result saves and ends the run.
        sample_text: maps the parameters, in the course's layout, to a text for the row of each
            validation; None adds no text.
        look: called with the number of steps taken and the parameters, in the course's layout, when
            the schedule says so.
    """

    on_metrics: Callable[[Mapping[str, Any]], object] = lambda row: None
    should_stop: Callable[[], int] = lambda: 0
    sample_text: Callable[[Any], str] | None = None
    look: Callable[[int, Any], object] = lambda step, params: None


def fit(
    run: TrainRun,
    folder: str | Path,
    init_params: Callable[[], Any],
    validation: DataLoader,
    schedule: Schedule = Schedule(),
    callbacks: Callbacks = Callbacks(),
    placement: Placement = SINGLE_DEVICE,
) -> TrainState:
    """Train from the newest checkpoint, or from scratch, until the last step or a stop request.

    Args:
        run: the run.
        folder: an existing folder to write to.
        init_params: returns the initial parameters; called if there is no checkpoint.
        validation: batches for the validation loss.
        schedule: when to validate, save and stop.
        callbacks: functions to call.
        placement: where the state is stored; it may differ each time that a run is resumed.

    Returns:
        The placed state at the end, which has been saved; `placement.gather` returns its
        parameters on the host.

    Raises:
        DivergedError: if the loss is NaN or infinite; the last good state is saved.
        ValueError: if the checkpoints are from another run, are all damaged or cannot be written,
            or if the metrics are damaged.
    """
    folder, begin = Path(folder), time.perf_counter()
    rows = read_metrics(folder / METRICS) if placement.is_writer else []
    checkpoints = CheckpointManager(folder / CHECKPOINTS, run, placement, schedule.max_to_keep)
    start = checkpoints.restore()
    if start is None:
        with jax.default_device(host_device()):  # one of the others may have too little memory
            start = placement.place(init_train_state(run.optimizer_config, init_params()))
    state = start
    if placement.is_writer:
        kept = [row for row in rows if row["step"] < int(state.step)]
        replace_text(folder / METRICS, "".join(json.dumps(row) + "\n" for row in kept))

    def validate(state: TrainState) -> dict[str, Any]:
        loss = validation_loss(
            run.model, state.params, validation, options=run.options, placement=placement
        )
        if callbacks.sample_text is None:
            return {"val_loss": loss}
        return {"val_loss": loss, "sample": callbacks.sample_text(placement.gather(state.params))}

    def stopping() -> bool:
        seconds = time.perf_counter() - begin
        late = schedule.max_seconds is not None and seconds > schedule.max_seconds
        return bool(placement.max_over_processes(int(bool(late or callbacks.should_stop()))))

    def look_at(state: TrainState, done: int) -> None:
        every = schedule.look_every
        if every is not None and (done % every == 0 or done == run.steps):
            callbacks.look(done, placement.gather(state.params))

    path = folder / METRICS if placement.is_writer else os.devnull
    with open(path, "a", encoding="utf-8") as metrics:

        def record(row: Mapping[str, Any]) -> None:
            print(json.dumps(row), file=metrics, flush=True)
            callbacks.on_metrics(row)

        unread: deque[Callable[[], Mapping[str, Any]]] = deque()

        def record_all_but(count: int) -> None:
            while len(unread) > count:
                record(unread.popleft()())

        done = int(start.step)
        look_at(start, done)
        try:
            for state, read in dispatch_steps(run, start, placement):
                done += 1
                unread.append(read)
                record_all_but(1)  # the step before, while this one runs
                stop = stopping()
                validate_now = done % schedule.validate_every == 0 or done == run.steps
                save_now = done % schedule.save_every == 0
                if stop or validate_now or save_now:
                    record_all_but(0)  # the next step donates this state
                if validate_now:
                    record({"step": done - 1, **validate(state)})
                look_at(state, done)
                if stop:
                    break
                if save_now:
                    checkpoints.save(state)
        except DivergedError:
            checkpoints.save(state)
            raise
    checkpoints.save(state)
    return state


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a `metrics.jsonl`, without an unfinished last line.

    Raises:
        ValueError: for a line that is not a row with a step, naming its number.
    """
    path = Path(path)
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, 1):
        row = None
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line.decode())
        if isinstance(row, dict) and type(row.get("step")) is int:
            rows.append(row)
        elif number < len(lines):  # the last one is empty or unfinished
            raise ValueError(f"{path} is damaged: line {number} is not a row; delete that line")
    return rows
