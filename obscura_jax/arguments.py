"""Argparse types that check command-line arguments, and arguments that several commands share."""

import argparse
import os
from collections.abc import Callable, Iterable
from typing import Any

from obscura_jax.checks import check_size

MODEL_HELP = "folder, file, tiny, gpt2 (-medium, -large, -xl) or torch-seed:N[:PRESET]"


def positive_int(text: str) -> int:
    """Parse an integer of at least 1."""
    return _int(text, least=1)


def nonnegative_int(text: str) -> int:
    """Parse an integer of at least 0."""
    return _int(text, least=0)


def _int(text: str, least: int) -> int:
    try:
        value: int | str = int(text)
    except ValueError:
        value = text
    try:
        return check_size("it", value, least)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("it ")) from None


def seed_value(text: str) -> int:
    """Parse a random seed: an integer from 0 to 2147483647 (31 bits)."""
    try:
        return check_size("it", int(text), least=0)
    except ValueError:
        raise argparse.ArgumentTypeError("must be a whole number from 0 to 2147483647") from None


def port(text: str) -> int:
    """Parse a port: an integer from 0 (any free port) to 65535."""
    number = nonnegative_int(text)
    if number > 65535:
        raise argparse.ArgumentTypeError("must be a whole number from 0 to 65535")
    return number


def utf8(word: str) -> str:
    """Decode a command-line argument as UTF-8, regardless of the locale.

    Python decodes arguments with the locale's encoding and keeps other bytes as surrogates.
    """
    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeError:
        raise argparse.ArgumentTypeError("is not UTF-8 text") from None


def option_name(name: str) -> str:
    """Return the option for a setting or attribute, such as --batch-size for batch_size."""
    return "--" + name.replace("_", "-")


def add_option(
    parser: argparse._ActionsContainer,
    name: str,
    help: str,
    metavar: str | None = None,
    type: Callable[[str], Any] | None = None,
    *,
    default: Any = None,
    **more: Any,
) -> argparse.Action:
    """Add an option, with its default appended to the help, and return the argparse action."""
    if default is not None:
        help = f"{help}; default: {default}"
    given = {"metavar": metavar, "type": type, "default": default}
    more |= {name: value for name, value in given.items() if value is not None}
    return parser.add_argument(name, help=help, **more)


def add_hidden_alias(
    parser: argparse._ActionsContainer, old_name: str, action: argparse.Action
) -> None:
    """Let `old_name`, an earlier spelling of an option, work without being shown in the help."""
    parser.add_argument(
        old_name,
        dest=action.dest,
        type=action.type or str,
        choices=action.choices,
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )


def add_model_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare options for what a model's file may leave open: its heads and its entry."""
    heads = "number of attention heads, if the model's files do not give it"
    add_option(parser, "--n-heads", heads, "H", positive_int)
    entry = "entry of the file that contains the model's weights, such as ema"
    add_option(parser, "--entry", entry, "NAME")


def refuse_for_exported(args: argparse.Namespace, source: str, names: Iterable[str]) -> None:
    """Raise ValueError if one of the named options was given: they need the model's weights."""
    for name in names:
        if getattr(args, name):
            raise ValueError(f"{source} is an exported model; leave out {option_name(name)}")
