"""Check that a destination is free, and remove the files of an earlier model there."""

import os
from collections.abc import Container
from pathlib import Path

from obscura_jax.interop.locate import CONFIG, FORMATS, MANIFEST, WEIGHT_FILES
from obscura_jax.interop.tensor_files import read_json
from obscura_jax.interop.tokens import CARRIED, TOKENS_FILE

_PROGRAMS = ("prefill.*.jaxexport", "decode.*.jaxexport")
_EXECUTABLES = ("prefill.*.executable", "decode.*.executable")


def check_free(path: Path, overwrite: bool) -> None:
    """Raise ValueError if there is a model or a file at `path`, unless `overwrite` is true."""
    if overwrite or not os.path.lexists(path):
        return
    if not path.is_dir():
        raise ValueError(
            f"{path} exists; pass overwrite=True (--overwrite) to replace it, or name another file"
        )
    marks = (MANIFEST, CONFIG, *WEIGHT_FILES)
    if found := next((name for name in marks if os.path.lexists(path / name)), None):
        raise ValueError(
            f"{path} holds a model ({found}), which would be lost; pass overwrite=True "
            "(--overwrite) to replace it, or name another folder"
        )


def remove_companions(folder: Path, written: Container[str]) -> None:
    """Remove files of an earlier model that would be read together with the one just written."""
    programs = [
        path.name for pattern in (*_PROGRAMS, *_EXECUTABLES) for path in folder.glob(pattern)
    ]
    # Other programs also write a manifest.json.
    manifest = [MANIFEST] if _is_of_an_export(folder / MANIFEST) else []
    for name in (*manifest, CONFIG, TOKENS_FILE, *CARRIED, *programs):
        if name not in written:
            (folder / name).unlink(missing_ok=True)


def _is_of_an_export(manifest: Path) -> bool:
    try:
        return str(read_json(manifest).get("format")).startswith(FORMATS)
    except (OSError, ValueError):
        return False
