"""Name the mistake that makes a tensor differ.

If a tensor is the first to differ, its inputs are equal. So a mistake that makes theirs out of our
inputs is the cause -- unless it is one of code and an earlier block does without it.
"""

import math
from collections.abc import Iterable

import numpy as np

from obscura_jax.config import GPTConfig
from obscura_jax.parity.mistakes import Array, Arrays, Mistake, mistakes, softmax

_CLOSE = 1e-10  # of the largest entry; equal inputs leave 1e-15, and a fault is 1e-7 at the least
_ROUNDED = 3e-7  # what a float32 constant in theirs may leave,
_OF_FAULT = 1e-3  # but no more than this part of the difference that is to be explained
_NOISE = 1e-14  # rounding: of two explanations that leave less neither is the better one


def cause(name: str, ours: Arrays, theirs: Arrays, cfg: GPTConfig, params: Arrays) -> str | None:
    """Return the mistake that explains `theirs[name]`, in words; None if no known one does.

    Mistakes that explain it equally well are all named.

    Args:
        name: the first tensor that differs.
        ours: all intermediates of ours in float64, of one prompt.
        theirs: those of theirs.
        cfg: the model.
        params: its parameters in float64, by dotted name.
    """
    own, target = ours[name], theirs[name]
    found = _explaining(mistakes(name, ours, cfg, params), own, target)
    refuted = _refuted(name, ours, theirs, cfg, params)
    if sound := [m for m in found if m.scope == "weights" or m.words not in refuted]:
        return _joined(sound)
    if only_here := [m for m in found if m.scope == "code"]:
        return f"{_joined(only_here)} (in this block, not in those before it)"
    return _plain_fact(name, ours, target, cfg)


def _explaining(tried: Iterable[Mistake], own: Array, target: Array) -> list[Mistake]:
    """Return those of `tried` that make `target`; the nearest only, if others are farther off."""
    left = [(_apart(m.values, target), m) for m in tried]
    least = min((apart for apart, _ in left), default=np.inf)
    if not (least <= _CLOSE or least <= min(_ROUNDED, _OF_FAULT * _apart(own, target))):
        return []
    return [m for apart, m in left if apart <= max(8 * least, _NOISE)]


def _refuted(
    name: str, ours: Arrays, theirs: Arrays, cfg: GPTConfig, params: Arrays
) -> frozenset[str]:
    """Return the words of the mistakes that do not make theirs in some block before that of `name`.

    In those blocks theirs equal ours, so code that has the mistake would show it there.
    """
    if not name.startswith("trf_blocks."):
        return frozenset()
    _, number, *part = name.split(".")
    fault = _apart(ours[name], theirs[name])
    found, least = set(), min(_ROUNDED, _OF_FAULT * fault)
    for n in range(int(number)):
        earlier = ".".join(["trf_blocks", str(n), *part])
        if earlier in ours and earlier in theirs:
            tried = mistakes(earlier, ours, cfg, params)
            found |= {m.words for m in tried if _apart(m.values, theirs[earlier]) > least}
    return frozenset(found)


def _joined(found: list[Mistake]) -> str:
    return ", or ".join(dict.fromkeys(m.words for m in found))


def _plain_fact(name: str, ours: Arrays, target: Array, cfg: GPTConfig) -> str | None:
    """Return how theirs follows from ours, if a single number says it."""
    own = ours[name]
    if name == "logits" and own.shape[:-1] == target.shape[:-1]:
        more = target.shape[-1] - own.shape[-1]
        if more > 0 and _apart(target[..., : own.shape[-1]], own) <= _CLOSE:
            return f"theirs has {more} columns more, and the first {own.shape[-1]} are equal"
    if own.shape != target.shape:
        return None
    if name.endswith("att.weights") and (factor := _score_factor(name, ours, target)):
        root = math.sqrt(cfg.emb_dim // cfg.n_heads)
        return f"a scale: scores are divided by {1 / factor:.6g}, ours by {root:.6g}"
    at = np.unravel_index(np.abs(own).argmax(), own.shape)
    if own[at] and _apart(own * (factor := target[at] / own[at]), target) <= _CLOSE:
        return f"a scale: theirs is ours times {factor:.6g}"
    return None


def _score_factor(name: str, ours: Arrays, target: Array) -> float | None:
    """Return the factor of the scores that gives `target` after a causal softmax, if one does."""
    scores = ours[name.replace("weights", "scores")]
    seen = np.tril(np.ones(scores.shape[-2:], bool))
    if not (target > 0)[..., seen].all():
        return None
    count = seen.sum(-1, keepdims=True)

    def centered(x: Array) -> Array:
        x = np.where(seen, x, 0)
        return np.where(seen, x - x.sum(-1, keepdims=True) / count, 0)

    x, y = centered(scores), centered(np.log(np.where(seen, target, 1)))
    factor = float((x * y).sum() / (np.square(x).sum() or 1.0))
    made = softmax(np.where(seen, scores * factor, -np.inf))
    return factor if factor and _apart(made, target) <= _CLOSE else None


def _apart(x: Array, target: Array) -> float:
    """Return the difference relative to the largest entry; infinite where shapes differ."""
    if x.shape != target.shape:
        return np.inf
    finite = np.isfinite(target)
    if not np.array_equal(finite, np.isfinite(x)) or not finite.any():
        return np.inf
    differences = np.abs(x - target, where=finite, out=np.zeros_like(target))
    largest = float(np.abs(target, where=finite, out=np.zeros_like(target)).max())
    return float(differences.max()) / (largest or 1.0)
