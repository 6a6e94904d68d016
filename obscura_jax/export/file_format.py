"""The format of an exported model: its files, its manifest, and the arrays of its programs.

The programs are `jax.export` artifacts with a symbolic batch, prompt length and cache size. They
take and return dictionaries and lists of arrays, so that they run without this package:

    prefill(weights, ids, request, state) -> state    ids (b, t), padded on the right
    decode(weights, state, request, until) -> state   until there are `until` tokens, or all ended

`weights` has the course's names. `request` has the fields of `decoding.state.Request`, with those
of its `SamplingArrays` next to the others, and keys as their data, (b, 2) uint32. `state` has the
fields of `decoding.state.State`, two of them under older names, with the cache as two lists of
arrays (b, h, s, k), one per block.

A folder may also have executables: these programs compiled for some sizes, for one kind of
processor or for kinds of GPU. The manifest has an entry "executables" only then; readers may ignore
it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from obscura_jax.config import GENERATOR, GPTConfig
from obscura_jax.decoding.cache import CacheLayout, KVCache
from obscura_jax.decoding.sampling import SamplingArrays
from obscura_jax.decoding.state import Request, State, initial_state
from obscura_jax.interop.locate import FORMATS, MANIFEST
from obscura_jax.interop.tensor_files import read, read_json

FORMAT = f"{FORMATS} 2"
WEIGHTS = "model.safetensors"
PROGRAMS = ("prefill", "decode")
DONATED = {"prefill": 3, "decode": 1}  # the argument of each program whose buffers it reuses

# Key of a state in files -> field of `State`; the cache is under the fields of `KVCache`.
_STATE_FIELDS = {
    "count": "count",
    "tokens": "tokens",
    "logprobs": "logprobs",
    "made": "n_kept",
    "done": "done",
    "broken": "nonfinite",
}


class Sizes(NamedTuple):
    """The sizes that the arguments of a program depend on: integers, or symbols of `jax.export`.

    Attributes:
        rows: number of rows.
        width: number of positions in the padded prompts; 0 for `decode`, which has no prompts.
        slots: number of positions in the cache.
        capacity: number of tokens that the state has room for.
        stop_ids: number of stop ids per row, with padding.
    """

    rows: Any
    width: Any
    slots: Any
    capacity: Any
    stop_ids: Any


def file_name(program: str, platform: str) -> str:
    """Return the name of the file that has a program for a platform."""
    return f"{program}.{platform}.jaxexport"


def program_arguments(
    program: str, weights: Mapping[str, Any], layout: CacheLayout, sizes: Sizes
) -> tuple[Any, ...]:
    """Return the shapes of a program's arguments, as `jax.ShapeDtypeStruct`.

    `weights` has arrays or shapes, and `layout` is that of the cache in the file format.
    """
    shape = jax.ShapeDtypeStruct
    rows, floats, integers = sizes.rows, jnp.float32, jnp.int32
    given = {name: shape(x.shape, x.dtype) for name, x in weights.items()}
    request = {
        "lengths": shape((rows,), integers),
        "temperature": shape((rows,), floats),
        "top_k": shape((rows,), integers),
        "top_p": shape((rows,), floats),
        "min_p": shape((rows,), floats),
        "keys": shape((rows, 2), jnp.uint32),
        "stop_ids": shape((rows, sizes.stop_ids), integers),
    }
    cache = layout.empty(rows, sizes.slots, shape)
    state = plain_state(initial_state(rows, sizes.capacity, cache, shape))
    if program == "prefill":
        return given, shape((rows, sizes.width), integers), request, state
    return given, state, request, shape((), integers)


def read_manifest(folder: str | Path) -> tuple[dict[str, Any], GPTConfig]:
    """Return the manifest of an exported model, and the config in it.

    Raises:
        ValueError: if it is damaged, or of another version.
    """
    path = Path(folder, MANIFEST)
    manifest = read(read_json, path)
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{folder} has format {manifest.get('format')!r}, but this version reads {FORMAT!r}; "
            "export the model again"
        )
    try:
        return manifest, GPTConfig(**manifest["config"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def plain_request(request: Request) -> dict[str, Any]:
    """Return a request as a dictionary of arrays.

    Raises:
        ValueError: if its keys are of another random number generator than the programs use.
    """
    generator = jax.random.key_impl(request.keys)
    if str(generator) != GENERATOR:
        raise ValueError(
            f"an exported model samples with {GENERATOR} keys, but this key is of {generator}; "
            f"pass jax.random.key(seed, impl={GENERATOR!r})"
        )
    return {
        "lengths": request.lengths,
        **request.sampling._asdict(),
        "keys": jax.random.key_data(request.keys),
        "stop_ids": request.stop_ids,
    }


def request_from_plain(plain: dict[str, Any]) -> Request:
    """Return the request that `plain_request` has turned into a dictionary."""
    sampling = SamplingArrays(*(plain[name] for name in SamplingArrays._fields))
    keys = jax.random.wrap_key_data(plain["keys"], impl=GENERATOR)
    return Request(plain["lengths"], sampling, keys, plain["stop_ids"])


def plain_state(state: State) -> dict[str, Any]:
    """Return a state as a dictionary of arrays and lists of arrays."""
    cache = {"keys": list(state.cache.keys), "values": list(state.cache.values)}
    return {key: getattr(state, name) for key, name in _STATE_FIELDS.items()} | cache


def state_from_plain(plain: dict[str, Any]) -> State:
    """Return the state that `plain_state` has turned into a dictionary."""
    cache = KVCache(tuple(plain["keys"]), tuple(plain["values"]))
    return State(**{name: plain[key] for key, name in _STATE_FIELDS.items()}, cache=cache)
