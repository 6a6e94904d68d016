"""Token ids that are likely to show a difference between two implementations of a GPT."""

import numpy as np
from numpy.typing import NDArray

from obscura_jax.config import GPTConfig

_SHORT = 24


def stress_prompts(
    cfg: GPTConfig, seed: int = 0, end_of_text: int | None = None
) -> dict[str, NDArray[np.int32]]:
    """Return prompts (B, T) by name. They have three shapes, so a model is compiled three times.

    They are the full context, one repeated token, the last 1/16 of the vocabulary (which contains
    rare tokens), an end of text in the middle, random ids, and a batch of 3.

    Args:
        cfg: the model's config.
        seed: seed of the random ids.
        end_of_text: the id that ends a text; default: the last id, as in GPT-2.
    """
    rng = np.random.default_rng(seed)
    vocab, length = cfg.vocab_size, min(_SHORT, cfg.context_length)
    inside = rng.integers(0, vocab, (1, length))
    if end_of_text is None or not 0 <= end_of_text < vocab:
        end_of_text = vocab - 1
    inside[:, length // 2] = end_of_text
    prompts = {
        "random ids": rng.integers(0, vocab, (1, length)),
        "one repeated token": np.full((1, length), rng.integers(vocab)),
        "rare tokens": rng.integers(vocab - max(vocab // 16, 1), vocab, (1, length)),
        "<|endoftext|> inside": inside,
        "batch of 3": rng.integers(0, vocab, (3, length)),
        "full context": rng.integers(0, vocab, (1, cfg.context_length)),
    }
    return {name: ids.astype(np.int32) for name, ids in prompts.items()}
