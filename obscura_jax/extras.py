"""Optional packages, imported only by the features that need them."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

_CLONE = Path(__file__).parents[1]  # or site-packages, if a wheel was installed


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
            f"{purpose} needs {module}{broken}: run {_command(extra)}"
        ) from error


def _command(extra: str) -> str:
    """Return the command that installs an extra, and the folder to run it in."""
    if (_CLONE / "pyproject.toml").exists():
        return f"pip install -e '.[{extra}]' in the clone of obscura_jax"
    version = import_module("obscura_jax").__version__  # an import above would be a cycle for mypy
    wheel = f"obscura_jax-{version}-py3-none-any.whl"
    return f"pip install '{wheel}[{extra}]' in the folder of that wheel"
