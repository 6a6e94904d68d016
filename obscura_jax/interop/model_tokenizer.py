"""The tokenizer of a model: its folder's own, GPT-2's, or plain token ids."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obscura_jax.config import GPTConfig
from obscura_jax.interop.locate import WEIGHT_FILES, is_exported, resolve_weights
from obscura_jax.interop.read_weights import read_weights
from obscura_jax.interop.tokenizer_files import FolderTokenizer, read_tokenizer
from obscura_jax.interop.tokens import NO_TOKENS, TokenRecord, tokens_at
from obscura_jax.text.any_tokenizer import IncrementalDecoder, token_ids
from obscura_jax.text.tokenizers import (
    END_OF_TEXT,
    GPT2_TOKENS,
    LEAST_TOKENS,
    gpt2_tokenizer,
    has_gpt2_size,
)


@dataclass(frozen=True)
class ModelTokenizer:
    """A tokenizer for the ids of a model.

    Attributes:
        name: a description of it, for `obscura info`.
        inner: the wrapped tokenizer, with `encode` and `decode`.
        eos_token_id: the id that ends a text, if it is known.
        notice: a line for the user if the tokenizer is a guess, else empty.
    """

    name: str
    inner: Any
    eos_token_id: int | None = None
    notice: str = ""

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; a special token in it becomes one id."""
        return token_ids(self.inner, text)

    def decode(self, ids: Sequence[int], /) -> str:
        """Return the text of `ids`; an unknown one becomes U+FFFD."""
        text = IncrementalDecoder(self.inner)
        return text.feed(ids) + text.finish()


class IdTokenizer:
    """Token ids written as numbers, for models without a tokenizer: "1 2 3" is [1, 2, 3]."""

    def encode(self, text: str) -> list[int]:
        """Return the numbers in `text`; ValueError if it is empty or has anything else."""
        words = re.split(r"[\s,]+", text.strip())
        if not all(re.fullmatch("[0-9]{1,10}", word) for word in words):
            raise ValueError(
                f"{text[:40]!r} is not a list of token ids; give numbers, such as '1 2'"
            )
        return [int(word) for word in words]

    def decode(self, ids: Sequence[int], /) -> str:
        """Return the numbers, each after a space."""
        return "".join(f" {token}" for token in ids)


def load_tokenizer(
    source: str | Path, cfg: GPTConfig, *, entry: str | None = None
) -> ModelTokenizer:
    """Read the tokenizer of the model at `source`.

    The folder's own `tokenizer.json`, or `vocab.json` and `merges.txt`, comes first, then the
    tokenizer that this package recorded. Without either, a model with GPT-2's number of tokens,
    padded or not, is assumed to use GPT-2's; so is a model with fewer tokens, with a notice.

    Args:
        source: as in `load_model`, or the folder of an exported model.
        cfg: the model's config.
        entry: as in `load_model`.

    Returns:
        An object with `encode` and `decode`, which `stream_text` and `score` accept.

    Raises:
        FileNotFoundError: if there is nothing at `source`.
        ValueError: if the model has no tokenizer and cannot have GPT-2's, if the files of its
            tokenizer are damaged or belong to another model, or if the extra `tokenizers` is
            missing.
    """
    return tokenizer_of(_record(source, entry), cfg, source)


def _record(source: str | Path, entry: str | None) -> TokenRecord:
    if str(source).startswith("torch-seed:"):
        return NO_TOKENS
    if is_exported(source):
        return tokens_at(Path(source))
    path = resolve_weights(source)
    if path.name in WEIGHT_FILES:
        return tokens_at(path.parent)
    return read_weights(path, entry).tokens


def tokenizer_of(record: TokenRecord, cfg: GPTConfig, source: str | Path) -> ModelTokenizer:
    """Return the tokenizer of a model with this record; see `load_tokenizer`."""
    size, end = cfg.vocab_size, record.eos_token_id
    folder = next(iter(record.files.values())).parent if record.files else None
    if folder is not None and (found := read_tokenizer(folder)):
        return _of_folder(folder, *found, size, end)
    count, why, notice = min(size, GPT2_TOKENS), "", ""
    if record.tokenizer is None and has_gpt2_size(size):
        why = f", assumed for a model of {size} tokens"
    elif record.tokenizer is None:
        opaque = _has_pickled_characters(source)
        if opaque or not LEAST_TOKENS <= size < GPT2_TOKENS:
            pickled = " (meta.pkl is a pickle, which is not opened)" if opaque else ""
            raise ValueError(
                f"{source} has {size} tokens and no tokenizer{pickled}; give token ids (--ids)"
            )
        why = ", assumed: the model has none of its own"
        notice = (
            f"{source} has no tokenizer; assuming GPT-2's first {size - 1} tokens and "
            f"{END_OF_TEXT}, as in models trained by obscura"
        )
    name = "GPT-2's" if count == GPT2_TOKENS else f"GPT-2's first {count - 1} and {END_OF_TEXT}"
    return ModelTokenizer(
        name + why, gpt2_tokenizer(count), count - 1 if end is None else end, notice
    )


def _of_folder(folder: Path, inner: Any, file: str, size: int, end: int | None) -> ModelTokenizer:
    if isinstance(inner, FolderTokenizer):
        largest, name, own = inner.largest_id, f"its own ({file})", inner.end_of_text
    else:
        largest, name, own = inner.n_vocab - 1, f"GPT-2's ({file})", inner.eot_token
    if largest >= size:
        raise ValueError(
            f"{folder / file} has ids up to {largest}, but the model has only {size} tokens; use "
            "the tokenizer of this model"
        )
    return ModelTokenizer(name, inner, own if end is None else end)


def _has_pickled_characters(source: str | Path) -> bool:
    """Return whether nanoGPT's `meta.pkl`, which holds a vocabulary, is next to the model."""
    path = Path(source)
    return ((path if path.is_dir() else path.parent) / "meta.pkl").is_file()
