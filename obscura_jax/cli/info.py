"""`obscura info`: print the size, memory, config and tokenizer of a model."""

import argparse
from pathlib import Path
from typing import Any

from obscura_jax.arguments import MODEL_HELP, add_model_arguments, refuse_for_exported


def add_parser(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = commands.add_parser(
        "info", help="print the parameter count, memory and config of a model"
    )
    parser.add_argument("source", help=f"model: {MODEL_HELP}; also an exported model")
    add_model_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Read the model, and print its sizes and tokenizer."""
    from obscura_jax.interop.checkpoint import read_checkpoint
    from obscura_jax.interop.locate import is_exported
    from obscura_jax.interop.model_tokenizer import tokenizer_of
    from obscura_jax.nn.parameters import count_parameters, parameter_bytes

    if is_exported(args.source):
        cfg, tokens = _exported(args)
    else:
        checkpoint = read_checkpoint(args.source, n_heads=args.n_heads, entry=args.entry)
        cfg, params, tokens = checkpoint.cfg, checkpoint.params, checkpoint.tokens
        print(f"dialect              {checkpoint.dialect}")
        print(f"parameters           {count_parameters(params):,}")
        print(f"  with weight tying  {count_parameters(params, weight_tying=True):,}")
        print(f"memory               {parameter_bytes(params) / 2**20:.2f} MiB")
    for name, value in cfg.to_dict().items():
        print(f"{name:<20} {value}")
    try:
        about = tokenizer_of(tokens, cfg, args.source).name
    except ValueError as error:
        about = f"none: {error}"
    print(f"tokenizer            {about}")
    special = (f"{name}={value}" for name, value in tokens.ids.items())
    print(f"special tokens       {', '.join(special) or 'none recorded'}")


def _exported(args: argparse.Namespace) -> tuple[Any, Any]:
    """Print what an exported model records; return its config and token record."""
    from obscura_jax.export.file_format import read_manifest
    from obscura_jax.interop.tokens import tokens_at
    from obscura_jax.nn.parameters import count_parameters, init_shapes

    refuse_for_exported(args, args.source, ("n_heads", "entry"))
    manifest, cfg = read_manifest(args.source)
    print("dialect              exported; run it with obscura generate")
    print(f"platforms            {', '.join(manifest.get('cache_dtypes', {}))}")
    print(
        f"made by              obscura_jax {manifest.get('obscura_jax')}, jax {manifest.get('jax')}"
    )
    print(f"parameters           {count_parameters(init_shapes(cfg)):,} of {manifest.get('dtype')}")
    return cfg, tokens_at(Path(args.source))
