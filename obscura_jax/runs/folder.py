"""The folder of a training run: its files, its settings, and a lock for one process at a time."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from obscura_jax.atomic_files import new_folders, replace_text, temporary_paths
from obscura_jax.runs.settings import TrainSettings

SETTINGS, TOKENS, CHECKPOINTS = "settings.json", "tokens.bin", "checkpoints"
METRICS, LOSS_PLOT, MODEL, LOOK = "metrics.jsonl", "loss.png", "model", "look.html"


@contextlib.contextmanager
def locked_run_folder(folder: Path) -> Iterator[None]:
    """Context manager: create `folder` if needed and lock it; remove it if it is left empty.

    Raises:
        ValueError: if it cannot be written, or another process is training there.
    """
    from filelock import FileLock, Timeout

    lock = folder / ".lock"
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise ValueError(f"{folder} is not a folder; choose a new or empty one")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(new_folders(folder))
            stack.enter_context(FileLock(lock).acquire(timeout=0))
        except Timeout:
            raise ValueError(
                f"another process is training in {folder}; wait for it, or choose another folder"
            ) from None
        except OSError as error:
            raise ValueError(f"{folder} cannot be written: {error.strerror or error}") from error
        stack.enter_context(temporary_paths(lock))
        yield


def resolve_settings(folder: Path, given: Mapping[str, Any], resume: bool) -> TrainSettings:
    """Return the settings of a new run with those in `given`, or of the run to resume.

    Nothing is written; see `save_settings`.

    Raises:
        ValueError: for a new run, if the folder is not empty; for a resumed one, if the folder
            contains no run or damaged settings, or if a value in `given` differs from the run's
            and is not changeable.
    """
    if resume:
        try:
            return read_settings(folder).resumed_with(given)
        except FileNotFoundError:
            raise ValueError(
                f"{folder} contains no training run to resume; check the path, or start a new run"
            ) from None
    if (folder / SETTINGS).exists():
        raise ValueError(
            f"{folder} already contains a training run; resume it (--resume), or choose another "
            "folder"
        )
    if other := next((p.name for p in folder.iterdir() if not p.name.startswith(".")), None):
        raise ValueError(f"{folder} is not empty ({other}); choose a new or empty folder")
    return TrainSettings(**given)


def read_settings(folder: Path) -> TrainSettings:
    """Return the settings of the run in `folder`.

    Raises:
        FileNotFoundError: if the folder contains no run.
        ValueError: if the file is damaged.
    """
    path = folder / SETTINGS
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(saved, dict):
            raise ValueError("it is not a JSON object with a value for each setting")
        return TrainSettings.from_dict(saved)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({str(error)[:200]}); correct it, restore it from a copy, or train "
            "again in another folder"
        ) from error


def save_settings(folder: Path, settings: TrainSettings) -> None:
    """Write the settings for a later `read_settings`."""
    replace_text(folder / SETTINGS, json.dumps(settings.to_dict(), indent=2) + "\n")


@contextlib.contextmanager
def delete_partial_run(folder: Path) -> Iterator[None]:
    """Context manager: if an error ends the block before the first step, delete the run's files.

    A full disk deletes nothing: once there is room, a resumed run tokenizes the rest of the text.
    """
    try:
        yield
    except Exception as error:
        metrics, checkpoints = folder / METRICS, folder / CHECKPOINTS
        begun = (metrics.exists() and metrics.stat().st_size) or any(checkpoints.glob("[0-9]*"))
        if not begun and getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
            for name in (SETTINGS, TOKENS, TOKENS + ".json", METRICS, LOOK):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(checkpoints, ignore_errors=True)
        raise
