"""`obscura parity`: do PyTorch and JAX compute the same from these weights?"""

import argparse
import os
import sys
from contextlib import ExitStack
from functools import partial
from typing import Any

from obscura_jax.arguments import add_model_arguments, seed, size


def add_parser(commands: Any) -> None:
    """Declare the command's words."""
    parser = commands.add_parser(
        "parity",
        help="a verdict: equal up to rounding, or where not",
        epilog="exit code: 0 equal up to rounding, 1 different, 2 not compared, for the reason "
        "on standard error (a module that draws random numbers is not comparable)",
    )
    add = parser.add_argument
    add("source", help="a model of any dialect: a folder, a file, gpt2, tiny, torch-seed:N")
    add(
        "--against",
        default="course",
        metavar="WHAT",
        help="course: our PyTorch reference (default); hf: transformers; or FILE.py:CLASS, a "
        "course-shaped torch module of yours, built as CLASS(cfg), that returns logits",
    )
    add("--json", metavar="FILE", help="write the report as JSON")
    add("--html", metavar="FILE", help="write it as a page with plots")
    add_model_arguments(parser)
    add("--seed", type=seed, default=0, metavar="S", help="of the prompts; default: 0")
    add("--steps", type=size, metavar="N", help="optimizer steps; default: 3, large models none")
    add("--tokens", type=size, default=16, metavar="N", help="greedy tokens; default: 16")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Examine, print the table, write the files; exits 1 where the frameworks differ."""
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
    beside = reference(args.against, checkpoint.cfg, flat, args.source)
    report = compare_implementations(
        args.source,
        checkpoint.cfg,
        checkpoint.params,
        beside,
        seed=args.seed,
        end_of_text=checkpoint.tokens.eos_token_id,
        steps=args.steps,
        new_tokens=args.tokens,
    )
    with ExitStack() as last:  # nothing of the work is lost: each is done even if another fails
        for name, render in reversed(formats):
            if name is not None:
                last.callback(report_files.write, name, partial(render, report))
        last.callback(_print, reports.as_text(report))
    if not report.equal:
        raise SystemExit(1)


def _print(text: str) -> None:
    """Print a report; the exit code has the verdict even where nobody reads to the end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
