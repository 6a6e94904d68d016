"""Packages that only some features need, imported where they are needed."""

from importlib import import_module
from types import ModuleType


class MissingExtraError(ImportError, ValueError):
    """A feature was used whose optional package is not installed, or does not load."""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import `module`, which the extra `extra` installs.

    Raises:
        MissingExtraError: saying what needs it and how to install it.
    """
    try:
        return import_module(module)
    except (ImportError, OSError) as error:  # OSError: a shared library of it is broken
        missing = isinstance(error, ModuleNotFoundError) and error.name == module
        broken = "" if missing else f", which does not load ({error})"
        raise MissingExtraError(
            f"{purpose} needs {module}{broken}: run pip install -e '.[{extra}]' in the clone of "
            "obscura_jax"
        ) from error
