"""Common mistakes in a port: the tensor that each computes from the correct inputs, in float64."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from obscura_jax.config import GPTConfig

Array = NDArray[Any]
Arrays = Mapping[str, Array]
_erf = np.vectorize(math.erf, otypes=[np.float64])


class Mistake(NamedTuple):
    """A mistake and the tensor that it produces.

    Attributes:
        words: a description.
        values: the tensor.
        factor: whether the mistake is only a factor, which may equal another one by chance.
    """

    words: str
    values: Array
    factor: bool = False


Mistakes = Iterator[Mistake]


def mistakes(name: str, x: Arrays, cfg: GPTConfig, params: Arrays) -> Mistakes:
    """Yield the mistakes that can occur in computing the tensor `name`.

    Args:
        name: the tensor.
        x: our intermediates of one prompt in float64, by name.
        cfg: the model.
        params: its parameters in float64, by dotted name.
    """
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
                yield Mistake("the layer norm before it is left out", _linear(before, name, params))
        case "att.scores":
            yield from _scores(block, x, cfg)
        case "att.weights":
            yield from _weights(block, x[f"{block}.att.scores"], cfg)
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
            yield Mistake("the shortcut is missing", added)
            yield Mistake("the shortcut starts after the layer norm", skipped + added)
            if into is not None:
                yield Mistake("nothing is added to the shortcut", into)
        case "ff.layers.0":
            yield from _projections(name, x[f"{block}.norm2"], cfg, params)
            residual = x[f"{block}.residual"]
            yield Mistake("the layer norm before it is left out", _linear(residual, name, params))
        case "ff.layers.1":
            yield from _activations(x[f"{block}.ff.layers.0"])
        case "ff.layers.2":
            yield from _projections(name, x[f"{block}.ff.layers.1"], cfg, params)
        case "logits":
            for head in ("tok_emb", "out_head"):
                if f"{head}.weight" in params:
                    words = "tied to the token table" if head == "tok_emb" else "not tied"
                    yield Mistake(
                        f"the output head is {words}", _linear(x["final_norm"], head, params)
                    )
            head = "tok_emb" if cfg.tie_weights else "out_head"
            last = x[f"trf_blocks.{cfg.n_layers - 1}"]
            yield Mistake("the final layer norm is left out", _linear(last, head, params))


def _stream_before(block: str, x: Arrays) -> Array | None:
    n = int(block.split(".")[1])
    return x.get(f"trf_blocks.{n - 1}" if n else "embeddings")


def _linear(x: Array, name: str, params: Arrays) -> Array:
    return x @ params[f"{name}.weight"].T + params.get(f"{name}.bias", 0.0)


def _projections(name: str, x: Array, cfg: GPTConfig, params: Arrays) -> Mistakes:
    weight, bias = params[f"{name}.weight"], params.get(f"{name}.bias")
    if weight.shape[0] == weight.shape[1]:
        yield Mistake("a transposed matrix", x @ weight + (0.0 if bias is None else bias))
    if bias is not None:
        yield Mistake("a missing bias", x @ weight.T)
    prefix, _, own = name.rpartition(".")
    if own.startswith("W_"):
        for other in ("W_query", "W_key", "W_value"):
            if other != own:
                words = f"swapped projections: {own} has the weights of {other}"
                yield Mistake(words, _linear(x, f"{prefix}.{other}", params))
        rows = np.arange(cfg.emb_dim).reshape(cfg.n_heads, -1).T.reshape(-1)
        for order in (rows, np.argsort(rows)):
            mixed = x @ weight[order].T + (0.0 if bias is None else bias[order])
            yield Mistake("heads interleaved: its rows are ordered by width, then head", mixed)
    number = name.split(".")[1]
    for n in range(cfg.n_layers):
        if str(n) != number:
            other = name.replace(f"trf_blocks.{number}.", f"trf_blocks.{n}.", 1)
            yield Mistake(f"another block's weights: those of block {n}", _linear(x, other, params))


def _embeddings(x: Arrays, params: Arrays) -> Mistakes:
    tokens, positions = x["tok_emb"], params["pos_emb.weight"]
    length, width = tokens.shape[-2:]
    yield Mistake("positions are left out", tokens)
    yield Mistake("positions start at 1", tokens + np.roll(positions, -1, axis=0)[:length])
    scaled = tokens * math.sqrt(width) + positions[:length]
    yield Mistake("tokens are scaled by the root of the width", scaled)


def _norms(name: str, x: Array, cfg: GPTConfig, params: Arrays) -> Mistakes:
    scale, shift = params[f"{name}.scale"], params[f"{name}.shift"]
    centered = x - x.mean(-1, keepdims=True)
    variance = np.square(centered).mean(-1, keepdims=True)

    def norm(eps: float, weight: Array = scale, bias: Array | float = shift) -> Array:
        return weight * centered / np.sqrt(variance + eps) + bias

    width = x.shape[-1]
    for eps in (1e-5, 1e-6, 1e-12, 1e-8, 1e-7, 1e-4, 1e-3, 0.0):
        if eps != cfg.ln_eps:
            yield Mistake(f"another epsilon: {eps:g}, ours is {cfg.ln_eps:g}", norm(eps))
    eps = cfg.ln_eps
    if width > 1:
        unbiased = scale * centered / np.sqrt(variance * width / (width - 1) + eps) + shift
        yield Mistake("the unbiased variance, over D - 1", unbiased)
    yield Mistake(
        "epsilon is added to the root", scale * centered / (np.sqrt(variance) + eps) + shift
    )
    yield Mistake("a missing bias: no shift", norm(eps, bias=0.0))
    yield Mistake("a missing scale", norm(eps, weight=np.ones_like(scale)))
    square = np.square(x).mean(-1, keepdims=True)
    yield Mistake("the mean is not subtracted", scale * x / np.sqrt(square + eps) + shift)
    others = {key.rpartition(".")[0] for key in params if key.endswith(".shift")} - {name}
    for other in sorted(others):
        swapped = norm(eps, params[f"{other}.scale"], params[f"{other}.shift"])
        yield Mistake(f"swapped layer norms: it has the parameters of {other}", swapped)


def _activations(x: Array) -> Mistakes:
    yield Mistake("the exact GELU, by the error function", 0.5 * x * (1 + _erf(x / math.sqrt(2))))
    yield Mistake("ReLU", np.maximum(x, 0))
    for factor, words in ((1.702, "the GELU by a sigmoid"), (1.0, "SiLU")):
        yield Mistake(words, x / (1 + np.exp(-factor * x)))
    yield Mistake("no activation", x)
    root = math.sqrt(2 / math.pi)
    for digits in range(3, 11):
        y = 0.5 * x * (1 + np.tanh(round(root, digits) * (x + 0.044715 * x**3)))
        yield Mistake(f"the root of 2/pi cut to {round(root, digits)}", y)


def heads(x: Array, cfg: GPTConfig) -> Array:
    """Split the last axis by head: (B, T, D) becomes (B, H, T, D / H)."""
    return x.reshape(*x.shape[:-1], cfg.n_heads, -1).swapaxes(-3, -2)


def _scores(block: str, x: Arrays, cfg: GPTConfig) -> Mistakes:
    own, width = x[f"{block}.att.scores"], cfg.emb_dim // cfg.n_heads
    swapped = own.swapaxes(-1, -2)
    yield Mistake("swapped projections: queries and keys are exchanged", swapped)
    queries, keys = (
        x[f"{block}.att.{part}"].reshape(*own.shape[:-3], own.shape[-1], width, cfg.n_heads)
        for part in ("W_query", "W_key")
    )
    yield Mistake("heads interleaved", np.einsum("...tkh,...skh->...hts", queries, keys))
    for words, scale in _scales(block, cfg):
        words = f"{words}, before the softmax" if words else f"divided by the root of {width}"
        yield Mistake(words, own / scale, factor=True)


def _scales(block: str, cfg: GPTConfig) -> list[tuple[str, float]]:
    """Return possible divisors of the scores with a description; ours is first, with none."""
    k, root = cfg.emb_dim // cfg.n_heads, math.sqrt(cfg.emb_dim // cfg.n_heads)
    layer = int(block.split(".")[1]) + 1
    return [
        ("", root),
        (f"a scale left out: scores are not divided by the root of the head width {k}", 1.0),
        (f"a wrong scale: the root of the full width {cfg.emb_dim}", math.sqrt(cfg.emb_dim)),
        (f"a wrong scale: the root of the number of heads {cfg.n_heads}", math.sqrt(cfg.n_heads)),
        (f"a wrong scale: the head width {k}, not its root", float(k)),
        (f"a wrong scale: the fourth root of the head width {k}", math.sqrt(root)),
        ("a scale for each block: scores are also scaled by 1/(layer + 1)", root * layer),
    ]


def _weights(block: str, scores: Array, cfg: GPTConfig) -> Mistakes:
    length, k = scores.shape[-1], cfg.emb_dim // cfg.n_heads
    square = np.ones((length, length), bool)
    masks = {
        "": np.tril(square),
        "no causal mask": square,
        "a wrong mask: a token does not see itself": np.tril(square, -1),
        "a wrong mask: each token sees the next one": np.tril(square, 1),
        "a wrong mask: tokens see the future, not the past": np.triu(square),
    }
    for mask_words, mask in masks.items():
        for scale_words, scale in _scales(block, cfg):
            words = " and ".join(filter(None, (mask_words, scale_words)))
            masked = np.where(mask, scores / scale, -np.inf)
            if words:
                yield Mistake(words, softmax(masked), factor=bool(scale_words))
            elif length > 1:
                yield Mistake("softmax over the queries", softmax(masked, axis=-2))
    causal, scaled = masks[""], scores / math.sqrt(k)
    zeros = softmax(np.where(causal, scaled, 0))
    yield Mistake("a wrong mask: masked scores are 0, not minus infinity", zeros)
    late = np.where(causal, softmax(scaled), 0)
    yield Mistake("masked after the softmax, not renormalized", late)


def _contexts(block: str, x: Arrays, cfg: GPTConfig) -> Mistakes:
    values = heads(x[f"{block}.att.W_value"], cfg)
    own = x[f"{block}.att.weights"] @ values
    shape = x[f"{block}.att.context"].shape
    yield Mistake("heads joined without moving their axis back", own.reshape(shape))
    yield Mistake("heads interleaved when joined", np.moveaxis(own, -3, -1).reshape(shape))
    scores = x[f"{block}.att.scores"]
    for words, weights, factor in _weights(block, scores, cfg):  # their weights may not be visible
        joined = (weights @ values).swapaxes(-3, -2).reshape(shape)
        yield Mistake(words, joined, factor)


def softmax(x: Array, axis: int = -1) -> Array:
    """Normalize the exponentials of one axis; rows of minus infinity give NaN."""
    with np.errstate(invalid="ignore"):
        e = np.exp(x - x.max(axis, keepdims=True))
        return np.asarray(e / e.sum(axis, keepdims=True))
