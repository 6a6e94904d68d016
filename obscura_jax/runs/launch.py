"""Start a training run in a folder: on one device, over a mesh, or in several processes."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from obscura_jax.atomic_files import require_path
from obscura_jax.config import GENERATOR
from obscura_jax.interop.checkpoint import save_model
from obscura_jax.interop.model_tokenizer import IdTokenizer
from obscura_jax.interop.tokens import NO_TOKENS, gpt2_record
from obscura_jax.nn.model import GPTModel
from obscura_jax.plots import loss_curves
from obscura_jax.runs.fit import Callbacks, Schedule, fit, read_metrics
from obscura_jax.runs.folder import (
    LOOK,
    LOSS_PLOT,
    METRICS,
    MODEL,
    delete_partial_run,
    locked_run_folder,
    read_settings,
    resolve_settings,
    save_settings,
)
from obscura_jax.runs.looks import LookWriter, check_looks
from obscura_jax.runs.prepare import TextSource, prepare
from obscura_jax.runs.samples import text_sampler
from obscura_jax.runs.settings import TrainSettings
from obscura_jax.text.loader import DataLoader
from obscura_jax.text.tokenizers import tokenizer_for
from obscura_jax.training.initial import gpt2_init
from obscura_jax.training.loop import DivergedError
from obscura_jax.training.placement import Placement, SingleDevice
from obscura_jax.training.run import TrainRun

_LOOK_TOKENS = 32  # of the validation text


@dataclass(frozen=True)
class Launch:
    """Options of one start of a run. Results depend on them in rounding only.

    Attributes:
        resume: whether to continue the run in the folder.
        schedule: when to validate, save and stop.
        mesh: axis sizes of a mesh over all devices, such as "data=4,model=2". None uses one
            device, or with several processes splits each batch over all devices.
        scan: whether to compile one block and run it in a loop.
        source: text for a new run whose settings name none.
        watch: takes the number of steps; the context that it returns is entered for the training
            itself and gives the callbacks.
        warn: receives messages about problems that do not end the run.
    """

    resume: bool = False
    schedule: Schedule = Schedule()
    mesh: str | None = None
    scan: bool = False
    source: TextSource = TextSource()
    watch: Callable[[int], AbstractContextManager[Callbacks]] = lambda steps: nullcontext(
        Callbacks()
    )
    warn: Callable[[str], object] = warnings.warn


@dataclass(frozen=True)
class TrainResult:
    """The state of a run when `train` returns.

    Attributes:
        model: the model.
        params: its parameters, on the host.
        metrics: the rows of metrics.jsonl, since the first step of the run.
        steps: number of steps taken, since the first one.
        stopped_by: the true result of `should_stop` that ended the run, or 0 if it is finished.
    """

    model: GPTModel
    params: Any
    metrics: list[dict[str, Any]]
    steps: int
    stopped_by: int = 0


def train(
    settings: TrainSettings | Mapping[str, Any],
    folder: str | Path,
    *,
    resume: bool = False,
    schedule: Schedule = Schedule(),
    mesh: str | None = None,
    scan: bool = False,
    on_metrics: Callable[[Mapping[str, Any]], object] = lambda row: None,
) -> TrainResult:
    """Train a model in a folder, as `obscura train` does.

    The folder receives settings.json, the tokens of the text, checkpoints, metrics.jsonl, loss.png
    (if matplotlib is installed) and at the end the model, for `load_model(folder + "/model")`.
    After an interruption of any kind, a call with `resume=True` continues from the newest
    checkpoint, with the same losses as without the interruption. With several JAX processes, call
    `train` in all of them with the same arguments.

    Args:
        settings: the settings, or a dictionary of some of them: the others have their defaults,
            or if the run is resumed the values that it was started with.
        folder: a new or empty folder, or the folder of the run to resume.
        resume: whether to continue the run in the folder.
        schedule: when to validate, save and stop.
        mesh: axis sizes of a mesh over all devices, such as "data=4,model=2"; None uses one
            device, or with several processes splits each batch over all devices.
        scan: whether to compile one block and run it in a loop, which compiles faster.
        on_metrics: receives each row of metrics.jsonl as a dictionary.

    Raises:
        ValueError: if a setting is invalid or differs from the resumed run's, if the folder is
            not usable, if there is no text or it is too short, or if training diverges.
        FileNotFoundError: if a text file does not exist.
    """
    given = settings.to_dict() if isinstance(settings, TrainSettings) else settings
    callbacks = Callbacks(on_metrics=on_metrics)
    how = Launch(resume, schedule, mesh, scan, watch=lambda steps: nullcontext(callbacks))
    return launch(given, folder, how)


def launch(given: Mapping[str, Any], folder: str | Path, how: Launch) -> TrainResult:
    """Train in a folder with some settings given; see `train`."""
    folder = require_path(folder)
    TrainSettings(**given)  # before the first process writes anything
    if how.schedule.look_every is not None:
        check_looks(one_device=how.mesh is None and jax.process_count() == 1)
    if jax.process_index() > 0:
        _wait_for_all_processes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first process shows them
            return _execute(_prepare(folder, read_settings(folder), how), how)
    with locked_run_folder(folder):
        settings = resolve_settings(folder, given, how.resume)
        with nullcontext() if how.resume else delete_partial_run(folder):
            if not how.resume:
                save_settings(folder, settings)  # to resume while the text is read
            job = _prepare(folder, settings, how)
            if how.resume:
                save_settings(folder, settings)
            _wait_for_all_processes()
            return _execute(job, how)


@dataclass(frozen=True)
class _Job:
    folder: Path
    settings: TrainSettings
    run: TrainRun
    validation: DataLoader
    placement: Placement


def _prepare(folder: Path, settings: TrainSettings, how: Launch) -> _Job:
    source = replace(how.source, stream=None) if how.resume else how.source
    if how.mesh is None and jax.process_count() == 1:
        run, validation = prepare(folder, settings, source, None)
        return _Job(folder, settings, run, validation, SingleDevice(scan=how.scan))
    from obscura_jax.scale.mesh import make_mesh, parse_mesh
    from obscura_jax.scale.placement import MeshPlacement

    mesh = make_mesh(parse_mesh(how.mesh) if how.mesh else {"data": jax.device_count()})
    run, validation = prepare(folder, settings, source, mesh)
    placement = MeshPlacement(
        mesh, run.model.cfg, scan=how.scan, is_writer=jax.process_index() == 0
    )
    return _Job(folder, settings, run, validation, placement)


def _execute(job: _Job, how: Launch) -> TrainResult:
    """Train, then write the loss plot and, if the run is finished, the model."""
    placement, model = job.placement, job.run.model
    key = jax.random.key(job.settings.seed, impl=GENERATOR)
    sample = text_sampler(model, key, how.warn) if isinstance(placement, SingleDevice) else None
    try:
        with how.watch(job.run.steps) as callbacks:
            callbacks = replace(callbacks, sample_text=sample)
            if how.schedule.look_every is not None:
                callbacks = replace(callbacks, look=_look_writer(job, how.warn).add)
            state = fit(
                job.run,
                job.folder,
                lambda: gpt2_init(model.cfg, key),
                job.validation,
                how.schedule,
                callbacks,
                placement,
            )
            stopped_by = placement.max_over_processes(int(callbacks.should_stop()))
    except DivergedError:
        if placement.is_writer:
            _draw_loss(job.folder, how.warn)
        raise
    params = placement.gather(state.params)
    result = TrainResult(model, params, [], int(state.step), stopped_by)
    if not placement.is_writer:
        return result
    _draw_loss(job.folder, how.warn)
    if not stopped_by:  # token files do not name their tokenizer
        tokens = NO_TOKENS if job.settings.data else gpt2_record(model.cfg)
        save_model(job.folder / MODEL, model.cfg, params, tokens=tokens)
    return replace(result, metrics=read_metrics(job.folder / METRICS))


def _look_writer(job: _Job, warn: Callable[[str], object]) -> LookWriter:
    """Return the writer of looks, which are at the beginning of the validation text."""
    (ids, *_), _ = next(iter(job.validation))
    cfg = job.run.model.cfg
    tokenizer = IdTokenizer() if job.settings.data else tokenizer_for(cfg.vocab_size)
    text = ids[:_LOOK_TOKENS].tolist()
    return LookWriter(job.folder / LOOK, job.run.model, text, tokenizer, warn)


def _draw_loss(folder: Path, warn: Callable[[str], object]) -> None:
    """Draw the loss curves if matplotlib is installed; an error does not end the run."""
    try:
        if rows := read_metrics(folder / METRICS):
            loss_curves(rows).savefig(folder / LOSS_PLOT, dpi=120)
    except Exception as error:
        warn(f"no {LOSS_PLOT}: {error}")


def _wait_for_all_processes() -> None:
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices("prepared")
