"""Options that change how a training step runs, as one value."""

from dataclasses import dataclass
from typing import Any, get_args

import jax.numpy as jnp

from obscura_jax.checks import check_choice, check_size, check_sizes
from obscura_jax.nn.model import RematPolicy
from obscura_jax.nn.target import AttentionKind


@dataclass(frozen=True)
class StepOptions:
    """Options of a training step: hashable, a static argument of the compiled step.

    Attributes:
        grad_accum_steps: number of equal micro-batches that a batch is split into, A. The step
            averages their gradients, and needs memory for one micro-batch.
        compute_dtype: name of the floating-point type to compute in, such as "bfloat16".
            Parameters, optimizer state and sums keep their types. None uses the parameters' type.
        logits_chunk: number of positions per row whose logits are computed at a time; None
            computes all of them. See `next_token_loss`.
        remat: activations that the backward pass computes again instead of storing; see
            `GPTModel.hidden_states`.
        attention: how causal attention is computed; see `nn.target.Target`.

    Raises:
        ValueError: if a field is out of range; the message names it.
    """

    grad_accum_steps: int = 1
    compute_dtype: str | None = None
    logits_chunk: int | None = None
    remat: RematPolicy | None = None
    attention: AttentionKind = "auto"

    def __post_init__(self) -> None:
        check_sizes(self, "grad_accum_steps")
        if self.logits_chunk is not None:
            check_sizes(self, "logits_chunk")
        if self.compute_dtype is not None:
            object.__setattr__(self, "compute_dtype", _floating_name(self.compute_dtype))
        if self.remat is not None:
            check_choice("remat", self.remat, get_args(RematPolicy))
        check_choice("attention", self.attention, get_args(AttentionKind))

    def micro_batch_size(self, batch_size: int) -> int:
        """Return the rows of a micro-batch; ValueError unless the batch splits into equal ones."""
        if check_size("batch_size", batch_size) % self.grad_accum_steps:
            raise ValueError(
                f"a batch of {batch_size} windows does not split into {self.grad_accum_steps} "
                "equal micro-batches"
            )
        return batch_size // self.grad_accum_steps


DEFAULT_OPTIONS = StepOptions()


def _floating_name(dtype: Any) -> str:
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ValueError(f"compute_dtype must be a floating-point type, got {dtype!r}")
    return str(found.name)
