"""Any tokenizer through `encode` and `decode` alone: prompts to ids, and ids to text as they come.

tiktoken's encodings, this package's word tokenizers, `tokenizers.Tokenizer` and the tokenizers of
transformers all work. So does any object with these two methods, if the text of some ids is the
beginning of the text of these ids and more, except for U+FFFD at its end: an incomplete character.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from obscura_jax.text.encoding import encode_text, guarded

REPLACEMENT = "\ufffd"


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of `text`; a special token in it, such as `<|endoftext|>`, is that one id."""
    if hasattr(tokenizer, "encode_ordinary"):  # tiktoken's, which refuses special tokens by default
        return encode_text(tokenizer, text)
    ids: Any = guarded(tokenizer.encode, text)
    return list(getattr(ids, "ids", ids))  # tokenizers.Tokenizer returns them in an object


def single_token(tokenizer: Any, text: str) -> int:
    """Return the id of `text`; ValueError unless the text is exactly one token."""
    ids = token_ids(tokenizer, text)
    if len(ids) != 1:
        raise ValueError(f"{text!r} is {len(ids)} tokens; give the text of exactly one token")
    return int(ids[0])


class IncrementalDecoder:
    """Turn ids into text piece by piece. The pieces add up to `tokenizer.decode` of all ids.

    A character is returned once all of its bytes have arrived. An id that the tokenizer lacks
    becomes U+FFFD; the ids before and after it are decoded separately.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Decode ids of `tokenizer`."""
        self._tokenizer = tokenizer
        self._start()

    def _start(self) -> None:
        # Word tokenizers put a space between words, so new ids are decoded after a few old ones.
        self._context: list[int] = []
        self._new: list[int] = []
        self._given = ""  # the part of the text of both that was returned

    def feed(self, ids: Iterable[int]) -> str:
        """Take more ids; return the text that no later id can change."""
        pieces = []
        for token in map(int, ids):  # NumPy's are not numbers for transformers
            if self._knows(token):
                self._new.append(token)
            else:
                pieces.append(self.finish() + REPLACEMENT)
        return "".join([*pieces, self._certain()])

    def finish(self) -> str:
        """Return the rest of the text after the last id."""
        rest = self._text()[len(self._given) :]
        self._start()
        return rest

    def _certain(self) -> str:
        text = self._text()
        certain = text.rstrip(REPLACEMENT)
        piece, self._given = certain[len(self._given) :], max(certain, self._given, key=len)
        if certain == text and self._new and (alone := self._tokenizer.decode(self._new)):
            self._context, self._new, self._given = self._new, [], alone
        return piece

    def _text(self) -> str:
        ids = self._context + self._new
        return str(self._tokenizer.decode(ids)) if ids else ""

    def _knows(self, token: int) -> bool:
        try:
            for name in ("id_to_token", "convert_ids_to_tokens"):  # these decode unknown ids to ""
                if hasattr(self._tokenizer, name):
                    return getattr(self._tokenizer, name)(token) is not None
            self._tokenizer.decode([token])
        except (LookupError, ValueError, OverflowError):
            return False
        return True
