"""A model, written as an artifact: programs for every platform beside the weights."""

import hashlib
import json
from collections.abc import Callable, Sequence
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
from obscura_jax.decoding.cache import KVCache, empty_cache
from obscura_jax.decoding.programs import State
from obscura_jax.export.artifact import (
    FORMAT,
    WEIGHTS,
    blank_state,
    file_name,
    plain_state,
    request_of,
    state_of,
)
from obscura_jax.interop.course_state import named_tensors
from obscura_jax.interop.destinations import check_free, remove_companions
from obscura_jax.interop.locate import MANIFEST
from obscura_jax.interop.tensor_files import header_digest, write_safetensors
from obscura_jax.interop.tokens import NO_TOKENS, TokenRecord
from obscura_jax.nn.model import GPTModel
from obscura_jax.nn.target import Target, on_one_cpu, tracing_for

PLATFORMS = ("cpu", "cuda", "tpu")


def export_model(
    folder: str | Path,
    cfg: GPTConfig,
    params: Any,
    *,
    dtype: DTypeLike = jnp.float32,
    platforms: Sequence[str] = PLATFORMS,
    tokens: TokenRecord = NO_TOKENS,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write an artifact, of which `export.artifact` tells what it holds.

    Args:
        folder: where to.
        cfg: the model's config.
        params: its parameters.
        dtype: the type of the weights and the computation, float32 or bfloat16.
        platforms: of "cpu", "cuda", "tpu", those that it is to run on.
        tokens: the model's special tokens and tokenizer, which go along.
        overwrite: whether to replace a model that is in the folder.

    Returns:
        The bytes of each file.

    Raises:
        ValueError: for another platform or type, parameters that are not the model's, a folder that
            holds a model that `overwrite` protects, or one that cannot be written.
    """
    path = require_path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{folder} is a file; an artifact is a folder")
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"dtype must be float32 or bfloat16, got {dtype!r}")
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise ValueError(f"platforms are of {', '.join(PLATFORMS)}, got {', '.join(platforms)!r}")
    check_free(path, overwrite)
    tensors = named_tensors(cfg, params)
    tensors = {name: tensor.astype(jnp.dtype(dtype)) for name, tensor in tensors.items()}
    programs: dict[str, bytes] = {}
    cache_dtypes = {}
    for platform in platforms:
        with tracing_for(Target(platform, allow_layouts=False)):
            cache = jax.eval_shape(lambda: empty_cache(GPTModel(cfg), 1, 1, dtype))
            cache_dtypes[platform] = str(cache.keys[0].dtype)
            for name, exported in _exported(cfg, tensors, platform, cache_dtypes[platform]).items():
                programs[file_name(name, platform)] = bytes(exported.serialize())
    contents = {name: source.read_bytes() for name, source in tokens.files.items()} | programs
    sums = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in contents.items()
    }

    def write_weights(to: Path) -> None:
        write_safetensors(to, tensors)
        with to.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        sums[WEIGHTS] = {
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
        "files": sums,
    }

    def write_manifest(to: Path) -> None:  # after all others
        to.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")

    files: dict[str, Callable[[Path], object]] = {
        WEIGHTS: write_weights,
        **{name: partial(Path.write_bytes, data=data) for name, data in contents.items()},
        MANIFEST: write_manifest,
    }
    write_atomically(path, {path / name: write for name, write in files.items()})
    remove_companions(path, files)
    return {name: (path / name).stat().st_size for name in files}


def _exported(
    cfg: GPTConfig, tensors: dict[str, Any], platform: str, cache_dtype: str
) -> dict[str, export.Exported]:
    """Both programs, of symbolic sizes, traced anew for the platform."""
    model, limit = GPTModel(cfg), cfg.context_length

    def prefill(weights: Any, ids: Any, request: Any, state: Any) -> Any:
        params = unflatten_dict(weights, sep=".")
        return _outside(cfg, programs.read(model, params, ids, request_of(request), _inside(state)))

    def decode(weights: Any, state: Any, request: Any, until: Any) -> Any:
        params = unflatten_dict(weights, sep=".")
        return _outside(
            cfg, programs.decode(model, params, _inside(state), request_of(request), until)
        )

    weights = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in tensors.items()}
    reading = export.symbolic_shape(
        "b, s, n, k, t", constraints=["t <= s", f"s <= {limit}", f"t <= {limit}"]
    )
    request, state = _symbolic(cfg, cache_dtype, *reading[:4])
    ids = jax.ShapeDtypeStruct((reading[0], reading[4]), jnp.int32)
    of_prefill = export.export(jax.jit(prefill), platforms=[platform])
    read = of_prefill(weights, ids, request, state)
    going_on = export.symbolic_shape("b, s, n, k", constraints=[f"s <= {limit}"])
    request, state = _symbolic(cfg, cache_dtype, *going_on)
    until = jax.ShapeDtypeStruct((), jnp.int32)
    of_decode = export.export(jax.jit(decode), platforms=[platform])
    return {"prefill": read, "decode": of_decode(weights, state, request, until)}


def _symbolic(cfg: GPTConfig, cache_dtype: str, b: Any, s: Any, n: Any, k: Any) -> tuple[Any, Any]:
    """A request and a state of b rows, s cache slots, room for n tokens, k stop ids."""
    row, whole = jax.ShapeDtypeStruct((b,), jnp.float32), jax.ShapeDtypeStruct((b,), jnp.int32)
    request = {
        "lengths": whole,
        "temperature": row,
        "top_k": whole,
        "top_p": row,
        "min_p": row,
        "keys": jax.ShapeDtypeStruct((b, 2), jnp.uint32),
        "stop_ids": jax.ShapeDtypeStruct((b, k), jnp.int32),
    }
    heads, width = cfg.n_heads, cfg.emb_dim // cfg.n_heads
    blank = jax.eval_shape(lambda: blank_state(cfg, 2, 3, 5, cache_dtype))

    def symbolic(leaf: Any) -> jax.ShapeDtypeStruct:
        symbols: Any = {0: (), 1: (b,), 2: (b, n), 4: (b, heads, s, width)}
        return jax.ShapeDtypeStruct(symbols[leaf.ndim], leaf.dtype)

    return request, jax.tree.map(symbolic, blank)


def _inside(plain: dict[str, Any]) -> State:
    """A state as the programs have it on this platform."""
    state = state_of(plain)
    if not on_one_cpu():
        return state

    def joined(cache: Any) -> Any:
        b, h, s, k = cache.shape
        return cache.reshape(b * h, s, k)

    return _with_cache(state, joined)


def _outside(cfg: GPTConfig, state: State) -> dict[str, Any]:
    """The inverse of `_inside`."""
    if not on_one_cpu():
        return plain_state(state)

    def parted(cache: Any) -> Any:
        return cache.reshape(state.tokens.shape[0], cfg.n_heads, *cache.shape[1:])

    return plain_state(_with_cache(state, parted))


def _with_cache(state: State, change: Any) -> State:
    cache: KVCache = jax.tree.map(change, state.cache)
    return State(**{**vars(state), "cache": cache})
