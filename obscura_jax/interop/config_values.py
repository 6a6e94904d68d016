"""Values in configs that other programs wrote: numbers as text, whole numbers as 4.0, null."""

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np


def whole_number(name: str, value: object) -> int | None:
    """Read 4, 4.0 and "4" as 4, and null as nothing.

    Raises:
        ValueError: naming the entry and its type, for anything else.
    """
    if value is None:
        return None
    number = _number(value)
    if number is None or number % 1:  # of an infinity and NaN, NaN
        raise _wrong(name, value, "a whole number")
    return int(number)


def read_values(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Read entries of a config as those of `GPTConfig`.

    Args:
        config: a config of another program.
        names: its name of an entry -> `GPTConfig`'s. Those it lacks, and sizes that are null, are
            left out of the result.

    Raises:
        ValueError: naming an entry of the wrong type.
    """
    found = {
        ours: _READERS.get(ours, whole_number)(theirs, config[theirs])
        for theirs, ours in names.items()
        if theirs in config
    }
    return {name: value for name, value in found.items() if value is not None}


def _rate(name: str, value: object) -> float:
    """Read a drop rate, which only training uses.

    null means that nothing is dropped. A rate of 1, with which nothing can be learned, is read as 0
    too: it is no reason to refuse a model that is only run.
    """
    if value is None:
        return 0.0
    number = _number(value)
    if number is None or not 0 <= number <= 1:
        raise _wrong(name, value, "a number from 0 to 1")
    return 0.0 if number == 1 else float(number)


def _real(name: str, value: object) -> Any:
    if (number := _number(value)) is None:
        raise _wrong(name, value, "a number")
    return number


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise _wrong(name, value, "true or false")
    return bool(value)


_READERS: dict[str, Callable[[str, object], Any]] = {
    "drop_rate": _rate,
    "ln_eps": _real,
    "qkv_bias": _flag,
    "tie_weights": _flag,
}


def _number(value: object) -> Any:
    """Return a real number, or the one that a text is; None for anything else."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value if isinstance(value, Real) and not isinstance(value, bool) else None


def _wrong(name: str, value: object, wanted: str) -> ValueError:
    shown = f"{value!r:.40}, of type {type(value).__name__}"
    return ValueError(f"the config says {name}={shown}; it must be {wanted}")
