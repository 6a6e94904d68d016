"""`obscura look`: show what a model computes for a text, on one page."""

import argparse
import sys
from pathlib import Path
from typing import Any

from obscura_jax.arguments import MODEL_HELP, add_model_arguments, add_option, port, utf8
from obscura_jax.compile_cache import enable_compilation_cache

_DTYPES = ("float32", "bfloat16")


def add_parser(commands: Any) -> None:
    """Declare the arguments of the command."""
    parser = commands.add_parser("look", help="show what a model computes for a text, on one page")
    parser.add_argument("model", metavar="MODEL", help=f"model: {MODEL_HELP}")
    most = "text to look at, of at most 256 tokens"
    parser.add_argument("text", metavar="TEXT", type=utf8, nargs="?", help=most)
    add_model_arguments(parser)
    add = parser.add_argument
    add("--ids", action="store_true", help="read the text as token ids, such as '1 2 3'")
    add("--dtype", choices=_DTYPES, help="compute dtype; default: the model's")
    add_option(parser, "--html", "file to write the page to", "FILE")
    add(
        "--no-ablations", action="store_true", help="do not run the model without each of its parts"
    )
    add("--no-compile-cache", action="store_true", help="do not store compiled programs on disk")

    group = parser.add_argument_group("two models")
    beside = "second model, to show the same text in both"
    add_option(group, "--beside", beside, "OTHER")
    dtype = "compute dtype of the second model; default: its own"
    group.add_argument("--beside-dtype", choices=_DTYPES, help=dtype)

    group = parser.add_argument_group("local page")
    group.add_argument("--serve", action="store_true", help="serve a page on which to type texts")
    add_option(group, "--host", "address to serve on", "ADDRESS", default="127.0.0.1")
    add_option(group, "--port", "port to serve on; 0 takes a free one", "N", port, default=8000)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the page, or serve it until the user interrupts."""
    if args.serve == (args.html is not None):
        raise ValueError("give either --html FILE, to write a page, or --serve, to serve one")
    if args.text is None and not args.serve:
        raise ValueError("the text is missing: obscura look MODEL TEXT --html FILE")
    if args.beside is None and args.beside_dtype is not None:
        raise ValueError("--beside-dtype is of the second model; add --beside OTHER")
    if not args.no_compile_cache:
        enable_compilation_cache()
    from obscura_jax.look.show import Page, check_destination
    from obscura_jax.look.viewer import Viewer

    if args.html is not None:
        check_destination(args.html)
    models = [_open(args, args.model, args.dtype)]
    if args.beside is not None:
        models.append(_open(args, args.beside, args.beside_dtype))
    viewer = Viewer(models)
    if args.serve:
        from obscura_jax.look.server import serve

        text = args.text or ("0" if args.ids else "")
        serve(viewer, text, host=args.host, port=args.port, announce=_print)
        return
    from obscura_jax.look.assemble import look_page

    data = viewer.data(viewer.ids(args.text), ablate=not args.no_ablations)
    Page(look_page(data)).save(args.html)
    print(args.html)


def _open(args: argparse.Namespace, source: str, dtype: str | None) -> Any:
    """Open a model and its tokenizer."""
    from obscura_jax.interop.checkpoint import read_checkpoint
    from obscura_jax.interop.model_tokenizer import IdTokenizer, tokenizer_of
    from obscura_jax.look.viewer import Opened
    from obscura_jax.nn.dtypes import cast_params
    from obscura_jax.nn.model import GPTModel

    checkpoint = read_checkpoint(source, n_heads=args.n_heads, entry=args.entry)
    tokenizer: Any = IdTokenizer()
    if not args.ids:
        tokenizer = tokenizer_of(checkpoint.tokens, checkpoint.cfg, source)
        if tokenizer.notice:
            print(f"obscura look: {tokenizer.notice}", file=sys.stderr, flush=True)
    name = (Path(source).name or source) + (f" ({dtype})" if dtype else "")
    params = cast_params(checkpoint.params, dtype)
    return Opened(name, GPTModel(checkpoint.cfg), params, tokenizer)


def _print(line: str) -> None:
    print(line, flush=True)
