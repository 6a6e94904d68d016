"""Checks of arguments, shared by every module: each returns the value or raises ValueError."""

import math
import operator
from numbers import Real

_LARGEST_SIZE = 2**31 - 1  # every index in this package is an int32


def check_size(name: str, value: object, least: int = 1) -> int:
    """Return `value` as an int; ValueError unless it is an integer from `least` to 2**31 - 1."""
    try:
        size = least - 1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        size = least - 1
    if size < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if size > _LARGEST_SIZE:
        raise ValueError(f"{name} must be at most {_LARGEST_SIZE}, got {value!r}")
    return size


def check_sizes(owner: object, *names: str, least: int = 1) -> None:
    """Apply `check_size` to the named attributes of `owner`; each becomes a plain int."""
    for name in names:
        object.__setattr__(owner, name, check_size(name, getattr(owner, name), least))


def check_drop_rate(name: str, value: object) -> float:
    """Return `value` as a float; ValueError unless it is a probability in [0, 1)."""
    if not 0 <= (rate := real_number(value)) < 1:
        raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")
    return rate


def check_eps(name: str, value: object) -> float:
    """Return `value` as a float; ValueError unless it is in (0, 1)."""
    if not 0 < (eps := real_number(value)) < 1:
        raise ValueError(f"{name} must be a number in (0, 1), got {value!r}")
    return eps


def real_number(value: object) -> float:
    """Return `value` as a float, or NaN, which is in no range, if it is not a real number."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_heads(width_name: str, width: int, heads_name: str, heads: int) -> None:
    """Raise ValueError unless `width` is divisible by `heads`."""
    if width % heads:
        raise ValueError(f"{width_name}={width} is not divisible by {heads_name}={heads}")
