"""From what a user names -- a file, a folder, a model of the hub -- to tensors and a config."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from obscura_jax.config import GPTConfig
from obscura_jax.extras import require
from obscura_jax.interop.hf_config import from_course_config, from_hf_config, from_model_args
from obscura_jax.interop.tensor_files import read, read_json, read_msgpack, read_shards
from obscura_jax.interop.torch_files import read_torch
from obscura_jax.safetensors_files import read_safetensors

FORMAT, WEIGHTS, CONFIG = "obscura_jax", "model.safetensors", "config.json"
MANIFEST, FORMATS = "manifest.json", "obscura_jax artifact"  # of exports, see scale.artifact
TORCH_SUFFIXES, SAFETENSORS_SUFFIX = (".pth", ".pt", ".bin", ".ckpt"), ".safetensors"
# The files of a folder that hold its weights; the first that is there is read.
WEIGHT_FILES = (
    WEIGHTS,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "flax_model.msgpack",
)
_SHIPPED = {"tiny": Path(__file__).parents[1] / "models" / "tiny"}
_TOKEN_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")  # of the hub
_HUB = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


def is_exported(folder: str | Path) -> bool:
    """Return whether `folder` is an exported model; a folder with a config is not."""
    manifest, config = (os.path.join(folder, name) for name in (MANIFEST, CONFIG))
    return os.path.isfile(manifest) and not os.path.lexists(config)


class SourceError(ValueError):
    """An error that names its file already."""


def resolve_weights(source: str | Path) -> Path:
    """The file of weights of a file, a folder, the shipped model or one of the hub's GPT-2.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when the hub cannot be reached, or huggingface-hub is missing.
    """
    path = _SHIPPED.get(str(source), Path(source))
    if str(source) in _HUB:
        return _fetched(str(source))
    if not str(source) or not os.path.exists(path):
        raise FileNotFoundError(
            f"no model at {str(source)!r}: give a folder, a .safetensors or .pth file, "
            f"tiny, {', '.join(_HUB)}, or torch-seed:N"
        )
    if not path.is_dir():
        return path
    if is_exported(path):
        raise ValueError(
            f"{path} is an exported model, which obscura generate and obscura info take: "
            "give the folder that it was exported from"
        )
    found = [name for name in WEIGHT_FILES if (path / name).is_file()]
    for part, there in ((WEIGHTS, found), (CONFIG, (path / CONFIG).is_file())):
        if not there:
            raise FileNotFoundError(f"{path} is not a model: the folder has no {part}")
    return path / found[0]


def _fetched(name: str) -> Path:
    hub = require("huggingface_hub", "hub", f"fetching {name}")
    try:
        files = [CONFIG, WEIGHTS, *_TOKEN_FILES]
        return (
            Path(hub.snapshot_download(f"openai-community/{name}", allow_patterns=files)) / WEIGHTS
        )
    except Exception as error:  # of the network, of the hub, of the disk: each has its own classes
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{name} cannot be fetched from the Hugging Face hub ({reason}); "
            f"fetch its config.json and {WEIGHTS} elsewhere, and give their folder"
        ) from error


def check_no_entry(source: str | Path, entry: str | None) -> None:
    """Raise ValueError if an entry is asked for, of a source that has none."""
    if entry is not None:
        raise SourceError(f"{source} has no entries to choose from: leave entry (--entry) out")


def tensors_and_config(
    path: Path, entry: str | None = None
) -> tuple[dict[str, NDArray[Any]], str | None, dict[str, Any]]:
    """Read a file of weights: its tensors, its dialect if its config names it, and config entries.

    `entry` names the entry of a PyTorch file that is the model, if there are several.
    """
    one_file_of_torch = path.suffix.lower() in TORCH_SUFFIXES
    if not one_file_of_torch:
        check_no_entry(path, entry)
    suffix, beside = path.suffix.lower(), {}
    if path.name.endswith(".index.json"):
        of_torch = path.name.startswith("pytorch")
        reader = (lambda shard: read_torch(shard)[0]) if of_torch else read_safetensors
        tensors = _named(lambda p: read_shards(p, reader), path)
    elif one_file_of_torch:
        tensors, beside = _named(lambda p: read_torch(p, entry), path)
    elif suffix == SAFETENSORS_SUFFIX:
        tensors = _named(read_safetensors, path)
    elif suffix == ".msgpack":
        tensors = _named(read_msgpack, path)
    else:
        raise SourceError(
            f"{path} does not end in .safetensors, .pth, .pt, .bin, .ckpt or .msgpack: "
            "not a model file"
        )
    if path.name in WEIGHT_FILES and (config := path.with_name(CONFIG)).exists():
        return tensors, *_named(_read_config, config)
    if "model_args" in beside:
        return tensors, None, from_model_args(beside)
    return tensors, None, _config_among(beside)


def _named(reader: Callable[[Path], Any], path: Path) -> Any:
    try:
        return read(reader, path)
    except ValueError as error:
        raise SourceError(str(error)) from error


def _read_config(path: Path) -> tuple[str | None, dict[str, Any]]:
    """The dialect of a config, if it is the native one, and what it says of ours."""
    config = read_json(path)
    try:
        if config.get("format") == FORMAT:
            del config["format"]
            return "native", GPTConfig.of(config).to_dict()
        if config.get("model_type", "gpt2" if "n_embd" in config else None) == "gpt2":
            return None, from_hf_config(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    raise ValueError(
        f'{path} is neither a config of this package (no "format": "{FORMAT}") nor of a GPT-2'
    )


def _config_among(beside: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config entries in the first dictionary that has `n_heads`."""
    outer = [beside, *(value for value in beside.values() if isinstance(value, Mapping))]
    inner = [value for holder in outer[1:] for value in holder.values()]
    for value in (*outer, *inner):
        if isinstance(value, Mapping) and "n_heads" in value:
            return from_course_config(value)
    return {}
