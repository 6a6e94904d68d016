"""Training over a mesh: a `Placement` that shards the state over devices and processes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, final

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray

from obscura_jax.config import GPTConfig
from obscura_jax.nn.model import GPTModel
from obscura_jax.nn.scan import stack_blocks, unstack_blocks
from obscura_jax.scale.mesh import (
    BATCH,
    abstract_params,
    check_batch,
    check_model,
    place,
    sharding_context,
    shardings,
    unpad_and_gather_tables,
    unpad_vocab,
)
from obscura_jax.text.loader import DataLoader
from obscura_jax.training.loss import next_token_loss
from obscura_jax.training.options import StepOptions
from obscura_jax.training.placement import Batch
from obscura_jax.training.run import TrainRun
from obscura_jax.training.step import StepMetrics, TrainState, make_train_step

_Tree = TypeVar("_Tree")


@final
@dataclass(frozen=True)
class MeshPlacement:
    """The placement of a run's state over a mesh. With several processes, each calls every method.

    Attributes:
        mesh: a mesh from `make_mesh`.
        cfg: the model's config.
        scan: whether the blocks are stacked and run as one block in a loop (`nn.scan`).
        is_writer: whether this process writes the files of the run.

    Raises:
        ValueError: if a mesh axis does not divide the dimension it splits.
    """

    mesh: Mesh
    cfg: GPTConfig
    scan: bool = False
    is_writer: bool = True

    def __post_init__(self) -> None:
        check_model(self.cfg, self.mesh)

    def place(self, state: TrainState) -> TrainState:
        """Return a state sharded over the mesh. Each process stores the shards of its devices."""
        state = jax.device_get(state)
        return place(self.mesh, stack_blocks(state) if self.scan else state)

    def abstract(self, state: TrainState) -> TrainState:
        """Return the shapes and shardings of `place(state)`; `state` may be a state of shapes."""
        return abstract_params(self.mesh, stack_blocks(state) if self.scan else state)

    def gather(self, tree: _Tree) -> _Tree:
        """Return a placed state, or its parameters, on the host and in the course's layout."""
        host = jax.tree.map(_on_host, tree)
        return unpad_vocab(self.cfg, unstack_blocks(host) if self.scan else host)

    def batches(
        self, loader: DataLoader, start: int = 0, grad_accum_steps: int = 1
    ) -> Iterator[Batch]:
        """Yield (inputs, targets), (A, B, T) each, from training step `start`, indefinitely.

        Each process reads the rows of its own devices.
        """
        rows = loader.batch_size // grad_accum_steps
        check_batch(rows, self.mesh, "a batch or micro-batch")
        wanted = self.local_rows(loader.batch_size, grad_accum_steps)
        own = wanted[: len(wanted) // grad_accum_steps]
        shape = (grad_accum_steps, rows, loader.dataset.max_length)
        position = {row: n for n, row in enumerate(own)}

        def sharded(ids: NDArray[Any]) -> jax.Array:
            local = ids.reshape(grad_accum_steps, len(own), -1)

            def shard(index: Any) -> NDArray[Any]:
                return local[:, [position[row] for row in range(rows)[index[1]]]]

            return jax.make_array_from_callback(shape, self.batch_sharding, shard)

        for inputs, targets in loader.batches_from(start, wanted):
            yield sharded(inputs), sharded(targets)

    def step(
        self, run: TrainRun, state: TrainState, batch: Batch, step: int
    ) -> tuple[TrainState, StepMetrics]:
        """Dispatch one step of the run."""
        return self._one_at_a_time(
            self.train_step_jit(
                run.model,
                run.optimizer_config,
                state,
                *batch,
                run.key,
                options=run.options,
                step=step,
            )
        )

    def loss(self, model: GPTModel, params: Any, batch: Batch, options: StepOptions) -> jax.Array:
        """Return the loss of a batch of one micro-batch without dropout."""
        return self._one_at_a_time(self._loss_jit(model, params, batch, options))

    def max_over_processes(self, number: int) -> int:
        """Return the maximum of a number over the processes."""
        if jax.process_count() == 1:
            return number
        return int(multihost_utils.process_allgather(np.array(number)).max())

    @property
    def batch_sharding(self) -> NamedSharding:
        """The sharding of (A, B, T) token ids."""
        return NamedSharding(self.mesh, P(None, BATCH, None))

    @cached_property
    def train_step_jit(self) -> Any:
        """The compiled `train_step` over the mesh."""
        return make_train_step(
            view=self._view,
            constrain=lambda state: lax.with_sharding_constraint(
                state, shardings(self.mesh, state)
            ),
            context=lambda: sharding_context(self.mesh),
        )

    def local_rows(self, batch_size: int, grad_accum_steps: int) -> list[int]:
        """Return which rows of a batch are stored on this process's devices."""
        rows = batch_size // grad_accum_steps
        indices: Any = self.batch_sharding.addressable_devices_indices_map((1, rows, 1)).values()
        own = sorted({row for index in indices for row in range(rows)[index[1]]})
        return [a * rows + row for a in range(grad_accum_steps) for row in own]

    @cached_property
    def _loss_jit(self) -> Any:
        def loss(model: GPTModel, params: Any, batch: Batch, options: StepOptions) -> jax.Array:
            inputs, targets = batch
            with sharding_context(self.mesh):
                return next_token_loss(
                    model,
                    self._view(params),
                    inputs[0],
                    targets[0],
                    logits_chunk=options.logits_chunk,
                )

        return jax.jit(loss, static_argnames=("model", "options"))

    def _one_at_a_time(self, results: _Tree) -> _Tree:
        """Return the results of a program; on CPU devices wait until every device has finished.

        CPU devices share one pool of threads. With two programs in flight, devices that wait for
        others in the collectives of one can take all threads, so that the other never ends.
        """
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        return jax.block_until_ready(results) if on_cpu else results

    def _view(self, params: Any) -> Any:
        return unpad_and_gather_tables(self.mesh, self.cfg, params)


def _on_host(array: jax.Array) -> NDArray[Any]:
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
