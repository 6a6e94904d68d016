"""What the words of a command may be, as argparse types."""

import argparse
import os

from obscura_jax.config import check_size


def size(text: str) -> int:
    """A whole number of at least 1."""
    try:
        value: int | str = int(text)
    except ValueError:
        value = text
    try:
        return check_size("it", value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("it ")) from None


def seed(text: str) -> int:
    """A whole number of 31 bits."""
    try:
        return check_size("it", int(text), least=0)
    except ValueError:
        raise argparse.ArgumentTypeError("must be a whole number from 0 to 2147483647") from None


def utf8(word: str) -> str:
    """Read text of the command line as UTF-8, whatever the locale says.

    Python decodes arguments by the locale and keeps other bytes as surrogates.
    """
    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeError:
        raise argparse.ArgumentTypeError("is not UTF-8 text") from None
