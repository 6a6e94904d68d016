"""Compiled programs kept between runs of the command, in the user's cache folder."""

import os
import sys
import tempfile
import warnings
from pathlib import Path


def keep_programs() -> None:
    """Have jax keep what it compiles in `folder()`; not at all where nothing can be written."""
    try:
        path = folder()
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except (OSError, RuntimeError, ValueError):  # no home, not a path, not ours to write
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # A damaged entry or a full disk costs time only.
    warnings.filterwarnings("ignore", ".*persistent compilation cache")


def folder() -> Path:
    """OBSCURA_CACHE_DIR, or else `obscura_jax` in the folder the system has for such files."""
    if own := os.environ.get("OBSCURA_CACHE_DIR"):
        return Path(own)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "obscura_jax"
    if sys.platform == "win32" and (base := os.environ.get("LOCALAPPDATA")):
        return Path(base) / "obscura_jax" / "Cache"
    usual = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return Path.home() / usual / "obscura_jax"
