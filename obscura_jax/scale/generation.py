"""Generation over a mesh: the programs of `generate`, with rows, heads and cache sharded."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from obscura_jax.decoding.cache import KVCache
from obscura_jax.decoding.programs import GenerationPrograms, jit_programs
from obscura_jax.decoding.state import Request, State
from obscura_jax.scale.mesh import (
    BATCH,
    check_batch,
    check_model,
    sharding_context,
    unpad_and_gather_tables,
)


def mesh_programs(mesh: Mesh) -> GenerationPrograms:
    """Return the generation programs over a mesh.

    Use them as `generate(model, place(mesh, params), prompts, programs=mesh_programs(mesh))`.

    Raises:
        ValueError: in `generate`, if a mesh axis does not divide the dimension it splits.
    """

    def over_mesh(program: Callable[..., State]) -> Callable[..., State]:
        @wraps(program)  # jit needs the argument names
        def run(model: Any, params: Any, request: Request, *args: Any) -> State:
            check_model(model.cfg, mesh)
            check_batch(request.lengths.shape[0], mesh)
            with sharding_context(mesh):
                params = unpad_and_gather_tables(mesh, model.cfg, params)
                request, args = _constrain(mesh, (request, args))
                return _constrain(mesh, program(model, params, request, *args))

        return run

    return jit_programs(over_mesh)


def row_specs(tree: Any) -> Any:
    """Return the partition spec of each array in a tree of requests and states.

    Rows are split over the batch axes, and the heads of the cache over `model`. Everything else is
    replicated: scalars, and Python numbers.
    """

    def specs(part: Any) -> Any:
        if isinstance(part, KVCache):  # each array is (B, H, T, K): see `CacheLayout`
            return jax.tree.map(lambda _: P(BATCH, "model"), part)
        return P(BATCH) if getattr(part, "ndim", 0) else P()

    return jax.tree.map(specs, tree, is_leaf=lambda part: isinstance(part, KVCache))


def _constrain(mesh: Mesh, tree: Any) -> Any:
    """Shard the arrays of a traced tree as `row_specs` says."""

    def constrain(leaf: Any, spec: P) -> Any:
        if not getattr(leaf, "ndim", 0):
            return leaf
        return lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(constrain, tree, row_specs(tree))
