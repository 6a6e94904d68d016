"""One step of training: a pure function of the state and a batch, compiled once for a run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from obscura_jax.nn.model import GPTModel, RematPolicy
from obscura_jax.training.loss import next_token_loss
from obscura_jax.training.optimizer import OptimizerConfig, learning_rate, optimizer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Where training stands.

    Attributes:
        step: steps taken so far.
        params: the parameters.
        opt_state: what the optimizer keeps of the gradients.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepMetrics:
    """What a step measured: the mean loss before it, its gradients' norm and its learning rate."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]


def init_train_state(config: OptimizerConfig, params: Any) -> TrainState:
    """The state before the first step. It is given up to that step: `params` are copied."""
    params = jax.tree.map(jnp.array, params)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer(config).init(params))


def train_step(
    model: GPTModel,
    config: OptimizerConfig,
    state: TrainState,
    inputs: Int[Array, "a b t"],
    targets: Int[Array, "a b t"],
    key: Array | None = None,
    *,
    compute_dtype: DTypeLike | None = None,
    logits_chunk: int | None = None,
    remat: RematPolicy | None = None,
    view: Callable[[Any], Any] | None = None,
) -> tuple[TrainState, StepMetrics]:
    """Take one step along the mean gradient of A batches, read one after the other.

    Where the loss or a gradient is NaN or infinite, no step is taken: the state comes back as it
    was, and the report shows why.

    Args:
        model: the model.
        config: the optimizer's numbers.
        state: where training stands; its arrays are used up.
        inputs: token ids, (A, B, T).
        targets: the id that follows each of them, (A, B, T).
        key: a typed key for dropout, the same at all steps; without one nothing is dropped.
            Batch a of step t drops with fold_in(fold_in(key, t), a).
        compute_dtype: the type to compute in, such as bfloat16; parameters, moments and sums stay
            as they are. By default that of the parameters.
        logits_chunk: as in `next_token_loss`.
        remat: as in `next_token_loss`.
        view: the parameters that the model runs on, made from the state's; by default the same.
    """

    def loss_of(params: Any, number: Any, inputs: Array, targets: Array) -> Array:
        own_key = None
        if key is not None:
            own_key = jax.random.fold_in(jax.random.fold_in(key, state.step), number)
        if compute_dtype is not None:
            params = jax.tree.map(lambda leaf: leaf.astype(compute_dtype), params)
        if view is not None:
            params = view(params)
        return next_token_loss(
            model, params, inputs, targets, key=own_key, logits_chunk=logits_chunk, remat=remat
        )

    measure = jax.value_and_grad(loss_of)

    def add(total: Any, batch: tuple[Array, Array, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, measure(state.params, *batch)), None

    count = len(inputs)
    found = measure(state.params, 0, inputs[0], targets[0])
    if count > 1:
        others = (jnp.arange(1, count), inputs[1:], targets[1:])
        found, _ = lax.scan(add, found, others)
    loss, gradients = jax.tree.map(lambda leaf: leaf / count, found)
    norm = optax.tree.norm(gradients)
    report = StepMetrics(loss, norm, learning_rate(config, state.step))

    def taken(state: TrainState, gradients: Any) -> TrainState:
        with jax.numpy_dtype_promotion("standard"):  # optax does not work under "strict"
            updates, opt_state = optimizer(config).update(gradients, state.opt_state, state.params)
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)

    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    return lax.cond(finite, taken, lambda state, _: state, state, gradients), report


# XLA:CPU otherwise orders a step for parallelism, and keeps what it need not: of the 124M model
# with `remat` and `logits_chunk`, 1196 against 1665 MiB beside the state, at the same speed.
JIT: Any = {
    "static_argnames": ("model", "config", "compute_dtype", "logits_chunk", "remat", "view"),
    "donate_argnames": ("state",),
    "compiler_options": {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"},
}
train_step_jit = jax.jit(train_step, **JIT)
"""`train_step`, compiled once for a run: the state's arrays are used up."""
