"""Commands that other commands print at the end, for pasting into a shell."""

import shlex
from pathlib import Path

from obscura_jax.config import GPTConfig

_PROMPTS = ("The", "A")  # every byte-level tokenizer has a token for the second one


def generate_command(folder: Path, cfg: GPTConfig) -> str:
    """Return an `obscura generate` command that works for the model in `folder`.

    Its prompt is text that leaves room in the context, or a token id if no tokenizer of the model
    can be read here.
    """
    from obscura_jax.interop.model_tokenizer import load_tokenizer

    words = ["obscura", "generate", "--model", str(folder)]
    try:
        tokenizer = load_tokenizer(folder, cfg)
        texts = [x for x in _PROMPTS if 0 < len(tokenizer.encode(x)) < cfg.context_length]
    except ValueError:
        texts = []
    words += texts[:1] or ["--ids", "0"]
    if cfg.context_length == 1:
        words.append("--sliding")
    return shlex.join(words)
