"""Temporary files and new empty folders, which are removed even if a signal ends the process."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_temporary_paths: set[Path] = set()
_new_folders: list[Path] = []


@contextlib.contextmanager
def temporary_paths(*paths: Path) -> Iterator[None]:
    """Remove files or folders that are still there at the end of the block.

    `remove_temporary_paths` removes them too, for a process that ends without leaving its blocks.
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
    """Make a folder for the length of the block."""
    path = Path(tempfile.mkdtemp())
    with temporary_paths(path):
        yield path


@contextlib.contextmanager
def new_folders(*folders: Path) -> Iterator[None]:
    """Create folders and their parents; remove those that are still empty at the end of the block.

    Folders that existed before stay. `remove_temporary_paths` removes empty ones too.
    """
    missing = {path for folder in folders for path in (folder, *folder.parents)}
    created = sorted((path for path in missing if not path.exists()), key=lambda p: len(p.parts))
    _new_folders.extend(created)
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        _remove_empty(created)
        for path in created:
            _new_folders.remove(path)


def remove_temporary_paths() -> None:
    """Remove what every open block of `temporary_paths` and `new_folders` would remove."""
    for path in list(_temporary_paths):
        _remove(path)
    _remove_empty(list(_new_folders))


def _remove_empty(folders: list[Path]) -> None:
    for path in reversed(folders):  # inner ones first
        with contextlib.suppress(OSError):
            path.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
