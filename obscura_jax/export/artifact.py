"""A model as a folder of compiled-for-anywhere programs: what is in it, and how it is run.

The programs are `jax.export` artifacts with a symbolic batch, prompt length and cache size. They
take and give dictionaries and lists of arrays, so that they run without this package:

    prefill(weights, ids, request, state) -> state    ids (b, t), padded on the right
    decode(weights, state, request, until) -> state   until there are `until` tokens, or all ended

`weights` has the course's names, `request` and `state` the fields of `engine.Request` and
`engine.State`: keys as their data, (b, 2) uint32, caches as two lists of (b, h, s, k), one a block.
"""

import hashlib
import importlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from obscura_jax.config import GENERATOR, GPTConfig
from obscura_jax.decoding.cache import KVCache
from obscura_jax.decoding.programs import GenerationPrograms, Request, State
from obscura_jax.decoding.sampling import Settings
from obscura_jax.interop.locate import FORMATS, MANIFEST
from obscura_jax.interop.tensor_files import read, read_json
from obscura_jax.interop.tokens import CARRIED
from obscura_jax.nn.model import GPTModel
from obscura_jax.safetensors_files import header_digest, read_safetensors

FORMAT = f"{FORMATS} 2"
WEIGHTS, NAMES = "model.safetensors", ("prefill", "decode")
_BACKENDS = {"gpu": "cuda"}  # as jax.default_backend and jax.export have it


def file_name(program: str, platform: str) -> str:
    """Where the program for a platform lies."""
    return f"{program}.{platform}.jaxexport"


def read_manifest(folder: str | Path) -> tuple[dict[str, Any], GPTConfig]:
    """Return the manifest of an artifact, and the config in it.

    Raises:
        ValueError: when another version made it, or it is damaged.
    """
    path = Path(folder, MANIFEST)
    manifest = read(read_json, path)
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{folder} is a {manifest.get('format')!r}, this version reads {FORMAT!r}: "
            "export the model again"
        )
    try:
        return manifest, GPTConfig(**manifest["config"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def load_artifact(folder: str | Path) -> tuple[GPTModel, Any, GenerationPrograms]:
    """The model, the weights and the programs, for `generate(..., programs=programs)`.

    Raises:
        ValueError: for a folder that another version has made, that is not for this platform, or
            that is damaged.
    """
    folder = Path(folder)
    # JAX imports it, for nothing here, when it runs the first exported program: 0.13 s.
    threading.Thread(target=importlib.import_module, args=["scipy.linalg"], daemon=True).start()
    manifest, cfg = read_manifest(folder)
    backend = jax.default_backend()
    platform = _BACKENDS.get(backend, backend)
    try:
        cache_dtypes = {name: jnp.dtype(x) for name, x in manifest["cache_dtypes"].items()}
        sums = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        of_weights = manifest["files"].get(WEIGHTS, {}).get("header_sha256")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged: {error}") from error
    if platform not in cache_dtypes:
        raise ValueError(
            f"{folder} is for {', '.join(cache_dtypes)}, and this is {platform}: "
            f"obscura export ... --platforms {platform}"
        )
    prefill, decode = (
        _program(folder / file_name(name, platform), sums, manifest) for name in NAMES
    )
    for name in CARRIED:
        if name in sums:
            _checked(folder / name, sums)
    weights = read(read_safetensors, folder / WEIGHTS)
    if header_digest(folder / WEIGHTS) != of_weights:
        raise ValueError(f"{folder / WEIGHTS} is not the file that {MANIFEST} tells of")
    params = {name: jax.device_put(x, may_alias=True) for name, x in weights.items()}
    prefills = _Prefill(prefill, cfg, cache_dtypes[platform])
    return GPTModel(cfg), params, GenerationPrograms(prefills, _Decode(decode), _Slide())


def plain_request(request: Request) -> dict[str, Any]:
    """A request as a dictionary."""
    settings = request.settings._asdict()
    generator = jax.random.key_impl(request.keys)
    if str(generator) != GENERATOR:
        raise ValueError(
            f"an exported model draws with {GENERATOR}, and the key is for {generator}: make it "
            f"with jax.random.key(seed, impl={GENERATOR!r})"
        )
    keys = jax.random.key_data(request.keys)
    return {"lengths": request.lengths, **settings, "keys": keys, "stop_ids": request.stop_ids}


def request_of(plain: dict[str, Any]) -> Request:
    """The inverse of `plain_request`."""
    settings = Settings(*(plain[name] for name in Settings._fields))
    keys = jax.random.wrap_key_data(plain["keys"], impl=GENERATOR)
    return Request(plain["lengths"], settings, keys, plain["stop_ids"])


def plain_state(state: State) -> dict[str, Any]:
    """A state as a dictionary."""
    cache = {"keys": list(state.cache.keys), "values": list(state.cache.values)}
    return {**{n: x for n, x in vars(state).items() if n != "cache"}, **cache}


def state_of(plain: dict[str, Any]) -> State:
    """The inverse of `plain_state`."""
    cache = KVCache(tuple(plain["keys"]), tuple(plain["values"]))
    return State(**{n: x for n, x in plain.items() if n not in KVCache._fields}, cache=cache)


def blank_state(cfg: GPTConfig, rows: int, slots: int, room: int, dtype: Any) -> dict[str, Any]:
    """The state that `prefill` begins with."""
    shape = (rows, cfg.n_heads, slots, cfg.emb_dim // cfg.n_heads)
    caches = [[np.zeros(shape, dtype) for _ in range(cfg.n_layers)] for _ in range(2)]
    return {
        "count": np.int32(0),
        "tokens": np.zeros((rows, room), np.int32),
        "logprobs": np.zeros((rows, room), np.float32),
        "made": np.zeros(rows, np.int32),
        "done": np.zeros(rows, bool),
        "broken": np.bool_(False),
        "keys": caches[0],
        "values": caches[1],
    }


class _Program:
    """An exported program, compiled for the sizes that it is called with."""

    def __init__(self, call: Callable[..., Any], *about: Any) -> None:
        self._call, self._about = call, about

    def _cache_size(self) -> int:
        size: int = self._call._cache_size()  # type: ignore[attr-defined]
        return size


class _Prefill(_Program):
    def __call__(
        self, model: Any, params: Any, ids: Any, request: Request, slots: int, room: int
    ) -> State:
        cfg, dtype = self._about
        blank = blank_state(cfg, ids.shape[0], slots, room, dtype)
        return state_of(self._call(params, ids, plain_request(request), blank))


class _Decode(_Program):
    def __call__(
        self, model: Any, params: Any, state: State, request: Request, until: Any
    ) -> State:
        return state_of(self._call(params, plain_state(state), plain_request(request), until))


class _Slide:
    def __call__(self, *_: Any) -> State:
        raise ValueError("an artifact cannot slide past the context: use the model's folder")

    def _cache_size(self) -> int:
        return 0


def _checked(path: Path, sums: dict[str, str]) -> bytes:
    """Return the bytes of a file; ValueError unless the manifest has their sum."""
    if not path.is_file() or path.name not in sums:
        raise ValueError(f"{path.parent} is not whole: {path.name} is missing")
    data = read(Path.read_bytes, path)
    if hashlib.sha256(data).hexdigest() != sums[path.name]:
        raise ValueError(f"{path} is damaged: its SHA-256 is not that of {MANIFEST}")
    return data


def _program(path: Path, sums: dict[str, str], manifest: dict[str, Any]) -> Callable[..., Any]:
    data = bytearray(_checked(path, sums))
    try:
        exported = jax.export.deserialize(data)
    except Exception as error:  # of a format that changes with JAX
        raise ValueError(
            f"{path} was made by jax {manifest.get('jax')}, and jax {jax.__version__} cannot read "
            "it: export the model again"
        ) from error
    given_up = 3 if path.name.startswith("prefill") else 1  # the state
    return jax.jit(exported.call, donate_argnums=given_up)
