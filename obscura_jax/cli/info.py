"""`obscura info`: what a model is and how much room it takes."""

import argparse
from typing import Any

from obscura_jax.cli.arguments import size


def add_to(commands: Any) -> None:
    """Declare the command's words."""
    parser = commands.add_parser("info", help="parameter count, memory and config of a model")
    parser.add_argument("source", help="a folder or file of any dialect, gpt2, tiny, torch-seed:N")
    parser.add_argument("--n-heads", type=size, metavar="H", help="if the source does not say")
    parser.add_argument("--entry", metavar="NAME", help="the model in a file of several, as ema")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Read the model and print its sizes."""
    from obscura_jax.interop.files import read_checkpoint
    from obscura_jax.nn.model import count_parameters, parameter_bytes

    checkpoint = read_checkpoint(args.source, n_heads=args.n_heads, entry=args.entry)
    params = checkpoint.params
    print(f"dialect              {checkpoint.dialect}")
    print(f"parameters           {count_parameters(params):,}")
    print(f"  with weight tying  {count_parameters(params, weight_tying=True):,}")
    print(f"memory               {parameter_bytes(params) / 2**20:.2f} MiB")
    for name, value in checkpoint.cfg.to_dict().items():
        print(f"{name:<20} {value}")
