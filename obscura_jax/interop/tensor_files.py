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
    """Return `reader(path)`; turn an error of the system into a ValueError that names the file."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file; name a file")
    try:
        path.open("rb").close()  # raises the system's own reason
        return reader(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; ValueError if it holds anything else."""
    try:
        content = json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=reject_duplicate_keys
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8, as JSON is") from error
    except RepeatedKeyError as error:
        raise ValueError(f"{path} has a {error}; remove one") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch or write it again") from error
    if not isinstance(content, dict):
        kind = {list: "a list", str: "a string", type(None): "null"}.get(type(content), "a value")
        raise ValueError(f"{path} holds {kind}; it must be a JSON object, with names and values")
    return content


def read_shards(index: Path, reader: Callable[[Path], Tensors]) -> Tensors:
    """Return the tensors of all files that an index names.

    Args:
        index: a `.index.json` file, which maps the name of each tensor to a file next to it.
        reader: reads one of those files.

    Raises:
        ValueError: if a file is missing, or holds other tensors than the index lists.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(x, str) and Path(x).name for x in places.values()
    ):
        raise ValueError(f"{index} has no weight_map from tensors to files; fetch it again")
    tensors: Tensors = {}
    for shard in sorted(set(places.values())):
        path = index.with_name(Path(shard).name)  # nothing outside the folder
        if not path.is_file():
            raise ValueError(
                f"{index.parent} is incomplete: the shard {path.name} is missing; fetch it"
            )
        found = read(reader, path)
        listed = {name for name, place in places.items() if place == shard}
        kept = {id(found[name]) for name in listed & found.keys()}  # others are aliases of these
        extra = {name for name in found.keys() - listed if id(found[name]) not in kept}
        if wrong := (listed - found.keys()) | extra:
            raise ValueError(
                f"{path} and {index.name} do not agree about {min(wrong)}; fetch both again"
            )
        tensors |= found
    return tensors


def read_msgpack(path: Path) -> Tensors:
    """Return the leaves of a Flax parameter file, or of the parameters in a training state."""
    try:
        tree = msgpack_restore(path.read_bytes())
        while isinstance(tree, dict) and isinstance(tree.get("params"), dict):
            tree = tree["params"]
        leaves = flatten_dict(tree) if isinstance(tree, dict) else {(): tree}
        tree_of_arrays = all(isinstance(leaf, np.ndarray) for leaf in leaves.values())
        flat = {".".join(path): leaf for path, leaf in leaves.items()}
    except Exception as error:  # damage makes msgpack and flax raise errors of any type
        raise ValueError(
            f"{path} is damaged, cut short or not a Flax file ({type(error).__name__}); fetch it "
            "again, or save the model again"
        ) from error
    if not isinstance(tree, dict) or not tree_of_arrays:
        raise ValueError(f"{path} does not hold a tree of arrays; save the parameters only")
    if len(flat) < len(leaves):
        raise ValueError(
            f"{path} holds two tensors of one name, once with dots and once as a tree; remove one"
        )
    return flat
