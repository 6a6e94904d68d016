"""What the words of a command may be, as argparse types."""

import argparse

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
