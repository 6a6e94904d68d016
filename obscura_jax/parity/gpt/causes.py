"""Name the mistake that makes a tensor differ.

If a tensor is the first to differ, its inputs are equal. So a mistake that turns our inputs into
their tensor is the cause. Earlier blocks ran the same code with results equal to ours. If a mistake
would have changed them too, it occurs at this place only; if it is merely a factor that happens to
fit, it is not reported.
"""

import math
from collections.abc import Iterable

import numpy as np

from obscura_jax.config import GPTConfig
from obscura_jax.parity.gpt.mistakes import Array, Arrays, Mistake, mistakes, softmax

# Limits relative to the largest entry of a tensor: equal inputs leave 1e-15, a fault at least 1e-7.
_CLOSE = 1e-10
_ROUNDED = 3e-7  # a module that computes in float32 may leave this,
_OF_FAULT = 1e-3  # but at most this fraction of the difference to be explained
_ONLY_HERE = "(here, but not earlier in the model)"
_NOISE = 1e-14  # rounding; explanations that leave less than this are equally good


def diagnose(name: str, ours: Arrays, theirs: Arrays, cfg: GPTConfig, params: Arrays) -> str | None:
    """Return the mistake that explains `theirs[name]`, in words; None if no known mistake does.

    All mistakes that explain it equally well are named.

    Args:
        name: the first tensor that differs.
        ours: our intermediates of one prompt in float64, by name.
        theirs: their intermediates of the same prompt.
        cfg: the model.
        params: its parameters in float64, by dotted name.
    """
    own, target = ours[name], theirs[name]
    fault = _difference(own, target)
    if fault <= _NOISE:  # the float64 results are equal
        return None
    least = min(_ROUNDED, _OF_FAULT * fault)
    found = _explaining(mistakes(name, ours, cfg, params), target, least)
    earlier = [place for place in _earlier(name, ours) if place in theirs]
    refuted = {
        m.words
        for place in earlier
        for m in mistakes(place, ours, cfg, params)
        if _difference(m.values, theirs[place]) > least
    }
    if everywhere := [m for m in found if m.words not in refuted]:
        return _joined(everywhere)
    if only_here := [m for m in found if not m.factor]:
        return f"{_joined(only_here)} {_ONLY_HERE}"
    fact = _plain_fact(name, ours, target, cfg)
    return f"{fact} {_ONLY_HERE}" if fact and earlier else fact


def _earlier(name: str, ours: Arrays) -> list[str]:
    """Return the earlier tensors that the same code computes, where both sides are equal."""
    before = list(ours)[: list(ours).index(name)]
    if name.endswith(("norm1", "norm2", "final_norm")):
        return [other for other in before if other.endswith(("norm1", "norm2"))]
    part = name.split(".", 2)[2:]
    return [other for other in before if "." in name and other.split(".", 2)[2:] == part]


def _explaining(tried: Iterable[Mistake], target: Array, allowed: float) -> list[Mistake]:
    """Return the mistakes that produce `target`; if some fit better than others, only those."""
    errors = [(_difference(m.values, target), m) for m in tried]
    least = min((error for error, _ in errors), default=np.inf)
    return [m for error, m in errors if least <= allowed and error <= max(8 * least, _NOISE)]


def _joined(found: list[Mistake]) -> str:
    return ", or ".join(dict.fromkeys(m.words for m in found))


def _plain_fact(name: str, ours: Arrays, target: Array, cfg: GPTConfig) -> str | None:
    """Return a single factor that turns ours into theirs, in words, if there is one."""
    own = ours[name]
    if own.shape != target.shape:
        return None
    if name.endswith("att.weights") and (factor := _score_factor(name, ours, target)):
        root = math.sqrt(cfg.emb_dim // cfg.n_heads)
        return f"a scale: scores are divided by {1 / factor:.6g}, ours by {root:.6g}"
    at = np.unravel_index(np.abs(own).argmax(), own.shape)
    if own[at] and _difference(own * (factor := target[at] / own[at]), target) <= _CLOSE:
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
    weights = softmax(np.where(seen, scores * factor, -np.inf))
    return factor if factor and _difference(weights, target) <= _CLOSE else None


def _difference(x: Array, target: Array) -> float:
    """Return the difference relative to the largest entry; infinite if the shapes differ."""
    if x.shape != target.shape:
        return np.inf
    finite = np.isfinite(target)
    if not np.array_equal(finite, np.isfinite(x)) or not finite.any():
        return np.inf
    differences = np.abs(x - target, where=finite, out=np.zeros_like(target))
    largest = float(np.abs(target, where=finite, out=np.zeros_like(target)).max())
    return float(differences.max()) / (largest or 1.0)
