"""Checkpoints of a training run: each is complete or absent, and verified before it is used."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from obscura_jax import __version__
from obscura_jax.checks import check_size
from obscura_jax.nn.parameters import named_leaves
from obscura_jax.safetensors_files import read_safetensors, write_safetensors
from obscura_jax.training.placement import SINGLE_DEVICE, Placement
from obscura_jax.training.run import TrainRun
from obscura_jax.training.shards import StoredArrays, local_parts
from obscura_jax.training.step import TrainState

FORMAT = 2
_INDEX = "index.json"
_TEMPORARY = ".tmp"
_ORBAX = "_CHECKPOINT_METADATA"  # in the checkpoints of obscura_jax 0.1.0


class CheckpointManager:
    """The newest checkpoints of one run, in `folder/STEP`.

    Each process writes the shards of its own devices to a safetensors file with a checksum, in the
    course's layout. `index.json` names these files, the run and its arrays. Any placement can
    restore a checkpoint: with or without stacked blocks, on another mesh, in other processes.

    With several processes, each calls every method, and all see the same folder.
    """

    def __init__(
        self,
        folder: str | Path,
        run: TrainRun,
        placement: Placement = SINGLE_DEVICE,
        max_to_keep: int = 2,
    ) -> None:
        """Remove what a killed process left unfinished. The first save creates `folder`.

        Args:
            folder: where the checkpoints are stored.
            run: the run; checkpoints of another run are refused.
            placement: where the state is stored.
            max_to_keep: number of checkpoints to keep, the newest ones.
        """
        self.folder = Path(folder).absolute()
        self.max_to_keep = check_size("max_to_keep", max_to_keep)
        self._fingerprint = json.loads(json.dumps(run.fingerprint()))
        self._abstract_state = run.abstract_state()
        self._shapes = named_leaves(self._abstract_state)
        self._placement = placement
        self._latest: int | None = None  # the step that was saved or restored last
        if placement.is_writer and self.folder.is_dir():
            for path in self.folder.glob("*tmp"):
                shutil.rmtree(path, ignore_errors=True)

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints, in ascending order."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted(int(name) for name in names if name.isdecimal())

    def save(self, state: TrainState) -> None:
        """Write a placed state, unless its step was saved, and remove the oldest checkpoints.

        Raises:
            ValueError: if it cannot be written; the checkpoints before it are unchanged.
        """
        step = int(state.step)
        if step == self._latest:
            return
        temporary = self.folder / f"{step}{_TEMPORARY}"
        self._together(step, lambda: self._write_parts(temporary, state))
        self._together(step, lambda: self._finish(temporary, step))
        self._latest = step
        for old in self.steps[: -self.max_to_keep] if self._placement.is_writer else ():
            unused = self.folder / f"{old}{_TEMPORARY}"
            (self.folder / str(old)).rename(unused)
            shutil.rmtree(unused, ignore_errors=True)

    def restore(self) -> TrainState | None:
        """Return the newest state that can be read, placed, or None if there is no checkpoint.

        A damaged checkpoint raises a UserWarning and is renamed to `folder/STEP.damaged`, so that
        its step can be saved again; the newest one before it is used.

        Raises:
            ValueError: if the newest checkpoint is of another run or was written by another version
                of this package, if none can be read, or if the processes see different folders.
        """
        damaged: dict[int, str] = {}
        for step in [*reversed(self.steps), -1]:  # -1: there are no more
            newest = self._placement.max_over_processes(step)
            oldest = -self._placement.max_over_processes(-step)
            if newest != oldest:
                raise ValueError(
                    f"the processes see checkpoints of different steps, {oldest} and {newest}; "
                    "give all the same run folder"
                )
            if step == -1:
                break
            try:
                stored, reason = self._open(step), ""
            except _DamagedError as error:
                reason = str(error)
            if self._placement.max_over_processes(int(bool(reason))):
                damaged[step] = reason or "another process cannot read it"
                continue
            for bad, reason in damaged.items():
                self._set_aside(bad, reason, used=step)
            self._latest = step
            restored: TrainState = stored.as_state(self._placement.abstract(self._abstract_state))
            return restored
        if damaged:
            reasons = ", ".join(f"step {step} ({reason})" for step, reason in damaged.items())
            raise ValueError(
                f"no checkpoint in {self.folder} can be read: {reasons}; restore one from a copy, "
                "or train again in another folder"
            )
        return None

    def _write_parts(self, temporary: Path, state: TrainState) -> None:
        temporary.mkdir(parents=True, exist_ok=True)
        path = temporary / _file_name(jax.process_index())
        write_safetensors(path, local_parts(state, self._shapes))
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def _finish(self, temporary: Path, step: int) -> None:
        if not self._placement.is_writer:
            return
        files = [_file_name(process) for process in range(jax.process_count())]
        for name in files:
            if not (temporary / name).is_file():
                raise OSError(f"{name} is missing; give all processes the same run folder")
        index = {
            "format": FORMAT,
            "version": __version__,
            "run": self._fingerprint,
            "files": files,
            "arrays": _described(self._shapes),
        }
        with open(temporary / _INDEX, "w", encoding="utf-8") as file:
            json.dump({**index, "sha256": _sha256(index)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.folder / str(step))

    def _together(self, step: int, write: Callable[[], None]) -> None:
        """Call `write`; if it fails in any process, remove the checkpoint and raise in all."""
        reason = ""
        try:
            write()
        except OSError as error:
            reason = error.strerror or str(error)
        if not self._placement.max_over_processes(int(bool(reason))):
            return
        if self._placement.is_writer:
            shutil.rmtree(self.folder / f"{step}{_TEMPORARY}", ignore_errors=True)
        good = f"; the one of step {self.steps[-1]} is good" if self.steps else ""
        raise ValueError(
            f"the checkpoint of step {step} cannot be written to {self.folder} "
            f"({reason or 'another process failed'}){good}"
        )

    def _open(self, step: int) -> StoredArrays:
        """Return the arrays of a checkpoint. Each process verifies its share of the files."""
        path = self.folder / str(step)
        if (path / _ORBAX).exists():
            raise ValueError(
                f"{path} was written by obscura_jax 0.1.0, whose checkpoints this version cannot "
                "read; resume with that version, or train again in another folder"
            )
        try:
            index = json.loads((path / _INDEX).read_text(encoding="utf-8"))
            if index.pop("sha256") != _sha256(index):
                raise ValueError
            version = index["version"]
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _DamagedError(f"{_INDEX} is missing or damaged") from None
        if index["format"] != FORMAT:
            raise ValueError(
                f"{path} was written by obscura_jax {version}, whose checkpoints this version "
                "cannot read; resume with that version, or train again in another folder"
            )
        check_same_run(index["run"], self._fingerprint, str(self.folder))
        _check_same_arrays(index["arrays"], _described(self._shapes), path)
        files = []
        for number, name in enumerate(index["files"]):
            own = number % jax.process_count() == jax.process_index()
            try:
                files.append(read_safetensors(path / name, verify=own))
            except (OSError, ValueError):
                raise _DamagedError(f"{name} is missing or damaged") from None
        try:
            return StoredArrays(files, self._shapes)
        except ValueError as error:
            raise _DamagedError(str(error)) from None

    def _set_aside(self, step: int, reason: str, *, used: int) -> None:
        warnings.warn(
            f"the checkpoint of step {step} in {self.folder} is damaged ({reason}); "
            f"that of step {used} is used",
            stacklevel=3,
        )
        if self._placement.is_writer:
            aside = self.folder / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(step)).rename(aside)


class _DamagedError(ValueError):
    """A checkpoint is not what was saved."""


def check_same_run(there: Mapping[str, Any], here: Mapping[str, Any], place: str) -> None:
    """Raise ValueError, naming the first difference, unless two fingerprints are equal."""
    if found := _first_difference(there, here):
        field, saved, wanted = found
        raise ValueError(
            f"{place} is of another run: its {field} is {saved!r}, here it is {wanted!r}"
        )


def _check_same_arrays(there: Mapping[str, Any], here: Mapping[str, Any], path: Path) -> None:
    if found := _first_difference(there, here, "missing"):
        name, saved, wanted = found
        raise ValueError(
            f"{path} is of another model or optimizer: {name} is {saved} there and {wanted} here"
        )


def _first_difference(
    there: Mapping[str, Any], here: Mapping[str, Any], missing: Any = None
) -> tuple[str, Any, Any] | None:
    """Return the first name whose values differ, and both values; None if all are equal."""
    for name in sorted(there.keys() | here.keys()):
        values = there.get(name, missing), here.get(name, missing)
        if values[0] != values[1]:
            return name, *values
    return None


def _described(shapes: Mapping[str, Any]) -> dict[str, str]:
    """Return the type and shape of each array, as in "float32[50257,768]"."""
    return {
        name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for name, leaf in shapes.items()
    }


def _file_name(process: int) -> str:
    return f"process-{process}.safetensors"


def _sha256(index: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
