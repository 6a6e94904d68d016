"""The tables of docs/guides/absent-hardware.md: GPT-2 on absent TPUs or GPUs, compiled but not run.

`python tools/topology_table.py tpu` needs the extra `tpu`, and `gpu` the extra `cuda-compile`.
Names of models after it limit the table to these, for parts of the work: `gpu gpt2-xl`.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from obscura_jax.config import PRESETS
from obscura_jax.scale.mesh import batch_shards, format_mesh
from obscura_jax.scale.topology import (
    DoesNotFitError,
    analyze_program,
    default_mesh,
    get_topology,
    largest_batch,
)
from obscura_jax.scale.traced_programs import Program

MODELS = {"gpt2": 64, "gpt2-medium": 32, "gpt2-large": 16, "gpt2-xl": 8}  # rows to start with, GPUs
SLICES = ("v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16")
GPUS = (("h100:1", "a100:1"), ("h100:8", "a100:8"))  # each pair has the same memory
GIB = 2**30
HEAD = (
    "| model | chips | program | mesh | rows | arguments, GiB | peak, GiB | TFLOP | sent, GiB "
    "| ms at best |"
)


def analyze(model: str, name: str, program: Program, rows: int) -> dict[str, Any]:
    """Return the analysis of a program with `rows` rows per shard."""
    topology, cfg = get_topology(name), PRESETS[model]
    sizes = default_mesh(program, cfg, len(topology.devices))
    return analyze_program(topology, cfg, program, sizes, rows * batch_shards(sizes))


def largest(model: str, name: str, program: Program, rows: int) -> dict[str, Any]:
    """Return the analysis for the largest batch that fits, searched from `rows` rows per shard."""
    topology, cfg = get_topology(name), PRESETS[model]
    sizes = default_mesh(program, cfg, len(topology.devices))
    first = analyze(model, name, program, rows)
    return largest_batch(topology, cfg, program, sizes, first)


def row(model: str, found: dict[str, Any]) -> str:
    """Return a row of the table, and print its figures on standard error."""
    print(json.dumps({"preset": model, **found}), file=sys.stderr, flush=True)
    memory, best = found["memory"], found["roofline"]
    tera = float(f"{found['flops'] / 1e12:.3g}")
    return (
        f"| {model} | {found['topology']} | {found['program']} | {format_mesh(found['mesh'])} | "
        f"{found['batch']} | {memory['arguments'] / GIB:.2f} | {memory['peak'] / GIB:.1f} | "
        f"{tera:g} | {found['sent'] / GIB:.2g} | "
        f"{best['seconds'] * 1e3:.4g}, {best['bound']} |"
    )


def tpu_table(models: Sequence[str]) -> None:
    """Print the table: training on every slice; generation, whose chips work alone, on one."""
    print(HEAD)
    print("|---|---|---|---|---|---|---|---|---|---|")
    for model in models:
        for name in SLICES:
            print(row(model, largest(model, name, "train", 1)), flush=True)
        for program in ("prefill", "decode"):
            print(row(model, largest(model, SLICES[1], program, 1)), flush=True)


def gpu_table(models: Sequence[str]) -> None:
    """Print training with the largest batch, then generation of one row and its commands."""
    print(HEAD)
    print("|---|---|---|---|---|---|---|---|---|---|")
    for model in models:
        start = MODELS[model]
        for name, twin in GPUS:
            found = largest(model, name, "train", start)
            print(row(model, found), flush=True)
            rows = found["batch"] // batch_shards(found["mesh"])
            try:
                other = analyze(model, twin, "train", rows)
            except DoesNotFitError:
                other = largest(model, twin, "train", start)
            print(row(model, other), flush=True)
    print("\n| model | GPU | commands | graphs | returns | launches, ms | memory, ms | bound |")
    print("|---|---|---|---|---|---|---|---|")
    for model in models:
        for name in GPUS[0]:
            print(launches_row(model, analyze(model, name, "decode", 1)), flush=True)


def launches_row(model: str, found: dict[str, Any]) -> str:
    """Return a row of the table of commands per token."""
    print(json.dumps({"preset": model, **found}), file=sys.stderr, flush=True)
    launches, best = found["launches"], found["roofline"]
    low, high = (f"{seconds * 1e3:.2f}" for seconds in launches["seconds"])
    columns = (
        " / ".join(str(launches[token][count]) for token in ("greedy", "sampling"))
        for count in ("commands", "graphs", "host_returns")
    )
    return (
        f"| {model} | {found['topology']} | {' | '.join(columns)} | {low} to {high} | "
        f"{best['memory'] * 1e3:.3f} | {launches['bound']} |"
    )


def main() -> None:
    """Print the table of TPUs or of GPUs."""
    tables = {"tpu": tpu_table, "gpu": gpu_table}
    kind, models = "".join(sys.argv[1:2]), sys.argv[2:]
    if kind not in tables or not set(models) <= set(MODELS):
        sys.exit(f"usage: python tools/topology_table.py tpu|gpu [{' '.join(MODELS)}]")
    tables[kind](models or list(MODELS))


if __name__ == "__main__":
    main()
