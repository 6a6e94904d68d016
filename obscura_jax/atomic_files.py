"""Files replaced completely or not at all, and temporary ones that no signal leaves behind."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

_temporary_paths: set[Path] = set()
_new_folders: list[Path] = []


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


def require_path(path: str | Path) -> Path:
    """Return `path`; ValueError if it is empty."""
    if not str(path):
        raise ValueError("the destination is empty: name a file or folder to write")
    return Path(path)


def write_atomically(target: Path, files: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write every file under a temporary name, then rename all of them; or change nothing.

    No file is written in place: a process that has mapped an old one keeps its bytes.

    Raises:
        ValueError: if a file cannot be written, naming `target`.
    """
    temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in files}
    try:
        folders = {path.parent for path in files}
        with new_folders(*folders), temporary_paths(*temporaries.values()):
            for path, temporary in temporaries.items():
                if path.is_dir():
                    raise IsADirectoryError(f"{path} is a folder")
                temporary.touch()
                mode = temporary.stat().st_mode  # safetensors' own files only their owner may read
                files[path](temporary)
                temporary.chmod(mode)
            for path, temporary in temporaries.items():
                temporary.replace(path)
    except OSError as error:
        raise ValueError(f"{target} cannot be written: {error.strerror or error}") from error


def replace_text(path: Path, text: str) -> None:
    """Write a UTF-8 file under a temporary name, flush it to disk, and rename it to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary_paths(temporary):
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Context manager: create a temporary folder, and remove it after the block."""
    path = Path(tempfile.mkdtemp())
    with temporary_paths(path):
        yield path


@contextlib.contextmanager
def new_folders(*folders: Path) -> Iterator[None]:
    """Context manager: create folders and their parents, and remove the ones left empty.

    Folders that existed before are kept. `remove_temporary_paths` also removes empty new folders.
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
