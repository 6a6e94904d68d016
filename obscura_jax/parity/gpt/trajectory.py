"""Train one small model on the same batches in PyTorch and in JAX, and return both loss curves.

Both sides start from the same weights and use AdamW with warmup, cosine decay, clipping, weight
decay of matrices only, and gradient accumulation. The curves agree up to rounding, with dropout too
if PyTorch drops the values that JAX drops.
"""

import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import jax
import numpy as np
from numpy.typing import NDArray

from obscura_jax.config import GPTConfig
from obscura_jax.interop.build import build
from obscura_jax.nn.model import GPTModel
from obscura_jax.rng import threefry
from obscura_jax.rng.same_draws import same_dropout
from obscura_jax.training.optimizer import OptimizerConfig
from obscura_jax.training.options import StepOptions
from obscura_jax.training.step import init_train_state, train_step_jit

Dtype = Literal["float32", "float64"]
Losses = NDArray[np.float64]

CFG = GPTConfig(
    vocab_size=53,
    context_length=11,
    emb_dim=12,
    n_heads=3,
    n_layers=2,
    drop_rate=0.0,
    qkv_bias=True,
)
OPTIMIZER = OptimizerConfig(
    learning_rate=3e-3,
    warmup_steps=10,
    decay_steps=80,
    weight_decay=0.1,
    decay_1d_params=False,
    clip_norm=0.5,
)
STEPS, MICRO_BATCHES, ROWS = 100, 2, 3
SEED = 123  # of JAX's dropout
_OPTIONS = StepOptions(grad_accum_steps=MICRO_BATCHES)
_TORCH_SEED = 3  # of the initial weights, and of PyTorch's own dropout


def batches(steps: int = STEPS, micro_batches: int = MICRO_BATCHES) -> NDArray[np.int32]:
    """Return token ids, (steps, micro_batches, ROWS, T + 1).

    There is something to learn: each row counts up in steps of 1, 2 or 3, modulo the vocabulary.
    """
    start, stride = np.random.default_rng(0).integers(
        0, CFG.vocab_size, (2, steps, micro_batches, ROWS, 1)
    )
    counts = start + (stride % 3 + 1) * np.arange(CFG.context_length + 1)
    return (counts % CFG.vocab_size).astype(np.int32)


def jax_losses(
    dtype: Dtype,
    *,
    drop_rate: float = 0.0,
    seed: int = SEED,
    optimizer: OptimizerConfig = OPTIMIZER,
) -> Losses:
    """Return the loss of each step in JAX, (STEPS,).

    Args:
        dtype: number type of parameters and optimizer.
        drop_rate: probability of dropping a value.
        seed: seed of the dropout key.
        optimizer: the settings of AdamW.
    """
    import torch

    cfg = replace(CFG, drop_rate=drop_rate)
    with torch.random.fork_rng(devices=[]):
        state_dict = {name: x.numpy() for name, x in _torch_model(cfg).state_dict().items()}
    params = build(state_dict, cfg.to_dict()).params
    losses = []
    with jax.enable_x64(dtype == "float64"):
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        state = init_train_state(optimizer, params)
        model, key = GPTModel(cfg), jax.random.key(seed) if drop_rate else None
        for ids in batches():
            inputs, targets = ids[..., :-1], ids[..., 1:]
            state, metrics = train_step_jit(
                model, optimizer, state, inputs, targets, key, options=_OPTIONS
            )
            losses.append(float(metrics.loss))
    return np.array(losses)


def torch_losses(
    dtype: Dtype,
    *,
    drop_rate: float = 0.0,
    jax_draws: bool = True,
    optimizer: OptimizerConfig = OPTIMIZER,
) -> Losses:
    """Return the loss of each step in PyTorch, (STEPS,), from the weights of `jax_losses`.

    Args:
        dtype: number type of parameters and optimizer.
        drop_rate: probability of dropping a value.
        jax_draws: whether to drop the values that `jax_losses` drops with seed `SEED`, instead of
            those that PyTorch's own generator draws.
        optimizer: the settings of AdamW.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        model = _torch_model(replace(CFG, drop_rate=drop_rate)).to(getattr(torch, dtype)).train()
        adamw, schedule = _adamw(model, optimizer)
        losses = []
        for step, micro_batches in enumerate(torch.tensor(batches(), dtype=torch.long)):
            adamw.zero_grad()
            total = 0.0
            for number, ids in enumerate(micro_batches):
                key = threefry.fold_in(threefry.fold_in(threefry.key(SEED), step), number)
                with same_dropout(model, key) if drop_rate and jax_draws else nullcontext():
                    logits = model(ids[:, :-1])
                targets = ids[:, 1:].flatten()
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)
                (loss / len(micro_batches)).backward()
                total += loss.item() / len(micro_batches)
            losses.append(total)
            if optimizer.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.clip_norm)
            adamw.step()
            schedule.step()
    return np.array(losses)


def relative_difference(ours: Losses, theirs: Losses) -> float:
    """Return the largest difference of two curves, relative to `theirs`."""
    return float(np.abs(ours / theirs - 1).max())


def _torch_model(cfg: GPTConfig) -> Any:
    import torch

    from obscura_jax.parity.gpt import torch_reference

    torch.manual_seed(_TORCH_SEED)
    return torch_reference.GPTModel(cfg.to_dict())


def _adamw(model: Any, config: OptimizerConfig) -> tuple[Any, Any]:
    """Return torch's AdamW with the settings of `config`, and its learning-rate schedule."""
    import torch

    vector_decay = config.weight_decay if config.decay_1d_params else 0.0
    groups = [
        {
            "params": [p for p in model.parameters() if p.ndim > 1],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": vector_decay},
    ]
    betas = (config.beta1, config.beta2)
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon)

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        progress = min((step - config.warmup_steps) / config.decay_steps, 1)
        low = config.end_lr_fraction
        return low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2

    return adamw, torch.optim.lr_scheduler.LambdaLR(adamw, factor)
