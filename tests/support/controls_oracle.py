"""The controls, slow and obvious: one row, one token and one step at a time, in NumPy.

Every step is a function from (logits, row) to logits. Tests replace one by a wrong version.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from obscura_jax.decoding.sampling import Sampling, sample
from tests.support.generation import CFG, KEY, MODEL, PARAMS

FLOAT = np.float32


@dataclass
class Row:
    """A row in the middle of generation, with its own controls."""

    prompt: list[int]
    new: list[int] = field(default_factory=list)
    stop_ids: tuple[int, ...] = ()
    logit_bias: Mapping[int, float] | None = None
    banned_ids: tuple[int, ...] = ()
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    min_new_tokens: int | None = None


Step = Callable[[np.ndarray, Row], np.ndarray]


def add_bias(logits: np.ndarray, row: Row) -> np.ndarray:
    for token, bias in (row.logit_bias or {}).items():
        logits[token] = logits[token] + FLOAT(bias)
    return logits


def ban(logits: np.ndarray, row: Row) -> np.ndarray:
    for token in row.banned_ids:
        logits[token] = -np.inf
    return logits


def penalize_repetition(logits: np.ndarray, row: Row) -> np.ndarray:
    if row.repetition_penalty is not None:
        penalty = FLOAT(row.repetition_penalty)
        for token in set(row.prompt) | set(row.new):
            x = logits[token]
            logits[token] = x / penalty if x > 0 else x * penalty
    return logits


def penalize_frequency(logits: np.ndarray, row: Row) -> np.ndarray:
    for token in row.new:  # once for each time
        logits[token] = logits[token] - FLOAT(row.frequency_penalty or 0)
    return logits


def penalize_presence(logits: np.ndarray, row: Row) -> np.ndarray:
    for token in set(row.new):
        logits[token] = logits[token] - FLOAT(row.presence_penalty or 0)
    return logits


def require_length(logits: np.ndarray, row: Row) -> np.ndarray:
    if len(row.new) < (row.min_new_tokens or 0):
        for token in row.stop_ids:
            logits[token] = -np.inf
    return logits


STEPS: dict[str, Step] = {
    "bias": add_bias,
    "ban": ban,
    "repetition": penalize_repetition,
    "frequency": penalize_frequency,
    "presence": penalize_presence,
    "length": require_length,
}


def controlled(logits: Any, row: Row, steps: Mapping[str, Step] = STEPS) -> np.ndarray:
    """Return the logits (V,) that the controls of a row leave to sampling."""
    changed = np.array(logits, FLOAT)
    for step in steps.values():
        changed = step(changed, row)
    return changed


@jax.jit
def _logits(ids: Any, at: Any) -> Any:
    return MODEL.apply({"params": PARAMS}, ids[None])[0, at]


def next_logits(ids: list[int]) -> np.ndarray:
    """Return the model's logits (V,) after the last tokens of `ids` that fit in the context."""
    seen = ids[-CFG.context_length :]
    padded = np.zeros(CFG.context_length, np.int32)
    padded[: len(seen)] = seen
    return np.asarray(_logits(padded, len(seen) - 1))


_draw = jax.jit(lambda logits, settings, key: sample(logits, settings, key[None])[0])


def generate_slowly(
    row: Row, count: int, steps: Mapping[str, Step] = STEPS, **sampling: Any
) -> list[int]:
    """Return up to `count` new tokens of one row, without the stop id that ends it."""
    settings = Sampling(**sampling).arrays(1, CFG.vocab_size)
    row = Row(**(vars(row) | {"new": []}))
    while len(row.new) < count:
        ids = row.prompt + row.new
        logits = controlled(next_logits(ids), row, steps)
        key = jax.random.fold_in(jax.random.clone(KEY), len(ids))
        token = int(_draw(jnp.asarray(logits)[None], settings, key))
        if token in row.stop_ids:
            break
        row.new.append(token)
    return row.new
