"""`obscura convert`: convert a model from one file format to another."""

import argparse
from typing import Any

from obscura_jax.arguments import MODEL_HELP, add_model_arguments, add_option


def add_parser(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = commands.add_parser("convert", help="convert a model between PyTorch and JAX")
    parser.add_argument("source", help=f"model to convert: {MODEL_HELP}")
    destination = "folder (native, hf) or file (course, nanogpt) to write"
    parser.add_argument("destination", help=destination)
    formats = ("native", "course", "hf", "nanogpt")
    add_option(parser, "--to", "format to write", choices=formats, default="native")
    add_model_arguments(parser)
    overwrite = "replace an existing model at the destination"
    add_option(parser, "--overwrite", overwrite, action="store_true")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Convert the model, and print the source and target of each tensor."""
    from obscura_jax.interop import checkpoint

    loaded = checkpoint.read_checkpoint(args.source, n_heads=args.n_heads, entry=args.entry)
    options: dict[str, Any] = {"overwrite": args.overwrite}
    if args.to != "course":  # a course checkpoint has no entry for tokens
        options["tokens"] = loaded.tokens
    save: dict[str, Any] = {"native": checkpoint.save_model, "course": checkpoint.save_course}
    save |= {"hf": checkpoint.save_hf, "nanogpt": checkpoint.save_nanogpt}
    save[args.to](args.destination, loaded.cfg, loaded.params, **options)
    for row in loaded.audit:
        shape = "x".join(map(str, row.shape))
        print(f"{row.source} -> {row.target}  {shape} {row.dtype}  {row.checksum}  {row.note}")
    for what, names in loaded.tokens.carried_to(args.to).items():
        if names:
            print(f"{what}: {', '.join(names)}")
    print(f"{args.source} ({loaded.dialect}) -> {args.destination} ({args.to})")
    print(loaded.cfg)
    if "nanogpt" in (loaded.dialect, args.to):
        print("nanoGPT has used the exact GELU since 2023; this model uses its earlier tanh form")
