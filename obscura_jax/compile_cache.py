"""A cache of compiled programs that persists between runs, in the user's cache folder."""

import contextlib
import glob
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from platformdirs import user_cache_path

_DAMAGED = r"Error reading persistent compilation cache entry for '(.*?)'"


def enable_compilation_cache() -> None:
    """Make JAX cache compiled programs in `folder()`; do nothing if it is not writable.

    JAX never replaces an entry that it cannot read, such as one truncated by a full disk or a
    killed process. Damaged entries are deleted here, so that JAX writes them again.

    Raises:
        ValueError: if OBSCURA_CACHE_DIR is a URL.
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
    warnings.filterwarnings("ignore", ".*persistent compilation cache")  # it only costs time
    warnings.filterwarnings("always", _DAMAGED)
    show = warnings.showwarning

    def repair(message: Warning | str, *args: object) -> None:
        if match := re.match(_DAMAGED, str(message)):
            _delete_entries(path, match[1])
        else:
            show(message, *args)  # type: ignore[arg-type]

    warnings.showwarning = repair  # type: ignore[assignment]


@contextlib.contextmanager
def disabled_compilation_cache() -> Iterator[None]:
    """Context manager: compile without reading or writing JAX's cache.

    On a CPU a program from the cache cannot be serialized: the copy fails when it is run.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    enabled = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    compilation_cache.reset_cache()  # else JAX keeps its first decision to use the cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def folder() -> Path:
    """Return OBSCURA_CACHE_DIR, or else `obscura_jax` in the system's cache folder."""
    own = os.environ.get("OBSCURA_CACHE_DIR")
    if not own:
        return user_cache_path("obscura_jax", appauthor=False)
    if "://" in own:
        raise ValueError(f"OBSCURA_CACHE_DIR is {own!r}; set it to a folder, not a URL")
    with contextlib.suppress(RuntimeError):  # ~name of an unknown user
        return Path(own).expanduser()
    return Path(own)


def _delete_entries(path: Path, program: str) -> None:
    """Delete all entries of a program: the warning does not say which one is damaged."""
    for entry in path.glob(f"{glob.escape(program)}-*-cache"):
        with contextlib.suppress(OSError):
            entry.unlink()
