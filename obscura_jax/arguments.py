"""Argparse types that check command-line arguments, and arguments that several commands share."""

import argparse
import os
from collections.abc import Iterable

from obscura_jax.checks import check_size


def size(text: str) -> int:
    """Parse an integer of at least 1."""
    try:
        value: int | str = int(text)
    except ValueError:
        value = text
    try:
        return check_size("it", value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("it ")) from None


def seed(text: str) -> int:
    """Parse an integer from 0 to 2147483647 (31 bits)."""
    try:
        return check_size("it", int(text), least=0)
    except ValueError:
        raise argparse.ArgumentTypeError("must be a whole number from 0 to 2147483647") from None


def utf8(word: str) -> str:
    """Decode a command-line argument as UTF-8, regardless of the locale.

    Python decodes arguments with the locale's encoding and keeps other bytes as surrogates.
    """
    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeError:
        raise argparse.ArgumentTypeError("is not UTF-8 text") from None


def add_model_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare what a model's file may leave open: its heads, and the entry that is the model."""
    parser.add_argument(
        "--n-heads", type=size, metavar="H", help="number of heads, if the model does not state it"
    )
    parser.add_argument(
        "--entry", metavar="NAME", help="which entry of a file is the model, such as ema"
    )


def refuse_for_exported(args: argparse.Namespace, source: str, names: Iterable[str]) -> None:
    """Raise ValueError if an argument was given that has no effect on an exported model."""
    for name in names:
        if getattr(args, name):
            option = name.replace("_", "-")
            raise ValueError(f"{source} is exported: --{option} has no effect on it")
