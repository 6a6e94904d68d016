"""The target that a program is traced for.

A few operations are written differently for CPU, GPU and TPU, and for several devices.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Target:
    """The devices that a program is for.

    Attributes:
        platform: "cpu", "cuda", "tpu", or another of JAX's.
        many: whether arrays are distributed over several devices.
        layouts: whether memory-layout constraints may be used. False if heads are sharded, because
            the partitioner would all-gather them first, and in exported programs, whose format
            does not guarantee layouts.
    """

    platform: str
    many: bool = False
    layouts: bool = True


_target: ContextVar[Target | None] = ContextVar("target", default=None)


def target() -> Target:
    """Return the target of the traced program; by default one device of JAX's default backend."""
    return _target.get() or Target(jax.default_backend())


def on_one_cpu() -> bool:
    """Return whether the program being traced is for a single CPU device."""
    return target().platform == "cpu" and not target().many


@contextmanager
def tracing_for(target: Target) -> Iterator[None]:
    """Context manager: trace programs for `target` instead of the local backend.

    `jax.jit` reuses existing traces, so pass it a new function object.
    """
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)
