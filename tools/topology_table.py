"""The table of obscura_jax/scale/README.md: GPT-2 on slices of TPU v5e, compiled but not run."""

import json
import sys

from obscura_jax.config import PRESETS
from obscura_jax.scale.mesh import batch_shards, format_mesh
from obscura_jax.scale.topology import analyze_program, default_mesh, get_topology, largest_batch
from obscura_jax.scale.traced_programs import Program

MODELS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
SLICES = ("v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16")
GIB = 2**30


def row(model: str, slice_: str, program: Program) -> str:
    """Return a row of the table, for the largest batch that fits."""
    topology, cfg = get_topology(slice_), PRESETS[model]
    sizes = default_mesh(program, cfg, len(topology.devices))
    first = analyze_program(topology, cfg, program, sizes, batch_shards(sizes))
    found = largest_batch(topology, cfg, program, sizes, first)
    print(json.dumps({"preset": model, **found}), file=sys.stderr, flush=True)
    memory, best = found["memory"], found["roofline"]
    return (
        f"| {model} | {slice_} | {program} | {format_mesh(sizes)} | {found['batch']} | "
        f"{memory['arguments'] / GIB:.2f} | {memory['peak'] / GIB:.1f} | "
        f"{found['flops'] / 1e12:.3g} | {found['sent'] / GIB:.2g} | "
        f"{best['seconds'] * 1e3:.4g}, {best['bound']} |"
    )


def main() -> None:
    """Print the table: training on every slice; generation, whose chips work alone, on one."""
    print(
        "| model | slice | program | mesh | rows | arguments, GiB | peak, GiB | TFLOP | sent, GiB "
        "| ms at best |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for model in MODELS:
        for slice_ in SLICES:
            print(row(model, slice_, "train"), flush=True)
        for program in ("prefill", "decode"):
            print(row(model, SLICES[1], program), flush=True)


if __name__ == "__main__":
    main()
