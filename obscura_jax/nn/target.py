"""The target that a program is traced for.

A few operations are written differently for CPU, GPU and TPU, and for several devices. The target
is a hidden input of these modules, which read it while they are traced:

    nn.cudnn_attention          whether causal attention runs in cuDNN
    nn.linear                   the order of a product, and layouts of 16-bit operands
    decoding.cache              the shape, dtype and memory layout of the cache
    decoding.cached_forward     a barrier after the attention of one token
    decoding.filters            the searches for the k-th largest logit and for the last of top-p
    decoding.graphs             XLA's options for the decode loop
    decoding.next_token         the number of passes over the logits
    decoding.prepared           the layout of weights
    decoding.programs           the form of the decode loop for a GPU
    decoding.token_loop         a barrier in the loop

`jax.jit` traces again for another target, because the target is one of JAX's user contexts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax

AttentionKind = Literal["auto", "reference", "cudnn"]


@dataclass(frozen=True)
class Target:
    """The devices that a program is for.

    Attributes:
        platform: "cpu", "cuda", "tpu", or another of JAX's; its "gpu" becomes "cuda".
        multi_device: whether arrays are distributed over several devices.
        allow_layouts: whether memory-layout constraints may be used. False if heads are sharded,
            because the partitioner would all-gather them first, and in exported programs, whose
            format does not guarantee layouts.
        attention: how causal attention is computed when training and reading prompts. "reference"
            is the form of `nn.attention`, "cudnn" is cuDNN's kernel for 16-bit numbers on CUDA, and
            "auto" is cuDNN where `nn.cudnn_attention.use_cudnn` says so.
    """

    platform: str
    multi_device: bool = False
    allow_layouts: bool = True
    attention: AttentionKind = "auto"

    def __post_init__(self) -> None:
        if self.platform == "gpu":  # `jax.default_backend()` and devices have this name
            object.__setattr__(self, "platform", "cuda")


_target: Any = jax.make_user_context(default_value=None)  # part of the key of jit's caches


def current_target() -> Target:
    """Return the target of the traced program; by default one device of JAX's default backend."""
    return _target.value or Target(jax.default_backend())


def on_one_cpu() -> bool:
    """Return whether the program being traced is for a single CPU device."""
    target = current_target()
    return target.platform == "cpu" and not target.multi_device


def on_one_gpu() -> bool:
    """Return whether the program being traced is for a single CUDA device."""
    target = current_target()
    return target.platform == "cuda" and not target.multi_device


@contextmanager
def tracing_for(target: Target) -> Iterator[None]:
    """Context manager: trace programs for `target` instead of the local backend."""
    with _target(target):
        yield


@contextmanager
def choosing_attention(kind: AttentionKind) -> Iterator[None]:
    """Context manager: trace programs for the current target with `kind` as its `attention`."""
    with tracing_for(replace(current_target(), attention=kind)):
        yield
