"""From text to token ids to batches. Everything in this folder needs NumPy only, never JAX."""

import importlib.resources

from obscura_jax.text.dataset import Batch, GPTDatasetV1
from obscura_jax.text.loader import BatchIterator, DataLoader, create_dataloader_v1
from obscura_jax.text.tokenizers import (
    END_OF_TEXT,
    UNKNOWN,
    SimpleTokenizerV1,
    SimpleTokenizerV2,
    Tokenizer,
    build_vocab,
    gpt2_tokenizer,
    split_on_comma_and_period,
    split_on_whitespace,
    split_text,
    split_trimmed,
)

__all__ = [
    "END_OF_TEXT",
    "UNKNOWN",
    "Batch",
    "BatchIterator",
    "DataLoader",
    "GPTDatasetV1",
    "SimpleTokenizerV1",
    "SimpleTokenizerV2",
    "Tokenizer",
    "build_vocab",
    "create_dataloader_v1",
    "gpt2_tokenizer",
    "sample_text",
    "split_on_comma_and_period",
    "split_on_whitespace",
    "split_text",
    "split_trimmed",
]


def sample_text() -> str:
    """Return the text that comes with the package, about the paper "Attention Is All You Need"."""
    return importlib.resources.files(__name__).joinpath("sample_data.txt").read_text("utf-8")
