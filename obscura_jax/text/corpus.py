"""Text files to token ids, split into what is trained on and what is held out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from obscura_jax.text.tokenizers import gpt2_tokenizer

Ids = npt.NDArray[np.int32]


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when it is empty, or not UTF-8 text; the position of the first wrong byte is
            named.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no text at {str(path)!r}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    return decode_text(data, str(path))


def decode_text(data: bytes, name: str) -> str:
    """`data` as UTF-8 text that is not empty; ValueError with `name` and position if it is not."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8 text: byte {error.start} is {data[error.start]:#04x}"
        ) from None
    if (at := text.find("\0")) >= 0:
        raise ValueError(f"{name} is not text: character {at} is a zero")
    if not text.strip():
        raise ValueError(f"{name} is empty")
    return text


def encode_texts(texts: Sequence[str]) -> Ids:
    """The GPT-2 tokens of texts, each followed by `<|endoftext|>`."""
    tokenizer = gpt2_tokenizer()
    ids: list[int] = []
    for text in texts:
        ids += [*tokenizer.encode_ordinary(text), tokenizer.eot_token]
    return np.array(ids, np.int32)


def split_held_out(ids: Ids, fraction: float, window: int) -> tuple[Ids, Ids]:
    """The tokens before the last `fraction` of them, and those.

    Raises:
        ValueError: when one part is shorter than a window and the token after it.
    """
    at = len(ids) - max(int(len(ids) * fraction), window + 1)
    if at < window + 1:
        raise ValueError(
            f"the text has {len(ids)} tokens: training and validation need a window of {window} "
            "and one more each; give more text or a smaller context length"
        )
    return ids[:at], ids[at:]
