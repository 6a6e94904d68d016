"""What a program is traced for. On one CPU device XLA wants other forms of a few computations."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_target: ContextVar[str | None] = ContextVar("target", default=None)


def on_one_cpu() -> bool:
    """Whether the program now traced is for a single CPU device; by default, where JAX runs."""
    return (_target.get() or jax.default_backend()) == "cpu"


def over_mesh() -> bool:
    """Whether the program now traced is for many devices."""
    return _target.get() == "mesh"


@contextmanager
def traced_for(target: str) -> Iterator[None]:
    """Within, programs are traced for "cpu", "cuda", "tpu" or "mesh", whatever runs here.

    What `jax.jit` has traced before stays: give it a function of its own.
    """
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)
