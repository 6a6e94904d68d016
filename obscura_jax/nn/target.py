"""The target that a program is traced for.

A few operations are written differently for CPU, GPU and TPU, and for several devices:
`nn.linear.linear`, `decoding.cache`, `decoding.programs`, `decoding.sampling.keep_top_k` and
`export.exporter` read the target while they are traced. It is not an argument of the traced
functions, so a jitted function keeps the form of its first target. A program for another target
needs a function object of its own, which `scale.generation`, `scale.placement` and `export` create.
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
        multi_device: whether arrays are distributed over several devices.
        allow_layouts: whether memory-layout constraints may be used. False if heads are sharded,
            because the partitioner would all-gather them first, and in exported programs, whose
            format does not guarantee layouts.
    """

    platform: str
    multi_device: bool = False
    allow_layouts: bool = True


_current: ContextVar[Target | None] = ContextVar("target", default=None)


def current_target() -> Target:
    """Return the target of the traced program; by default one device of JAX's default backend."""
    return _current.get() or Target(jax.default_backend())


def on_one_cpu() -> bool:
    """Return whether the program being traced is for a single CPU device."""
    target = current_target()
    return target.platform == "cpu" and not target.multi_device


@contextmanager
def tracing_for(target: Target) -> Iterator[None]:
    """Context manager: trace programs for `target` instead of the local backend.

    `jax.jit` reuses existing traces, so pass it a new function object.
    """
    token = _current.set(target)
    try:
        yield
    finally:
        _current.reset(token)
