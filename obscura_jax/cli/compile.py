"""`obscura compile`: compile a program for TPUs or GPUs that are not present."""

import argparse
import json
from typing import Any

from obscura_jax.arguments import add_option, positive_int
from obscura_jax.config import PRESETS


def add_parser(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = commands.add_parser("compile", help="compile a program for absent TPUs or GPUs")
    chips = "TPU slice, such as v5e:4x4, or GPUs, such as h100:8 or h100:4x8 (4 hosts)"
    add_option(parser, "--topology", chips, "T", required=True)
    add_option(parser, "--preset", "model to compile", choices=PRESETS, default="gpt2")
    program = "training step, reading of prompts, or generation of a token"
    programs = ("train", "prefill", "decode")
    add_option(parser, "--program", program, choices=programs, default="train")
    mesh = "mesh axes, such as data=8,model=2; default: fsdp for training, data for generation"
    add_option(parser, "--mesh", mesh, "SIZES")
    rows = "rows of a batch over all chips; default: one row per shard"
    add_option(parser, "--batch-size", rows, "B", positive_int)
    add_option(parser, "--json", "print one JSON object instead of text", action="store_true")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compile the program, and print its memory, work and communication."""
    from obscura_jax.scale import topology as slices
    from obscura_jax.scale.mesh import batch_shards, format_mesh, parse_mesh

    topology, cfg = slices.get_topology(args.topology), PRESETS[args.preset]
    chips = len(topology.devices)
    sizes = parse_mesh(args.mesh) if args.mesh else slices.default_mesh(args.program, cfg, chips)
    batch = args.batch_size or batch_shards(sizes)
    found = slices.analyze_program(topology, cfg, args.program, sizes, batch)
    largest = slices.largest_batch(topology, cfg, args.program, sizes, found)
    found |= {"preset": args.preset, "largest_batch": largest["batch"]}
    if args.json:
        print(json.dumps(found))
        return
    print(f"{args.preset} {args.program} on {args.topology}, {chips} chips, {format_mesh(sizes)}")
    print(f"{found['batch']} rows of {found['positions']} positions; per chip:")
    memory = found["memory"]
    for name in ("arguments", "temporaries", "program", "peak", "chip"):
        print(f"  memory, {name:<12} {memory[name] / 2**20:>10,.1f} MiB")
    print(f"  matrix products    {found['flops'] / 1e9:>11,.1f} GFLOP")
    print(f"  moved at least     {found['bytes'] / 2**20:>11,.1f} MiB")
    for kind, one in found["collectives"].items():
        print(f"  {kind:<18} {one['bytes'] / 2**20:>11,.1f} MiB in {one['count']} operations")
    print(f"  sent at least      {found['sent'] / 2**20:>11,.1f} MiB")
    best = found["roofline"]
    for name in ("compute", "memory", "network"):
        print(f"  {name:<18} {best[name] * 1e3:>11,.3f} ms at best")
    print(f"at best {best['seconds'] * 1e3:,.3f} ms per step, bound by {best['bound']}")
    if "launches" in found:
        _print_launches(found["launches"], best)
    print(f"largest batch that fits: {largest['batch']} rows")


def _print_launches(launches: dict[str, Any], best: dict[str, Any]) -> None:
    """Print the commands per token, and whether they or the chip's work limit the speed."""
    for token in ("greedy", "sampling"):
        count = launches[token]
        loops = f", {count['inner_loops']} loops counted once" if count["inner_loops"] else ""
        print(
            f"{token} token: {count['commands']} commands, {count['graphs']} graphs launched, "
            f"{count['host_returns']} returns to the host{loops}"
        )
    low, high = (seconds * 1e3 for seconds in launches["seconds"])
    print(
        f"{launches['bound']}-bound: {launches['greedy']['commands']} commands take "
        f"{low:,.3f} to {high:,.3f} ms; memory alone takes {best['memory'] * 1e3:,.3f} ms"
    )
