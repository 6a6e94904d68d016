"""Compiled programs kept between runs of the command, in the user's cache folder."""

import contextlib
import glob
import os
import re
import tempfile
import warnings
from pathlib import Path

from platformdirs import user_cache_path

_DAMAGED = r"Error reading persistent compilation cache entry for '(.*?)'"


def keep_programs() -> None:
    """Have JAX keep what it compiles in `folder()`; does nothing where that cannot be written.

    JAX never replaces an entry that it cannot read, for example one cut short by a full disk or a
    killed process. Such entries are deleted here, so that JAX writes them again.

    Raises:
        ValueError: when OBSCURA_CACHE_DIR is a URL.
    """
    path = folder()
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except (OSError, ValueError):
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    warnings.filterwarnings("ignore", ".*persistent compilation cache")  # costs time only
    warnings.filterwarnings("always", _DAMAGED)
    show = warnings.showwarning

    def repair(message: Warning | str, *args: object) -> None:
        if match := re.match(_DAMAGED, str(message)):
            _delete_entries(path, match[1])
        else:
            show(message, *args)  # type: ignore[arg-type]

    warnings.showwarning = repair  # type: ignore[assignment]


def folder() -> Path:
    """Return OBSCURA_CACHE_DIR, or else `obscura_jax` in the folder the system has for caches."""
    own = os.environ.get("OBSCURA_CACHE_DIR")
    if not own:
        return user_cache_path("obscura_jax", appauthor=False)
    if "://" in own:
        raise ValueError(f"OBSCURA_CACHE_DIR is {own!r}; set it to a folder, not a URL")
    with contextlib.suppress(RuntimeError):  # there is no such user
        return Path(own).expanduser()
    return Path(own)


def _delete_entries(path: Path, program: str) -> None:
    """Delete every entry of a program: the warning does not say which of them is damaged."""
    for entry in path.glob(f"{glob.escape(program)}-*-cache"):
        with contextlib.suppress(OSError):
            entry.unlink()
