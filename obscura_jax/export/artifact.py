"""Load an exported model, for `generate(..., programs=programs)`."""

import hashlib
import importlib
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from obscura_jax.decoding.cache import CacheLayout, cache_layout
from obscura_jax.decoding.programs import GenerationPrograms
from obscura_jax.decoding.state import Request, State, initial_state
from obscura_jax.export.executables import find_executables
from obscura_jax.export.file_format import (
    DONATED,
    PROGRAMS,
    WEIGHTS,
    Sizes,
    file_name,
    plain_request,
    plain_state,
    read_manifest,
    state_from_plain,
)
from obscura_jax.export.stored_program import StoredProgram
from obscura_jax.interop.locate import MANIFEST
from obscura_jax.interop.tensor_files import read
from obscura_jax.interop.tokens import CARRIED
from obscura_jax.nn.model import GPTModel
from obscura_jax.safetensors_files import header_digest, read_safetensors

_PLATFORMS = {"gpu": "cuda"}  # name of a backend in JAX -> in jax.export


def load_artifact(folder: str | Path) -> tuple[GPTModel, Any, GenerationPrograms]:
    """Return the model, the weights and the programs of an exported model.

    Raises:
        ValueError: if the folder is damaged, or for another version, JAX or platform, or if its
            executables are for another version of JAX or another processor or GPU.
    """
    folder = Path(folder)
    manifest, cfg = read_manifest(folder)
    backend = jax.default_backend()
    platform = _PLATFORMS.get(backend, backend)
    try:
        cache_dtypes = {name: jnp.dtype(x) for name, x in manifest["cache_dtypes"].items()}
        digests = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        entries = manifest.get("executables", {})
        weights_digest = manifest["files"].get(WEIGHTS, {}).get("header_sha256")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged: {error}") from error
    if platform not in cache_dtypes:
        raise ValueError(
            f"{folder} was exported for {', '.join(cache_dtypes)}, but this is {platform}; "
            f"export it again with --platforms {platform}"
        )
    files = {name: folder / file_name(name, platform) for name in PROGRAMS}
    data = {name: _read_checked(path, digests) for name, path in files.items()}
    for name in CARRIED:
        if name in digests:
            _read_checked(folder / name, digests)
    weights = read(read_safetensors, folder / WEIGHTS)
    if header_digest(folder / WEIGHTS) != weights_digest:
        raise ValueError(
            f"{folder / WEIGHTS} is not the file that {MANIFEST} lists; export the model again"
        )
    params = {name: jax.device_put(x, may_alias=True) for name, x in weights.items()}
    layout = cache_layout(cfg, cache_dtypes[platform])
    try:
        executables = find_executables(
            folder,
            entries,
            platform,
            read=partial(_read_checked, digests=digests),
            weights=weights,
            layout=layout,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged: {error}") from error
    if not any(executables.values()):
        # JAX imports it, without need, when it runs the first exported program: 0.13 s.
        threading.Thread(target=importlib.import_module, args=["scipy.linalg"], daemon=True).start()
    stored = {
        name: StoredProgram(
            partial(_deserialize, files[name], data[name], DONATED[name], manifest),
            executables[name],
        )
        for name in PROGRAMS
    }
    for program in stored.values():
        program.start_loading_smallest()  # while the caller reads the tokenizer, for example
    dtype = next(iter(weights.values())).dtype
    programs = _generation_programs(stored["prefill"], stored["decode"], layout, dtype)
    return GPTModel(cfg), params, programs


def _generation_programs(
    prefill: StoredProgram, decode: StoredProgram, layout: CacheLayout, dtype: Any
) -> GenerationPrograms:
    """Return the two programs with the arguments that the programs of a model have.

    `layout` is that of the cache, and `dtype` the type of the weights.
    """

    def run_prefill(
        _: Any, params: Any, request: Request, prompts: Any, slots: int, capacity: int, __: int
    ) -> State:
        if (given := next(iter(params.values())).dtype) != dtype:
            raise ValueError(
                f"an exported model in {dtype} cannot compute in {given}; leave out dtype, or "
                f"export the model with --dtype {given}"
            )
        rows, width = len(request.lengths), prompts.shape[1]
        prompts = np.repeat(prompts, rows // len(prompts), axis=0)
        stop_ids = request.stop_ids.shape[1]
        sizes = prefill.roomy(Sizes(rows, width, slots, capacity, stop_ids))
        decode.start_loading(sizes._replace(width=0))
        cache = layout.empty(rows, sizes.slots, np.zeros)
        state = plain_state(initial_state(rows, sizes.capacity, cache, np.zeros))
        return state_from_plain(prefill(sizes, params, prompts, plain_request(request), state))

    def run_decode(_: Any, params: Any, request: Request, state: State, target_count: Any) -> State:
        rows, capacity = state.tokens.shape
        slots, stop_ids = state.cache.keys[0].shape[-2], request.stop_ids.shape[1]
        sizes = Sizes(rows, 0, slots, capacity, stop_ids)
        plain = decode(sizes, params, plain_state(state), plain_request(request), target_count)
        return state_from_plain(plain)

    def refuse(what: str) -> Callable[..., Any]:
        def run(*_: Any) -> Any:
            raise ValueError(f"an exported model cannot {what}; load the model that was exported")

        return run

    return GenerationPrograms(
        run_prefill,
        run_decode,
        slide=refuse("slide past its context"),
        read_prefix=refuse("keep a prefix"),
        prefill_after=refuse("keep a prefix"),
        jitted=(prefill, decode),
        have_controls=False,
    )


def _read_checked(path: Path, digests: dict[str, str]) -> bytes:
    """Return the bytes of a file; ValueError unless their digest is that of the manifest."""
    if not path.is_file() or path.name not in digests:
        raise ValueError(
            f"{path.parent} is incomplete: {path.name} is missing; export the model again"
        )
    data = read(Path.read_bytes, path)
    if hashlib.sha256(data).hexdigest() != digests[path.name]:
        raise ValueError(
            f"{path} is damaged: its SHA-256 differs from {MANIFEST}; export the model again"
        )
    return data


def _deserialize(path: Path, data: bytes, donated: int, manifest: dict[str, Any]) -> Any:
    """Return the exported program in `data`, jitted."""
    try:
        exported = jax.export.deserialize(bytearray(data))
    except Exception as error:  # its kind depends on the version of JAX
        raise ValueError(
            f"{path} was made by jax {manifest.get('jax')}, and jax {jax.__version__} cannot read "
            "it; export the model again"
        ) from error
    return jax.jit(exported.call, donate_argnums=donated)
