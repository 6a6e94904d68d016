"""Training over a mesh: a `Placement` that shards the state over devices and processes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray

from obscura_jax.config import GPTConfig
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
from obscura_jax.training.loss import next_token_loss
from obscura_jax.training.placement import Placement
from obscura_jax.training.step import JIT, StepMetrics, TrainState, train_step


@dataclass(frozen=True)
class MeshPlacement(Placement):
    """The placement of a run's state over a mesh. With several processes, each calls every method.

    Attributes:
        mesh: a mesh from `make_mesh`.
        cfg: the model's config.

    Raises:
        ValueError: if a mesh axis does not divide the dimension it splits.
    """

    mesh: Mesh = field(kw_only=True)
    cfg: GPTConfig = field(kw_only=True)

    def __post_init__(self) -> None:
        check_model(self.cfg, self.mesh)

    def put(self, state: TrainState) -> TrainState:
        state = jax.device_get(state)
        if jax.process_count() > 1:
            steps = set(multihost_utils.process_allgather(np.asarray(state.step)).tolist())
            if len(steps) > 1:
                raise ValueError(
                    f"the processes see checkpoints of different steps, {sorted(steps)}; "
                    "give all the same run folder"
                )
        return place(self.mesh, stack_blocks(state) if self.scan else state)

    def shapes(self, state: TrainState) -> TrainState:
        """Return the result of `put` for a state of shapes, for compilation."""
        return abstract_params(self.mesh, stack_blocks(state) if self.scan else state)

    def take(self, state: TrainState) -> TrainState:
        whole = jax.tree.map(_whole, state)
        return unpad_vocab(self.cfg, unstack_blocks(whole) if self.scan else whole)

    def params(self, state: TrainState) -> Any:
        return self.take(replace(state, opt_state=())).params

    def rows(self, batch_size: int, grad_accum_steps: int) -> Sequence[int] | None:
        if jax.process_count() == 1:
            return None
        part = batch_size // grad_accum_steps
        own = self._own_rows(part)
        return [a * part + row for a in range(grad_accum_steps) for row in own]

    def batch(self, ids: NDArray[Any], grad_accum_steps: int, batch_size: int) -> jax.Array:
        shape = (grad_accum_steps, batch_size // grad_accum_steps, ids.shape[1])
        check_batch(shape[1], self.mesh, "a batch or micro-batch")
        own = range(shape[1]) if jax.process_count() == 1 else self._own_rows(shape[1])
        place_of = {row: n for n, row in enumerate(own)}
        read = ids.reshape(grad_accum_steps, len(own), -1)

        def at(index: Any) -> NDArray[Any]:
            return read[:, [place_of[row] for row in range(shape[1])[index[1]]]]

        return jax.make_array_from_callback(shape, self.batch_sharding, at)

    def step(self, *args: Any, **how: Any) -> tuple[TrainState, StepMetrics]:
        return self.jitted_step(*args, **how)

    def loss(
        self, model: Any, params: Any, inputs: Any, targets: Any, logits_chunk: Any
    ) -> jax.Array:
        return self._jitted_loss(model, params, inputs, targets, logits_chunk)

    def agree(self, number: int) -> int:
        if jax.process_count() == 1:
            return number
        return int(multihost_utils.process_allgather(np.array(number)).max())

    @property
    def batch_sharding(self) -> NamedSharding:
        """The sharding of (A, B, T) token ids."""
        return NamedSharding(self.mesh, P(None, BATCH, None))

    @cached_property
    def jitted_step(self) -> Any:
        """The jitted `train_step_jit` over the mesh."""

        @wraps(train_step)  # jit needs the argument names
        def step(*args: Any, **how: Any) -> tuple[TrainState, StepMetrics]:
            with sharding_context(self.mesh):
                state, report = train_step(*args, view=self._view, **how)
            return lax.with_sharding_constraint(state, shardings(self.mesh, state)), report

        return jax.jit(step, **JIT)

    @cached_property
    def _jitted_loss(self) -> Any:
        def loss(
            model: Any, params: Any, inputs: Any, targets: Any, logits_chunk: Any
        ) -> jax.Array:
            with sharding_context(self.mesh):
                params = self._view(params)
                return next_token_loss(
                    model, params, inputs[0], targets[0], logits_chunk=logits_chunk
                )

        return jax.jit(loss, static_argnames=("model", "logits_chunk"))

    def _view(self, params: Any) -> Any:
        return unpad_and_gather_tables(self.mesh, self.cfg, params)

    def _own_rows(self, rows: int) -> list[int]:
        """Return which of a batch's `rows` are on this process's devices."""
        indices: Any = self.batch_sharding.addressable_devices_indices_map((1, rows, 1)).values()
        return sorted({row for index in indices for row in range(rows)[index[1]]})


def _whole(array: jax.Array) -> NDArray[Any]:
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
