"""Where the state of a run lies while it runs, and what takes its steps: here, on one device.

On disk a state is whole: the course's parameters and an optimizer's numbers for each of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from numpy.typing import NDArray

from obscura_jax.nn.scan import stack_blocks, unstack_blocks
from obscura_jax.training.loss import next_token_loss
from obscura_jax.training.step import StepMetrics, TrainState, train_step_jit

loss_jit = jax.jit(next_token_loss, static_argnames=("model", "logits_chunk"))


def host_device() -> jax.Device:
    """This machine's processor, in whose memory a whole state has room; where JAX has it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names others only
        return jax.local_devices()[0]


@dataclass(frozen=True)
class Placement:
    """One device. What lies elsewhere is a class with the same methods: see `scale.placement`.

    Attributes:
        scan: whether the blocks are stacked and run as one block in a loop (`nn.scan`).
        writes: whether this process writes what a run leaves behind.
    """

    scan: bool = False
    writes: bool = True

    def put(self, state: TrainState) -> TrainState:
        """A whole state, laid out for `step`; its arrays may be used up."""
        return jax.device_put(stack_blocks(state) if self.scan else state, jax.local_devices()[0])

    def take(self, state: TrainState) -> TrainState:
        """The inverse of `put`, on the host; `state` stays."""
        state = jax.device_get(state)
        return unstack_blocks(state) if self.scan else state

    def params(self, state: TrainState) -> Any:
        """The course's parameters."""
        return unstack_blocks(state.params) if self.scan else state.params

    def rows(self, batch_size: int, grad_accum_steps: int) -> Sequence[int] | None:
        """Which rows of a batch this process reads; None is all."""
        return None

    def batch(self, ids: NDArray[Any], grad_accum_steps: int, batch_size: int) -> jax.Array:
        """The rows read, (R, T), as the (A, B / A, T) that `step` takes."""
        return jnp.asarray(ids.reshape(grad_accum_steps, -1, ids.shape[1]))

    def step(self, *args: Any, **how: Any) -> tuple[TrainState, StepMetrics]:
        """`train_step_jit`."""
        return train_step_jit(*args, **how)

    def loss(
        self, model: Any, params: Any, inputs: Any, targets: Any, logits_chunk: Any
    ) -> jax.Array:
        """`next_token_loss` of one batch, (1, B, T) each."""
        return loss_jit(model, params, inputs[0], targets[0], logits_chunk=logits_chunk)

    def agree(self, number: int) -> int:
        """The largest of the processes' numbers."""
        return number


SINGLE_DEVICE = Placement()
