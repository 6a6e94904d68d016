"""`obscura convert`: a model from one form into another."""

import argparse
from typing import Any

from obscura_jax.arguments import add_model_arguments


def add_parser(commands: Any) -> None:
    """Declare the command's words."""
    parser = commands.add_parser("convert", help="convert a model between PyTorch and JAX")
    parser.add_argument("source", help="a folder or file of any dialect, gpt2, tiny, torch-seed:N")
    parser.add_argument("destination", help="native, hf: the folder; course, nanogpt: the file")
    parser.add_argument("--to", choices=("native", "course", "hf", "nanogpt"), default="native")
    add_model_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace what the destination has")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Convert, then print what each tensor became."""
    from obscura_jax.interop.checkpoint import (
        read_checkpoint,
        save_course,
        save_hf,
        save_model,
        save_nanogpt,
    )

    loaded = read_checkpoint(args.source, n_heads=args.n_heads, entry=args.entry)
    cfg, params, tokens = loaded.cfg, loaded.params, loaded.tokens
    if args.to == "course":
        save_course(args.destination, cfg, params, overwrite=args.overwrite)
    else:
        save = {"native": save_model, "hf": save_hf, "nanogpt": save_nanogpt}
        save[args.to](args.destination, cfg, params, tokens=tokens, overwrite=args.overwrite)
    for row in loaded.audit:
        shape = "x".join(map(str, row.shape))
        print(f"{row.source} -> {row.target}  {shape} {row.dtype}  {row.checksum}  {row.note}")
    for what, names in tokens.carried_to(args.to).items():
        if names:
            print(f"{what}: {', '.join(names)}")
    print(f"{args.source} ({loaded.dialect}) -> {args.destination} ({args.to})")
    print(loaded.cfg)
    if "nanogpt" in (loaded.dialect, args.to):
        print("nanoGPT since 2023 computes the exact GELU, this model the tanh form it had before")
