"""Windows of a file of token ids, such as nanoGPT's train.bin, read from disk as needed."""

import zlib
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from obscura_jax.checks import check_size
from obscura_jax.text.dataset import Batch, IntArrayLike
from obscura_jax.text.token_journal import TOKEN_DTYPE

_BLOCK = 1 << 22  # tokens


class TokenFile:
    """The windows of a file of 16-bit ids, as `GPTDatasetV1` has those of ids in memory.

    Window i starts at token first + i * stride. The file is mapped only while a batch is copied, so
    memory use does not depend on its size.
    """

    def __init__(
        self,
        path: str | Path,
        max_length: int,
        stride: int,
        *,
        first: int = 0,
        last: int | None = None,
        vocab_size: int | None = None,
    ) -> None:
        """Use the tokens of `path` from `first` up to, not including, `last` (None: the end).

        Raises:
            FileNotFoundError: when there is no file.
            ValueError: when it is not of 16-bit numbers, has not all of that range, has fewer than
                max_length + 1 tokens in it, or, if `vocab_size` is given, ids outside it.
        """
        self.path = Path(path)
        self.max_length = check_size("max_length", max_length)
        self.stride = check_size("stride", stride)
        if not self.path.is_file():
            what = "is not a file" if self.path.exists() else "does not exist"
            raise FileNotFoundError(f"no tokens at {str(path)!r}: it {what}; check the path")
        size = self.path.stat().st_size
        if size % TOKEN_DTYPE.itemsize:
            raise ValueError(
                f"{path} is not a file of 16-bit numbers: it has {size} bytes, an odd number; "
                "write the token ids again as 16-bit integers"
            )
        count = size // TOKEN_DTYPE.itemsize
        self.first, self.last = first, count if last is None else last
        if not 0 <= first <= self.last <= count:
            raise ValueError(f"{path} has {count} tokens, not the range {first}..{self.last}")
        if self.last - first <= max_length:
            raise ValueError(
                f"{path} has {self.last - first} tokens here, a window needs max_length + 1 = "
                f"{max_length + 1}; give more tokens or a smaller context length"
            )
        if vocab_size is not None and self._largest >= vocab_size:
            raise ValueError(
                f"{path} has token {self._largest}, outside the vocabulary, 0..{vocab_size - 1}; "
                "raise the vocabulary size, or check that the file has 16-bit ids"
            )

    def __len__(self) -> int:
        """Return the number of windows."""
        return (self.last - self.first - self.max_length - 1) // self.stride + 1

    def windows(self, indices: IntArrayLike) -> Batch:
        """Copy the windows at `indices` into two C-contiguous (B, L) int32 arrays."""
        rows = np.asarray(indices, np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"windows are numbered 0..{len(self) - 1}")
        starts = self.first + rows * self.stride
        ids = self._map()[starts[:, None] + np.arange(self.max_length + 1)].astype(np.int32)
        return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])

    @cached_property
    def checksum(self) -> int:
        """Return the CRC-32 of the tokens in the range."""
        crc = 0
        for begin in range(self.first, self.last, _BLOCK):
            crc = zlib.crc32(self._map()[begin : min(begin + _BLOCK, self.last)].tobytes(), crc)
        return crc

    @cached_property
    def _largest(self) -> int:
        begins = range(self.first, self.last, _BLOCK)
        return max(int(self._map()[b : min(b + _BLOCK, self.last)].max()) for b in begins)

    def _map(self) -> npt.NDArray[np.uint16]:
        return np.memmap(self.path, TOKEN_DTYPE, "r")
