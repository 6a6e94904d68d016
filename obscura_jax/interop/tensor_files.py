"""Named tensors in shards and in Flax's msgpack, and JSON files with clear errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict

from obscura_jax.safetensors_files import RepeatedKeyError, Tensors, reject_duplicate_keys

_T = TypeVar("_T")


def read(reader: Callable[[Path], _T], path: Path) -> _T:
    """`reader(path)`, with errors of the system as ValueError that names the file."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        path.open("rb").close()  # for the system's own reason, where it lets nobody in
        return reader(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError when it is none."""
    try:
        content = json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=reject_duplicate_keys
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text, as JSON is: save it as UTF-8") from error
    except RepeatedKeyError as error:
        raise ValueError(f"{path} has {error}: remove one") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        kind = {list: "a list", str: "a string", type(None): "null"}.get(type(content), "a value")
        raise ValueError(f"{path} is not a JSON object, with names and values, but {kind}")
    return content


def read_shards(index: Path, reader: Callable[[Path], Tensors]) -> Tensors:
    """The tensors of all files that an index names, each tensor from the file it is said to be in.

    Raises:
        ValueError: when a shard is missing, or holds other tensors than the index says.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(x, str) and Path(x).name for x in places.values()
    ):
        raise ValueError(f"{index} has no weight_map from tensors to files")
    tensors: Tensors = {}
    for shard in sorted(set(places.values())):
        path = index.with_name(Path(shard).name)  # nothing outside the folder
        if not path.is_file():
            raise ValueError(f"{index.parent} is not whole: the shard {path.name} is missing")
        found = read(reader, path)
        said = {name for name, place in places.items() if place == shard}
        kept = {id(found[name]) for name in said & found.keys()}  # others are aliases of these
        more = {name for name in found.keys() - said if id(found[name]) not in kept}
        if wrong := (said - found.keys()) | more:
            raise ValueError(f"{path} and {index.name} do not agree about {min(wrong)}")
        tensors |= found
    return tensors


def read_msgpack(path: Path) -> Tensors:
    """The leaves of a Flax parameter file, or of the parameters in one of a training state."""
    try:
        tree = msgpack_restore(path.read_bytes())
        while isinstance(tree, dict) and isinstance(tree.get("params"), dict):
            tree = tree["params"]
        leaves = flatten_dict(tree) if isinstance(tree, dict) else {(): tree}
        tree_of_arrays = all(isinstance(leaf, np.ndarray) for leaf in leaves.values())
        flat = {".".join(path): leaf for path, leaf in leaves.items()}
    except Exception as error:  # msgpack and flax meet damage with errors of any type
        raise ValueError(
            f"{path} is damaged, cut short or not a Flax file ({type(error).__name__})"
        ) from error
    if not isinstance(tree, dict) or not tree_of_arrays:
        raise ValueError(f"{path} holds something else than a tree of arrays")
    if len(flat) < len(leaves):
        raise ValueError(f"{path} holds two tensors for one place: names with dots, and a tree")
    return flat
