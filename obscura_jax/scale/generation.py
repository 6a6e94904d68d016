"""Generation over a mesh: the programs of `generate`, with rows, heads and cache sharded."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from obscura_jax.decoding import programs
from obscura_jax.decoding.programs import STATIC, GenerationPrograms, Request, State
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
        def run(model: Any, params: Any, *args: Any) -> State:
            (request,) = (part for part in args if isinstance(part, Request))
            check_model(model.cfg, mesh)
            check_batch(request.lengths.shape[0], mesh)
            with sharding_context(mesh):
                params = unpad_and_gather_tables(mesh, model.cfg, params)
                return split(mesh, program(model, params, *split(mesh, args)))

        return run

    given_up: Any = {"donate_argnames": ("state",)}
    return GenerationPrograms(
        jax.jit(over_mesh(programs.prefill), static_argnames=STATIC["prefill"]),
        jax.jit(over_mesh(programs.decode), static_argnames=STATIC["decode"], **given_up),
        jax.jit(over_mesh(programs.slide), static_argnames=STATIC["slide"], **given_up),
    )


def split(mesh: Mesh, tree: Any) -> Any:
    """Shard rows over the batch axes, and heads of (B, H, T, K) caches over `model`."""

    def constrain(leaf: Any) -> Any:
        if not getattr(leaf, "ndim", 0):
            return leaf
        axes = (BATCH, "model") if leaf.ndim == 4 else (BATCH,)
        return lax.with_sharding_constraint(leaf, NamedSharding(mesh, P(*axes)))

    return jax.tree.map(constrain, tree)
