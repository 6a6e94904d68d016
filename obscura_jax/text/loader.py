"""A data loader without hidden state, which can resume at any batch.

In shapes, B is the batch size and L is max_length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from obscura_jax.checks import check_size, check_sizes
from obscura_jax.text.dataset import Batch, GPTDatasetV1, Windows
from obscura_jax.text.tokenizers import Tokenizer, gpt2_tokenizer


@dataclass(frozen=True)
class DataLoader:
    """Batches of a dataset. The loader holds no state: epoch n is a function of (seed, n).

    A training loop writes `for n in range(epochs): for inputs, targets in loader.epoch(n): ...`.
    Iterating over the loader itself always yields epoch 0.
    """

    dataset: Windows
    batch_size: int = 4
    shuffle: bool = True
    drop_last: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the fields."""
        check_sizes(self, "batch_size")
        check_sizes(self, "seed", least=0)
        if len(self) == 0:
            raise ValueError(
                f"drop_last leaves no batch: the dataset has {len(self.dataset)} windows, "
                f"batch_size is {self.batch_size}; give more text, a smaller batch_size or "
                "drop_last=False"
            )

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> BatchIterator:
        """Start epoch 0."""
        return self.epoch(0)

    def epoch(self, n: int) -> BatchIterator:
        """Start epoch n, counted from 0."""
        return BatchIterator(self, check_size("epoch", n, 0))

    def batches_from(self, step: int = 0, rows: Sequence[int] | None = None) -> Iterator[Batch]:
        """Yield batches indefinitely, epoch after epoch, from the batch of training step `step`.

        If `rows` is given, only these rows of every batch are read, (len(rows), L): the share of
        one process.
        """
        epoch, batch = divmod(check_size("step", step, 0), len(self))
        while True:
            yield from BatchIterator(self, epoch, batch, rows)
            epoch, batch = epoch + 1, 0

    def restore(self, state: Mapping[str, Any]) -> BatchIterator:
        """Resume at the batch after `state`, which `BatchIterator.state` returned.

        Raises ValueError, naming the field, if the state lacks a field or belongs to other data or
        another order.
        """
        own = self._identity()
        for field in ("epoch", "batch", *own):
            if field not in state:
                raise ValueError(f"the state has no {field!r}; pass what `state()` returned")
            if field in own and state[field] != own[field]:
                raise ValueError(
                    f"the state is of another loader: its {field} is {state[field]!r}, "
                    f"here it is {own[field]!r}; use the same text and arguments"
                )
        batch = check_size("batch", state["batch"], 0)
        if batch > len(self):
            raise ValueError(f"batch must be at most {len(self)}, got {batch}")
        return BatchIterator(self, check_size("epoch", state["epoch"], 0), batch)

    def _identity(self) -> dict[str, int]:
        return {
            "seed": self.seed,
            "shuffle": bool(self.shuffle),
            "drop_last": bool(self.drop_last),
            "batch_size": self.batch_size,
            "windows": len(self.dataset),
            "max_length": self.dataset.max_length,
            "stride": self.dataset.stride,
            "checksum": self.dataset.checksum,
        }

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if self.shuffle:
            return np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))
        return np.arange(len(self.dataset))


class BatchIterator(Iterator[Batch]):
    """The batches of one epoch, created by `DataLoader.epoch` or `DataLoader.restore`.

    An error while preparing a batch is raised when that batch is requested, and again by every
    later `next`.
    """

    def __init__(
        self, loader: DataLoader, epoch: int, batch: int = 0, rows: Sequence[int] | None = None
    ) -> None:
        """Start at batch `batch` of epoch `epoch`, and read `rows` of each batch, or all."""
        self._loader = loader
        self._epoch = epoch
        self._batch = batch  # batches handed out
        self._order = loader._order(epoch)
        self._rows = slice(None) if rows is None else list(rows)

    def __next__(self) -> Batch:
        """Return (inputs, targets), each (B, L) int32."""
        if self._batch >= len(self._loader):
            raise StopIteration
        size = self._loader.batch_size
        windows = self._order[self._batch * size : (self._batch + 1) * size][self._rows]
        result = self._loader.dataset.windows(windows)
        self._batch += 1
        return result

    def state(self) -> dict[str, int]:
        """Return the position and what identifies the data and their order, ready for JSON."""
        return {"epoch": self._epoch, "batch": self._batch, **self._loader._identity()}


def create_dataloader_v1(
    txt: str,
    batch_size: int = 4,
    max_length: int = 256,
    stride: int = 128,
    shuffle: bool = True,
    drop_last: bool = True,
    num_workers: int = 0,
    *,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> DataLoader:
    """Return a loader over the windows of a text (chapter 2.6).

    `for inputs, targets in loader` yields epoch 0 every time, whereas torch would shuffle again. A
    training loop should use `loader.epoch(n)`, whose order depends only on `seed` and n.

    Args:
        txt: the text.
        batch_size: windows per batch, B.
        max_length: tokens per window, L; the text needs one more.
        stride: tokens from the start of one window to the start of the next.
        shuffle: whether the windows of an epoch are in random order.
        drop_last: whether a last batch of fewer than B windows is left out.
        num_workers: accepted for the course's sake and ignored: preparing a batch takes
            microseconds, so each is prepared on request.
        seed: random seed for the order, a whole number of at least 0; replaces torch's global
            generator.
        tokenizer: tokenizer that encodes the text; by default `gpt2_tokenizer()`.

    Returns:
        A loader of (inputs, targets), each (B, L) int32, the targets shifted by one token.

    Raises:
        ValueError: for a text of fewer than L + 1 tokens, a size out of range, or `drop_last`
            when the windows do not fill one batch.
    """
    check_size("num_workers", num_workers, 0)
    if tokenizer is None:
        tokenizer = gpt2_tokenizer()
    dataset = GPTDatasetV1(txt, tokenizer, max_length, stride)
    return DataLoader(dataset, batch_size, shuffle, drop_last, seed)
