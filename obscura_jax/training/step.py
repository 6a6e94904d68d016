"""One training step: a pure function of the state and a batch, compiled once per run."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from obscura_jax.nn.model import GPTModel
from obscura_jax.nn.target import choosing_attention
from obscura_jax.training.loss import next_token_loss
from obscura_jax.training.optimizer import OptimizerConfig, learning_rate, optimizer
from obscura_jax.training.options import DEFAULT_OPTIONS, StepOptions


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The state of a training run.

    Attributes:
        step: number of steps taken.
        params: the parameters.
        opt_state: the optimizer's state: its step count, and both moments of every parameter.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepMetrics:
    """Measurements of one step.

    Attributes:
        loss: mean loss of the batch, before the update.
        gradient_norm: global norm of the gradients, before clipping.
        learning_rate: learning rate of the update.
    """

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]


def init_train_state(optimizer_config: OptimizerConfig, params: Any) -> TrainState:
    """Return the state before the first step. `params` are copied, since a step donates its state.

    Args:
        optimizer_config: the optimizer's hyperparameters.
        params: the initial parameters.
    """
    params = jax.tree.map(jnp.array, params)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer(optimizer_config).init(params))


def train_step(
    model: GPTModel,
    optimizer_config: OptimizerConfig,
    state: TrainState,
    inputs: Int[Array, "a b t"],
    targets: Int[Array, "a b t"],
    key: Array | None = None,
    *,
    options: StepOptions = DEFAULT_OPTIONS,
    step: int | Array | None = None,
    view: Callable[[Any], Any] = lambda params: params,
) -> tuple[TrainState, StepMetrics]:
    """Take one step along the mean gradient of A micro-batches, which are read in turn.

    If the loss or a gradient is NaN or infinite, the state is returned unchanged; the metrics show
    the reason. With `step`, every later step then leaves the state unchanged too, so that a loop
    may dispatch steps before it has read the metrics of the ones before.

    Args:
        model: the model.
        optimizer_config: the optimizer's hyperparameters.
        state: the state before the step.
        inputs: token ids, (A, B, T); A is `options.grad_accum_steps`.
        targets: the id that follows each of them, (A, B, T).
        key: a typed key for dropout, the same for all steps; without one nothing is dropped.
            Micro-batch a of step t drops values with fold_in(fold_in(key, t), a).
        options: how the step runs.
        step: the step to take; if `state` is at another step, it is returned unchanged.
        view: maps the state's parameters to those that the model runs on.

    Raises:
        ValueError: while tracing, if A is not `options.grad_accum_steps`.
    """
    count = options.grad_accum_steps
    if len(inputs) != count:
        raise ValueError(f"inputs have {len(inputs)} micro-batches, but grad_accum_steps={count}")

    def loss_of(params: Any, number: Any, inputs: Array, targets: Array) -> Array:
        own_key = None
        if key is not None:
            own_key = jax.random.fold_in(jax.random.fold_in(key, state.step), number)
        if options.compute_dtype is not None:
            params = jax.tree.map(lambda leaf: leaf.astype(options.compute_dtype), params)
        with choosing_attention(options.attention):
            return next_token_loss(
                model,
                view(params),
                inputs,
                targets,
                key=own_key,
                logits_chunk=options.logits_chunk,
                remat=options.remat,
            )

    loss_and_gradients = jax.value_and_grad(loss_of)

    def add(total: Any, batch: tuple[Array, Array, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, loss_and_gradients(state.params, *batch)), None

    total = loss_and_gradients(state.params, 0, inputs[0], targets[0])
    if count > 1:
        total, _ = lax.scan(add, total, (jnp.arange(1, count), inputs[1:], targets[1:]))
    loss, gradients = jax.tree.map(lambda leaf: leaf / count, total)
    norm = optax.tree.norm(gradients)
    metrics = StepMetrics(loss, norm, learning_rate(optimizer_config, state.step))

    def update(state: TrainState, gradients: Any) -> TrainState:
        with jax.numpy_dtype_promotion("standard"):  # optax does not work under "strict"
            updates, opt_state = optimizer(optimizer_config).update(
                gradients, state.opt_state, state.params
            )
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)

    taken = jnp.isfinite(loss) & jnp.isfinite(norm)
    if step is not None:
        taken &= state.step == step
    return lax.cond(taken, update, lambda state, _: state, state, gradients), metrics


def make_train_step(
    *,
    view: Callable[[Any], Any] = lambda params: params,
    constrain: Callable[[TrainState], TrainState] = lambda state: state,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Any:
    """Return a compiled `train_step` with the same arguments, apart from `view`.

    The model, the optimizer's hyperparameters and the options are static, and the state's buffers
    are donated.

    Args:
        view: as in `train_step`.
        constrain: adds sharding constraints to the new state.
        context: returns a context manager in which the step is traced.
    """

    def compiled_step(
        model: GPTModel,
        optimizer_config: OptimizerConfig,
        state: TrainState,
        inputs: Array,
        targets: Array,
        key: Array | None = None,
        *,
        options: StepOptions = DEFAULT_OPTIONS,
        step: Array | None = None,
    ) -> tuple[TrainState, StepMetrics]:
        batch = inputs, targets
        how: dict[str, Any] = {"options": options, "step": step, "view": view}
        with context():
            state, metrics = train_step(model, optimizer_config, state, *batch, key, **how)
        return constrain(state), metrics

    # By default XLA:CPU schedules a step for parallelism and keeps intermediate values longer than
    # needed: for the 124M model with `remat` and `logits_chunk`, 1665 MiB in addition to the state
    # instead of 1196, at the same speed.
    return jax.jit(
        compiled_step,
        static_argnames=("model", "optimizer_config", "options"),
        donate_argnames=("state",),
        compiler_options={"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"},
    )


train_step_jit = make_train_step()
"""`train_step`, compiled. The state's buffers are donated."""
