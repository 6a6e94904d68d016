"""`obscura bench`: time a model on this machine."""

import argparse
from typing import Any

from obscura_jax.cli.arguments import size


def add_to(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = commands.add_parser("bench", help="time a model on this machine")
    add = parser.add_argument
    add("--model", default="torch-seed:0:gpt2", help="default: torch-seed:0:gpt2, of 124M")
    add("--n-heads", type=size, metavar="H", help="number of heads, if the model does not state it")
    add("--dtype", choices=("float32", "bfloat16"), help="compute dtype; default: both, in turn")
    add("--repeats", type=size, default=5, metavar="N", help="rounds per measurement; default: 5")
    add("--no-cold", action="store_true", help="do not time the start of a process")
    add("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Time the model and print a line for each measurement."""
    from obscura_jax.bench.measurements import BenchReport
    from obscura_jax.bench.suite import bench_model

    bench_model(
        args.model,
        BenchReport(args.json),
        n_heads=args.n_heads,
        dtype=args.dtype,
        repeats=args.repeats,
        cold=not args.no_cold,
    )
