"""`obscura export`: write a model as programs that run without this package."""

import argparse
from pathlib import Path
from typing import Any

from obscura_jax.arguments import MODEL_HELP, add_model_arguments
from obscura_jax.cli.suggestions import generate_command


def add_parser(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = commands.add_parser(
        "export", help="write a model as programs that run without this package"
    )
    add = parser.add_argument
    add("source", help=f"model to export: {MODEL_HELP}")
    add("destination", help="folder to write")
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype of the weights and the computation; default: float32",
    )
    add(
        "--platforms",
        default="cpu,cuda,tpu",
        metavar="P,...",
        help="platforms that can run the programs; default: cpu,cuda,tpu",
    )
    add_model_arguments(parser)
    add("--overwrite", action="store_true", help="replace an existing model in the folder")
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
        tokens=checkpoint.tokens,
        overwrite=args.overwrite,
    )
    for name, count in files.items():
        print(f"{count:>13,}  {name}")
    if checkpoint.cfg.context_length > 1:  # exported models cannot slide the window
        print(generate_command(Path(args.destination), checkpoint.cfg))
