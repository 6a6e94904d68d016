"""A run in a folder: steps with their metrics, validation and checkpoints, to be gone on with.

The folder holds `checkpoints`, and `metrics.jsonl` with an object a step and one a validation.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.typing import DTypeLike

from obscura_jax.atomic_files import replace_text
from obscura_jax.config import GENERATOR
from obscura_jax.nn.model import GPTModel, RematPolicy
from obscura_jax.nn.parameters import init_shapes
from obscura_jax.text.loader import DataLoader
from obscura_jax.training.checkpoint import CheckpointManager
from obscura_jax.training.loop import DivergedError, check_accumulate, train, validation_loss
from obscura_jax.training.optimizer import OptimizerConfig
from obscura_jax.training.placement import SINGLE_DEVICE, Placement, host_device
from obscura_jax.training.step import TrainState, init_train_state

METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"


@dataclass(frozen=True)
class TrainRun:
    """What a run computes. Two runs that are equal here have the same losses, bit for bit.

    Attributes:
        model: the model.
        config: the optimizer's numbers.
        loader: the batches.
        steps: after how many it ends.
        seed: of the key for dropout, where the model drops.
        grad_accum_steps: in how many parts a batch is read.
        compute_dtype: as in `train_step_jit`.
        logits_chunk: as in `train_step_jit`.
        remat: as in `train_step_jit`.
    """

    model: GPTModel
    config: OptimizerConfig
    loader: DataLoader
    steps: int
    seed: int = 0
    grad_accum_steps: int = 1
    compute_dtype: DTypeLike | None = None
    logits_chunk: int | None = None
    remat: RematPolicy | None = None

    def __post_init__(self) -> None:
        """Check what the step would refuse."""
        check_accumulate(self.grad_accum_steps, self.loader.batch_size)

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same to go on, as JSON; of the data the checksum, and their order.

        `logits_chunk` and `remat` may change from start to start, as where the state lies may.
        """
        data = self.loader.epoch(0).state()
        return {
            **{f"model.{name}": value for name, value in self.model.cfg.to_dict().items()},
            **{f"optimizer.{name}": value for name, value in asdict(self.config).items()},
            **{f"data.{n}": data[n] for n in data.keys() - {"epoch", "batch"}},
            "steps": self.steps,
            "seed": self.seed,
            "accumulate": self.grad_accum_steps,
            "compute_dtype": self.compute_dtype and str(jax.numpy.dtype(self.compute_dtype)),
            **({"dropout": "keys folded by block"} if self.model.cfg.drop_rate else {}),
        }

    def abstract_state(self) -> TrainState:
        """The state's arrays, without their numbers."""
        init = partial(init_train_state, self.config)
        return jax.eval_shape(init, init_shapes(self.model.cfg))


def fit(
    run: TrainRun,
    folder: str | Path,
    params: Callable[[], Any],
    *,
    validation: DataLoader,
    validate_every: int,
    save_every: int,
    keep: int = 2,
    max_seconds: float | None = None,
    stop: Callable[[], object] = lambda: False,
    sample: Callable[[Any], str] | None = None,
    show: Callable[[Mapping[str, Any]], object] = lambda row: None,
    placement: Placement = SINGLE_DEVICE,
) -> TrainState:
    """Go on where the folder's newest checkpoint stands, or begin, until the run's end or a stop.

    Args:
        run: what to compute.
        folder: where to write.
        params: makes the parameters that a run without checkpoints begins with.
        validation: batches for the validation loss.
        validate_every: steps from one validation to the next; the last step has one too.
        save_every: steps from one checkpoint to the next; there is one at the end too.
        keep: how many checkpoints are kept.
        max_seconds: stop after the first step that ends later than this.
        stop: asked after each step; stops where true.
        sample: text from parameters, for each validation's row.
        show: called with each row of the metrics.
        placement: where the state lies; it may be another at each start of a run.

    Returns:
        The state at the end, whole and on the host; it is saved.

    Raises:
        DivergedError: for a NaN or infinite loss; the last good state is saved.
        ValueError: for checkpoints of another run, all damaged, or not written; for damaged
            metrics.
    """
    folder, begin = Path(folder), time.perf_counter()
    rows = read_metrics(folder / METRICS) if placement.writes else []
    checkpoints = CheckpointManager(
        folder / CHECKPOINTS, run.fingerprint(), keep=keep, writes=placement.writes
    )
    with jax.default_device(host_device()):  # it may be too large for one of the others
        state = checkpoints.restore(run.abstract_state())
        if state is None:
            state = init_train_state(run.config, params())
    state = placement.put(state)
    if placement.writes:
        kept = [row for row in rows if row["step"] < int(state.step)]
        replace_text(folder / METRICS, "".join(json.dumps(row) + "\n" for row in kept))
    states = train(
        run.model,
        run.config,
        state,
        run.loader,
        steps=run.steps,
        grad_accum_steps=run.grad_accum_steps,
        key=jax.random.key(run.seed, impl=GENERATOR) if run.model.cfg.drop_rate else None,
        compute_dtype=run.compute_dtype,
        logits_chunk=run.logits_chunk,
        remat=run.remat,
        placement=placement,
    )

    def save(state: TrainState) -> TrainState:
        state = placement.take(state)
        checkpoints.save(state)
        return state

    with open(
        folder / METRICS if placement.writes else os.devnull, "a", encoding="utf-8"
    ) as metrics:

        def note(row: Mapping[str, Any]) -> None:
            print(json.dumps(row), file=metrics, flush=True)
            show(row)

        try:
            for state, row in states:
                note(row)
                done = int(row["step"]) + 1
                if done % validate_every == 0 or done == run.steps:
                    loss = validation_loss(
                        run.model,
                        state.params,
                        validation,
                        logits_chunk=run.logits_chunk,
                        placement=placement,
                    )
                    text = {"sample": sample(placement.params(state))} if sample else {}
                    note({"step": row["step"], "val_loss": loss, **text})
                late = max_seconds is not None and time.perf_counter() - begin > max_seconds
                if placement.agree(int(bool(late or stop()))):
                    break
                if done % save_every == 0:
                    save(state)
        except DivergedError as error:
            save(error.state)
            raise
    return save(state)


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
