"""Destinations of models: a check that one is free, and removal of an earlier model's files."""

import os
from collections.abc import Container
from pathlib import Path

from obscura_jax.interop.sources import CONFIG, MANIFEST, WEIGHT_FILES
from obscura_jax.interop.tokens import CARRIED, TOKENS_FILE

_PROGRAMS = ("prefill.*.jaxexport", "decode.*.jaxexport")


def check_free(path: Path, overwrite: bool) -> None:
    """Raise ValueError if a model, or a file, is at `path`, unless `overwrite`."""
    if overwrite or not os.path.lexists(path):
        return
    if not path.is_dir():
        raise ValueError(
            f"{path} exists: pass overwrite=True (--overwrite) to replace it, or name another file"
        )
    marks = (MANIFEST, CONFIG, *WEIGHT_FILES)
    if found := next((name for name in marks if os.path.lexists(path / name)), None):
        raise ValueError(
            f"{path} holds a model ({found}), which would be lost: pass overwrite=True "
            "(--overwrite) to replace it, or name another folder"
        )


def remove_companions(folder: Path, written: Container[str]) -> None:
    """Remove files that would be read with the model just written, and belong to an earlier one."""
    programs = [path.name for pattern in _PROGRAMS for path in folder.glob(pattern)]
    for name in (MANIFEST, CONFIG, TOKENS_FILE, *CARRIED, *programs):
        if name not in written:
            (folder / name).unlink(missing_ok=True)
