"""Bits per byte of a model on the text that `tools/tiny_text.py` held out, beside xz's.

    python tools/tiny_score.py MODEL DIR

The model reads DIR/held_out.txt after `<|endoftext|>`, in windows of its context length that move
on by half of it: a token has at least half a context before it, or all there is. For xz (the lzma
module at preset 9, as `xz -9`; the binary is not needed) it is by how much that text lengthens the
compressed DIR/train.txt.
"""

import argparse
import lzma
import math
import sys
from pathlib import Path
from typing import Any

from obscura_jax.decoding.score import score
from obscura_jax.nn.model import GPTModel
from obscura_jax.text.encoding import encode_ordinary
from obscura_jax.text.tokenizers import gpt2_tokenizer

_ROWS = 8  # windows in a batch


def model_bits(model: GPTModel, params: Any, text: str) -> float:
    """How many bits the model needs for a byte of `text`."""
    if model.cfg.context_length < 2:
        raise ValueError("a model with a context of one token predicts nothing in a window")
    tokenizer = gpt2_tokenizer(model.cfg.vocab_size)
    ids = [tokenizer.eot_token, *encode_ordinary(tokenizer, text)]
    windows = _windows(len(ids), model.cfg.context_length)
    nats = 0.0
    for at in range(0, len(windows), _ROWS):
        some = windows[at : at + _ROWS]
        found = score(model, params, [ids[start:stop] for start, _, stop in some])
        for (_, new, stop), row in zip(some, found.logprobs, strict=True):
            nats -= sum(row[len(row) - (stop - new) :])
    return nats / math.log(2) / len(text.encode())


def _windows(count: int, length: int) -> list[tuple[int, int, int]]:
    """(start, new, stop): ids new to stop, every one but the first once, are scored after start."""
    windows = []
    new, stop = 1, min(count, length)
    while new < stop:
        windows.append((max(0, stop - length), new, stop))
        new, stop = stop, min(count, stop + max(length // 2, 1))
    return windows


def xz_bits(train: str, text: str) -> float:
    """How many bits `xz -9` needs for a byte of `text` where it follows `train`."""
    before, after = (len(lzma.compress(each.encode(), preset=9)) for each in (train, train + text))
    return 8 * (after - before) / len(text.encode())


def main() -> None:
    """Print both figures."""
    from obscura_jax.interop.files import load_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL", help="a model's folder")
    parser.add_argument("folder", type=Path, metavar="DIR", help="what tools/tiny_text.py wrote")
    args = parser.parse_args()
    try:
        train, text = (
            (args.folder / name).read_text(encoding="utf-8")
            for name in ("train.txt", "held_out.txt")
        )
        model, params = load_model(args.model)
        bits = model_bits(model, params, text)
    except (ValueError, OSError) as error:
        print(f"tiny_score: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{args.model}: {bits:.3f} bits per byte of {len(text.encode())} held out")
    print(f"xz -9: {xz_bits(train, text):.3f}, where they follow the training text")


if __name__ == "__main__":
    main()
