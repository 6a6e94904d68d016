"""`obscura export`: a model as programs that run without this package."""

import argparse
from pathlib import Path
from typing import Any

from obscura_jax.arguments import add_model_arguments
from obscura_jax.cli.suggestions import generate_command


def add_parser(commands: Any) -> None:
    """Declare the command's words."""
    parser = commands.add_parser("export", help="write programs that run without this package")
    add = parser.add_argument
    add("source", help="a folder or file of any dialect, gpt2, tiny, torch-seed:N")
    add("destination", help="the folder")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    add("--platforms", default="cpu,cuda,tpu", metavar="P,...", help="default: cpu,cuda,tpu")
    add_model_arguments(parser)
    add("--overwrite", action="store_true", help="replace a model that is in the folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Export, then print the files."""
    from obscura_jax.export.exporter import export_model
    from obscura_jax.interop.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(args.source, n_heads=args.n_heads, entry=args.entry)
    files = export_model(
        args.destination,
        checkpoint.cfg,
        checkpoint.params,
        dtype=args.dtype,
        platforms=args.platforms.split(","),
        tokens=checkpoint.tokens,
        overwrite=args.overwrite,
    )
    for name, count in files.items():
        print(f"{count:>13,}  {name}")
    if checkpoint.cfg.context_length > 1:  # an exported model does not slide
        print(generate_command(Path(args.destination), checkpoint.cfg))
