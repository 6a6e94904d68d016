"""`obscura parity`: compare two programs, or PyTorch and JAX on the weights of a model."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from obscura_jax.arguments import (
    MODEL_HELP,
    add_hidden_alias,
    add_model_arguments,
    add_option,
    option_name,
    positive_int,
    seed_value,
)

_OF_REPORTS = ("json", "html")
_OF_PAIRS = ("list", "no_gradients")
_OF_RECORDINGS = ("record", "side")
_OF_MODELS = ("n_heads", "entry", "weights", "seed", "steps", "new_tokens")
_OF_WHOLE_REPORTS = (*_OF_REPORTS, "steps", "new_tokens")
_SEED, _NEW_TOKENS = 0, 16  # defaults; the parser's are None, so that a pair can refuse the options

Format = tuple[str | None, Callable[[Any], str]]  # a file, and the function that makes its text


def add_parser(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = commands.add_parser(
        "parity",
        help="find the first line at which a PyTorch program and its JAX port differ",
        epilog="exit code: 0 if equal, 1 if different, 2 if they cannot be compared (such as a "
        "module that draws random numbers); standard error gives the reason",
    )
    source = (
        "pair.py, a file of yours with the functions torch_side() and jax_side(), each of which "
        f"returns something to call and its inputs; or a model: {MODEL_HELP}"
    )
    parser.add_argument("source", nargs="?", help=source)
    against = (
        "for a pair: FILE.parity, a recording that replaces the side that it records. For a "
        "model, the PyTorch implementation: course, this package's own; hf, transformers; or "
        "FILE.py:CLASS, your torch module, built as CLASS(cfg), with the course's parameter names, "
        "that returns logits; default: course"
    )
    add_option(parser, "--against", against, "WHAT")
    add_option(parser, "--json", "file to write the report to as JSON", "FILE")
    add_option(parser, "--html", "file to write the report to as a page", "FILE")
    example = "Python file to create with an example of a pair; nothing is compared"
    add_option(parser, "--new", example, "FILE.py")

    pair = parser.add_argument_group("for a pair of programs")
    every = "list every operation of both programs with its match, in the report and its files"
    add_option(pair, "--list", every, action="store_true")
    add_option(pair, "--no-gradients", "do not compare gradients", action="store_true")
    record = "file to record one side in, for --against; nothing is compared"
    add_option(pair, "--record", record, "FILE.parity")
    add_option(pair, "--side", "side to record", choices=("torch", "jax"))

    model = parser.add_argument_group("for a model")
    add_model_arguments(model)
    weights = "form of JAX's weights: int8 rounds them, and only logits are compared"
    add_option(model, "--weights", weights, choices=("int8",))
    seed = f"random seed for the prompts; default: {_SEED}"
    add_option(model, "--seed", seed, "S", seed_value)
    steps = "optimizer steps to compare; default: 3, or none for a large model"
    add_option(model, "--steps", steps, "N", positive_int)
    tokens = f"tokens of greedy generation to compare; default: {_NEW_TOKENS}"
    action = add_option(model, "--new-tokens", tokens, "N", positive_int)
    add_hidden_alias(model, "--tokens", action)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compare, print the report and write the files; exit with code 1 if the sides differ."""
    if args.new is not None:
        _write_example(args)
    elif args.source is None:
        raise ValueError(
            "name a pair of programs, such as pair.py, or a model; "
            "`obscura parity --new pair.py` writes an example"
        )
    elif not args.source.endswith(".py") or Path(args.source).is_dir():
        if Path(f"{args.source}.py").is_file() and not Path(args.source).exists():
            raise ValueError(f"there is no model {args.source}; name the file {args.source}.py")
        reason = f"{args.source} is a model, not a pair of programs"
        _refuse(args, (*_OF_PAIRS, *_OF_RECORDINGS), reason)
        _compare_implementations(args)
    else:
        _refuse(args, _OF_MODELS, f"{args.source} is a pair of programs, not a model")
        if args.record is None and args.side is None:
            _compare_pair(args)
        else:
            _record(args)


def _write_example(args: argparse.Namespace) -> None:
    from obscura_jax.parity.pair_template import write_example

    others = ("against", *_OF_REPORTS, *_OF_PAIRS, *_OF_RECORDINGS, *_OF_MODELS)
    _refuse(args, ("source", *others), "--new only writes an example")
    print(write_example(args.new))


def _record(args: argparse.Namespace) -> None:
    from obscura_jax.parity import report_files
    from obscura_jax.parity.pair_runs import record_side

    if args.record is None:
        raise ValueError("--side names the side for --record; add --record FILE, or leave it out")
    if args.side is None:
        raise ValueError("--record writes one side; add --side torch or --side jax")
    _refuse(args, ("against", *_OF_REPORTS, *_OF_PAIRS), "--record compares nothing")
    report_files.check_writable(args.record)
    record_side(args.source, args.side, args.record)
    print(f"obscura parity {args.source} --against {args.record}")


def _compare_pair(args: argparse.Namespace) -> None:
    from obscura_jax.parity import programs_page, report
    from obscura_jax.parity.pair_runs import compare_pair

    formats = ((args.json, report.as_json), (args.html, programs_page.as_html))
    _check(formats)
    found = compare_pair(
        args.source, args.against, gradients=not args.no_gradients, operations=args.list
    )
    if found.exit_code == 2:  # the reason is an error, which the command prints
        _publish(found, None, formats)
        raise ValueError(f"{args.source} cannot be compared: {found.reason}")
    parts = (report.as_list, report.as_text) if args.list else (report.as_text,)
    _publish(found, lambda one: "\n\n".join(part(one) for part in parts), formats)
    if not found.equal:
        raise SystemExit(1)


def _compare_implementations(args: argparse.Namespace) -> None:
    from obscura_jax.interop.checkpoint import read_checkpoint
    from obscura_jax.interop.course_state import named_tensors
    from obscura_jax.parity.gpt import page, report
    from obscura_jax.parity.gpt.lab import compare_implementations
    from obscura_jax.parity.gpt.references import reference

    formats = ((args.json, report.as_json), (args.html, page.as_html))
    _check(formats)
    if args.weights is not None:
        _refuse(args, _OF_WHOLE_REPORTS, "--weights compares only logits")
    checkpoint = read_checkpoint(args.source, n_heads=args.n_heads, entry=args.entry)
    flat = named_tensors(checkpoint.cfg, checkpoint.params)
    against = "course" if args.against is None else args.against
    seed = _SEED if args.seed is None else args.seed
    if args.weights is not None:
        _compare_eight_bits(args.source, checkpoint, against, seed)
        return
    found = compare_implementations(
        args.source,
        checkpoint.cfg,
        checkpoint.params,
        reference(against, checkpoint.cfg, flat, args.source),
        seed=seed,
        end_of_text=checkpoint.tokens.eos_token_id,
        steps=args.steps,
        new_tokens=args.new_tokens or _NEW_TOKENS,
    )
    _publish(found, report.as_text, formats)
    if not found.equal:
        raise SystemExit(1)


def _compare_eight_bits(source: str, checkpoint: Any, against: str, seed: int) -> None:
    from obscura_jax.parity.gpt.eight_bits import compare_eight_bits
    from obscura_jax.parity.gpt.references import reference

    found = compare_eight_bits(
        source,
        checkpoint.cfg,
        checkpoint.params,
        lambda flat: reference(against, checkpoint.cfg, flat, source),
        seed=seed,
        end_of_text=checkpoint.tokens.eos_token_id,
    )
    _print(found.as_text())
    if not found.as_expected:
        raise SystemExit(1)


def _refuse(args: argparse.Namespace, names: Iterable[str], reason: str) -> None:
    """Raise ValueError if one of the named arguments was given."""
    for name in names:
        given = getattr(args, name)
        if given is not None and given is not False:
            raise ValueError(
                f"{reason}; leave out {given if name == 'source' else option_name(name)}"
            )


def _check(formats: Iterable[Format]) -> None:
    """Check before the work that the files can be written."""
    from obscura_jax.parity import report_files

    report_files.check_writable(*(name for name, _ in formats if name is not None))


def _publish(found: Any, as_text: Callable[[Any], str] | None, formats: Iterable[Format]) -> None:
    """Print a report and write its files, each of them even if another one fails."""
    from obscura_jax.parity import report_files

    with ExitStack() as last:
        for name, render in reversed(tuple(formats)):
            if name is not None:
                last.callback(report_files.write, name, partial(render, found))
        if as_text is not None:
            last.callback(_print, as_text(found))


def _print(text: str) -> None:
    """Print a report; a closed pipe does not change the exit code, which gives the verdict."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
