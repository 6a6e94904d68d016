"""Training examples from token ids: sliding windows over one array.

The inputs of a window are L consecutive ids; its targets are the L ids one position later. In
shapes, B is the batch size and L is max_length.
"""

from __future__ import annotations

import operator
import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol, Self, SupportsIndex, cast

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from obscura_jax.checks import check_size
from obscura_jax.text.encoding import encode_text
from obscura_jax.text.tokenizers import END_OF_TEXT, Tokenizer

Batch = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]
"""Inputs and targets, each (B, L); each (L,) for a single window."""

IntArrayLike = Sequence[int] | npt.NDArray[np.integer[Any]]


class Windows(Protocol):
    """The interface of the data of a loader: `GPTDatasetV1` or `TokenFile`."""

    max_length: int
    stride: int

    def __len__(self) -> int:
        """Return the number of windows."""
        ...

    def windows(self, indices: IntArrayLike) -> Batch:
        """Copy the windows at `indices` into two (B, L) arrays."""
        ...

    @property
    def checksum(self) -> int:
        """Return a checksum that identifies the tokens."""
        ...


class GPTDatasetV1:
    """The windows of a text: `ds[i]` is (inputs, targets), each (L,) int32, targets shifted by one.

    Window i starts at token i * stride. All windows are read-only views of `token_ids`, the only
    array that the dataset stores, int32.
    """

    def __init__(self, txt: str, tokenizer: Tokenizer, max_length: int, stride: int) -> None:
        """Encode `txt`, allowing `<|endoftext|>` if the tokenizer needs permission (tiktoken).

        Raises ValueError if the text has fewer than max_length + 1 tokens.
        """
        self._set(encode_text(tokenizer, txt, {END_OF_TEXT}), max_length, stride)

    @classmethod
    def from_ids(cls, ids: IntArrayLike, max_length: int, stride: int) -> Self:
        """Create a dataset from existing ids: a list or a 1-D array of integers.

        An int32 array is used without a copy if it and the memory that it views are read-only (as
        in a mapped file). Anything else is copied.
        """
        dataset = cls.__new__(cls)
        dataset._set(ids, max_length, stride)
        return dataset

    def _set(self, ids: IntArrayLike, max_length: int, stride: int) -> None:
        self.max_length = check_size("max_length", max_length)
        self.stride = check_size("stride", stride)
        self.token_ids = _token_ids(ids)
        if len(self.token_ids) <= self.max_length:
            raise ValueError(
                f"the text has {len(self.token_ids)} tokens, a window needs max_length + 1 = "
                f"{self.max_length + 1}; give more text or a smaller max_length"
            )
        # (windows, L) views; starts are range(0, n_tokens - max_length, stride), as in the course.
        self._inputs = sliding_window_view(self.token_ids[:-1], self.max_length)[:: self.stride]
        self._targets = sliding_window_view(self.token_ids[1:], self.max_length)[:: self.stride]

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self._inputs)

    def __getitem__(self, index: SupportsIndex) -> Batch:
        """Return window `index`, counted from the end when negative; IndexError out of range."""
        i = operator.index(index)
        return self._inputs[i], self._targets[i]

    def windows(self, indices: IntArrayLike) -> Batch:
        """Copy the windows at `indices` into two C-contiguous (B, L) arrays."""
        rows = _integers("indices", indices)
        return np.ascontiguousarray(self._inputs[rows]), np.ascontiguousarray(self._targets[rows])

    @cached_property
    def checksum(self) -> int:
        """Return the CRC-32 of the token ids."""
        return zlib.crc32(self.token_ids.data)


def _integers(name: str, values: IntArrayLike) -> npt.NDArray[np.integer[Any]]:
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be a 1-D list or array of integers, got shape {array.shape} "
            f"and dtype {array.dtype}"
        )
    return array


def _is_read_only(array: npt.NDArray[Any]) -> bool:
    """Return whether `array` and everything that it views are read-only."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return False
        owner = owner.base
    if owner is None:
        return True
    try:
        with memoryview(owner) as memory:  # a mapped file or bytes
            return memory.readonly
    except TypeError:
        return False


def _token_ids(ids: IntArrayLike) -> npt.NDArray[np.int32]:
    """Return `ids` as a read-only int32 array that no other reference to its memory can change."""
    array = _integers("ids", ids)
    most = np.iinfo(np.int32).max
    if array.size and (array.min() < 0 or array.max() > most):
        raise ValueError(f"ids must be in 0..{most}, got {array.min()}..{array.max()}")
    if array.dtype != np.int32 or not array.flags.c_contiguous or not _is_read_only(array):
        array = array.astype(np.int32, order="C")
        array.flags.writeable = False
    return cast("npt.NDArray[np.int32]", array)
