"""`obscura convert`: a model from one form into another."""

import argparse
from typing import Any

from obscura_jax.cli.arguments import size


def add_to(commands: Any) -> None:
    """Declare the command's words."""
    parser = commands.add_parser("convert", help="convert a model between PyTorch and JAX")
    parser.add_argument("source", help="a course .pth, a native folder, or torch-seed:N[:PRESET]")
    parser.add_argument("destination", help="the folder (native) or file (course) to write")
    parser.add_argument("--to", choices=("native", "course"), default="native")
    parser.add_argument("--n-heads", type=size, metavar="H", help="if the source does not say")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Convert, then print what each tensor became."""
    from obscura_jax.interop.files import read_checkpoint, save_course, save_model

    checkpoint = read_checkpoint(args.source, n_heads=args.n_heads)
    save = {"native": save_model, "course": save_course}[args.to]
    save(args.destination, checkpoint.cfg, checkpoint.params)
    for row in checkpoint.audit:
        shape = "x".join(map(str, row.shape))
        print(f"{row.source} -> {row.target}  {shape} {row.dtype}  {row.note}")
    print(f"{args.source} ({checkpoint.dialect}) -> {args.destination} ({args.to})")
    print(checkpoint.cfg)
