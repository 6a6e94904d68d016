"""`obscura export`: write a model as programs that run without this package."""

import argparse
from pathlib import Path
from typing import Any

from obscura_jax.arguments import MODEL_HELP, add_model_arguments, add_option
from obscura_jax.cli.suggestions import generate_command


def add_parser(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = commands.add_parser(
        "export", help="write a model as programs that run without this package"
    )
    parser.add_argument("source", help=f"model to export: {MODEL_HELP}")
    parser.add_argument("destination", help="folder to write")
    dtypes = ("float32", "bfloat16")
    add_option(
        parser, "--dtype", "dtype of the weights and results", choices=dtypes, default="float32"
    )
    platforms = "cpu,cuda,tpu"
    add_option(parser, "--platforms", "platforms for the programs", "P,...", default=platforms)
    compiled = (
        "add executables for this processor (cpu), or for a GPU that need not be present (a100, "
        "h100, h200, b200, l4; extra cuda-compile), so that one prompt of up to 64 tokens, and 128 "
        "tokens in all, needs no compilation"
    )
    add_option(parser, "--compile", compiled, "C,...", action="append")
    add_model_arguments(parser)
    overwrite = "replace an existing model in the folder"
    add_option(parser, "--overwrite", overwrite, action="store_true")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Export the model, and print the size of each file."""
    from obscura_jax.export.exporter import export_model
    from obscura_jax.interop.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(args.source, n_heads=args.n_heads, entry=args.entry)
    files = export_model(
        args.destination,
        checkpoint.cfg,
        checkpoint.params,
        dtype=args.dtype,
        platforms=args.platforms.split(","),
        compile_for=[name for names in args.compile or () for name in names.split(",")],
        tokens=checkpoint.tokens,
        overwrite=args.overwrite,
    )
    for name, count in files.items():
        print(f"{count:>13,}  {name}")
    if checkpoint.cfg.context_length > 1:  # exported models cannot slide the window
        print(generate_command(Path(args.destination), checkpoint.cfg))
