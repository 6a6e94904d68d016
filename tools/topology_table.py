"""The figures of docs/explain/what-fits.md: GPT-2 on absent TPUs or GPUs, compiled, not run.

`python tools/topology_table.py tpu` needs the extra `tpu`, and `gpu` the extra `cuda-compile`. Each
row is printed as one line of JSON. Names of models limit the work to these: `gpu gpt2-xl`.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
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

sys.path.insert(0, str(Path(__file__).parents[1]))

from docs.hooks.data_files import add_save_option, save, saved_command, significant

MODELS = {"gpt2": 64, "gpt2-medium": 32, "gpt2-large": 16, "gpt2-xl": 8}  # rows to start with, GPUs
SLICES = ("v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16")
GPUS = (("h100:1", "a100:1"), ("h100:8", "a100:8"))  # each pair has the same memory
GIB = 2**30
Row = dict[str, Any]


def analyze(model: str, name: str, program: Program, rows: int) -> Row:
    """Return the analysis of a program with `rows` rows per shard."""
    topology, cfg = get_topology(name), PRESETS[model]
    sizes = default_mesh(program, cfg, len(topology.devices))
    return analyze_program(topology, cfg, program, sizes, rows * batch_shards(sizes))


def largest(model: str, name: str, program: Program, rows: int) -> Row:
    """Return the analysis for the largest batch that fits, searched from `rows` rows per shard."""
    topology, cfg = get_topology(name), PRESETS[model]
    sizes = default_mesh(program, cfg, len(topology.devices))
    first = analyze(model, name, program, rows)
    return largest_batch(topology, cfg, program, sizes, first)


def batch_row(model: str, found: Row) -> Row:
    """Return the figures of a program with the largest batch."""
    memory, best = found["memory"], found["roofline"]
    return {
        "model": model,
        "chips": found["topology"],
        "program": found["program"],
        "mesh": format_mesh(found["mesh"]),
        "rows": found["batch"],
        "arguments_gib": significant(memory["arguments"] / GIB),
        "peak_gib": significant(memory["peak"] / GIB),
        "tflop": significant(found["flops"] / 1e12, 3),
        "sent_gib": significant(found["sent"] / GIB, 2),
        "ms": significant(best["seconds"] * 1e3),
        "bound": best["bound"],
    }


def token_row(model: str, found: Row) -> Row:
    """Return the commands of a greedy token and of one that samples, and their bounds."""
    launches = found["launches"]
    counts = {"commands": "commands", "graphs": "graphs", "returns": "host_returns"}
    return {
        "model": model,
        "chips": found["topology"],
        **{
            name: [launches[token][count] for token in ("greedy", "sampling")]
            for name, count in counts.items()
        },
        "launches_ms": [significant(seconds * 1e3) for seconds in launches["seconds"]],
        "memory_ms": significant(found["roofline"]["memory"] * 1e3),
        "bound": launches["bound"],
    }


def tpu_batches(models: Sequence[str]) -> Iterator[Row]:
    """Yield training on every slice, and generation, whose chips work alone, on one."""
    for model in models:
        for name in SLICES:
            yield batch_row(model, largest(model, name, "train", 1))
        for program in ("prefill", "decode"):
            yield batch_row(model, largest(model, SLICES[1], program, 1))


def gpu_batches(models: Sequence[str]) -> Iterator[Row]:
    """Yield training with the largest batch."""
    for model in models:
        start = MODELS[model]
        for name, twin in GPUS:
            found = largest(model, name, "train", start)
            yield batch_row(model, found)
            rows = found["batch"] // batch_shards(found["mesh"])
            try:
                other = analyze(model, twin, "train", rows)
            except DoesNotFitError:
                other = largest(model, twin, "train", start)
            yield batch_row(model, other)


def gpu_tokens(models: Sequence[str]) -> Iterator[Row]:
    """Yield the generation of one row."""
    for model in models:
        for name in GPUS[0]:
            yield token_row(model, analyze(model, name, "decode", 1))


TABLES = {
    "tpu": {"tpu_batches": tpu_batches},
    "gpu": {"gpu_batches": gpu_batches, "gpu_tokens": gpu_tokens},
}
PLUGINS = {"tpu": "libtpu", "gpu": "jax-cuda12-plugin"}


def main() -> None:
    """Print the figures of TPUs or of GPUs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=TABLES, help="kind of the devices")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="models; default: all")
    add_save_option(parser)
    args = parser.parse_args()
    if unknown := set(args.models) - set(MODELS):
        parser.error(f"unknown model {min(unknown)!r}; choose from {', '.join(MODELS)}")
    command = saved_command(parser, args.save, [args.kind])
    for name, rows_of in TABLES[args.kind].items():
        rows = []
        for row in rows_of(args.models or list(MODELS)):
            print(json.dumps(row), flush=True)
            rows.append(row)
        if args.save:
            save(
                args.save / f"{name}.json",
                rows,
                command=command,
                packages=[PLUGINS[args.kind]],
                machine=f"compiled without a {args.kind.upper()}",
            )


if __name__ == "__main__":
    main()
