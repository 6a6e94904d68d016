"""The folder of `obscura train`: its settings, and that one process at a time has it."""

import argparse
import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from obscura_jax.atomic_files import new_folders, replace_text, temporary_paths

SETTINGS = "settings.json"
CHANGEABLE = ("chunk", "recompute")  # another way to the same numbers, but for rounding
TOKENS = "tokens.bin"


@contextlib.contextmanager
def owned(out: str) -> Iterator[Path]:
    """Lock the folder `out` for this process; create it if needed, and remove it if left empty.

    Raises:
        ValueError: if it cannot be written, or another process trains there.
    """
    from filelock import FileLock, Timeout

    folder = Path(out)
    lock = folder / ".lock"
    if not out or (os.path.exists(folder) and not os.path.isdir(folder)):
        raise ValueError(f"{out!r} is not a folder")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(new_folders(folder))
            stack.enter_context(FileLock(lock).acquire(timeout=0))
        except Timeout:
            raise ValueError(f"another process trains in {out}") from None
        except OSError as error:
            raise ValueError(f"{out} cannot be written: {error.strerror or error}") from error
        stack.enter_context(temporary_paths(lock))
        yield folder


def settle(
    folder: Path,
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    kinds: Mapping[str, Any],
    resume: bool,
) -> dict[str, Any]:
    """Return the settings of a run: those given, else those it began with, else the defaults.

    They are not written yet: see `remember`.

    Raises:
        ValueError: if the folder is not empty and `resume` is false, or holds no run and it is
            true; if another value is given than the run began with, unless it is CHANGEABLE; or if
            the saved settings are damaged, for example not of `kinds`.
    """
    path = folder / SETTINGS
    if not resume:
        if path.exists():
            raise ValueError(
                f"{folder} already contains a training run; pass --resume to continue it, or "
                "choose another --out"
            )
        if other := next((p.name for p in folder.iterdir() if not p.name.startswith(".")), None):
            raise ValueError(f"{folder} is not empty ({other}); choose a new or empty --out")
        return {**defaults, **given}
    if not path.is_file():
        raise ValueError(f"{folder} holds no training run to resume")
    begun = _read_settings(path, defaults, kinds)
    for name, value in given.items():
        if value != begun[name] and name not in CHANGEABLE:
            option = "--" + name.replace("_", "-")
            raise ValueError(
                f"{folder} was begun with {option} {begun[name]}, not {value}: leave it out, or "
                "name another folder"
            )
    return {**begun, **given}


def _read_settings(
    path: Path, defaults: Mapping[str, Any], kinds: Mapping[str, Any]
) -> dict[str, Any]:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(saved, dict):
            raise ValueError("it is not an object with a value for each setting")
        for name, default in defaults.items():
            if name not in saved:
                raise ValueError(f"{name} is missing")
            value = saved[name]
            if not ((value is None and default is None) or _is_kind(value, kinds[name])):
                raise ValueError(f"{name} is {json.dumps(value)[:60]}")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); correct it, restore it from a copy, or train again in "
            "another folder"
        ) from error
    return {name: saved[name] for name in defaults}


def _is_kind(value: object, kind: Any) -> bool:
    """Return whether a value is one of several, or what the function `kind` reads from its text."""
    if kind is list:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if not callable(kind):
        return value in kind
    try:
        return bool(kind(str(value)) == value)
    except (ValueError, argparse.ArgumentTypeError):
        return False


def remember(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings down, for `--resume`."""
    replace_text(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")


@contextlib.contextmanager
def delete_partial_run(folder: Path) -> Iterator[None]:
    """Remove the files of a run if an error ends the block before its first step.

    A full disk removes nothing: `--resume` reads the rest of the text once there is room.
    """
    try:
        yield
    except Exception as error:
        from obscura_jax.runs.fit import CHECKPOINTS, METRICS

        metrics, checkpoints = folder / METRICS, folder / CHECKPOINTS
        begun = (metrics.exists() and metrics.stat().st_size) or any(checkpoints.glob("[0-9]*"))
        if not begun and getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
            for name in (SETTINGS, TOKENS, TOKENS + ".json", METRICS):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(checkpoints, ignore_errors=True)
        raise
