"""AdamW with linear warmup, cosine decay and gradient clipping."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from obscura_jax.checks import check_number, check_size

_VECTORS = ("bias", "scale", "shift")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW hyperparameters. The defaults are torch.optim.AdamW's, without schedule or clipping.

    Attributes:
        learning_rate: the peak learning rate, above 0.
        warmup_steps: steps of linear warmup to the peak; the rate of the first step is above 0.
        decay_steps: steps of cosine decay after the warmup; 0 keeps the peak rate.
        end_lr_fraction: rate at the end of the decay and afterwards, as a fraction of the peak.
        weight_decay: each step subtracts rate * weight_decay * parameter (decoupled decay).
        decay_1d_params: whether biases and norms decay too, as in torch; if not, only matrices do.
        beta1: decay rate of the running mean of the gradient.
        beta2: decay rate of the running mean of the squared gradient.
        epsilon: added to the square root of that mean square.
        clip_norm: maximum global norm of the gradients; None disables clipping.

    Raises:
        ValueError: if a field is out of range; the message names it.
    """

    learning_rate: float = 1e-3
    warmup_steps: int = 0
    decay_steps: int = 0
    end_lr_fraction: float = 0.1
    weight_decay: float = 1e-2
    decay_1d_params: bool = True
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        check_size("warmup_steps", self.warmup_steps, 0)
        check_size("decay_steps", self.decay_steps, 0)
        check_number("learning_rate", self.learning_rate, lambda x: 0 < x < math.inf, "above 0")
        check_number("end_lr_fraction", self.end_lr_fraction, lambda x: 0 <= x <= 1, "in [0, 1]")
        check_number("weight_decay", self.weight_decay, lambda x: 0 <= x < math.inf, "at least 0")
        check_number("beta1", self.beta1, lambda x: 0 <= x < 1, "in [0, 1)")
        check_number("beta2", self.beta2, lambda x: 0 <= x < 1, "in [0, 1)")
        check_number("epsilon", self.epsilon, lambda x: 0 < x < 1, "in (0, 1)")
        if self.clip_norm is not None:
            check_number("clip_norm", self.clip_norm, lambda x: 0 < x < math.inf, "above 0")


def learning_rate(config: OptimizerConfig, step: Any) -> Float[Array, ""]:
    """Return the rate of step 0, 1, ...: linear warmup, cosine decay, then the final rate."""
    step = jnp.asarray(step, float)
    warm = (step + 1) / max(config.warmup_steps, 1)
    through = jnp.clip((step - config.warmup_steps) / max(config.decay_steps, 1), 0, 1)
    fall = (1 - config.end_lr_fraction) * (1 + jnp.cos(math.pi * through)) / 2
    later = config.end_lr_fraction + fall if config.decay_steps else 1.0
    return config.learning_rate * jnp.where(step < config.warmup_steps, warm, later)


def optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return AdamW (Loshchilov & Hutter 2019) as in torch.optim.AdamW, with clipping before it."""

    def decayed(params: Any) -> Any:
        def decays(path: tuple[Any, ...], _: Any) -> bool:  # by name: stacked vectors have two axes
            return config.decay_1d_params or path[-1].key not in _VECTORS

        return jax.tree_util.tree_map_with_path(decays, params)

    adamw = optax.adamw(
        lambda step: learning_rate(config, step),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=decayed,
    )
    return adamw if config.clip_norm is None else optax.chain(_clip(config.clip_norm), adamw)


def _clip(largest: float) -> optax.GradientTransformation:
    """Scale as torch.nn.utils.clip_grad_norm_ does: by largest / (norm + 1e-6), if below 1."""

    def scale(gradients: Any, params: Any = None) -> Any:
        factor = jnp.minimum(largest / (optax.tree.norm(gradients) + 1e-6), 1)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), gradients)

    return optax.stateless(scale)
