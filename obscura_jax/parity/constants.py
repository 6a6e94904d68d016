"""Constants of a PyTorch module that are float32 numbers even where it computes in float64.

`torch.tensor(2 / torch.pi)` is rounded to float32 before anything else happens. In float32 such a
program is ours; in float64 it is 1e-8 away, and that is no bug. So the constants of a module are
fitted to what it makes of its own values, and those that equal ours but for float32's rounding are
put into our model before the two are compared. Nothing else is given up: what these constants do
not explain to the last digit of float64 remains a difference.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from obscura_jax.config import GPTConfig
from obscura_jax.nn.intermediates import tapped
from obscura_jax.parity.mistakes import heads, softmax

Array = NDArray[Any]
Arrays = Mapping[str, Array]
_ULP = float(np.finfo(np.float32).eps)
_FLOOR = 16 * float(np.finfo(np.float64).eps)  # less is rounding, which no constant explains
# A fit must leave this part at most. Measured on book-style models: 1e-7 for a GELU; and 1e-3 for
# an epsilon, which moves a norm by 1e-13.
_LEFT = 1 / 16


@dataclass(frozen=True)
class Constant:
    """A constant in the computation of one tensor.

    Attributes:
        tensor: the name of the tensor.
        words: what the constant is.
        ours: its value in float64.
        theirs: the value in the other program.
        moves: by how much it moves the tensor, relative to its largest entry.
    """

    tensor: str
    words: str
    ours: float
    theirs: float
    moves: float


@dataclass(frozen=True)
class Constants:
    """Constants of theirs that our model computes with; none at first."""

    found: tuple[Constant, ...] = ()

    def config(self, cfg: GPTConfig) -> GPTConfig:
        """Return `cfg` with the epsilon of the layer norms."""
        own = [c for c in self.found if c.words == _EPSILON]
        return replace(cfg, ln_eps=max(own, key=lambda c: c.moves).theirs) if own else cfg

    def correct(self, scaled: str) -> Callable[[str, Any], tuple[Any, Any]]:
        """Return a function for one run of our model: (name, value) -> (value shown, value used).

        Args:
            scaled: the tensor of the attention that takes the scale, "scores" or "W_query".
        """
        seen: dict[str, Any] = {}
        own = {(c.tensor, c.words): c for c in self.found}

        def correct(name: str, value: Any) -> tuple[Any, Any]:
            block, _, part = name.partition(".att.")
            for seen_at in ("weights", "context") if part == scaled else ():
                if scale := own.get((f"{block}.att.{seen_at}", _SCALE)):
                    return value, value * (scale.theirs / scale.ours)
            if name.endswith(".ff.layers.0"):
                seen[name] = value
            parts = [own.get((name, words)) for words in _GELU_WORDS]
            if any(parts):
                values = [c.theirs if c else x for c, x in zip(parts, _GELU, strict=True)]
                value = _gelu(seen[f"{name[:-1]}0"], *values, tanh=jnp.tanh)
            return value, value

        return correct

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Context manager: our model computes with these constants, except for the epsilon."""
        if not self.found:
            yield
            return
        correct = self.correct("W_query")
        with tapped(lambda name, value: correct(name, value)[1]):
            yield

    def notes(self) -> list[str]:
        """Return a line for each constant, on all tensors that have it."""
        lines = []
        for words in dict.fromkeys(c.words for c in self.found):
            own = [c for c in self.found if c.words == words]
            first, worst = own[0], max(own, key=lambda c: c.moves)
            more = f" and {len(own) - 1} more" if len(own) > 1 else ""
            lines.append(
                f"{first.tensor}{more}: {words} is a float32 constant, {worst.theirs:.17g} for "
                f"{worst.ours:.17g}; float64 shows it as a difference of {worst.moves:.1e}, "
                "which is no bug, and is left out here"
            )
        return lines


_GELU_WORDS = ("the root of 2/pi", "0.044715")
_GELU = (math.sqrt(2 / math.pi), 0.044715)
_SCALE = "1 over the root of the head width"
_EPSILON = "the epsilon"


def float32_constants(theirs: Arrays, cfg: GPTConfig, params: Arrays) -> Constants:
    """Return the float32 constants of a PyTorch module.

    Args:
        theirs: its intermediates in float64, of one prompt.
        cfg: the model.
        params: its parameters in float64, by dotted name.
    """
    found: list[Constant] = []
    for name, target in theirs.items():
        if (formula := _formula(name, theirs, cfg, params)) is not None:
            words, ours, compute = formula
            found += _fitted(name, words, ours, compute, target)
    return Constants(tuple(found))


_Formula = tuple[tuple[str, ...], tuple[float, ...], Callable[..., Array]]


def _formula(name: str, x: Arrays, cfg: GPTConfig, params: Arrays) -> _Formula | None:
    """Return the constants of a tensor, their values, and the tensor as a function of them.

    None if it has no constant, or what it is made of is not seen.
    """
    block, _, part = name.partition(".att.")
    if part == "weights" or (part == "context" and f"{block}.att.weights" not in x):
        needed = [f"{block}.att.{p}" for p in ("W_query", "W_key", "W_value")]
        if all(p in x and x[p].ndim == 3 and x[p].shape[-1] == cfg.emb_dim for p in needed):
            scale = 1 / math.sqrt(cfg.emb_dim // cfg.n_heads)
            qkv = [heads(x[p], cfg) for p in needed]
            return (
                (_SCALE,),
                (scale,),
                lambda c: _attention(*qkv, c, only_weights=part == "weights"),
            )
    if name.endswith(".ff.layers.1") and (into := x.get(f"{name[:-1]}0")) is not None:
        return _GELU_WORDS, _GELU, lambda *c: _gelu(into, *c)
    stream = _stream(name, x, cfg)
    if stream is not None and stream.shape[-1] == cfg.emb_dim:
        scale_and_shift = params[f"{name}.scale"], params[f"{name}.shift"]
        return (_EPSILON,), (cfg.ln_eps,), lambda c: _norm(stream, *scale_and_shift, c)
    return None


def _stream(name: str, x: Arrays, cfg: GPTConfig) -> Array | None:
    """Return what a layer norm is given."""
    if name == "final_norm":
        return x.get(f"trf_blocks.{cfg.n_layers - 1}")
    if name.endswith(".norm2"):
        return x.get(name.replace("norm2", "residual"))
    if name.endswith(".norm1"):
        n = int(name.split(".")[1])
        return x.get(f"trf_blocks.{n - 1}" if n else "embeddings")
    return None


def _fitted(
    name: str,
    words: tuple[str, ...],
    ours: tuple[float, ...],
    compute: Callable[..., Array],
    target: Array,
) -> list[Constant]:
    """Return the constants that make `target`, if they equal ours but for float32's rounding."""
    largest = float(np.abs(target).max(initial=0.0)) or 1.0

    def left(values: Any) -> Array:
        return (target - compute(*values)) / largest

    own = np.array(ours)
    if target.shape != compute(*ours).shape:
        return []
    before = left(own)
    size = float(np.abs(before).max(initial=0.0))
    if not _FLOOR < size < 1:  # NaN is neither
        return []
    # Derivatives by the logarithm of each constant; one step of Gauss and Newton, since the
    # constants are 1e-8 off and what is of second order 1e-16.
    steps = 1e-4 * np.eye(len(own))
    columns = [(left(own * (1 - h)) - left(own * (1 + h))) / (2 * 1e-4) for h in steps]
    jacobian = np.stack([column.ravel() for column in columns], axis=-1)
    shift = np.linalg.lstsq(jacobian, before.ravel(), rcond=None)[0]
    after = float(np.abs(left(own * (1 + shift))).max())
    if not (after <= _LEFT * size and np.abs(shift).max() <= _ULP):
        return []
    moves = np.abs(jacobian * shift).max(axis=0)
    return [
        Constant(name, w, float(c), float(c * (1 + s)), float(m))
        for w, c, s, m in zip(words, own, shift, moves, strict=True)
        if m > _FLOOR
    ]


def _gelu(x: Any, root: float, cubed: float, tanh: Callable[[Any], Any] = np.tanh) -> Any:
    return 0.5 * x * (1 + tanh(root * (x + cubed * x**3)))


def _norm(x: Array, scale: Array, shift: Array, eps: float) -> Array:
    centered = x - x.mean(-1, keepdims=True)
    return scale * centered / np.sqrt(np.square(centered).mean(-1, keepdims=True) + eps) + shift


def _attention(
    queries: Array, keys: Array, values: Array, scale: float, *, only_weights: bool
) -> Array:
    """Return causal attention weights (B, H, T, T), or contexts with the heads joined (B, T, D)."""
    length = queries.shape[-2]
    scores = queries @ keys.swapaxes(-1, -2) * scale
    weights = softmax(np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf))
    if only_weights:
        return weights
    contexts = (weights @ values).swapaxes(-3, -2)
    return contexts.reshape(*contexts.shape[:-2], -1)
