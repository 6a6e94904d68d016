"""Encode text of any length, and cut it only where no token is cut.

GPT-2's regular expression first splits a text into words: a contraction (`'s`), or a run of
letters, of digits or of other characters, each with at most one space before it, or a run of white
space without its last character if a word follows. Pairs of bytes are merged only inside a word. A
word does not depend on the text before it, and on the text after it only by its next character.
Therefore:

- A text may be cut where white space follows another character, since every word ends there.
- It may be cut before the last character of a run of white space.
- Inside a word it may be cut between two tokens: no merge crosses the cut, so each side has the
  merges of the word. The tokens near the end of an incomplete word depend on what follows.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, Literal, cast

from obscura_jax.text.tokenizers import Tokenizer

if TYPE_CHECKING:
    import tiktoken

# `\s` of tiktoken, which lacks four characters that Python takes for white space, \x1c to \x1f.
_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
_SPACES = re.compile(f"[{_SPACE}]*")
_CONTRACTION = re.compile(rb"'(?:[sdmt]|ll|ve|re)")
_UNSETTLED = 2000  # ids at the end of an incomplete word
_LONG = 100_000  # characters; tiktoken's regular expression panics near 1,000,000 of white space


def encode_text(
    tokenizer: Tokenizer, text: str, allowed_special: Literal["all"] | Collection[str] = "all"
) -> list[int]:
    """Return the ids of `text`; special tokens in it that are allowed become one id each.

    The ids are those of `tokenizer.encode`. tiktoken panics on a million characters of white space
    before a word; the ids are then those that GPT-2's regular expression defines.

    Args:
        tokenizer: `gpt2_tokenizer()` or any other; `allowed_special` goes to one that takes it.
        text: the text. tiktoken reads a lone surrogate as U+FFFD.
        allowed_special: the special tokens that may occur; "all" is every one of the tokenizer.

    Raises:
        ValueError: for a special token that is not allowed, or text that the tokenizer refuses.
    """
    if "allowed_special" not in inspect.signature(tokenizer.encode).parameters:
        return guarded(tokenizer.encode, text)
    bpe = cast(Any, tokenizer)
    allowed = bpe.special_tokens_set if allowed_special == "all" else set(allowed_special)

    def encode(part: str) -> list[int]:
        return cast("list[int]", bpe.encode(part, allowed_special=allowed))

    return [i for part in _parts(tokenizer, text, allowed) for i in guarded(encode, part)]


def encode_ordinary(tokenizer: tiktoken.Encoding, text: str) -> list[int]:
    """Return the ids of `text` as `encode_text` does; no characters in it are a special token."""
    parts = _parts(tokenizer, text, ())
    return [i for part in parts for i in guarded(tokenizer.encode_ordinary, part)]


def encode_beginning(tokenizer: tiktoken.Encoding, text: str) -> tuple[list[int], str]:
    """Return the first ids of a text that continues after `text`, and the characters they spell.

    `text` is cut at its last white space that follows another character. If it has none, its last
    ids are left out, since they may depend on what follows: 2000 of them, or half if there are
    fewer than 4000. Only a merge of lower rank can take the right part of a merge away, and no
    chain of such merges in GPT-2's table is longer than 258 (`tests/test_encoding.py`).
    """
    if cut := _last_cut(text):
        return encode_ordinary(tokenizer, text[:cut]), text[:cut]
    ids, data = encode_ordinary(tokenizer, text), text.encode()
    count = len(ids) - min(_UNSETTLED, len(ids) // 2)
    size = len(tokenizer.decode_bytes(ids[:count]))
    while count and not _may_cut(data, size):
        count -= 1
        size -= len(tokenizer.decode_single_token_bytes(ids[count]))
    return (ids[:count], data[:size].decode()) if count else (ids, text)


def _parts(tokenizer: Tokenizer, text: str, special: Collection[str]) -> Iterator[str]:
    """Cut `text` inside every long run of white space that tiktoken could not encode."""
    begin = at = 0
    if len(text) > _LONG and _is_gpt2(tokenizer):
        while (at := at + _LONG) < len(text):  # every run of that length is met
            end = cast("re.Match[str]", _SPACES.match(text, at)).end()
            if at < end < len(text) and not text.startswith(tuple(special), end):
                yield text[begin : end - 1]
                begin = end - 1
            at = max(at, end - 1)
    yield text[begin:]


def _is_gpt2(tokenizer: Tokenizer) -> bool:
    from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

    return getattr(tokenizer, "_pat_str", None) == r50k_pat_str


def _last_cut(text: str) -> int:
    """Return the last index at which common white space follows another character, or 0."""
    last = max(text.rfind(space) for space in " \n\r\t")
    return len(text[: last + 1].rstrip(_SPACE))


def _may_cut(data: bytes, at: int) -> bool:
    """Return whether a character begins at byte `at` and no contraction is cut or formed there."""
    if data[at] & 0xC0 == 0x80:
        return False
    before = [_CONTRACTION.match(data, max(at - back, 0)) for back in (1, 2)]
    if any(found and found.end() > at for found in before):
        return False
    # `!'s` is `!'` and `s`; only after a letter or digit is the apostrophe a word's first character
    return data[at - 1 : at].isalnum() or not _CONTRACTION.match(data, at)


def guarded(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """Return `encode(text)`; turn an error of native code, such as a panic, into a ValueError."""
    try:
        return encode(text)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if isinstance(error, Exception) and type(error) is not Exception:
            raise
        raise ValueError(f"the tokenizer cannot encode this text: {error}") from error
