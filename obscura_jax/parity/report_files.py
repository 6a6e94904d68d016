"""Write a report's files, and check before the comparison that they can be written."""

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from obscura_jax.atomic_files import require_path, write_atomically


def check_writable(*names: str) -> None:
    """Check that every file can be written.

    Raises:
        ValueError: if a file cannot be written, with the reason: its folder is missing or not
            writable, it is a folder itself, or two names mean the same file.
    """
    paths = [require_path(name) for name in names]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"both reports would be written to {paths[0]}; name two files")
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path} cannot be written: it is a folder; name a file")
        if not path.parent.is_dir():
            raise ValueError(
                f"{path} cannot be written: there is no folder {path.parent}; create it first"
            )
        if _is_special(path):
            if not os.access(path, os.W_OK):
                raise ValueError(f"{path} cannot be written: Permission denied")
            continue
        try:
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            raise ValueError(f"{path} cannot be written: {error.strerror or error}") from error


def write(name: str, render: Callable[[], str]) -> None:
    """Write the text that `render` returns to a file atomically, or to a device.

    Raises:
        ValueError: if it cannot be written.
    """
    path = require_path(name)
    store = partial(Path.write_text, data=render(), encoding="utf-8")
    if not _is_special(path):
        write_atomically(path, {path: store})
        return
    try:
        store(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from error


def _is_special(path: Path) -> bool:
    """Return True if `path` exists and must not be replaced by a file, such as a device."""
    return path.exists() and not path.is_file()
