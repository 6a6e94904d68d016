"""Why a tensor differs: the usual mistakes, each tried on what went into it.

Where a tensor is the first to differ, its inputs are equal; so a mistake that makes theirs out of
our inputs is the cause. All in float64, where no chance agreement survives.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.config import GPTConfig

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Candidates = Iterator[tuple[str, Array]]
_erf = np.vectorize(math.erf, otypes=[np.float64])
_CLOSE = 1e-10  # of the largest entry; equal inputs leave 1e-15, and a fault is 1e-7 at the least


def cause(name: str, ours: Arrays, theirs: Arrays, cfg: GPTConfig, params: Arrays) -> str | None:
    """In words, the mistake that explains `theirs[name]`; None where none of the known ones does.

    Args:
        name: the first tensor that differs.
        ours: all intermediates of ours in float64, of one prompt.
        theirs: those of theirs.
        cfg: the model.
        params: its parameters in float64, by dotted name.
    """
    target = theirs[name]
    for words, candidate in _candidates(name, ours, cfg, params):
        if candidate.shape == target.shape and _close(candidate, target):
            return words
    own = ours[name]
    if own.shape != target.shape:
        return None
    at = np.unravel_index(np.abs(own).argmax(), own.shape)
    if own[at] and _close(own * (factor := target[at] / own[at]), target):
        return f"a scale: theirs is ours times {factor:.6g}"
    return None


def _close(a: Array, b: Array) -> bool:
    finite = np.isfinite(b)
    if not np.array_equal(finite, np.isfinite(a)) or not finite.any():
        return False
    return float(np.abs(a - b, where=finite, out=np.zeros_like(b)).max()) <= _CLOSE * float(
        np.abs(b, where=finite, out=np.zeros_like(b)).max()
    )


def _candidates(name: str, x: Arrays, cfg: GPTConfig, params: Arrays) -> Candidates:
    block, part = "", name
    if name.startswith("trf_blocks."):
        _, n, *rest = name.split(".")
        block, part = f"trf_blocks.{n}", ".".join(rest)
    before = _stream_before(block, x) if block else None
    match part:
        case "embeddings":
            yield from _embeddings(x, params)
        case "norm1" | "norm2" | "final_norm":
            stream = {"norm1": before, "norm2": x.get(f"{block}.residual")}.get(
                part, x.get(f"trf_blocks.{cfg.n_layers - 1}")
            )
            if stream is not None:
                yield from _norms(name, stream, cfg, params)
        case "att.W_query" | "att.W_key" | "att.W_value":
            yield from _projections(name, x[f"{block}.norm1"], cfg, params)
            if before is not None:
                yield "the layer norm before it is left out", _linear(before, name, params)
        case "att.scores":
            yield from _scores(block, x, cfg)
        case "att.weights":
            yield from _weights(x[f"{block}.att.scores"], cfg)
        case "att.context":
            yield from _contexts(block, x, cfg)
        case "att.out_proj":
            yield from _projections(name, x[f"{block}.att.context"], cfg, params)
        case "residual" | "":
            into, added, skipped = (
                (before, x[f"{block}.att.out_proj"], x[f"{block}.norm1"])
                if part
                else (x[f"{block}.residual"], x[f"{block}.ff.layers.2"], x[f"{block}.norm2"])
            )
            yield "the shortcut is missing", added
            yield "the shortcut starts after the layer norm", skipped + added
            if into is not None:
                yield "nothing is added to the shortcut", into
        case "ff.layers.0":
            yield from _projections(name, x[f"{block}.norm2"], cfg, params)
            residual = x[f"{block}.residual"]
            yield "the layer norm before it is left out", _linear(residual, name, params)
        case "ff.layers.1":
            yield from _activations(x[f"{block}.ff.layers.0"])
        case "ff.layers.2":
            yield from _projections(name, x[f"{block}.ff.layers.1"], cfg, params)
        case "logits":
            for head in ("tok_emb", "out_head"):
                if f"{head}.weight" in params:
                    words = "tied to the token table" if head == "tok_emb" else "not tied"
                    yield f"the output head is {words}", _linear(x["final_norm"], head, params)
            head = "tok_emb" if cfg.tie_weights else "out_head"
            last = x[f"trf_blocks.{cfg.n_layers - 1}"]
            yield "the final layer norm is left out", _linear(last, head, params)


def _stream_before(block: str, x: Arrays) -> Array | None:
    n = int(block.split(".")[1])
    return x.get(f"trf_blocks.{n - 1}" if n else "embeddings")


def _linear(x: Array, name: str, params: Arrays) -> Array:
    return x @ params[f"{name}.weight"].T + params.get(f"{name}.bias", 0.0)


def _projections(name: str, x: Array, cfg: GPTConfig, params: Arrays) -> Candidates:
    weight, bias = params[f"{name}.weight"], params.get(f"{name}.bias")
    if weight.shape[0] == weight.shape[1]:
        yield "a transposed matrix", x @ weight + (0.0 if bias is None else bias)
    if bias is not None:
        yield "a missing bias", x @ weight.T
    prefix, _, own = name.rpartition(".")
    if own.startswith("W_"):
        for other in ("W_query", "W_key", "W_value"):
            if other != own:
                words = f"swapped projections: {own} has the weights of {other}"
                yield words, _linear(x, f"{prefix}.{other}", params)
        rows = np.arange(cfg.emb_dim).reshape(cfg.n_heads, -1).T.reshape(-1)
        for order in (rows, np.argsort(rows)):
            mixed = x @ weight[order].T + (0.0 if bias is None else bias[order])
            yield "heads interleaved: its rows are ordered by width, then head", mixed
    number = name.split(".")[1]
    for n in range(cfg.n_layers):
        if str(n) != number:
            other = name.replace(f"trf_blocks.{number}.", f"trf_blocks.{n}.", 1)
            yield f"another block's weights: those of block {n}", _linear(x, other, params)


def _embeddings(x: Arrays, params: Arrays) -> Candidates:
    tokens, positions = x["tok_emb"], params["pos_emb.weight"]
    length, width = tokens.shape[-2:]
    yield "positions are left out", tokens
    yield "positions start at 1", tokens + np.roll(positions, -1, axis=0)[:length]
    scaled = tokens * math.sqrt(width) + positions[:length]
    yield "tokens are scaled by the root of the width", scaled


def _norms(name: str, x: Array, cfg: GPTConfig, params: Arrays) -> Candidates:
    scale, shift = params[f"{name}.scale"], params[f"{name}.shift"]
    centred = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)

    def norm(eps: float, by: Array = scale, plus: Array | float = shift) -> Array:
        return by * centred / np.sqrt(variance + eps) + plus

    width = x.shape[-1]
    for eps in (1e-5, 1e-6, 1e-12, 1e-8, 1e-7, 1e-4, 1e-3, 0.0):
        if eps != cfg.ln_eps:
            yield f"another epsilon: {eps:g}, ours is {cfg.ln_eps:g}", norm(eps)
    eps = cfg.ln_eps
    if width > 1:
        unbiased = scale * centred / np.sqrt(variance * width / (width - 1) + eps) + shift
        yield "the unbiased variance, over D - 1", unbiased
    yield "epsilon is added to the root", scale * centred / (np.sqrt(variance) + eps) + shift
    yield "a missing bias: no shift", norm(eps, plus=0.0)
    yield "a missing scale", norm(eps, by=np.ones_like(scale))
    square = np.square(x).mean(-1, keepdims=True)
    yield "the mean is not subtracted", scale * x / np.sqrt(square + eps) + shift
    others = {key.rpartition(".")[0] for key in params if key.endswith(".shift")} - {name}
    for other in sorted(others):
        swapped = norm(eps, params[f"{other}.scale"], params[f"{other}.shift"])
        yield f"swapped layer norms: it has the parameters of {other}", swapped


def _activations(x: Array) -> Candidates:
    yield "the exact GELU, by the error function", 0.5 * x * (1 + _erf(x / math.sqrt(2)))
    yield "ReLU", np.maximum(x, 0)
    for factor, words in ((1.702, "the GELU by a sigmoid"), (1.0, "SiLU")):
        yield words, x / (1 + np.exp(-factor * x))
    yield "no activation", x


def _heads(x: Array, cfg: GPTConfig) -> Array:
    return x.reshape(*x.shape[:-1], cfg.n_heads, -1).swapaxes(-3, -2)


def _scores(block: str, x: Arrays, cfg: GPTConfig) -> Candidates:
    own, width = x[f"{block}.att.scores"], cfg.emb_dim // cfg.n_heads
    yield "swapped projections: queries and keys are exchanged", own.swapaxes(-1, -2)
    yield f"divided by the root of {width} before the softmax", own / math.sqrt(width)
    queries, keys = (
        x[f"{block}.att.{part}"].reshape(*own.shape[:-3], own.shape[-1], width, cfg.n_heads)
        for part in ("W_query", "W_key")
    )
    yield "heads interleaved", np.einsum("...tkh,...skh->...hts", queries, keys)


def _weights(scores: Array, cfg: GPTConfig) -> Candidates:
    length, k = scores.shape[-1], cfg.emb_dim // cfg.n_heads
    square = np.ones((length, length), bool)
    masks = {
        "": np.tril(square),
        "no causal mask": square,
        "a wrong mask: a token does not see itself": np.tril(square, -1),
        "a wrong mask: each token sees the next one": np.tril(square, 1),
        "a wrong mask: tokens see the future, not the past": np.triu(square),
    }
    scales = {
        "": math.sqrt(k),
        f"a scale left out: scores are not divided by the root of the head width {k}": 1.0,
        f"a wrong scale: the root of the whole width {cfg.emb_dim}": math.sqrt(cfg.emb_dim),
        f"a wrong scale: the head width {k}, not its root": float(k),
    }
    for mask_words, mask in masks.items():
        for scale_words, scale in scales.items():
            words = " and ".join(filter(None, (mask_words, scale_words)))
            masked = np.where(mask, scores / scale, -np.inf)
            if words:
                yield words, _softmax(masked)
            elif length > 1:
                yield "softmax over the queries", _softmax(masked, axis=-2)
    causal, scaled = masks[""], scores / math.sqrt(k)
    zeros = _softmax(np.where(causal, scaled, 0))
    yield "a wrong mask: masked scores are 0, not minus infinity", zeros
    yield "masked after the softmax, not renormalised", np.where(causal, _softmax(scaled), 0)


def _contexts(block: str, x: Arrays, cfg: GPTConfig) -> Candidates:
    values = _heads(x[f"{block}.att.W_value"], cfg)
    own = x[f"{block}.att.weights"] @ values
    shape = x[f"{block}.att.context"].shape
    yield "heads joined without moving their axis back", own.reshape(shape)
    yield "heads interleaved when joined", np.moveaxis(own, -3, -1).reshape(shape)
    for words, weights in _weights(x[f"{block}.att.scores"], cfg):  # where theirs are not seen
        yield words, (weights @ values).swapaxes(-3, -2).reshape(shape)


def _softmax(x: Array, axis: int = -1) -> Array:
    with np.errstate(invalid="ignore"):
        e = np.exp(x - x.max(axis, keepdims=True))
        return np.asarray(e / e.sum(axis, keepdims=True))
