"""Argparse types that check command-line arguments."""

import argparse
import os

from obscura_jax.config import check_size


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
