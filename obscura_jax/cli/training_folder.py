"""The folder of `obscura train`: its settings, and that one process at a time has it."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SETTINGS = "settings.json"
CHANGEABLE = ("chunk", "recompute")  # another way to the same numbers, but for rounding
TOKENS = "tokens.bin"


@contextlib.contextmanager
def owned(out: str) -> Iterator[Path]:
    """The folder `out`, made if need be, for this process alone; removed again if left empty.

    Raises:
        ValueError: when it cannot be written, or another process trains there.
    """
    from filelock import FileLock, Timeout

    folder = Path(out)
    if not out or (os.path.exists(folder) and not os.path.isdir(folder)):
        raise ValueError(f"{out!r} is not a folder")
    lock = FileLock(folder / ".lock")
    try:
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process trains in {out}") from None
    except OSError as error:
        raise ValueError(f"{out} cannot be written: {error.strerror or error}") from error
    try:
        yield folder
    finally:
        if new and {path.name for path in folder.iterdir()} <= {".lock"}:
            with contextlib.suppress(OSError):
                (folder / ".lock").unlink(missing_ok=True)
                folder.rmdir()
        lock.release()


def settle(
    folder: Path,
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    kinds: Mapping[str, type],
    resume: bool,
) -> dict[str, Any]:
    """Return the settings of a run: those given, else those it began with, else the defaults.

    They are not written yet: see `remember`.

    Raises:
        ValueError: if the folder is not empty and `resume` is false, or holds no run and it is
            true; if another value is given than the run began with, unless it is CHANGEABLE; or if
            the saved settings are damaged, for example of other types than `kinds`.
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
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        begun = {name: saved[name] for name in defaults}
        for name, value in begun.items():
            if not _is_kind(value, kinds[name], optional=defaults[name] is None):
                raise TypeError(f"{name} is {value!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    for name, value in given.items():
        if value != begun[name] and name not in CHANGEABLE:
            option = "--" + name.replace("_", "-")
            raise ValueError(
                f"{folder} was begun with {option} {begun[name]}, not {value}: leave it out, or "
                "name another folder"
            )
    return {**begun, **given}


def _is_kind(value: object, kind: type, *, optional: bool) -> bool:
    if value is None:
        return optional
    if kind is list:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def remember(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings down, for `--resume`."""
    temporary = folder / f".{SETTINGS}.{os.getpid()}"
    temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / SETTINGS)


def forget(folder: Path) -> None:
    """Remove what a run wrote that could not begin."""
    for name in (SETTINGS, TOKENS, TOKENS + ".json"):
        (folder / name).unlink(missing_ok=True)
