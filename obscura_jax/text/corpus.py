"""Text files to one file of token ids, a piece at a time: a text may be larger than memory."""

import codecs
import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from obscura_jax.text.tokenizers import gpt2_tokenizer

_PIECE = 1 << 22  # bytes read at once
IDS = np.dtype("<u2")  # as nanoGPT's files have them; no vocabulary here is larger


def write_tokens(
    texts: Sequence[str | Path] | BinaryIO,
    path: str | Path,
    *,
    vocab_size: int = 50257,
    progress: Callable[[int, int], object] | None = None,
) -> int:
    """Write the GPT-2 tokens of texts, each followed by `<|endoftext|>`, as 16-bit numbers.

    Cut where white space begins, pieces have the tokens of the whole. How far it came is noted in
    `path` + ".json" after each piece: called again after a kill, it goes on there.

    Args:
        texts: UTF-8 files, or one stream.
        path: the file to write.
        vocab_size: as in `gpt2_tokenizer`.
        progress: called with the bytes done and the bytes to do (0 for a stream).

    Returns:
        The number of tokens.

    Raises:
        FileNotFoundError: for a text that is not there.
        ValueError: for one that is empty or not UTF-8 text; the position of the first wrong byte is
            named. Or when other texts were begun with.
    """
    path, tokenizer = Path(path), gpt2_tokenizer(vocab_size)
    names = [str(text) for text in texts] if isinstance(texts, Sequence) else []
    sizes = [_size(name) for name in names]
    journal = _journal(path)
    fresh: dict[str, Any] = {
        "texts": [list(pair) for pair in zip(names, sizes, strict=True)],
        "vocab_size": vocab_size,
        "text": 0,
        "offset": 0,
        "tokens": 0,
        "done": False,
    }
    at = fresh
    if journal.exists() and names:
        at = json.loads(journal.read_text(encoding="utf-8"))
        if any(at[field] != fresh[field] for field in ("texts", "vocab_size")):
            raise ValueError(f"{path} was begun with other texts or another vocabulary")
    with open(path, "r+b" if path.exists() else "w+b") as file:
        file.truncate(at["tokens"] * IDS.itemsize)
        file.seek(0, os.SEEK_END)

        def put(ids: list[int], **now: Any) -> None:
            np.array(ids, IDS).tofile(file)
            file.flush()
            at.update(now, tokens=at["tokens"] + len(ids))
            _replace(journal, json.dumps(at))

        streams = range(at["text"], max(len(names), 1)) if not at["done"] else ()
        for number in streams:
            name = names[number] if names else "standard input"
            given = cast(BinaryIO, texts)
            with open(name, "rb") if names else contextlib.nullcontext(given) as stream:
                for text, offset in _pieces(stream, name, at["offset"]):
                    put(tokenizer.encode_ordinary(text), offset=offset)
                    if progress:
                        progress(sum(sizes[:number]) + offset, sum(sizes))
            put([tokenizer.eot_token], text=number + 1, offset=0)
        put([], done=True)
    return int(at["tokens"])


def tokens_written(path: str | Path) -> int | None:
    """How many tokens `write_tokens` has written to `path`, or None when it has not finished."""
    journal = _journal(Path(path))
    if not journal.exists():
        return None
    at = json.loads(journal.read_text(encoding="utf-8"))
    return int(at["tokens"]) if at["done"] else None


def split_point(count: int, fraction: float, window: int) -> int:
    """Of `count` tokens, how many come before the last `fraction` of them, which are held out.

    Raises:
        ValueError: when one part is shorter than a window and the token after it.
    """
    at = count - max(int(count * fraction), window + 1)
    if at < window + 1:
        raise ValueError(
            f"the text has {count} tokens: training and validation need a window of {window} "
            "and one more each; give more text or a smaller context length"
        )
    return at


def _journal(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _size(name: str) -> int:
    path = Path(name)
    if not path.exists():
        raise FileNotFoundError(f"no text at {name!r}")
    if not path.is_file():
        raise ValueError(f"{name} is not a file")
    return path.stat().st_size


def _pieces(stream: BinaryIO, name: str, start: int) -> Iterator[tuple[str, int]]:
    """Pieces of a text from byte `start` on, each with the byte at which it ends."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    if start:
        stream.seek(start)
    text, begin, read, blank = "", start, start, start == 0
    while True:
        data = stream.read(_PIECE)
        undecoded = len(decoder.getstate()[0])
        try:
            text += decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name} is not UTF-8 text: byte {read - undecoded + error.start} is "
                f"{error.object[error.start]:#04x}"
            ) from None
        read += len(data)
        if (zero := text.find("\0")) >= 0:
            raise ValueError(
                f"{name} is not text: byte {begin + len(text[:zero].encode())} is a zero"
            )
        blank = blank and not text.removeprefix("\ufeff").strip()
        cut = _cut(text) if data else len(text)
        if cut and not blank:
            piece, text = text[:cut], text[cut:]
            first, begin = begin == 0, begin + len(piece.encode())
            yield piece.removeprefix("\ufeff") if first else piece, begin
        if not data:
            break
    if blank:
        raise ValueError(f"{name} is empty")


def _cut(text: str) -> int:
    """The last place where white space follows something else: no token lies across it."""
    for i in range(len(text) - 1, 0, -1):
        if text[i] in " \n\r\t" and not text[i - 1].isspace():
            return i
    return 0


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
