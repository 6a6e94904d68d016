"""Read a file of weights, and what its folder or its other entries tell about the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from obscura_jax.config import GPTConfig
from obscura_jax.interop.hf_config import from_course_config, from_hf_config, from_model_args
from obscura_jax.interop.locate import (
    CONFIG,
    FORMAT,
    SAFETENSORS_SUFFIX,
    TORCH_SUFFIXES,
    WEIGHT_FILES,
)
from obscura_jax.interop.tensor_files import read, read_json, read_msgpack, read_shards
from obscura_jax.interop.tokens import NO_TOKENS, TokenRecord, tokens_at
from obscura_jax.interop.torch_files import read_torch
from obscura_jax.safetensors_files import Tensors, read_safetensors

_T = TypeVar("_T")


@dataclass(frozen=True)
class Weights:
    """The content of a file of weights.

    Attributes:
        tensors: its tensors, under its own names.
        config_hints: entries of `GPTConfig` that its config gives.
        is_native: whether its config is this package's.
        tokens: the special tokens and tokenizer that it records.
    """

    tensors: Tensors
    config_hints: dict[str, Any]
    is_native: bool = False
    tokens: TokenRecord = NO_TOKENS


def read_weights(path: Path, entry: str | None = None) -> Weights:
    """Read the tensors in a file, and the config next to it or in it.

    Args:
        path: a file of weights; see `locate.resolve_weights`.
        entry: the entry of a PyTorch file that is the model, if there are several.

    Raises:
        ValueError: if the file, or one next to it that is read too, is damaged or not a model's.
            The message names it.
    """
    tensors, extra_entries = _read_tensors(path, entry)
    config = path.with_name(CONFIG)
    in_folder = path.name in WEIGHT_FILES
    if in_folder and config.exists():
        config_hints, is_native = read(_read_config, config)
    else:
        config_hints, is_native = _named(path, _hints_in, extra_entries), False
    recorded = config_hints.pop("tokens", {})
    tokens = tokens_at(path.parent) if in_folder else _named(path, TokenRecord.of, recorded)
    return Weights(tensors, config_hints, is_native, tokens)


def check_no_entry(source: str | Path, entry: str | None) -> None:
    """Raise ValueError if an entry is requested of a source that has none."""
    if entry is not None:
        raise ValueError(f"{source} has no entries to choose from; leave entry (--entry) out")


def _read_tensors(path: Path, entry: str | None) -> tuple[Tensors, Mapping[str, Any]]:
    """Return the tensors of a file and, of a PyTorch file, its other entries."""
    suffix = path.suffix.lower()
    if suffix in TORCH_SUFFIXES:
        return read(partial(read_torch, entry=entry), path)
    check_no_entry(path, entry)
    if path.name.endswith(".index.json"):
        of_torch = path.name.startswith("pytorch")
        reader = (lambda shard: read_torch(shard)[0]) if of_torch else read_safetensors
        return read(partial(read_shards, reader=reader), path), {}
    readers = {SAFETENSORS_SUFFIX: read_safetensors, ".msgpack": read_msgpack}
    if suffix not in readers:
        raise ValueError(
            f"{path} does not end in .safetensors, .pth, .pt, .bin, .ckpt or .msgpack; "
            "name a model file"
        )
    return read(readers[suffix], path), {}


def _read_config(path: Path) -> tuple[dict[str, Any], bool]:
    """Return the entries of `GPTConfig` in a `config.json`, and whether it is this package's."""
    config = read_json(path)
    if config.get("format") == FORMAT:
        del config["format"]
        return _named(path, GPTConfig.of, config).to_dict(), True
    if config.get("model_type", "gpt2" if "n_embd" in config else None) == "gpt2":
        return _named(path, from_hf_config, config), False
    raise ValueError(
        f'{path} is neither a config of this package (no "format": "{FORMAT}") nor of a GPT-2; '
        "convert the model with its own library first"
    )


def _hints_in(extra_entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return nanoGPT's config, or the first dictionary that has `n_heads`."""
    if "model_args" in extra_entries:
        return from_model_args(extra_entries)
    outer = [extra_entries, *(x for x in extra_entries.values() if isinstance(x, Mapping))]
    inner = [value for holder in outer[1:] for value in holder.values()]
    for value in (*outer, *inner):
        if isinstance(value, Mapping) and "n_heads" in value:
            return from_course_config(value)
    return {}


def _named(path: Path, function: Callable[[Any], _T], argument: Any) -> _T:
    """Return `function(argument)`; name the file in a ValueError."""
    try:
        return function(argument)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
