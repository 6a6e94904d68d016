"""Export a model: compile-ready programs for every platform, next to its weights."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax import export
from jax.typing import DTypeLike

from obscura_jax import __version__
from obscura_jax.atomic_files import require_path, write_atomically
from obscura_jax.config import GPTConfig
from obscura_jax.decoding import programs
from obscura_jax.decoding.cache import CacheLayout, cache_layout, target_layout
from obscura_jax.decoding.state import State
from obscura_jax.export.executables import TARGETS, compile_executables, target_device
from obscura_jax.export.file_format import (
    FORMAT,
    WEIGHTS,
    Sizes,
    file_name,
    plain_state,
    program_arguments,
    request_from_plain,
    state_from_plain,
)
from obscura_jax.interop.course_state import named_tensors
from obscura_jax.interop.destinations import check_free, remove_companions
from obscura_jax.interop.locate import MANIFEST
from obscura_jax.interop.tokens import NO_TOKENS, TokenRecord
from obscura_jax.nn.model import GPTModel
from obscura_jax.nn.target import Target, tracing_for
from obscura_jax.safetensors_files import header_digest, write_safetensors

PLATFORMS = ("cpu", "cuda", "tpu")


def export_model(
    folder: str | Path,
    cfg: GPTConfig,
    params: Any,
    *,
    dtype: DTypeLike = jnp.float32,
    platforms: Sequence[str] = PLATFORMS,
    compile_for: Sequence[str] = (),
    tokens: TokenRecord = NO_TOKENS,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write a model as programs in a folder, in the format of `export.file_format`.

    Args:
        folder: the destination.
        cfg: the model's config.
        params: its parameters.
        dtype: the type of the weights and the computation, float32 or bfloat16.
        platforms: the platforms that it will run on, out of "cpu", "cuda" and "tpu".
        compile_for: what to add executables for: "cpu", this machine's processor, or a kind of GPU
            that need not be present, a key of `scale.nvidia.GPUS`. See `export.executables`.
        tokens: the model's special tokens and tokenizer, which are written too.
        overwrite: replace a model that is already in the folder.

    Returns:
        The size of each file, in bytes.

    Raises:
        ValueError: for an unknown platform or type, executables that cannot be compiled here or
            that need another platform, parameters of another model, or a folder that cannot be
            written or holds a model and `overwrite` is False.
    """
    path = require_path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{folder} is a file; name a folder")
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"dtype must be float32 or bfloat16, got {dtype!r}")
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise ValueError(
            f"platforms must be among {', '.join(PLATFORMS)}; got {', '.join(platforms)!r}"
        )
    for target in compile_for:
        if target not in TARGETS:
            raise ValueError(f"executables are for {', '.join(TARGETS)}; got {target!r}")
        if TARGETS[target] not in platforms:
            raise ValueError(
                f"executables for {target} need programs for {TARGETS[target]}, but the platforms "
                f"are {', '.join(platforms)}; add {TARGETS[target]} (--platforms)"
            )
    check_free(path, overwrite)
    devices = {target: target_device(target) for target in compile_for}
    tensors = named_tensors(cfg, params)
    tensors = {name: tensor.astype(jnp.dtype(dtype)) for name, tensor in tensors.items()}
    contents = {name: source.read_bytes() for name, source in tokens.files.items()}
    cache_dtypes, executables = {}, {}
    for platform in platforms:
        with tracing_for(Target(platform, allow_layouts=False)):
            cache_dtypes[platform] = str(target_layout(cfg, dtype).dtype)
            exported = _export_programs(cfg, tensors, platform)
            for name, program in exported.items():
                contents[file_name(name, platform)] = bytes(program.serialize())
            layout = cache_layout(cfg, cache_dtypes[platform])
            for target, device in devices.items():
                if TARGETS[target] == platform:
                    executables[target], compiled = compile_executables(
                        target, device, exported, cfg, tensors, layout
                    )
                    contents |= compiled
    entries = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in contents.items()
    }

    def write_weights(to: Path) -> None:
        write_safetensors(to, tensors)
        with to.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        entries[WEIGHTS] = {
            "bytes": to.stat().st_size,
            "sha256": digest,
            "header_sha256": header_digest(to),
        }

    manifest = {
        "format": FORMAT,
        "obscura_jax": __version__,
        "jax": jax.__version__,
        "config": cfg.to_dict(),
        "dtype": str(jnp.dtype(dtype)),
        "cache_dtypes": cache_dtypes,
        "tokens": tokens.to_dict(),
        "files": entries,
    }
    if executables:
        manifest["executables"] = executables

    def write_manifest(to: Path) -> None:  # written after all others
        to.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")

    files: dict[str, Callable[[Path], object]] = {
        WEIGHTS: write_weights,
        **{name: partial(Path.write_bytes, data=data) for name, data in contents.items()},
        MANIFEST: write_manifest,
    }
    write_atomically(path, {path / name: write for name, write in files.items()})
    remove_companions(path, files)
    return {name: (path / name).stat().st_size for name in files}


def _export_programs(
    cfg: GPTConfig, tensors: dict[str, Any], platform: str
) -> dict[str, export.Exported]:
    """Trace both programs for the current target, with symbolic sizes."""
    model, limit = GPTModel(cfg), cfg.context_length
    inner = target_layout(cfg, next(iter(tensors.values())).dtype)
    outer = cache_layout(cfg, inner.dtype)

    def to_inner(plain: dict[str, Any]) -> State:
        return _with_layout(state_from_plain(plain), inner)

    def to_outer(state: State) -> dict[str, Any]:
        return plain_state(_with_layout(state, outer))

    def prefill(weights: Any, ids: Any, request: Any, state: Any) -> Any:
        params, request = unflatten_dict(weights, sep="."), request_from_plain(request)
        return to_outer(programs.prefill_into(model, params, request, to_inner(state), ids))

    def decode(weights: Any, state: Any, request: Any, until: Any) -> Any:
        params, request = unflatten_dict(weights, sep="."), request_from_plain(request)
        return to_outer(programs.decode(model, params, request, to_inner(state), until))

    b, s, n, k, t = export.symbolic_shape(
        "b, s, n, k, t", constraints=["t <= s", f"s <= {limit}", f"t <= {limit}"]
    )
    arguments = program_arguments("prefill", tensors, outer, Sizes(b, t, s, n, k))
    exported_prefill = export.export(jax.jit(prefill), platforms=[platform])(*arguments)
    b, s, n, k = export.symbolic_shape("b, s, n, k", constraints=[f"s <= {limit}"])
    arguments = program_arguments("decode", tensors, outer, Sizes(b, 0, s, n, k))
    exported_decode = export.export(jax.jit(decode), platforms=[platform])(*arguments)
    return {"prefill": exported_prefill, "decode": exported_decode}


def _with_layout(state: State, layout: CacheLayout) -> State:
    return replace(state, cache=layout.convert(state.cache, state.tokens.shape[0]))
