"""Temporary files and folders that are removed even when a signal ends the process."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_temporary_paths: set[Path] = set()


@contextlib.contextmanager
def temporary_paths(*paths: Path) -> Iterator[None]:
    """Context manager: remove the files or folders that still exist after the block.

    `remove_temporary_paths` also removes them, for a process that exits inside a block.
    """
    _temporary_paths.update(paths)
    try:
        yield
    finally:
        for path in paths:
            _remove(path)
        _temporary_paths.difference_update(paths)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Context manager: create a temporary folder, and remove it after the block."""
    path = Path(tempfile.mkdtemp())
    with temporary_paths(path):
        yield path


def remove_temporary_paths() -> None:
    """Remove the paths of every `temporary_paths` block that is still open."""
    for path in list(_temporary_paths):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
