"""The text and the bytes of single tokens, each of which a page shows by itself."""

from dataclasses import dataclass
from typing import Any

from obscura_jax.text.any_tokenizer import REPLACEMENT


@dataclass(frozen=True)
class TokenText:
    """The tokens of a tokenizer, one by one.

    Attributes:
        tokenizer: an object with `decode`.
    """

    tokenizer: Any

    def text(self, token: int) -> str:
        """Return the text of a token; bytes that are no complete character become U+FFFD."""
        try:
            return str(self.tokenizer.decode([token]))
        except (LookupError, ValueError, OverflowError):
            return REPLACEMENT

    def hex_bytes(self, token: int) -> str | None:
        """Return the bytes of a token, such as "54 68 65", or None if they are unknown.

        They are known for tiktoken's encodings, and for text without U+FFFD.
        """
        inner = getattr(self.tokenizer, "inner", self.tokenizer)
        if hasattr(inner, "decode_single_token_bytes"):
            try:
                return bytes(inner.decode_single_token_bytes(token)).hex(" ")
            except (LookupError, ValueError, OverflowError):
                return None
        text = self.text(token)
        return None if REPLACEMENT in text else text.encode().hex(" ")
