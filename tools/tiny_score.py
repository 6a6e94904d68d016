"""Bits per byte of a model, and of xz, on the text that `tools/tiny_text.py` held out.

    python tools/tiny_score.py MODEL DIR [--weights int8]

The model reads DIR/held_out.txt after `<|endoftext|>`, in windows of its context length that
advance by half of it, so a token has at least half a context before it, or all there is. For xz
(the lzma module at preset 9, like `xz -9`; the binary is not needed), the bits are those that the
text adds to the compressed DIR/train.txt.
"""

import argparse
import lzma
import math
import sys
from pathlib import Path

from obscura_jax.decoding.engine import Generator
from obscura_jax.text.encoding import encode_ordinary
from obscura_jax.text.tokenizers import gpt2_tokenizer

_ROWS = 8  # windows in a batch


def model_bits(engine: Generator, text: str) -> float:
    """Return the bits that the engine's model needs per byte of `text`."""
    cfg = engine.model.cfg
    if cfg.context_length < 2:
        raise ValueError("context_length is 1, but scoring needs windows of at least 2 tokens")
    tokenizer = gpt2_tokenizer(cfg.vocab_size)
    ids = [tokenizer.eot_token, *encode_ordinary(tokenizer, text)]
    windows = _windows(len(ids), cfg.context_length)
    nats = 0.0
    for at in range(0, len(windows), _ROWS):
        some = windows[at : at + _ROWS]
        found = engine.score([ids[start:stop] for start, _, stop in some])
        for (_, new, stop), row in zip(some, found.logprobs, strict=True):
            nats -= sum(row[len(row) - (stop - new) :])
    return nats / math.log(2) / len(text.encode())


def _windows(count: int, length: int) -> list[tuple[int, int, int]]:
    """Return windows (start, new, stop): ids from new up to stop are scored given those from start.

    Every id but the first is scored once.
    """
    windows = []
    new, stop = 1, min(count, length)
    while new < stop:
        windows.append((max(0, stop - length), new, stop))
        new, stop = stop, min(count, stop + max(length // 2, 1))
    return windows


def xz_bits(train: str, text: str) -> float:
    """Return the bits that `xz -9` needs per byte of `text` after `train`."""
    before, after = (len(lzma.compress(each.encode(), preset=9)) for each in (train, train + text))
    return 8 * (after - before) / len(text.encode())


def main() -> None:
    """Print the bits per byte of both."""
    from obscura_jax.interop.checkpoint import load_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL", help="model folder")
    parser.add_argument("folder", type=Path, metavar="DIR", help="output of tools/tiny_text.py")
    forms = ("as-given", "int8")
    parser.add_argument("--weights", choices=forms, default="as-given", help="form of the weights")
    args = parser.parse_args()
    try:
        train, text = (
            (args.folder / name).read_text(encoding="utf-8")
            for name in ("train.txt", "held_out.txt")
        )
        model, params = load_model(args.model)
        bits = model_bits(Generator(model, params, weights=args.weights), text)
    except (ValueError, OSError) as error:
        print(f"tiny_score: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{args.model}: {bits:.4f} bits per byte on {len(text.encode())} held-out bytes")
    print(f"xz -9: {xz_bits(train, text):.3f} bits per byte, after the training text")


if __name__ == "__main__":
    main()
