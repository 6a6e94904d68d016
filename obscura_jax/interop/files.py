"""Model files on disk: what `load_model` reads and `save_model` writes.

The native form is a folder: `config.json` beside `model.safetensors`, whose tensors have the course's names and torch's
(out, in) orientation, so the same file opens in both frameworks.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from obscura_jax.config import PRESETS, GPTConfig
from obscura_jax.extras import require
from obscura_jax.interop.dialects import (
    Converted,
    from_course,
    infer_config,
    named_tensors,
    to_course,
)
from obscura_jax.interop.torch_random import initial_parameters
from obscura_jax.nn.model import GPTModel

_TORCH_SUFFIXES = (".pth", ".pt")
_FORMAT = "obscura_jax"


@dataclass(frozen=True)
class Checkpoint:
    """A model as read from `source`.

    Attributes:
        dialect: "native", "course" or "torch-seed".
        cfg: its config.
        params: its parameter tree, float32.
        audit: what each tensor of the source became, in the source's order.
    """

    dialect: str
    cfg: GPTConfig
    params: dict[str, Any]
    audit: list[Converted]


def load_model(source: str | Path, *, n_heads: int | None = None) -> tuple[GPTModel, dict[str, Any]]:
    """Read a model.

    Args:
        source: a native folder or its `model.safetensors`; a course checkpoint (`.pth`, `.pt`; needs torch, runs none of
            the file's code); or "torch-seed:N[:PRESET]", the weights that PyTorch draws after `torch.manual_seed(N)`,
            made without PyTorch (presets: 124M, the default, gpt2, gpt2-medium, gpt2-large, gpt2-xl).
        n_heads: the number of attention heads, where the source does not say it.

    Returns:
        The model and its parameters: `model.apply({"params": params}, ids)`.

    Raises:
        FileNotFoundError: when there is nothing at `source`.
        ValueError: when it is damaged, not a model, or not wholly understood.
    """
    checkpoint = read_checkpoint(source, n_heads=n_heads)
    return GPTModel(checkpoint.cfg), checkpoint.params


def save_model(folder: str | Path, cfg: GPTConfig | Mapping[str, Any], params: Any) -> None:
    """Write the native form: `config.json` and `model.safetensors` in `folder`, made if need be.

    Each file appears whole or not at all; one that was there before is replaced.

    Raises:
        ValueError: when `params` is not a parameter tree of `GPTModel(cfg)`, or `folder` is a file.
    """
    folder, cfg = Path(folder), GPTConfig.of(cfg)
    tensors = named_tensors(cfg, params)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; the native form is a folder")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    with _replacing(folder / "model.safetensors") as temporary:
        safetensors.numpy.save_file(tensors, temporary, metadata={"format": "pt"})
    with _replacing(folder / "config.json") as temporary:
        text = json.dumps({"format": _FORMAT, **cfg.to_dict()}, indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")


def save_course(path: str | Path, cfg: GPTConfig, params: Any) -> None:
    """Write a `.pth` that the course's `GPTModel(cfg).load_state_dict(..., strict=True)` accepts."""
    torch = require("torch", "torch", "writing a course checkpoint")
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; a course checkpoint is a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: torch.tensor(tensor) for name, tensor in to_course(cfg, params).items()}
    with _replacing(path) as temporary:
        torch.save(state, temporary)


def read_checkpoint(source: str | Path, *, n_heads: int | None = None) -> Checkpoint:
    """Read a model with all that is known of it; see `load_model`."""
    if str(source).startswith("torch-seed:"):
        return _from_seed(str(source))
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"no model at {str(source)!r}: give a folder, a .safetensors or .pth file, or torch-seed:N"
        )
    known: dict[str, Any] = {}
    dialect = "course"
    if path.is_dir():
        path = path / "model.safetensors"
        if not path.exists():
            raise FileNotFoundError(f"{path.parent} has no model.safetensors")
    if path.suffix in _TORCH_SUFFIXES:
        tensors, known = _read_torch(path)
    else:
        tensors = _read_safetensors(path)
        if (config := path.with_name("config.json")).exists():
            known, dialect = _read_config(config), "native"
    if n_heads is not None:
        if known.get("n_heads", n_heads) != n_heads:
            raise ValueError(f"{source} has n_heads={known['n_heads']}, not {n_heads}")
        known["n_heads"] = n_heads
    try:
        cfg = infer_config(tensors, known)
        params, audit = from_course(tensors, cfg)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return Checkpoint(dialect, cfg, params, audit)


def _from_seed(source: str) -> Checkpoint:
    match = re.fullmatch(r"torch-seed:(-?\d+)(?::(.+))?", source)
    if not match or (preset := match[2] or "124M") not in PRESETS:
        raise ValueError(
            f"{source!r} is not torch-seed:N or torch-seed:N:PRESET with a preset of "
            f"{', '.join(PRESETS)}"
        )
    cfg = PRESETS[preset]
    return Checkpoint("torch-seed", cfg, initial_parameters(cfg, int(match[1])), [])


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.pop("format", None) != _FORMAT:
        raise ValueError(f'{path} is not a config of this package: no "format": "{_FORMAT}"')
    return GPTConfig.of(config).to_dict()


def _read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _read_torch(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The state dict in a `.pth` file, and the model config beside it, if the file holds one."""
    torch = require("torch", "torch", f"reading {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error type of its own
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} refused: its pickle calls {refused[1]}, and a checkpoint of weights calls nothing"
            ) from error
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is not a whole PyTorch checkpoint: {reason}") from error

    def is_state_dict(value: object) -> bool:
        return isinstance(value, Mapping) and any(torch.is_tensor(v) for v in value.values())

    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    state, known = content, {}
    if not is_state_dict(content):
        states = {key: value for key, value in content.items() if is_state_dict(value)}
        if len(states) != 1:
            raise ValueError(
                f"{path} holds {len(states)} state dicts among its entries: {', '.join(map(str, content))}"
            )
        (state,) = states.values()
        known = _config_among(content.values())
    if strange := [k for k, v in state.items() if not (isinstance(k, str) and torch.is_tensor(v))]:
        raise ValueError(f"{path}: entry {strange[0]!r} of the state dict is not a named tensor")
    try:
        return {name: _to_numpy(torch, tensor) for name, tensor in state.items()}, known
    except (TypeError, RuntimeError) as error:  # sparse, quantised or without storage
        raise ValueError(f"{path} holds tensors that are not plain arrays: {error}") from error


def _config_among(values: Any) -> dict[str, Any]:
    for value in values:
        if isinstance(value, Mapping) and "n_heads" in value:
            return GPTConfig.of(value).to_dict()
    return {}


def _to_numpy(torch: Any, tensor: Any) -> NDArray[Any]:
    if tensor.dtype == torch.bfloat16:  # NumPy has no such type; float32 holds every value of it
        tensor = tensor.float()
    return tensor.detach().numpy()


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
