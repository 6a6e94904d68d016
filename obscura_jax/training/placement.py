"""The devices that hold a training state and run its steps: the interface, and a single device."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, final

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from obscura_jax.nn.model import GPTModel
from obscura_jax.nn.scan import stack_blocks, unstack_blocks
from obscura_jax.text.loader import DataLoader
from obscura_jax.training.loss import next_token_loss
from obscura_jax.training.options import StepOptions
from obscura_jax.training.run import TrainRun
from obscura_jax.training.step import StepMetrics, TrainState, train_step_jit

Batch = tuple[jax.Array, jax.Array]
_Tree = TypeVar("_Tree")


class Placement(Protocol):
    """The devices that store a training state, and the programs that run its steps.

    With several processes, every process calls every method, in the same order.
    """

    @property
    def scan(self) -> bool:
        """True if the blocks are stacked and run as one block in a loop (`nn.scan`)."""

    @property
    def is_writer(self) -> bool:
        """True if this process writes the files of the run."""

    def place(self, state: TrainState) -> TrainState:
        """Return a state in the course's layout as `step` takes it; its buffers may be reused."""

    def abstract(self, state: TrainState) -> TrainState:
        """Return the shapes and shardings of `place(state)`; `state` may be a state of shapes."""

    def gather(self, tree: _Tree) -> _Tree:
        """Return a placed state, or its parameters, on the host and in the course's layout."""

    def batches(
        self, loader: DataLoader, start: int = 0, grad_accum_steps: int = 1
    ) -> Iterator[Batch]:
        """Yield (inputs, targets) from training step `start`, indefinitely.

        Each is (A, B, T) token ids on the devices: A micro-batches of B rows.
        """

    def step(
        self, run: TrainRun, state: TrainState, batch: Batch, step: int
    ) -> tuple[TrainState, StepMetrics]:
        """Dispatch one step of the run, as in `train_step`. The state's buffers are donated."""

    def loss(self, model: GPTModel, params: Any, batch: Batch, options: StepOptions) -> jax.Array:
        """Return the loss of a batch of one micro-batch without dropout; `params` are placed."""

    def max_over_processes(self, number: int) -> int:
        """Return the maximum of a number over the processes."""


@final
@dataclass(frozen=True)
class SingleDevice:
    """The placement on JAX's first device, in one process."""

    scan: bool = False
    is_writer: bool = True

    def place(self, state: TrainState) -> TrainState:
        """Return a state on the device."""
        return jax.device_put(stack_blocks(state) if self.scan else state, jax.local_devices()[0])

    def abstract(self, state: TrainState) -> TrainState:
        """Return the shapes and shardings of `place(state)`; `state` may be a state of shapes."""
        sharding = SingleDeviceSharding(jax.local_devices()[0])
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            stack_blocks(state) if self.scan else state,
        )

    def gather(self, tree: _Tree) -> _Tree:
        """Return a placed state, or its parameters, on the host and in the course's layout."""
        tree = jax.device_get(tree)
        return unstack_blocks(tree) if self.scan else tree

    def batches(
        self, loader: DataLoader, start: int = 0, grad_accum_steps: int = 1
    ) -> Iterator[Batch]:
        """Yield (inputs, targets), (A, B, T) each, from training step `start`, indefinitely."""
        for inputs, targets in loader.batches_from(start):
            shape = (grad_accum_steps, -1, inputs.shape[1])
            yield jnp.asarray(inputs.reshape(shape)), jnp.asarray(targets.reshape(shape))

    def step(
        self, run: TrainRun, state: TrainState, batch: Batch, step: int
    ) -> tuple[TrainState, StepMetrics]:
        """Dispatch one step of the run."""
        return train_step_jit(
            run.model, run.optimizer_config, state, *batch, run.key, options=run.options, step=step
        )

    def loss(self, model: GPTModel, params: Any, batch: Batch, options: StepOptions) -> jax.Array:
        """Return the loss of a batch of one micro-batch without dropout."""
        inputs, targets = batch
        return _loss_jit(model, params, inputs[0], targets[0], logits_chunk=options.logits_chunk)

    def max_over_processes(self, number: int) -> int:
        """Return the number: there is one process."""
        return number


SINGLE_DEVICE = SingleDevice()
_loss_jit = jax.jit(next_token_loss, static_argnames=("model", "logits_chunk"))


def host_device() -> jax.Device:
    """Return a device in host memory, which has room for a complete state, if JAX offers one."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names others only
        return jax.local_devices()[0]
