"""A from-scratch GPT, ported from PyTorch to pure functions in JAX and Flax.

The public names are listed in `__init__.pyi`. Each is imported when it is first used, so that
`obscura_jax.text` needs no jax and the command line starts at once.
"""

import sys

__version__ = "0.2.0"


def _load_names() -> None:
    """Replace the two functions below and define `__all__`, as `__init__.pyi` says."""
    import lazy_loader  # here, since it takes most of the time of importing the package

    names = ("__getattr__", "__dir__", "__all__")
    globals().update(zip(names, lazy_loader.attach_stub(__name__, __file__), strict=True))


def __getattr__(name: str) -> object:
    _load_names()
    return getattr(sys.modules[__name__], name)


def __dir__() -> list[str]:
    _load_names()
    return dir(sys.modules[__name__])
