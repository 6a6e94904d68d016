"""`obscura parity`: compare PyTorch and JAX on the same weights."""

import argparse
import os
import sys
from contextlib import ExitStack
from functools import partial
from typing import Any

from obscura_jax.arguments import add_model_arguments, seed, size


def add_parser(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = commands.add_parser(
        "parity",
        help="compare with PyTorch: equal up to rounding, or first difference and cause",
        epilog="exit codes: 0 equal up to rounding, 1 different, 2 not comparable, with the reason "
        "on standard error (for example, the module draws random numbers)",
    )
    add = parser.add_argument
    add(
        "source",
        help="model to compare: a folder or file in any dialect, gpt2, tiny or torch-seed:N",
    )
    add(
        "--against",
        default="course",
        metavar="REFERENCE",
        help="PyTorch side: course for our reference (default), hf for transformers, or "
        "FILE.py:CLASS for your own module, built as CLASS(cfg), with the course's names",
    )
    add("--json", metavar="FILE", help="also write the report as JSON")
    add("--html", metavar="FILE", help="also write the report as an HTML page with charts")
    add_model_arguments(parser)
    add("--seed", type=seed, default=0, metavar="S", help="seed of the random prompts; default: 0")
    add(
        "--steps",
        type=size,
        metavar="N",
        help="optimizer steps to compare; default: 3, or none above 40M parameters",
    )
    add(
        "--new-tokens",
        type=size,
        default=16,
        metavar="N",
        help="greedy tokens to compare; default: 16",
    )
    add("--tokens", dest="new_tokens", type=size, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compare, print the table and write the files; exit with 1 if the frameworks differ."""
    from obscura_jax.extras import require
    from obscura_jax.interop.checkpoint import read_checkpoint
    from obscura_jax.interop.course_state import named_tensors
    from obscura_jax.parity import page, report_files
    from obscura_jax.parity import report as reports
    from obscura_jax.parity.lab import compare_implementations
    from obscura_jax.parity.references import reference

    formats = ((args.json, reports.as_json), (args.html, page.as_html))
    report_files.check_writable(*(name for name, _ in formats if name is not None))
    if args.html is not None:
        require("jinja2", "parity", "--html")
    checkpoint = read_checkpoint(args.source, n_heads=args.n_heads, entry=args.entry)
    flat = named_tensors(checkpoint.cfg, checkpoint.params)
    torch_side = reference(args.against, checkpoint.cfg, flat, args.source)
    report = compare_implementations(
        args.source,
        checkpoint.cfg,
        checkpoint.params,
        torch_side,
        seed=args.seed,
        end_of_text=checkpoint.tokens.eos_token_id,
        steps=args.steps,
        new_tokens=args.new_tokens,
    )
    with ExitStack() as last:  # every callback runs, even if another one fails
        for name, render in reversed(formats):
            if name is not None:
                last.callback(report_files.write, name, partial(render, report))
        last.callback(_print, reports.as_text(report))
    if not report.equal:
        raise SystemExit(1)


def _print(text: str) -> None:
    """Print a report. A reader that closes the pipe early does not change the exit code."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
