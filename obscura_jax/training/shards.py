"""The shards of a training state under the course's names, whatever its layout on the devices.

Devices may hold blocks stacked (`nn.scan`) and vocabularies padded (`scale.mesh`). Here a state is
a set of named arrays in the course's layout, each made of parts: a part has a start index in every
dimension, and several processes together hold all parts.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from obscura_jax.nn.parameters import named_leaves

Arrays = Mapping[str, NDArray[Any]]
Shapes = Mapping[str, jax.ShapeDtypeStruct]
_BLOCKS = "trf_blocks."


def local_parts(state: Any, shapes: Shapes) -> dict[str, NDArray[Any]]:
    """Return the parts that this process has to store: one copy of every shard on its devices.

    Args:
        state: a placed state.
        shapes: the state's arrays in the course's layout, by name.

    Returns:
        The parts by name. A part that is not a complete array has its start appended to its name,
        as in params.tok_emb.weight@128,0.
    """
    parts = {}
    for name, array in named_leaves(state).items():
        for shard in array.addressable_shards:
            if shard.replica_id:
                continue
            start = [part.start or 0 for part in shard.index]
            data = np.asarray(shard.data)
            if name in shapes:
                found = [(name, start, data)]
            else:
                numbered = enumerate(data, start[0])
                found = [(_block_name(name, n), start[1:], block) for n, block in numbered]
            for part_name, at, block in found:
                shape = shapes[part_name].shape
                kept = block[tuple(slice(max(0, n - i)) for n, i in zip(shape, at, strict=True))]
                if kept.shape == shape:
                    parts[part_name] = kept
                elif kept.size:
                    parts[f"{part_name}@{','.join(map(str, at))}"] = kept
    return parts


class StoredArrays:
    """Arrays in the course's layout, stored in parts."""

    def __init__(self, files: Iterable[Arrays], shapes: Shapes) -> None:
        """Collect the parts of `files`; ValueError if they are not exactly the arrays `shapes`."""
        self._shapes = shapes
        self._parts: dict[str, list[tuple[list[int], NDArray[Any]]]] = {n: [] for n in shapes}
        for parts in files:
            for key, data in parts.items():
                name, _, at = key.partition("@")
                start = [int(i) for i in at.split(",")] if at else [0] * data.ndim
                if name not in shapes or data.dtype != shapes[name].dtype:
                    raise ValueError(f"{key} is not one of its arrays")
                self._parts[name].append((start, data))
        for name, found in self._parts.items():
            if sum(data.size for _, data in found) != math.prod(shapes[name].shape):
                raise ValueError(f"parts of {name} are missing")

    def as_state(self, abstract: Any) -> Any:
        """Return the arrays as a tree with the shapes and shardings of `abstract`.

        Only the parts that this process's devices need are read.
        """

        def array(name: str, leaf: Any) -> jax.Array:
            def shard(index: Any) -> NDArray[Any]:
                bounds = [part.indices(n)[:2] for part, n in zip(index, leaf.shape, strict=True)]
                if name in self._shapes:
                    return self._read(name, bounds)
                blocks = range(*bounds[0])
                return np.stack([self._read(_block_name(name, n), bounds[1:]) for n in blocks])

            return jax.make_array_from_callback(leaf.shape, leaf.sharding, shard)

        arrays = [array(name, leaf) for name, leaf in named_leaves(abstract).items()]
        return jax.tree.unflatten(jax.tree.structure(abstract), arrays)

    def _read(self, name: str, bounds: Sequence[tuple[int, int]]) -> NDArray[Any]:
        """Return the elements within `bounds`, and zeros outside the array."""
        out = np.zeros([end - begin for begin, end in bounds], self._shapes[name].dtype)
        for start, data in self._parts[name]:
            to, of = [], []
            for (begin, end), at, size in zip(bounds, start, data.shape, strict=True):
                low, high = max(begin, at), max(begin, at, min(end, at + size))
                to.append(slice(low - begin, high - begin))
                of.append(slice(low - at, high - at))
            out[tuple(to)] = data[tuple(of)]
        return out


def _block_name(name: str, number: int) -> str:
    """Return the name in block `number` of an array whose blocks are stacked."""
    return name.replace(_BLOCKS, f"{_BLOCKS}{number}.", 1)
