"""A training run as one value."""

from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import jax

from obscura_jax.checks import check_size
from obscura_jax.config import GENERATOR
from obscura_jax.nn.model import GPTModel
from obscura_jax.nn.parameters import init_shapes
from obscura_jax.text.loader import DataLoader
from obscura_jax.training.optimizer import OptimizerConfig
from obscura_jax.training.options import DEFAULT_OPTIONS, StepOptions
from obscura_jax.training.step import TrainState, init_train_state


@dataclass(frozen=True)
class TrainRun:
    """Everything that determines the losses of a run, apart from its initial parameters.

    Attributes:
        model: the model.
        optimizer_config: the optimizer's hyperparameters.
        loader: batches of windows; a step reads one.
        steps: number of steps of the complete run.
        seed: random seed for dropout.
        options: how a step runs.

    Raises:
        ValueError: if the batch does not split into `options.grad_accum_steps` micro-batches.
    """

    model: GPTModel
    optimizer_config: OptimizerConfig
    loader: DataLoader
    steps: int
    seed: int = 0
    options: StepOptions = DEFAULT_OPTIONS

    def __post_init__(self) -> None:
        check_size("steps", self.steps)
        self.options.micro_batch_size(self.loader.batch_size)

    @cached_property
    def key(self) -> jax.Array | None:
        """The key for dropout, or None if the model drops nothing."""
        return jax.random.key(self.seed, impl=GENERATOR) if self.model.cfg.drop_rate else None

    def fingerprint(self) -> dict[str, Any]:
        """Return a JSON description of everything that must match on resume.

        It covers the model, the optimizer, the data's checksum and order, and what changes results
        in a step. Options that change only memory and speed may differ, and so may the placement.
        """
        data = self.loader.epoch(0).state()
        return {
            **{f"model.{name}": value for name, value in self.model.cfg.to_dict().items()},
            **{f"optimizer.{name}": value for name, value in asdict(self.optimizer_config).items()},
            **{f"data.{n}": data[n] for n in data.keys() - {"epoch", "batch"}},
            "steps": self.steps,
            "seed": self.seed,
            "grad_accum_steps": self.options.grad_accum_steps,
            "compute_dtype": self.options.compute_dtype,
            **({"dropout": "keys folded by block"} if self.model.cfg.drop_rate else {}),
        }

    def abstract_state(self) -> TrainState:
        """Return the shapes and types of the training state, under the course's names."""
        init = partial(init_train_state, self.optimizer_config)
        return jax.eval_shape(init, init_shapes(self.model.cfg))
