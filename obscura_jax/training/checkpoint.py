"""Where training stands, on disk: written whole or not at all, and checked before it is used."""

import contextlib
import gc
import json
import logging
import shutil
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from obscura_jax.checks import check_size
from obscura_jax.training.placement import host_device
from obscura_jax.training.step import TrainState

_STATE = "state"


class CheckpointManager:
    """The states of one run, in a folder of its own: `folder/STEP` for the last few steps saved.

    Files are orbax's. Beside the state, each checkpoint holds `run`,
    what identifies the run, and a CRC-32 of every array.
    """

    def __init__(
        self, folder: str | Path, run: Mapping[str, Any], *, keep: int = 2, writes: bool = True
    ) -> None:
        """Look into `folder`, which is made at the first save.

        Args:
            folder: where the checkpoints lie. What a killed process left half-written is removed.
            run: what must be the same for a run to go on, as JSON: sizes, optimizer, data, seed.
            keep: how many checkpoints are kept, the newest ones.
            writes: False leaves the writing to another process. All make every call, together.
        """
        self.folder = Path(folder).absolute()
        self.run = json.loads(json.dumps(run))
        self.keep, self.writes = check_size("keep", keep), writes
        self._latest: int | None = None  # saved or restored; other processes may see other folders
        for path in self._entries():
            if writes and "tmp" in path.name:
                shutil.rmtree(path, ignore_errors=True)

    @property
    def steps(self) -> list[int]:
        """The steps that a checkpoint was made after, in order."""
        return sorted(int(path.name) for path in self._entries() if path.name.isdecimal())

    def save(self, state: TrainState) -> None:
        """Write the state, then remove all but the newest `keep`; a state saved already stays.

        Raises ValueError when it cannot be written: the checkpoints before stay as they were.
        """
        step = int(state.step)
        if step == self._latest:
            return
        arrays = jax.device_get(_named(state))
        about = {"run": self.run, "crc": {name: _crc(array) for name, array in arrays.items()}}
        ocp = _orbax()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _quiet():
                ocp.save_checkpointables(
                    self.folder / str(step), {_STATE: arrays}, custom_metadata=about
                )
        except Exception as error:  # of many kinds: OSError, tensorstore's ValueError, ...
            for path in self._entries():
                if path.name.startswith(f"{step}."):
                    shutil.rmtree(path, ignore_errors=True)
            good = f": that of step {self.steps[-1]} is good" if self.steps else ""
            raise ValueError(
                f"the checkpoint of step {step} cannot be written to {self.folder} "
                f"({_first_line(error)}){good}"
            ) from error
        self._latest = step
        for old in self.steps[: -self.keep] if self.writes else ():
            shutil.rmtree(self.folder / str(old), ignore_errors=True)

    def restore(self, like: TrainState) -> TrainState | None:
        """Return the newest state that can be read, or None if there is no checkpoint.

        A damaged checkpoint raises a UserWarning and is renamed to `folder/STEP.damaged`, so that
        its step can be saved again; the newest one before it is used.

        Args:
            like: a state of this run, whose arrays' names, shapes and types must be the same.

        Raises:
            ValueError: for a checkpoint of another run, naming what differs, or if there are
                checkpoints and none can be read.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps):
            try:
                arrays = self._read(step, like)
            except (_OtherRunError, MemoryError):
                raise
            except _DamagedError as error:
                damaged[step] = str(error)
                continue
            except Exception:  # orbax, tensorstore and JSON raise many, in words of their own
                damaged[step] = "its files cannot be read"
                continue
            for bad, reason in damaged.items():
                warnings.warn(
                    f"the checkpoint of step {bad} in {self.folder} is damaged ({reason}); "
                    f"that of step {step} is used",
                    stacklevel=2,
                )
                if self.writes:
                    aside = self.folder / f"{bad}.damaged"
                    shutil.rmtree(aside, ignore_errors=True)
                    (self.folder / str(bad)).rename(aside)
            self._latest = step
            return jax.tree.unflatten(jax.tree.structure(like), map(arrays.get, _named(like)))
        if damaged:
            reasons = ", ".join(f"step {step} ({reason})" for step, reason in damaged.items())
            raise ValueError(
                f"no checkpoint in {self.folder} can be read: {reasons}; restore one from a copy, "
                "or train again in another folder"
            )
        return None

    def _read(self, step: int, like: TrainState) -> dict[str, Any]:
        ocp, path = _orbax(), self.folder / str(step)
        with _quiet():
            metadata = ocp.checkpointables_metadata(path)
        about = metadata.custom_metadata
        check_same_run(about["run"], self.run, str(self.folder))
        want = {name: (leaf.shape, str(leaf.dtype)) for name, leaf in _named(like).items()}
        found = {
            name: (tuple(leaf.shape), str(np.dtype(leaf.dtype)))
            for name, leaf in metadata.metadata[_STATE].items()
        }
        for name in sorted(want.keys() | found.keys()):
            if want.get(name) != found.get(name):
                raise _OtherRunError(
                    f"{path} is of another model or optimizer: {name} is "
                    f"{found.get(name, 'missing')} there and {want.get(name, 'missing')} here"
                )
        device = jax.sharding.SingleDeviceSharding(host_device())
        abstract = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=device)
            for name, (shape, dtype) in want.items()
        }
        with _quiet():
            arrays = ocp.load_checkpointables(path, {_STATE: abstract})[_STATE]
        for name, array in arrays.items():
            if _crc(np.asarray(array)) != about["crc"][name]:
                raise _DamagedError(f"{name} has another checksum")
        return arrays

    def _entries(self) -> list[Path]:
        return list(self.folder.iterdir()) if self.folder.is_dir() else []


class _OtherRunError(ValueError):
    """The checkpoint is whole, but not of this run."""


class _DamagedError(ValueError):
    """The checkpoint can be read, but not all of it is what was saved."""


def check_same_run(there: Mapping[str, Any], here: Mapping[str, Any], place: str) -> None:
    """Raise ValueError, naming the first difference, unless two runs are the same."""
    if "dropout" in here and "dropout" not in there:
        raise _OtherRunError(
            f"{place} was begun by an earlier version, which drops other values; train again in "
            "another folder"
        )
    for field in sorted(there.keys() | here.keys()):
        if there.get(field) != here.get(field):
            raise _OtherRunError(
                f"{place} is of another run: its {field} is {there.get(field)!r}, "
                f"here it is {here.get(field)!r}"
            )


def _named(state: TrainState) -> dict[str, Any]:
    """The arrays of a state by their paths in it."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _crc(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No tracebacks on standard error from orbax's threads: the caller is told by an exception."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before = [logger.disabled for logger in loggers]
    hooks = threading.excepthook, sys.unraisablehook
    try:
        for logger in loggers:
            logger.disabled = True
        threading.excepthook = lambda _: None
        sys.unraisablehook = lambda _: None
        try:
            yield
        except Exception:
            gc.collect()  # what it left unfinished complains when it is collected: now
            hooks = hooks[0], _deaf_to_late_writes(hooks[1])
            raise
    finally:
        threading.excepthook, sys.unraisablehook = hooks
        for logger, was in zip(loggers, before, strict=True):
            logger.disabled = was


def _deaf_to_late_writes(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`hook` without the writes of a failed save that end after orbax has closed its event loop."""

    def heard(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    return heard


def _orbax() -> Any:
    """Orbax, imported where it is needed: it takes a second."""
    from orbax.checkpoint import v1

    return v1
