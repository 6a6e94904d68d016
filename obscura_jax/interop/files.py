"""Model files on disk: what `load_model` reads and `save_model` writes.

The native form is a folder: `config.json` beside `model.safetensors`, whose tensors have the
course's names and torch's (out, in) orientation, so the same file opens in both frameworks.
"""

import contextlib
import json
import mmap
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flax.traverse_util import flatten_dict
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from obscura_jax.config import PRESETS, GPTConfig, check_size
from obscura_jax.interop.dialects import (
    Converted,
    from_course,
    infer_config,
    named_tensors,
    to_course,
)
from obscura_jax.interop.torch_files import read_torch, write_torch
from obscura_jax.interop.torch_random import initial_parameters
from obscura_jax.nn.model import GPTModel

_TORCH_SUFFIXES = (".pth", ".pt")
_SAFETENSORS_SUFFIX = ".safetensors"
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_FORMAT = "obscura_jax"
_SHIPPED = {"tiny": Path(__file__).parents[1] / "models" / "tiny"}
_TYPE_CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_T = TypeVar("_T")


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


def load_model(
    source: str | Path, *, n_heads: int | None = None
) -> tuple[GPTModel, dict[str, Any]]:
    """Read a model.

    Args:
        source: a native folder or its `model.safetensors`; a course checkpoint (`.pth` or `.pt`,
            which needs torch and runs none of the file's code, or `.safetensors`); or
            "tiny", the model that the package ships (a folder of that name is "./tiny"); or
            "torch-seed:N[:PRESET]", the weights that PyTorch draws after `torch.manual_seed(N)`,
            made without PyTorch (presets: 124M, the default, gpt2, gpt2-medium, ...).
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

    Both files are written whole before either takes its place; what was there before is replaced.

    Raises:
        ValueError: when `params` is not a parameter tree of `GPTModel(cfg)`, or `folder` is a file
            or cannot be written.
    """
    cfg = GPTConfig.of(cfg)
    tensors = named_tensors(cfg, params)
    text = json.dumps({"format": _FORMAT, **cfg.to_dict()}, indent=2) + "\n"
    path = _destination(folder)
    if path.suffix.lower() in (*_TORCH_SUFFIXES, _SAFETENSORS_SUFFIX) and not os.path.isdir(path):
        raise ValueError(
            f"{folder} is a file's name, and the native form is a folder: name a folder, or write "
            "a course checkpoint (--to course)"
        )
    if os.path.exists(path) and not os.path.isdir(path):
        raise ValueError(f"{folder} is a file; the native form is a folder")
    weights = partial(_write_safetensors, tensors=tensors)
    config = partial(Path.write_text, data=text, encoding="utf-8")
    _write(path, {path / _WEIGHTS: weights, path / _CONFIG: config})


def save_course(path: str | Path, cfg: GPTConfig | Mapping[str, Any], params: Any) -> None:
    """Write a `.pth` that the course's `GPTModel(cfg).load_state_dict(..., strict=True)` accepts.

    Raises:
        ValueError: when `params` is not a parameter tree of `GPTModel(cfg)`, `cfg.ln_eps` is not
            the course's 1e-5, torch is missing, or `path` is a folder, does not end in .pth or
            .pt, or cannot be written.
    """
    tensors = to_course(GPTConfig.of(cfg), params)
    path = _destination(path)
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder; a course checkpoint is a file")
    if path.suffix.lower() not in _TORCH_SUFFIXES:
        raise ValueError(f"{path} must end in .pth or .pt, as course checkpoints do")
    _write(path, {path: partial(write_torch, tensors)})


def read_checkpoint(source: str | Path, *, n_heads: int | None = None) -> Checkpoint:
    """Read a model with all that is known of it; see `load_model`."""
    if n_heads is not None:
        check_size("n_heads", n_heads)
    if str(source).startswith("torch-seed:"):
        return _from_seed(str(source), n_heads)
    path = _SHIPPED.get(str(source), Path(source))
    if not str(source) or not os.path.exists(path):
        raise FileNotFoundError(
            f"no model at {str(source)!r}: give a folder, a .safetensors or .pth file, "
            "tiny, or torch-seed:N"
        )
    known: dict[str, Any] = {}
    dialect = "course"
    if path.is_dir():
        for part in (_WEIGHTS, _CONFIG):
            if not (path / part).is_file():
                raise FileNotFoundError(f"{path} is not a model: the folder has no {part}")
        path = path / _WEIGHTS
    if path.suffix.lower() in _TORCH_SUFFIXES:
        tensors, known = _read(read_torch, path)
    elif path.suffix.lower() == _SAFETENSORS_SUFFIX:
        tensors = _read(_read_safetensors, path)
        if path.name == _WEIGHTS and (config := path.with_name(_CONFIG)).exists():
            known, dialect = _read(_read_config, config), "native"
    else:
        raise ValueError(f"{path} does not end in .safetensors, .pth or .pt: not a model file")
    if n_heads is not None:
        if known.get("n_heads", n_heads) != n_heads:
            raise ValueError(f"{source} has n_heads={known['n_heads']}, not {n_heads}")
        known["n_heads"] = n_heads
    try:
        cfg = infer_config(tensors, known)
        params, audit = from_course(tensors, cfg, share=True)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return Checkpoint(dialect, cfg, params, audit)


def _from_seed(source: str, n_heads: int | None) -> Checkpoint:
    match = re.fullmatch(r"torch-seed:(-?[0-9]{1,20})(?::(.+))?", source)
    if not match or (preset := match[2] or "124M") not in PRESETS:
        raise ValueError(
            f"{source[:80]!r} is not torch-seed:N or torch-seed:N:PRESET, N a whole number of "
            f"64 bits and PRESET one of {', '.join(PRESETS)}"
        )
    cfg = PRESETS[preset]
    if n_heads not in (None, cfg.n_heads):
        raise ValueError(f"{source} has n_heads={cfg.n_heads}, not {n_heads}")
    params = initial_parameters(cfg, int(match[1]))
    audit = [
        Converted(name, name, "drawn as torch draws it", leaf.shape, str(leaf.dtype))
        for name, leaf in flatten_dict(params, sep=".").items()
    ]
    return Checkpoint("torch-seed", cfg, params, audit)


def _read(reader: Callable[[Path], _T], path: Path) -> _T:
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        path.open("rb").close()  # for the system's own reason, where it lets nobody in
        return reader(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.pop("format", None) != _FORMAT:
        raise ValueError(f'{path} is not a config of this package: no "format": "{_FORMAT}"')
    try:
        return GPTConfig.of(config).to_dict()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a file; those of float32 are mapped, not read: they lie in the file's pages.

    The mapping is private, so that JAX may write where it is given the memory; the file stays.
    """
    try:
        with safe_open(path, framework="numpy") as file:  # which checks the header
            mapped = _map(path)
            start = 8 + int.from_bytes(mapped[:8], "little")
            tensors = {}
            for name, entry in json.loads(mapped[8:start]).items():
                if name == "__metadata__":
                    continue
                if entry["dtype"] == "F32":
                    shape, (begin, end) = entry["shape"], entry["data_offsets"]
                    flat = np.frombuffer(mapped, "<f4", (end - begin) // 4, start + begin)
                    tensors[name] = flat.reshape(shape)
                else:
                    tensors[name] = file.get_tensor(name)
            return tensors
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is damaged, cut short or not a safetensors file ({error}): "
            "fetch it again, or save the model again"
        ) from error
    except (AttributeError, TypeError) as error:  # how safetensors meets a type unknown to NumPy
        raise ValueError(f"{path} has tensors of a type that NumPy lacks: {error}") from error


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if hasattr(mapped, "madvise"):  # 0.02 against 0.9 s for a first look at the 124M model
        mapped.madvise(mmap.MADV_WILLNEED)
    return mapped


def _write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write tensors so that the data begin on a multiple of 64 bytes, where JAX can use them.

    safetensors' own writer keeps to a multiple of 8.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        code = _TYPE_CODES[str(tensor.dtype)]
        header[name] = {"dtype": code, "shape": tensor.shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).view(np.uint8).data)


def _destination(path: str | Path) -> Path:
    if not str(path):
        raise ValueError("the destination is empty: name a file or folder to write")
    return Path(path)


def _write(destination: Path, files: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write every file beside its place, then move all to their places; or change nothing."""
    temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in files}
    try:
        for path, temporary in temporaries.items():
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode  # safetensors' own files only their owner may read
            files[path](temporary)
            temporary.chmod(mode)
        for path, temporary in temporaries.items():
            temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise ValueError(f"{destination} cannot be written: {reason}") from error
    finally:
        for temporary in temporaries.values():
            with contextlib.suppress(OSError):
                temporary.unlink()
