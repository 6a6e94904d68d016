"""A model, written as an artifact: programs for every platform beside the weights."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax import export
from jax.typing import DTypeLike

from obscura_jax import __version__
from obscura_jax.config import GPTConfig
from obscura_jax.decoding import engine
from obscura_jax.decoding.cache import KVCache, empty_cache
from obscura_jax.decoding.engine import State
from obscura_jax.interop.dialects import named_tensors
from obscura_jax.interop.tensor_files import destination, put, write_safetensors
from obscura_jax.nn.model import GPTModel
from obscura_jax.nn.target import Target, on_one_cpu, traced_for
from obscura_jax.scale.artifact import (
    FORMAT,
    MANIFEST,
    WEIGHTS,
    blank_state,
    file_name,
    plain_state,
    request_of,
    state_of,
)

PLATFORMS = ("cpu", "cuda", "tpu")


def export_model(
    folder: str | Path,
    cfg: GPTConfig,
    params: Any,
    *,
    dtype: DTypeLike = jnp.float32,
    platforms: Sequence[str] = PLATFORMS,
) -> dict[str, int]:
    """Write an artifact, of which `scale.artifact` tells what it holds.

    Args:
        folder: where to; a new folder, or one to be overwritten.
        cfg: the model's config.
        params: its parameters.
        dtype: the type of the weights and the computation, float32 or bfloat16.
        platforms: of "cpu", "cuda", "tpu", those that it is to run on.

    Returns:
        The bytes of each file.

    Raises:
        ValueError: for another platform, parameters that are not the model's, or a folder that
            cannot be written.
    """
    path = destination(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{folder} is a file; an artifact is a folder")
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise ValueError(f"platforms are of {', '.join(PLATFORMS)}, got {', '.join(platforms)!r}")
    tensors = named_tensors(cfg, params)
    tensors = {name: tensor.astype(jnp.dtype(dtype)) for name, tensor in tensors.items()}
    contents: dict[str, bytes] = {}
    cache_dtypes = {}
    for platform in platforms:
        with traced_for(Target(platform, layouts=False)):
            cache = jax.eval_shape(lambda: empty_cache(GPTModel(cfg), 1, 1, dtype))
            cache_dtypes[platform] = str(cache.keys[0].dtype)
            for name, exported in _exported(cfg, tensors, platform, cache_dtypes[platform]).items():
                contents[file_name(name, platform)] = bytes(exported.serialize())
    files = {path / name: partial(Path.write_bytes, data=data) for name, data in contents.items()}
    manifest = {
        "format": FORMAT,
        "obscura_jax": __version__,
        "jax": jax.__version__,
        "config": cfg.to_dict(),
        "dtype": str(jnp.dtype(dtype)),
        "cache_dtypes": cache_dtypes,
        "tokenizer": "gpt2",
        "files": {},
    }

    def write_manifest(to: Path) -> None:
        weights = next(to.parent.glob(f".{WEIGHTS}.*"))  # written just before, beside its place
        sums = {name: (len(data), hashlib.sha256(data)) for name, data in contents.items()}
        with weights.open("rb") as file:
            sums[WEIGHTS] = (weights.stat().st_size, hashlib.file_digest(file, "sha256"))
        manifest["files"] = {
            name: {"bytes": size, "sha256": digest.hexdigest()}
            for name, (size, digest) in sums.items()
        }
        to.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")

    weights = {path / WEIGHTS: partial(write_safetensors, tensors=tensors)}
    put(path, {**weights, **files, path / MANIFEST: write_manifest})
    names = (WEIGHTS, *contents, MANIFEST)
    return {name: (path / name).stat().st_size for name in names}


def _exported(
    cfg: GPTConfig, tensors: dict[str, Any], platform: str, cache_dtype: str
) -> dict[str, export.Exported]:
    """Both programs, of symbolic sizes, traced anew for the platform."""
    model, limit = GPTModel(cfg), cfg.context_length

    def prefill(weights: Any, ids: Any, request: Any, state: Any) -> Any:
        params = unflatten_dict(weights, sep=".")
        return _outside(
            cfg, engine.read(model, params, ids, request_of(request), _inside(cfg, state))
        )

    def decode(weights: Any, state: Any, request: Any, until: Any) -> Any:
        params = unflatten_dict(weights, sep=".")
        return _outside(
            cfg, engine.decode(model, params, _inside(cfg, state), request_of(request), until)
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


def _inside(cfg: GPTConfig, plain: dict[str, Any]) -> State:
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
