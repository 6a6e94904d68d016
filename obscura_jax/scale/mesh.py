"""Device meshes, and the tables that map parameters and activations to mesh axes.

There are three axes. `data` splits the batch. `fsdp` splits the batch, the parameters and the
optimizer state (Rajbhandari et al. 2020). `model` splits heads, feed-forward width and vocabulary
(Shoeybi et al. 2019). The model code has no sharding; XLA's partitioner inserts the communication.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from obscura_jax.config import GPTConfig
from obscura_jax.nn.intermediates import tapped
from obscura_jax.nn.target import Target, tracing_for

AXES = ("data", "fsdp", "model")
BATCH = ("data", "fsdp")

# Parameter name without its block number -> mesh axis of each dimension. Parameters not listed here
# are replicated: norms, and biases of the residual stream.
PARAMETERS: dict[str, tuple[str | None, ...]] = {
    "tok_emb.weight": ("model", "fsdp"),
    "pos_emb.weight": (None, "fsdp"),
    "att.W_query.weight": ("model", "fsdp"),
    "att.W_query.bias": ("model",),
    "att.W_key.weight": ("model", "fsdp"),
    "att.W_key.bias": ("model",),
    "att.W_value.weight": ("model", "fsdp"),
    "att.W_value.bias": ("model",),
    "att.out_proj.weight": ("fsdp", "model"),
    "ff.layers.0.weight": ("model", "fsdp"),
    "ff.layers.0.bias": ("model",),
    "ff.layers.2.weight": ("fsdp", "model"),
    "out_head.weight": ("model", "fsdp"),
}
# Module whose output is (B, T, ...) -> mesh axis of the last dimension; B is split over BATCH.
ACTIVATIONS: dict[str, str | None] = {
    "tok_emb": None,
    "embeddings": None,
    "att.W_query": "model",
    "att.W_key": "model",
    "att.W_value": "model",
    "att.context": "model",
    "att.out_proj": None,
    "ff.layers.0": "model",
    "ff.layers.2": None,
    "TransformerBlock": None,
    "logits": "model",
}
_VOCABULARY = ("tok_emb.weight", "out_head.weight")


def parse_mesh(text: str) -> dict[str, int]:
    """Parse "data=4,model=2"; ValueError for unknown or repeated axes, or missing sizes."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)=([0-9]{1,6})\s*", part)
        if not match or match[1] not in AXES or match[1] in sizes or not int(match[2]):
            raise ValueError(
                f"invalid mesh {text!r}; give sizes of {', '.join(AXES)} as in data=4,model=2"
            )
        sizes[match[1]] = int(match[2])
    return sizes


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh over `devices`, by default all; an axis without a size has size 1.

    Raises:
        ValueError: if the product of the sizes is not the number of devices.
    """
    found = jax.devices() if devices is None else devices
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    if math.prod(shape) != len(found):
        raise ValueError(
            f"mesh {format_mesh(sizes)} needs {math.prod(shape)} devices, but there are "
            f"{len(found)} ({found[0].device_kind}); choose sizes whose product is {len(found)}"
        )
    return Mesh(np.asarray(found).reshape(shape), AXES)


def format_mesh(sizes: Mapping[str, int]) -> str:
    """Format sizes as `parse_mesh` accepts them, without axes of size 1 unless all are 1."""
    return ",".join(f"{axis}={n}" for axis, n in sizes.items() if n > 1) or "data=1"


def check_model(cfg: GPTConfig, mesh: Mesh) -> None:
    """Raise ValueError if an axis does not divide the dimension it splits, and list valid sizes."""
    for axis, name, size in (
        ("model", "n_heads", cfg.n_heads),
        ("model", "emb_dim", cfg.emb_dim),
        ("fsdp", "emb_dim", cfg.emb_dim),
    ):
        if size % mesh.shape[axis]:
            valid = [n for n in range(1, min(size, mesh.size) + 1) if size % n == 0]
            raise ValueError(
                f"{axis}={mesh.shape[axis]} does not divide {name}={size}; "
                f"choose from {', '.join(map(str, valid))}"
            )


def check_batch(rows: int, mesh: Mesh, what: str = "a batch") -> None:
    """Raise ValueError unless `data` times `fsdp` divides the number of rows."""
    ways = batch_shards(mesh.shape)
    if rows % ways:
        raise ValueError(
            f"data={mesh.shape['data']} times fsdp={mesh.shape['fsdp']} does not divide {what} of "
            f"{rows}; use a multiple of {ways}"
        )


def largest_divisible_batch(rows: int, mesh: Mesh, what: str) -> int:
    """Return the most rows out of `rows` that `check_batch` accepts; ValueError if none."""
    ways = batch_shards(mesh.shape)
    if rows < ways:
        raise ValueError(f"{what} has {rows} rows, but the mesh needs at least {ways}")
    return rows - rows % ways


def batch_shards(sizes: Mapping[str, int]) -> int:
    """Return the number of parts that rows are split into."""
    return math.prod(sizes.get(axis, 1) for axis in BATCH)


def shardings(mesh: Mesh, tree: Any) -> Any:
    """Return the sharding of each array: parameters, stacked or not, and trees of their shape."""

    def of(path: tuple[Any, ...], _: Any) -> NamedSharding:
        axes = [axis if axis and mesh.shape[axis] > 1 else None for axis in _axes(path)]
        while axes and axes[-1] is None:  # as JAX normalizes the specs of program outputs
            axes.pop()
        return NamedSharding(mesh, P(*axes))

    return jax.tree_util.tree_map_with_path(of, tree)


def place(mesh: Mesh, tree: Any) -> Any:
    """Shard a tree of full arrays over the mesh, with the vocabulary padded with zeros.

    Each process stores only the shards of its own devices.
    """

    def shard(array: Any, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    tree = pad_vocab(mesh, jax.device_get(tree))
    return jax.tree.map(shard, tree, shardings(mesh, tree))


def pad_vocab(mesh: Mesh, tree: Any) -> Any:
    """Pad the vocabulary of arrays or shapes to a multiple of `model`: 50257 is 29 * 1733."""

    def pad(path: tuple[Any, ...], leaf: Any) -> Any:
        if _name(path) not in _VOCABULARY:
            return leaf
        rows = -leaf.shape[0] % mesh.shape["model"]
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct((leaf.shape[0] + rows, *leaf.shape[1:]), leaf.dtype)
        return np.pad(leaf, ((0, rows), (0, 0)))

    return jax.tree_util.tree_map_with_path(pad, tree)


def abstract_params(mesh: Mesh, tree: Any, dtype: Any = None) -> Any:
    """Return the shapes and shardings of `place` for a tree of shapes, in `dtype` if given."""
    tree = pad_vocab(mesh, tree)

    def of(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=sharding)

    return jax.tree.map(of, tree, shardings(mesh, tree))


def unpad_vocab(cfg: GPTConfig, tree: Any) -> Any:
    """Remove the padding that `pad_vocab` adds."""

    def trim(path: tuple[Any, ...], leaf: Any) -> Any:
        return leaf[: cfg.vocab_size] if _name(path) in _VOCABULARY else leaf

    return jax.tree_util.tree_map_with_path(trim, tree)


def unpad_and_gather_tables(mesh: Mesh, cfg: GPTConfig, params: Any) -> Any:
    """Unpad placed parameters inside a program, and gather their embedding tables over `fsdp`."""

    def gather(path: tuple[Any, ...], leaf: Any) -> Any:
        if _name(path) not in (*_VOCABULARY, "pos_emb.weight"):
            return leaf
        axes = [axis if axis == "model" else None for axis in PARAMETERS[_name(path)]]
        return lax.with_sharding_constraint(leaf, NamedSharding(mesh, P(*axes)))

    return jax.tree_util.tree_map_with_path(gather, unpad_vocab(cfg, params))


@contextmanager
def sharding_context(mesh: Mesh) -> Iterator[None]:
    """Context manager: trace programs with activations sharded as in `ACTIVATIONS`."""

    def constrain(name: str, value: Any) -> Any:
        name = re.sub(r"^trf_blocks\.\d+$", "TransformerBlock", name)
        name = re.sub(r"^trf_blocks\.\d+\.", "", name)
        if name not in ACTIVATIONS:
            return value
        spec = P(BATCH, *[None] * (value.ndim - 2), ACTIVATIONS[name])
        return lax.with_sharding_constraint(value, NamedSharding(mesh, spec))

    with tracing_for(target_of(mesh)), tapped(constrain):
        yield


def target_of(mesh: Mesh) -> Target:
    """Return the target for programs over a mesh."""
    platform = mesh.devices.flat[0].platform
    return Target(platform, multi_device=True, allow_layouts=mesh.shape["model"] == 1)


def _name(path: tuple[Any, ...]) -> str:
    """Return a parameter's name without its block number."""
    keys = [part.key for part in path if isinstance(part, jax.tree_util.DictKey)]
    return ".".join(keys[_block_keys(keys) :])


def _axes(path: tuple[Any, ...]) -> tuple[str | None, ...]:
    keys = [part.key for part in path if isinstance(part, jax.tree_util.DictKey)]
    axes = PARAMETERS.get(_name(path), ())
    return (None, *axes) if axes and _block_keys(keys) == 1 else axes


def _block_keys(keys: Sequence[str]) -> int:
    """Return the number of path keys that name the block: 2 in the course's tree, 1 if stacked."""
    if keys[:1] != ["trf_blocks"]:
        return 0
    return 2 if keys[1].isdecimal() else 1
