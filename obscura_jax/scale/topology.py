"""Compilation for chips that are not present: memory, communication and best possible time."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from obscura_jax.config import GPTConfig
from obscura_jax.scale.collectives import collectives
from obscura_jax.scale.cuda_commands import compile_with_plan, launch_report
from obscura_jax.scale.libtpu import tpu_devices
from obscura_jax.scale.mesh import batch_shards, check_batch, check_model, make_mesh
from obscura_jax.scale.nvidia import GPUS, gpu_devices
from obscura_jax.scale.roofline import (
    CHIPS,
    Chip,
    communication_seconds,
    matrix_flops,
    roofline,
)
from obscura_jax.scale.traced_programs import Program, trace_program


class DoesNotFitError(ValueError):
    """The program needs more memory than a chip has."""


@dataclass(frozen=True)
class Topology:
    """Chips that need not be present: their kind, and the JAX devices that describe them."""

    name: str
    chip: Chip
    devices: tuple[Any, ...]


def get_topology(name: str) -> Topology:
    """Return the chips of a topology: a TPU slice, such as "v5e:4x4", or GPUs, such as "h100:8".

    Call it before JAX is used. "h100:4x8" is 4 hosts with 8 GPUs each.

    Raises:
        ValueError: if the kind or shape is unknown; MissingExtraError without the compiler.
    """
    kind, _, shape = name.partition(":")
    if shape and kind in CHIPS:
        return Topology(name, CHIPS[kind], tpu_devices(name))
    if shape and kind in GPUS:
        return Topology(name, GPUS[kind].chip, gpu_devices(GPUS[kind], shape))
    raise ValueError(
        f"unknown topology {name!r}; give a TPU ({', '.join(CHIPS)}) and a shape, like v5e:4x4, "
        f"or a GPU ({', '.join(GPUS)}) and a number, like h100:8, or hosts x GPUs, like h100:4x8"
    )


def default_mesh(program: Program, cfg: GPTConfig, chips: int) -> dict[str, int]:
    """Return the default mesh: to train, `fsdp` as large as the width allows; else all `data`."""
    fsdp = math.gcd(chips, cfg.emb_dim) if program == "train" else 1
    return {"data": chips // fsdp, "fsdp": fsdp}


def analyze_program(
    topology: Topology, cfg: GPTConfig, program: Program, sizes: dict[str, int], batch: int
) -> dict[str, Any]:
    """Compile one program, and report what it needs per chip.

    Args:
        topology: the chips.
        cfg: the model's config.
        program: the program, as for `trace_program`.
        sizes: the mesh, as axis -> size.
        batch: number of rows, over all chips.

    Returns:
        A dictionary for JSON, with figures per chip: `memory` in bytes (the `temporaries` are not
        all alive at once; `peak` must fit), `flops` of matrix products, `bytes` that memory must
        move, `collectives` with the bytes of their results, bytes that must be `sent`, and the
        shortest possible times in seconds (`roofline`). For `decode` on GPUs also `launches`, from
        `cuda_commands.launch_report`.

    Raises:
        DoesNotFitError: if the program needs more memory than a chip has.
        ValueError: if a mesh axis does not divide the dimension it splits.
    """
    mesh = make_mesh(sizes, topology.devices)
    check_model(cfg, mesh)
    check_batch(batch, mesh)
    _reject_oversized_batch(topology, cfg, program, mesh, batch)
    traced = trace_program(program, mesh, cfg, batch)
    compiled, plan = _compiled(traced, with_plan=program == "decode" and _is_gpu(topology))
    memory: Any = compiled.memory_analysis()
    peak = memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes
    if peak > topology.chip.memory:  # XLA refuses it only for TPUs
        raise DoesNotFitError(
            f"{batch} rows need {peak / 2**30:,.1f} GiB per chip, which exceeds the "
            f"{topology.chip.memory / 2**30:.4g} GiB that it has for programs; use fewer rows"
        )
    counted: Any = compiled.cost_analysis() or {}
    found = collectives(compiled.as_text())
    hosts = [device.process_index for device in mesh.devices.flat]
    flops = matrix_flops(traced.jaxpr.jaxpr) / len(topology.devices)
    moved = memory.argument_size_in_bytes
    if program != "decode":  # it updates the caches in place: one slot is new
        moved += memory.output_size_in_bytes
    best = roofline(topology.chip, flops, moved, communication_seconds(topology.chip, found, hosts))
    return {
        "topology": topology.name,
        "chips": len(topology.devices),
        "program": program,
        "mesh": {name: size for name, size in sizes.items() if size > 1},
        "batch": batch,
        "positions": cfg.context_length,
        "memory": {
            "arguments": memory.argument_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "program": memory.generated_code_size_in_bytes,
            "peak": peak,
            "chip": topology.chip.memory,
        },
        "flops": flops,
        "bytes": moved,
        "bytes_counted_by_xla": counted.get("bytes accessed"),
        "collectives": {
            kind: {
                "count": sum(one.times for one in found if one.kind == kind),
                "bytes": sum(one.times * one.bytes for one in found if one.kind == kind),
            }
            for kind in sorted({one.kind for one in found})
        },
        "sent": sum(one.times * one.bytes_sent for one in found),
        "roofline": best,
        **({"launches": launch_report(plan, best)} if plan else {}),
    }


def largest_batch(
    topology: Topology,
    cfg: GPTConfig,
    program: Program,
    sizes: dict[str, int],
    first: dict[str, Any],
) -> dict[str, Any]:
    """Return the result of `analyze_program` for the largest batch that fits, to within 1/16.

    Memory grows almost linearly with the batch, so two sizes predict the next one to try.

    Args:
        topology: the chips.
        cfg: the model's config.
        program: the program.
        sizes: the mesh, as axis -> size.
        first: the result of `analyze_program` for a batch that fits.
    """
    ways = batch_shards(sizes)

    def divisible(rows: float) -> int:
        return max(int(rows) // ways, 1) * ways

    best, guess, fails = first, 2 * first["batch"], math.inf
    slope, back = math.inf, 1  # bytes per row; 64ths to stay below the last failure
    while fails - best["batch"] > divisible(best["batch"] / 16):
        try:
            more = analyze_program(topology, cfg, program, sizes, guess)
            grown = more["memory"]["peak"] - best["memory"]["peak"]
            slope, best, back = max(grown, 1) / (guess - best["batch"]), more, 1
        except DoesNotFitError:
            fails, back = guess, 2 * back
        rows, left = best["batch"], topology.chip.memory - best["memory"]["peak"]
        highest = min(fails * (1 - back / 64), 16 * rows)
        guess = max(rows + divisible(rows / 16), divisible(min(rows + left / slope, highest)))
    return best


def _reject_oversized_batch(
    topology: Topology, cfg: GPTConfig, program: Program, mesh: Mesh, batch: int
) -> None:
    """Reject a batch that cannot fit, which XLA would compile for many minutes."""
    rows = batch // batch_shards(mesh.shape)
    kept = 2 * rows * cfg.context_length * cfg.emb_dim * cfg.n_layers  # the inputs of all blocks
    if program != "train":  # keys and values, with heads split
        kept = 2 * kept // mesh.shape["model"]
    if kept > topology.chip.memory:
        raise DoesNotFitError(
            f"{rows} rows per chip need at least {kept / 2**30:,.1f} GiB, which exceeds the "
            f"chip's {topology.chip.memory / 2**30:.4g} GiB; use fewer rows"
        )


def _is_gpu(topology: Topology) -> bool:
    return bool(topology.devices[0].platform == "gpu")


def _compiled(traced: Any, with_plan: bool) -> tuple[Any, str]:
    """Return the compiled program, and the plan of its commands, empty unless asked for."""
    try:
        with warnings.catch_warnings():
            # JAX can write this program to its cache, but cannot read it without the chips.
            warnings.filterwarnings("ignore", ".*persistent compilation cache")
            lowered = traced.lower()
            return compile_with_plan(lowered) if with_plan else (lowered.compile(), "")
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFitError(str(error).splitlines()[0]) from error
