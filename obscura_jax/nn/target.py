"""What a program is traced for: some want other forms of a few computations than others."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Target:
    """Devices that a program is for.

    Attributes:
        platform: "cpu", "cuda", "tpu", or another of JAX's.
        many: whether arrays lie on many of them.
        layouts: whether arrays may be told how to lie in memory. Where heads are split over devices
            the partitioner would gather them first, and an exported file promises nothing of it.
    """

    platform: str
    many: bool = False
    layouts: bool = True


_target: ContextVar[Target | None] = ContextVar("target", default=None)


def target() -> Target:
    """Of the program now traced; by default one device, where JAX runs."""
    return _target.get() or Target(jax.default_backend())


def on_one_cpu() -> bool:
    """Whether the program now traced is for a single CPU device."""
    return target().platform == "cpu" and not target().many


@contextmanager
def traced_for(target: Target) -> Iterator[None]:
    """Within, programs are traced for this, whatever runs here.

    What `jax.jit` has traced before stays: give it a function of its own.
    """
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)
