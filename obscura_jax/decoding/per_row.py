"""Settings of rows: one value for all rows of a batch, or one for each, checked on the host."""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np

from obscura_jax.nn.token_ids import validate_sequences

FloatPerRow = float | None | Sequence[float | None]  # one value for all rows, or one for each
IntPerRow = int | None | Sequence[int | None]
IdsPerRow = Sequence[int] | Sequence[Sequence[int]]  # one list for all rows, or one for each


def plain(value: Any) -> Any:
    """Return a NumPy or JAX scalar or array as Python numbers; anything else unchanged."""
    return value.tolist() if hasattr(value, "tolist") else value


def is_number(value: Any) -> bool:
    """Return whether `value` is a real number and not a bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def numbers_per_row(
    name: str, value: Any, rows: int, accepts: Callable[[Any], bool], words: str
) -> list[Any]:
    """Return one value per row, each None or a number that `accepts` accepts.

    Raises:
        ValueError: for another value; the message calls the setting `name` and what it accepts
            `words`, such as "a number in (0, 1]". Also for a list that does not have `rows` values.
    """
    value = plain(value)
    listed = isinstance(value, list | tuple)
    values = [plain(x) for x in value] if listed else [value] * rows
    if len(values) != rows:
        raise ValueError(f"{name} lists {len(values)} values for {rows} rows; give one per row")
    for row, x in enumerate(values):
        if not (x is None or (is_number(x) and accepts(x))):
            where = f"{name} of row {row}" if listed else name
            raise ValueError(f"{where} must be {words}, got {x!r}")
    return values


def ids_per_row(name: str, ids: Any, rows: int, vocab_size: int) -> list[list[int]]:
    """Return one list of token ids per row.

    Raises:
        ValueError: for anything but a list of ids or one list per row, and for ids outside the
            vocabulary. The message calls the setting `name`.
    """
    if isinstance(ids, str) or (not isinstance(ids, Sequence) and np.ndim(ids) == 0):
        raise ValueError(f"{name} must be a list of ids, or one list per row; got {ids!r}")
    listed = [np.ndim(own) > 0 for own in ids]
    if any(listed) and not all(listed):
        raise ValueError(f"{name} must be a list of ids, or one list per row; got {ids!r}")
    per_row = ids if any(listed) else [ids] * rows
    if len(per_row) != rows:
        raise ValueError(f"{name} has {len(per_row)} lists for {rows} rows; give one per row")
    try:
        return [
            validate_sequences(np.asarray(own), vocab_size).tolist() if len(own) else []
            for own in per_row
        ]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
