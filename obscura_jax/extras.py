"""Optional packages, imported only by the features that need them."""

from importlib import import_module
from types import ModuleType


class MissingExtraError(ImportError, ValueError):
    """A feature needs an optional package that is not installed or does not load."""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import and return `module`, which the extra `extra` installs.

    Raises:
        MissingExtraError: if it cannot be imported. The message says what needs it and how to
            install it.
    """
    try:
        return import_module(module)
    except (ImportError, OSError) as error:  # OSError: a broken shared library
        missing = isinstance(error, ModuleNotFoundError) and error.name == module
        broken = "" if missing else f", which does not load ({error})"
        raise MissingExtraError(
            f"{purpose} needs {module}{broken}: run pip install -e '.[{extra}]' in the clone of "
            "obscura_jax"
        ) from error
