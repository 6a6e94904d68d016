"""Name the mistake that makes a tensor differ.

If a tensor is the first to differ, its inputs are equal. So a mistake that makes theirs out of our
inputs is the cause. The same code has run before, in the blocks before, and made what equals ours:
a mistake that would have shown there is of this place only, or, if it is no more than a factor that
happens to fit, none.
"""

import math
from collections.abc import Iterable

import numpy as np

from obscura_jax.config import GPTConfig
from obscura_jax.parity.mistakes import Array, Arrays, Mistake, mistakes, softmax

_CLOSE = 1e-10  # of the largest entry; equal inputs leave 1e-15, and a fault is 1e-7 at the least
_ROUNDED = 3e-7  # what theirs may leave where it computes in float32,
_OF_FAULT = 1e-3  # but no more than this part of the difference that is to be explained
_ONLY_HERE = "(here, but not earlier in the model)"
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
    fault = _apart(own, target)
    if fault <= _NOISE:  # they differ in float32 only
        return None
    least = min(_ROUNDED, _OF_FAULT * fault)
    found = _explaining(mistakes(name, ours, cfg, params), target, least)
    earlier = [place for place in _earlier(name, ours) if place in theirs]
    refuted = {
        m.words
        for place in earlier
        for m in mistakes(place, ours, cfg, params)
        if _apart(m.values, theirs[place]) > least
    }
    if everywhere := [m for m in found if m.words not in refuted]:
        return _joined(everywhere)
    if only_here := [m for m in found if not m.factor]:
        return f"{_joined(only_here)} {_ONLY_HERE}"
    fact = _plain_fact(name, ours, target, cfg)
    return f"{fact} {_ONLY_HERE}" if fact and earlier else fact


def _earlier(name: str, ours: Arrays) -> list[str]:
    """Return the tensors before `name` that the same code makes: theirs equal ours there."""
    before = list(ours)[: list(ours).index(name)]
    if name.endswith(("norm1", "norm2", "final_norm")):
        return [other for other in before if other.endswith(("norm1", "norm2"))]
    part = name.split(".", 2)[2:]
    return [other for other in before if "." in name and other.split(".", 2)[2:] == part]


def _explaining(tried: Iterable[Mistake], target: Array, allowed: float) -> list[Mistake]:
    """Return those of `tried` that make `target`; the nearest only, if others are farther off."""
    left = [(_apart(m.values, target), m) for m in tried]
    least = min((apart for apart, _ in left), default=np.inf)
    return [m for apart, m in left if least <= allowed and apart <= max(8 * least, _NOISE)]


def _joined(found: list[Mistake]) -> str:
    return ", or ".join(dict.fromkeys(m.words for m in found))


def _plain_fact(name: str, ours: Arrays, target: Array, cfg: GPTConfig) -> str | None:
    """Return how theirs follows from ours, if a single number says it."""
    own = ours[name]
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
