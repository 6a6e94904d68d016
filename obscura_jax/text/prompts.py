"""Prompts from the words of a command, or from the lines of standard input."""

import io
from collections.abc import Sequence
from typing import Any


def read_prompts(words: Sequence[str], stdin: Any) -> list[str]:
    """Return `words`, or one prompt per line of the text stream `stdin` if there are none.

    Raises:
        ValueError: if there is no prompt, a prompt is empty, or the stream is not UTF-8.
    """
    prompts = list(words) or _lines(stdin)
    if not prompts:
        raise ValueError("no prompt; give one as an argument, or one per line on standard input")
    if "" in prompts:
        where = "" if words else f"line {prompts.index('') + 1} of standard input is blank; "
        raise ValueError(f"{where}a prompt needs at least one character")
    return prompts


def _lines(stdin: Any) -> list[str]:
    """Return the lines without line ends and a byte order mark."""
    if stdin is None:  # the shell closed it
        return []
    if isinstance(stdin, io.TextIOWrapper):  # read its bytes: its encoding is a guess
        try:
            text = stdin.buffer.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"standard input is not UTF-8 text: byte {error.start} is "
                f"{error.object[error.start]:#04x}"
            ) from None
    else:
        text = stdin.read().removeprefix("\ufeff")
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]
