"""Named tensors in files: safetensors, whole or in shards, Flax's msgpack; and how files are put.

What this package writes as safetensors carries the sum of its bytes as 64-bit words, so that a bit
that turned over on the way is noticed: 0.05 s for the 124M model.
"""

import hashlib
import json
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

Tensors = dict[str, NDArray[Any]]
_TYPE_CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_SUM = "sum64"
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
            path.read_text(encoding="utf-8"), object_pairs_hook=_reject_duplicate_keys
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text, as JSON is: save it as UTF-8") from error
    except _RepeatedKeyError as error:
        raise ValueError(f"{path} has {error}: remove one") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        kind = {list: "a list", str: "a string", type(None): "null"}.get(type(content), "a value")
        raise ValueError(f"{path} is not a JSON object, with names and values, but {kind}")
    return content


def read_safetensors(path: Path) -> Tensors:
    """The tensors of a file; those of float32 are mapped, not read: they lie in the file's pages.

    The mapping is private, so that JAX may write where it is given the memory; the file stays.

    Of tensors that are one, safetensors' `save_model` keeps one, and writes for each of the others
    in the metadata which it is: those are read as the same array.
    """
    try:
        with safe_open(path, framework="numpy") as file:  # which checks the header
            mapped = _map(path)
            start = 8 + int.from_bytes(mapped[:8], "little")
            header = json.loads(mapped[8:start], object_pairs_hook=_reject_duplicate_keys)
            metadata = header.pop("__metadata__", None) or {}
            _check_sum(mapped, start, metadata)
            tensors = {}
            for name, entry in header.items():
                if entry["dtype"] == "F32":
                    shape, (begin, end) = entry["shape"], entry["data_offsets"]
                    flat = np.frombuffer(mapped, "<f4", (end - begin) // 4, start + begin)
                    tensors[name] = flat.reshape(shape)
                else:
                    tensors[name] = file.get_tensor(name)
            aliases = {name: kept for name, kept in metadata.items() if kept in header}
            return {name: tensors[kept] for name, kept in aliases.items()} | tensors
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged, cut short or not a safetensors file ({error}): "
            "fetch it again, or save the model again"
        ) from error
    except (AttributeError, TypeError) as error:  # how safetensors meets a type unknown to NumPy
        raise ValueError(f"{path} has tensors of a type that NumPy lacks: {error}") from error


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


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write tensors so that the data begin on a multiple of 64 bytes, where JAX can use them.

    safetensors' own writer keeps to a multiple of 8.
    """
    blank = "0" * 16
    header: dict[str, Any] = {"__metadata__": {"format": "pt", _SUM: blank}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        code = _TYPE_CODES[str(tensor.dtype)]
        header[name] = {"dtype": code, "shape": tensor.shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with path.open("w+b") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).view(np.uint8).data)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            total = _sum_of(mapped, 8 + len(text))
        file.seek(8 + text.index(blank.encode()))
        file.write(total.encode())


def header_digest(path: Path) -> str:
    """The SHA-256 of a safetensors file's header: of every name, shape and type, and of the sum."""
    with path.open("rb") as file:
        length = file.read(8)
        return hashlib.sha256(length + file.read(int.from_bytes(length, "little"))).hexdigest()


class _RepeatedKeyError(ValueError):
    """An object in JSON has a key twice."""


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _RepeatedKeyError(f"the key {twice!r} twice")
    return found


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if hasattr(mapped, "madvise"):  # 0.02 against 0.9 s for a first look at the 124M model
        mapped.madvise(mmap.MADV_WILLNEED)
    return mapped


def _check_sum(mapped: mmap.mmap, start: int, metadata: Mapping[str, str]) -> None:
    if _SUM in metadata and _sum_of(mapped, start) != metadata[_SUM]:
        raise ValueError("its bytes do not have the sum that they were written with")


def _sum_of(mapped: mmap.mmap, start: int) -> str:
    """The sum of the bytes from `start` on as whole numbers of 64 bits, in hexadecimal."""
    count, rest = divmod(len(mapped) - start, 8)
    words = np.frombuffer(mapped, "<u8", count, start)
    last = int.from_bytes(mapped[len(mapped) - rest :], "little")
    total = (int(words.sum(dtype=np.uint64)) + last) % 2**64
    del words  # a mapping in use cannot be closed
    return f"{total:016x}"
