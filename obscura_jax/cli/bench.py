"""`obscura bench`: time a model on this machine."""

import argparse
from typing import Any

from obscura_jax.bench.arguments import add_arguments


def add_parser(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = commands.add_parser("bench", help="time a model on this machine")
    add_arguments(parser)
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
