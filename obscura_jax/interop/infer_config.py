"""The config of a model, from the shapes and names of its tensors and from hints."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.config import GPT_CONFIG_124M, GPTConfig
from obscura_jax.interop.name_tables import Row
from obscura_jax.interop.recognize import Source


def infer_config(source: Source, config_hints: Mapping[str, Any]) -> GPTConfig:
    """Return the config of the model whose tensors are in `source`.

    Args:
        source: the tensors.
        config_hints: entries of the config from elsewhere (a file's own config, the command line).
            They must agree with the tensors. The drop rate defaults to the course's, 0.1.

    Raises:
        ValueError: if the embedding tables are no matrices of one width, if the hints contradict
            the tensors, or if `n_heads` is not among them: no shape depends on it.
    """
    tokens, positions, *_ = source.table.rows
    vocab_size, emb_dim = _matrix(source, tokens).shape
    context_length, width = _matrix(source, positions).shape
    if emb_dim != width:
        raise ValueError(
            f"{source.name(tokens)} has width {emb_dim}, but {source.name(positions)} {width}; "
            "save the state dict of one model"
        )
    n_layers = _count_blocks(source)
    for name, found, where in (
        ("vocab_size", vocab_size, source.name(tokens)),
        ("emb_dim", emb_dim, source.name(tokens)),
        ("context_length", context_length, source.name(positions)),
        ("n_layers", n_layers, "the file"),
    ):
        if config_hints.get(name, found) != found:
            raise ValueError(
                f"the config says {name}={config_hints[name]!r}, but {where} has {found}; use the "
                "config that was saved with the weights"
            )
    if "n_heads" not in config_hints:
        raise ValueError(
            f"the tensors do not show the number of heads; give n_heads (--n-heads), a divisor of "
            f"emb_dim={emb_dim}; GPT-2 has heads of width 64, here {emb_dim / 64:g}"
        )
    found = {
        "vocab_size": vocab_size,
        "context_length": context_length,
        "emb_dim": emb_dim,
        "n_layers": n_layers,
        "qkv_bias": _has_qkv_bias(source, n_layers, config_hints.get("qkv_bias")),
        "tie_weights": _is_tied(source, config_hints.get("tie_weights")),
    }
    return GPTConfig.of({"drop_rate": GPT_CONFIG_124M["drop_rate"], **config_hints, **found})


def _matrix(source: Source, row: Row) -> NDArray[Any]:
    tensor, name = source.get(row), source.name(row)
    if tensor is None:
        raise ValueError(f"missing tensors: {name}; save the complete state dict")
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise ValueError(f"{name} has shape {tensor.shape}, but the model needs a matrix")
    return tensor


def _count_blocks(source: Source) -> int:
    """Return how many block numbers have more than half as many tensors as the fullest block.

    A stray or missing tensor does not change the count, so that an error can name it.
    """
    before = next(row.foreign for row in source.table.rows if "{}" in row.foreign).split("{}")[0]
    pattern = re.compile(rf"{re.escape(before)}([^.]+)\.")
    sizes = Counter(match[1] for name in source.names.plain if (match := pattern.match(name)))
    return max(sum(2 * size > max(sizes.values()) for size in sizes.values()), 1)


def _has_qkv_bias(source: Source, n_layers: int, hint: bool | None) -> bool:
    """Return whether queries, keys and values have biases: the hint, or what most blocks show."""
    rows = [row for row in source.table.numbered(n_layers) if row.is_qkv_bias]
    present = [tensor for row in rows if (tensor := source.get(row)) is not None]
    if hint is False and source.table.biases_optional:
        # They were 0 when this package wrote them, but may have been trained elsewhere since.
        return any(tensor.any() for tensor in present)
    return 2 * len(present) >= len(rows) if hint is None else hint


def _is_tied(source: Source, hint: bool | None) -> bool:
    """Return whether the output head is the token table; None is a config without a hint."""
    table = source.table
    head, tokens = source.get(table.head), source.get(table.rows[0])
    if head is None or tokens is None:
        if hint or (hint is None and table.tied_by_default):
            return True
        raise ValueError(
            f"missing tensors: {source.name(table.head)}; only a model whose config has "
            "tie_weights can be without an output head"
        )
    if hint is False:
        return False
    same = same_bytes(head.T if table.head.transposed else head, tokens)
    if hint and not same:
        raise ValueError(
            f"{source.name(table.head)} is not {source.name(table.rows[0])}, but the config says "
            "that they are tied; use the config that was saved with the weights"
        )
    # The course ties nothing, but its file may hold a single tensor under both names.
    is_alias = head.ctypes.data == tokens.ctypes.data
    return same and bool(hint or table.tied_by_default or is_alias)


def same_bytes(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Return whether two arrays have the same shape, type and bits."""
    bits = f"u{a.itemsize}"
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a.view(bits), b.view(bits))
