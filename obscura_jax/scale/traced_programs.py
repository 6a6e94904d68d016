"""Training and generation traced over a mesh of any devices, with shapes in place of arrays."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from obscura_jax.config import GPTConfig
from obscura_jax.decoding.cache import target_layout
from obscura_jax.decoding.controls import ControlArrays
from obscura_jax.decoding.programs import DEFAULT_PROGRAMS
from obscura_jax.decoding.sampling import SamplingArrays
from obscura_jax.decoding.state import Request, initial_state
from obscura_jax.nn.model import GPTModel
from obscura_jax.nn.parameters import init_shapes
from obscura_jax.nn.target import tracing_for
from obscura_jax.scale.generation import mesh_programs, row_specs
from obscura_jax.scale.mesh import abstract_params, target_of
from obscura_jax.scale.placement import MeshPlacement
from obscura_jax.training.optimizer import OptimizerConfig
from obscura_jax.training.options import StepOptions
from obscura_jax.training.step import init_train_state

Program = Literal["train", "prefill", "decode"]


def trace_program(program: Program, mesh: Mesh, cfg: GPTConfig, batch: int) -> Any:
    """Return the `jax.stages.Traced` of a program.

    Args:
        program: "train" is one step of AdamW with float32 weights and bfloat16 products, the
            blocks in a loop and recomputed; "prefill" reads prompts as long as the context;
            "decode" generates one token per row. The last two use bfloat16 weights.
        mesh: the mesh.
        cfg: the model's config.
        batch: number of rows, over all devices.
    """
    return _TRACE[program](mesh, cfg, batch)


def _shard(mesh: Mesh, tree: Any) -> Any:
    """Return a tree of shapes, sharded as the programs of generation shard them."""

    def shard(leaf: Any, spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(shard, tree, row_specs(tree))


def _params(mesh: Mesh, cfg: GPTConfig, dtype: Any) -> Any:
    """Return the shapes of the parameters over the mesh."""
    return abstract_params(mesh, init_shapes(cfg), dtype)


def _train(mesh: Mesh, cfg: GPTConfig, batch: int) -> Any:
    placement = MeshPlacement(mesh, cfg, scan=True)
    config = OptimizerConfig(clip_norm=1.0, decay_1d_params=False)
    model = GPTModel(cfg)
    init = partial(init_train_state, config)
    state = placement.abstract(jax.eval_shape(init, init_shapes(cfg)))
    shape = (1, batch, cfg.context_length)
    ids = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=placement.batch_sharding)
    options = StepOptions(compute_dtype="bfloat16", remat="blocks", logits_chunk=128)
    return placement.train_step_jit.trace(model, config, state, ids, ids, options=options)


def _request(mesh: Mesh, rows: int) -> Request:
    shape: Any = jax.ShapeDtypeStruct
    floats, integers = shape((rows,), jnp.float32), shape((rows,), jnp.int32)
    keys, stop_ids = shape((rows,), jax.random.key(0).dtype), shape((rows, 16), jnp.int32)
    sampling = SamplingArrays(temperature=floats, top_k=integers, top_p=floats, min_p=floats)
    bias_ids, bias = shape((rows, 16), jnp.int32), shape((rows, 16), jnp.float32)
    controls = ControlArrays(integers, bias_ids, bias, floats, floats, floats, integers)
    request: Request = _shard(mesh, Request(integers, sampling, keys, stop_ids, controls))
    return request


def _prefill(mesh: Mesh, cfg: GPTConfig, batch: int) -> Any:
    params, request = _params(mesh, cfg, jnp.bfloat16), _request(mesh, batch)
    slots = cfg.context_length
    ids = _shard(mesh, jax.ShapeDtypeStruct((batch, slots), jnp.int32))
    prefill: Any = mesh_programs(mesh).prefill
    return prefill.trace(GPTModel(cfg), params, request, ids, slots, slots)


def _decode(mesh: Mesh, cfg: GPTConfig, batch: int) -> Any:
    params, request = _params(mesh, cfg, jnp.bfloat16), _request(mesh, batch)
    slots = cfg.context_length
    programs, target = mesh_programs(mesh), target_of(mesh)
    if mesh.size == 1 and target.platform == "cuda":  # `generate` uses no mesh for one GPU
        programs, target = DEFAULT_PROGRAMS, replace(target, multi_device=False)
    with tracing_for(target):
        cache = target_layout(cfg, jnp.bfloat16).empty(batch, slots, jax.ShapeDtypeStruct)
        state = initial_state(batch, slots, cache, jax.ShapeDtypeStruct)
        prompts: Any = jax.ShapeDtypeStruct((batch, slots), jnp.int32)
        state = _shard(mesh, replace(state, prompts=prompts))
        target_count = jax.ShapeDtypeStruct((), jnp.int32)
        decode: Any = programs.decode
        return decode.trace(GPTModel(cfg), params, request, state, target_count)


_TRACE: dict[str, Callable[[Mesh, GPTConfig, int], Any]] = {
    "train": _train,
    "prefill": _prefill,
    "decode": _decode,
}
