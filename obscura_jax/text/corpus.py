"""Tokenize text files into one file of token ids, piece by piece, for texts larger than memory."""

from __future__ import annotations

import codecs
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from obscura_jax.text.encoding import encode_beginning, encode_ordinary
from obscura_jax.text.token_journal import TOKEN_DTYPE, Journal, read_journal
from obscura_jax.text.tokenizers import LEAST_TOKENS, tokenizer_for

if TYPE_CHECKING:
    import tiktoken

_PIECE = 1 << 20  # bytes of text in memory


def tokenize_to_file(
    texts: Sequence[str | Path] | BinaryIO,
    path: str | Path,
    *,
    vocab_size: int = 50257,
    progress: Callable[[int, int], object] | None = None,
) -> int:
    """Write the GPT-2 tokens of texts, each followed by `<|endoftext|>`, as 16-bit numbers.

    At most 1 MiB of text is in memory. Text is cut before white space, so the pieces tokenize
    exactly like the full text; `encode_beginning` cuts 1 MiB without white space. Progress is saved
    to `path` + ".json" after each piece, and a call after a crash resumes there. The cuts depend on
    the text only, so the file is the same.

    Args:
        texts: UTF-8 files, or one stream.
        path: file to write.
        vocab_size: as in `tokenizer_for`, at least 257.
        progress: called with the number of bytes done and the total (0 for a stream).

    Returns:
        The number of tokens.

    Raises:
        FileNotFoundError: if a text does not exist.
        ValueError: if a text is not a file, cannot be read, is empty, is not UTF-8 (the message
            gives the position of the first wrong byte), or changes while it is read; if `path` was
            begun with other texts, or its journal is damaged; if the vocabulary is too small.
        OSError: if `path` cannot be written.
    """
    if vocab_size < LEAST_TOKENS:
        raise ValueError(
            f"text needs a vocabulary of at least {LEAST_TOKENS} tokens, got {vocab_size}; "
            "raise --vocab-size, or pass files of token ids with --data"
        )
    path, tokenizer = Path(path), tokenizer_for(vocab_size)
    names = [str(text) for text in texts] if isinstance(texts, Sequence) else []
    fresh = Journal([[name, *_size_and_time(name)] for name in names], vocab_size)
    at = (read_journal(path) if names else None) or fresh
    if (at.texts, at.vocab_size) != (fresh.texts, vocab_size):
        raise ValueError(
            f"{path} was begun with other texts or another vocabulary, or a text has changed; "
            "start again in a new folder"
        )
    sizes = [cast(int, size) for _, size, _ in at.texts]
    with open(path, "r+b" if path.exists() else "w+b", buffering=0) as file:
        file.truncate(at.tokens * TOKEN_DTYPE.itemsize)
        file.seek(0, os.SEEK_END)

        def put(ids: list[int]) -> None:
            with _naming(path):
                data = memoryview(np.array(ids, TOKEN_DTYPE).tobytes())
                while data:
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
                at.tokens += len(ids)
                at.write(path)

        while at.text < max(len(names), 1) and not at.done:
            name = names[at.text] if names else "standard input"
            with _open(name) if names else contextlib.nullcontext(cast(BinaryIO, texts)) as text:
                for ids, offset in _pieces(text, name, at.offset, tokenizer):
                    at.offset = offset
                    put(ids)
                    if progress:
                        progress(sum(sizes[: at.text]) + at.offset, sum(sizes))
            if names and [name, *_size_and_time(name)] != [name, at.offset, at.texts[at.text][2]]:
                raise ValueError(f"{name} changed while it was read; start again in a new folder")
            at.text, at.offset = at.text + 1, 0
            put([tokenizer.eot_token])
        at.done = True
        put([])
    return at.tokens


def finished_token_count(path: str | Path) -> int | None:
    """Return the number of tokens that `tokenize_to_file` wrote to `path`, or None if unfinished.

    Raises:
        ValueError: if its journal is damaged, or `path` has another number of tokens.
    """
    journal = read_journal(Path(path))
    return journal.tokens if journal and journal.done else None


def train_token_count(count: int, fraction: float, window: int) -> int:
    """Return the number of tokens for training: `count` without the last `fraction`.

    The validation part has at least `window` + 1 tokens.

    Raises:
        ValueError: if the training part would have fewer tokens than that.
    """
    at = count - max(int(count * fraction), window + 1)
    if at < window + 1:
        raise ValueError(
            f"the text has {count} tokens, but training and validation need {window + 1} each; "
            "use more text or a smaller context length"
        )
    return at


def _size_and_time(name: str) -> tuple[int, int]:
    """Return the size in bytes and the time of the last change in nanoseconds."""
    path = Path(name)
    with _readable(name):
        if not path.exists():
            raise FileNotFoundError(f"no text at {name!r}; check the path")
        if path.is_dir():
            raise ValueError(f"{name} is a folder; name the text files in it")
        if not path.is_file():
            raise ValueError(f"{name} is not a file; send its text to standard input instead")
        return path.stat().st_size, path.stat().st_mtime_ns


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Context manager: turn an OSError into a ValueError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror or error}") from error


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Context manager: add `path` to the message of an OSError."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be written: {error.strerror}") from error


def _open(name: str) -> BinaryIO:
    with _readable(name):
        return open(name, "rb")


def _pieces(
    stream: BinaryIO, name: str, offset: int, tokenizer: tiktoken.Encoding
) -> Iterator[tuple[list[int], int]]:
    """Yield the ids of one piece after another, and the byte at which each piece ends.

    A piece depends only on the bytes after the previous one.
    """
    data = b""
    if offset:
        with _readable(name):
            stream.seek(offset)
    else:
        data = _fill(stream, name, b"", len(codecs.BOM_UTF8))
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError(f"{name} is UTF-16 or UTF-32 text; convert it to UTF-8")
        if data == codecs.BOM_UTF8:
            offset, data = len(data), _fill(stream, name, b"", 1)
        if not data:
            raise ValueError(f"{name} is empty; a text needs at least one character")
    while data := _fill(stream, name, data, _PIECE):
        last = len(data) < _PIECE
        text = _decoded(data, name, offset, last)
        if last:
            ids = encode_ordinary(tokenizer, text)
        else:
            ids, text = encode_beginning(tokenizer, text)
        size = len(text.encode())
        data, offset = data[size:], offset + size
        yield ids, offset


def _fill(stream: BinaryIO, name: str, data: bytes, size: int) -> bytes:
    """Read until `data` has `size` bytes; fewer only at the end of the stream."""
    with _readable(name):
        while len(data) < size and (more := stream.read(size - len(data))):
            data += more
    return data


def _decoded(data: bytes, name: str, offset: int, last: bool) -> str:
    """Decode the complete characters of `data`, which begins at byte `offset` of the text."""
    text, wrong = "", data.find(0)
    try:
        text, _ = codecs.utf_8_decode(data, "strict", last)
    except UnicodeDecodeError as error:
        wrong = error.start if wrong < 0 else min(wrong, error.start)
    if wrong >= 0:
        raise ValueError(
            f"{name} is not UTF-8 text: byte {offset + wrong} is {data[wrong]:#04x}; "
            "convert it to UTF-8, or pass token ids with --data"
        )
    return text
