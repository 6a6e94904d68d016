"""`obscura parity`: compare PyTorch and JAX on the same weights."""

import argparse
import os
import sys
from contextlib import ExitStack
from functools import partial
from typing import Any

from obscura_jax.arguments import (
    MODEL_HELP,
    add_hidden_alias,
    add_model_arguments,
    add_option,
    positive_int,
    seed_value,
)


def add_parser(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = commands.add_parser(
        "parity",
        help="compare PyTorch and JAX on the same weights, component by component",
        epilog="exit code: 0 if equal up to rounding, 1 if different, 2 if they cannot be "
        "compared (such as a module that draws random numbers); standard error gives the reason",
    )
    parser.add_argument("source", help=f"model: {MODEL_HELP}")
    against = (
        "PyTorch implementation: course, this package's own; hf, transformers; or FILE.py:CLASS, "
        "your torch module, built as CLASS(cfg), with the course's parameter names, that returns "
        "logits"
    )
    add_option(parser, "--against", against, "WHAT", default="course")
    add_option(parser, "--json", "file to write the report to as JSON", "FILE")
    add_option(parser, "--html", "file to write the report to as a page with plots", "FILE")
    add_model_arguments(parser)
    add_option(parser, "--seed", "random seed for the prompts", "S", seed_value, default=0)
    steps = "optimizer steps to compare; default: 3, or none for a large model"
    add_option(parser, "--steps", steps, "N", positive_int)
    tokens = "tokens of greedy generation to compare"
    action = add_option(parser, "--new-tokens", tokens, "N", positive_int, default=16)
    add_hidden_alias(parser, "--tokens", action)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compare, print the table and write the files; exit with code 1 if they differ."""
    from obscura_jax.extras import require
    from obscura_jax.interop.checkpoint import read_checkpoint
    from obscura_jax.interop.course_state import named_tensors
    from obscura_jax.parity import report_files
    from obscura_jax.parity.gpt import page
    from obscura_jax.parity.gpt import report as reports
    from obscura_jax.parity.gpt.lab import compare_implementations
    from obscura_jax.parity.gpt.references import reference

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
    with ExitStack() as last:  # each output is written even if another one fails
        for name, render in reversed(formats):
            if name is not None:
                last.callback(report_files.write, name, partial(render, report))
        last.callback(_print, reports.as_text(report))
    if not report.equal:
        raise SystemExit(1)


def _print(text: str) -> None:
    """Print a report; a closed pipe does not change the exit code, which gives the verdict."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
